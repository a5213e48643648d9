//! How fast copies go: as told, and slower while hosts' writes take longer than they should. One for each reactor.
//!
//! Invariants. Never more than the limit. With a target for hosts' writes the rate halves whenever more than one in ten of
//! them took longer, and grows by an eighth whenever not, so it comes to rest below what hurts; it never falls below
//! [`FLOOR`], so that a copy ends whatever hosts do. The same inputs give the same rate: there is no clock here.

/// What an operator wants of copies; changes at any time.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CopyOptions {
    /// Bytes a second at most, over all reactors.
    pub rate_bytes: Option<u64>,
    /// What nine of ten writes of hosts are to take at most.
    pub latency_target_us: Option<u32>,
    /// What the peer has already is not sent: a checksum of each piece tells.
    pub compare: bool,
    /// Nothing is copied until told otherwise.
    pub paused: bool,
}

/// Bytes a second with which a copy begins when there is a target: little, because nobody knows yet what it costs.
const START: u64 = 16 << 20;
/// Bytes a second below which no target slows a copy down.
pub const FLOOR: u64 = 1 << 20;
/// More than any disk takes; only keeps the rate from growing for ever while no host writes.
const CEILING: u64 = 64 << 30;
/// Writes after which the latency is judged, or ticks if there are fewer writes.
const WRITES: u32 = 32;
const TICKS: u32 = 5;

/// The pace of one reactor's copies.
#[derive(Clone, Debug)]
pub struct Pace {
    options: CopyOptions,
    reactors: u64,
    rate: u64,
    writes: u32,
    late: u32,
    ticks: u32,
}

impl Default for Pace {
    fn default() -> Pace {
        Pace { options: CopyOptions::default(), reactors: 1, rate: START, writes: 0, late: 0, ticks: 0 }
    }
}

impl Pace {
    pub fn set(&mut self, options: CopyOptions, reactors: u16) {
        (self.options, self.reactors) = (options, u64::from(reactors.max(1)));
        self.begin();
    }

    pub fn options(&self) -> CopyOptions {
        self.options
    }

    /// A copy begins: nothing is known of what it costs hosts.
    pub fn begin(&mut self) {
        (self.rate, self.writes, self.late, self.ticks) = (START, 0, 0, 0);
    }

    /// Whether [`Pace::wrote`] is of any use.
    pub fn watches(&self) -> bool {
        self.options.latency_target_us.is_some()
    }

    /// A host's write ended.
    pub fn wrote(&mut self, took_us: u64) {
        self.writes += 1;
        self.late += u32::from(self.options.latency_target_us.is_some_and(|target| took_us > target.into()));
    }

    /// What may be copied in a tick, of which there are so many a second; `None` is no limit. `copying`: there is something
    /// to copy.
    pub fn tick(&mut self, ticks_a_second: u64, copying: bool) -> Option<u64> {
        if self.options.paused {
            return Some(0);
        }
        if self.watches() && copying {
            self.judge();
        }
        let limit = self.options.rate_bytes.map(|rate| rate / self.reactors);
        let adapted = self.watches().then_some(self.rate);
        let rate = [limit, adapted].into_iter().flatten().min()?;
        Some((rate / ticks_a_second.max(1)).max(1))
    }

    fn judge(&mut self) {
        self.ticks += 1;
        if self.writes < WRITES && self.ticks < TICKS {
            return;
        }
        self.rate = match self.late * 10 > self.writes {
            true => self.rate / 2,
            false => self.rate + self.rate / 8,
        };
        let limit = self.options.rate_bytes.map_or(CEILING, |rate| rate / self.reactors);
        self.rate = self.rate.clamp(FLOOR, limit.max(FLOOR));
        (self.writes, self.late, self.ticks) = (0, 0, 0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TARGET: u32 = 1000;

    fn pace(rate_bytes: Option<u64>, latency_target_us: Option<u32>) -> Pace {
        let mut pace = Pace::default();
        pace.set(CopyOptions { rate_bytes, latency_target_us, ..CopyOptions::default() }, 2);
        pace
    }

    /// Ticks with ten writes in each that take what the copies make of them; the bytes a second at the end.
    fn run(pace: &mut Pace, ticks: u32, latency: impl Fn(u64) -> u64) -> u64 {
        let mut rate = 0;
        for _ in 0..ticks {
            rate = pace.tick(50, true).expect("a limit") * 50;
            (0..10).for_each(|_| pace.wrote(latency(rate)));
        }
        rate
    }

    #[test]
    fn without_a_target_the_limit_is_shared_by_the_reactors_and_nothing_else_counts() {
        assert_eq!(pace(None, None).tick(50, true), None);
        let mut limited = pace(Some(100 << 20), None);
        (0..1000).for_each(|_| limited.wrote(1_000_000));
        assert_eq!(limited.tick(50, true), Some((50 << 20) / 50));
        assert_eq!(pace(Some(1), None).tick(50, true), Some(1), "it ends some day");
    }

    #[test]
    fn copies_come_to_rest_below_what_hurts_hosts() {
        // Hosts' writes become late from 100 MiB a second on.
        let latency = |rate: u64| if rate > 100 << 20 { 5000 } else { 200 };
        let mut pace = pace(None, Some(TARGET));
        run(&mut pace, 200, latency);
        let (mut sum, mut worst) = (0, 0);
        for _ in 0..200 {
            let rate = run(&mut pace, 1, latency);
            sum += rate;
            worst = worst.max(rate);
        }
        assert!((50 << 20..=100 << 20).contains(&(sum / 200)), "{sum}");
        assert!(worst <= 113 << 20, "{worst}");
        // The load gets worse, and better again.
        let slow = run(&mut pace, 100, |rate| if rate > 8 << 20 { 5000 } else { 200 });
        assert!(slow <= 9 << 20, "{slow}");
        let fast = run(&mut pace, 300, |_| 200);
        assert!(fast > 1 << 30, "{fast}");
    }

    #[test]
    fn a_copy_ends_whatever_hosts_suffer_and_one_slow_write_in_twenty_is_no_reason() {
        let mut pace = pace(None, Some(TARGET));
        assert!(run(&mut pace, 1000, |_| 1_000_000) >= FLOOR - 50);
        pace.begin();
        for number in 0..1000 {
            pace.wrote(if number % 20 == 0 { 5000 } else { 100 });
            if number % 10 == 0 {
                pace.tick(50, true);
            }
        }
        assert!(pace.tick(50, true) > Some(START / 50));
    }

    #[test]
    fn the_limit_holds_and_a_pause_is_a_pause() {
        let mut pace = pace(Some(40 << 20), Some(TARGET));
        let fast = run(&mut pace, 500, |_| 1);
        assert!((19 << 20..=20 << 20).contains(&fast), "{fast}");
        pace.set(CopyOptions { paused: true, ..pace.options() }, 2);
        assert_eq!(pace.tick(50, true), Some(0));
        // Without a copy nothing is learnt.
        let mut idle = super::tests::pace(None, Some(TARGET));
        (0..1000).for_each(|_| idle.wrote(1));
        (0..1000).for_each(|_| assert_eq!(idle.tick(50, false), Some(START / 50)));
    }
}
