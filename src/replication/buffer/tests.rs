use std::cell::Cell;
use std::collections::BTreeMap;
use std::ops::Range;
use std::rc::Rc;
use std::sync::Arc;

use proptest::prelude::*;

use super::*;
use crate::env::{Buf, SgList};

/// Heap pages up to a number of bytes.
struct HeapPages {
    left: Cell<usize>,
}

impl PageSource for HeapPages {
    fn chunk(&self, len: usize) -> Option<Buf> {
        self.left.set(self.left.get().checked_sub(len)?);
        Buf::heap(len)
    }
}

const MIB: u64 = 1 << 20;

fn buffer_of(granule: u32, volume: u64, limit: u64) -> DiskBuffer {
    let pages = Rc::new(HeapPages { left: Cell::new(usize::MAX) });
    DiskBuffer::new(granule, volume, pages, Arc::new(Quota::new(limit))).expect("a valid granule")
}

fn bytes(buf: &Buf) -> Vec<u8> {
    buf.with(<[u8]>::to_vec)
}

fn heap(content: &[u8]) -> Buf {
    let buf = Buf::heap(content.len()).expect("heap");
    buf.write_at(0, content);
    buf
}

/// Preserves a run of granules whose originals are in `disk`.
fn preserve(
    buffer: &mut DiskBuffer,
    epoch: Epoch,
    granules: Range<u64>,
    disk: &Buf,
) -> Result<(), BufferError> {
    for granule in granules {
        let kept = buffer.contains(epoch, Granule(granule));
        let at = (granule * buffer.granule_bytes()) as usize;
        let absent = buffer.undo_insert(epoch, Granule(granule), std::slice::from_ref(disk), at)?;
        assert_eq!(absent, !kept);
    }
    Ok(())
}

fn read_view(buffer: &DiskBuffer, range: Range<u64>, disk: &[u8]) -> Vec<u8> {
    let mut content = Vec::new();
    for piece in buffer.view(range.clone()) {
        assert_eq!(piece.range.start, range.start + content.len() as u64, "pieces without gaps");
        match piece.content {
            Content::Bytes(buf) => {
                assert_eq!(buf.len() as u64, piece.range.end - piece.range.start);
                content.extend(bytes(&buf));
            }
            Content::Zeroes => content.resize((piece.range.end - range.start) as usize, 0),
            Content::OnDisk => {
                content.extend_from_slice(&disk[piece.range.start as usize..piece.range.end as usize]);
            }
        }
    }
    content
}

fn data(list: &[Buf]) -> OverlayData<'_> {
    OverlayData::Bytes { list, from: 0 }
}

/// Takes everything to the disk, as after a failover.
fn drain(buffer: &mut DiskBuffer, disk: &mut [u8]) {
    let mut from = Granule(0);
    while let Some(granule) = buffer.next_buffered(from) {
        assert!(granule >= from, "address order");
        let range = buffer.granule_range(granule);
        let target = &mut disk[range.start as usize..range.end as usize];
        match buffer.view_content(granule) {
            Content::Bytes(buf) => buf.read_at(0, target),
            Content::Zeroes => target.fill(0),
            Content::OnDisk => panic!("a granule that is not in memory"),
        }
        buffer.forget(granule.0..granule.0 + 1);
        from = Granule(granule.0 + 1);
    }
    assert_eq!(buffer.next_buffered(Granule(0)), None);
}

#[test]
fn a_checkpoint_drops_both_maps_and_memory_comes_back_in_steps() {
    let mut buffer = buffer_of(4096, 64 * MIB, 64 * MIB);
    let disk = heap(&vec![7; 16 * MIB as usize]);
    buffer.open_epoch(Epoch(1)).expect("first");
    preserve(&mut buffer, Epoch(1), 0..4096, &disk).expect("room");
    buffer.overlay_write(0..MIB, data(&[heap(&vec![9; MIB as usize])]), &[]).expect("room");
    buffer.open_epoch(Epoch(2)).expect("second");
    preserve(&mut buffer, Epoch(2), 5..6, &disk).expect("room");
    assert_eq!(buffer.usage().undo_bytes, 16 * MIB + 4096);
    assert_eq!(buffer.usage().overlay_bytes, MIB);
    buffer.drop_through(Epoch(1));
    buffer.drop_overlay();
    assert_eq!(buffer.usage().undo_bytes, 4096);
    assert_eq!(buffer.usage().overlay_bytes, 0);
    assert!(buffer.contains(Epoch(2), Granule(5)));
    assert!(!buffer.contains(Epoch(1), Granule(5)));
    let mut steps = 1;
    while !buffer.recycle_step(1) {
        steps += 1;
    }
    assert!(steps > 8, "{steps} steps");
    assert_eq!(buffer.usage().held_bytes, 64 << 10);
    assert_eq!(buffer.quota().used_bytes(), 64 << 10);
}

