//! Identify (Base 5.17): what controller and namespaces say of themselves.

use zerocopy::{FromZeros, IntoBytes};

use super::controller::{ASYNC_EVENT_LIMIT, Controller, ERROR_LOG_ENTRIES, KEEP_ALIVE_UNITS};
use super::options::TransportOptions;
use super::queue::Queue;
use super::view::{NamespaceView, SubsystemView};
use crate::bdev::Op;
use crate::nvme::identify::*;
use crate::nvme::identify_ns::*;
use crate::nvme::log::AnaState;
use crate::nvme::nqn::DISCOVERY_NQN;
use crate::nvme::{NSID_ALL, Status, feature, property, put_nul_terminated, put_padded};

/// Abort command limit, 0's based (Base recommends four).
const ABORT_LIMIT: u8 = 3;
/// ANA transition time, seconds: longer than any failover takes here.
const ANA_TRANSITION_SECONDS: u8 = 10;
/// Warning and critical temperature, kelvin, as Base recommends; there is no thermometer.
const WARNING_KELVIN: u16 = 0x157;
const CRITICAL_KELVIN: u16 = 0x175;

/// Firmware revision: the package's version.
pub fn firmware_revision() -> [u8; 8] {
    let mut field = [0; 8];
    put_padded(&mut field, env!("CARGO_PKG_VERSION"));
    field
}

/// Identify Controller.
pub fn controller(
    c: &Controller,
    subsystem: Option<&SubsystemView>,
    options: &TransportOptions,
) -> IdentifyController {
    let mut id = IdentifyController::new_zeroed();
    put_padded(&mut id.sn, subsystem.map_or("", |s| &s.serial_number));
    put_padded(&mut id.mn, subsystem.map_or("Lockstep discovery", |s| &s.model_number));
    id.fr = firmware_revision();
    id.mdts = (options.max_io_size / 4096).trailing_zeros() as u8;
    id.cntlid = c.shared.cntlid.into();
    id.ver = property::VERSION_1_4.into();
    id.aerl = ASYNC_EVENT_LIMIT as u8 - 1;
    id.lpa = LPA_EXTENDED_DATA;
    id.elpe = (ERROR_LOG_ENTRIES - 1) as u8;
    id.kas = KEEP_ALIVE_UNITS.into();
    id.maxcmd = options.max_queue_depth.into();
    id.sgls = (SGLS_SUPPORTED | SGLS_OFFSET | SGLS_TRANSPORT).into();
    id.ctratt = CTRATT_HOST_ID_128.into();
    let Some(subsystem) = subsystem else {
        id.oaes = feature::AEC_DISCOVERY.into();
        id.cntrltype = CNTRLTYPE_DISCOVERY;
        put_nul_terminated(&mut id.subnqn, DISCOVERY_NQN);
        return id;
    };
    put_nul_terminated(&mut id.subnqn, &subsystem.nqn);
    id.rab = 6;
    id.cmic = CMIC_MULTIPLE_PORTS | CMIC_MULTIPLE_CONTROLLERS;
    id.oaes = feature::AEC_NAMESPACE.into();
    id.cntrltype = CNTRLTYPE_IO;
    id.acl = ABORT_LIMIT;
    id.frmw = 1 | 1 << 1;
    id.lpa |= LPA_COMMAND_EFFECTS | LPA_SUPPORTED_PAGES;
    id.wctemp = WARNING_KELVIN.into();
    id.cctemp = CRITICAL_KELVIN.into();
    id.sqes = 0x66;
    id.cqes = 0x44;
    id.nn = subsystem.max_nsid.into();
    id.oncs = (ONCS_COMPARE | ONCS_DSM | ONCS_WRITE_ZEROES).into();
    id.fuses = FUSES_COMPARE_AND_WRITE.into();
    // Namespaces come and go; a flush to one without a cache costs little, a missing one costs data.
    id.vwc = VWC_PRESENT | VWC_FLUSH_ALL_UNSUPPORTED;
    id.ioccsz = ((64 + options.in_capsule_data_size) / 16).into();
    id.iorcsz = 1.into();
    id.msdbd = 1;
    if subsystem.ana_reporting {
        id.cmic |= CMIC_ANA;
        id.oaes = (feature::AEC_NAMESPACE | feature::AEC_ANA).into();
        id.anatt = ANA_TRANSITION_SECONDS;
        id.anacap = ANACAP_OPTIMIZED
            | ANACAP_NON_OPTIMIZED
            | ANACAP_INACCESSIBLE
            | ANACAP_CHANGE
            | ANACAP_GROUP_FIXED;
        id.anagrpmax = subsystem.max_nsid.into();
        id.nanagrpid = subsystem.max_nsid.into();
        id.mnan = subsystem.max_nsid.into();
    }
    id
}

/// Identify Namespace.
pub fn namespace(
    ns: &NamespaceView,
    ana_reporting: bool,
    state: AnaState,
    max_io_size: u32,
) -> IdentifyNamespace {
    let mut id = IdentifyNamespace::new_zeroed();
    let blocks = ns.bdev.num_blocks();
    id.nsze = blocks.into();
    id.ncap = blocks.into();
    id.nsattr = attributes(ns);
    id.nuse = blocks.into();
    // NACWU: a fused compare and write is atomic over a whole transfer.
    const NSFEAT_OWN_ATOMICS: u8 = 1 << 1;
    id.nsfeat = NSFEAT_OWN_ATOMICS | NSFEAT_GUID_NEVER_REUSED;
    id.nacwu = ((max_io_size / ns.bdev.block_size()).saturating_sub(1) as u16).into();
    id.nmic = NMIC_SHARED;
    if ns.bdev.device().supports(Op::Unmap) {
        id.dlfeat = DLFEAT_READ_ZEROES | DLFEAT_WRITE_ZEROES_DEALLOCATE;
    }
    id.lbaf[0].lbads = ns.bdev.block_size().trailing_zeros() as u8;
    id.nguid = ns.ids.nguid;
    id.eui64 = ns.ids.eui64;
    if ana_reporting {
        id.anagrpid = ns.anagrpid.into();
        if !state.serves_io() {
            id.nuse = 0.into();
        }
    }
    id
}

