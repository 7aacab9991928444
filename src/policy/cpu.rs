//! Levels of x86-64 (psABI) that a pod can be held to: which CPU features they have, and what tells common libraries to
//! use no others.

/// A level of the x86-64 psABI.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Level {
    /// SSE4.2, POPCNT, CMPXCHG16B.
    V2,
    /// AVX2, FMA, BMI.
    V3,
    /// AVX-512 F, BW, CD, DQ, VL.
    V4,
}

/// The variable by which a pod's definition keeps its level; the pod sees it, too.
pub const VARIABLE: &str = "PODMIG_CPU";

/// Flags as `/proc/cpuinfo` names them, each level's own.
const V2: &[&str] = &["cx16", "lahf_lm", "popcnt", "pni", "sse4_1", "sse4_2", "ssse3"];
const V3: &[&str] = &["abm", "avx", "avx2", "bmi1", "bmi2", "f16c", "fma", "movbe", "xsave"];
const V4: &[&str] = &["avx512bw", "avx512cd", "avx512dq", "avx512f", "avx512vl"];

/// Features of glibc's `glibc.cpu.hwcaps` (tunables(7)) beyond a level; names it does not know are passed over.
const BEYOND_V2: &str = "-AVX,-AVX2,-FMA,-FMA4,-BMI1,-BMI2,-LZCNT,-MOVBE,-AVX_Fast_Unaligned_Load,-AVX_VNNI";
const BEYOND_V3: &str = "-AVX512F,-AVX512VL,-AVX512BW,-AVX512DQ,-AVX512CD,-AVX512ER,-AVX512PF,-AVX512_VNNI,\
-AVX512_VBMI,-AVX512_VBMI2,-AVX512_BITALG,-AVX512_IFMA,-AVX512_VPOPCNTDQ";
const BEYOND_V4: &str = "-RTM";

impl Level {
    /// By its name. Errors: what is expected.
    pub fn parse(text: &str) -> Result<Self, String> {
        match text {
            "x86-64-v2" => Ok(Level::V2),
            "x86-64-v3" => Ok(Level::V3),
            "x86-64-v4" => Ok(Level::V4),
            _ => Err("it must be x86-64-v2, x86-64-v3 or x86-64-v4".to_owned()),
        }
    }

    /// Its name.
    pub fn name(self) -> &'static str {
        match self {
            Level::V2 => "x86-64-v2",
            Level::V3 => "x86-64-v3",
            Level::V4 => "x86-64-v4",
        }
    }

    /// The level that a pod with this environment (`K=V` each) is held to.
    pub fn of(env: &[String]) -> Option<Self> {
        let value = env.iter().find_map(|e| e.strip_prefix(VARIABLE)?.strip_prefix('='))?;
        Self::parse(value).ok()
    }

    /// CPU flags a host needs for it.
    pub fn flags(self) -> impl Iterator<Item = &'static str> {
        let (v3, v4) = if self >= Level::V3 { (V3, &[][..]) } else { (&[][..], &[][..]) };
        let v4 = if self == Level::V4 { V4 } else { v4 };
        V2.iter().chain(v3).chain(v4).copied()
    }

    /// Environment that holds programs to it: glibc's choice of functions; no lazy binding (its trampoline saves the
    /// extended state in a room measured at start, which another CPU's state may exceed); OpenSSL's choice.
    pub fn env(self) -> Vec<(String, String)> {
        let mut beyond = vec![BEYOND_V4];
        if self <= Level::V3 {
            beyond.push(BEYOND_V3);
        }
        if self == Level::V2 {
            beyond.push(BEYOND_V2);
        }
        let bits = |list: &[u32]| list.iter().fold(0u64, |set, bit| set | 1 << bit);
        // CPUID leaf 1, EDX and ECX: PCLMULQDQ, AES, RDRAND belong to no level; FMA, MOVBE, AVX, F16C to v3.
        let mut leaf1 = bits(&[33, 57, 62]);
        // Leaf 7, EBX and ECX: RDSEED, ADX, AVX512IFMA, SHA and all of ECX belong to no level.
        let mut leaf7 = bits(&[18, 19, 21, 26, 27, 29]) | 0xffff_ffff << 32;
        if self <= Level::V3 {
            leaf7 |= bits(&[16, 17, 28, 30, 31]);
        }
        if self == Level::V2 {
            leaf1 |= bits(&[44, 54, 60, 61]);
            leaf7 |= bits(&[3, 5, 8]);
        }
        let pair = |k: &str, v: String| (k.to_owned(), v);
        vec![
            pair(VARIABLE, self.name().to_owned()),
            pair("GLIBC_TUNABLES", format!("glibc.cpu.hwcaps={}", beyond.join(","))),
            pair("LD_BIND_NOW", "1".to_owned()),
            pair("OPENSSL_ia32cap", format!("~{leaf1:#x}:~{leaf7:#x}")),
        ]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn levels_are_told_by_name_and_found_again() {
        for level in [Level::V2, Level::V3, Level::V4] {
            assert_eq!(Level::parse(level.name()), Ok(level));
            let env: Vec<String> = level.env().iter().map(|(k, v)| format!("{k}={v}")).collect();
            assert_eq!(Level::of(&env), Some(level));
        }
        assert!(Level::parse("v3").unwrap_err().contains("x86-64-v3"));
        assert_eq!(Level::of(&["PATH=/bin".to_owned()]), None);
    }

    #[test]
    fn a_level_has_what_those_below_it_have() {
        let count = |l: Level| l.flags().count();
        assert!(count(Level::V2) < count(Level::V3) && count(Level::V3) < count(Level::V4));
        assert!(!Level::V3.flags().any(|f| f.starts_with("avx512")));
    }

    #[test]
    fn what_lies_beyond_is_hidden() {
        let tunables = |l: Level| l.env().into_iter().find(|(k, _)| k == "GLIBC_TUNABLES").unwrap().1;
        assert!(tunables(Level::V3).contains("-AVX512F") && !tunables(Level::V3).contains("-AVX2,"));
        assert!(tunables(Level::V2).contains("-AVX2,") && !tunables(Level::V4).contains("-AVX512F"));
    }
}
