//! What a controller told of itself and its namespaces.

use zerocopy::FromBytes;

use crate::bdev::Access;
use crate::env::Buf;
use crate::nvme::get_padded;
use crate::nvme::identify::{
    FUSES_COMPARE_AND_WRITE, IdentifyController, IdentifyControllerNvm, NamespaceList, ONCS_COMPARE,
    ONCS_DSM, ONCS_WRITE_ZEROES, VWC_PRESENT,
};
use crate::nvme::identify_ns::{
    DLFEAT_READ_ZEROES, DLFEAT_WRITE_ZEROES_DEALLOCATE, IdentifyNamespace, NamespaceIds,
};
use crate::nvme::log::{AnaGroup, AnaHeader, AnaState};

/// Blocks of one command: its field has 16 bits.
pub const MAX_COMMAND_BLOCKS: u64 = 1 << 16;
/// A capsule's fixed part, bytes: what IOCCSZ counts before in-capsule data.
const CAPSULE_BYTES: u32 = 64;

/// What a controller can do.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ControllerFacts {
    pub cntlid: u16,
    pub model: String,
    pub serial: String,
    pub firmware: String,
    pub version: u32,
    /// Most commands in flight of a queue.
    pub max_depth: u16,
    pub in_capsule_bytes: u32,
    /// Most bytes of one command's data; `u64::MAX` without limit.
    pub max_transfer_bytes: u64,
    pub max_zeroes_bytes: u64,
    pub compare: bool,
    pub compare_and_write: bool,
    pub write_zeroes: bool,
    pub deallocate: bool,
    pub write_cache: bool,
    pub ana: bool,
    pub keep_alive: bool,
}

/// `2^(12 + exponent)` bytes, 0 = no limit. Our pages are 4 KiB (CC.MPS 0).
fn limit(exponent: u8) -> u64 {
    match exponent {
        0 => u64::MAX,
        e => 1u64.checked_shl(12 + u32::from(e)).unwrap_or(u64::MAX),
    }
}

impl ControllerFacts {
    pub(super) fn read_controller(&mut self, buf: &Buf) {
        buf.with(|bytes| {
            let Ok((id, _)) = IdentifyController::ref_from_prefix(bytes) else { return };
            let oncs = id.oncs.get();
            self.model = get_padded(&id.mn).to_string();
            self.serial = get_padded(&id.sn).to_string();
            self.firmware = get_padded(&id.fr).to_string();
            let capsule = id.ioccsz.get().saturating_mul(16).saturating_sub(CAPSULE_BYTES);
            self.in_capsule_bytes = if id.icdoff.get() == 0 { capsule } else { 0 };
            self.max_transfer_bytes = limit(id.mdts);
            self.max_zeroes_bytes = self.max_transfer_bytes;
            self.compare = oncs & ONCS_COMPARE != 0;
            self.compare_and_write = self.compare && id.fuses.get() & FUSES_COMPARE_AND_WRITE != 0;
            self.write_zeroes = oncs & ONCS_WRITE_ZEROES != 0;
            self.deallocate = oncs & ONCS_DSM != 0;
            self.write_cache = id.vwc & VWC_PRESENT != 0;
            self.ana = id.cmic & crate::nvme::identify::CMIC_ANA != 0;
            self.keep_alive = id.kas.get() != 0;
        });
    }

    pub(super) fn read_controller_nvm(&mut self, buf: &Buf) {
        buf.with(|bytes| {
            if let Ok((id, _)) = IdentifyControllerNvm::ref_from_prefix(bytes) {
                self.max_zeroes_bytes = limit(id.wzsl);
            }
        });
    }
}

/// A namespace.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NamespaceFacts {
    pub nsid: u32,
    pub block_size: u32,
    pub num_blocks: u64,
    pub uuid: Option<uuid::Uuid>,
    pub ana_group: u32,
    pub access: Access,
    /// Deallocated blocks read as zeroes.
    pub reads_zeroes: bool,
    /// Write Zeroes may deallocate.
    pub zeroes_deallocate: bool,
}

