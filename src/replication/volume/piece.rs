//! The part of a host's command that lies in the stripes of one reactor, on its way there and back.
//!
//! A piece is a box that belongs to the channel it came from: it travels as a message when the owner is another
//! reactor, comes back the same way, and is then used again.

use std::sync::Arc;

use super::device::{self, VolumeShared};
use super::owner;
use crate::bdev::{IoError, Op};
use crate::env::SgList;
use crate::reactor::{self, Parcel};
use crate::replication::Epoch;

pub(super) struct Piece {
    pub volume: Arc<VolumeShared>,
    /// Names the channel that it came from, on its reactor.
    pub channel: u64,
    /// A read of the volume as it was at the end of this epoch.
    pub at: Option<Epoch>,
    pub op: Op,
    pub lba: u64,
    pub blocks: u32,
    pub fua: bool,
    pub data: SgList,
    pub compare: SgList,
    /// The reactor it came from, and what it calls the command.
    pub home: usize,
    pub parent: u32,
    /// When the owner took it, if that is of interest; 0: it is not.
    pub since_ns: u64,
    /// `None` on the way to the owner.
    pub result: Option<Result<(), IoError>>,
}

impl Piece {
    pub fn new(volume: Arc<VolumeShared>, channel: u64, at: Option<Epoch>, home: usize) -> Box<Piece> {
        Box::new(Piece {
            volume,
            channel,
            at,
            op: Op::Flush,
            lba: 0,
            blocks: 0,
            fua: false,
            data: SgList::new(),
            compare: SgList::new(),
            home,
            parent: 0,
            since_ns: 0,
            result: None,
        })
    }

    /// Hands the piece to the reactor that owns its stripe.
    pub fn go_to(self: Box<Piece>, owner: usize) {
        if owner == self.home { self.deliver() } else { reactor::send(owner, self) }
    }

    /// Ends the piece: it goes back to where it came from.
    pub fn end(mut self: Box<Piece>, result: Result<(), IoError>) {
        self.result = Some(result);
        let home = self.home;
        if home == reactor::core_index() { self.deliver() } else { reactor::send(home, self) }
    }
}

impl Parcel for Piece {
    fn deliver(self: Box<Piece>) {
        if self.result.is_some() { device::piece_done(self) } else { owner::take(self) }
    }
}
