//! Layers of committed epochs against the contents they were, for random writes, cuts, aborts, takeovers and ways back.

use std::cell::Cell;
use std::collections::BTreeMap;
use std::rc::Rc;
use std::sync::Arc;

use proptest::prelude::*;

use super::*;
use crate::env::Buf;

const GRANULE: u64 = 512;
const GRANULES: u64 = 24;
const VOLUME: u64 = GRANULE * GRANULES - 200;

struct HeapPages(Cell<usize>);

impl PageSource for HeapPages {
    fn chunk(&self, len: usize) -> Option<Buf> {
        self.0.set(self.0.get() + len);
        Buf::heap(len)
    }

    fn give_back(&self, chunk: Buf) {
        self.0.set(self.0.get() - chunk.len());
    }
}

#[derive(Clone, Debug)]
enum Step {
    Write(u64, u8),
    Overlay(u64, u8),
    /// Writes go on in the next epoch before this one is committed.
    Cut,
    Commit,
    GiveUpOldest,
    Recycle,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        12 => (0..GRANULES, prop_oneof![Just(0u8), any::<u8>()]).prop_map(|(at, byte)| Step::Write(at, byte)),
        2 => (0..GRANULES, any::<u8>()).prop_map(|(at, byte)| Step::Overlay(at, byte)),
        3 => Just(Step::Cut),
        3 => Just(Step::Commit),
        1 => Just(Step::GiveUpOldest),
        1 => Just(Step::Recycle),
    ];
    prop::collection::vec(step, 1..120)
}

struct Model {
    buffer: DiskBuffer,
    quota: Arc<Quota>,
    history: Arc<Quota>,
    pages: Rc<HeapPages>,
    disk: Vec<u8>,
    open: Epoch,
    /// Cut and not committed.
    cuts: BTreeMap<Epoch, Vec<u8>>,
    /// What can be shown; the last is the last checkpoint.
    kept: BTreeMap<Epoch, Vec<u8>>,
    promoted: bool,
}

impl Model {
    fn new() -> Model {
        let quota = Arc::new(Quota::new(1 << 30));
        let history = Arc::new(Quota::new(1 << 30));
        let pages = Rc::new(HeapPages(Cell::new(0)));
        let mut buffer =
            DiskBuffer::new(GRANULE as u32, VOLUME, pages.clone(), quota.clone()).expect("valid");
        buffer.set_history_quota(history.clone());
        let disk: Vec<u8> = (0..VOLUME).map(|at| (at / GRANULE) as u8 + 100).collect();
        let kept = BTreeMap::from([(Epoch(1), disk.clone())]);
        Model {
            buffer,
            quota,
            history,
            pages,
            disk,
            open: Epoch(2),
            cuts: BTreeMap::new(),
            kept,
            promoted: false,
        }
    }

    fn write(&mut self, at: u64, byte: u8) {
        let granule = Granule(at);
        let range = self.buffer.granule_range(granule);
        let range = range.start as usize..range.end as usize;
        let old = Buf::heap(range.len()).expect("heap");
        old.write_at(0, &self.disk[range.clone()]);
        if !self.promoted {
            self.buffer.undo_insert(self.open, granule, &[old], 0).expect("room");
        } else if !self.buffer.overwritten_contains(granule) {
            // What the view has it need not be told.
            let content = (!self.buffer.view_contains(granule)).then_some((std::slice::from_ref(&old), 0));
            self.buffer.overwritten_insert(granule, content).expect("room");
        }
        self.disk[range].fill(byte);
        if self.promoted {
            self.buffer.forget(at..at + 1);
        }
    }

    fn step(&mut self, step: Step) {
        match step {
            Step::Write(at, byte) => self.write(at, byte),
            Step::Overlay(at, byte) if !self.promoted => {
                let range = self.buffer.granule_range(Granule(at));
                let data = Buf::heap((range.end - range.start) as usize).expect("heap");
                data.fill(0, data.len(), byte);
                self.buffer
                    .overlay_write(range, OverlayData::Bytes { list: &[data], from: 0 }, &[])
                    .expect("room");
            }
            Step::Cut if !self.promoted => {
                self.cuts.insert(self.open, self.disk.clone());
                self.open = self.open.next();
            }
            // The others were aborted.
            Step::Commit if !self.promoted => {
                let Some((epoch, content)) = self.cuts.pop_last() else { return };
                self.cuts.clear();
                self.kept.insert(epoch, content);
                let open = self.buffer.usage();
                self.buffer.drop_overlay();
                let moved = self.buffer.keep_through(epoch);
                assert!(moved > 0 || open.history_bytes == self.buffer.usage().history_bytes);
            }
            Step::GiveUpOldest if self.kept.len() > 1 => {
                self.kept.pop_first();
                let oldest = self.kept.first_key_value().expect("one is left").0;
                self.buffer.drop_kept(*oldest);
            }
            Step::Recycle => {
                self.buffer.recycle_step(1);
            }
            _ => {}
        }
    }

