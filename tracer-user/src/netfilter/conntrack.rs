//! Why connection tracking or NAT dropped a packet: the hook function says which of them did, the packet's entry and the
//! fill of the table say why. What they leave open stays open.

use super::attribute::Hook;
use super::memory::KernelMemory;
use super::model::Confidence;
use crate::probe::btf::Btf;

/// No new connection could be tracked: the table has as many as it may.
pub const TABLE_FULL: &str = "conntrack-table-full";
/// A new connection could not be entered: another one has its addresses and ports.
pub const CLASH: &str = "conntrack-clash";
/// Likewise, and its source is NAT's choice: no port was left, or two connections took the same one at once.
pub const NAT_CLASH: &str = "nat-port-clash";
/// NAT could not translate the packet, or not any more: its connection was masqueraded for another interface.
pub const NAT_FAILED: &str = "nat-failed";

/// Bits of nf_conn.status (`IPS_*`, include/uapi/linux/netfilter/nf_conntrack_common.h).
const CONFIRMED: u32 = 1 << 3;
const SRC_NAT: u32 = 1 << 4;
const SRC_NAT_DONE: u32 = 1 << 7;
const DST_NAT_DONE: u32 = 1 << 8;
const DYING: u32 = 1 << 9;
/// IP_CT_NEW, the last `enum ip_conntrack_info` of the original direction (same header).
const NEW: u8 = 2;
/// Hooks whose NAT is of the source (HOOK2MANIP, include/net/netfilter/nf_nat.h): NF_INET_LOCAL_IN, NF_INET_POST_ROUTING.
const SOURCE_HOOKS: [u8; 2] = [1, 4];

/// The packet's connection at the drop.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry {
    /// nf_conn.status
    pub status: u32,
    /// `enum ip_conntrack_info` of the packet.
    pub info: u8,
}

/// How full a netns' connection table is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fill {
    /// Connections tracked.
    pub count: u32,
    /// As many as there may be; 0: no limit.
    pub most: u32,
}

impl Fill {
    /// True if it was most likely full a moment ago: connections end between the drop and the reading.
    fn is_full(self) -> bool {
        self.most != 0 && self.count >= self.most - self.most / 16
    }
}

/// Why a hook function dropped a packet, and how sure that is; `None` if it is none of these, or can't be told. Sources:
/// nf_conntrack_in(), __nf_conntrack_confirm() (net/netfilter/nf_conntrack_core.c), nf_nat_inet_fn()
/// (net/netfilter/nf_nat_core.c).
#[must_use]
pub fn verdict(
    function: &str,
    hook: Option<Hook>,
    entry: Option<Entry>,
    fill: impl FnOnce() -> Option<Fill>,
) -> Option<(&'static str, Confidence)> {
    match function {
        "nf_conntrack_in"
        | "ipv4_conntrack_in"
        | "ipv4_conntrack_local"
        | "ipv6_conntrack_in"
        | "ipv6_conntrack_local" => {
            // Without memory, too, no entry is made; or a closed connection was opened by two packets at once.
            let is_full = entry.is_none() && fill()?.is_full();
            is_full.then_some((TABLE_FULL, Confidence::Inferred))
        }
        "nf_confirm" | "ipv4_confirm" | "ipv6_confirm" | "nf_ct_bridge_post" => {
            // A helper may drop a new connection, too, and so may a hash chain that is too long.
            let Entry { status, info } = entry?;
            let is_new = status & (CONFIRMED | DYING) == 0 && info <= NEW;
            let name = if status & SRC_NAT == 0 { CLASH } else { NAT_CLASH };
            is_new.then_some((name, Confidence::Inferred))
        }
        _ if function.starts_with("nf_nat_ipv4_") || function.starts_with("nf_nat_ipv6_") => {
            let done = if SOURCE_HOOKS.contains(&hook?.number) { SRC_NAT_DONE } else { DST_NAT_DONE };
            // Until it is done, a rule or a policy of a nat chain may have dropped the packet; then none is asked.
            (entry?.status & done != 0).then_some((NAT_FAILED, Confidence::Exact))
        }
        _ => None,
    }
}

/// Where the running kernel keeps count and limit: as settings (net.netfilter.nf_conntrack_count and nf_conntrack_max),
/// whose table each netns has. Offsets in bytes, from its BTF.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TableLayout {
    header: HeaderPlace,
    header_table: u32,
    setting_bytes: u32,
    setting_name: u32,
    setting_data: u32,
}

/// Where a netns has the pointer to the settings' struct ctl_table_header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum HeaderPlace {
    /// net.ct.sysctl_header (before 5.13).
    Net(u32),
    /// nf_conntrack_net.sysctl_header, by one of the per-module pointers in struct net_generic.
    Generic {
        net_generic: u32,
        pointers: u32,
        header: u32,
        /// Offset of `ptr[nf_conntrack_net_id]`, once it is found.
        found: Option<u32>,
    },
}

