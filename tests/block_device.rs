//! The uring bdev on real block devices: loop devices over a file, which needs root.

use std::process::Command;
use std::rc::Rc;
use std::sync::{Arc, mpsc};
use std::time::Duration;

use lockstep::bdev::uring::{self, Dialect, UringOptions};
use lockstep::bdev::{Bdev, BdevError, Io, IoError, IoOwner, Op};
use lockstep::env::{Buf, CoreList};
use lockstep::reactor::{Config, IdleMode, ReactorSet};

const SOON: Duration = Duration::from_secs(30);
const MIB: usize = 1 << 20;

/// A loop device that goes when this does.
struct Loop {
    device: String,
    file: tempfile::NamedTempFile,
}

fn sh(command: &str) -> String {
    let output = Command::new("sh").args(["-ec", command]).output().expect("sh");
    assert!(output.status.success(), "{command}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).trim().to_string()
}

impl Loop {
    fn new(sector: u32) -> Loop {
        let file = tempfile::NamedTempFile::new().expect("file");
        file.as_file().set_len(16 * MIB as u64).expect("length");
        let device = sh(&format!("losetup -f --show -b {sector} {}", file.path().display()));
        Loop { device, file }
    }

    fn open(&self, block_size: Option<u32>) -> Result<Arc<Bdev>, BdevError> {
        uring::create(UringOptions {
            name: "Disk".to_string(),
            aliases: Vec::new(),
            uuid: uuid::Uuid::new_v4(),
            filename: self.device.clone(),
            block_size,
            read_only: false,
            dialect: Dialect::Uring,
        })
    }
}

impl Drop for Loop {
    fn drop(&mut self) {
        let _ = Command::new("losetup").args(["-d", &self.device]).status();
    }
}

fn reactors() -> Arc<ReactorSet> {
    let cores = CoreList::available().first(1);
    ReactorSet::start(&Config { cores, idle: IdleMode::Adaptive, memory_bytes: 64 << 20 }).expect("reactors")
}

struct Waiter(mpsc::Sender<(Result<(), IoError>, Vec<u8>)>);

impl IoOwner for Waiter {
    fn io_done(self: Rc<Self>, io: Box<Io>) {
        let data = io.data.iter().flat_map(|b| b.with(<[u8]>::to_vec)).collect();
        let _ = self.0.send((io.result, data));
        io.recycle();
    }
}

/// Runs one I/O; `data` is what to write or the size of what to read.
fn io(
    set: &ReactorSet,
    disk: &Arc<Bdev>,
    op: Op,
    lba: u64,
    blocks: u64,
    data: Vec<u8>,
    fua: bool,
) -> Vec<u8> {
    let (sender, receiver) = mpsc::channel();
    let on = disk.clone();
    set.call(0, SOON, move || {
        let mut io = Io::new(op);
        (io.lba, io.num_blocks, io.fua) = (lba, blocks, fua);
        if !data.is_empty() {
            let buf = Buf::heap(data.len()).expect("heap");
            buf.write_at(0, &data);
            io.data.push(buf);
        }
        on.channel().expect("channel").submit(io, Rc::new(Waiter(sender)));
    })
    .expect("submit");
    let (result, data) = receiver.recv_timeout(SOON).expect("an end");
    assert_eq!(result, Ok(()), "{op:?} {lba}+{blocks}");
    data
}

#[test]
fn a_block_device_is_written_zeroed_and_unmapped() {
    let set = reactors();
    for sector in [512u32, 4096] {
        let device = Loop::new(sector);
        let disk = device.open(None).expect("open");
        assert_eq!(disk.block_size(), sector);
        assert_eq!(disk.size_bytes(), 16 * MIB as u64);
        let block = sector as usize;
        let blocks = (MIB / block) as u64;
        io(&set, &disk, Op::Write, 0, blocks, vec![7; MIB], false);
        io(&set, &disk, Op::Write, blocks, blocks, vec![8; MIB], true);
        io(&set, &disk, Op::Unmap, 8, 64, Vec::new(), false);
        io(&set, &disk, Op::WriteZeroes, blocks + 1, 3, Vec::new(), true);
        io(&set, &disk, Op::Flush, 0, 0, Vec::new(), false);
        let mut expected = [vec![7; MIB], vec![8; MIB]].concat();
        expected[8 * block..72 * block].fill(0);
        expected[MIB + block..MIB + 4 * block].fill(0);
        assert!(io(&set, &disk, Op::Read, 0, 2 * blocks, vec![0xEE; 2 * MIB], false) == expected);
    }
}

#[test]
fn a_block_size_below_the_devices_own_is_refused() {
    let device = Loop::new(4096);
    assert!(matches!(device.open(Some(512)), Err(BdevError::Invalid(text)) if text.contains("4096")));
    device.open(Some(4096)).expect("its own");
}

#[test]
fn a_mounted_or_opened_block_device_is_refused() {
    let device = Loop::new(512);
    let first = device.open(None).expect("open");
    assert!(device.open(None).is_err());
    drop(first);
    let place = tempfile::tempdir().expect("dir");
    sh(&format!("mkfs.ext4 -q {0} && mount {0} {1}", device.device, place.path().display()));
    let refused = device.open(None);
    sh(&format!("umount {}", place.path().display()));
    assert!(matches!(refused, Err(BdevError::System { errno: 16, .. })));
    device.open(None).expect("after unmounting");
}

#[test]
fn a_block_device_that_grows_is_measured_again() {
    let set = reactors();
    let device = Loop::new(512);
    let disk = device.open(None).expect("open");
    device.file.as_file().set_len(32 * MIB as u64).expect("length");
    sh(&format!("losetup -c {}", device.device));
    assert_eq!(disk.rescan(), Ok(32 * MIB as u64 / 512));
    io(&set, &disk, Op::Write, 65535, 1, vec![1; 512], false);
}
