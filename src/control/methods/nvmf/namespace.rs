//! Namespaces.

use super::super::only;
use super::require_target;
use crate::control::error::RpcError;
use crate::control::node::Node;
use crate::control::params::params;
use crate::control::registry::{Callable, Method};
use crate::target::nvmf::NamespaceOptions;
use std::sync::Arc;
use uuid::Uuid;

params! {
    /// A new namespace.
    pub struct Namespace {
        /// The bdev to export: name, alias or UUID.
        bdev_name: String,
        /// Identifier, from 1. Default: the lowest that is free.
        nsid: Option<u32>,
        /// 32 hexadecimal digits, the same on every node that exports this volume. Default: the UUID's.
        nguid: Option<String>,
        /// 16 hexadecimal digits. Default: none.
        eui64: Option<String>,
        /// The same on every node that exports this volume. Default: the bdev's UUID.
        uuid: Option<Uuid>,
        /// ANA group, from 1 to the subsystem's `max_namespaces`. Default: the NSID.
        anagrpid: Option<u32>,
        /// Export what a secondary's VM sees and writes, as an ordinary disk. Default: `false`, the namespace follows
        /// the volume's role and is inaccessible on a secondary. (Lockstep's own.)
        secondary_view: Option<bool>,
        /// `false`: every host of the subsystem sees the namespace.
        no_auto_visible: Option<bool>,
        /// Left out: reservations do not outlive the node.
        ptpl_file: Option<String>,
    }
}

params! {
    /// Parameters of `nvmf_subsystem_add_ns`.
    pub struct AddNamespace {
        /// Name of the subsystem.
        nqn: String,
        /// The namespace.
        namespace: Namespace,
        /// `nvmf_tgt`.
        tgt_name: Option<String>,
    }
}

params! {
    /// Parameters of `nvmf_subsystem_remove_ns`.
    pub struct RemoveNamespace {
        /// Name of the subsystem.
        nqn: String,
        /// Identifier of the namespace.
        nsid: u32,
        /// `nvmf_tgt`.
        tgt_name: Option<String>,
    }
}

pub fn methods() -> Vec<Method> {
    vec![
        Method::new("nvmf_subsystem_add_ns", Callable::Runtime, add)
            .summary("Exports a bdev as a namespace. Connected hosts are told.")
            .result("The namespace's identifier.")
            .example(
                r#"{"nqn": "nqn.2026-01.io.example:disks", "namespace":
                    {"bdev_name": "Malloc0", "nsid": 1, "uuid": "6c6f636b-7374-4570-8000-000000000001"}}"#,
            ),
    ]
}

pub fn removals() -> Vec<Method> {
    vec![
        Method::new("nvmf_subsystem_remove_ns", Callable::Runtime, remove)
            .summary("Takes a namespace away. Connected hosts are told; I/O in flight ends first.")
            .example(r#"{"nqn": "nqn.2026-01.io.example:disks", "nsid": 1}"#),
    ]
}

fn add(node: &Arc<Node>, params: AddNamespace) -> Result<u32, RpcError> {
    require_target(&params.tgt_name)?;
    let wanted = params.namespace;
    only("namespace.no_auto_visible", wanted.no_auto_visible, &[false])?;
    only("namespace.ptpl_file", wanted.ptpl_file, &[])?;
    let options = NamespaceOptions {
        bdev_name: wanted.bdev_name,
        nsid: wanted.nsid,
        nguid: wanted.nguid.map(|text| hexadecimal("namespace.nguid", &text)).transpose()?,
        eui64: wanted.eui64.map(|text| hexadecimal("namespace.eui64", &text)).transpose()?,
        uuid: wanted.uuid,
        anagrpid: wanted.anagrpid,
        follows_access: !wanted.secondary_view.unwrap_or(false),
    };
    Ok(node.nvmf().add_ns(&params.nqn, options)?)
}

fn remove(node: &Arc<Node>, params: RemoveNamespace) -> Result<bool, RpcError> {
    require_target(&params.tgt_name)?;
    node.nvmf().remove_ns(&params.nqn, params.nsid)?;
    Ok(true)
}

/// Reads an identifier: exactly `LEN` bytes of hexadecimal digits.
fn hexadecimal<const LEN: usize>(name: &str, text: &str) -> Result<[u8; LEN], RpcError> {
    let bad =
        || RpcError::invalid_params(format!("'{name}': '{text}' is not {} hexadecimal digits", 2 * LEN));
    if text.len() != 2 * LEN || !text.bytes().all(|byte| byte.is_ascii_hexdigit()) {
        return Err(bad());
    }
    let mut bytes = [0; LEN];
    for (byte, digits) in bytes.iter_mut().zip(text.as_bytes().chunks(2)) {
        let digits = std::str::from_utf8(digits).map_err(|_| bad())?;
        *byte = u8::from_str_radix(digits, 16).map_err(|_| bad())?;
    }
    Ok(bytes)
}

/// As `hexadecimal` reads it, in SPDK's capital letters.
pub fn show_hexadecimal(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02X}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn identifiers_are_read_and_shown_as_hexadecimal_digits() {
        let read: [u8; 8] = hexadecimal("eui64", "0123456789abCDEF").unwrap();
        assert_eq!(read, [0x01, 0x23, 0x45, 0x67, 0x89, 0xab, 0xcd, 0xef]);
        assert_eq!(show_hexadecimal(&read), "0123456789ABCDEF");
        for wrong in ["", "0123456789abcde", "0123456789abcdefg", "+123456789abcdef", "äää01234567890"] {
            assert!(hexadecimal::<8>("eui64", wrong).unwrap_err().message.contains("eui64"), "{wrong}");
        }
    }
}
