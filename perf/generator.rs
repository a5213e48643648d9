//! Addresses and kinds of I/Os: deterministic for a seed.

use crate::options::Pattern;

/// xorshift64*, seeded by splitmix64: fast, and good enough to spread addresses.
#[derive(Debug, Clone)]
pub struct Random(u64);

impl Random {
    pub fn new(seed: u64) -> Random {
        let mut z = seed.wrapping_add(0x9e37_79b9_7f4a_7c15);
        z = (z ^ z >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        Random((z ^ z >> 31) | 1)
    }

    pub fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    /// 0 to `limit` - 1.
    pub fn below(&mut self, limit: u64) -> u64 {
        ((u128::from(self.next()) * u128::from(limit)) >> 64) as u64
    }
}

/// What the next I/O does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    Read,
    Write,
}

/// Gives addresses in units of the I/O's size within one range of a device.
#[derive(Debug, Clone)]
pub struct Generator {
    random: Random,
    pattern: Pattern,
    first_lba: u64,
    units: u64,
    unit_blocks: u64,
    next: u64,
}

impl Generator {
    /// `units` I/Os of `unit_blocks` blocks from `first_lba` on; at least one.
    pub fn new(pattern: Pattern, first_lba: u64, units: u64, unit_blocks: u64, seed: u64) -> Generator {
        Generator { random: Random::new(seed), pattern, first_lba, units: units.max(1), unit_blocks, next: 0 }
    }

    pub fn next_kind(&mut self) -> Kind {
        match self.pattern.read_percent {
            0 => Kind::Write,
            100 => Kind::Read,
            percent if self.random.below(100) < u64::from(percent) => Kind::Read,
            _ => Kind::Write,
        }
    }

    pub fn next_lba(&mut self) -> u64 {
        let unit = if self.pattern.random {
            self.random.below(self.units)
        } else {
            let unit = self.next;
            self.next = (unit + 1) % self.units;
            unit
        };
        self.first_lba + unit * self.unit_blocks
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_stay_in_their_range_and_reach_all_of_it() {
        for random in [false, true] {
            let pattern = Pattern { random, read_percent: 30 };
            let mut generator = Generator::new(pattern, 100, 50, 8, 7);
            let mut seen = [false; 50];
            let mut reads = 0;
            for _ in 0..10_000 {
                let lba = generator.next_lba();
                assert!((100..500).contains(&lba) && (lba - 100).is_multiple_of(8));
                seen[(lba as usize - 100) / 8] = true;
                reads += u32::from(generator.next_kind() == Kind::Read);
            }
            assert!(seen.iter().all(|&s| s));
            assert!((2500..3500).contains(&reads), "{reads}");
        }
    }
}
