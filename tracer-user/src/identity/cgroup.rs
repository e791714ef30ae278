//! Whose a process is, read from the names of its control groups (/proc/PID/cgroup). Kubernetes, its runtimes, Docker,
//! Podman and systemd each have their way to name them.

use super::object::Cgroup;

/// The longest name that is kept, in bytes: that of a file.
const LONGEST: usize = 255;

/// Reads the text of /proc/PID/cgroup (cgroups(7)): lines of `hierarchy:controllers:path`. On a hybrid system the
/// hierarchies don't say the same: the path that says most counts, the first of several. A process outside of this
/// process's cgroup namespace has paths that begin with `/..`; what follows is read all the same.
#[must_use]
pub fn parse(text: &str) -> Cgroup {
    let mut best = Cgroup::default();
    for line in text.lines() {
        let Some(path) = line.splitn(3, ':').nth(2) else { continue };
        let found = of_path(path);
        if worth(&found) > worth(&best) {
            best = found;
        }
    }
    best
}

/// How much it says.
#[must_use]
pub fn worth(cgroup: &Cgroup) -> u8 {
    let said = |part: &Option<String>, worth: u8| if part.is_some() { worth } else { 0 };
    said(&cgroup.pod, 8) + said(&cgroup.container, 4) + said(&cgroup.runtime, 2) + said(&cgroup.unit, 1)
}

/// Reads one path. Of pods inside pods (a node of kind is a container itself) the innermost counts, then the outermost
/// container in it: that one the runtime of the node knows.
fn of_path(path: &str) -> Cgroup {
    let path = path.strip_suffix(" (deleted)").unwrap_or(path);
    let mut found = Cgroup::default();
    let mut parent = "";
    for part in path.split('/').filter(|part| !part.is_empty() && *part != ".." && part.len() <= LONGEST) {
        // runc, told a systemd name but using cgroupfs, makes one name of slice, prefix and id.
        let mut pieces = part.split(':');
        let (first, rest) = (pieces.next().unwrap_or_default(), (pieces.next(), pieces.next()));
        if let Some(pod) = pod(first) {
            found = Cgroup { pod: Some(pod), ..Cgroup::default() };
        } else if let Some((runtime, id)) = container(part, parent).filter(|_| found.container.is_none()) {
            found = Cgroup { container: Some(id), runtime, unit: None, ..found };
        } else if is_unit(part) && !(part == "init.scope" && found.container.is_some()) {
            found.unit = Some(part.to_owned());
        }
        if let (Some(prefix), Some(id)) = rest
            && is_id(id)
        {
            found = Cgroup { container: Some(id.to_owned()), runtime: runtime(prefix), unit: None, ..found };
        }
        parent = part;
    }
    found
}

/// The uid in the name of a pod's control group: `podUID`, or `kubepods-burstable-podUID.slice` with `_` for `-`. The
/// prefix may be longer: systemd wants the names of all slices above in it.
fn pod(part: &str) -> Option<String> {
    let uid = match part.strip_suffix(".slice") {
        Some(slice) => slice.rsplit_once("-pod").filter(|(above, _)| above.contains("kubepods"))?.1,
        None => part.strip_prefix("pod")?,
    };
    is_uid(uid).then(|| uid.replace('_', "-"))
}

/// A UUID, or the hash of a static pod's manifest: 32 hexadecimal digits.
fn is_uid(text: &str) -> bool {
    let digits = text.bytes().filter(u8::is_ascii_hexdigit).count();
    let others = text.len() - digits;
    digits == 32
        && (others == 0 || others == 4)
        && text.bytes().all(|b| b.is_ascii_hexdigit() || b == b'-' || b == b'_')
}

