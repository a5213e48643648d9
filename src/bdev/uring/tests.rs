//! Files on whatever file system the tests run on.

use std::io::{Read, Seek, SeekFrom, Write};

use super::*;
use crate::bdev::testing::*;
use crate::bdev::{IoError, Registry};

const MIB: u64 = 1 << 20;

fn file(bytes: u64) -> tempfile::NamedTempFile {
    let file = tempfile::NamedTempFile::new().expect("file");
    file.as_file().set_len(bytes).expect("length");
    file
}

fn options(file: &tempfile::NamedTempFile, block_size: Option<u32>) -> UringOptions {
    UringOptions {
        name: "U".to_string(),
        aliases: Vec::new(),
        uuid: Uuid::new_v4(),
        filename: file.path().to_string_lossy().to_string(),
        block_size,
        read_only: false,
        dialect: Dialect::Uring,
    }
}

#[test]
fn a_file_holds_what_was_written_and_unmapped_ranges_read_as_zeroes() {
    let set = reactors(1);
    let file = file(4 * MIB);
    for block_size in [512, 4096] {
        let disk = create(options(&file, Some(block_size))).expect("uring");
        let block = block_size as usize;
        let blocks = disk.num_blocks();
        assert_eq!(disk.size_bytes(), 4 * MIB);
        let ok = |req| {
            let outcome = run_one(&set, 0, &disk, req);
            assert_eq!(outcome.result, Ok(()));
            outcome.data
        };
        ok(Req { piece: block, ..Req::write(0, blocks / 4, block, 5) });
        ok(Req { fua: true, ..Req::write(blocks / 4, blocks / 4, block, 6) });
        ok(Req::new(Op::Unmap, 1, 16));
        ok(Req::new(Op::WriteZeroes, blocks / 4 + 1, 17));
        ok(Req { fua: true, ..Req::new(Op::WriteZeroes, blocks / 4 + 18, 1) });
        ok(Req::flush());
        let mut expected = vec![5; 2 * MIB as usize];
        expected[MIB as usize..].fill(6);
        expected[block..17 * block].fill(0);
        expected[MIB as usize + block..MIB as usize + 19 * block].fill(0);
        assert!(ok(Req { piece: 8 * block, ..Req::read(0, blocks / 2, block) }) == expected);
        let mut plain = vec![0; 2 * MIB as usize];
        let mut direct = file.reopen().expect("reopen");
        direct.read_exact(&mut plain).expect("read");
        assert!(plain == expected, "the file itself holds the same");
        drop(disk);
    }
}

#[test]
fn memory_that_direct_io_does_not_take_is_bounced() {
    let set = reactors(1);
    let file = file(4 * MIB);
    let disk = create(options(&file, Some(512))).expect("uring");
    let data: Vec<u8> = (0..MIB as usize).map(|n| (n / 3) as u8).collect();
    // Pieces of 700 bytes begin and end anywhere.
    let write = Req { data: data.clone(), piece: 700, ..Req::new(Op::Write, 8, 2048) };
    assert_eq!(run_one(&set, 0, &disk, write).result, Ok(()));
    let read = Req { piece: 1000, ..Req::read(8, 2048, 512) };
    assert!(run_one(&set, 0, &disk, read).data == data);
}

#[test]
fn zeroes_are_written_where_the_file_system_does_not_make_them() {
    let set = reactors(1);
    let file = file(4 * MIB);
    let medium = Medium::open(&file.path().to_string_lossy(), Some(512), false).expect("open");
    medium.no_punch.store(true, std::sync::atomic::Ordering::Relaxed);
    medium.no_zero_range.store(true, std::sync::atomic::Ordering::Relaxed);
    let device = Uring { medium: Arc::new(medium), dialect: Dialect::Uring, config: serde_json::json!({}) };
    let disk = Bdev::new(crate::bdev::testing::options("U", 8192, 512), Box::new(device)).expect("bdev");
    run_one(&set, 0, &disk, Req::write(0, 8192, 512, 1));
    for op in [Op::Unmap, Op::WriteZeroes] {
        assert_eq!(run_one(&set, 0, &disk, Req::new(op, 1, 5000)).result, Ok(()));
    }
    let data = run_one(&set, 0, &disk, Req::read(0, 8192, 512)).data;
    assert!(data[512..5001 * 512].iter().all(|&b| b == 0));
    assert!(data[0] == 1 && data[5001 * 512] == 1);
}

