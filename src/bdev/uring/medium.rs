//! The file or block device: opening it, what it can do, how large it is.

use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use rustix::fs::{FileType, FlockOperation, Mode, OFlags, SeekFrom};
use rustix::io::Errno;

use crate::bdev::error::BdevError;
use crate::env::Buf;

/// O_DIRECT wants memory aligned to this; pool buffers are, and so are their slices at block borders.
pub(super) const MEMORY_ALIGN: usize = 512;

/// An open file or block device.
pub(super) struct Medium {
    pub(super) file: Arc<OwnedFd>,
    pub(super) filename: String,
    pub(super) block_size: u32,
    pub(super) read_only: bool,
    /// Whether I/O goes past the page cache.
    pub(super) direct: bool,
    /// Whether completions can be polled for.
    pub(super) pollable: bool,
    is_block_device: bool,
    /// What the medium turned out not to do.
    pub(super) no_punch: AtomicBool,
    pub(super) no_zero_range: AtomicBool,
}

impl Medium {
    pub(super) fn open(
        filename: &str,
        block_size: Option<u32>,
        read_only: bool,
    ) -> Result<Medium, BdevError> {
        let failed =
            |what: &str, error: Errno| BdevError::system(format!("{what} `{filename}`"), error.into());
        let is_block_device = file_type(rustix::fs::stat(filename).map_err(|e| failed("open", e))?.st_mode)
            == FileType::BlockDevice;
        let mut flags = OFlags::CLOEXEC | if read_only { OFlags::RDONLY } else { OFlags::RDWR };
        if is_block_device && !read_only {
            // Refused while mounted or in use by another exclusive opener.
            flags |= OFlags::EXCL;
        }
        let open = |flags| rustix::fs::open(filename, flags, Mode::empty());
        let (file, asked_direct) = match open(flags | OFlags::DIRECT) {
            Ok(file) => (file, true),
            Err(Errno::INVAL) => (open(flags).map_err(|e| failed("open", e))?, false),
            Err(error) => return Err(failed("open", error)),
        };
        let stat = rustix::fs::fstat(&file).map_err(|e| failed("look at", e))?;
        if !matches!(file_type(stat.st_mode), FileType::RegularFile | FileType::BlockDevice) {
            let text = format!("`{filename}` is neither a regular file nor a block device");
            return Err(BdevError::Invalid(text));
        }
        lock(&file, filename, read_only)?;
        let smallest = if asked_direct { smallest_direct(&file) } else { None };
        let (block_size, direct) = choose(filename, block_size, smallest, is_block_device)?;
        if asked_direct && !direct {
            let flags = rustix::fs::fcntl_getfl(&file).map_err(|e| failed("look at", e))?;
            rustix::fs::fcntl_setfl(&file, flags - OFlags::DIRECT).map_err(|e| failed("set up", e))?;
        }
        if !direct {
            tracing::info!(
                "`{filename}` cannot do direct I/O in blocks of {block_size}: it is used through the page cache"
            );
        }
        let device = if is_block_device { stat.st_rdev } else { stat.st_dev };
        Ok(Medium {
            file: Arc::new(file),
            filename: filename.to_string(),
            block_size,
            read_only,
            direct,
            pollable: direct && can_poll(device),
            is_block_device,
            no_punch: AtomicBool::new(false),
            no_zero_range: AtomicBool::new(false),
        })
    }

    /// The size now, in whole blocks.
    pub(super) fn num_blocks(&self) -> Result<u64, BdevError> {
        let size = if self.is_block_device {
            rustix::fs::seek(&*self.file, SeekFrom::End(0))
        } else {
            rustix::fs::fstat(&*self.file).map(|stat| stat.st_size as u64)
        };
        let size =
            size.map_err(|e| BdevError::system(format!("find the size of `{}`", self.filename), e.into()))?;
        let blocks = size / u64::from(self.block_size);
        if blocks == 0 {
            let text = format!("`{}` has {size} bytes: less than one block", self.filename);
            return Err(BdevError::Invalid(text));
        }
        Ok(blocks)
    }
}

fn file_type(mode: u32) -> FileType {
    FileType::from_raw_mode(mode)
}

fn lock(file: &OwnedFd, filename: &str, read_only: bool) -> Result<(), BdevError> {
    let operation = if read_only {
        FlockOperation::NonBlockingLockShared
    } else {
        FlockOperation::NonBlockingLockExclusive
    };
    match rustix::fs::flock(file, operation) {
        Ok(()) => Ok(()),
        Err(Errno::WOULDBLOCK) => Err(BdevError::System {
            what: format!("lock `{filename}`"),
            reason: "another bdev or process has it; delete that bdev or stop that process first".to_string(),
            errno: Errno::BUSY.raw_os_error(),
        }),
        Err(error) => Err(BdevError::system(format!("lock `{filename}`"), error.into())),
    }
}

/// The smallest of our block sizes that can be read directly: tried, because file systems differ in what they tell.
fn smallest_direct(file: &OwnedFd) -> Option<u32> {
    let buf = Buf::heap(8192)?;
    [512u32, 4096].into_iter().find(|&size| {
        // At an address that is aligned to no more than what we promise.
        let place = buf.slice(MEMORY_ALIGN, size as usize);
        place.with_mut(|bytes| rustix::io::pread(file, bytes, 0)).is_ok()
    })
}

/// The block size to use, and whether directly.
fn choose(
    filename: &str,
    wanted: Option<u32>,
    smallest_direct: Option<u32>,
    is_block_device: bool,
) -> Result<(u32, bool), BdevError> {
    match (wanted, smallest_direct) {
        (Some(size), _) if !matches!(size, 512 | 4096) => {
            Err(BdevError::Invalid(format!("block size {size} is not supported; give 512 or 4096")))
        }
        (Some(size), Some(smallest)) if size >= smallest => Ok((size, true)),
        (Some(size), Some(smallest)) if is_block_device => Err(BdevError::Invalid(format!(
            "`{filename}` has blocks of {smallest} bytes: a block size of {size} cannot be used on it"
        ))),
        (Some(size), _) => Ok((size, false)),
        (None, Some(smallest)) => Ok((smallest, true)),
        (None, None) => Ok((512, false)),
    }
}

/// Whether the block device (or the one under the file system) has queues for polling.
fn can_poll(device: u64) -> bool {
    let sys = format!("/sys/dev/block/{}:{}", rustix::fs::major(device), rustix::fs::minor(device));
    // A partition has no queue directory of its own.
    let read = |path: String| std::fs::read_to_string(path).ok();
    let io_poll = read(format!("{sys}/queue/io_poll")).or_else(|| read(format!("{sys}/../queue/io_poll")));
    io_poll.is_some_and(|text| text.trim() == "1")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn block_sizes_follow_what_the_medium_does_directly() {
        let choose = |wanted, smallest, block| choose("f", wanted, smallest, block).ok();
        assert_eq!(choose(None, Some(4096), false), Some((4096, true)));
        assert_eq!(choose(None, None, false), Some((512, false)));
        assert_eq!(choose(Some(4096), Some(512), true), Some((4096, true)));
        assert_eq!(choose(Some(512), Some(4096), false), Some((512, false)));
        assert_eq!(choose(Some(512), Some(4096), true), None);
        assert_eq!(choose(Some(520), Some(512), false), None);
    }
}
