//! Carries out what the primary's machine wants.

use std::rc::Rc;

use super::owner::{Job, Machine, Owner, Starved};
use super::payload::Blocks;
use crate::bdev::Op;
use crate::env::SgList;
use crate::replication::core::{PrimaryOutput, PrimaryStripes, Range};

pub(super) type Out = PrimaryOutput<Blocks>;

impl Owner {
    /// Gives the machine an input and carries out its outputs, in order.
    pub(super) fn primary(
        self: &Rc<Owner>,
        f: impl FnOnce(&mut PrimaryStripes<Blocks>, &mut Vec<PrimaryOutput<Blocks>>),
    ) {
        let mut out = self.primary_out.take();
        if let Machine::Primary(machine) = &mut *self.machine.borrow_mut() {
            f(machine, &mut out);
        }
        for output in out.drain(..) {
            self.primary_output(output);
        }
        // Nothing above calls a machine again, so nobody else needed the vector meanwhile.
        self.primary_out.replace(out);
    }

    fn primary_output(self: &Rc<Owner>, output: PrimaryOutput<Blocks>) {
        match output {
            PrimaryOutput::CompareRead { op, range, into } => {
                let bufs = into.bufs().iter().cloned().collect();
                self.disk(Op::Read, range, bufs, false, Job::CompareRead(op, into));
            }
            PrimaryOutput::HostRead { op, range, into } => {
                self.disk(Op::Read, range, into.into_bufs(), false, Job::HostRead(op));
            }
            PrimaryOutput::CopyRead { op, range } => self.read_for(Starved::Copy(op, range)),
            PrimaryOutput::VerifyRead { op, range } => self.read_for(Starved::Verify(op, range)),
            PrimaryOutput::SubmitWrite { op, range, data, fua } => self.disk_write(op, range, data, fua),
            PrimaryOutput::SubmitFlush { op } => {
                self.disk(Op::Flush, Range::new(0, 0), SgList::new(), false, Job::Flush(op));
            }
            PrimaryOutput::Send { op, lane, bytes, forward } => {
                if let Some(shard) = self.shard.upgrade() {
                    shard.lanes.forward(self, lane, op, bytes, forward);
                }
            }
            PrimaryOutput::Reply { token, result } => self.reply(token, result),
            PrimaryOutput::Event(event) => {
                if let Some(shard) = self.shard.upgrade() {
                    shard.event(self.index, event);
                }
            }
        }
    }
}