    fn past(&self, epoch: Epoch) -> Vec<u8> {
        let mut content = self.disk.clone();
        for granule in 0..GRANULES {
            let range = self.buffer.granule_range(Granule(granule));
            // In two halves, the second from within.
            let middle = range.start + (range.end - range.start) / 2;
            for part in [range.start..middle, middle..range.end] {
                let into = Buf::heap((part.end - part.start) as usize + 3).expect("heap");
                let shown = self.buffer.past_read(epoch, part.clone(), std::slice::from_ref(&into), 3);
                assert_eq!(shown, self.buffer.past_contains(epoch, Granule(granule)));
                if shown {
                    into.read_at(3, &mut content[part.start as usize..part.end as usize]);
                }
            }
        }
        content
    }

    fn check(&self) {
        for (&epoch, content) in &self.kept {
            assert_eq!(&self.past(epoch), content, "epoch {epoch}");
        }
        let usage = self.buffer.usage();
        assert_eq!(usage.held_bytes, self.quota.used_bytes() + self.history.used_bytes());
        assert_eq!(usage.held_bytes, self.pages.0.get() as u64);
        assert!(self.quota.used_bytes() >= usage.undo_bytes + usage.overlay_bytes);
        assert!(self.history.used_bytes() >= usage.history_bytes);
    }

    /// Goes back to a kept epoch, and drains it to the disk.
    fn go_back(&mut self, nth: usize) {
        let (epoch, content) = self.kept.clone().into_iter().nth(nth % self.kept.len()).expect("one");
        self.buffer.drop_overlay();
        self.buffer.take_back_to(epoch);
        self.kept.retain(|&kept, _| kept <= epoch);
        self.check();
        while let Some(granule) = self.buffer.next_buffered(Granule(0)) {
            let range = self.buffer.granule_range(granule);
            let target = &mut self.disk[range.start as usize..range.end as usize];
            match self.buffer.view_content(granule) {
                Content::Bytes(buf) => buf.read_at(0, target),
                Content::Zeroes => target.fill(0),
                Content::OnDisk => panic!("a granule that is not in memory"),
            }
            self.buffer.forget(granule.0..granule.0 + 1);
        }
        assert_eq!(self.disk, content);
        self.check();
        self.cuts.clear();
    }
}

proptest! {
    #[test]
    fn every_kept_epoch_is_what_it_was_and_can_be_gone_back_to(
        before in steps(),
        promote in any::<bool>(),
        after in steps(),
        (first, second) in (any::<usize>(), any::<usize>()),
    ) {
        let mut model = Model::new();
        // From the first layer on.
        model.buffer.keep_through(Epoch(1));
        for step in before {
            model.step(step);
            model.check();
        }
        if promote {
            model.buffer.drop_overlay();
            model.buffer.keep_through(Epoch(u64::MAX));
            model.promoted = true;
            model.check();
        }
        for step in after {
            model.step(step);
        }
        model.check();
        model.go_back(first);
        if promote {
            (0..GRANULES).step_by(5).for_each(|at| model.write(at, 7));
            model.check();
            model.go_back(second);
        }
        model.buffer.recycle_step(usize::MAX);
        model.buffer.drop_all();
        while !model.buffer.recycle_step(1) {}
        let (quota, history, pages) = (model.quota.clone(), model.history.clone(), model.pages.clone());
        drop(model);
        prop_assert_eq!((quota.used_bytes(), history.used_bytes(), pages.0.get()), (0, 0, 0));
    }
}

#[test]
fn earlier_checkpoints_cost_the_running_one_nothing() {
    let mut model = Model::new();
    model.buffer.keep_through(Epoch(1));
    for round in 0..6 {
        for at in 0..GRANULES {
            model.write(at, round + 1);
        }
        assert!(model.buffer.quota().used_bytes() > 0);
        model.step(Step::Cut);
        model.step(Step::Commit);
        assert_eq!((model.buffer.quota().used_bytes(), model.buffer.used_percent()), (0, 0));
        assert_eq!(model.buffer.usage().undo_bytes, 0);
    }
    assert!(model.history.used_bytes() > 5 * VOLUME);
    // Nor does giving them up take long: it is moved aside and comes back in steps.
    model.buffer.drop_kept(Epoch(u64::MAX));
    assert_eq!(model.buffer.used_percent(), 0);
    model.buffer.recycle_step(usize::MAX);
    assert_eq!(model.history.used_bytes(), 0);
}
