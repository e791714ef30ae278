//! What the tests of several files have in common.

use super::block::{Block, Source};
use super::maps::{Direction, PolicyEntry, Ports};

/// Allows everybody in.
pub(super) const ANY: PolicyEntry = PolicyEntry {
    identity: 0,
    direction: Direction::Ingress,
    protocol: None,
    ports: None,
    is_deny: false,
    auth: 0,
    is_auth_its_own: false,
    proxy_port: 0,
    precedence: 0,
};

/// Allows a peer in; the port has all bits.
pub(super) fn allow(identity: u32, protocol: Option<u8>, port: Option<u16>) -> PolicyEntry {
    PolicyEntry { identity, protocol, ports: port.and_then(|port| Ports::of(port, 16)), ..ANY }
}

/// The world is denied at endpoint 2636, as seen with 1.18-dev.
pub(super) const BLOCK: Block = Block {
    source_identity: 2,
    destination_identity: 12345,
    code: 133,
    extended: 0,
    endpoint: 2636,
    source: Some(Source { file: 2, line: 2121 }),
};
