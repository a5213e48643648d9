//! A plain NVMe/TCP initiator for the tests: blocking, one command at a time on each queue, written from the
//! specification alone, so that a mistake which host and target of the project share still shows.

use std::io::{self, Read, Write};
use std::net::TcpStream;
use std::time::Duration;

pub const HOST_NQN: &str = "nqn.2014-08.org.nvmexpress:uuid:6c6f636b-7374-6570-7465-737473000001";
pub const DISCOVERY_NQN: &str = "nqn.2014-08.org.nvmexpress.discovery";
const HOST_ID: [u8; 16] = *b"lockstep-tests-1";

/// Longer than any delay the tests inject; an answer that takes longer is a hang.
const ANSWER_LIMIT: Duration = Duration::from_secs(30);
/// One C2HData or R2T round moves at most this much here: within every target's MDTS.
pub const TRANSFER_MAX: usize = 128 * 1024;

/// PDU types (NVMe/TCP transport specification, section 3.6).
pub mod pdu {
    pub const IC_REQ: u8 = 0x00;
    pub const IC_RESP: u8 = 0x01;
    pub const H2C_TERM: u8 = 0x02;
    pub const C2H_TERM: u8 = 0x03;
    pub const CAPSULE_CMD: u8 = 0x04;
    pub const CAPSULE_RESP: u8 = 0x05;
    pub const H2C_DATA: u8 = 0x06;
    pub const C2H_DATA: u8 = 0x07;
    pub const R2T: u8 = 0x09;
    pub const HDGST: u8 = 1;
    pub const DDGST: u8 = 2;
    pub const LAST: u8 = 4;
    pub const SUCCESS: u8 = 8;
}

/// What a command ended with: status code type and status code, and dword 0 of the completion.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Completion {
    pub status_type: u8,
    pub status_code: u8,
    pub result: u32,
}

impl Completion {
    pub fn is_success(&self) -> bool {
        self.status_type == 0 && self.status_code == 0
    }
}

/// One PDU as it came, digests already checked and taken off.
pub struct Pdu {
    pub kind: u8,
    pub flags: u8,
    pub header: Vec<u8>,
    pub data: Vec<u8>,
}

/// One NVMe/TCP connection after its ICReq/ICResp exchange.
pub struct Queue {
    stream: TcpStream,
    header_digest: bool,
    data_digest: bool,
    next_id: u16,
    pub controller_id: u16,
}

fn u16_at(bytes: &[u8], at: usize) -> u16 {
    u16::from_le_bytes([bytes[at], bytes[at + 1]])
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}

/// An ICReq: PFV 0, HPDA 0, the digests wanted, one R2T at a time.
pub fn ic_request(header_digest: bool, data_digest: bool) -> Vec<u8> {
    let mut bytes = vec![0u8; 128];
    bytes[0] = pdu::IC_REQ;
    bytes[2] = 128;
    bytes[4..8].copy_from_slice(&128u32.to_le_bytes());
    bytes[11] = u8::from(header_digest) | u8::from(data_digest) << 1;
    bytes
}

/// A submission queue entry with transport SGL for `length` bytes that the target asks for or sends.
pub fn command(opcode: u8, namespace: u32, dwords: [u32; 6], length: usize) -> [u8; 64] {
    let mut sqe = [0u8; 64];
    sqe[0] = opcode;
    sqe[1] = 0x40; // PSDT: SGL
    sqe[4..8].copy_from_slice(&namespace.to_le_bytes());
    sqe[32..36].copy_from_slice(&(length as u32).to_le_bytes());
    sqe[39] = 0x5a; // transport SGL data block
    for (i, dword) in dwords.iter().enumerate() {
        sqe[40 + i * 4..44 + i * 4].copy_from_slice(&dword.to_le_bytes());
    }
    sqe
}

