//! What the control room can ask about: plain data, a moment's truth.

use super::options::{ListenAddress, NamespaceOptions, SubsystemOptions};
use crate::nvme::identify_ns::NamespaceIds;
use crate::nvme::log::AnaState;

#[derive(Clone, Debug)]
pub struct SubsystemInfo {
    pub options: SubsystemOptions,
    pub is_discovery: bool,
    pub hosts: Vec<String>,
    pub listeners: Vec<ListenAddress>,
    pub namespaces: Vec<NamespaceInfo>,
}

#[derive(Clone, Debug)]
pub struct NamespaceInfo {
    pub nsid: u32,
    pub bdev_name: String,
    pub ids: NamespaceIds,
    pub anagrpid: u32,
    /// What was asked for: replaying it makes the same namespace.
    pub options: NamespaceOptions,
}

#[derive(Clone, Debug)]
pub struct ListenerInfo {
    pub address: ListenAddress,
    /// Configured state by ANA group; groups that are not named are optimized.
    pub ana_states: Vec<(u32, AnaState)>,
}

#[derive(Clone, Debug)]
pub struct ControllerInfo {
    pub cntlid: u16,
    pub hostnqn: String,
    pub hostid: [u8; 16],
    pub num_io_queues: usize,
    pub listener: ListenAddress,
    pub enabled: bool,
}

#[derive(Clone, Debug)]
pub struct QueueInfo {
    pub cntlid: u16,
    pub qid: u16,
    pub sqsize: u16,
    /// Index of the reactor that has it.
    pub reactor: usize,
    pub hostnqn: String,
    pub listener: ListenAddress,
    pub peer: ListenAddress,
}

/// Counters of one reactor's group, as `nvmf_get_stats` reports them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct GroupStats {
    pub core: usize,
    /// Since the start.
    pub admin_qpairs: u64,
    pub io_qpairs: u64,
    pub current_admin_qpairs: u64,
    pub current_io_qpairs: u64,
    /// Commands that wait for a buffer, now.
    pub pending_bdev_io: u64,
    pub completed_nvme_io: u64,
}
