//! A table of operations in flight: constant-time, memory kept for reuse, and an id that is never mistaken for the
//! operation that had the same place before (a late completion finds nothing instead of somebody else's state).

/// Names one operation of one machine; goes out with a submission and comes back with its completion.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct OpId(pub u64);

impl OpId {
    fn new(index: usize, round: u32) -> OpId {
        OpId((u64::from(round) << 32) | index as u64)
    }

    fn index(self) -> usize {
        (self.0 & 0xFFFF_FFFF) as usize
    }

    fn round(self) -> u32 {
        (self.0 >> 32) as u32
    }
}

struct Slot<T> {
    round: u32,
    value: Option<T>,
}

pub(super) struct Table<T> {
    slots: Vec<Slot<T>>,
    free: Vec<u32>,
}

impl<T> Table<T> {
    pub fn new() -> Table<T> {
        Table { slots: Vec::new(), free: Vec::new() }
    }

    pub fn insert(&mut self, value: T) -> OpId {
        if let Some(index) = self.free.pop() {
            let index = index as usize;
            self.slots[index].value = Some(value);
            return OpId::new(index, self.slots[index].round);
        }
        self.slots.push(Slot { round: 0, value: Some(value) });
        OpId::new(self.slots.len() - 1, 0)
    }

    pub fn get(&self, id: OpId) -> Option<&T> {
        self.slots.get(id.index()).filter(|slot| slot.round == id.round())?.value.as_ref()
    }

    pub fn get_mut(&mut self, id: OpId) -> Option<&mut T> {
        self.slots.get_mut(id.index()).filter(|slot| slot.round == id.round())?.value.as_mut()
    }

    pub fn remove(&mut self, id: OpId) -> Option<T> {
        let slot = self.slots.get_mut(id.index()).filter(|slot| slot.round == id.round())?;
        let value = slot.value.take()?;
        slot.round = slot.round.wrapping_add(1);
        self.free.push(id.index() as u32);
        Some(value)
    }

    pub fn len(&self) -> usize {
        self.slots.len() - self.free.len()
    }

    pub fn for_each_mut(&mut self, mut look: impl FnMut(OpId, &mut T)) {
        for (index, slot) in self.slots.iter_mut().enumerate() {
            if let Some(value) = &mut slot.value {
                look(OpId::new(index, slot.round), value);
            }
        }
    }

    pub fn iter(&self) -> impl Iterator<Item = (OpId, &T)> {
        self.slots.iter().enumerate().filter_map(|(index, slot)| {
            slot.value.as_ref().map(|value| (OpId::new(index, slot.round), value))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_late_id_does_not_find_the_next_user_of_its_place() {
        let mut table = Table::new();
        let first = table.insert('a');
        assert_eq!(table.remove(first), Some('a'));
        let second = table.insert('b');
        assert_ne!(first, second);
        assert_eq!(table.get(first), None);
        assert_eq!(table.remove(first), None);
        assert_eq!(table.get(second), Some(&'b'));
        assert_eq!(table.len(), 1);
    }
}
