//! Errors of the kernel in plain words.

/// The plain words for an I/O error (`No space left on device`), without `(os error N)`.
pub fn errno_text(error: &std::io::Error) -> String {
    match error.raw_os_error() {
        Some(code) => nix::errno::Errno::from_raw(code).desc().to_owned(),
        None => error.to_string(),
    }
}
