//! Messages between threads: bounded lock-free queues of parcels, with a wake for a sleeping receiver.
//!
//! Invariants: parcels of one sender reach one receiver in order; none is lost: a reactor that finds a queue full
//! keeps its parcels in order and tries again in its next turn. A sender never waits.

use std::collections::VecDeque;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering, fence};
use std::sync::mpsc;
use std::time::Duration;

use crossbeam_queue::ArrayQueue;

/// Parcels that wait for one reactor. Reactors with full queues keep what they could not send; the number is large
/// enough that this happens only under a flood.
const QUEUE_PARCELS: usize = 8192;

/// Something delivered on a reactor. A boxed parcel that travels back and forth costs no allocation.
pub trait Parcel: Send {
    /// Runs on the receiving reactor.
    fn deliver(self: Box<Self>);
}

struct Call<F>(F);

impl<F: FnOnce() + Send> Parcel for Call<F> {
    fn deliver(self: Box<Self>) {
        (self.0)()
    }
}

/// A closure as a parcel.
pub fn parcel(f: impl FnOnce() + Send + 'static) -> Box<dyn Parcel> {
    Box::new(Call(f))
}

/// One reactor's mailbox.
pub(super) struct Inbox {
    queue: ArrayQueue<Box<dyn Parcel>>,
    sleeping: AtomicBool,
    pub(super) event: Arc<OwnedFd>,
}

impl Inbox {
    pub(super) fn new() -> std::io::Result<Inbox> {
        let event = rustix::event::eventfd(
            0,
            rustix::event::EventfdFlags::CLOEXEC | rustix::event::EventfdFlags::NONBLOCK,
        )?;
        let queue = ArrayQueue::new(QUEUE_PARCELS);
        Ok(Inbox { queue, sleeping: AtomicBool::new(false), event: Arc::new(event) })
    }

    /// Puts a parcel into the queue and wakes its owner; gives it back when the queue is full.
    pub(super) fn push(&self, parcel: Box<dyn Parcel>) -> Result<(), Box<dyn Parcel>> {
        self.queue.push(parcel)?;
        // Pairs with the fence in `prepare_sleep`: either the owner sees the parcel or we see it asleep.
        fence(Ordering::SeqCst);
        if self.sleeping.load(Ordering::Relaxed) {
            self.wake();
        }
        Ok(())
    }

    pub(super) fn wake(&self) {
        if self.sleeping.swap(false, Ordering::AcqRel) {
            // Fails only when the counter is full, and then the owner is awake already.
            let _ = rustix::io::write(self.event.as_fd(), &1u64.to_ne_bytes());
        }
    }

    pub(super) fn pop(&self) -> Option<Box<dyn Parcel>> {
        self.queue.pop()
    }

    /// Announces sleep; false if a parcel came meanwhile.
    pub(super) fn prepare_sleep(&self) -> bool {
        self.sleeping.store(true, Ordering::Relaxed);
        fence(Ordering::SeqCst);
        if self.queue.is_empty() {
            return true;
        }
        self.sleeping.store(false, Ordering::Relaxed);
        false
    }

    pub(super) fn awake(&self) {
        self.sleeping.store(false, Ordering::Relaxed);
    }
}

/// What a reactor could not send yet, by receiver.
#[derive(Default)]
pub(super) struct Outbox {
    waiting: VecDeque<(usize, Box<dyn Parcel>)>,
}

impl Outbox {
    pub(super) fn send(&mut self, inboxes: &[Inbox], to: usize, parcel: Box<dyn Parcel>) {
        if self.waiting.iter().any(|(t, _)| *t == to) {
            self.waiting.push_back((to, parcel));
        } else if let Err(parcel) = inboxes[to].push(parcel) {
            self.waiting.push_back((to, parcel));
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.waiting.is_empty()
    }

    /// Tries again; true if something went out.
    pub(super) fn retry(&mut self, inboxes: &[Inbox]) -> bool {
        if self.waiting.is_empty() {
            return false;
        }
        let mut sent = false;
        let mut full: smallvec::SmallVec<[usize; 8]> = smallvec::SmallVec::new();
        for _ in 0..self.waiting.len() {
            let Some((to, parcel)) = self.waiting.pop_front() else { break };
            if full.contains(&to) {
                self.waiting.push_back((to, parcel));
                continue;
            }
            match inboxes[to].push(parcel) {
                Ok(()) => sent = true,
                Err(parcel) => {
                    full.push(to);
                    self.waiting.push_back((to, parcel));
                }
            }
        }
        sent
    }
}

/// Why a call into a reactor gave no value.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum CallError {
    #[error("the reactor did not answer within {0:?}")]
    Deadline(Duration),
    #[error("the node is stopping")]
    Stopped,
    #[error("the reactor gave no answer: the call failed there, its log says why")]
    Unanswered,
    #[error("the reactor's message queue stayed full for {0:?}")]
    Full(Duration),
}

/// Where a reactor puts the answer to a control-thread call, now or later. Dropping it unanswered ends the call.
pub struct Reply<T>(pub(super) mpsc::SyncSender<T>);

impl<T> Reply<T> {
    /// Answers. A caller that gave up at its deadline is not told.
    pub fn send(self, value: T) {
        let _ = self.0.try_send(value);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_queue_keeps_parcels_in_order() {
        let inboxes = [Inbox::new().expect("eventfd")];
        let order = Arc::new(std::sync::Mutex::new(Vec::new()));
        let mut out = Outbox::default();
        for n in 0..QUEUE_PARCELS + 10 {
            let order = order.clone();
            out.send(&inboxes, 0, parcel(move || order.lock().expect("order").push(n)));
        }
        let mut drained = 0;
        loop {
            while let Some(parcel) = inboxes[0].pop() {
                parcel.deliver();
                drained += 1;
            }
            if !out.retry(&inboxes) {
                break;
            }
        }
        assert_eq!(drained, QUEUE_PARCELS + 10);
        assert!(order.lock().expect("order").is_sorted());
    }
}
