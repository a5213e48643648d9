//! Load whose every block says which write made it, so that an image can be judged: which writes it holds, and whether
//! it is one point in time.

use super::nvme::Host;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

pub const BLOCK: usize = 4096;

/// Orders what all writers do: an event with a smaller number came first.
static CLOCK: AtomicU64 = AtomicU64::new(1);

fn now() -> u64 {
    CLOCK.fetch_add(1, Ordering::SeqCst)
}

#[derive(Clone, Copy)]
struct Write {
    /// Which of the writer's volumes.
    place: usize,
    block: u64,
    issued: u64,
    acknowledged: Option<u64>,
}

#[derive(Default)]
struct History {
    writes: Mutex<Vec<Write>>,
    stop: AtomicBool,
}

impl History {
    fn writes(&self) -> MutexGuard<'_, Vec<Write>> {
        self.writes.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// One writer at depth 1 with a region of its own, on one volume or on several in turn: its writes 1, 2, 3 … are in the
/// images up to some `k`, and none after. Its blocks are all zero before.
pub struct Writer {
    history: Arc<History>,
    /// The numbers of its volumes.
    volumes: Vec<usize>,
    first_block: u64,
    blocks: u64,
    thread: Option<JoinHandle<String>>,
}

/// How far each writer was at a moment.
#[derive(Clone, Debug)]
pub struct Progress {
    /// Writes acknowledged for certain.
    pub acknowledged: Vec<usize>,
    /// Writes issued at most.
    pub issued: Vec<usize>,
}

fn stamp(sequence: u64, block: u64) -> Vec<u8> {
    let pair: Vec<u8> = [sequence.to_le_bytes(), block.to_le_bytes()].concat();
    pair.repeat(BLOCK / pair.len())
}

impl Writer {
    /// Starts to write at random in `blocks` blocks from `first_block` on, until stopped or refused.
    pub fn start(host: Host, first_block: u64, blocks: u64) -> Writer {
        Writer::across(vec![(0, host)], first_block, blocks)
    }

    /// The same on several volumes, named by their numbers: each write goes to the volume after that of the write
    /// before, and not before that one was acknowledged.
    pub fn across(hosts: Vec<(usize, Host)>, first_block: u64, blocks: u64) -> Writer {
        let history = Arc::new(History::default());
        let shared = Arc::clone(&history);
        let (volumes, mut hosts): (Vec<usize>, Vec<Host>) = hosts.into_iter().unzip();
        let thread = std::thread::spawn(move || {
            let mut random = first_block.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
            while !shared.stop.load(Ordering::Relaxed) {
                random ^= random << 13;
                random ^= random >> 7;
                random ^= random << 17;
                let block = first_block + random % blocks;
                let (sequence, place) = {
                    let mut writes = shared.writes();
                    let place = writes.len() % hosts.len();
                    writes.push(Write { place, block, issued: now(), acknowledged: None });
                    (writes.len(), place)
                };
                match hosts[place].try_write(block * BLOCK as u64, &stamp(sequence as u64, block)) {
                    Ok(completion) if completion.is_success() => {
                        shared.writes()[sequence - 1].acknowledged = Some(now());
                    }
                    Ok(completion) => return format!("write {sequence}: {completion:?}"),
                    Err(error) => return format!("write {sequence}: {error}"),
                }
            }
            "stopped".to_owned()
        });
        Writer { history, volumes, first_block, blocks, thread: Some(thread) }
    }

    pub fn acknowledged(&self) -> usize {
        let writes = self.history.writes();
        writes.len() - usize::from(writes.last().is_some_and(|w| w.acknowledged.is_none()))
    }

    /// Ends the load; why it ended: "stopped", or what was refused.
    pub fn stop(&mut self) -> String {
        self.history.stop.store(true, Ordering::Relaxed);
        match self.thread.take() {
            Some(thread) => thread.join().unwrap_or_else(|_| "the writer panicked".to_owned()),
            None => "stopped".to_owned(),
        }
    }

    /// Waits for the load to end by itself, as after the loss of the node.
    pub fn wait(&mut self, limit: Duration) -> String {
        let end = Instant::now() + limit;
        while self.thread.as_ref().is_some_and(|t| !t.is_finished()) && Instant::now() < end {
            std::thread::sleep(Duration::from_millis(5));
        }
        self.stop()
    }

