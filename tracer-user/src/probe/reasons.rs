//! The names of drop reasons. A reason's number has its subsystem in the upper 16 bits (include/net/dropreason.h);
//! numbers differ from kernel to kernel, so both are read from BTF.

use super::btf::Btf;
use std::borrow::Cow;
use std::collections::BTreeMap;

/// `enum skb_drop_reason` (include/net/dropreason-core.h), which also names every subsystem's markers.
const CORE_ENUM: &str = "skb_drop_reason";
/// `enum skb_drop_reason_subsys` (include/net/dropreason.h)
const SUBSYSTEM_ENUM: &str = "skb_drop_reason_subsys";
const SUBSYSTEM_PREFIX: &str = "SKB_DROP_REASON_SUBSYS_";
/// SKB_DROP_REASON_SUBSYS_CORE
const CORE: u16 = 0;
/// How the enums of all subsystems are called: `mac80211_drop_reason` (net/mac80211/drop.h), `ovs_drop_reason`
/// (net/openvswitch/drop.h), `qdisc_drop_reason` (include/net/dropreason-qdisc.h). A new one would be found too:
/// its values tell its subsystem.
const ENUM_SUFFIX: &str = "drop_reason";

/// The drop reasons that this kernel and its modules know.
#[derive(Clone, Debug, Default)]
pub struct Reasons {
    subsystems: BTreeMap<u16, Box<str>>,
    names: BTreeMap<u32, Box<str>>,
}

/// A drop reason in words.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReasonName<'a> {
    /// `core`, `mac80211_unusable`, `openvswitch`, `qdisc` ...; the number of one that has no name.
    pub subsystem: Cow<'a, str>,
    /// `NETFILTER_DROP`, `RX_DROP_U_REPLAY`, `OVS_DROP_METER`, ...; `core:123` where the number has no name.
    pub name: Cow<'a, str>,
}

impl Reasons {
    /// Reads vmlinux's. Empty for kernels before 5.17, which have none.
    #[must_use]
    pub fn from_vmlinux(vmlinux: &Btf) -> Self {
        let mut reasons = Self::default();
        // 5.17 to 6.3 have reasons but no subsystems.
        reasons.subsystems.insert(CORE, "core".into());
        for value in vmlinux.enum_values(SUBSYSTEM_ENUM).unwrap_or_default() {
            if let (Ok(id), Some(name)) =
                (u16::try_from(value.value), value.name.strip_prefix(SUBSYSTEM_PREFIX))
                && name != "NUM"
            {
                reasons.subsystems.insert(id, name.to_ascii_lowercase().into());
            }
        }
        for value in vmlinux.enum_values(CORE_ENUM).unwrap_or_default() {
            // NOT_DROPPED_YET and CONSUMED are `SKB_NOT_DROPPED_YET` and `SKB_CONSUMED`.
            let name =
                value.name.strip_prefix("SKB_DROP_REASON_").or_else(|| value.name.strip_prefix("SKB_"));
            if let (Ok(number), Some(name)) = (u16::try_from(value.value), name)
                && name != "MAX"
            {
                reasons.names.insert(u32::from(number), name.into());
            }
        }
        reasons.add_module(vmlinux);
        reasons
    }

    /// Adds the reasons of a module's BTF (mac80211, openvswitch).
    pub fn add_module(&mut self, module: &Btf) {
        for enumeration in
            module.enum_names().filter(|name| name.ends_with(ENUM_SUFFIX) && *name != CORE_ENUM)
        {
            for value in module.enum_values(enumeration).unwrap_or_default() {
                let Ok(number) = u32::try_from(value.value) else { continue };
                let Some(name) = subsystem_reason(value.name) else { continue };
                let subsystem = subsystem_of(number);
                if subsystem != CORE && self.subsystems.contains_key(&subsystem) {
                    self.names.entry(number).or_insert_with(|| name.into());
                }
            }
        }
    }

    /// True if this kernel has no reasons at all.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.names.is_empty()
    }

    /// The words for the number that the tracepoint gave.
    #[must_use]
    pub fn name(&self, reason: u32) -> ReasonName<'_> {
        let id = subsystem_of(reason);
        let subsystem: Cow<'_, str> =
            self.subsystems.get(&id).map_or_else(|| id.to_string().into(), |name| Cow::Borrowed(&**name));
        let name = match self.names.get(&reason) {
            Some(name) => Cow::Borrowed(&**name),
            None => format!("{subsystem}:{}", reason & 0xffff).into(),
        };
        ReasonName { subsystem, name }
    }

    /// All reasons with a name, by number: what a filter's pattern is matched against.
    pub fn iter(&self) -> impl Iterator<Item = (u32, ReasonName<'_>)> {
        self.names.keys().map(|number| (*number, self.name(*number)))
    }
}

/// `SKB_DROP_REASON_SUBSYS_MASK` and `_SHIFT`.
fn subsystem_of(reason: u32) -> u16 {
    let [high, low, ..] = reason.to_be_bytes();
    u16::from_be_bytes([high, low])
}

/// The name of a subsystem's reason, `None` for an enum's markers. mac80211 declares its reasons twice, once with
/// `___` before each name; which of the two gets into BTF is up to the compiler. A marker has `__`
/// (`__OVS_DROP_REASON`) or is the last (`OVS_DROP_MAX`, `QDISC_DROP_MAX`).
fn subsystem_reason(name: &str) -> Option<&str> {
    let name = name.strip_prefix("___").unwrap_or(name);
    (!name.is_empty() && !name.starts_with('_') && !name.ends_with("_DROP_MAX")).then_some(name)
}

#[cfg(test)]
mod tests {
    use super::super::btf::BtfDir;
    use super::super::btf::synthetic::Builder;
    use super::*;
    use std::sync::Arc;