impl NamespaceFacts {
    /// `None` for a namespace that cannot be a bdev: inactive, or with blocks of another size than 512 or 4096, or
    /// with metadata.
    pub(super) fn read(nsid: u32, buf: &Buf) -> Option<NamespaceFacts> {
        buf.with(|bytes| {
            let (id, _) = IdentifyNamespace::ref_from_prefix(bytes).ok()?;
            let block_size = id.block_size().filter(|b| matches!(b, 512 | 4096))?;
            let format = id.lbaf.get(usize::from(id.flbas & 0xf))?;
            if format.ms.get() != 0 {
                return None;
            }
            let uuid = uuid::Uuid::from_bytes(id.nguid);
            Some(NamespaceFacts {
                nsid,
                block_size,
                num_blocks: Some(id.nsze.get()).filter(|&n| n > 0)?,
                uuid: Some(uuid).filter(|u| !u.is_nil()),
                ana_group: id.anagrpid.get(),
                access: Access::Optimized,
                reads_zeroes: id.dlfeat & 7 == DLFEAT_READ_ZEROES,
                zeroes_deallocate: id.dlfeat & DLFEAT_WRITE_ZEROES_DEALLOCATE != 0,
            })
        })
    }
}

/// The UUID of a descriptor list.
pub(super) fn read_uuid(buf: &Buf) -> Option<uuid::Uuid> {
    let ids = buf.with(NamespaceIds::parse);
    Some(uuid::Uuid::from_bytes(ids.uuid)).filter(|u| !u.is_nil())
}

/// The active namespaces of a list.
pub(super) fn read_namespace_list(buf: &Buf) -> Vec<u32> {
    buf.with(|bytes| match NamespaceList::ref_from_prefix(bytes) {
        Ok((list, _)) => list.nsids.iter().map(|n| n.get()).take_while(|&n| n != 0).collect(),
        Err(_) => Vec::new(),
    })
}

/// The state of each ANA group of a log; what is cut off is left out.
pub(super) fn read_ana_log(buf: &Buf) -> Vec<(u32, Access)> {
    buf.with(|bytes| {
        let mut groups = Vec::new();
        let Ok((header, mut rest)) = AnaHeader::ref_from_prefix(bytes) else { return groups };
        for _ in 0..header.num_groups.get() {
            let Ok((group, after)) = AnaGroup::ref_from_prefix(rest) else { break };
            let access = match AnaState::from_wire(group.state) {
                Some(AnaState::Optimized | AnaState::NonOptimized) => Access::Optimized,
                Some(AnaState::Change) => Access::Change,
                Some(AnaState::Inaccessible | AnaState::PersistentLoss) | None => Access::Inaccessible,
            };
            groups.push((group.group_id.get(), access));
            let nsids = (group.num_nsids.get() as usize).saturating_mul(4);
            let Some(next) = after.get(nsids..) else { break };
            rest = next;
        }
        groups
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use zerocopy::IntoBytes;

    #[test]
    fn an_ana_log_is_read_group_by_group_and_a_cut_one_up_to_the_cut() {
        let header = AnaHeader { num_groups: 3.into(), ..Default::default() };
        let group = |id: u32, state: u8, nsids: u32| AnaGroup {
            group_id: id.into(),
            num_nsids: nsids.into(),
            state,
            ..Default::default()
        };
        let buf = Buf::heap(16 + 32 + 8 + 32 + 10).expect("heap");
        buf.write_at(0, header.as_bytes());
        buf.write_at(16, group(1, 1, 2).as_bytes());
        buf.write_at(56, group(2, 3, 900_000).as_bytes());
        assert_eq!(read_ana_log(&buf), [(1, Access::Optimized), (2, Access::Inaccessible)]);
    }

    #[test]
    fn transfer_limits_are_powers_of_two_and_zero_is_none() {
        assert_eq!(limit(0), u64::MAX);
        assert_eq!(limit(5), 128 << 10);
        assert_eq!(limit(255), u64::MAX);
    }
}
