//! What this kernel, the privileges and the container allow: facts → lines, each negative one with what changes it. What
//! stands in the way of the whole tool is what [`environment::check`] refuses, too.

use super::model::{Mechanism, State};
use crate::netfilter::model::{Backend, Mechanism as Told, Mechanisms};
use crate::output::escape;
use crate::probe::environment::{self, Capability, Facts, KernelVersion, OLDEST, TESTED};
use crate::probe::offsets::MissingField;

/// What the rest of the system says.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Surroundings {
    /// tracefs is mounted where it belongs.
    pub tracefs: bool,
    /// Tables of iptables in this network namespace: the backend, and the table.
    pub backends: Vec<(Backend, String)>,
    /// Programs that print rules, and whether they are installed.
    pub tools: Vec<(&'static str, bool)>,
    /// The kernel's clock is kept by somebody (NTP); `None` if it doesn't say.
    pub is_clock_kept: Option<bool>,
    /// Tracked connections, and how many there may be.
    pub conntrack: Option<(u64, u64)>,
}

/// The lines.
#[must_use]
pub fn lines(facts: &Facts, about: &Surroundings) -> Vec<Mechanism> {
    let mut lines =
        vec![kernel(facts), types(facts), capabilities(facts), user_namespace(facts), lockdown(facts)];
    lines.push(addresses(facts));
    lines.push(Mechanism {
        name: "tracefs",
        state: State::Works,
        says: if about.tracefs {
            "mounted; droptrace does not need it"
        } else {
            "not mounted, and not needed"
        }
        .into(),
        fix: None,
    });
    lines.push(backends(about));
    lines.push(tools(about));
    lines.extend(about.conntrack.map(|(count, max)| conntrack(count, max)));
    lines.extend(about.is_clock_kept.map(clock));
    lines
}

/// The line about the tracepoint on which all is built. `missing` are the fields that this kernel does not have; none if the
/// program is not attached.
#[must_use]
pub fn tracepoint(missing: Option<&[MissingField]>) -> Mechanism {
    let name = "tracepoint";
    let Some(missing) = missing else {
        let fix = "see the error that is printed with this, and the lines that say \"missing\"";
        return off(name, "skb:kfree_skb is not attached: drops are not seen", fix);
    };
    if missing.is_empty() {
        return works(name, "skb:kfree_skb is attached, and all fields are known");
    }
    let what: Vec<_> =
        missing.iter().map(|field| format!("no {}: {}", field.what, field.consequence)).collect();
    limited(name, format!("skb:kfree_skb is attached; {}", what.join("; ")), "boot a newer kernel")
}

/// The lines about which rule dropped a packet.
#[must_use]
pub fn rules(mechanisms: &Mechanisms) -> Vec<Mechanism> {
    let parts = [
        ("nft rules", &mechanisms.nft_rules),
        ("nft policies", &mechanisms.nft_policies),
        ("iptables-legacy", &mechanisms.legacy),
        ("hook functions", &mechanisms.functions),
        ("nft in a trace", &mechanisms.nft_trace),
    ];
    let line = |(name, mechanism): (&'static str, &Told)| match mechanism {
        Told::Exact(how) => works(name, format!("exact: {how}")),
        Told::Off(why) => Mechanism { name, state: State::Off, says: format!("not told: {why}"), fix: None },
    };
    parts.map(line).into()
}

fn works(name: &'static str, says: impl Into<String>) -> Mechanism {
    Mechanism { name, state: State::Works, says: says.into(), fix: None }
}

fn limited(name: &'static str, says: impl Into<String>, fix: &str) -> Mechanism {
    Mechanism { name, state: State::Limited, says: says.into(), fix: Some(fix.to_owned()) }
}

fn off(name: &'static str, says: impl Into<String>, fix: &str) -> Mechanism {
    Mechanism { name, state: State::Off, says: says.into(), fix: Some(fix.to_owned()) }
}

