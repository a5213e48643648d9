//! Opening a journal: what it is, whose it is, whether it leads back, and making it empty. For the control thread.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use uuid::Uuid;

use super::blocking::{Device, Volumes};
use super::format::{AREAS_AT, BLOCK_BYTES, FormatError, Header};
use super::replay::{Medium, RollBack, Unrecoverable};
use crate::bdev::uring::{self, Dialect, UringOptions};
use crate::bdev::{Bdev, BdevError, Registry};
use crate::reactor::ReactorSet;
use crate::replication::Epoch;

/// The least that a reactor's area has: some batches of the largest size.
pub const AREA_BYTES_MIN: u64 = 4 << 20;
/// A start reads the whole journal before the node does anything else: half a minute of a slow disk.
pub const JOURNAL_BYTES_MAX: u64 = 16 << 30;

/// Where a journal is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct JournalOptions {
    /// A path, if it has a `/`; the name of a bdev otherwise.
    pub place: String,
    /// Size of a file that is made because there is none.
    pub file_bytes: u64,
}

impl JournalOptions {
    fn path(&self) -> Option<&Path> {
        self.place.contains('/').then(|| Path::new(&self.place))
    }
}

/// Why a journal cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum JournalError {
    #[error(
        "journal `{0}`: {1}; if what is there may be overwritten, remove the file, or zero the bdev's first 8 KiB"
    )]
    Format(String, FormatError),
    #[error("journal `{0}` belongs to another group; give each group a journal of its own")]
    OtherGroup(String),
    #[error("journal `{place}` has {has} bytes; with {reactors} reactors it needs at least {needs}")]
    TooSmall { place: String, has: u64, reactors: u32, needs: u64 },
    #[error("journal `{0}` is larger than 16 GiB: a start would read it for minutes")]
    TooLarge(String),
    #[error("journal `{0}`: {1}")]
    Io(String, String),
    #[error("journal file {path}: {what}: {source}")]
    File { path: PathBuf, what: &'static str, source: std::io::Error },
    #[error(transparent)]
    Bdev(#[from] BdevError),
}

/// An open journal of a group. Shared by all reactors.
pub struct Journal {
    place: String,
    bdev: Arc<Bdev>,
    /// The device is a bdev of the node's, which the group has claimed.
    claimed: bool,
    header: Header,
}

/// A journal that was opened and not yet made empty.
pub struct Opened {
    place: String,
    bdev: Arc<Bdev>,
    claimed: bool,
    found: Option<Header>,
}

impl Journal {
    /// Opens the journal, or makes its file. Nothing in it is changed.
    pub fn open(
        options: &JournalOptions,
        group: Uuid,
        claimant: &str,
        registry: &Registry,
        reactors: &ReactorSet,
    ) -> Result<Opened, JournalError> {
        let place = options.place.clone();
        let (bdev, claimed) = match options.path() {
            Some(path) => (open_file(path, options.file_bytes)?, false),
            None => {
                let bdev = registry.get(&place)?;
                bdev.claim(claimant)?;
                (bdev, true)
            }
        };
        // What was claimed is released when it drops, or by whoever has the journal that it becomes.
        let mut opened = Opened { place, bdev, claimed, found: None };
        opened.check_size(reactors.count() as u32)?;
        opened.found = opened.read_header(reactors)?;
        match opened.found {
            Some(header) if header.group != group => Err(JournalError::OtherGroup(options.place.clone())),
            _ => Ok(opened),
        }
    }

    pub fn header(&self) -> &Header {
        &self.header
    }

    pub fn bdev(&self) -> &Arc<Bdev> {
        &self.bdev
    }

    pub fn place(&self) -> &str {
        &self.place
    }

    /// What a group's record calls it.
    pub fn uuid(&self) -> Uuid {
        self.header.journal
    }

    /// The group is deleted: others may have the bdev.
    pub fn release(&self) {
        if self.claimed {
            self.bdev.release();
        }
    }

    /// What all areas have.
    pub fn size_bytes(&self) -> u64 {
        u64::from(self.header.areas) * self.header.area_bytes
    }
}

impl Drop for Opened {
    fn drop(&mut self) {
        if self.claimed {
            self.bdev.release();
        }
    }
}

impl Opened {
    /// What a group's record calls it, if it was ever used.
    pub fn uuid(&self) -> Option<Uuid> {
        self.found.map(|header| header.journal)
    }

    pub fn place(&self) -> &str {
        &self.place
    }

    /// Looks whether the journal leads the volumes back to `committed`.
    pub fn find(
        &self,
        committed: Epoch,
        reactors: &ReactorSet,
        bdevs: &[Arc<Bdev>],
    ) -> Result<RollBack, Unrecoverable> {
        let Some(header) = &self.found else {
            return Err(Unrecoverable::Read("nothing was ever written there".to_string()));
        };
        let back = RollBack::find(&mut self.device(reactors), header, committed)?;
        back.check(&Volumes { reactors, bdevs })?;
        Ok(back)
    }

    fn device<'a>(&'a self, reactors: &'a ReactorSet) -> Device<'a> {
        Device { reactors, bdev: &self.bdev }
    }

    /// Carries a roll-back out on the volumes.
    pub fn roll_back(
        &self,
        back: &RollBack,
        reactors: &ReactorSet,
        bdevs: &[Arc<Bdev>],
    ) -> Result<(), Unrecoverable> {
        let mut volumes = Volumes { reactors, bdevs };
        back.carry_out(&mut self.device(reactors), &mut volumes)
    }

    /// Forgets what is in it, durably, and lays it out for the reactors there are. One that `leads_back` with nothing to
    /// undo keeps its name.
    pub fn format(
        mut self,
        group: Uuid,
        leads_back: bool,
        reactors: &ReactorSet,
    ) -> Result<Journal, JournalError> {
        let areas = reactors.count() as u32;
        let area_bytes =
            (self.bdev.size_bytes() - AREAS_AT) / u64::from(areas) / BLOCK_BYTES as u64 * BLOCK_BYTES as u64;
        let known = self.found.filter(|_| leads_back);
        let header = Header {
            group,
            journal: known.map_or_else(Uuid::new_v4, |header| header.journal),
            formatted: self.found.map_or(0, |header| header.formatted) + 1,
            areas,
            area_bytes,
        };
        let mut block = vec![0; BLOCK_BYTES];
        header.encode(&mut block);
        for at in [0, BLOCK_BYTES as u64] {
            self.device(reactors)
                .write_durably(at, block.clone())
                .map_err(|error| JournalError::Io(self.place.clone(), error))?;
        }
        let claimed = std::mem::take(&mut self.claimed);
        Ok(Journal { place: self.place.clone(), bdev: self.bdev.clone(), claimed, header })
    }

    fn check_size(&self, areas: u32) -> Result<(), JournalError> {
        let (has, needs) = (self.bdev.size_bytes(), AREAS_AT + u64::from(areas) * AREA_BYTES_MIN);
        match has {
            has if has < needs => {
                Err(JournalError::TooSmall { place: self.place.clone(), has, reactors: areas, needs })
            }
            has if has > JOURNAL_BYTES_MAX => Err(JournalError::TooLarge(self.place.clone())),
            _ => Ok(()),
        }
    }

    /// The newer of the header's two copies; `None` where nothing was ever written.
    fn read_header(&self, reactors: &ReactorSet) -> Result<Option<Header>, JournalError> {
        let mut bytes = vec![0; 2 * BLOCK_BYTES];
        self.device(reactors)
            .read(0, &mut bytes)
            .map_err(|error| JournalError::Io(self.place.clone(), error))?;
        let copies = (Header::decode(&bytes), Header::decode(&bytes[BLOCK_BYTES..]));
        match copies {
            (Ok(a), Ok(b)) => Ok(Some(if a.formatted >= b.formatted { a } else { b })),
            (Err(error @ FormatError::Version(_)), _) | (_, Err(error @ FormatError::Version(_))) => {
                Err(JournalError::Format(self.place.clone(), error))
            }
            (Ok(header), Err(_)) | (Err(_), Ok(header)) => Ok(Some(header)),
            (Err(FormatError::Empty), Err(FormatError::Empty)) => Ok(None),
            (Err(FormatError::Empty), Err(error)) | (Err(error), Err(_)) => {
                Err(JournalError::Format(self.place.clone(), error))
            }
        }
    }
}

fn open_file(path: &Path, bytes: u64) -> Result<Arc<Bdev>, JournalError> {
    let failed = |what| move |source| JournalError::File { path: path.to_path_buf(), what, source };
    match File::options().write(true).create_new(true).open(path) {
        Ok(file) => {
            // All of its room now: a full file system is found here and not at a checkpoint.
            let made = rustix::fs::fallocate(&file, rustix::fs::FallocateFlags::empty(), 0, bytes);
            if let Err(error) = made.map_err(std::io::Error::from).and_then(|()| file.sync_all()) {
                // A file cut short would be taken for the operator's own.
                let _ = std::fs::remove_file(path);
                return Err(failed("its room cannot be had")(error));
            }
        }
        Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {}
        Err(error) => return Err(failed("cannot be made")(error)),
    }
    let options = UringOptions {
        // Not in the registry: nobody else can name it.
        name: "journal".to_string(),
        aliases: Vec::new(),
        uuid: Uuid::new_v4(),
        filename: path.to_string_lossy().into_owned(),
        block_size: None,
        read_only: false,
        dialect: Dialect::Uring,
    };
    Ok(uring::create(options)?)
}
