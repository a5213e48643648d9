//! The discovery log (Base 5.16.1.23): which subsystems a host may connect to, and where.

use std::net::SocketAddr;

use zerocopy::{FromZeros, IntoBytes};

use super::options::{AddressFamily, ListenAddress};
use super::view::View;
use crate::nvme::discovery::*;
use crate::nvme::nqn::DISCOVERY_NQN;
use crate::nvme::{put_nul_terminated, put_padded};

/// Admin queue size that every host may use (Base: at least 32).
const ADMIN_MAX_SQ_SIZE: u16 = 32;

/// The address a host can use: a wildcard is replaced by the one it came in by.
fn reachable(address: &ListenAddress, local: SocketAddr) -> ListenAddress {
    let wildcard = address.socket_address().is_some_and(|a| a.ip().is_unspecified());
    let mut address = address.clone();
    if wildcard && address.adrfam == ListenAddress::of(local).adrfam {
        address.traddr = local.ip().to_string();
    }
    address
}

fn entry(subtype: u8, nqn: &str, address: &ListenAddress, portid: u16) -> DiscoveryLogEntry {
    let mut e = DiscoveryLogEntry::new_zeroed();
    e.trtype = TRTYPE_TCP;
    e.adrfam = match address.adrfam {
        AddressFamily::Ipv4 => ADRFAM_IPV4,
        AddressFamily::Ipv6 => ADRFAM_IPV6,
    };
    e.subtype = subtype;
    // Not TREQ_NOT_REQUIRED: nvme-cli 2.4 takes that for an offer of TLS, which Linux 6.1 refuses to try.
    e.treq = TREQ_NOT_SPECIFIED;
    e.portid = portid.into();
    e.cntlid = crate::nvme::fabrics::CNTLID_DYNAMIC.into();
    e.asqsz = ADMIN_MAX_SQ_SIZE.into();
    put_padded(&mut e.trsvcid, &address.trsvcid);
    put_nul_terminated(&mut e.subnqn, nqn);
    put_padded(&mut e.traddr, &address.traddr);
    e
}

/// The whole log as `host` sees it over a connection that came in at `local`.
pub fn page(view: &View, host: &str, portal: u64, local: SocketAddr) -> Vec<u8> {
    let mut entries = Vec::new();
    for address in &view.discovery_listeners {
        let mut e =
            entry(SUBTYPE_CURRENT_DISCOVERY, DISCOVERY_NQN, &reachable(address, local), portal as u16);
        e.eflags = (EFLAGS_EPCSD | EFLAGS_DUPRETINFO).into();
        entries.push(e);
    }
    for subsystem in view.subsystems.iter().filter(|s| s.allows_host(host)) {
        for listener in &subsystem.listeners {
            let address = reachable(&listener.address, local);
            entries.push(entry(SUBTYPE_NVME, &subsystem.nqn, &address, listener.portal as u16));
        }
    }
    for referral in &view.referrals {
        let subtype = if referral.subnqn == DISCOVERY_NQN { SUBTYPE_REFERRAL } else { SUBTYPE_NVME };
        let mut e = entry(subtype, &referral.subnqn, &referral.address, 0);
        e.treq = if referral.secure_channel { TREQ_REQUIRED } else { TREQ_NOT_SPECIFIED };
        entries.push(e);
    }
    let mut header = DiscoveryLogHeader::new_zeroed();
    header.genctr = view.genctr.into();
    header.numrec = (entries.len() as u64).into();
    let mut page = header.as_bytes().to_vec();
    entries.iter().for_each(|e| page.extend_from_slice(e.as_bytes()));
    page
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wildcard_listener_is_reported_by_the_address_the_host_used() {
        let any = ListenAddress::new("0.0.0.0", "4420").expect("address");
        let local: SocketAddr = ([192, 168, 1, 9], 4420).into();
        assert_eq!(reachable(&any, local).traddr, "192.168.1.9");
        let fixed = ListenAddress::new("10.0.0.1", "4420").expect("address");
        assert_eq!(reachable(&fixed, local), fixed);
    }
}
