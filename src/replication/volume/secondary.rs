//! Carries out what the secondary's machine wants, before and after a failover.

use std::rc::Rc;

use super::maps::Maps;
use super::owner::{Job, Machine, Owner, Starved};
use super::payload::Blocks;
use crate::bdev::Op;
use crate::env::SgList;
use crate::replication::core::{Range, SecondaryOutput, SecondaryStripes};
use crate::replication::journal::Request;

pub(super) type Out = SecondaryOutput<Blocks>;

impl Owner {
    /// Gives the machine an input and carries out its outputs, in order.
    pub(super) fn secondary(
        self: &Rc<Owner>,
        f: impl FnOnce(&mut SecondaryStripes<Blocks, Maps>, &mut Vec<SecondaryOutput<Blocks>>),
    ) {
        let mut out = self.secondary_out.take();
        if let Machine::Secondary(machine) = &mut *self.machine.borrow_mut() {
            f(machine, &mut out);
        }
        for output in out.drain(..) {
            self.secondary_output(output);
        }
        // Nothing above calls a machine again, so nobody else needed the vector meanwhile.
        self.secondary_out.replace(out);
    }

    fn secondary_output(self: &Rc<Owner>, output: SecondaryOutput<Blocks>) {
        let Some(shard) = self.shard.upgrade() else { return };
        match output {
            SecondaryOutput::PreserveRead { op, range } => self.read_for(Starved::Preserve(op, range)),
            SecondaryOutput::Journal { op, epoch, range, content, lost_through } => {
                let Some(journal) = shard.journal() else { return };
                journal.request(Request {
                    token: (self.index, op),
                    volume: self.index,
                    epoch,
                    offset: range.lba * u64::from(self.block_bytes),
                    content: content.map(Blocks::into_bufs).unwrap_or_default(),
                    lost_through,
                });
            }
            SecondaryOutput::BaseRead { op, range } => self.read_for(Starved::Base(op, range)),
            SecondaryOutput::VerifyRead { op, range } => self.read_for(Starved::Verify(op, range)),
            SecondaryOutput::ViewRead { op, range, into } => {
                self.disk(Op::Read, range, into.into_bufs(), false, Job::View(op, range));
            }
            SecondaryOutput::SubmitWrite { op, range, data, fua } => self.disk_write(op, range, data, fua),
            SecondaryOutput::SubmitFlush { op } => {
                self.disk(Op::Flush, Range::new(0, 0), SgList::new(), false, Job::Flush(op));
            }
            SecondaryOutput::Answer { lane, sequence, answer } => {
                shard.lanes.answer(&shard, lane, self.index, sequence, answer);
            }
            SecondaryOutput::ReadData { lane, sequence, range, content } => {
                shard.lanes.read_data(self, lane, sequence, range, content);
            }
            SecondaryOutput::Reply { token, result } => self.reply(token, result),
            SecondaryOutput::Prepared { epoch, result } => shard.machine_prepared(epoch, result),
            SecondaryOutput::Event(event) => shard.event(self.index, event),
        }
    }
}
