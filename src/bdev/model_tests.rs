//! Random scripts on real devices, against an array of bytes.

use std::sync::{Arc, OnceLock};

use proptest::prelude::*;
use uuid::Uuid;

use super::delay::Latencies;
use super::testing::*;
use super::uring::{Dialect, UringOptions};
use super::*;
use crate::reactor::ReactorSet;

const BLOCKS: u64 = 96;

#[derive(Debug, Clone)]
struct Step {
    op: Op,
    lba: u64,
    num_blocks: u64,
    byte: u8,
    piece: usize,
    fua: bool,
    /// Whether a comparison expects what is there.
    expect_right: bool,
}

fn step() -> impl Strategy<Value = Step> {
    let op = prop::sample::select(vec![
        Op::Read,
        Op::Read,
        Op::Write,
        Op::Write,
        Op::WriteZeroes,
        Op::Unmap,
        Op::Compare,
        Op::CompareAndWrite,
        Op::Flush,
    ]);
    let piece = prop::sample::select(vec![512usize, 1024, 3000, 1 << 20]);
    (op, 0..BLOCKS, 1..20u64, any::<u8>(), piece, any::<bool>(), any::<bool>()).prop_map(
        |(op, lba, num_blocks, byte, piece, fua, expect_right)| {
            let num_blocks = num_blocks.min(BLOCKS - lba);
            Step { op, lba, num_blocks, byte, piece, fua, expect_right }
        },
    )
}

fn set() -> &'static Arc<ReactorSet> {
    static SET: OnceLock<Arc<ReactorSet>> = OnceLock::new();
    SET.get_or_init(|| reactors(2))
}

/// What the step asks for, what it must give, and the model after it.
fn apply(step: &Step, model: &mut [u8], block: usize) -> (Req, Result<(), IoError>, Vec<u8>) {
    let range = step.lba as usize * block..(step.lba + step.num_blocks) as usize * block;
    let now = model[range.clone()].to_vec();
    // A stripe per block, so that blocks that changed places show.
    let new: Vec<u8> = (0..now.len()).map(|n| step.byte.wrapping_add((n / 512) as u8)).collect();
    let mut expected = now.clone();
    if !step.expect_right {
        let last = expected.len() - 1;
        expected[last] ^= 1;
    }
    let matches = if step.expect_right { Ok(()) } else { Err(IoError::Miscompare) };
    let mut req = Req { fua: step.fua, piece: step.piece, ..Req::new(step.op, step.lba, step.num_blocks) };
    let mut result = Ok(());
    match step.op {
        Op::Read => {
            req.data = vec![0xEE; now.len()];
            return (req, Ok(()), now);
        }
        Op::Write => {
            model[range].copy_from_slice(&new);
            req.data = new;
        }
        Op::WriteZeroes | Op::Unmap => model[range].fill(0),
        Op::Compare => {
            req.data = expected;
            result = matches;
        }
        Op::CompareAndWrite => {
            if matches.is_ok() {
                model[range].copy_from_slice(&new);
            }
            (req.compare, req.data) = (expected, new);
            result = matches;
        }
        Op::Flush | Op::Reset => (req.lba, req.num_blocks) = (0, 0),
    }
    let data = req.data.clone();
    (req, result, data)
}

/// Runs the steps, those that touch different blocks together, on two reactors in turn.
fn hold_against_model(disk: &Arc<Bdev>, steps: &[Step]) -> Result<(), TestCaseError> {
    let block = disk.block_size() as usize;
    let mut model = vec![0u8; BLOCKS as usize * block];
    let mut left = steps;
    let mut reactor = 0;
    while !left.is_empty() {
        let apart = |a: &Step, b: &Step| a.lba + a.num_blocks <= b.lba || b.lba + b.num_blocks <= a.lba;
        let together = (1..left.len())
            .find(|&n| left[..n].iter().any(|earlier| !apart(earlier, &left[n])))
            .unwrap_or(left.len());
        let (batch, rest) = left.split_at(together);
        let planned: Vec<_> = batch.iter().map(|step| apply(step, &mut model, block)).collect();
        let outcomes = run(set(), reactor, disk, planned.iter().map(|p| p.0.clone()).collect());
        for (outcome, (req, result, data)) in outcomes.iter().zip(&planned) {
            prop_assert_eq!(outcome.result, *result, "{:?} {}+{}", req.op, req.lba, req.num_blocks);
            prop_assert!(outcome.data == *data, "{:?} {}+{}: other data", req.op, req.lba, req.num_blocks);
        }
        left = rest;
        reactor = (reactor + 1) % set().count();
    }
    let all = run_one(set(), 0, disk, Req::read(0, BLOCKS, block));
    prop_assert!(all.data == model, "the device differs from the model");
    Ok(())
}

fn block_size() -> impl Strategy<Value = u32> {
    prop::sample::select(vec![512u32, 4096])
}

fn ram_of(block_size: u32) -> Arc<Bdev> {
    ram::create(options("R", BLOCKS, block_size)).expect("ram")
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 40, ..ProptestConfig::default() })]

    #[test]
    fn a_ram_disk_is_an_array_of_bytes(size in block_size(), steps in prop::collection::vec(step(), 1..60)) {
        hold_against_model(&ram_of(size), &steps)?;
    }

    #[test]
    fn a_file_is_an_array_of_bytes(size in block_size(), steps in prop::collection::vec(step(), 1..60)) {
        let file = tempfile::NamedTempFile::new().expect("file");
        file.as_file().set_len(BLOCKS * u64::from(size)).expect("length");
        let disk = uring::create(UringOptions {
            name: "U".to_string(),
            aliases: Vec::new(),
            uuid: Uuid::new_v4(),
            filename: file.path().to_string_lossy().to_string(),
            block_size: Some(size),
            read_only: false,
            dialect: Dialect::Uring,
        });
        hold_against_model(&disk.expect("uring"), &steps)?;
    }

    #[test]
    fn what_the_layer_makes_up_for_is_an_array_of_bytes(steps in prop::collection::vec(step(), 1..60)) {
        let disk = Bdev::new(options("P", BLOCKS, 512), Box::new(ReadWriteOnly::default()));
        hold_against_model(&disk.expect("plain"), &steps)?;
    }

    #[test]
    fn stacked_devices_change_nothing(size in block_size(), steps in prop::collection::vec(step(), 1..60)) {
        let latencies = Latencies { p99_read_us: 300, p99_write_us: 300, ..Latencies::default() };
        let late = delay::create("D", Uuid::new_v4(), &ram_of(size), latencies).expect("delay");
        let faulty = error_injection::create(Uuid::new_v4(), &late).expect("error");
        let top = passthru::create("T", Uuid::new_v4(), &faulty).expect("passthru");
        top.set_outstanding_limit(2);
        hold_against_model(&top, &steps)?;
    }
}