impl TableLayout {
    /// From the BTF of vmlinux and of nf_conntrack (`None` where it is built in). `None` if something is not described.
    #[must_use]
    pub fn resolve(vmlinux: &Btf, nf_conntrack: Option<&Btf>) -> Option<Self> {
        let at = |container, path| vmlinux.offset_of(container, path);
        let own = nf_conntrack.unwrap_or(vmlinux).offset_of("nf_conntrack_net", "sysctl_header");
        let header = match (at("net", "ct.sysctl_header"), own) {
            (Some(offset), _) => HeaderPlace::Net(offset),
            (None, Some(header)) => HeaderPlace::Generic {
                net_generic: at("net", "gen")?,
                pointers: at("net_generic", "ptr")?,
                header,
                found: None,
            },
            (None, None) => return None,
        };
        Some(Self {
            header,
            header_table: at("ctl_table_header", "ctl_table")?,
            setting_bytes: vmlinux.size_of("ctl_table")?,
            setting_name: at("ctl_table", "procname")?,
            setting_data: at("ctl_table", "data")?,
        })
    }

    /// How full the table of the netns at `net` is now.
    pub fn fill(&mut self, memory: &mut impl KernelMemory, net: u64) -> Option<Fill> {
        /// Per-module pointers that are tried: there are some thirty.
        const MAX_GENERIC: u32 = 128;
        match self.header {
            HeaderPlace::Net(offset) => self.fill_by(memory, net + u64::from(offset)),
            HeaderPlace::Generic { net_generic, pointers, header, found } => {
                let generic = memory.pointer(net + u64::from(net_generic))?;
                let offsets = match found {
                    Some(offset) => offset..offset + 1,
                    None => pointers..pointers + 8 * MAX_GENERIC,
                };
                offsets.step_by(8).find_map(|offset| {
                    // The right one proves itself by the settings' names.
                    let own = memory.pointer(generic + u64::from(offset))?;
                    let fill = self.fill_by(memory, own + u64::from(header))?;
                    let found = Some(offset);
                    self.header = HeaderPlace::Generic { net_generic, pointers, header, found };
                    Some(fill)
                })
            }
        }
    }

