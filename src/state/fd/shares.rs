//! Work on many descriptors, a share on each processor: every call counts while the pod stands still.

/// Runs `work` over shares of `items`, one on each processor (four at most), if there are enough to be worth it.
pub(crate) fn in_shares<I: Sync, T: Send, E: Send>(
    items: &[I],
    work: impl Fn(&[I]) -> Result<T, E> + Sync,
) -> Result<Vec<T>, E> {
    const WORTH: usize = 24;
    let processors = std::thread::available_parallelism().map_or(1, usize::from).min(4);
    let share = items.len().div_ceil(processors).max(WORTH);
    if items.len() <= share {
        return Ok(vec![work(items)?]);
    }
    std::thread::scope(|s| {
        let work = &work;
        let mut shares = items.chunks(share);
        let first = shares.next().unwrap_or(&[]);
        let others: Vec<_> = shares.map(|share| s.spawn(move || work(share))).collect();
        let mut all = vec![work(first)];
        for other in others {
            match other.join() {
                Ok(result) => all.push(result),
                Err(panic) => std::panic::resume_unwind(panic),
            }
        }
        all.into_iter().collect()
    })
}
