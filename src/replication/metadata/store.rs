//! The file of a group's record.

use std::cell::{Cell, RefCell};
use std::fs::File;
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::Arc;

use rustix::fs::OFlags;

use super::record::{Record, RecordError, SLOT_BYTES};
use super::slots::Slots;
use crate::env::Buf;
use crate::reactor::{Done, Lane, RingFile, RingOwner, ring};

/// Why a group's record can't be read or written.
#[derive(Debug, thiserror::Error)]
pub enum MetadataError {
    #[error("metadata file {path}: {what}: {source}")]
    Io { path: PathBuf, what: &'static str, source: std::io::Error },
    #[error("metadata file {0} is in use by another group or node; give each group a file of its own")]
    InUse(PathBuf),
    #[error(
        "metadata file {path}: neither of its two records can be used ({first}; {second}); if this group's state \
         is not needed any more, delete the file and synchronise in full"
    )]
    Damaged { path: PathBuf, first: RecordError, second: RecordError },
    #[error("a group has at most 128 volumes, with names of at most 64 bytes")]
    TooLarge,
}

/// An open, locked metadata file.
#[derive(Debug)]
pub struct Store {
    path: PathBuf,
    file: Arc<OwnedFd>,
    record: Option<Record>,
    slots: Slots,
}

impl Store {
    /// Opens the file, or makes it. Blocks: not from a reactor.
    pub fn open(path: &Path) -> Result<Store, MetadataError> {
        let io = |what| move |source| MetadataError::Io { path: path.to_path_buf(), what, source };
        let file = File::options()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(path)
            .map_err(io("cannot be opened"))?;
        match rustix::fs::flock(&file, rustix::fs::FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => {}
            Err(rustix::io::Errno::WOULDBLOCK) => return Err(MetadataError::InUse(path.to_path_buf())),
            Err(error) => return Err(io("cannot be locked")(error.into())),
        }
        let mut bytes = vec![0; 2 * SLOT_BYTES];
        let present = file.metadata().map_err(io("cannot be read"))?.len() as usize;
        file.read_exact_at(&mut bytes[..present.min(2 * SLOT_BYTES)], 0).map_err(io("cannot be read"))?;
        if present < 2 * SLOT_BYTES {
            // Space for both slots now, so that a full file system is found here and not at a checkpoint.
            file.write_all_at(&vec![0; 2 * SLOT_BYTES - present], present as u64)
                .map_err(io("cannot be written"))?;
            file.sync_all().map_err(io("cannot be made durable"))?;
            sync_folder(path).map_err(io("its folder cannot be made durable"))?;
        }
        let (slots, record) = Slots::read(&bytes).map_err(|(first, second)| MetadataError::Damaged {
            path: path.to_path_buf(),
            first,
            second,
        })?;
        write_directly(&file);
        Ok(Store { path: path.to_path_buf(), file: Arc::new(file.into()), record, slots })
    }

