//! A hierarchical timer wheel: 1 ms ticks, four levels of 64 slots (about 4.6 hours; longer timers go round again).
//!
//! Invariants: a timer fires once, not before its time and at most one tick plus the reactor's turn after it; a
//! cancelled one never fires. Arming and cancelling are O(1) and allocate nothing once the slab has grown.

use std::rc::Rc;

use slab::Slab;

pub(super) const TICK_NS: u64 = 1_000_000;
const SLOT_BITS: u32 = 6;
const SLOTS: usize = 1 << SLOT_BITS;
const LEVELS: usize = 4;
/// Longest distance that the wheel can hold, in ticks.
const SPAN: u64 = 1 << (SLOT_BITS * LEVELS as u32);
const NIL: u32 = u32::MAX;

/// What a timer calls.
pub trait TimerHandler {
    fn timer_fired(self: Rc<Self>, tag: u64);
}

/// Names an armed timer. Safe to keep after it fired: a slot that was used again has another generation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TimerId {
    index: u32,
    generation: u32,
}

struct Entry {
    due: u64,
    handler: Rc<dyn TimerHandler>,
    tag: u64,
    generation: u32,
    level: u8,
    slot: u8,
    next: u32,
    prev: u32,
}

pub(super) struct Wheel {
    entries: Slab<Entry>,
    heads: [[u32; SLOTS]; LEVELS],
    /// A bit per slot that has timers.
    occupied: [u64; LEVELS],
    /// Ticks up to and including this one were fired.
    tick: u64,
    generation: u32,
}

impl Wheel {
    pub(super) fn new(now_ns: u64) -> Wheel {
        Wheel {
            entries: Slab::new(),
            heads: [[NIL; SLOTS]; LEVELS],
            occupied: [0; LEVELS],
            tick: now_ns / TICK_NS,
            generation: 0,
        }
    }

    pub(super) fn arm(&mut self, due_ns: u64, handler: Rc<dyn TimerHandler>, tag: u64) -> TimerId {
        self.generation = self.generation.wrapping_add(1);
        let due = due_ns.div_ceil(TICK_NS).max(self.tick + 1);
        let entry =
            Entry { due, handler, tag, generation: self.generation, level: 0, slot: 0, next: NIL, prev: NIL };
        let index = self.entries.insert(entry) as u32;
        self.link(index);
        TimerId { index, generation: self.generation }
    }

    pub(super) fn cancel(&mut self, id: TimerId) -> bool {
        match self.entries.get(id.index as usize) {
            Some(entry) if entry.generation == id.generation => {
                self.unlink(id.index);
                self.entries.remove(id.index as usize);
                true
            }
            _ => false,
        }
    }

    fn link(&mut self, index: u32) {
        let due = self.entries[index as usize].due;
        let distance = (due - self.tick).min(SPAN - 1);
        let level = (0..LEVELS).find(|&l| distance < 1 << (SLOT_BITS * (l as u32 + 1))).unwrap_or(LEVELS - 1);
        let at = self.tick + distance;
        let slot = (at >> (SLOT_BITS * level as u32)) as usize % SLOTS;
        let head = std::mem::replace(&mut self.heads[level][slot], index);
        self.occupied[level] |= 1 << slot;
        if head != NIL {
            self.entries[head as usize].prev = index;
        }
        let entry = &mut self.entries[index as usize];
        (entry.level, entry.slot, entry.next, entry.prev) = (level as u8, slot as u8, head, NIL);
    }

    fn unlink(&mut self, index: u32) {
        let Entry { level, slot, next, prev, .. } = self.entries[index as usize];
        if next != NIL {
            self.entries[next as usize].prev = prev;
        }
        if prev != NIL {
            self.entries[prev as usize].next = next;
        } else {
            self.heads[level as usize][slot as usize] = next;
            if next == NIL {
                self.occupied[level as usize] &= !(1 << slot);
            }
        }
    }

