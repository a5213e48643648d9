//! The words of the NVMe specifications: wire structures, codes and the NVMe/TCP PDU parser.
//!
//! What for: one place that knows how bytes on an NVMe queue look, shared by our target (`target::nvmf`) and
//! our host (`bdev::nvme`). Pure: no I/O, no clock, no threads, callable from anywhere.
//!
//! Invariants:
//! * every structure is a `zerocopy` layout of byte-aligned little-endian fields, and its size (and the offsets
//!   that matter) are asserted at compile time;
//! * nothing here panics on any input: what a peer sent is looked at through checked views only;
//! * sections are those of the NVM Express Base Specification 2.0 ("Base"), the NVM Command Set Specification 1.0
//!   ("NVM") and the NVMe/TCP Transport Specification 1.0 ("TCP").

pub mod command;
pub mod completion;
pub mod discovery;
pub mod event;
pub mod fabrics;
pub mod feature;
pub mod identify;
pub mod identify_ns;
pub mod log;
pub mod nqn;
pub mod property;
pub mod sgl;
pub mod status;
pub mod tcp;

pub use command::{AdminOpcode, FabricsType, Fuse, IoOpcode, SubmissionEntry};
pub use completion::CompletionEntry;
pub use sgl::SglDescriptor;
pub use status::Status;

/// NSID that addresses every namespace (Base 3.2.1).
pub const NSID_ALL: u32 = 0xffff_ffff;

/// Writes ASCII text into a fixed field, padded with spaces (serial number, model number, firmware revision,
/// traddr, trsvcid: Base 1.4.2 "ASCII string"). What does not fit is cut.
pub fn put_padded(field: &mut [u8], text: &str) {
    field.fill(b' ');
    let n = text.len().min(field.len());
    field[..n].copy_from_slice(&text.as_bytes()[..n]);
}

/// Writes UTF-8 text into a fixed field, padded with NUL and NUL-terminated (NQNs: Base 4.5). What does not fit
/// is cut.
pub fn put_nul_terminated(field: &mut [u8], text: &str) {
    field.fill(0);
    let n = text.len().min(field.len().saturating_sub(1));
    field[..n].copy_from_slice(&text.as_bytes()[..n]);
}

/// The text of a NUL-terminated field, or `None` when it has no terminator or is not UTF-8.
pub fn get_nul_terminated(field: &[u8]) -> Option<&str> {
    let end = field.iter().position(|&b| b == 0)?;
    std::str::from_utf8(&field[..end]).ok()
}

/// The text of a space-padded field, without the padding; bytes that are not UTF-8 end it.
pub fn get_padded(field: &[u8]) -> &str {
    let valid = match std::str::from_utf8(field) {
        Ok(text) => text,
        Err(e) => std::str::from_utf8(&field[..e.valid_up_to()]).unwrap_or(""),
    };
    valid.trim_end_matches([' ', '\0'])
}

/// Compile-time check of one structure's size and of the offsets of some of its fields.
macro_rules! assert_layout {
    ($t:ty, $size:expr $(, $field:ident @ $off:expr)* $(,)?) => {
        const _: () = {
            assert!(size_of::<$t>() == $size);
            $(assert!(std::mem::offset_of!($t, $field) == $off);)*
        };
    };
}
pub(crate) use assert_layout;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn padded_text_is_cut_and_filled_with_spaces() {
        let mut field = [0u8; 4];
        put_padded(&mut field, "ab");
        assert_eq!(&field, b"ab  ");
        put_padded(&mut field, "abcdef");
        assert_eq!(&field, b"abcd");
        assert_eq!(get_padded(b"ab  "), "ab");
        assert_eq!(get_padded(b"a\xff  "), "a");
    }

    #[test]
    fn terminated_text_always_keeps_its_terminator() {
        let mut field = [1u8; 4];
        put_nul_terminated(&mut field, "abcdef");
        assert_eq!(&field, b"abc\0");
        assert_eq!(get_nul_terminated(&field), Some("abc"));
        assert_eq!(get_nul_terminated(b"abcd"), None);
        assert_eq!(get_nul_terminated(b"\xff\0"), None);
    }
}