    /// What a block of an image holds: the number of the write that made it, 0 for none.
    #[track_caller]
    fn write_in(&self, writes: &[Write], place: usize, image: &[u8], block: u64) -> usize {
        let content = &image[block as usize * BLOCK..][..BLOCK];
        let mut word = [0u8; 8];
        word.copy_from_slice(&content[..8]);
        let sequence = u64::from_le_bytes(word);
        if sequence == 0 {
            assert!(content.iter().all(|&b| b == 0), "block {block} is neither untouched nor stamped");
            return 0;
        }
        assert!(sequence <= writes.len() as u64, "block {block} holds write {sequence}, which nobody issued");
        let write = &writes[sequence as usize - 1];
        assert_eq!((write.place, write.block), (place, block), "write {sequence} went to another block");
        assert_eq!(content, stamp(sequence, block), "block {block} is torn (write {sequence})");
        sequence as usize
    }

    /// The `k` for which the images (of whole volumes, by their numbers) hold exactly the writes 1..=k of this writer.
    #[track_caller]
    fn prefix_in(&self, images: &[&[u8]]) -> usize {
        let writes = self.history.writes();
        let end = self.first_block + self.blocks;
        let places =
            || (0..self.volumes.len()).flat_map(|place| (self.first_block..end).map(move |b| (place, b)));
        let found: Vec<usize> = places()
            .map(|(place, block)| self.write_in(&writes, place, images[self.volumes[place]], block))
            .collect();
        let prefix = found.iter().copied().max().unwrap_or(0);
        let mut expected = vec![0; found.len()];
        for (i, write) in writes[..prefix].iter().enumerate() {
            expected[write.place * self.blocks as usize + (write.block - self.first_block) as usize] = i + 1;
        }
        for ((place, block), (found, expected)) in places().zip(found.iter().zip(&expected)) {
            assert_eq!(
                found, expected,
                "block {block} of volume {} holds write {found} where write {expected} belongs, while write {prefix} \
                 is there",
                self.volumes[place]
            );
        }
        prefix
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        self.stop();
    }
}

/// Where `writers` are at this moment.
pub fn progress(writers: &[Writer]) -> Progress {
    Progress {
        acknowledged: writers.iter().map(Writer::acknowledged).collect(),
        issued: writers.iter().map(|w| w.history.writes().len()).collect(),
    }
}

/// `image` is one point in time of the whole load, between `earliest` and `latest`: each writer's writes are there up
/// to some `k`, and no write is there that was issued after one that is missing had been acknowledged.
#[track_caller]
pub fn assert_one_point_in_time(
    writers: &[Writer],
    image: &[u8],
    earliest: &[usize],
    latest: &[usize],
) -> Vec<usize> {
    assert_images_of_one_point_in_time(writers, &[image], earliest, latest)
}

/// The same of several volumes: `images` are whole volumes, in the order of their numbers.
#[track_caller]
pub fn assert_images_of_one_point_in_time(
    writers: &[Writer],
    images: &[&[u8]],
    earliest: &[usize],
    latest: &[usize],
) -> Vec<usize> {
    let cut: Vec<usize> = writers.iter().map(|w| w.prefix_in(images)).collect();
    for (i, &k) in cut.iter().enumerate() {
        assert!(
            (earliest[i]..=latest[i]).contains(&k),
            "writer {i}: writes up to {k} are there, expected {} to {}",
            earliest[i],
            latest[i]
        );
    }
    let newest_issue =
        writers.iter().zip(&cut).filter(|&(_, &k)| k > 0).map(|(w, &k)| w.history.writes()[k - 1].issued);
    let newest_issue = newest_issue.max().unwrap_or(0);
    for (writer, &k) in writers.iter().zip(&cut) {
        if let Some(acknowledged) = writer.history.writes().get(k).and_then(|w| w.acknowledged) {
            assert!(
                acknowledged > newest_issue,
                "write {} was acknowledged before another that is there was issued, and is missing",
                k + 1
            );
        }
    }
    cut
}
