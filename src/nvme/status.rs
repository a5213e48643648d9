//! Status of a completed command (Base 3.3.3.2.1): a status code type, a status code, and "do not retry".

use std::fmt;

/// Bits 15:1 of completion dword 3, shifted down by one so that the phase tag is not part of it:
/// SC 7:0, SCT 10:8, CRD 12:11, M 13, DNR 14.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct Status(pub u16);

const DNR: u16 = 1 << 14;

impl Status {
    pub const fn new(sct: u8, sc: u8) -> Status {
        Status(((sct as u16) & 7) << 8 | sc as u16)
    }

    /// From the 16 bits of a completion entry (phase tag in bit 0).
    pub const fn from_wire(raw: u16) -> Status {
        Status(raw >> 1)
    }

    /// To the 16 bits of a completion entry; the phase tag is 0, as Fabrics wants it.
    pub const fn to_wire(self) -> u16 {
        self.0 << 1
    }

    pub const fn sc(self) -> u8 {
        self.0 as u8
    }

    pub const fn sct(self) -> u8 {
        (self.0 >> 8) as u8 & 7
    }

    /// The same status with "do not retry": repeating the command as it is will fail again.
    pub const fn dnr(self) -> Status {
        Status(self.0 | DNR)
    }

    pub const fn is_dnr(self) -> bool {
        self.0 & DNR != 0
    }

    pub const fn is_success(self) -> bool {
        self.0 & 0x7ff == 0
    }

    /// Same type and code, whatever the retry bits say.
    pub const fn is(self, other: Status) -> bool {
        self.0 & 0x7ff == other.0 & 0x7ff
    }

    /// A path-related status (SCT 3h): a multipath host retries it on another path.
    pub const fn is_path_error(self) -> bool {
        self.sct() == 3
    }
}

impl Status {
    /// Attempted write to a read-only range (NVM 4.1.4): shares its number with a Connect status.
    pub const WRITE_TO_READ_ONLY: Status = Status::new(1, 0x82);
    /// Copy: a range or the total is above the namespace's limits (NVM 3.2.2).
    pub const COMMAND_SIZE_LIMIT_EXCEEDED: Status = Status::new(1, 0x83);
}