    /// By the place of the pointer to the settings.
    fn fill_by(&self, memory: &mut impl KernelMemory, at: u64) -> Option<Fill> {
        /// Settings that are looked at: these two are the first.
        const MAX_SETTINGS: u64 = 16;
        let header = memory.pointer(at)?;
        let table = memory.pointer(header + u64::from(self.header_table))?;
        let (mut count, mut most) = (None, None);
        for index in 0..MAX_SETTINGS {
            let setting = table + index * u64::from(self.setting_bytes);
            let name = memory.pointer(setting + u64::from(self.setting_name))?;
            let value = match memory.string(name, 64)?.as_str() {
                "nf_conntrack_count" => &mut count,
                "nf_conntrack_max" => &mut most,
                _ => continue,
            };
            let data = memory.pointer(setting + u64::from(self.setting_data))?;
            *value = Some(memory.u32(data)?);
            if let (Some(count), Some(most)) = (count, most) {
                return Some(Fill { count, most });
            }
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::super::memory::fake::Fake;
    use super::*;

    const FULL: Option<Fill> = Some(Fill { count: 4, most: 4 });

    fn told(function: &str, number: u8, status: Option<u32>, fill: Option<Fill>) -> Option<String> {
        let hook = Some(Hook { family: 2, number });
        let entry = status.map(|status| Entry { status, info: NEW });
        verdict(function, hook, entry, || fill).map(|(name, how)| format!("{name} {how:?}"))
    }

    #[test]
    fn a_full_table_is_concluded_from_its_fill() {
        let full = |count, most| told("ipv4_conntrack_in", 0, None, Some(Fill { count, most })).is_some();
        assert_eq!(told("ipv6_conntrack_local", 3, None, FULL).unwrap(), "conntrack-table-full Inferred");
        assert!(full(100, 100) && full(94, 100) && full(101, 100));
        assert!(!full(93, 100) && !full(3, 4) && !full(0, 0) && !full(u32::MAX, 0));
        assert_eq!(told("ipv4_conntrack_in", 0, None, None), None);
        // It has an entry: that there was no room for one is not why.
        assert_eq!(told("ipv4_conntrack_in", 0, Some(CONFIRMED), FULL), None);
        assert_eq!(told("ipv4_conntrack_defrag", 0, None, FULL), None);
    }

    #[test]
    fn what_is_not_entered_clashed() {
        for function in ["nf_confirm", "ipv4_confirm", "ipv6_confirm"] {
            let told = |status| told(function, 4, status, FULL);
            assert_eq!(told(Some(SRC_NAT_DONE)).unwrap(), "conntrack-clash Inferred");
            assert_eq!(told(Some(SRC_NAT | SRC_NAT_DONE)).unwrap(), "nat-port-clash Inferred");
            for status in [None, Some(CONFIRMED), Some(CONFIRMED | SRC_NAT), Some(DYING | SRC_NAT)] {
                assert_eq!(told(status), None, "{status:?}");
            }
        }
        // Replies are not entered.
        let reply = Entry { status: SRC_NAT, info: 3 };
        assert_eq!(verdict("nf_confirm", None, Some(reply), || None), None);
    }

    #[test]
    fn nat_that_is_done_asks_no_rule() {
        let nat = |function, number, status| told(function, number, Some(status), FULL);
        assert_eq!(nat("nf_nat_ipv4_out", 4, SRC_NAT_DONE).unwrap(), "nat-failed Exact");
        assert_eq!(nat("nf_nat_ipv6_fn", 1, SRC_NAT_DONE).unwrap(), "nat-failed Exact");
        assert_eq!(nat("nf_nat_ipv4_pre_routing", 0, DST_NAT_DONE).unwrap(), "nat-failed Exact");
        assert_eq!(nat("nf_nat_ipv4_local_fn", 3, DST_NAT_DONE).unwrap(), "nat-failed Exact");
        assert_eq!(nat("nf_nat_ipv4_out", 4, DST_NAT_DONE), None);
        assert_eq!(nat("nf_nat_ipv6_pre_routing", 0, SRC_NAT_DONE), None);
        assert_eq!(nat("nf_nat_manip_pkt", 4, SRC_NAT_DONE), None);
        assert_eq!(told("nf_nat_ipv4_out", 4, None, FULL), None);
        let entry = Some(Entry { status: SRC_NAT_DONE | DST_NAT_DONE, info: 0 });
        assert_eq!(verdict("nf_nat_ipv4_out", None, entry, || None), None);
    }

    const BASE: u64 = 0xffff_8880_0000_0000;

    fn layout(header: HeaderPlace) -> TableLayout {
        TableLayout { header, header_table: 8, setting_bytes: 32, setting_name: 0, setting_data: 8 }
    }

    /// Settings with their values; the pointer to their header at 256 after the start.
    fn settings(memory: &mut Fake, start: u64, values: &[(&str, u32)]) {
        let (header, table) = (start + 512, start + 1024);
        memory.put_u64(start + 256, header);
        memory.put_u64(header + 8, table);
        for (index, (name, value)) in (0..).zip(values) {
            let (text, data) = (start + 2048 + 64 * index, start + 4096 + 8 * index);
            memory.put_u64(table + 32 * index, text);
            memory.put_u64(table + 32 * index + 8, data);
            let mut bytes = [0; 64];
            bytes[..name.len()].copy_from_slice(name.as_bytes());
            memory.put(text, &bytes);
            memory.put(data, &value.to_ne_bytes());
        }
        memory.put_u64(table + 32 * values.len() as u64, 0);
    }

    #[test]
    fn the_fill_is_read_from_the_settings() {
        let mut memory = Fake::default();
        settings(&mut memory, BASE, &[("nf_conntrack_max", 9), ("other", 1), ("nf_conntrack_count", 7)]);
        assert_eq!(layout(HeaderPlace::Net(256)).fill(&mut memory, BASE), Some(Fill { count: 7, most: 9 }));
        assert_eq!(layout(HeaderPlace::Net(264)).fill(&mut memory, BASE), None);
        settings(&mut memory, BASE, &[("nf_conntrack_count", 7)]);
        assert_eq!(layout(HeaderPlace::Net(256)).fill(&mut memory, BASE), None);
    }

    #[test]
    fn the_modules_pointer_proves_itself_and_is_kept() {
        let mut memory = Fake::default();
        let (net, generic, other, own) = (BASE, BASE + 0x10000, BASE + 0x20000, BASE + 0x30000);
        memory.put_u64(net + 16, generic);
        memory.put_u64(generic + 8, other);
        memory.put_u64(generic + 24, own);
        settings(&mut memory, other, &[("nf_log", 1)]);
        settings(&mut memory, own, &[("nf_conntrack_max", 4), ("nf_conntrack_count", 3)]);
        let place = |found| HeaderPlace::Generic { net_generic: 16, pointers: 8, header: 256, found };
        let mut layout = layout(place(None));
        assert_eq!(layout.fill(&mut memory, net), Some(Fill { count: 3, most: 4 }));
        assert_eq!(layout.header, place(Some(24)));
        memory.put(own + 4096 + 8, &4_u32.to_ne_bytes());
        assert_eq!(layout.fill(&mut memory, net), Some(Fill { count: 4, most: 4 }));
    }
}
