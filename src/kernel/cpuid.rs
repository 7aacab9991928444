//! CPUID: the layout of the extended state on this host (leaf 0xD, Intel SDM vol. 1 ch. 13).

/// Offset and size in bytes of state component `n` (≥ 2) in the uncompacted XSAVE area; size 0: not there.
pub fn xsave_component(n: u32) -> (usize, usize) {
    #[allow(unused_unsafe)]
    // SAFETY: CPUID exists on every x86-64; leaf 0xD reads nothing but registers.
    let leaf = unsafe { std::arch::x86_64::__cpuid_count(0xd, n) };
    (leaf.ebx as usize, leaf.eax as usize)
}

/// The state components from AVX on that this host's programs can use: number, offset and size in bytes.
pub fn xsave_components() -> Vec<(u32, u32, u32)> {
    let all = (2..63).map(|n| (n, xsave_component(n)));
    // Offset 0: a supervisor's, which programs do not see.
    all.filter(|(_, (at, size))| *at != 0 && *size != 0)
        .map(|(n, (at, size))| (n, at as u32, size as u32))
        .collect()
}

/// Size in bytes of an uncompacted XSAVE area that holds the components of `features` (an XCR0-like mask).
pub fn xsave_size(features: u64) -> usize {
    const LEGACY_AND_HEADER: usize = 512 + 64;
    (2..63)
        .filter(|n| features & (1 << n) != 0)
        .map(xsave_component)
        .filter(|&(_, size)| size != 0)
        .map(|(offset, size)| offset + size)
        .max()
        .unwrap_or(0)
        .max(LEGACY_AND_HEADER)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn avx_follows_the_header() {
        assert_eq!(xsave_size(0b11), 576);
        // AVX is component 2, at 576, 256 bytes, on every processor that has it.
        if xsave_component(2).1 != 0 {
            assert_eq!(xsave_component(2), (576, 256));
            assert_eq!(xsave_size(0b111), 832);
        }
    }
}
