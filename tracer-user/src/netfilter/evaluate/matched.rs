//! Rules of iptables that a packet met for certain: what their texts say of it.

use super::packet::Packet;
use super::path;
use super::rule::Rule;
use super::walk::Changes;

/// What came of a rule, as in [`crate::trace::model::RuleMet::verdict`].
#[must_use]
pub fn verdict(text: &str) -> String {
    path::verdict(&Rule::parse(text))
}

/// The packet behind these rules, as far as it is known. Its mark is left as it is.
#[must_use]
pub fn behind<'p>(packet: &Packet<'p>, texts: impl Iterator<Item = impl AsRef<str>>) -> Packet<'p> {
    let mut changes = Changes::default();
    texts.for_each(|text| changes.add(&Rule::parse(text.as_ref()).action.writes));
    changes.before(packet)
}
