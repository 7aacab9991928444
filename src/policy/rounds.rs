//! When to stop pre-copying and freeze: numbered rules over what the rounds so far have shown.

/// One round that was sent.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Sent {
    /// Bytes of pages that were to be sent.
    pub bytes: u64,
    /// How long it took, microseconds.
    pub us: u64,
}

/// Bounds given by the user or by us.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Limits {
    /// Longest frozen time wanted, microseconds.
    pub max_downtime_us: u64,
    /// What a freeze costs without any page, microseconds.
    pub fixed_us: u64,
    /// Most rounds.
    pub rounds: u32,
}

/// What to do next.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Next {
    /// Another round.
    Again,
    /// Freeze now.
    Freeze(Why),
}

/// Why the rounds stop.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Why {
    /// So little is left that another round would cost more than it saves.
    Little,
    /// The rest fits the wanted frozen time and no longer shrinks.
    Fits,
    /// The rest no longer shrinks: the writable working set is reached.
    WorkingSet,
    /// The most rounds were made.
    Rounds,
}

/// Less than this is not worth another round, bytes (half a millisecond at 1 GB/s).
const LITTLE: u64 = 512 << 10;
/// A round shrinks the rest when it leaves less than this share of it, in percent.
const SHRINKS: u64 = 75;
/// Rounds in a row that do not shrink the rest.
const STUBBORN: usize = 2;

/// Expected frozen time if `dirty` bytes were left, microseconds, at the rate of the last round.
pub fn predict(sent: &[Sent], dirty: u64, limits: &Limits) -> u64 {
    let us = match sent.last() {
        Some(last) if last.bytes > 0 => {
            u64::try_from(u128::from(dirty) * u128::from(last.us.max(1)) / u128::from(last.bytes))
                .unwrap_or(u64::MAX)
        }
        _ => 0,
    };
    limits.fixed_us.saturating_add(us)
}

/// Decides after a round; `sent` are the rounds so far, `dirty` the bytes written meanwhile.
///
/// 1. Next to nothing left: freeze.
/// 2. The most rounds made: freeze.
/// 3. The rest still shrinks by a quarter: again.
/// 4. It fits the wanted frozen time: freeze.
/// 5. It has not shrunk for two rounds: freeze, it will not get better.
/// 6. Again.
pub fn next(sent: &[Sent], dirty: u64, limits: &Limits) -> Next {
    if dirty <= LITTLE {
        return Next::Freeze(Why::Little);
    }
    if sent.len() >= limits.rounds as usize {
        return Next::Freeze(Why::Rounds);
    }
    let shrinks = |before: u64, after: u64| after.saturating_mul(100) < before.saturating_mul(SHRINKS);
    if sent.last().is_some_and(|last| shrinks(last.bytes, dirty)) {
        return Next::Again;
    }
    if predict(sent, dirty, limits) <= limits.max_downtime_us {
        return Next::Freeze(Why::Fits);
    }
    let sizes: Vec<u64> = sent.iter().map(|s| s.bytes).chain([dirty]).collect();
    let stubborn = sizes.windows(2).rev().take_while(|w| !shrinks(w[0], w[1])).count();
    if stubborn >= STUBBORN { Next::Freeze(Why::WorkingSet) } else { Next::Again }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;
    const LIMITS: Limits = Limits { max_downtime_us: 100_000, fixed_us: 5_000, rounds: 10 };

    /// Rounds of these sizes in MiB at 1 MiB a millisecond.
    fn rounds(sizes: &[u64]) -> Vec<Sent> {
        sizes.iter().map(|s| Sent { bytes: s * MIB, us: s * 1000 }).collect()
    }

    #[test]
    fn the_rules_in_a_table() {
        let table: &[(&[u64], u64, Next)] = &[
            (&[1024], 0, Next::Freeze(Why::Little)),
            (&[1024], 10, Next::Again),
            (&[1024, 10], 9, Next::Freeze(Why::Fits)),
            (&[1024, 10], 2, Next::Again),
            (&[1024, 500], 480, Next::Again),
            (&[1024, 500, 480], 490, Next::Freeze(Why::WorkingSet)),
            (&[1024, 500, 480], 300, Next::Again),
            (&[1024, 500, 300, 200, 140, 100, 70, 50, 30, 20], 10, Next::Freeze(Why::Rounds)),
        ];
        for (sent, dirty, expected) in table {
            assert_eq!(next(&rounds(sent), dirty * MIB, &LIMITS), *expected, "{sent:?} then {dirty}");
        }
    }

    #[test]
    fn the_prediction_follows_the_rate() {
        assert_eq!(predict(&rounds(&[100]), 50 * MIB, &LIMITS), 55_000);
        assert_eq!(predict(&[], 50 * MIB, &LIMITS), 5_000);
    }
}
