//! What the tests of the machines share: a payload of one byte a block.

use super::types::{Data, Payload};

/// One byte stands for one block.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Bytes(pub Vec<u8>);

impl Payload for Bytes {
    fn slice(&self, from: u32, blocks: u32) -> Bytes {
        Bytes(self.0[from as usize..(from + blocks) as usize].to_vec())
    }

    fn copy_from(&mut self, at: u32, source: &Bytes, from: u32, blocks: u32) {
        let (at, from, blocks) = (at as usize, from as usize, blocks as usize);
        self.0[at..at + blocks].copy_from_slice(&source.0[from..from + blocks]);
    }

    fn zero(&mut self, at: u32, blocks: u32) {
        self.0[at as usize..(at + blocks) as usize].fill(0);
    }

    fn equals(&self, other: &Bytes) -> bool {
        self == other
    }
}

pub fn bytes(byte: u8, blocks: u32) -> Bytes {
    Bytes(vec![byte; blocks as usize])
}

pub fn filled(byte: u8, blocks: u32) -> Data<Bytes> {
    Data::Bytes(bytes(byte, blocks))
}
