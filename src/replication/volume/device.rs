//! A volume as a bdev: cuts commands at the borders of stripes and sends each part to the reactor that owns it.
//!
//! Reads of a primary go to the disk from the reactor where they arrive: they need neither locks nor maps.

use std::cell::{Cell, RefCell};
use std::rc::{Rc, Weak};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, PoisonError, RwLock};

use hashbrown::HashMap;
use slab::Slab;
use smallvec::SmallVec;
use uuid::Uuid;

use super::owner::{self, ReadPath};
use super::payload;
use super::piece::Piece;
use crate::bdev::{Bdev, BdevError, BdevOptions, Channel, Device, DeviceChannel, Io, IoError, IoOwner, Op};
use crate::reactor;
use crate::replication::Epoch;
use crate::replication::buffer::index::GRANULES_MAX;
use crate::replication::core::{Geometry, STRIPE_BYTES};

/// Boxes that a channel keeps for reuse: as many as a deep queue needs.
const KEPT_PIECES: usize = 1024;

/// Names a volume or a channel, for good.
fn next_serial() -> u64 {
    static SERIAL: AtomicU64 = AtomicU64::new(1);
    SERIAL.fetch_add(1, Ordering::Relaxed)
}

/// What all reactors know of a volume.
pub struct VolumeShared {
    /// Names the volume in each reactor's tables.
    pub(super) serial: u64,
    pub name: String,
    pub group: String,
    /// The disk below, and how often it was replaced.
    base: RwLock<Arc<Bdev>>,
    replaced: AtomicU64,
    block_size: u32,
    /// The volume's size; the disk below may have more.
    blocks: AtomicU64,
    /// Reactors of the node, which deal the stripes out among themselves.
    pub owners: u16,
    /// Bytes of a granule of the disk buffer.
    pub granule_bytes: u32,
}

impl VolumeShared {
    pub fn new(
        name: &str,
        group: &str,
        base: Arc<Bdev>,
        blocks: u64,
        owners: u16,
        granule_bytes: u32,
    ) -> Arc<VolumeShared> {
        Arc::new(VolumeShared {
            serial: next_serial(),
            name: name.to_string(),
            group: group.to_string(),
            block_size: base.block_size(),
            base: RwLock::new(base),
            replaced: AtomicU64::new(0),
            blocks: AtomicU64::new(blocks),
            owners,
            granule_bytes,
        })
    }

    /// The disk below.
    pub fn base(&self) -> Arc<Bdev> {
        self.base.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub fn block_size(&self) -> u32 {
        self.block_size
    }

    /// Another disk is below from now on, with the same blocks. Reactors take it on with their next I/O.
    pub fn replace_base(&self, base: Arc<Bdev>) {
        *self.base.write().unwrap_or_else(PoisonError::into_inner) = base;
        self.replaced.fetch_add(1, Ordering::Release);
    }

    pub fn num_blocks(&self) -> u64 {
        self.blocks.load(Ordering::Acquire)
    }

    /// The volume's size from now on, for machines that are made later; those that there are were told.
    pub fn set_num_blocks(&self, blocks: u64) {
        self.blocks.store(blocks, Ordering::Release);
    }

    /// What of the disk below a volume could have.
    pub fn disk_bytes(&self) -> u64 {
        let most = GRANULES_MAX.saturating_mul(u64::from(self.granule_bytes));
        self.base().size_bytes().min(most / u64::from(self.block_size) * u64::from(self.block_size))
    }

    /// How the calling reactor measures the volume.
    pub fn geometry(&self, owner: u16) -> Geometry {
        Geometry {
            blocks: self.num_blocks(),
            block_bytes: self.block_size,
            granule_blocks: (self.granule_bytes / self.block_size).max(1),
            owners: self.owners,
            owner,
        }
    }
}

struct Volume {
    shared: Arc<VolumeShared>,
}

/// Makes the bdev of a volume, of the given identity.
pub fn create(shared: Arc<VolumeShared>, uuid: Uuid) -> Result<Arc<Bdev>, BdevError> {
    let options = BdevOptions {
        name: shared.name.clone(),
        aliases: Vec::new(),
        uuid,
        block_size: shared.block_size,
        num_blocks: shared.num_blocks(),
    };
    Bdev::new(options, Box::new(Volume { shared }))
}

impl Device for Volume {
    fn product_name(&self) -> &'static str {
        "Replicated volume"
    }

    fn supports(&self, op: Op) -> bool {
        !matches!(op, Op::Compare)
    }

    fn open_channel(&self, bdev: &Arc<Bdev>) -> Result<Rc<dyn DeviceChannel>, BdevError> {
        let base = self.shared.base().channel()?;
        Ok(VolumeChannel::open(self.shared.clone(), base, bdev, None))
    }

    fn driver_specific(&self) -> serde_json::Value {
        serde_json::json!({"replicated": {"group": self.shared.group, "base_bdev": self.shared.base().name()}})
    }