impl Queue {
    pub fn open(stream: TcpStream, header_digest: bool, data_digest: bool) -> io::Result<Queue> {
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(ANSWER_LIMIT))?;
        stream.set_write_timeout(Some(ANSWER_LIMIT))?;
        let mut queue =
            Queue { stream, header_digest: false, data_digest: false, next_id: 0, controller_id: 0 };
        queue.stream.write_all(&ic_request(header_digest, data_digest))?;
        let answer = queue.receive()?;
        assert_eq!(answer.kind, pdu::IC_RESP, "the first answer is an ICResp");
        assert_eq!(answer.header.len(), 128, "an ICResp has 128 bytes");
        let digests = answer.header[11];
        assert_eq!(digests & 1 == 1, header_digest, "the header digest asked for is the one granted");
        assert_eq!(digests & 2 == 2, data_digest, "the data digest asked for is the one granted");
        assert!(u32_at(&answer.header, 12) >= 4096, "MAXH2CDATA is 4096 or more");
        queue.header_digest = header_digest;
        queue.data_digest = data_digest;
        Ok(queue)
    }

    pub fn stream(&mut self) -> &mut TcpStream {
        &mut self.stream
    }

    /// Sends one PDU: `header` with PDO and PLEN filled in here, and the digests.
    pub fn send(&mut self, mut header: Vec<u8>, data: &[u8]) -> io::Result<()> {
        let length = header.len() + 4 * usize::from(self.header_digest);
        header[2] = header.len() as u8;
        if self.header_digest {
            header[1] |= pdu::HDGST;
        }
        let mut total = length;
        if !data.is_empty() {
            header[3] = length as u8;
            total += data.len() + 4 * usize::from(self.data_digest);
            if self.data_digest {
                header[1] |= pdu::DDGST;
            }
        }
        header[4..8].copy_from_slice(&(total as u32).to_le_bytes());
        let mut bytes = header;
        if self.header_digest {
            let digest = crc32c::crc32c(&bytes);
            bytes.extend_from_slice(&digest.to_le_bytes());
        }
        bytes.extend_from_slice(data);
        if !data.is_empty() && self.data_digest {
            bytes.extend_from_slice(&crc32c::crc32c(data).to_le_bytes());
        }
        self.stream.write_all(&bytes)
    }

    pub fn receive(&mut self) -> io::Result<Pdu> {
        let mut common = [0u8; 8];
        self.stream.read_exact(&mut common)?;
        let (kind, flags, header_length, data_offset) =
            (common[0], common[1], usize::from(common[2]), usize::from(common[3]));
        let total = u32_at(&common, 4) as usize;
        assert!(
            header_length >= 8 && total >= header_length && total < 4 << 20,
            "a PDU of sane lengths: {common:?}"
        );
        let mut rest = vec![0u8; total - 8];
        self.stream.read_exact(&mut rest)?;
        let bytes = [&common[..], &rest].concat();
        let header = bytes[..header_length].to_vec();
        if flags & pdu::HDGST != 0 && self.header_digest {
            let digest = u32_at(&bytes, header_length);
            assert_eq!(crc32c::crc32c(&header), digest, "the header digest of a PDU of type {kind:#x}");
        }
        let mut data = Vec::new();
        if kind == pdu::C2H_DATA {
            let end = if flags & pdu::DDGST != 0 && self.data_digest { total - 4 } else { total };
            data = bytes[data_offset..end].to_vec();
            if end < total {
                assert_eq!(crc32c::crc32c(&data), u32_at(&bytes, end), "the data digest of a C2HData");
            }
        }
        Ok(Pdu { kind, flags, header, data })
    }

    /// Runs one command to its end. `out` goes to the controller (in the capsule when `in_capsule`), what comes back is
    /// returned. An `io::Error` means that the connection is gone.
    pub fn run(
        &mut self,
        mut sqe: [u8; 64],
        out: &[u8],
        in_capsule: bool,
    ) -> io::Result<(Completion, Vec<u8>)> {
        let id = self.submit(&mut sqe, out, in_capsule)?;
        let expected = if out.is_empty() { u32_at(&sqe, 32) as usize } else { 0 };
        self.complete(id, out, expected)
    }

    /// Sends a command and returns its identifier.
    pub fn submit(&mut self, sqe: &mut [u8; 64], out: &[u8], in_capsule: bool) -> io::Result<u16> {
        let id = self.next_id;
        self.next_id = self.next_id.wrapping_add(1) & 0x7fff;
        sqe[2..4].copy_from_slice(&id.to_le_bytes());
        if in_capsule && !out.is_empty() {
            sqe[39] = 0x01; // data block at an offset in the capsule
        }
        let mut header = vec![pdu::CAPSULE_CMD, 0, 0, 0, 0, 0, 0, 0];
        header.extend_from_slice(&sqe[..]);
        self.send(header, if in_capsule { out } else { &[] })?;
        Ok(id)
    }

    /// Serves R2Ts and collects data until command `id` is complete.
    pub fn complete(&mut self, id: u16, out: &[u8], expected: usize) -> io::Result<(Completion, Vec<u8>)> {
        let mut data = vec![0u8; expected];
        loop {
            let answer = self.receive()?;
            match answer.kind {
                pdu::C2H_DATA => {
                    assert_eq!(u16_at(&answer.header, 8), id, "data of the command under way");
                    let offset = u32_at(&answer.header, 12) as usize;
                    data[offset..offset + answer.data.len()].copy_from_slice(&answer.data);
                    if answer.flags & pdu::SUCCESS != 0 {
                        return Ok((Completion { status_type: 0, status_code: 0, result: 0 }, data));
                    }
                }
                pdu::R2T => {
                    let tag = u16_at(&answer.header, 10);
                    let (offset, length) =
                        (u32_at(&answer.header, 12) as usize, u32_at(&answer.header, 16) as usize);
                    let mut header = vec![pdu::H2C_DATA, pdu::LAST, 0, 0, 0, 0, 0, 0];
                    header.extend_from_slice(&id.to_le_bytes());
                    header.extend_from_slice(&tag.to_le_bytes());
                    header.extend_from_slice(&(offset as u32).to_le_bytes());
                    header.extend_from_slice(&(length as u32).to_le_bytes());
                    header.extend_from_slice(&[0; 4]);
                    self.send(header, &out[offset..offset + length])?;
                }
                pdu::CAPSULE_RESP => {
                    let cqe = &answer.header[8..24];
                    if u16_at(cqe, 12) != id {
                        continue; // an asynchronous event
                    }
                    let status = u16_at(cqe, 14) >> 1;
                    let completion = Completion {
                        status_type: (status >> 8 & 7) as u8,
                        status_code: (status & 0xff) as u8,
                        result: u32_at(cqe, 0),
                    };
                    return Ok((completion, data));
                }
                pdu::C2H_TERM => {
                    return Err(io::Error::other(format!("C2HTermReq, FES {}", u16_at(&answer.header, 8))));
                }
                other => panic!("an unexpected PDU of type {other:#x}"),
            }
        }
    }

    /// Fabrics Connect.
    pub fn connect(&mut self, queue_id: u16, controller_id: u16, nqn: &str) -> io::Result<Completion> {
        let mut sqe = command(0x7f, 0, [queue_id_dword(queue_id), 31, 0, 0, 0, 0], 1024);
        sqe[4] = 0x01; // FCTYPE Connect
        let mut data = vec![0u8; 1024];
        data[..16].copy_from_slice(&HOST_ID);
        data[16..18].copy_from_slice(&controller_id.to_le_bytes());
        data[256..256 + nqn.len()].copy_from_slice(nqn.as_bytes());
        data[512..512 + HOST_NQN.len()].copy_from_slice(HOST_NQN.as_bytes());
        let (completion, _) = self.run(sqe, &data, true)?;
        if completion.is_success() {
            self.controller_id = (completion.result & 0xffff) as u16;
        }
        Ok(completion)
    }

    pub fn property_get(&mut self, offset: u32, eight_bytes: bool) -> io::Result<Completion> {
        let mut sqe = command(0x7f, 0, [u32::from(eight_bytes), offset, 0, 0, 0, 0], 0);
        sqe[4] = 0x04;
        self.run(sqe, &[], false).map(|(completion, _)| completion)
    }

    pub fn property_set(&mut self, offset: u32, value: u32) -> io::Result<Completion> {
        let mut sqe = command(0x7f, 0, [0, offset, value, 0, 0, 0], 0);
        sqe[4] = 0x00;
        self.run(sqe, &[], false).map(|(completion, _)| completion)
    }

    pub fn identify(&mut self, cns: u8, namespace: u32) -> io::Result<(Completion, Vec<u8>)> {
        self.run(command(0x06, namespace, [u32::from(cns), 0, 0, 0, 0, 0], 4096), &[], false)
    }

    pub fn get_log(&mut self, log: u8, namespace: u32, length: usize) -> io::Result<(Completion, Vec<u8>)> {
        let dwords = (length / 4 - 1) as u32;
        let dword10 = u32::from(log) | (dwords & 0xffff) << 16;
        self.run(command(0x02, namespace, [dword10, dwords >> 16, 0, 0, 0, 0], length), &[], false)
    }
}