    /// Whether a call of `advance` now would do anything; cheap enough for every turn.
    #[inline]
    pub(super) fn is_due(&self, now_ns: u64) -> bool {
        now_ns / TICK_NS > self.tick && !self.entries.is_empty()
    }

    /// Moves time on and puts what is due into `fired`.
    pub(super) fn advance(&mut self, now_ns: u64, fired: &mut Vec<(Rc<dyn TimerHandler>, u64)>) {
        let target = now_ns / TICK_NS;
        while self.tick < target {
            if self.entries.is_empty() {
                self.tick = target;
                return;
            }
            // Nothing happens before the next occupied slot's beginning: go there at once.
            let next = self.next_ns().map_or(target, |ns| ns / TICK_NS);
            self.tick = next.clamp(self.tick + 1, target);
            for level in 1..LEVELS {
                if !self.tick.is_multiple_of(1 << (SLOT_BITS * level as u32)) {
                    break;
                }
                self.cascade(level, fired);
            }
            let slot = self.tick as usize % SLOTS;
            while self.heads[0][slot] != NIL {
                let index = self.heads[0][slot];
                self.unlink(index);
                let entry = self.entries.remove(index as usize);
                fired.push((entry.handler, entry.tag));
            }
        }
    }

    fn cascade(&mut self, level: usize, fired: &mut Vec<(Rc<dyn TimerHandler>, u64)>) {
        let slot = (self.tick >> (SLOT_BITS * level as u32)) as usize % SLOTS;
        let mut index = std::mem::replace(&mut self.heads[level][slot], NIL);
        self.occupied[level] &= !(1 << slot);
        while index != NIL {
            let next = self.entries[index as usize].next;
            if self.entries[index as usize].due <= self.tick {
                let entry = self.entries.remove(index as usize);
                fired.push((entry.handler, entry.tag));
            } else {
                self.link(index);
            }
            index = next;
        }
    }

    /// When to look again at the latest, ns; `None` without timers. May be early, never late.
    pub(super) fn next_ns(&self) -> Option<u64> {
        if self.entries.is_empty() {
            return None;
        }
        let next = (0..LEVELS).filter(|&l| self.occupied[l] != 0).map(|level| {
            let shift = SLOT_BITS * level as u32;
            let current = (self.tick >> shift) as u32 % SLOTS as u32;
            // Distance in slots to the next occupied one, 1..=64.
            let ahead =
                self.occupied[level].rotate_right((current + 1) % SLOTS as u32).trailing_zeros() as u64 + 1;
            ((self.tick >> shift) + ahead) << shift
        });
        next.min().map(|tick| tick * TICK_NS)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::cell::RefCell;

    #[derive(Default)]
    struct Log(RefCell<Vec<u64>>);
    impl TimerHandler for Log {
        fn timer_fired(self: Rc<Self>, tag: u64) {
            self.0.borrow_mut().push(tag);
        }
    }

    proptest! {
        #[test]
        fn every_timer_fires_once_at_its_tick_and_cancelled_ones_never(
            delays in prop::collection::vec(0u64..40_000_000, 1..60),
            cancel in prop::collection::vec(any::<bool>(), 60),
        ) {
            let handler = Rc::new(Log::default());
            let mut wheel = Wheel::new(0);
            let mut expected = Vec::new();
            for (n, delay) in delays.iter().enumerate() {
                let id = wheel.arm(delay * TICK_NS, handler.clone(), n as u64);
                if cancel[n] { prop_assert!(wheel.cancel(id)); } else { expected.push((*delay.max(&1), n as u64)); }
            }
            let mut fired = Vec::new();
            let mut got = Vec::new();
            while let Some(next) = wheel.next_ns() {
                wheel.advance(next, &mut fired);
                for (_, tag) in fired.drain(..) { got.push((next / TICK_NS, tag)); }
            }
            got.sort_unstable();
            expected.sort_unstable();
            prop_assert_eq!(got, expected);
        }
    }
}