fn kernel(facts: &Facts) -> Mechanism {
    let release: String = escape(&facts.release).chars().take(64).collect();
    match KernelVersion::parse(&facts.release) {
        Some(version) if version >= TESTED => works("kernel", format!("Linux {release}")),
        Some(version) if version >= OLDEST => limited(
            "kernel",
            format!("Linux {release} is older than what droptrace is tested on ({TESTED})"),
            "boot a newer kernel",
        ),
        _ => off(
            "kernel",
            format!("Linux {release}: BPF ring buffers came with {OLDEST}"),
            "boot a newer kernel",
        ),
    }
}

fn types(facts: &Facts) -> Mechanism {
    if facts.btf {
        return works("types (BTF)", "/sys/kernel/btf/vmlinux is there");
    }
    off(
        "types (BTF)",
        "there is no /sys/kernel/btf/vmlinux",
        "boot a kernel with CONFIG_DEBUG_INFO_BTF, or mount it here: mount -t sysfs sysfs /sys",
    )
}

fn capabilities(facts: &Facts) -> Mechanism {
    let name = "capabilities";
    let kernel = KernelVersion::parse(&facts.release).unwrap_or(TESTED);
    let missing = environment::missing(facts, kernel);
    if !missing.is_empty() {
        return off(
            name,
            format!("{} missing", environment::list(&missing)),
            "run it with sudo; in a container, add the capabilities BPF, PERFMON and SYSLOG to its security context",
        );
    }
    if !facts.capabilities.has(Capability::Syslog) {
        let fix = "run it with sudo, or add the capability SYSLOG";
        return limited(name, "CAP_SYSLOG missing: places in the kernel may have no names", fix);
    }
    if !facts.capabilities.has(Capability::SysAdmin) {
        let says =
            "CAP_SYS_ADMIN missing: settings and the text of rules in other network namespaces can't be read";
        return limited(name, says, "run it with sudo, or add the capability SYS_ADMIN");
    }
    works(name, "all that are needed")
}

fn user_namespace(facts: &Facts) -> Mechanism {
    let name = "user namespace";
    if facts.initial_user_namespace {
        return works(name, "the machine's own");
    }
    off(
        name,
        "one of a (rootless?) container's own, where the kernel lets nobody trace it",
        "run droptrace as root of the machine itself, or with hostUsers: true",
    )
}

fn lockdown(facts: &Facts) -> Mechanism {
    if !facts.confidentiality {
        return works("lockdown", "programs may read kernel memory");
    }
    off(
        "lockdown",
        "confidentiality: programs may not read kernel memory",
        "boot with lockdown=integrity or without lockdown",
    )
}

fn addresses(facts: &Facts) -> Mechanism {
    let name = "kptr_restrict";
    match facts.kptr_restrict {
        Some(level) if level >= 2 => limited(
            name,
            format!("{level}: places in the kernel have no names"),
            "sysctl -w kernel.kptr_restrict=1",
        ),
        Some(level) => works(name, format!("{level}: addresses are shown to root")),
        None => works(name, "not known"),
    }
}

fn backends(about: &Surroundings) -> Mechanism {
    let of = |(name, backend): (&str, Backend)| {
        let tables: Vec<_> =
            about.backends.iter().filter(|it| it.0 == backend).map(|it| escape(&it.1)).collect();
        (!tables.is_empty()).then(|| format!("{name} has {}", tables.join(", ")))
    };
    let there: Vec<_> =
        [("legacy", Backend::Legacy), ("nft", Backend::Nft)].into_iter().filter_map(of).collect();
    let none = "neither has a table in this network namespace";
    works("iptables", if there.is_empty() { none.to_owned() } else { there.join("; ") })
}