#[test]
fn a_run_of_originals_is_read_as_one_buffer() {
    let mut buffer = buffer_of(4096, 64 * MIB, 64 * MIB);
    let disk = heap(&vec![7; 16 * MIB as usize]);
    preserve(&mut buffer, Epoch(1), 0..4096, &disk).expect("room");
    let pieces: usize = (0..128).map(|at| buffer.view(at << 17..(at + 1) << 17).count()).sum();
    assert!(pieces <= 128 + 16, "{pieces} pieces for 128 reads of 128 KiB");
}

#[test]
fn a_page_in_a_readers_hands_is_not_written() {
    let mut buffer = buffer_of(4096, MIB, MIB);
    buffer.overlay_write(0..4096, data(&[heap(&[1; 4096])]), &[]).expect("room");
    let Some(Piece { content: Content::Bytes(held), .. }) = buffer.view(0..4096).next() else {
        panic!("a page of the overlay")
    };
    buffer.overlay_write(100..200, data(&[heap(&[2; 100])]), &[]).expect("room");
    assert_eq!(bytes(&held), [1; 4096]);
    let mut expected = [1; 4096];
    expected[100..200].fill(2);
    assert_eq!(read_view(&buffer, 0..4096, &[]), expected);
    drop(held);
    let before = buffer.usage();
    for _ in 0..100 {
        buffer.overlay_write(0..4096, data(&[heap(&[3; 4096])]), &[]).expect("room");
    }
    assert_eq!(buffer.usage(), before, "rewriting in place takes nothing");
}

#[test]
fn a_page_outlives_its_layer_in_a_readers_hands() {
    let mut buffer = buffer_of(4096, MIB, MIB);
    preserve(&mut buffer, Epoch(1), 0..1, &heap(&[8; 4096])).expect("room");
    let Content::Bytes(held) = buffer.view_content(Granule(0)) else { panic!("a page") };
    buffer.drop_through(Epoch(1));
    assert!(buffer.recycle_step(100));
    assert_eq!(buffer.quota().used_bytes(), 0);
    assert_eq!(bytes(&held), [8; 4096]);
}

#[test]
fn the_limit_is_a_clear_error_and_changes_nothing() {
    let mut buffer = buffer_of(4096, 64 * MIB, MIB);
    buffer.open_epoch(Epoch(1)).expect("first");
    let disk = heap(&vec![5; 2 * MIB as usize]);
    let outcome = preserve(&mut buffer, Epoch(1), 0..300, &disk);
    assert_eq!(outcome, Err(BufferError::Full));
    assert_eq!(buffer.usage().undo_bytes, MIB, "up to the last page");
    assert_eq!(buffer.used_percent(), 100);
    assert!(!buffer.pin(1));
    let write = buffer.overlay_write(0..4096, data(&[heap(&[1; 4096])]), &[]);
    assert_eq!(write, Err(BufferError::Full));
    buffer.overlay_write(0..4096, OverlayData::Zeroes, &[]).expect("zeroes take no page");
}

#[test]
fn an_empty_pool_is_told_apart_from_the_limit() {
    let pages = Rc::new(HeapPages { left: Cell::new(64 << 10) });
    let mut buffer = DiskBuffer::new(4096, MIB, pages, Arc::new(Quota::new(MIB))).expect("valid");
    buffer.open_epoch(Epoch(1)).expect("first");
    let disk = heap(&[3; 17 * 4096]);
    assert_eq!(preserve(&mut buffer, Epoch(1), 0..17, &disk), Err(BufferError::NoMemory));
    assert_eq!(buffer.usage().undo_bytes, 16 * 4096);
}