    /// Its group makes it.
    fn config(&self) -> Option<(&'static str, serde_json::Value)> {
        None
    }

    fn has_roles(&self) -> bool {
        true
    }

    fn has_write_cache(&self) -> bool {
        self.shared.base().device().has_write_cache()
    }
}

/// A volume as it was at the end of an epoch. Reads only.
struct Past {
    shared: Arc<VolumeShared>,
    epoch: Epoch,
}

/// Makes the bdev of a volume as it was at the end of an epoch; reads of it end with [`IoError::Removed`] when the
/// epoch is not kept any more.
pub fn create_past(
    name: &str,
    uuid: Uuid,
    shared: &Arc<VolumeShared>,
    epoch: Epoch,
) -> Result<Arc<Bdev>, BdevError> {
    let options = BdevOptions {
        name: name.to_string(),
        aliases: Vec::new(),
        uuid,
        block_size: shared.block_size,
        num_blocks: shared.num_blocks(),
    };
    Bdev::new(options, Box::new(Past { shared: shared.clone(), epoch }))
}

impl Device for Past {
    fn product_name(&self) -> &'static str {
        "Checkpoint of a replicated volume"
    }

    fn supports(&self, op: Op) -> bool {
        !matches!(op, Op::Compare)
    }

    fn open_channel(&self, bdev: &Arc<Bdev>) -> Result<Rc<dyn DeviceChannel>, BdevError> {
        let base = self.shared.base().channel()?;
        Ok(VolumeChannel::open(self.shared.clone(), base, bdev, Some(self.epoch)))
    }

    fn driver_specific(&self) -> serde_json::Value {
        let (group, volume) = (&self.shared.group, &self.shared.name);
        serde_json::json!({"replication_epoch": {"group": group, "volume": volume, "epoch": self.epoch.0}})
    }

    fn is_read_only(&self) -> bool {
        true
    }

    /// An epoch does not outlive the node.
    fn config(&self) -> Option<(&'static str, serde_json::Value)> {
        None
    }
}

struct Parent {
    io: Box<Io>,
    left: u32,
}

struct VolumeChannel {
    shared: Arc<VolumeShared>,
    serial: u64,
    /// Shows the volume as it was at the end of this epoch.
    at: Option<Epoch>,
    base: RefCell<Rc<Channel>>,
    /// Which of the volume's disks it leads to.
    replaced: Cell<u64>,
    block_size: u32,
    here: usize,
    parents: RefCell<Slab<Parent>>,
    #[allow(clippy::vec_box, reason = "the boxes themselves travel as messages")]
    pieces: RefCell<Vec<Box<Piece>>>,
}

thread_local! {
    static CHANNELS: RefCell<HashMap<u64, Weak<VolumeChannel>>> = RefCell::new(HashMap::new());
}

/// A piece came back to the reactor that sent it.
pub(super) fn piece_done(piece: Box<Piece>) {
    // The channel lives while a command of its is in flight: the command's box holds it.
    if let Some(channel) = CHANNELS.with(|c| c.borrow().get(&piece.channel).and_then(Weak::upgrade)) {
        channel.piece_done(piece);
    }
}

impl VolumeChannel {
    fn open(
        shared: Arc<VolumeShared>,
        base: Rc<Channel>,
        bdev: &Bdev,
        at: Option<Epoch>,
    ) -> Rc<VolumeChannel> {
        let channel = Rc::new(VolumeChannel {
            replaced: Cell::new(shared.replaced.load(Ordering::Acquire)),
            shared,
            serial: next_serial(),
            at,
            base: RefCell::new(base),
            block_size: bdev.block_size(),
            here: reactor::core_index(),
            parents: RefCell::default(),
            pieces: RefCell::default(),
        });
        CHANNELS.with(|c| c.borrow_mut().insert(channel.serial, Rc::downgrade(&channel)));
        channel
    }

    fn owner_of(&self, lba: u64) -> usize {
        usize::from(Geometry::owner_of(lba, self.block_size, self.shared.owners))
    }

    fn piece(&self, parent: u32, io: &Io, lba: u64, blocks: u32) -> Box<Piece> {
        let kept = self.pieces.borrow_mut().pop();
        let mut piece =
            kept.unwrap_or_else(|| Piece::new(self.shared.clone(), self.serial, self.at, self.here));
        (piece.op, piece.lba, piece.blocks, piece.fua, piece.parent) = (io.op, lba, blocks, io.fua, parent);
        if io.op.has_data() {
            let at = (lba - io.lba) as usize * self.block_size as usize;
            let len = blocks as usize * self.block_size as usize;
            piece.data = payload::slice(&io.data, at, len);
            if io.op == Op::CompareAndWrite {
                piece.compare = payload::slice(&io.compare, at, len);
            }
        }
        piece
    }