/// The runtime, if the name tells, and the id in the name of a container's control group: `cri-containerd-ID.scope`,
/// `crio-ID`, `libpod-ID`, or the id alone.
fn container(part: &str, parent: &str) -> Option<(Option<String>, String)> {
    let name = part.strip_suffix(".scope").unwrap_or(part);
    if is_id(name) {
        return Some((runtime(parent).filter(|_| parent == "docker"), name.to_owned()));
    }
    let (prefix, id) = name.rsplit_once('-')?;
    // Beside each container of CRI-O and Podman is conmon, which is not in it.
    (is_id(id) && !prefix.ends_with("conmon")).then(|| (runtime(prefix), id.to_owned()))
}

/// Ids of containers are 64 hexadecimal digits everywhere.
fn is_id(text: &str) -> bool {
    text.len() == 64 && text.bytes().all(|b| b.is_ascii_hexdigit())
}

/// The runtime that puts this before its ids.
fn runtime(prefix: &str) -> Option<String> {
    let name = match prefix {
        "cri-containerd" => "containerd",
        "libpod" => "podman",
        name => name,
    };
    let is_word = !name.is_empty() && name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-');
    is_word.then(|| name.to_owned())
}

fn is_unit(part: &str) -> bool {
    part.ends_with(".service") || part.ends_with(".scope")
}

#[cfg(test)]
mod tests {
    use super::*;

    const ID: &str = "022c4ffba65e5031285fd427553e56c3fd6cc85a3a49f3fa2825d0a258d8a5d6";
    const OTHER: &str = "89ac90181a86fdea23d87ab993ceb698aa61528123c23135ef43fe5246a1b11e";
    const POD: &str = "1858680e-b044-4fd5-9dd4-f137e30e2180";
    const HASH: &str = "99dcb84d2a34f7e338778606703258c4";

    /// pod, container, runtime, unit
    type Expected = (Option<&'static str>, Option<&'static str>, Option<&'static str>, Option<&'static str>);

    fn check(text: &str, expected: Expected) {
        let found = parse(text);
        let got = (
            found.pod.as_deref(),
            found.container.as_deref(),
            found.runtime.as_deref(),
            found.unit.as_deref(),
        );
        assert_eq!(got, expected, "{text}");
        assert_eq!(found.container_name, None);
    }