#[test]
fn a_partial_write_asks_for_what_only_the_disk_has() {
    let mut buffer = buffer_of(4096, 10_000, MIB);
    assert_eq!(buffer.fills_needed(100..9000).as_slice(), [Granule(0), Granule(2)]);
    assert_eq!(buffer.fills_needed(0..10_000).as_slice(), [], "the last granule is short");
    let new = [heap(&[1; 100])];
    let outcome = buffer.overlay_write(8500..8600, data(&new), &[]);
    assert_eq!(outcome, Err(BufferError::FillMissing(Granule(2))));
    let content = [heap(&[4; 10_000 - 8192])];
    let fill = Fill { granule: Granule(2), content: &content };
    buffer.overlay_write(8500..8600, data(&new), &[fill]).expect("filled");
    let view = read_view(&buffer, 8192..10_000, &[]);
    assert_eq!((view[0], view[308], view[407], view[408]), (4, 1, 1, 4));
    assert_eq!(buffer.overlay_write(9_999..10_001, OverlayData::Zeroes, &[]), Err(BufferError::OutOfRange));
}

#[test]
fn epochs_only_rise() {
    let mut buffer = buffer_of(4096, MIB, MIB);
    buffer.open_epoch(Epoch(5)).expect("first");
    assert_eq!(buffer.open_epoch(Epoch(5)), Err(BufferError::EpochOrder(Epoch(5))));
    let old = buffer.undo_insert(Epoch(4), Granule(0), &[heap(&[1; 4096])], 0);
    assert_eq!(old, Err(BufferError::NoLayer(Epoch(4))));
}

#[test]
fn bookkeeping_is_below_a_fiftieth_of_256_mib_buffered() {
    let content = [heap(&[1; 4096])];
    for stride in [1u64, 3, 97] {
        let mut buffer = buffer_of(4096, 1 << 40, 300 * MIB);
        buffer.open_epoch(Epoch(1)).expect("first");
        for n in 0..65_536u64 {
            let granule = n.wrapping_mul(if stride == 97 { 0x9e37_79b9 } else { stride }) % (1 << 28);
            assert_eq!(buffer.undo_insert(Epoch(1), Granule(granule), &content, 0), Ok(true));
        }
        let usage = buffer.usage();
        assert_eq!(usage.undo_bytes, 256 * MIB);
        assert!(usage.bookkeeping_bytes < usage.undo_bytes / 50, "{usage:?}");
        assert!(usage.held_bytes < usage.undo_bytes + 4 * MIB, "{usage:?}");
    }
}

const GRANULES: u64 = 60;
const GRANULE: u64 = 512;
/// The last granule is short.
const VOLUME: u64 = GRANULES * GRANULE - 100;

#[derive(Clone, Debug)]
enum Step {
    /// A forwarded write.
    Forwarded {
        granules: Range<u64>,
        fill: u8,
    },
    /// A write of the secondary's VM.
    Own {
        range: Range<u64>,
        fill: u8,
    },
    OpenEpoch,
    Commit {
        behind: u64,
    },
    Recycle,
    Hold {
        at: u64,
    },
    LetGo,
}

fn step() -> impl Strategy<Value = Step> {
    let range = (0..VOLUME, 1..2000u64).prop_map(|(start, len)| start..(start + len).min(VOLUME));
    let granules = (0..GRANULES, 1..9u64).prop_map(|(start, len)| start..(start + len).min(GRANULES));
    prop_oneof![
        6 => (granules, 0..4u8).prop_map(|(granules, fill)| Step::Forwarded { granules, fill }),
        6 => (range, 0..4u8).prop_map(|(range, fill)| Step::Own { range, fill }),
        2 => Just(Step::OpenEpoch),
        1 => (0..3u64).prop_map(|behind| Step::Commit { behind }),
        1 => Just(Step::Recycle),
        1 => (0..VOLUME).prop_map(|at| Step::Hold { at }),
        1 => Just(Step::LetGo),
    ]
}

/// The secondary as a byte array: a snapshot of the disk for each epoch's beginning, and the VM's own bytes.
struct Model {
    disk: Vec<u8>,
    begins: BTreeMap<u64, Vec<u8>>,
    own: BTreeMap<u64, u8>,
}

impl Model {
    /// The disk at the last commit.
    fn checkpoint(&self) -> Vec<u8> {
        self.begins.values().next().cloned().unwrap_or_else(|| self.disk.clone())
    }

    fn view(&self) -> Vec<u8> {
        let mut view = self.checkpoint();
        self.own.iter().for_each(|(&at, &byte)| view[at as usize] = byte);
        view
    }
}