#[test]
fn more_buffers_than_one_system_call_takes_are_written_in_turns() {
    let set = reactors(1);
    let file = file(4 * MIB);
    let disk = create(options(&file, Some(512))).expect("uring");
    let data: Vec<u8> = (0..3000 * 512).map(|n| (n / 512) as u8).collect();
    let write = Req { data: data.clone(), piece: 512, ..Req::new(Op::Write, 0, 3000) };
    assert_eq!(run_one(&set, 0, &disk, write).result, Ok(()));
    assert!(run_one(&set, 0, &disk, Req { piece: 512, ..Req::read(0, 3000, 512) }).data == data);
}

#[test]
fn a_second_opener_is_refused_until_the_first_is_removed() {
    let set = reactors(1);
    let registry = Registry::new();
    let file = file(MIB);
    let first = create(options(&file, None)).expect("uring");
    registry.add(first.clone()).expect("add");
    let Err(error) = create(options(&file, None)) else { panic!("a second opener was let in") };
    assert!(error.to_string().contains("another bdev or process has it"), "{error}");
    assert_eq!(error.errno(), 16);
    registry.remove("U", &set).expect("remove");
    create(options(&file, None)).expect("after the removal, though somebody still holds the first");
    drop(first);
}

#[test]
fn files_that_cannot_be_used_are_refused_with_a_reason() {
    let tiny = file(100);
    let bad = |filename: &str, block_size| {
        let options = UringOptions { filename: filename.to_string(), ..options(&tiny, block_size) };
        create(options).err().map(|e| e.to_string()).unwrap_or_default()
    };
    assert!(bad("/nowhere/at/all", None).contains("No such file"));
    assert!(bad("/dev/null", None).contains("neither a regular file nor a block device"));
    assert!(bad(".", None).contains("directory"));
    assert!(bad(&tiny.path().to_string_lossy(), None).contains("less than one block"));
    assert!(bad(&tiny.path().to_string_lossy(), Some(520)).contains("512 or 4096"));
}

#[test]
fn a_read_only_file_is_read_and_not_written() {
    let set = reactors(1);
    let file = file(MIB);
    let disk = create(UringOptions { read_only: true, ..options(&file, Some(512)) }).expect("uring");
    let script = vec![
        Req::read(0, 8, 512),
        Req::write(0, 8, 512, 1),
        Req::new(Op::Unmap, 0, 1),
        Req::new(Op::WriteZeroes, 0, 1),
        Req::flush(),
    ];
    let results: Vec<_> = run(&set, 0, &disk, script).into_iter().map(|o| o.result).collect();
    let protected = Err(IoError::WriteProtected);
    assert_eq!(results, [Ok(()), protected, protected, protected, Ok(())]);
    // Readers share.
    create(UringOptions { read_only: true, ..options(&file, Some(512)) }).expect("a second reader");
}

#[test]
fn a_file_that_grows_or_shrinks_is_measured_again() {
    let set = reactors(1);
    let mut file = file(MIB);
    let disk = create(options(&file, Some(512))).expect("uring");
    file.as_file_mut().seek(SeekFrom::Start(MIB)).expect("seek");
    file.as_file_mut().write_all(&[9; 512]).expect("write");
    assert_eq!(disk.rescan(), Ok(2049));
    assert_eq!(run_one(&set, 0, &disk, Req::read(2048, 1, 512)).data, [9; 512]);
    file.as_file().set_len(4096).expect("cut");
    // Behind our back: an error, not a hang and not invented data.
    assert_eq!(run_one(&set, 0, &disk, Req::read(0, 2049, 512)).result, Err(IoError::Device));
    assert_eq!(disk.rescan(), Ok(8));
    assert_eq!(run_one(&set, 0, &disk, Req::read(8, 1, 512)).result, Err(IoError::OutOfRange));
}

#[test]
fn the_aio_name_makes_the_same_device() {
    let file = file(MIB);
    let disk = create(UringOptions { dialect: Dialect::Aio, ..options(&file, None) }).expect("aio");
    assert_eq!(disk.device().config().map(|c| c.0), Some("bdev_aio_create"));
    assert_eq!(disk.device().product_name(), "AIO disk");
}
