//! The vdso image that this kernel gives to every program (vdso(7)).

use std::fs;
use std::io;
use std::os::unix::fs::FileExt;

/// The image, whole pages of it; empty where the kernel gives none.
///
/// # Errors
/// `/proc/self` cannot be read.
pub fn own() -> io::Result<Vec<u8>> {
    let maps = fs::read_to_string("/proc/self/maps")?;
    let Some(line) = maps.lines().find(|l| l.ends_with("[vdso]")) else { return Ok(Vec::new()) };
    let range = line.split_whitespace().next().unwrap_or_default();
    let number = |text: &str| u64::from_str_radix(text, 16).unwrap_or(0);
    let (start, end) = range.split_once('-').map_or((0, 0), |(a, b)| (number(a), number(b)));
    let mut image = vec![0; usize::try_from(end.saturating_sub(start)).unwrap_or(0)];
    fs::File::open("/proc/self/mem")?.read_exact_at(&mut image, start)?;
    Ok(image)
}