fn tools(about: &Surroundings) -> Mechanism {
    let name = "rule tools";
    let (there, missing): (Vec<_>, Vec<_>) = about.tools.iter().partition(|(_, is_there)| *is_there);
    let names =
        |tools: &[&(&'static str, bool)]| tools.iter().map(|tool| tool.0).collect::<Vec<_>>().join(", ");
    if missing.is_empty() {
        return works(name, format!("{} are installed", names(&there)));
    }
    limited(
        name,
        format!("{} not found: their rules are named without their text", names(&missing)),
        "install iptables and nftables where droptrace runs",
    )
}

fn conntrack(count: u64, max: u64) -> Mechanism {
    works("conntrack", format!("{count} of {max} connections ({} %)", count.saturating_mul(100) / max.max(1)))
}

fn clock(is_kept: bool) -> Mechanism {
    if is_kept {
        return works("clock", "kept in step by NTP or the like");
    }
    limited(
        "clock",
        "not kept in step: the times of drops of several nodes can't be compared",
        "start chronyd, or: timedatectl set-ntp true",
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::probe::environment::Capabilities;

    fn facts() -> Facts {
        Facts {
            release: "6.12.117-cloud-amd64".to_owned(),
            capabilities: Capabilities(u64::MAX),
            initial_user_namespace: true,
            btf: true,
            confidentiality: false,
            kptr_restrict: Some(0),
            memlock_unlimited: false,
        }
    }

    fn about() -> Surroundings {
        Surroundings {
            tracefs: true,
            backends: vec![(Backend::Nft, "ipv4 nat".into()), (Backend::Nft, "ipv4 filter".into())],
            tools: vec![("nft", true)],
            is_clock_kept: Some(true),
            conntrack: Some((3, 100)),
        }
    }

    #[test]
    fn a_machine_on_which_all_is_well() {
        let lines = lines(&facts(), &about());
        assert!(lines.iter().all(|line| line.state == State::Works && line.fix.is_none()), "{lines:?}");
        let says = |about| backends(&about).says;
        assert_eq!(says(about()), "nft has ipv4 nat, ipv4 filter");
        assert_eq!(says(Surroundings::default()), "neither has a table in this network namespace");
    }

    #[test]
    fn the_tracepoint_with_and_without_its_fields() {
        let field = MissingField { what: "sk_buff.mark", consequence: "no marks", essential: false };
        let states = [None, Some(&[][..]), Some(&[field][..])].map(|missing| tracepoint(missing).state);
        assert_eq!(states, [State::Off, State::Works, State::Limited]);
        assert!(tracepoint(Some(&[field])).says.ends_with("no sk_buff.mark: no marks"));
    }

    #[test]
    fn each_negative_line_says_what_to_do_and_what_refuses_is_off() {
        let bits = |capabilities: &[Capability]| {
            Capabilities(capabilities.iter().fold(0, |set, capability| set | 1 << (*capability as u8)))
        };
        let cases = [
            ("kernel", Facts { release: "4.19\x1b".into(), ..facts() }),
            ("kernel", Facts { release: "5.8.1".into(), ..facts() }),
            ("types (BTF)", Facts { btf: false, ..facts() }),
            ("capabilities", Facts { capabilities: Capabilities(0), ..facts() }),
            ("capabilities", Facts { capabilities: bits(&[Capability::SysAdmin]), ..facts() }),
            (
                "capabilities",
                Facts {
                    capabilities: bits(&[Capability::Bpf, Capability::Perfmon, Capability::Syslog]),
                    ..facts()
                },
            ),
            ("user namespace", Facts { initial_user_namespace: false, ..facts() }),
            ("lockdown", Facts { confidentiality: true, ..facts() }),
            ("kptr_restrict", Facts { kptr_restrict: Some(2), ..facts() }),
        ];
        for (name, facts) in cases {
            let is_refused = environment::check(&facts).is_err();
            let lines = lines(&facts, &about());
            let line = lines.iter().find(|line| line.state != State::Works).unwrap();
            assert_eq!((line.name, line.state == State::Off), (name, is_refused), "{line:?}");
            assert!(line.fix.is_some() && !line.says.contains('\x1b'), "{line:?}");
        }
        let bad = Surroundings { tools: vec![("nft", false)], is_clock_kept: Some(false), ..about() };
        let lines = lines(&facts(), &bad);
        let limited: Vec<_> = lines.iter().filter(|line| line.fix.is_some()).map(|line| line.name).collect();
        assert_eq!(limited, ["rule tools", "clock"]);
    }
}