/// NSATTR (NVM 4.1.5.1): whether the namespace is write protected.
fn attributes(ns: &NamespaceView) -> u8 {
    u8::from(ns.bdev.device().is_read_only())
}

fn independent(ns: &NamespaceView, ana_reporting: bool) -> IndependentNamespace {
    /// No volatile write cache in this namespace.
    const NSFEAT_NO_CACHE: u8 = 1 << 5;
    let mut id = IndependentNamespace::new_zeroed();
    if !ns.bdev.device().has_write_cache() {
        id.nsfeat = NSFEAT_NO_CACHE;
    }
    id.nmic = NMIC_SHARED;
    if ana_reporting {
        id.anagrpid = ns.anagrpid.into();
    }
    id.nsattr = attributes(ns);
    id.nstat = NSTAT_READY;
    id
}

/// Active namespaces above `after`.
fn active(subsystem: &SubsystemView, after: u32) -> NamespaceList {
    let mut list = NamespaceList::new_zeroed();
    let above = subsystem.namespaces.keys().filter(|&&nsid| nsid > after);
    for (entry, &nsid) in list.nsids.iter_mut().zip(above) {
        *entry = nsid.into();
    }
    list
}

impl Queue {
    pub fn identify(&mut self, slot: u16) {
        let Some(buf) = self.slots[slot].data.clone() else {
            return self.complete(slot, Status::INTERNAL_ERROR);
        };
        let outcome = buf.with_mut(|bytes| match <&mut [u8; IDENTIFY_LEN]>::try_from(bytes) {
            Ok(out) => self.identify_into(slot, out),
            Err(_) => Err(Status::INTERNAL_ERROR),
        });
        self.complete(slot, outcome.err().unwrap_or(Status::SUCCESS));
    }

    fn identify_into(&mut self, slot: u16, out: &mut [u8; IDENTIFY_LEN]) -> Result<(), Status> {
        let entry = self.slots[slot].entry;
        let (which, nsid) = (entry.cdw10.get() as u8, entry.nsid.get());
        let csi = (entry.cdw11.get() >> 24) as u8;
        let subsystem = self.subsystem.clone();
        let options = self.transport().clone();
        let Some(c) = self.controller() else { return Err(Status::INTERNAL_ERROR) };
        out.fill(0);
        if which == cns::CONTROLLER {
            out.copy_from_slice(controller(c, subsystem.as_deref(), &options).as_bytes());
            return Ok(());
        }
        // A discovery controller has nothing else to tell.
        let subsystem = subsystem.ok_or(Status::INVALID_FIELD.dnr())?;
        let ana = subsystem.ana_reporting;
        let only_nvm = |csi: u8| if csi == CSI_NVM { Ok(()) } else { Err(Status::IOCS_NOT_SUPPORTED.dnr()) };
        let valid = |nsid: u32| match nsid {
            1.. if nsid <= subsystem.max_nsid => Ok(subsystem.namespaces.get(&nsid)),
            _ => Err(Status::INVALID_NAMESPACE.dnr()),
        };
        match which {
            cns::NAMESPACE => {
                // An inactive namespace is all zeroes (Base 5.17.2.1).
                if let Some(ns) = valid(nsid)? {
                    let state = c.groups().get(&ns.anagrpid).map_or(AnaState::Optimized, |g| g.state);
                    out.copy_from_slice(namespace(ns, ana, state, options.max_io_size).as_bytes());
                }
            }
            cns::ACTIVE_NAMESPACES | cns::CSI_ACTIVE_NAMESPACES => {
                if which == cns::CSI_ACTIVE_NAMESPACES {
                    only_nvm(csi)?;
                }
                if nsid >= NSID_ALL - 1 {
                    return Err(Status::INVALID_NAMESPACE.dnr());
                }
                out.copy_from_slice(active(&subsystem, nsid).as_bytes());
            }
            cns::NAMESPACE_DESCRIPTORS => {
                valid(nsid)?.ok_or(Status::INVALID_NAMESPACE.dnr())?.ids.write_descriptors(out);
            }
            cns::CSI_NAMESPACE => {
                only_nvm(csi)?;
                // No protection information, no storage tags: all fields are zero.
                valid(nsid)?.ok_or(Status::INVALID_NAMESPACE.dnr())?;
            }
            cns::CSI_CONTROLLER => {
                // No limits besides MDTS: all fields are zero.
                only_nvm(csi)?;
            }
            cns::INDEPENDENT_NAMESPACE => {
                let ns = valid(nsid)?.ok_or(Status::INVALID_NAMESPACE.dnr())?;
                out.copy_from_slice(independent(ns, ana).as_bytes());
            }
            // One combination: the NVM command set alone.
            cns::COMMAND_SETS => out[0] = 1,
            _ => return Err(Status::INVALID_FIELD.dnr()),
        }
        Ok(())
    }
}