    /// What the file held when it was opened.
    pub fn record(&self) -> Option<&Record> {
        self.record.as_ref()
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Writes a record durably. Blocks: not from a reactor.
    pub fn replace(&mut self, record: Record) -> Result<(), MetadataError> {
        let failed =
            |source| MetadataError::Io { path: self.path.clone(), what: "cannot be written", source };
        let mut slots = self.slots;
        // Memory that a file without a page cache takes.
        let buf = Buf::heap(SLOT_BYTES).ok_or_else(|| failed(std::io::ErrorKind::OutOfMemory.into()))?;
        let written = buf.with_mut(|bytes| {
            let at = slots.next(&record, bytes);
            rustix::io::pwrite(&*self.file, bytes, at)
        });
        match written.map_err(std::io::Error::from) {
            Ok(SLOT_BYTES) => {}
            Ok(_) => return Err(failed(std::io::ErrorKind::WriteZero.into())),
            Err(error) => return Err(failed(error)),
        }
        rustix::fs::fdatasync(&*self.file).map_err(|error| failed(error.into()))?;
        (self.slots, self.record) = (slots, Some(record));
        Ok(())
    }

    /// Goes over to the calling reactor, which writes from now on. `None`: no buffer memory.
    pub fn into_writer(self) -> Option<Rc<Writer>> {
        let buf = crate::reactor::alloc(SLOT_BYTES)?;
        Some(Rc::new(Writer {
            file: RingFile::new(self.file, Lane::Interrupt),
            buf,
            slots: Cell::new(self.slots),
            waiting: RefCell::new(None),
        }))
    }
}

/// Past the page cache a record is one write that the device itself makes durable, with neither a journal nor a kernel
/// thread between. Where the file system or the size of the device's blocks does not allow that, writes go as usual.
fn write_directly(file: &File) {
    let (Ok(flags), Some(buf)) = (rustix::fs::fcntl_getfl(file), Buf::heap(SLOT_BYTES)) else { return };
    let direct = rustix::fs::fcntl_setfl(file, flags | OFlags::DIRECT).is_ok();
    if direct && buf.with_mut(|bytes| rustix::io::pread(file, bytes, 0)).is_err() {
        // Both were just done; should this fail, the first write tells.
        let _ = rustix::fs::fcntl_setfl(file, flags);
    }
}

fn sync_folder(path: &Path) -> std::io::Result<()> {
    let folder = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    File::open(folder)?.sync_all()
}

/// Hears when a record is durable.
pub trait WriterOwner {
    /// Only `Ok` promises anything: after an error either of the two records may count at the next start.
    fn record_written(self: Rc<Self>, tag: u64, result: Result<(), std::io::Error>);
}

/// Writes records from one reactor, one at a time.
pub struct Writer {
    file: RingFile,
    buf: Buf,
    slots: Cell<Slots>,
    waiting: RefCell<Option<Rc<dyn WriterOwner>>>,
}

impl Writer {
    /// Whether a record is being written; its device may hang, and then this stays so.
    pub fn is_busy(&self) -> bool {
        self.waiting.borrow().is_some()
    }

