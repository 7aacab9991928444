//! `podmig port`: the published ports of a pod.

use crate::base::Failure;
use crate::cli::{Context, out, shape};
use serde::Serialize;

#[derive(Serialize)]
struct Ports<'a> {
    schema: u32,
    name: &'a str,
    id: &'a str,
    ports: Vec<shape::Port>,
}

/// Prints one line each: `80/tcp 0.0.0.0:49153`.
pub fn run(ctx: &Context, name: &str) -> Result<i32, Failure> {
    let record = ctx.store.find_here(name)?;
    let pod = shape::Pod::new(&record);
    if ctx.json {
        out::json(&Ports { schema: shape::SCHEMA, name: pod.name, id: pod.id, ports: pod.ports });
    } else {
        for p in &pod.ports {
            let ip = p.host_ip.as_deref().unwrap_or("0.0.0.0");
            out::line(&format!("{}/{} {ip}:{}", p.pod_port, p.protocol, p.host_port));
        }
    }
    Ok(0)
}
