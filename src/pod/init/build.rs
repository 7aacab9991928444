//! Builds pid 1 of the pods (`program.rs`) as a static program without libc, for podmig to embed.

use std::env;
use std::path::PathBuf;
use std::process::Command;

fn main() {
    let dir = PathBuf::from(env::var_os("CARGO_MANIFEST_DIR").expect("cargo sets CARGO_MANIFEST_DIR"))
        .join("src/pod/init");
    let out = PathBuf::from(env::var_os("OUT_DIR").expect("cargo sets OUT_DIR"));
    let target = env::var("TARGET").expect("cargo sets TARGET");
    for file in ["program.rs", "program.ld", "wire.rs", "build.rs"] {
        println!("cargo::rerun-if-changed={}", dir.join(file).display());
    }
    let mut rustc = Command::new(env::var_os("RUSTC").expect("cargo sets RUSTC"));
    rustc.arg(dir.join("program.rs")).arg("-o").arg(out.join("podmig-init"));
    rustc.args([
        "--crate-name",
        "podmig_init",
        "--crate-type",
        "bin",
        "--edition",
        "2024",
        "--target",
        &target,
    ]);
    for option in [
        "panic=abort",
        "opt-level=s",
        "debuginfo=0",
        "strip=symbols",
        "relocation-model=static",
        // It lies above 4 GiB (program.ld).
        "code-model=large",
        "force-unwind-tables=no",
        "link-arg=-nostartfiles",
        "link-arg=-nostdlib",
        "link-arg=-static",
        "link-arg=-no-pie",
        "link-arg=-Wl,--build-id=none,--no-eh-frame-hdr,-z,norelro,-z,noexecstack,-z,max-page-size=4096",
    ] {
        rustc.args(["-C", option]);
    }
    rustc.arg("-C").arg(format!("link-arg=-Wl,-T,{}", dir.join("program.ld").display()));
    // Flags for the main build (coverage, sanitizers, linkers) do not fit a program without libc.
    rustc.env_remove("RUSTFLAGS").env_remove("CARGO_ENCODED_RUSTFLAGS").env_remove("RUSTC_WRAPPER");
    let status = rustc.status().expect("rustc runs");
    assert!(status.success(), "pid 1 of the pods could not be built: {status}");
}
