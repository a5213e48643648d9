//! Identify Namespace in its variants: CNS 00h (NVM 4.1.5.1), 03h (Base 5.17.2.3), 05h (NVM 4.1.5.3),
//! 08h (Base 5.17.2.8).

use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use super::assert_layout;
use super::identify::{CSI_NVM, IDENTIFY_LEN};

#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct IdentifyNamespace {
    /// Size, capacity, use: in blocks.
    pub nsze: U64,
    pub ncap: U64,
    pub nuse: U64,
    /// See `NSFEAT_*`.
    pub nsfeat: u8,
    /// Number of LBA formats, 0's based.
    pub nlbaf: u8,
    pub flbas: u8,
    pub mc: u8,
    pub dpc: u8,
    pub dps: u8,
    /// Bit 0: shared by several controllers.
    pub nmic: u8,
    pub rescap: u8,
    pub fpi: u8,
    /// See `DLFEAT_*`.
    pub dlfeat: u8,
    pub nawun: U16,
    pub nawupf: U16,
    /// Atomic compare and write unit, 0's based blocks.
    pub nacwu: U16,
    pub nabsn: U16,
    pub nabo: U16,
    pub nabspf: U16,
    pub noiob: U16,
    pub nvmcap: [u8; 16],
    /// Preferred write granularity and alignment, deallocate granularity and alignment, optimal write size:
    /// 0's based blocks.
    pub npwg: U16,
    pub npwa: U16,
    pub npdg: U16,
    pub npda: U16,
    pub nows: U16,
    /// Copy: greatest single source range, greatest total (blocks), greatest number of ranges (0's based).
    pub mssrl: U16,
    pub mcl: U32,
    pub msrc: u8,
    pub reserved81: [u8; 11],
    pub anagrpid: U32,
    pub reserved96: [u8; 3],
    /// Bit 0: write protected.
    pub nsattr: u8,
    pub nvmsetid: U16,
    pub endgid: U16,
    /// Big endian, as all its kind.
    pub nguid: [u8; 16],
    pub eui64: [u8; 8],
    pub lbaf: [LbaFormat; 64],
    pub vendor: [u8; 3712],
}
assert_layout!(
    IdentifyNamespace, IDENTIFY_LEN,
    nsfeat @ 24, nmic @ 30, rescap @ 31, dlfeat @ 33, nacwu @ 38, noiob @ 46, npwg @ 64, mssrl @ 74, msrc @ 80,
    anagrpid @ 92, nsattr @ 99, nguid @ 104, eui64 @ 120, lbaf @ 128, vendor @ 384,
);

/// LBA format (NVM 4.1.5.1, figure 98).
#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct LbaFormat {
    /// Metadata bytes per block.
    pub ms: U16,
    /// log2 of the block size.
    pub lbads: u8,
    pub rp: u8,
}
assert_layout!(LbaFormat, 4);

/// NPWG, NPWA, NPDG, NPDA and NOWS are valid.
pub const NSFEAT_OPTPERF: u8 = 1 << 4;
/// Deallocation is worth while: the namespace is thin provisioned.
pub const NSFEAT_THIN: u8 = 1 << 0;
/// NGUID and EUI64 are never reused.
pub const NSFEAT_GUID_NEVER_REUSED: u8 = 1 << 3;
pub const NMIC_SHARED: u8 = 1;
/// Deallocated blocks read as zeroes.
pub const DLFEAT_READ_ZEROES: u8 = 1;
/// Write Zeroes supports the deallocate bit.
pub const DLFEAT_WRITE_ZEROES_DEALLOCATE: u8 = 1 << 3;

impl IdentifyNamespace {
    /// Block size in bytes of the current format, or `None` when the fields make no sense.
    pub fn block_size(&self) -> Option<u32> {
        let index = usize::from(self.flbas & 0xf) | usize::from(self.flbas >> 5 & 3) << 4;
        let format = self.lbaf.get(index)?;
        if (9..=16).contains(&format.lbads) { Some(1 << format.lbads) } else { None }
    }
}