    /// Writes a record durably. False, and nothing is done, while another one is being written.
    pub fn write(self: &Rc<Writer>, record: &Record, owner: Rc<dyn WriterOwner>, tag: u64) -> bool {
        if self.is_busy() {
            return false;
        }
        let mut slots = self.slots.get();
        let at = self.buf.with_mut(|bytes| slots.next(record, &mut bytes[..SLOT_BYTES]));
        self.slots.set(slots);
        *self.waiting.borrow_mut() = Some(owner);
        ring::write(
            Lane::Interrupt,
            &self.file,
            std::slice::from_ref(&self.buf),
            at,
            true,
            self.clone(),
            tag,
        );
        true
    }
}

impl RingOwner for Writer {
    fn ring_done(self: Rc<Self>, tag: u64, done: Done) {
        let result = match done.result {
            Ok(written) if written as usize == self.buf.len() => Ok(()),
            Ok(written) => {
                Err(std::io::Error::other(format!("only {written} of {SLOT_BYTES} bytes were written")))
            }
            Err(errno) => Err(errno.into()),
        };
        if result.is_err() {
            let mut slots = self.slots.get();
            slots.failed();
            self.slots.set(slots);
        }
        let owner = self.waiting.borrow_mut().take();
        if let Some(owner) = owner {
            owner.record_written(tag, result);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::record::tests::sample;
    use super::*;
    use crate::env::CoreList;
    use crate::reactor::{Config, IdleMode, ReactorSet, Reply};
    use std::time::Duration;

    struct Told(RefCell<Option<Reply<Result<(), String>>>>);
    impl WriterOwner for Told {
        fn record_written(self: Rc<Self>, _tag: u64, result: Result<(), std::io::Error>) {
            if let Some(reply) = self.0.borrow_mut().take() {
                reply.send(result.map_err(|e| e.to_string()));
            }
        }
    }

    /// Answers with the slots after a write that fails.
    struct Failing(Rc<Writer>, RefCell<Option<Reply<Slots>>>);
    impl WriterOwner for Failing {
        fn record_written(self: Rc<Self>, _tag: u64, result: Result<(), std::io::Error>) {
            assert!(result.is_err(), "the file is open for reading only");
            if let Some(reply) = self.1.borrow_mut().take() {
                reply.send(self.0.slots.get());
            }
        }
    }

    fn reactors() -> Arc<ReactorSet> {
        let cores = CoreList::available().first(1);
        let config = Config { cores, idle: IdleMode::Adaptive, memory_bytes: 16 << 20 };
        ReactorSet::start(&config).expect("reactors")
    }

    fn write(reactors: &ReactorSet, store: Store, record: Record) -> Result<(), String> {
        let begin = move |reply| {
            let told = Rc::new(Told(RefCell::new(Some(reply))));
            let writer = store.into_writer().expect("memory");
            assert!(writer.write(&record, told.clone(), 0));
            assert!(!writer.write(&record, told, 1), "one at a time");
        };
        reactors.ask(0, Duration::from_secs(10), begin).map_err(|e| e.to_string())?
    }

    /// What a failure may have torn is overwritten next; the last whole record is not touched before.
    #[test]
    fn a_record_that_cannot_be_written_does_not_cost_the_last_whole_one() {
        let reactors = reactors();
        let folder = tempfile::tempdir().expect("folder");
        let path = folder.path().join("g0.meta");
        let store = Store::open(&path).expect("new");
        let slots = store.slots;
        let begin = move |reply| {
            let read_only = File::open(&store.path).expect("open");
            let store = Store { file: Arc::new(read_only.into()), ..store };
            let writer = store.into_writer().expect("memory");
            let told = Rc::new(Failing(writer.clone(), RefCell::new(Some(reply))));
            assert!(writer.write(&sample(1), told, 0));
        };
        let after = reactors.ask(0, Duration::from_secs(10), begin).expect("an answer");
        assert_eq!(after, slots, "the same slot is next");
    }

    #[test]
    fn the_newer_of_two_records_counts_and_a_damaged_one_does_not() {
        let reactors = reactors();
        let folder = tempfile::tempdir().expect("folder");
        let path = folder.path().join("g0.meta");
        assert!(Store::open(&path).expect("new").record().is_none());
        for epoch in 1..=3 {
            let store = Store::open(&path).expect("open");
            assert_eq!(write(&reactors, store, sample(epoch)), Ok(()));
            // The reactor closes the file when its turn ends.
            let deadline = std::time::Instant::now() + Duration::from_secs(5);
            let store = loop {
                match Store::open(&path) {
                    Ok(store) => break store,
                    Err(MetadataError::InUse(_)) if std::time::Instant::now() < deadline => {
                        std::thread::sleep(Duration::from_millis(5));
                    }
                    Err(error) => panic!("{error}"),
                }
            };
            assert_eq!(store.record(), Some(&sample(epoch)));
        }
        let mut store = Store::open(&path).expect("open");
        store.replace(sample(4)).expect("written");
        assert_eq!(store.record(), Some(&sample(4)));
        drop(store);
        assert_eq!(Store::open(&path).expect("open").record(), Some(&sample(4)));
        let mut store = Store::open(&path).expect("open");
        store.replace(sample(3)).expect("written");
        drop(store);
        // Sequence 5 stands in slot 1.
        let file = File::options().write(true).open(&path).expect("file");
        file.write_all_at(&[0xff], SLOT_BYTES as u64 + 40).expect("damage");
        assert_eq!(Store::open(&path).expect("open").record(), Some(&sample(4)));
        file.write_all_at(&[0xff], 40).expect("damage");
        assert!(matches!(Store::open(&path), Err(MetadataError::Damaged { .. })));
    }

    #[test]
    fn a_file_in_use_is_refused() {
        let folder = tempfile::tempdir().expect("folder");
        let path = folder.path().join("g0.meta");
        let _store = Store::open(&path).expect("open");
        assert!(matches!(Store::open(&path), Err(MetadataError::InUse(_))));
    }

    #[test]
    fn a_missing_folder_is_named() {
        let error = Store::open(Path::new("/nonexistent/g0.meta")).expect_err("refused");
        assert!(error.to_string().contains("/nonexistent/g0.meta"), "{error}");
    }
}
