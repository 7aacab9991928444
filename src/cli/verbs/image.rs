//! `podmig image`: look into an image file.

use crate::base::Failure;
use crate::cli::{Context, out, shape};
use crate::image::file::{self, Summary};
use serde::Serialize;
use std::path::Path;

#[derive(Serialize)]
struct Image<'a> {
    schema: u32,
    name: &'a str,
    id: &'a str,
    from: &'a str,
    cmd: &'a [String],
    started: &'a str,
    leave_running: bool,
    processes: usize,
    threads: usize,
    files: usize,
    page_frames: u64,
    page_bytes: u64,
}

/// Reads the whole file and checks it; `show` prints what is in it, `verify` says that it is whole.
pub fn run(ctx: &Context, path: &Path, verify: bool) -> Result<i32, Failure> {
    let summary = file::verify(path).map_err(|e| e.failure(&path.display().to_string()))?;
    let Summary { manifest, processes, threads, files, page_frames, page_bytes } = &summary;
    if ctx.json {
        out::json(&Image {
            schema: shape::SCHEMA,
            name: manifest.spec.name.as_str(),
            id: manifest.spec.id.as_str(),
            from: &manifest.from,
            cmd: &manifest.spec.cmd,
            started: &manifest.started,
            leave_running: manifest.leave_running,
            processes: *processes,
            threads: *threads,
            files: *files,
            page_frames: *page_frames,
            page_bytes: *page_bytes,
        });
    } else if verify {
        out::line(&format!("{}: whole", path.display()));
    } else {
        out::line(&format!("pod        {} ({})", manifest.spec.name, manifest.spec.id));
        out::line(&format!("command    {}", manifest.spec.cmd.join(" ")));
        out::line(&format!("from       {}, started {}", manifest.from, manifest.started));
        out::line(&format!("processes  {processes}, threads {threads}, open files {files}"));
        out::line(&format!("memory     {:.1} MiB", *page_bytes as f64 / f64::from(1 << 20)));
    }
    Ok(0)
}