    #[test]
    fn pods() {
        const SYSTEMD: &str = "kubepods-burstable-pod1858680e_b044_4fd5_9dd4_f137e30e2180.slice";
        let table: &[(String, Expected)] = &[
            // systemd driver, v2: containerd, CRI-O, cri-dockerd.
            (
                format!("0::/kubepods.slice/kubepods-burstable.slice/{SYSTEMD}/cri-containerd-{ID}.scope"),
                (Some(POD), Some(ID), Some("containerd"), None),
            ),
            (
                format!("0::/kubepods.slice/kubepods-pod{}.slice/crio-{ID}.scope", POD.replace('-', "_")),
                (Some(POD), Some(ID), Some("crio"), None),
            ),
            (
                format!(
                    "0::/kubepods.slice/kubepods-besteffort.slice/kubepods-besteffort-pod{}.slice/docker-{ID}.scope",
                    POD.replace('-', "_")
                ),
                (Some(POD), Some(ID), Some("docker"), None),
            ),
            // CRI-O puts the processes one deeper where it may.
            (
                format!("0::/kubepods.slice/kubepods-burstable.slice/{SYSTEMD}/crio-{ID}.scope/container"),
                (Some(POD), Some(ID), Some("crio"), None),
            ),
            // conmon is not in the container.
            (
                format!("0::/kubepods.slice/kubepods-burstable.slice/{SYSTEMD}/crio-conmon-{ID}.scope"),
                (Some(POD), None, None, Some("crio-conmon-ID.scope")),
            ),
            // cgroupfs driver, v1.
            (
                format!(
                    "11:memory:/kubepods/burstable/pod{POD}/{ID}\n1:name=systemd:/kubepods/burstable/pod{POD}/{ID}"
                ),
                (Some(POD), Some(ID), None, None),
            ),
            (format!("4:pids:/kubepods/pod{POD}/crio-{ID}"), (Some(POD), Some(ID), Some("crio"), None)),
            // A static pod.
            (
                format!(
                    "0::/kubelet.slice/kubelet-kubepods.slice/kubelet-kubepods-burstable.slice/kubelet-kubepods-burstable-pod{HASH}.slice/cri-containerd-{ID}.scope"
                ),
                (Some(HASH), Some(ID), Some("containerd"), None),
            ),
            (format!("0::/kubepods/burstable/pod{HASH}/{ID}"), (Some(HASH), Some(ID), None, None)),
            // The pod's own group.
            (format!("0::/kubepods/besteffort/pod{POD}"), (Some(POD), None, None, None)),
            // containerd told a systemd name but using cgroupfs.
            (
                format!("0::/system.slice/containerd.service/{SYSTEMD}:cri-containerd:{ID}"),
                (Some(POD), Some(ID), Some("containerd"), None),
            ),
            // kind, both drivers: a pod's container in a container of the machine.
            (
                format!("0::/docker/{OTHER}/kubelet/kubepods/besteffort/pod{POD}/{ID}"),
                (Some(POD), Some(ID), None, None),
            ),
            (
                format!(
                    "0::/system.slice/docker-{OTHER}.scope/kubelet.slice/kubelet-kubepods.slice/kubelet-{SYSTEMD}/cri-containerd-{ID}.scope"
                ),
                (Some(POD), Some(ID), Some("containerd"), None),
            ),
            // Docker in a pod: the node's runtime knows the outer container.
            (
                format!("0::/kubepods/burstable/pod{POD}/{ID}/docker/{OTHER}"),
                (Some(POD), Some(ID), None, None),
            ),
            // A cluster in a pod: the inner pod.
            (
                format!("0::/kubepods/pod{HASH}/{OTHER}/kubepods/burstable/pod{POD}/{ID}"),
                (Some(POD), Some(ID), None, None),
            ),
            // Seen from inside another cgroup namespace.
            (format!("0::/../../pod{POD}/{ID}"), (Some(POD), Some(ID), None, None)),
            (format!("0::/../cri-containerd-{ID}.scope"), (None, Some(ID), Some("containerd"), None)),
            // systemd in the container.
            (format!("0::/kubepods/burstable/pod{POD}/{ID}/init.scope"), (Some(POD), Some(ID), None, None)),
            (
                format!("0::/kubepods/burstable/pod{POD}/{ID}/system.slice/nginx.service"),
                (Some(POD), Some(ID), None, Some("nginx.service")),
            ),
            (format!("0::/kubepods/burstable/pod{POD}/{ID} (deleted)"), (Some(POD), Some(ID), None, None)),
            // Hybrid: only version 1 has it; only version 2 has it.
            (
                format!(
                    "12:pids:/kubepods/besteffort/pod{POD}/{ID}\n1:name=systemd:/\n0::/system.slice/containerd.service"
                ),
                (Some(POD), Some(ID), None, None),
            ),
            (
                format!("1:name=systemd:/system.slice/k3s.service\n0::/kubepods/besteffort/pod{POD}/{ID}"),
                (Some(POD), Some(ID), None, None),
            ),
        ];
        for (text, expected) in table {
            let unit = expected.3.map(|unit| unit.replace("ID", ID));
            let found = parse(text);
            assert_eq!(found.unit, unit, "{text}");
            check(text, (expected.0, expected.1, expected.2, found.unit.clone().map(|u| &*u.leak())));
        }
    }

