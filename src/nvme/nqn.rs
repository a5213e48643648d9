//! NVMe qualified names (Base 4.5): validation and the well-known ones.

/// Longest NQN in bytes, without its terminator.
pub const NQN_MAX_LEN: usize = 223;
/// Size of an NQN field in structures.
pub const NQN_FIELD: usize = 256;
/// The discovery subsystem every host knows.
pub const DISCOVERY_NQN: &str = "nqn.2014-08.org.nvmexpress.discovery";
const UUID_PREFIX: &str = "nqn.2014-08.org.nvmexpress:uuid:";

#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NqnError {
    #[error("an NQN has at most {NQN_MAX_LEN} bytes")]
    TooLong,
    #[error(
        "an NQN starts with \"nqn.YYYY-MM.\" and a reverse domain name, or with \"{UUID_PREFIX}\" and a UUID"
    )]
    Format,
    #[error("an NQN has no control characters")]
    Characters,
}

/// Is this a well-formed NQN? The rules are the ones every initiator keeps: `nqn.`, year and month, a domain, and
/// printable text; a `uuid:` name carries a UUID.
pub fn validate(nqn: &str) -> Result<(), NqnError> {
    if nqn.len() > NQN_MAX_LEN {
        return Err(NqnError::TooLong);
    }
    if nqn.chars().any(char::is_control) {
        return Err(NqnError::Characters);
    }
    if let Some(text) = nqn.strip_prefix(UUID_PREFIX) {
        return match text.len() == 36 && uuid::Uuid::try_parse(text).is_ok() {
            true => Ok(()),
            false => Err(NqnError::Format),
        };
    }
    let rest = nqn.strip_prefix("nqn.").ok_or(NqnError::Format)?.as_bytes();
    let date_ok = rest.len() > 8
        && rest[..4].iter().all(u8::is_ascii_digit)
        && rest[4] == b'-'
        && rest[5..7].iter().all(u8::is_ascii_digit)
        && rest[7] == b'.';
    if !date_ok {
        return Err(NqnError::Format);
    }
    let domain = rest[8..].split(|&b| b == b':').next().unwrap_or(&[]);
    let label_ok = |label: &[u8]| {
        !label.is_empty()
            && label.len() <= 63
            && label[0].is_ascii_alphabetic()
            && label[label.len() - 1] != b'-'
            && label.iter().all(|b| b.is_ascii_alphanumeric() || *b == b'-')
    };
    if domain.split(|&b| b == b'.').all(label_ok) { Ok(()) } else { Err(NqnError::Format) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_hosts_use_are_accepted() {
        for nqn in [
            DISCOVERY_NQN,
            "nqn.2016-06.io.spdk:cnode1",
            "nqn.2014-08.org.nvmexpress:uuid:f81d4fae-7dec-11d0-a765-00a0c91e6bf6",
            "nqn.2026-11.io.lockstep:volume.with-odd_characters/ok",
        ] {
            assert_eq!(validate(nqn), Ok(()), "{nqn}");
        }
    }

    #[test]
    fn malformed_names_are_refused() {
        for nqn in [
            "",
            "nqn.",
            "nqn.2016-6.io.spdk:a",
            "nqn.2016-06.",
            "nqn.2016-06.io..spdk:a",
            "nqn.2016-06.io.-spdk:a",
            "iqn.2016-06.io.spdk:a",
            "nqn.2014-08.org.nvmexpress:uuid:zz",
            "nqn.2016-06.io.spdk:a\n",
        ] {
            assert!(validate(nqn).is_err(), "{nqn:?}");
        }
        assert_eq!(validate(&format!("nqn.2016-06.io:{}", "a".repeat(224))), Err(NqnError::TooLong));
    }
}