    /// As 7.1 has them, shortened.
    fn vmlinux() -> Builder {
        let mut builder = Builder::new();
        builder.enumeration(
            "skb_drop_reason",
            &[
                ("SKB_NOT_DROPPED_YET", 0),
                ("SKB_CONSUMED", 1),
                ("SKB_DROP_REASON_NOT_SPECIFIED", 2),
                ("SKB_DROP_REASON_NETFILTER_DROP", 11),
                ("SKB_DROP_REASON_MAX", 12),
                ("SKB_DROP_REASON_SUBSYS_MASK", 0xffff_0000),
            ],
        );
        builder.enumeration(
            "skb_drop_reason_subsys",
            &[
                ("SKB_DROP_REASON_SUBSYS_CORE", 0),
                ("SKB_DROP_REASON_SUBSYS_MAC80211_UNUSABLE", 1),
                ("SKB_DROP_REASON_SUBSYS_OPENVSWITCH", 2),
                ("SKB_DROP_REASON_SUBSYS_QDISC", 3),
                ("SKB_DROP_REASON_SUBSYS_NUM", 4),
            ],
        );
        builder.enumeration(
            "qdisc_drop_reason",
            &[
                ("QDISC_DROP_UNSPEC", 0),
                ("__QDISC_DROP_REASON", 0x3_0000),
                ("QDISC_DROP_GENERIC", 0x3_0001),
                ("QDISC_DROP_MAX", 0x3_0002),
            ],
        );
        builder
    }

    fn words(reasons: &Reasons, reason: u32) -> (String, String) {
        let ReasonName { subsystem, name } = reasons.name(reason);
        (subsystem.into_owned(), name.into_owned())
    }

    fn pair(subsystem: &str, name: &str) -> (String, String) {
        (subsystem.to_owned(), name.to_owned())
    }

    #[test]
    fn names_of_vmlinux() {
        let reasons = Reasons::from_vmlinux(&vmlinux().build());
        assert_eq!(words(&reasons, 11), pair("core", "NETFILTER_DROP"));
        assert_eq!(words(&reasons, 0), pair("core", "NOT_DROPPED_YET"));
        assert_eq!(words(&reasons, 1), pair("core", "CONSUMED"));
        assert_eq!(words(&reasons, 0x3_0001), pair("qdisc", "QDISC_DROP_GENERIC"));
        assert!(!reasons.is_empty());
    }

    #[test]
    fn numbers_without_a_name_keep_their_subsystem() {
        let reasons = Reasons::from_vmlinux(&vmlinux().build());
        assert_eq!(words(&reasons, 123), pair("core", "core:123"));
        assert_eq!(words(&reasons, 0x2_0005), pair("openvswitch", "openvswitch:5"));
        assert_eq!(words(&reasons, 0x9_0005), pair("9", "9:5"));
        for marker in [12, 0xffff_0000, 0x3_0000, 0x3_0002, 0x4_0000] {
            assert!(reasons.name(marker).name.contains(':'), "{marker:#x} is a marker, not a reason");
        }
        assert_eq!(reasons.iter().count(), 5);
    }

    #[test]
    fn modules_add_theirs() {
        let base = Arc::new(vmlinux().build());
        let mut reasons = Reasons::from_vmlinux(&base);
        let mut module = Builder::on(&base);
        module.enumeration(
            "___mac80211_drop_reason",
            &[("___RX_CONTINUE", 1), ("___RX_DROP_UNUSABLE", 0x1_0000), ("___RX_DROP_U_REPLAY", 0x1_0002)],
        );
        module.enumeration(
            "ovs_drop_reason",
            &[("__OVS_DROP_REASON", 0x2_0000), ("OVS_DROP_METER", 0x2_0005), ("OVS_DROP_MAX", 0x2_000c)],
        );
        module.enumeration("other_drop_reason", &[("OTHER", 3), ("UNKNOWN_SUBSYSTEM", 0x7_0001)]);
        reasons.add_module(&module.build_on(&base));
        assert_eq!(words(&reasons, 0x1_0000), pair("mac80211_unusable", "RX_DROP_UNUSABLE"));
        assert_eq!(words(&reasons, 0x1_0002), pair("mac80211_unusable", "RX_DROP_U_REPLAY"));
        assert_eq!(words(&reasons, 0x2_0005), pair("openvswitch", "OVS_DROP_METER"));
        assert_eq!(
            words(&reasons, 1),
            pair("core", "CONSUMED"),
            "mac80211's RX_CONTINUE has the same number"
        );
        for unnamed in [0x2_0000, 0x2_000c, 3, 0x7_0001] {
            assert!(reasons.name(unnamed).name.contains(':'), "{unnamed:#x}");
        }
    }

    #[test]
    fn kernels_without_reasons() {
        let reasons = Reasons::from_vmlinux(&Builder::new().build());
        assert!(reasons.is_empty());
        assert_eq!(words(&reasons, 2), pair("core", "core:2"));
    }

    #[test]
    fn names_of_this_machines_kernel() {
        let Ok(vmlinux) = BtfDir::default().load_vmlinux() else { return };
        let reasons = Reasons::from_vmlinux(&vmlinux);
        if reasons.is_empty() {
            return; // Before 5.17.
        }
        let names: Vec<_> = reasons.iter().map(|(_, name)| name.name.into_owned()).collect();
        for name in ["NOT_SPECIFIED", "NETFILTER_DROP"] {
            assert!(names.iter().any(|known| known == name), "{names:?}");
        }
        assert!(names.iter().all(|name| !name.starts_with("SKB_DROP") && name != "MAX"), "{names:?}");
    }
}