    #[test]
    fn containers_without_kubernetes() {
        for (text, expected) in [
            (format!("0::/docker/{ID}"), (None, Some(ID), Some("docker"), None)),
            (format!("0::/system.slice/docker-{ID}.scope"), (None, Some(ID), Some("docker"), None)),
            (format!("9:cpu,cpuacct:/docker/{ID}\n0::/docker/{ID}"), (None, Some(ID), Some("docker"), None)),
            (format!("0::/docker/{ID}/docker/{OTHER}"), (None, Some(ID), Some("docker"), None)),
            (
                format!("0::/machine.slice/libpod-{ID}.scope/container"),
                (None, Some(ID), Some("podman"), None),
            ),
            (format!("0::/libpod_parent/libpod-{ID}"), (None, Some(ID), Some("podman"), None)),
            (
                format!("0::/user.slice/user-1000.slice/user@1000.service/user.slice/libpod-{ID}.scope"),
                (None, Some(ID), Some("podman"), None),
            ),
            (format!("0::/system.slice/nerdctl-{ID}.scope"), (None, Some(ID), Some("nerdctl"), None)),
            (format!("0::/default/{ID}"), (None, Some(ID), None, None)),
            (format!("0::/ecs/0123456789abcdef/{ID}"), (None, Some(ID), None, None)),
            (
                format!("0::/system.slice/docker-{ID}.scope/kubelet.slice/kubelet.service"),
                (None, Some(ID), Some("docker"), Some("kubelet.service")),
            ),
        ] {
            check(&text, expected);
        }
    }

    #[test]
    fn units() {
        for (text, unit) in [
            ("0::/system.slice/nginx.service", Some("nginx.service")),
            (
                "1:name=systemd:/system.slice/sshd.service\n0::/system.slice/sshd.service",
                Some("sshd.service"),
            ),
            ("0::/system.slice/k3s.service", Some("k3s.service")),
            (
                "0::/system.slice/system-postgresql.slice/postgresql@15-main.service",
                Some("postgresql@15-main.service"),
            ),
            ("0::/system.slice/foo.service/worker-1", Some("foo.service")),
            ("0::/user.slice/user-1000.slice/session-3.scope", Some("session-3.scope")),
            (
                "0::/user.slice/user-1000.slice/user@1000.service/app.slice/app-firefox-1234.scope",
                Some("app-firefox-1234.scope"),
            ),
            ("0::/init.scope", Some("init.scope")),
            ("0::/system.slice/containerd.service", Some("containerd.service")),
            ("0::/", None),
            ("9:name=systemd:/\n8:pids:/\n0::/", None),
        ] {
            check(text, (None, None, None, unit));
        }
    }

    #[test]
    fn what_is_no_name_is_none() {
        for text in [
            "",
            "\n\n",
            ":",
            "0::",
            "0:/kubepods",
            "0::/kubepods/burstable/podcast",
            "0::/kubepods/burstable/pod",
            "0::/kubepods/burstable/pod1858680e-b044-4fd5-9dd4-f137e30e218",
            "0::/podium.slice/a-podfather.slice",
            "0::/kubepods.slice/kubepods-burstable.slice",
            "0::/docker/deadbeef",
            "0::/system.slice/-.mount",
            "0::/../../..",
            "0::/é/\u{202e}/\0",
            "0::/::/:::",
        ] {
            check(text, (None, None, None, None));
        }
        check(&format!("0::/{}.service", "x".repeat(300)), (None, None, None, None));
        check(&format!("0::/\x1b[2J-{ID}.scope"), (None, Some(ID), None, None));
        check(&format!("0::{}", "/a".repeat(100_000)), (None, None, None, None));
    }

    #[test]
    fn any_damage_is_read_without_harm() {
        let good =
            format!("0::/system.slice/containerd.service/kubepods-pod{HASH}.slice:cri-containerd:{ID}\n");
        for at in 0..good.len() {
            for byte in [b'/', b':', b'-', b'\n', b'.', 0, 0xff, b'a'] {
                let mut bytes = good.clone().into_bytes();
                bytes[at] = byte;
                let _ = parse(&String::from_utf8_lossy(&bytes));
                let _ = parse(&String::from_utf8_lossy(&bytes[at..]));
            }
        }
    }
}