fn own_write(buffer: &mut DiskBuffer, model: &mut Model, range: &Range<u64>, fill: u8) {
    let view = model.view();
    let contents: Vec<(Granule, Buf)> = buffer
        .fills_needed(range.clone())
        .into_iter()
        .map(|granule| {
            let whole = buffer.granule_range(granule);
            (granule, heap(&view[whole.start as usize..whole.end as usize]))
        })
        .collect();
    let fills: Vec<Fill<'_>> = contents
        .iter()
        .map(|(granule, content)| Fill { granule: *granule, content: std::slice::from_ref(content) })
        .collect();
    let len = (range.end - range.start) as usize;
    // Two buffers, cut anywhere.
    let content: Vec<u8> = (0..len).map(|at| if fill == 0 { 0 } else { fill ^ (at % 7) as u8 }).collect();
    let cut = len / 3;
    let list: SgList =
        [&content[..cut], &content[cut..]].into_iter().filter(|p| !p.is_empty()).map(heap).collect();
    let written = if fill == 0 && len.is_multiple_of(2) { OverlayData::Zeroes } else { data(&list) };
    buffer.overlay_write(range.clone(), written, &fills).expect("room");
    model.own.extend(range.clone().zip(content));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]
    #[test]
    fn the_view_and_every_failover_equal_a_model_of_bytes(
        steps in prop::collection::vec(step(), 1..60),
        keep_overlay in any::<bool>(),
    ) {
        let mut buffer = buffer_of(GRANULE as u32, VOLUME, 64 * MIB);
        let disk: Vec<u8> = (0..VOLUME).map(|at| (at / 700) as u8).collect();
        let mut model = Model { begins: BTreeMap::from([(1, disk.clone())]), disk, own: BTreeMap::new() };
        let mut epoch = 1;
        buffer.open_epoch(Epoch(1)).expect("first");
        let mut held: Vec<(Vec<u8>, Buf)> = Vec::new();
        for step in &steps {
            match step.clone() {
                Step::Forwarded { granules, fill } => {
                    preserve(&mut buffer, Epoch(epoch), granules.clone(), &heap(&model.disk)).expect("room");
                    for granule in granules {
                        let whole = buffer.granule_range(Granule(granule));
                        model.disk[whole.start as usize..whole.end as usize].fill(fill);
                    }
                }
                Step::Own { range, fill } => own_write(&mut buffer, &mut model, &range, fill),
                Step::OpenEpoch => {
                    epoch += 1;
                    buffer.open_epoch(Epoch(epoch)).expect("rising");
                    model.begins.insert(epoch, model.disk.clone());
                }
                Step::Commit { behind } => {
                    let through = epoch.saturating_sub(behind + 1);
                    buffer.drop_through(Epoch(through));
                    buffer.drop_overlay();
                    model.begins.retain(|&begun, _| begun > through);
                    model.own.clear();
                }
                Step::Recycle => {
                    buffer.recycle_step(3);
                }
                Step::Hold { at } => {
                    if let Some(Piece { content: Content::Bytes(buf), .. }) = buffer.view(at..VOLUME).next() {
                        held.push((bytes(&buf), buf));
                    }
                }
                Step::LetGo => held.clear(),
            }
            prop_assert_eq!(read_view(&buffer, 0..VOLUME, &model.disk), model.view());
            for (content, buf) in &held {
                prop_assert_eq!(&bytes(buf), content, "a reader's page changed");
            }
        }
        prop_assert_eq!(read_view(&buffer, 333..VOLUME - 5, &model.disk), &model.view()[333..VOLUME as usize - 5]);
        let into = [heap(&[0; 700]), heap(&model.disk[1000..5000])];
        buffer.view_read(1000..5000, &into, 700);
        prop_assert_eq!(bytes(&into[1]), &model.view()[1000..5000]);

        let (mut disk, expected) = match keep_overlay {
            true => (model.disk.clone(), model.view()),
            false => {
                buffer.drop_overlay();
                (model.disk.clone(), model.checkpoint())
            }
        };
        drain(&mut buffer, &mut disk);
        prop_assert_eq!(disk, expected);
    }
}

#[test]
fn forgotten_granules_are_neither_read_nor_flushed() {
    let mut buffer = buffer_of(4096, 64 * MIB, 64 * MIB);
    let mut disk = vec![5; 4096 * 3000];
    buffer.open_epoch(Epoch(1)).expect("first");
    preserve(&mut buffer, Epoch(1), 0..3000, &heap(&disk)).expect("room");
    disk.fill(6);
    buffer.forget(0..2990);
    assert_eq!(buffer.next_buffered(Granule(0)), Some(Granule(2990)));
    drain(&mut buffer, &mut disk);
    assert!(disk[..2990 * 4096].iter().all(|&byte| byte == 6));
    assert!(disk[2990 * 4096..].iter().all(|&byte| byte == 5));
}

