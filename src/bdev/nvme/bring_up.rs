//! The steps from a connected admin queue to a known controller, and of a look at what changed: one command a step.

use std::time::{Duration, Instant};

use super::command::Completed;
use super::error::QueueError;
use super::facts::{self, ControllerFacts, NamespaceFacts};
use super::options::ControllerOptions;
use crate::env::SgList;
use crate::nvme::fabrics::PropertyCommand;
use crate::nvme::identify::{CSI_NVM, IDENTIFY_LEN, cns};
use crate::nvme::log::{self, LogRequest};
use crate::nvme::property::{self, Cap, Cc, Csts};
use crate::nvme::{AdminOpcode, NSID_ALL, SubmissionEntry, feature};
use crate::reactor;

/// Namespaces of one controller that become bdevs: one page of the active list.
const MAX_NAMESPACES: usize = 1024;
/// The ANA log of `MAX_NAMESPACES` groups of one namespace each.
const ANA_LOG_BYTES: usize = 16 + MAX_NAMESPACES * (32 + 4);

/// What is asked next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Step {
    Idle,
    ReadCap,
    Disable,
    WaitDisabled,
    Enable,
    WaitReady,
    ReadVersion,
    IdentifyController,
    IdentifyNvm,
    NumberOfQueues,
    EventConfiguration,
    /// A scan after an event begins here: reading the log rearms the event.
    ChangedLog,
    NamespaceList,
    Descriptors(usize),
    Namespace(usize),
    AnaLog,
}

/// What was learned so far.
#[derive(Debug, Default)]
pub(super) struct Scan {
    pub(super) facts: ControllerFacts,
    pub(super) granted_queues: u16,
    pub(super) namespaces: Vec<NamespaceFacts>,
    cap: Cap,
    /// When a controller that does not get ready (or disabled) is given up.
    deadline: Option<Instant>,
    nsids: Vec<u32>,
    uuids: Vec<Option<uuid::Uuid>>,
}

fn identify(cns: u8, nsid: u32) -> SubmissionEntry {
    let mut entry = SubmissionEntry::new(AdminOpcode::Identify as u8, 0);
    entry.nsid = nsid.into();
    entry.cdw10 = u32::from(cns).into();
    entry
}

fn get_log(page: u8, length_bytes: usize) -> SubmissionEntry {
    let mut entry = SubmissionEntry::new(AdminOpcode::GetLogPage as u8, 0);
    entry.nsid = NSID_ALL.into();
    let request = LogRequest {
        page,
        lsp: 0,
        retain_event: false,
        length_bytes: length_bytes as u64,
        offset_bytes: 0,
        offset_is_index: false,
    };
    request.write(&mut entry);
    entry
}

fn set_feature(id: u8, value: u32) -> SubmissionEntry {
    let mut entry = SubmissionEntry::new(AdminOpcode::SetFeatures as u8, 0);
    entry.cdw10 = u32::from(id).into();
    entry.cdw11 = value.into();
    entry
}

/// A step's command and the bytes that it reads; `None` without memory for them.
pub(super) fn command(
    step: Step,
    scan: &Scan,
    options: &ControllerOptions,
) -> Option<(SubmissionEntry, SgList)> {
    // What Linux writes when it disables: everything but EN.
    let disabled = Cc(Cc::ENABLE.0 & !1);
    let nsid = |at: usize| scan.nsids.get(at).copied().unwrap_or_default();
    let (entry, bytes) = match step {
        Step::ReadCap => (PropertyCommand::get(0, property::CAP, true).to_entry(), 0),
        Step::Disable => (PropertyCommand::set(0, property::CC, false, u64::from(disabled.0)).to_entry(), 0),
        Step::Enable => (PropertyCommand::set(0, property::CC, false, u64::from(Cc::ENABLE.0)).to_entry(), 0),
        Step::WaitDisabled | Step::WaitReady => {
            (PropertyCommand::get(0, property::CSTS, false).to_entry(), 0)
        }
        Step::ReadVersion => (PropertyCommand::get(0, property::VS, false).to_entry(), 0),
        Step::IdentifyController => (identify(cns::CONTROLLER, 0), IDENTIFY_LEN),
        Step::IdentifyNvm => {
            let mut entry = identify(cns::CSI_CONTROLLER, 0);
            entry.cdw11 = (u32::from(CSI_NVM) << 24).into();
            (entry, IDENTIFY_LEN)
        }
        Step::NumberOfQueues => {
            let n = options.num_io_queues.max(1);
            (set_feature(feature::NUMBER_OF_QUEUES, feature::number_of_queues(n, n)), 0)
        }
        Step::EventConfiguration => {
            let events = feature::AEC_NAMESPACE | if scan.facts.ana { feature::AEC_ANA } else { 0 };
            (set_feature(feature::ASYNC_EVENT_CONFIGURATION, events), 0)
        }
        Step::ChangedLog => (get_log(log::CHANGED_NAMESPACES, log::CHANGED_NAMESPACES_MAX * 4), IDENTIFY_LEN),
        Step::NamespaceList => (identify(cns::ACTIVE_NAMESPACES, 0), IDENTIFY_LEN),
        Step::Descriptors(at) => (identify(cns::NAMESPACE_DESCRIPTORS, nsid(at)), IDENTIFY_LEN),
        Step::Namespace(at) => (identify(cns::NAMESPACE, nsid(at)), IDENTIFY_LEN),
        Step::AnaLog => (get_log(log::ANA, ANA_LOG_BYTES), ANA_LOG_BYTES),
        Step::Idle => return None,
    };
    if bytes == 0 {
        return Some((entry, SgList::new()));
    }
    let buf = reactor::alloc(bytes)?;
    // A controller that sends less than asked for must not make us read what was there before.
    buf.fill(0, bytes, 0);
    Some((entry, SgList::from_iter([buf])))
}

