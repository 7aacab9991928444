//! `podmig version`: versions of this program and of what it writes and speaks.

use crate::base::Failure;
use crate::cli::{Context, out, shape};
use crate::image::frame;
use crate::pod::{proto, store};
use crate::wire::hello;

/// Prints them.
pub fn run(ctx: &Context) -> Result<i32, Failure> {
    let version = env!("CARGO_PKG_VERSION");
    if ctx.json {
        out::json(&serde_json::json!({
            "schema": shape::SCHEMA,
            "version": version,
            "json": shape::SCHEMA,
            "record": store::SCHEMA,
            "image": frame::VERSION,
            "wire": hello::VERSION,
            "monitor": (proto::OLDEST, proto::VERSION),
        }));
    } else {
        out::line(&format!("podmig {version}"));
    }
    Ok(0)
}