/// Connect's dword 10: record format 0 and the queue id.
fn queue_id_dword(queue_id: u16) -> u32 {
    u32::from(queue_id) << 16
}

#[derive(Clone, Copy, Default)]
pub struct Digests {
    pub header: bool,
    pub data: bool,
}

/// An enabled controller with one I/O queue and the namespace's block size known.
pub struct Host {
    pub admin: Queue,
    pub io: Queue,
    pub namespace: u32,
    pub block_size: usize,
    pub blocks: u64,
}

impl Host {
    pub fn connect(port: u16, nqn: &str) -> Host {
        Host::connect_to("127.0.0.1", port, nqn)
    }

    pub fn connect_to(address: &str, port: u16, nqn: &str) -> Host {
        Host::try_connect(|| TcpStream::connect((address, port)), nqn, Digests::default())
            .unwrap_or_else(|e| panic!("connecting to {nqn} at {address}:{port}: {e}"))
    }

    /// `dial` opens one TCP connection, for other addresses and namespaces.
    pub fn try_connect(
        dial: impl Fn() -> io::Result<TcpStream>,
        nqn: &str,
        digests: Digests,
    ) -> io::Result<Host> {
        let refused = |what: &str, c: Completion| io::Error::other(format!("{what} refused: {c:?}"));
        let mut admin = Queue::open(dial()?, digests.header, digests.data)?;
        let completion = admin.connect(0, 0xffff, nqn)?;
        if !completion.is_success() {
            return Err(refused("Connect", completion));
        }
        admin.property_set(0x14, 0x0046_0001)?; // CC: enabled, IOSQES 6, IOCQES 4
        let status = admin.property_get(0x1c, false)?;
        assert_eq!(status.result & 1, 1, "CSTS.RDY after CC.EN");
        let (completion, list) = admin.identify(0x02, 0)?;
        if !completion.is_success() {
            return Err(refused("Identify of active namespaces", completion));
        }
        let namespace = u32_at(&list, 0);
        let (_, about) = admin.identify(0x00, namespace)?;
        let blocks = u64::from_le_bytes(about[0..8].try_into().expect("eight bytes"));
        let format = usize::from(about[26] & 0xf);
        let block_size = 1usize << about[128 + format * 4 + 2];
        let mut io = Queue::open(dial()?, digests.header, digests.data)?;
        let completion = io.connect(1, admin.controller_id, nqn)?;
        if !completion.is_success() {
            return Err(refused("Connect of the I/O queue", completion));
        }
        Ok(Host { admin, io, namespace, block_size, blocks })
    }

