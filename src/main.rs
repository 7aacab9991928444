//! The `podmig` binary: everything is in the library.

fn main() {
    eprintln!("podmig: not built yet");
    std::process::exit(2);
}