macro_rules! statuses {
    ($($(#[$doc:meta])* $name:ident = $sct:literal, $sc:literal, $text:literal;)*) => {
        impl Status {
            $($(#[$doc])* pub const $name: Status = Status::new($sct, $sc);)*

            fn text(self) -> Option<&'static str> {
                match (self.sct(), self.sc()) {
                    $(($sct, $sc) => Some($text),)*
                    _ => None,
                }
            }
        }
    };
}

statuses! {
    SUCCESS = 0, 0x00, "success";
    INVALID_OPCODE = 0, 0x01, "invalid command opcode";
    INVALID_FIELD = 0, 0x02, "invalid field in command";
    COMMAND_ID_CONFLICT = 0, 0x03, "command identifier conflict";
    DATA_TRANSFER_ERROR = 0, 0x04, "data transfer error";
    INTERNAL_ERROR = 0, 0x06, "internal error";
    ABORTED_BY_REQUEST = 0, 0x07, "command abort requested";
    ABORTED_SQ_DELETION = 0, 0x08, "command aborted, queue deleted";
    ABORTED_FAILED_FUSED = 0, 0x09, "command aborted, other fused command failed";
    ABORTED_MISSING_FUSED = 0, 0x0a, "command aborted, missing fused command";
    INVALID_NAMESPACE = 0, 0x0b, "invalid namespace or format";
    COMMAND_SEQUENCE_ERROR = 0, 0x0c, "command sequence error";
    INVALID_SGL_SEGMENT = 0, 0x0d, "invalid SGL segment descriptor";
    INVALID_SGL_COUNT = 0, 0x0e, "invalid number of SGL descriptors";
    DATA_SGL_LENGTH_INVALID = 0, 0x0f, "data SGL length invalid";
    SGL_TYPE_INVALID = 0, 0x11, "SGL descriptor type invalid";
    ATOMIC_WRITE_UNIT_EXCEEDED = 0, 0x14, "atomic write unit exceeded";
    INVALID_SGL_OFFSET = 0, 0x16, "SGL offset invalid";
    HOSTID_INCONSISTENT = 0, 0x18, "host identifier inconsistent format";
    KEEP_ALIVE_EXPIRED = 0, 0x19, "keep alive timer expired";
    KEEP_ALIVE_INVALID = 0, 0x1a, "keep alive timeout invalid";
    COMMAND_INTERRUPTED = 0, 0x21, "command interrupted";
    TRANSIENT_TRANSPORT_ERROR = 0, 0x22, "transient transport error";
    LBA_OUT_OF_RANGE = 0, 0x80, "LBA out of range";
    CAPACITY_EXCEEDED = 0, 0x81, "capacity exceeded";
    NAMESPACE_NOT_READY = 0, 0x82, "namespace not ready";
    RESERVATION_CONFLICT = 0, 0x83, "reservation conflict";

    INVALID_QUEUE_ID = 1, 0x01, "invalid queue identifier";
    INVALID_QUEUE_SIZE = 1, 0x02, "invalid queue size";
    ABORT_LIMIT_EXCEEDED = 1, 0x03, "abort command limit exceeded";
    AER_LIMIT_EXCEEDED = 1, 0x05, "asynchronous event request limit exceeded";
    INVALID_LOG_PAGE = 1, 0x09, "invalid log page";
    FEATURE_NOT_SAVEABLE = 1, 0x0d, "feature identifier not saveable";
    FEATURE_NOT_CHANGEABLE = 1, 0x0e, "feature not changeable";
    FEATURE_NOT_NAMESPACE_SPECIFIC = 1, 0x0f, "feature not namespace specific";
    OVERLAPPING_RANGE = 1, 0x14, "overlapping range";
    IOCS_NOT_SUPPORTED = 1, 0x29, "I/O command set not supported";
    IOCS_COMBINATION_REJECTED = 1, 0x2b, "I/O command set combination rejected";
    /// Connect (Base 6.3, figure of command specific status values).
    CONNECT_INCOMPATIBLE_FORMAT = 1, 0x80, "connect: incompatible format (or conflicting attributes)";
    CONNECT_CONTROLLER_BUSY = 1, 0x81, "connect: controller busy";
    CONNECT_INVALID_PARAMETERS = 1, 0x82, "connect: invalid parameters (or attempted write to read-only range)";
    CONNECT_RESTART_DISCOVERY = 1, 0x83, "connect: restart discovery (or command size limit exceeded)";
    CONNECT_INVALID_HOST = 1, 0x84, "connect: invalid host";
    DISCOVERY_RESTART = 1, 0x90, "discovery restart";
    AUTHENTICATION_REQUIRED = 1, 0x91, "authentication required";

    WRITE_FAULT = 2, 0x80, "write fault";
    UNRECOVERED_READ_ERROR = 2, 0x81, "unrecovered read error";
    COMPARE_FAILURE = 2, 0x85, "compare failure";
    ACCESS_DENIED = 2, 0x86, "access denied";

    INTERNAL_PATH_ERROR = 3, 0x00, "internal path error";
    ANA_PERSISTENT_LOSS = 3, 0x01, "asymmetric access persistent loss";
    ANA_INACCESSIBLE = 3, 0x02, "asymmetric access inaccessible";
    ANA_TRANSITION = 3, 0x03, "asymmetric access transition";
    HOST_PATH_ERROR = 3, 0x70, "host pathing error";
    HOST_ABORTED = 3, 0x71, "command aborted by host";
}

impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.text() {
            Some(text) => write!(f, "{text} (SCT {:x}h SC {:02x}h)", self.sct(), self.sc()),
            None => write!(f, "SCT {:x}h SC {:02x}h", self.sct(), self.sc()),
        }
    }
}

impl fmt::Debug for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_status_survives_the_wire() {
        let s = Status::ANA_INACCESSIBLE.dnr();
        assert_eq!(s.to_wire(), 0x8000 | 3 << 9 | 2 << 1);
        assert_eq!(Status::from_wire(s.to_wire()), s);
        assert!(s.is(Status::ANA_INACCESSIBLE) && s.is_dnr() && s.is_path_error() && !s.is_success());
        assert_eq!(Status::COMPARE_FAILURE.to_string(), "compare failure (SCT 2h SC 85h)");
    }
}
