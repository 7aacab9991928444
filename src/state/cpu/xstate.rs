//! The extended state of a thread on another CPU: components lie where each CPU's layout has them. Pure.

/// Where a state component lies in the uncompacted XSAVE area of a CPU (CPUID leaf 0xD): number, offset, size in bytes.
pub type Component = (u32, u32, u32);

/// Legacy area and header.
const HEADER_END: usize = 576;
/// XSTATE_BV: which components are not in their initial state.
const USED: usize = 512;

/// Names of the components, as the Intel SDM has them.
fn name(n: u32) -> String {
    match n {
        2 => "AVX".to_owned(),
        3 | 4 => "MPX".to_owned(),
        5..=7 => "AVX-512".to_owned(),
        9 => "PKRU".to_owned(),
        17 | 18 => "AMX".to_owned(),
        n => format!("state component {n}"),
    }
}

/// `area` of a CPU with the components `from`, as a CPU with those of `to` and an area of `len` bytes takes it.
/// Errors: a component in use that is not there.
pub fn fit(area: &[u8], from: &[Component], to: &[Component], len: usize) -> Result<Vec<u8>, String> {
    if from == to && area.len() == len || from.is_empty() && area.len() == len {
        return Ok(area.to_vec());
    }
    let odd = || format!("an extended CPU state of {} bytes makes no sense", area.len());
    let used = area.get(USED..USED + 8).and_then(|b| b.try_into().ok()).map(u64::from_le_bytes);
    let used = used.ok_or_else(odd)?;
    let mut out = vec![0; len.max(HEADER_END)];
    out[..HEADER_END].copy_from_slice(area.get(..HEADER_END).ok_or_else(odd)?);
    for n in (2..63).filter(|n| used & (1 << n) != 0) {
        let find = |list: &[Component]| list.iter().find(|c| c.0 == n).map(|c| (c.1 as usize, c.2 as usize));
        let here = find(to).filter(|(at, size)| at + size <= len);
        let zeros =
            |(at, size): (usize, usize)| area.get(at..at + size).is_some_and(|c| c.iter().all(|b| *b == 0));
        if here.is_none() && find(from).is_some_and(zeros) {
            // In its initial state after all: some CPUs (qemu's) say "in use" of all they have.
            let left = u64::from_le_bytes(out[USED..USED + 8].try_into().map_err(|_| odd())?) & !(1 << n);
            out[USED..USED + 8].copy_from_slice(&left.to_le_bytes());
            continue;
        }
        let (Some((there, size)), Some((at, room))) = (find(from), here) else {
            return Err(format!("it uses {}, which this CPU does not have", name(n)));
        };
        if size != room {
            return Err(format!("its {} state has {size} bytes, this CPU's {room}", name(n)));
        }
        let content = area.get(there..there + size).ok_or_else(odd)?;
        out[at..at + size].copy_from_slice(content);
    }
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn area(len: usize, used: u64, filled: &[(usize, u8)]) -> Vec<u8> {
        let mut a = vec![0; len];
        a[USED..USED + 8].copy_from_slice(&used.to_le_bytes());
        filled.iter().for_each(|(at, byte)| a[*at] = *byte);
        a
    }

    #[test]
    fn components_move_to_where_they_lie() {
        let (amd, intel) = ([(2, 576, 256), (5, 832, 64)], [(2, 576, 256), (5, 1088, 64)]);
        let from = area(896, 0b10_0111, &[(24, 1), (576, 2), (832, 3)]);
        let to = fit(&from, &amd, &intel, 1152).unwrap();
        assert_eq!(to, area(1152, 0b10_0111, &[(24, 1), (576, 2), (1088, 3)]));
        assert_eq!(fit(&to, &intel, &amd, 896).unwrap(), from);
    }

    #[test]
    fn only_what_is_in_use_must_be_there() {
        let (big, small) = ([(2, 576, 256), (5, 832, 64)], [(2, 576, 256)]);
        assert_eq!(fit(&area(896, 7, &[(576, 2)]), &big, &small, 832).unwrap(), area(832, 7, &[(576, 2)]));
        assert_eq!(fit(&area(896, 0x27, &[]), &big, &small, 832).unwrap(), area(832, 7, &[]));
        let content = area(896, 0x27, &[(840, 1)]);
        assert!(fit(&content, &big, &small, 832).unwrap_err().contains("AVX-512"));
        assert!(fit(&[0; 100], &big, &small, 832).is_err());
    }
}
