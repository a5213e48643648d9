//! What the tests of the machines share: a payload of one byte a block, a disk and a disk buffer made of it.

use super::super::Epoch;
use super::maps::{BufferFull, GranuleMaps};
use super::types::{Data, Digest, Geometry, Payload, Range};
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::rc::Rc;

/// One byte stands for one block. Clones and slices share, as real buffers do.
#[derive(Clone)]
pub struct Bytes {
    memory: Rc<RefCell<Vec<u8>>>,
    from: usize,
    len: usize,
}

impl Bytes {
    pub fn new(content: Vec<u8>) -> Bytes {
        let len = content.len();
        Bytes { memory: Rc::new(RefCell::new(content)), from: 0, len }
    }

    fn blocks(&self) -> u32 {
        self.len as u32
    }

    pub fn to_vec(&self) -> Vec<u8> {
        self.memory.borrow()[self.from..self.from + self.len].to_vec()
    }

    pub fn put(&self, at: usize, content: &[u8]) {
        assert!(at + content.len() <= self.len);
        self.memory.borrow_mut()[self.from + at..self.from + at + content.len()].copy_from_slice(content);
    }
}

impl std::fmt::Debug for Bytes {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:x?}", self.to_vec())
    }
}

impl PartialEq for Bytes {
    fn eq(&self, other: &Bytes) -> bool {
        self.to_vec() == other.to_vec()
    }
}

impl Payload for Bytes {
    fn slice(&self, from: u32, blocks: u32) -> Bytes {
        assert!((from + blocks) as usize <= self.len);
        Bytes { memory: self.memory.clone(), from: self.from + from as usize, len: blocks as usize }
    }

    fn copy_from(&mut self, at: u32, source: &Bytes, from: u32, blocks: u32) {
        self.put(at as usize, &source.slice(from, blocks).to_vec());
    }

    fn zero(&mut self, at: u32, blocks: u32) {
        self.put(at as usize, &vec![0; blocks as usize]);
    }

    fn equals(&self, other: &Bytes) -> bool {
        self == other
    }

    fn is_zero(&self) -> bool {
        self.to_vec().iter().all(|&byte| byte == 0)
    }

    fn digest(&self) -> Digest {
        Digest(*blake3::hash(&self.to_vec()).as_bytes())
    }
}

pub fn bytes(byte: u8, blocks: u32) -> Bytes {
    Bytes::new(vec![byte; blocks as usize])
}

