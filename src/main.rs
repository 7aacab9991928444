//! The `podmig` binary: everything is in the library.

fn main() {
    std::process::exit(podmig::cli::main());
}