#[test]
fn a_quota_is_given_back_with_its_buffer() {
    let quota = Arc::new(Quota::new(MIB));
    let pages = Rc::new(HeapPages { left: Cell::new(usize::MAX) });
    let mut buffer = DiskBuffer::new(4096, MIB, pages, quota.clone()).expect("valid");
    buffer.open_epoch(Epoch(1)).expect("first");
    preserve(&mut buffer, Epoch(1), 0..3, &heap(&[2; 3 * 4096])).expect("room");
    assert!(buffer.pin(1000));
    assert!(quota.used_bytes() > 1000);
    drop(buffer);
    assert_eq!(quota.used_bytes(), 0);
}

/// A buffer whose volume ends within granule 2, and which holds that granule as told: by the content of its two blocks.
fn with_short_granule(undo: Option<[u8; 2]>, overlay: Option<[u8; 2]>) -> DiskBuffer {
    let mut buffer = buffer_of(4096, 2 * 4096 + 1024, MIB);
    // Pages that were in use before, so that anything could be in them.
    buffer.open_epoch(Epoch(1)).expect("rises");
    preserve(&mut buffer, Epoch(1), 0..2, &heap(&[0xEE; 8192])).expect("room");
    buffer
        .overlay_write(0..8192, OverlayData::Bytes { list: &[heap(&[0xEE; 8192])], from: 0 }, &[])
        .expect("room");
    buffer.forget(0..2);
    let content = |halves: [u8; 2]| heap(&[[halves[0]; 512], [halves[1]; 512]].concat());
    if let Some(halves) = undo {
        assert_eq!(buffer.undo_insert(Epoch(1), Granule(2), &[content(halves)], 0), Ok(true));
    }
    if let Some(halves) = overlay {
        let list = [content(halves)];
        buffer.overlay_write(8192..9216, OverlayData::Bytes { list: &list, from: 0 }, &[]).expect("room");
    }
    buffer
}

#[test]
fn a_granule_that_was_short_gets_its_end_when_the_volume_grows_in_every_layer() {
    let new = [heap(&[[0x11; 512], [0x77; 512], [0x78; 512]].concat())];
    for (undo, overlay, seen) in [
        (Some([1, 2]), None, [1, 2]),
        (Some([0, 0]), None, [0, 0]),
        (None, Some([3, 4]), [3, 4]),
        (Some([1, 2]), Some([0, 0]), [0, 0]),
        (Some([0, 0]), Some([3, 4]), [3, 4]),
    ] {
        for content in [Some(&new[..]), None] {
            let mut buffer = with_short_granule(undo, overlay);
            buffer.extend(100 * MIB).expect("far below the limit");
            let end = read_view(&buffer, 8192 + 1024..12288, &[]);
            assert!(end.iter().all(|&byte| byte == 0), "what a page held before never shows");
            buffer.complete(8192 + 1024..8192 + 2048, content, 512).expect("room");
            let tail = if content.is_some() { [0x77, 0x78] } else { [0, 0] };
            let expected =
                |halves: [u8; 2]| [halves[0], halves[1], tail[0], tail[1]].map(|byte| [byte; 512]).concat();
            assert_eq!(read_view(&buffer, 8192..8192 + 2048, &[]), expected(seen));
            buffer.drop_overlay();
            if let Some(undo) = undo {
                assert_eq!(read_view(&buffer, 8192..8192 + 2048, &[]), expected(undo), "the original below");
            }
        }
    }
}

#[test]
fn what_was_read_before_the_volume_grew_is_kept_as_far_as_it_goes() {
    let mut buffer = with_short_granule(None, None);
    buffer.extend(100 * MIB).expect("far below the limit");
    assert_eq!(buffer.undo_insert(Epoch(1), Granule(2), &[heap(&[9; 1024])], 0), Ok(true));
    assert_eq!(read_view(&buffer, 8192..12288, &[]), [[9; 1024], [0; 1024], [0; 1024], [0; 1024]].concat());
    let granule = Granule(20_000);
    assert_eq!(buffer.undo_insert(Epoch(1), granule, &[heap(&[5; 4096])], 0), Ok(true), "behind the old end");
    assert_eq!(buffer.next_buffered(Granule(3)), Some(granule), "a drain finds it");
    assert_eq!(buffer.extend(u64::MAX), Err(BufferError::OutOfRange));
}