pub fn filled(byte: u8, blocks: u32) -> Data<Bytes> {
    Data::Bytes(bytes(byte, blocks))
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Disk(pub Vec<u8>);

impl Disk {
    pub fn read(&self, range: Range) -> Bytes {
        Bytes::new(self.0[range.lba as usize..range.end() as usize].to_vec())
    }

    pub fn write(&mut self, range: Range, data: &Data<Bytes>) {
        let into = &mut self.0[range.lba as usize..range.end() as usize];
        match data {
            Data::Bytes(bytes) => into.copy_from_slice(&bytes.to_vec()),
            Data::Zeroes => into.fill(0),
        }
    }
}

/// The buffer as it is described, without any cleverness.
pub struct Maps {
    pub geometry: Geometry,
    pub undo: BTreeMap<Epoch, BTreeMap<u64, Bytes>>,
    /// Layers through this epoch lead back to earlier checkpoints.
    pub kept_through: Epoch,
    pub overwritten: BTreeMap<u64, Bytes>,
    /// Granules that are kept of earlier checkpoints.
    pub history_limit: usize,
    pub overlay: BTreeMap<u64, Bytes>,
    pub reserved: u64,
    /// Granules, over undo and overlay together.
    pub limit: usize,
}

impl Maps {
    pub fn new(geometry: Geometry, limit: usize) -> Maps {
        Maps {
            geometry,
            undo: BTreeMap::new(),
            kept_through: Epoch(0),
            overwritten: BTreeMap::new(),
            history_limit: usize::MAX,
            overlay: BTreeMap::new(),
            reserved: 0,
            limit,
        }
    }

    fn used(&self) -> usize {
        let pinned = self.reserved / u64::from(self.geometry.granule_blocks * self.geometry.block_bytes);
        let open = self.open().map(|layer| layer.1.len()).sum::<usize>();
        open + self.overlay.len() + pinned as usize
    }

    fn open(&self) -> impl Iterator<Item = (&Epoch, &BTreeMap<u64, Bytes>)> {
        self.undo.range(self.kept_through.next()..)
    }

    fn kept(&self) -> usize {
        let kept = self.undo.range(..=self.kept_through).map(|layer| layer.1.len()).sum::<usize>();
        kept + self.overwritten.len()
    }

    fn view(&self, granule: u64) -> Option<&Bytes> {
        self.overlay.get(&granule).or_else(|| self.open().find_map(|(_, layer)| layer.get(&granule)))
    }

    fn past(&self, epoch: Epoch, granule: u64) -> Option<&Bytes> {
        let layers = self.undo.range(epoch.next()..).map(|layer| layer.1);
        layers.chain([&self.overwritten]).find_map(|layer| layer.get(&granule))
    }

    fn within(&self, range: Range) -> (u64, u32) {
        let granule = self.geometry.granule_of(range.lba);
        (granule, (range.lba - self.geometry.granule_range(granule).lba) as u32)
    }
}

impl GranuleMaps<Bytes> for Maps {
    fn undo_contains(&self, epoch: Epoch, granule: u64) -> bool {
        self.undo.get(&epoch).is_some_and(|layer| layer.contains_key(&granule))
    }

    fn undo_insert(
        &mut self,
        epoch: Epoch,
        granule: u64,
        content: &Bytes,
        at: u32,
    ) -> Result<(), BufferFull> {
        let full = match epoch > self.kept_through {
            true => self.used() >= self.limit,
            false => self.kept() >= self.history_limit,
        };
        if full {
            return Err(BufferFull);
        }
        // It may have been read when the volume ended within it.
        let blocks = self.geometry.granule_range(granule).blocks.min(content.blocks() - at);
        let before = self
            .undo
            .entry(epoch)
            .or_default()
            .insert(granule, Bytes::new(content.slice(at, blocks).to_vec()));
        assert!(before.is_none(), "an original is never overwritten");
        Ok(())
    }

    fn view_contains(&self, granule: u64) -> bool {
        self.view(granule).is_some()
    }

    fn view_read(&self, range: Range, into: &mut Bytes, at: u32) {
        let (granule, from) = self.within(range);
        let content = self.view(granule).expect("the caller asked before");
        into.copy_from(at, content, from, range.blocks);
    }

    fn view_content(&self, granule: u64) -> Option<Data<Bytes>> {
        let blocks = self.geometry.granule_range(granule).blocks as usize;
        self.view(granule).map(|content| {
            let mut content = content.to_vec();
            content.resize(blocks, 0xEE);
            Data::Bytes(Bytes::new(content))
        })
    }

    fn overlay_write(
        &mut self,
        range: Range,
        data: &Data<Bytes>,
        from: u32,
        base: Option<&Bytes>,
    ) -> Result<(), BufferFull> {
        let (granule, at) = self.within(range);
        if !self.overlay.contains_key(&granule) && self.used() >= self.limit {
            return Err(BufferFull);
        }
        let blocks = self.geometry.granule_range(granule).blocks;
        let whole = range.blocks == blocks;
        let mut content = match self.view(granule).or(base) {
            Some(content) => {
                // The end that came later is completed later.
                let mut content = content.to_vec();
                content.resize(blocks as usize, 0xEE);
                Bytes::new(content)
            }
            None => {
                assert!(whole, "a granule written in part needs its rest");
                bytes(0, blocks)
            }
        };
        data.copy_to(from, &mut content, at, range.blocks);
        self.overlay.insert(granule, content);
        Ok(())
    }

    fn drop_through(&mut self, epoch: Epoch) {
        self.undo.retain(|&layer, _| layer > epoch);
        self.overlay.clear();
    }

    fn keep_through(&mut self, epoch: Epoch) -> u64 {
        let before = self.kept();
        self.kept_through = self.kept_through.max(Epoch(epoch.0.min(u64::MAX - 1)));
        self.overlay.clear();
        (self.kept() - before) as u64
    }

    fn drop_kept(&mut self, epoch: Epoch) {
        let kept = self.kept_through;
        self.undo.retain(|&layer, _| layer > epoch.min(kept));
        if epoch == Epoch(u64::MAX) {
            self.overwritten.clear();
        }
    }

    fn take_back_to(&mut self, epoch: Epoch) {
        self.kept_through = epoch;
        self.overlay.clear();
        let last = self.undo.keys().next_back().map_or(epoch, |last| epoch.max(*last));
        self.undo.insert(last.next(), std::mem::take(&mut self.overwritten));
    }

    fn past_contains(&self, epoch: Epoch, granule: u64) -> bool {
        self.past(epoch, granule).is_some()
    }

    fn past_read(&self, epoch: Epoch, range: Range, into: &mut Bytes, at: u32) {
        let (granule, from) = self.within(range);
        let content = self.past(epoch, granule).expect("the caller asked before");
        into.copy_from(at, content, from, range.blocks);
    }

    fn overwritten_contains(&self, granule: u64) -> bool {
        self.overwritten.contains_key(&granule)
    }

    fn overwritten_insert(&mut self, granule: u64, content: Option<(&Bytes, u32)>) -> Result<(), BufferFull> {
        if self.kept() >= self.history_limit {
            return Err(BufferFull);
        }
        let blocks = self.geometry.granule_range(granule).blocks;
        let content = match content {
            Some((content, at)) => content.slice(at, blocks).to_vec(),
            None => self.view(granule).expect("the caller asked before").to_vec(),
        };
        assert!(self.overwritten.insert(granule, Bytes::new(content)).is_none(), "kept once");
        Ok(())
    }

    fn history_percent(&self) -> u8 {
        (self.kept() * 100 / self.history_limit.max(1)).min(100) as u8
    }

    fn drop_overlay(&mut self) {
        self.overlay.clear();
    }

    fn drop_all(&mut self) {
        self.undo.clear();
        self.overlay.clear();
        self.overwritten.clear();
        self.kept_through = Epoch(0);
    }

    fn remove(&mut self, granule: u64) {
        self.overlay.remove(&granule);
        let open = self.undo.range_mut(self.kept_through.next()..);
        open.for_each(|(_, layer)| {
            layer.remove(&granule);
        });
    }

    fn next_buffered(&self, from: u64) -> Option<u64> {
        let undo = self.open().filter_map(|(_, layer)| layer.range(from..).next().map(|entry| *entry.0));
        undo.chain(self.overlay.range(from..).next().map(|entry| *entry.0)).min()
    }

    fn reserve(&mut self, bytes: u64) -> Result<(), BufferFull> {
        if self.used() >= self.limit {
            return Err(BufferFull);
        }
        self.reserved += bytes;
        Ok(())
    }

    fn release(&mut self, bytes: u64) {
        self.reserved -= bytes;
    }

    fn extend(&mut self, blocks: u64) -> Result<(), BufferFull> {
        self.geometry.blocks = blocks.max(self.geometry.blocks);
        Ok(())
    }

    fn complete(&mut self, range: Range, data: &Data<Bytes>, from: u32) -> Result<(), BufferFull> {
        let (granule, at) = self.within(range);
        let layers = self.undo.values_mut().chain([&mut self.overlay, &mut self.overwritten]);
        for content in layers.filter_map(|layer| layer.get_mut(&granule)) {
            let mut whole = content.to_vec();
            whole.resize((at + range.blocks) as usize, 0xEE);
            let mut whole = Bytes::new(whole);
            data.copy_to(from, &mut whole, at, range.blocks);
            *content = whole;
        }
        Ok(())
    }

    fn fullness(&self) -> u8 {
        (self.used() * 100 / self.limit.max(1)).min(100) as u8
    }
}