    fn io_command(&self, opcode: u8, offset: u64, length: usize, transfer: usize) -> [u8; 64] {
        let lba = offset / self.block_size as u64;
        let count = (length / self.block_size - 1) as u32;
        command(opcode, self.namespace, [lba as u32, (lba >> 32) as u32, count, 0, 0, 0], transfer)
    }

    /// Reads `length` bytes at `offset`, in pieces of [`TRANSFER_MAX`].
    pub fn try_read(&mut self, offset: u64, length: usize) -> io::Result<Result<Vec<u8>, Completion>> {
        let mut bytes = Vec::with_capacity(length);
        while bytes.len() < length {
            let piece = (length - bytes.len()).min(TRANSFER_MAX);
            let sqe = self.io_command(0x02, offset + bytes.len() as u64, piece, piece);
            let (completion, data) = self.io.run(sqe, &[], false)?;
            if !completion.is_success() {
                return Ok(Err(completion));
            }
            bytes.extend_from_slice(&data);
        }
        Ok(Ok(bytes))
    }

    pub fn read(&mut self, offset: u64, length: usize) -> Vec<u8> {
        self.try_read(offset, length)
            .unwrap_or_else(|e| panic!("reading at {offset}: {e}"))
            .unwrap_or_else(|c| panic!("reading at {offset}: {c:?}"))
    }

    /// The whole namespace.
    pub fn read_all(&mut self) -> Vec<u8> {
        self.read(0, self.blocks as usize * self.block_size)
    }

    /// Writes at `offset`: pieces up to 4 KiB inside the capsule, larger ones by R2T.
    pub fn try_write(&mut self, offset: u64, bytes: &[u8]) -> io::Result<Completion> {
        let mut done = 0;
        let mut last = Completion { status_type: 0, status_code: 0, result: 0 };
        for piece in bytes.chunks(TRANSFER_MAX) {
            let sqe = self.io_command(0x01, offset + done, piece.len(), piece.len());
            (last, _) = self.io.run(sqe, piece, piece.len() <= 4096)?;
            if !last.is_success() {
                return Ok(last);
            }
            done += piece.len() as u64;
        }
        Ok(last)
    }

    pub fn write(&mut self, offset: u64, bytes: &[u8]) {
        let completion = self.try_write(offset, bytes).unwrap_or_else(|e| panic!("writing at {offset}: {e}"));
        assert!(completion.is_success(), "writing at {offset}: {completion:?}");
    }

    pub fn flush(&mut self) -> io::Result<Completion> {
        self.io.run(command(0x00, self.namespace, [0; 6], 0), &[], false).map(|(c, _)| c)
    }

    pub fn write_zeroes(&mut self, offset: u64, length: usize) -> io::Result<Completion> {
        self.io.run(self.io_command(0x08, offset, length, 0), &[], false).map(|(c, _)| c)
    }

    pub fn compare(&mut self, offset: u64, bytes: &[u8]) -> io::Result<Completion> {
        let sqe = self.io_command(0x05, offset, bytes.len(), bytes.len());
        self.io.run(sqe, bytes, bytes.len() <= 4096).map(|(c, _)| c)
    }
}