/// Takes a step's answer and says what comes next; `Idle` when everything is known.
pub(super) fn finish(
    step: Step,
    done: &Completed,
    scan: &mut Scan,
    options: &ControllerOptions,
) -> Result<Step, QueueError> {
    let status = done.status();
    let value = done.entry.map(|e| e.value()).unwrap_or_default();
    let needed = |what| if status.is_success() { Ok(()) } else { Err(QueueError::Refused { what, status }) };
    let data = done.data.first();
    Ok(match step {
        Step::ReadCap => {
            needed("to read its capabilities (CAP)")?;
            scan.cap = Cap(value);
            if scan.cap.mpsmin() != 0 {
                return Err(QueueError::Parameters("its pages are larger than 4 KiB"));
            }
            scan.facts.max_depth = scan.cap.mqes().max(1);
            Step::Disable
        }
        Step::Disable => {
            needed("to be disabled")?;
            scan.start_waiting();
            Step::WaitDisabled
        }
        Step::WaitDisabled => {
            needed("to read its status (CSTS)")?;
            if !Csts(value as u32).rdy() {
                Step::Enable
            } else {
                scan.waiting("it does not get disabled")?;
                step
            }
        }
        Step::Enable => {
            needed("to be enabled")?;
            scan.start_waiting();
            Step::WaitReady
        }
        Step::WaitReady => {
            needed("to read its status (CSTS)")?;
            let csts = Csts(value as u32);
            if csts.cfs() {
                return Err(QueueError::Controller("the controller reports a fatal error (CSTS.CFS)"));
            }
            if csts.rdy() {
                Step::ReadVersion
            } else {
                scan.waiting("the controller does not get ready in the time that it names (CAP.TO)")?;
                step
            }
        }
        Step::ReadVersion => {
            needed("to read its version (VS)")?;
            scan.facts.version = value as u32;
            Step::IdentifyController
        }
        Step::IdentifyController => {
            needed("Identify Controller")?;
            data.inspect(|d| scan.facts.read_controller(d));
            Step::IdentifyNvm
        }
        Step::IdentifyNvm => {
            // Controllers before 2.0 do not know it: their limit is MDTS.
            if let Some(d) = data.filter(|_| status.is_success()) {
                scan.facts.read_controller_nvm(d);
            }
            Step::NumberOfQueues
        }
        Step::NumberOfQueues => {
            needed("to set the number of queues")?;
            let granted = (value as u16).min((value >> 16) as u16).saturating_add(1);
            scan.granted_queues = granted.min(options.num_io_queues.max(1));
            Step::EventConfiguration
        }
        // Without events changes go unnoticed until the next connection: worth having all the same.
        Step::EventConfiguration => Step::NamespaceList,
        Step::ChangedLog => Step::NamespaceList,
        Step::NamespaceList => {
            needed("the list of its namespaces")?;
            scan.nsids = data.map(facts::read_namespace_list).unwrap_or_default();
            scan.namespaces.clear();
            scan.uuids = vec![None; scan.nsids.len()];
            scan.next_namespace(0)
        }
        Step::Descriptors(at) => {
            if let Some(d) = data.filter(|_| status.is_success()) {
                scan.uuids[at] = facts::read_uuid(d);
            }
            Step::Namespace(at)
        }
        Step::Namespace(at) => {
            if let Some(d) = data.filter(|_| status.is_success())
                && let Some(mut ns) = NamespaceFacts::read(scan.nsids[at], d)
            {
                ns.uuid = scan.uuids[at].or(ns.uuid);
                scan.namespaces.push(ns);
            }
            scan.next_namespace(at + 1)
        }
        Step::AnaLog => {
            if let Some(d) = data.filter(|_| status.is_success()) {
                for (group, access) in facts::read_ana_log(d) {
                    scan.namespaces
                        .iter_mut()
                        .filter(|n| n.ana_group == group)
                        .for_each(|n| n.access = access);
                }
            }
            Step::Idle
        }
        Step::Idle => Step::Idle,
    })
}

impl Scan {
    fn next_namespace(&self, at: usize) -> Step {
        if at < self.nsids.len().min(MAX_NAMESPACES) {
            Step::Descriptors(at)
        } else if self.facts.ana {
            Step::AnaLog
        } else {
            Step::Idle
        }
    }

    fn start_waiting(&mut self) {
        let limit = Duration::from_millis(500) * u32::from(self.cap.to()).max(1);
        self.deadline = Some(Instant::now() + limit);
    }

    fn waiting(&self, problem: &'static str) -> Result<(), QueueError> {
        if self.deadline.is_some_and(|d| Instant::now() > d) {
            return Err(QueueError::Controller(problem));
        }
        Ok(())
    }
}
