//! Asynchronous events (Base 5.2.1): what an Asynchronous Event Request completes with.

/// Dword 0 of the completion: type 2:0, information 15:8, log page 23:16.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AsyncEvent(pub u32);

const TYPE_NOTICE: u32 = 2;

impl AsyncEvent {
    /// A namespace was added, removed or changed: read the changed namespace list.
    pub const NAMESPACE_CHANGED: AsyncEvent = AsyncEvent::notice(0x00, super::log::CHANGED_NAMESPACES);
    /// An ANA group changed its state: read the ANA log.
    pub const ANA_CHANGED: AsyncEvent = AsyncEvent::notice(0x03, super::log::ANA);
    /// The discovery log changed.
    pub const DISCOVERY_CHANGED: AsyncEvent = AsyncEvent::notice(0xf0, super::log::DISCOVERY);

    const fn notice(info: u8, log: u8) -> AsyncEvent {
        AsyncEvent(TYPE_NOTICE | (info as u32) << 8 | (log as u32) << 16)
    }

    pub fn from_completion(dw0: u32) -> AsyncEvent {
        AsyncEvent(dw0 & 0x00ff_ff07)
    }

    pub fn info(self) -> u8 {
        (self.0 >> 8) as u8
    }

    /// Reading this log page (without RAE) rearms the event.
    pub fn log_page(self) -> u8 {
        (self.0 >> 16) as u8
    }
}