    /// The parts of a command, each within one stripe: at most one for nearly every command.
    fn cut(&self, io: &Io) -> impl Iterator<Item = (u64, u32)> + use<> {
        let stripe = STRIPE_BYTES / u64::from(self.block_size);
        let (mut lba, end) = (io.lba, io.lba + io.num_blocks);
        std::iter::from_fn(move || {
            if lba >= end {
                return None;
            }
            let next = ((lba / stripe + 1) * stripe).min(end);
            let part = (lba, (next - lba) as u32);
            lba = next;
            Some(part)
        })
    }

    fn piece_done(&self, mut piece: Box<Piece>) {
        let parent = piece.parent as usize;
        let result = piece.result.take().unwrap_or(Err(IoError::Device));
        piece.data.clear();
        piece.compare.clear();
        if self.pieces.borrow().len() < KEPT_PIECES {
            self.pieces.borrow_mut().push(piece);
        }
        let ended = {
            let mut parents = self.parents.borrow_mut();
            let Some(entry) = parents.get_mut(parent) else { return };
            if let (Ok(()), Err(error)) = (entry.io.result, result) {
                entry.io.result = Err(error);
            }
            entry.left -= 1;
            if entry.left > 0 {
                return;
            }
            parents.remove(parent)
        };
        let result = ended.io.result;
        ended.io.complete(result);
    }

    /// Reads the disk itself, from here.
    fn read_base(self: &Rc<Self>, io: Box<Io>) {
        let mut child = Io::new(Op::Read);
        (child.lba, child.num_blocks) = (io.lba, io.num_blocks);
        child.data = io.data.clone();
        child.tag = self.parents.borrow_mut().insert(Parent { io, left: 1 }) as u64;
        let base = self.base.borrow().clone();
        base.submit(child, self.clone());
    }

    /// Takes on the disk that is below now.
    fn follow_base(&self) -> Result<(), BdevError> {
        let replaced = self.shared.replaced.load(Ordering::Acquire);
        if replaced != self.replaced.get() {
            *self.base.borrow_mut() = self.shared.base().channel()?;
            self.replaced.set(replaced);
        }
        Ok(())
    }

    /// Cuts a command and gives its parts to their owners.
    fn ask_owners(&self, io: Box<Io>) {
        let parent = self.parents.borrow().vacant_key() as u32;
        let pieces: SmallVec<[(usize, Box<Piece>); 2]> = if io.op == Op::Flush {
            (0..usize::from(self.shared.owners)).map(|owner| (owner, self.piece(parent, &io, 0, 0))).collect()
        } else {
            let parts = self.cut(&io);
            parts.map(|(lba, blocks)| (self.owner_of(lba), self.piece(parent, &io, lba, blocks))).collect()
        };
        // All pieces are counted before the first one goes: it may end at once.
        self.parents.borrow_mut().insert(Parent { io, left: pieces.len() as u32 });
        pieces.into_iter().for_each(|(owner, piece)| piece.go_to(owner));
    }
}

impl Drop for VolumeChannel {
    fn drop(&mut self) {
        // At the thread's end the table may be gone.
        let _ = CHANNELS.try_with(|c| c.borrow_mut().remove(&self.serial));
    }
}

impl IoOwner for VolumeChannel {
    /// A read of the disk itself has ended.
    fn io_done(self: Rc<Self>, child: Box<Io>) {
        let parent = self.parents.borrow_mut().try_remove(child.tag as usize);
        let result = child.result;
        child.recycle();
        let Some(Parent { io, .. }) = parent else { return };
        if result.is_err_and(|error| error != IoError::Aborted) && owner::read_failed(&self.shared) {
            // The owners know whether the peer has the answer.
            return self.ask_owners(io);
        }
        io.complete(result);
    }
}

impl DeviceChannel for VolumeChannel {
    fn submit(self: Rc<Self>, mut io: Box<Io>) {
        io.result = Ok(());
        match io.op {
            Op::Reset => return io.complete(Ok(())),
            // Nothing was ever written, and nothing will be.
            Op::Flush if self.at.is_some() => return io.complete(Ok(())),
            op if self.at.is_some() && op.modifies() => return io.complete(Err(IoError::WriteProtected)),
            _ => {}
        }
        if io.op == Op::Read && self.at.is_none() {
            match owner::read_path(&self.shared) {
                Ok(ReadPath::Disk) => {
                    return match self.follow_base() {
                        Ok(()) => self.read_base(io),
                        Err(error) => {
                            tracing::error!("volume `{}`: its disk: {error}", self.shared.name);
                            io.complete(Err(IoError::Device));
                        }
                    };
                }
                Ok(ReadPath::Owners) => {}
                Err(error) => return io.complete(Err(error)),
            }
        }
        if io.op == Op::CompareAndWrite && self.cut(&io).nth(1).is_some() {
            // Atomic over two owners it could not be; NVMe limits it to far less than a stripe.
            return io.complete(Err(IoError::Invalid));
        }
        self.ask_owners(io);
    }
}
