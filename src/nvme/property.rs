//! Controller properties (Base 3.1.3): the registers a fabrics host reads and writes by property commands.

/// Offsets of the properties Fabrics defines (Base 3.1.3, figure 35).
pub const CAP: u32 = 0x00;
pub const VS: u32 = 0x08;
pub const CC: u32 = 0x14;
pub const CSTS: u32 = 0x1c;
pub const NSSR: u32 = 0x20;
/// Controller ready timeouts.
pub const CRTO: u32 = 0x68;

/// VS for the version we implement: 1.4.0 names everything we offer, and every initiator in use knows it.
pub const VERSION_1_4: u32 = 0x0001_0400;

/// Controller capabilities (Base 3.1.3.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Cap(pub u64);

impl Cap {
    const CQR: u64 = 1 << 16;
    const CSS_NVM: u64 = 1 << 37;
    const CSS_IOCS: u64 = 1 << 43;

    /// A fabrics controller: contiguous queues required, 4 KiB pages, NVM command set.
    /// `max_entries` is 1's based; `timeout_500ms` is CAP.TO.
    pub fn fabrics(max_entries: u16, timeout_500ms: u8) -> Cap {
        Cap(u64::from(max_entries.saturating_sub(1))
            | Self::CQR
            | u64::from(timeout_500ms) << 24
            | Self::CSS_NVM
            | Self::CSS_IOCS)
    }

    /// Most entries of a queue, 0's based.
    pub fn mqes(self) -> u16 {
        self.0 as u16
    }

    /// Worst-case time to become ready, in units of 500 ms.
    pub fn to(self) -> u8 {
        (self.0 >> 24) as u8
    }

    /// Smallest memory page is `2^(12 + mpsmin)`.
    pub fn mpsmin(self) -> u8 {
        (self.0 >> 48) as u8 & 0xf
    }
}

/// Controller configuration (Base 3.1.3.5).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Cc(pub u32);

/// CC.SHN.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shutdown {
    None,
    Normal,
    Abrupt,
    Reserved,
}

impl Cc {
    /// What a host writes to enable: entry sizes 64 and 16 bytes, 4 KiB pages, EN.
    pub const ENABLE: Cc = Cc(0x0046_0001);

    pub fn en(self) -> bool {
        self.0 & 1 != 0
    }

    pub fn css(self) -> u8 {
        (self.0 >> 4) as u8 & 7
    }

    pub fn mps(self) -> u8 {
        (self.0 >> 7) as u8 & 0xf
    }

    pub fn ams(self) -> u8 {
        (self.0 >> 11) as u8 & 7
    }

    pub fn shn(self) -> Shutdown {
        match self.0 >> 14 & 3 {
            0 => Shutdown::None,
            1 => Shutdown::Normal,
            2 => Shutdown::Abrupt,
            _ => Shutdown::Reserved,
        }
    }

    pub fn with_shn_normal(self) -> Cc {
        Cc(self.0 & !(3 << 14) | 1 << 14)
    }

    /// log2 of the I/O submission entry size.
    pub fn iosqes(self) -> u8 {
        (self.0 >> 16) as u8 & 0xf
    }

    pub fn iocqes(self) -> u8 {
        (self.0 >> 20) as u8 & 0xf
    }
}

/// Controller status (Base 3.1.3.6).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Csts(pub u32);

impl Csts {
    const RDY: u32 = 1;
    const CFS: u32 = 2;
    const SHST: u32 = 3 << 2;
    const SHST_COMPLETE: u32 = 2 << 2;

    pub fn rdy(self) -> bool {
        self.0 & Self::RDY != 0
    }

    pub fn cfs(self) -> bool {
        self.0 & Self::CFS != 0
    }

    pub fn shutdown_complete(self) -> bool {
        self.0 & Self::SHST == Self::SHST_COMPLETE
    }

    pub fn set_rdy(&mut self, ready: bool) {
        self.0 = if ready { self.0 | Self::RDY } else { self.0 & !Self::RDY };
    }

    pub fn set_cfs(&mut self) {
        self.0 |= Self::CFS;
    }

    pub fn set_shutdown_complete(&mut self, complete: bool) {
        self.0 = self.0 & !Self::SHST | if complete { Self::SHST_COMPLETE } else { 0 };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn capabilities_match_what_linux_was_traced_to_accept() {
        let cap = Cap::fabrics(128, 20);
        assert_eq!((cap.mqes(), cap.to(), cap.mpsmin()), (127, 20, 0));
        assert_eq!(cap.0 >> 16 & 1, 1, "contiguous queues required");
        assert_eq!(cap.0 >> 37 & 1, 1, "NVM command set");
    }

    #[test]
    fn configuration_bits_are_where_linux_writes_them() {
        let cc = Cc(0x0046_0061);
        assert!(cc.en());
        assert_eq!((cc.css(), cc.mps(), cc.iosqes(), cc.iocqes()), (6, 0, 6, 4));
        assert_eq!(cc.shn(), Shutdown::None);
        assert_eq!(cc.with_shn_normal().shn(), Shutdown::Normal);
        let mut csts = Csts::default();
        csts.set_rdy(true);
        csts.set_shutdown_complete(true);
        assert_eq!(csts.0, 0b1001);
        csts.set_shutdown_complete(false);
        csts.set_rdy(false);
        assert_eq!(csts.0, 0);
    }
}