/// CNS 08h: what every command set shares.
#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct IndependentNamespace {
    /// Bit 3: UID reuse; bit 4: rotational; bit 5: no volatile write cache.
    pub nsfeat: u8,
    pub nmic: u8,
    pub rescap: u8,
    pub fpi: u8,
    pub anagrpid: U32,
    pub nsattr: u8,
    pub reserved9: u8,
    pub nvmsetid: U16,
    pub endgid: U16,
    /// Bit 0: ready.
    pub nstat: u8,
    pub kpios: u8,
    pub maxkt: U16,
    pub reserved18: [u8; 2],
    pub rgrpid: U32,
    pub reserved24: [u8; 4072],
}
assert_layout!(IndependentNamespace, IDENTIFY_LEN, anagrpid @ 4, nvmsetid @ 10, nstat @ 14, maxkt @ 16, rgrpid @ 20);
pub const NSTAT_READY: u8 = 1;

/// Namespace identification descriptors, CNS 03h.
pub mod descriptor {
    pub const EUI64: u8 = 1;
    pub const NGUID: u8 = 2;
    pub const UUID: u8 = 3;
    pub const CSI: u8 = 4;
}

/// Identifiers of a namespace, as CNS 03h carries them. All zero means "not set".
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct NamespaceIds {
    pub eui64: [u8; 8],
    pub nguid: [u8; 16],
    pub uuid: [u8; 16],
}

impl NamespaceIds {
    /// Writes the descriptor list: the identifiers that are set, then the command set; the rest is zero, which ends
    /// the list.
    pub fn write_descriptors(&self, out: &mut [u8; IDENTIFY_LEN]) {
        out.fill(0);
        let mut at = 0;
        let mut put = |kind: u8, id: &[u8]| {
            out[at] = kind;
            out[at + 1] = id.len() as u8;
            out[at + 4..at + 4 + id.len()].copy_from_slice(id);
            at += 4 + id.len();
        };
        if self.eui64 != [0; 8] {
            put(descriptor::EUI64, &self.eui64);
        }
        if self.nguid != [0; 16] {
            put(descriptor::NGUID, &self.nguid);
        }
        if self.uuid != [0; 16] {
            put(descriptor::UUID, &self.uuid);
        }
        put(descriptor::CSI, &[CSI_NVM]);
    }

    /// Reads a descriptor list; unknown kinds and wrong lengths are passed over, a cut-off one ends the list.
    pub fn parse(list: &[u8]) -> NamespaceIds {
        let mut ids = NamespaceIds::default();
        let mut rest = list;
        while let [kind, len, _, _, tail @ ..] = rest {
            let len = usize::from(*len);
            if *kind == 0 || len == 0 || len > tail.len() {
                break;
            }
            let (id, next) = tail.split_at(len);
            match *kind {
                descriptor::EUI64 => ids.eui64 = id.try_into().unwrap_or(ids.eui64),
                descriptor::NGUID => ids.nguid = id.try_into().unwrap_or(ids.nguid),
                descriptor::UUID => ids.uuid = id.try_into().unwrap_or(ids.uuid),
                _ => {}
            }
            rest = next;
        }
        ids
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn identifiers_survive_the_descriptor_list() {
        let ids = NamespaceIds { eui64: [1; 8], nguid: [2; 16], uuid: [3; 16] };
        let mut list = [0xff; IDENTIFY_LEN];
        ids.write_descriptors(&mut list);
        assert_eq!(NamespaceIds::parse(&list), ids);
        let none = NamespaceIds::default();
        none.write_descriptors(&mut list);
        assert_eq!(NamespaceIds::parse(&list), none);
        assert_eq!(&list[..6], &[descriptor::CSI, 1, 0, 0, CSI_NVM, 0]);
    }

    proptest! {
        #[test]
        fn any_descriptor_list_is_read_without_panic(list in proptest::collection::vec(any::<u8>(), 0..300)) {
            NamespaceIds::parse(&list);
        }
    }
}
