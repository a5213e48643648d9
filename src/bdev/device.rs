//! The shared description of a block device.

use std::any::Any;
use std::rc::Rc;
use std::sync::atomic::{AtomicU8, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use uuid::Uuid;

use super::channel::{self, Channel};
use super::error::BdevError;
use super::flight::IoId;
use super::histogram::{ChannelHistogram, Histogram, HistogramOptions, Histograms};
use super::io::{Io, Op};
use super::qos::{Qos, QosLimits};
use super::ranges::LockTable;
use super::stats::{ChannelStats, IoStats};

/// Outstanding I/Os of one channel at its device; more wait in the layer.
pub const DEFAULT_OUTSTANDING: u32 = 1024;

/// What makes a device. `Send + Sync`: called from the control thread and from every reactor that opens a channel.
pub trait Device: Any + Send + Sync {
    /// SPDK's `product_name`.
    fn product_name(&self) -> &'static str;

    /// Whether the device does `op` itself. Reads and writes always; the layer makes up for compare, write-zeroes
    /// and compare-and-write where it can.
    fn supports(&self, op: Op) -> bool;

    /// The calling reactor's handle on the device.
    fn open_channel(&self, bdev: &Arc<Bdev>) -> Result<Rc<dyn DeviceChannel>, BdevError>;

    /// SPDK's `driver_specific` object.
    fn driver_specific(&self) -> serde_json::Value {
        serde_json::json!({})
    }

    /// The method and parameters that make this device again; `None` if something else makes it.
    fn config(&self) -> Option<(&'static str, serde_json::Value)>;

    /// Looks again how large the medium is; the number of blocks, `None` if that never changes.
    fn measure(&self) -> Result<Option<u64>, BdevError> {
        Ok(None)
    }

    /// Called once when the bdev was removed: nothing new comes, what it holds exclusively can be let go.
    fn removed(&self) {}

    /// Whether its access state follows a role that can change, as a replicated volume's does.
    fn has_roles(&self) -> bool {
        false
    }

    /// Whether what was written and flushed is there when the node runs again, by itself and under the same name.
    fn survives_restart(&self) -> bool {
        false
    }

    /// Whether every write is refused, for good.
    fn is_read_only(&self) -> bool {
        false
    }

    /// Whether acknowledged writes may still be volatile (a flush means something).
    fn has_write_cache(&self) -> bool {
        false
    }
}

/// One reactor's end of a device.
pub trait DeviceChannel {
    /// Takes an I/O that the layer checked: range inside the device, data of the range's length. Ends it by
    /// [`Io::complete`], now or later.
    fn submit(self: Rc<Self>, io: Box<Io>);

    /// Asked to end an I/O early, if that is possible at all. Its completion comes in any case.
    fn abort(&self, _id: IoId) {}
}

/// Who may use a device for front-end I/O: the replication role decides.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "lowercase")]
#[repr(u8)]
pub enum Access {
    Optimized = 0,
    Inaccessible = 1,
    /// Between the two.
    Change = 2,
}

/// What happens to a device while others hold it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BdevEvent {
    /// The number of blocks changed.
    Resized,
    /// The device is gone; its I/Os end with an error.
    Removed,
    AccessChanged(Access),
}

/// Names a watcher of a device's events.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct WatchId(u64);

type Watcher = Arc<dyn Fn(BdevEvent) + Send + Sync>;

/// What a new bdev is called and how large it is.
#[derive(Debug, Clone)]
pub struct BdevOptions {
    pub name: String,
    pub aliases: Vec<String>,
    pub uuid: Uuid,
    /// 512 or 4096.
    pub block_size: u32,
    pub num_blocks: u64,
}

/// Bits of `Bdev::flags`: what is out of the ordinary. An I/O on an ordinary bdev pays for one test of all of them.
pub(super) const REMOVED: u8 = 1;
/// Rate limits are set.
pub(super) const LIMITED: u8 = 2;
/// Latencies go into a histogram.
pub(super) const TIMED: u8 = 4;
/// What it held was let go.
const LET_GO: u8 = 8;

/// The bdev below a stacked one.
struct Lower {
    bdev: Arc<Bdev>,
    watch: WatchId,
}

/// The counters of a bdev's channels.
#[derive(Default)]
struct Counted {
    channels: Vec<Arc<ChannelStats>>,
    /// What channels that are gone had counted.
    past: IoStats,
}

/// A block device.
pub struct Bdev {
    serial: u64,
    options: BdevOptions,
    num_blocks: AtomicU64,
    flags: AtomicU8,
    access: AtomicU8,
    outstanding_limit: AtomicU32,
    claim: Mutex<Option<String>>,
    watchers: Mutex<(u64, Vec<(u64, Watcher)>)>,
    stats: Mutex<Counted>,
    locks: LockTable,
    qos: Qos,
    qos_limits: Mutex<QosLimits>,
    histograms: Mutex<Option<Histograms>>,
    /// Counts the times that a histogram was enabled.
    histogram_epoch: AtomicU64,
    lower: OnceLock<Lower>,
    device: Box<dyn Device>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Longest name of a bdev: what SPDK's tools print in one column.
pub const MAX_NAME_BYTES: usize = 255;

impl Drop for Bdev {
    fn drop(&mut self) {
        // One that was never made known has not been let go.
        self.let_go();
    }
}

impl Bdev {
    /// Describes a device; [`super::Registry::add`] makes it known.
    pub fn new(options: BdevOptions, device: Box<dyn Device>) -> Result<Arc<Bdev>, BdevError> {
        static SERIAL: AtomicU64 = AtomicU64::new(1);
        let good = |n: &str| {
            !n.is_empty()
                && n.len() <= MAX_NAME_BYTES
                && n.chars().all(|c| !c.is_whitespace() && !c.is_control())
        };
        if let Some(bad) = std::iter::once(&options.name).chain(&options.aliases).find(|n| !good(n)) {
            return Err(BdevError::BadName(bad.clone()));
        }
        if !matches!(options.block_size, 512 | 4096) {
            let text = format!("block size {} is not supported; give 512 or 4096", options.block_size);
            return Err(BdevError::Invalid(text));
        }
        if options.num_blocks == 0 || options.num_blocks.checked_mul(options.block_size.into()).is_none() {
            let text = format!("a device of {} blocks cannot be made", options.num_blocks);
            return Err(BdevError::Invalid(text));
        }
        Ok(Arc::new(Bdev {
            serial: SERIAL.fetch_add(1, Ordering::Relaxed),
            num_blocks: AtomicU64::new(options.num_blocks),
            options,
            flags: AtomicU8::new(0),
            access: AtomicU8::new(Access::Optimized as u8),
            outstanding_limit: AtomicU32::new(DEFAULT_OUTSTANDING),
            claim: Mutex::new(None),
            watchers: Mutex::new((0, Vec::new())),
            stats: Mutex::default(),
            locks: LockTable::default(),
            qos: Qos::default(),
            qos_limits: Mutex::default(),
            histograms: Mutex::new(None),
            histogram_epoch: AtomicU64::new(0),
            lower: OnceLock::new(),
            device,
        }))
    }

    /// Unique in the process, never reused.
    pub fn serial(&self) -> u64 {
        self.serial
    }

    pub fn name(&self) -> &str {
        &self.options.name
    }

    pub fn aliases(&self) -> &[String] {
        &self.options.aliases
    }

    pub fn uuid(&self) -> Uuid {
        self.options.uuid
    }

    pub fn block_size(&self) -> u32 {
        self.options.block_size
    }

    pub fn num_blocks(&self) -> u64 {
        self.num_blocks.load(Ordering::Acquire)
    }

    pub fn size_bytes(&self) -> u64 {
        self.num_blocks() * u64::from(self.block_size())
    }

    pub fn device(&self) -> &dyn Device {
        &*self.device
    }

    pub fn is_removed(&self) -> bool {
        self.flags() & REMOVED != 0
    }

    pub fn access(&self) -> Access {
        match self.access.load(Ordering::Acquire) {
            0 => Access::Optimized,
            1 => Access::Inaccessible,
            _ => Access::Change,
        }
    }

    /// Says who may use the device; watchers hear of a change.
    pub fn set_access(&self, access: Access) {
        if self.access.swap(access as u8, Ordering::AcqRel) != access as u8 {
            self.notify(BdevEvent::AccessChanged(access));
        }
    }

    /// How many I/Os one channel may have at the device; more wait.
    pub fn outstanding_limit(&self) -> u32 {
        self.outstanding_limit.load(Ordering::Relaxed)
    }

    pub fn set_outstanding_limit(&self, limit: u32) {
        self.outstanding_limit.store(limit.max(1), Ordering::Relaxed);
    }

    /// Changes the size; watchers hear of it. The device was made ready for the new size before.
    pub fn resize(&self, num_blocks: u64) -> Result<(), BdevError> {
        if num_blocks == 0 || num_blocks.checked_mul(self.block_size().into()).is_none() {
            return Err(BdevError::Invalid(format!("`{}` cannot have {num_blocks} blocks", self.name())));
        }
        if self.num_blocks.swap(num_blocks, Ordering::AcqRel) != num_blocks {
            self.notify(BdevEvent::Resized);
        }
        Ok(())
    }

    /// Takes the device for one exclusive user.
    pub fn claim(&self, claimant: &str) -> Result<(), BdevError> {
        let mut claim = lock(&self.claim);
        match &*claim {
            Some(other) => Err(BdevError::Claimed { name: self.name().to_string(), claimant: other.clone() }),
            None => {
                *claim = Some(claimant.to_string());
                Ok(())
            }
        }
    }

    pub fn release(&self) {
        *lock(&self.claim) = None;
    }

    /// Who has the device, if anybody.
    pub fn claimant(&self) -> Option<String> {
        lock(&self.claim).clone()
    }

    /// Calls `f` at every event, on the thread that causes it; `f` must not block.
    pub fn watch(&self, f: impl Fn(BdevEvent) + Send + Sync + 'static) -> WatchId {
        let mut watchers = lock(&self.watchers);
        watchers.0 += 1;
        let id = watchers.0;
        watchers.1.push((id, Arc::new(f)));
        WatchId(id)
    }

    pub fn unwatch(&self, id: WatchId) {
        lock(&self.watchers).1.retain(|(i, _)| *i != id.0);
    }

    fn notify(&self, event: BdevEvent) {
        let watchers: Vec<Watcher> = lock(&self.watchers).1.iter().map(|(_, w)| w.clone()).collect();
        watchers.iter().for_each(|w| w(event));
    }

    /// Marks the device as gone: new I/Os are refused, watchers hear of it. `Registry::remove` calls it.
    pub(super) fn mark_removed(&self) {
        if self.flags.fetch_or(REMOVED, Ordering::AcqRel) & REMOVED == 0 {
            self.notify(BdevEvent::Removed);
        }
    }

    /// Lets go of what the removed bdev held: its base, and what the device has exclusively.
    pub(super) fn let_go(&self) {
        if self.flags.fetch_or(LET_GO, Ordering::AcqRel) & LET_GO != 0 {
            return;
        }
        if let Some(lower) = self.lower.get() {
            lower.bdev.unwatch(lower.watch);
            lower.bdev.release();
        }
        self.device.removed();
    }

    /// Puts this bdev over `base`, which was claimed for it: follows its size, and is removed with it.
    pub(super) fn put_over(self: &Arc<Bdev>, base: Arc<Bdev>) {
        let top = Arc::downgrade(self);
        let below = Arc::downgrade(&base);
        let watch = base.watch(move |event| {
            if let (BdevEvent::Resized, Some(top), Some(below)) = (event, top.upgrade(), below.upgrade())
                && let Err(error) = top.resize(below.num_blocks())
            {
                tracing::error!("bdev `{}` could not follow its base: {error}", top.name());
            }
        });
        let _ = self.lower.set(Lower { bdev: base, watch });
    }

    /// The bdev below a stacked one.
    pub fn base(&self) -> Option<&Arc<Bdev>> {
        self.lower.get().map(|l| &l.bdev)
    }

    #[inline]
    pub(super) fn flags(&self) -> u8 {
        self.flags.load(Ordering::Acquire)
    }

    fn set_flag(&self, flag: u8, on: bool) {
        if on {
            self.flags.fetch_or(flag, Ordering::AcqRel);
        } else {
            self.flags.fetch_and(!flag, Ordering::AcqRel);
        }
    }

    pub(super) fn locks(&self) -> &LockTable {
        &self.locks
    }

    pub(super) fn qos(&self) -> &Qos {
        &self.qos
    }

    /// Limits the rates of all channels together, from now on.
    pub fn set_qos_limits(&self, limits: QosLimits) {
        let mut current = lock(&self.qos_limits);
        *current = limits;
        self.qos.set(limits);
        self.set_flag(LIMITED, limits != QosLimits::default());
    }

    pub fn qos_limits(&self) -> QosLimits {
        *lock(&self.qos_limits)
    }

    /// Begins to count latencies; counters of an earlier histogram are forgotten.
    pub fn enable_histogram(&self, options: &HistogramOptions) -> Result<(), BdevError> {
        let mut histograms = lock(&self.histograms);
        let epoch = self.histogram_epoch.load(Ordering::Relaxed) + 1;
        *histograms = Some(Histograms::new(options, epoch)?);
        self.histogram_epoch.store(epoch, Ordering::Release);
        self.set_flag(TIMED, true);
        Ok(())
    }

    pub fn disable_histogram(&self) {
        self.set_flag(TIMED, false);
        *lock(&self.histograms) = None;
    }

    /// The latencies since the histogram was enabled; `None` while it is not.
    pub fn histogram(&self) -> Option<Histogram> {
        lock(&self.histograms).as_ref().map(Histograms::snapshot)
    }

    pub(super) fn open_histogram(&self) -> Option<ChannelHistogram> {
        lock(&self.histograms).as_mut().map(Histograms::open)
    }

    pub(super) fn is_current(&self, histogram: &ChannelHistogram) -> bool {
        histogram.epoch == self.histogram_epoch.load(Ordering::Acquire)
    }

    /// The device's own type, for its run-time controls.
    pub fn device_as<T: Device>(&self) -> Option<&T> {
        (&*self.device as &dyn Any).downcast_ref()
    }

    /// Looks again how large the medium is and takes on its size.
    pub fn rescan(&self) -> Result<u64, BdevError> {
        if let Some(num_blocks) = self.device.measure()? {
            self.resize(num_blocks)?;
        }
        Ok(self.num_blocks())
    }

    /// The calling reactor's channel, made when first asked for.
    pub fn channel(self: &Arc<Bdev>) -> Result<Rc<Channel>, BdevError> {
        if self.is_removed() {
            return Err(BdevError::Removed(self.name().to_string()));
        }
        channel::get(self)
    }

    pub(super) fn add_stats(&self, stats: Arc<ChannelStats>) {
        let mut counted = lock(&self.stats);
        let Counted { channels, past } = &mut *counted;
        channels.retain(|channel| {
            let gone = Arc::strong_count(channel) == 1;
            if gone {
                *past = past.plus(&channel.snapshot());
            }
            !gone
        });
        channels.push(stats);
    }

    /// Counters of all channels that there are and were, added up.
    pub fn stats(&self) -> IoStats {
        let counted = lock(&self.stats);
        counted.channels.iter().fold(counted.past, |sum, s| sum.plus(&s.snapshot()))
    }

    /// Begins to count anew.
    pub fn reset_stats(&self) {
        let mut counted = lock(&self.stats);
        counted.past = IoStats::default();
        counted.channels.iter().for_each(|s| s.reset());
    }
}
