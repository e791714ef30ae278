//! What a runtime says of a sandbox, as an [`object::Sandbox`](Sandbox). Nothing here asks anybody.

use super::messages::{NamespaceMode, PodSandbox, PodSandboxStatusResponse, SandboxState};
use crate::event::model::Timestamp;
use crate::identity::object::{Labels, Name, Sandbox};
use serde::Deserialize;
use std::net::IpAddr;
use std::path::PathBuf;

/// The longest name of Kubernetes, a DNS subdomain, in bytes. Nothing longer is one.
const LONGEST_NAME: usize = 253;
/// The longest key of a label, in bytes: a subdomain, a slash, 63 letters.
const LONGEST_KEY: usize = LONGEST_NAME + 1 + 63;
/// The longest value of a label, in bytes.
const LONGEST_VALUE: usize = 63;
/// The longest id, in bytes. Runtimes make 64 hexadecimal digits.
const LONGEST_ID: usize = 256;
/// More labels are not kept.
const MOST_LABELS: usize = 256;
/// More addresses are not kept. A pod has one of each family, and one more of each additional network at most.
const MOST_ADDRESSES: usize = 32;
/// Labels that the kubelet adds to those of the pod begin like this: `io.kubernetes.pod.uid`.
const KUBELETS: &str = "io.kubernetes.pod.";

/// The sandbox as a list has it: without addresses and network namespace. `None` if it is none that Kubernetes made.
pub(super) fn listed(sandbox: &PodSandbox) -> Option<Sandbox> {
    let metadata = sandbox.metadata.clone().unwrap_or_default();
    let names = [&metadata.namespace, &metadata.name, &metadata.uid];
    let usable = !sandbox.id.is_empty()
        && sandbox.id.len() <= LONGEST_ID
        && !metadata.name.is_empty()
        && names.iter().all(|name| name.len() <= LONGEST_NAME && !name.contains(char::is_control));
    usable.then(|| Sandbox {
        id: sandbox.id.clone(),
        pod: Name::new(metadata.namespace, metadata.name),
        uid: metadata.uid,
        labels: labels(sandbox),
        ready: sandbox.state == SandboxState::Ready as i32,
        created: (sandbox.created_at > 0).then(|| Timestamp(sandbox.created_at.into())),
        ..Sandbox::default()
    })
}

/// The pod's labels. Those that can't be labels of a pod are left out.
fn labels(sandbox: &PodSandbox) -> Labels {
    sandbox
        .labels
        .iter()
        .filter(|(key, value)| {
            !key.starts_with(KUBELETS)
                && key.len() <= LONGEST_KEY
                && value.len() <= LONGEST_VALUE
                && !key.contains(char::is_control)
                && !value.contains(char::is_control)
        })
        .take(MOST_LABELS)
        .map(|(key, value)| (key.clone(), value.clone()))
        .collect()
}

/// What only the status of a sandbox tells.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Detail {
    /// Its addresses.
    pub(super) addresses: Vec<IpAddr>,
    /// True if it is in the node's network namespace.
    pub(super) host_network: bool,
    /// Where its network namespace is mounted, on the node.
    pub(super) netns: Option<PathBuf>,
    /// Its first process, as the runtime numbers it.
    pub(super) pid: Option<u32>,
}

/// `info["info"]`: containerd's `SandboxInfo` and CRI-O's `createSandboxInfo` have this in common. CRI-O without a
/// process of its own leaves the process out; cri-dockerd tells nothing.
#[derive(Deserialize, Default)]
#[serde(default)]
struct Info {
    pid: Option<i64>,
    #[serde(rename = "runtimeSpec")]
    spec: Option<Spec>,
}

/// The OCI runtime specification, config-linux.md.
#[derive(Deserialize, Default)]
#[serde(default)]
struct Spec {
    linux: Option<Linux>,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct Linux {
    namespaces: Option<Vec<SpecNamespace>>,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct SpecNamespace {
    #[serde(rename = "type")]
    kind: String,
    path: String,
}

/// Reads the status of a sandbox. What is missing or can't be understood is left empty.
pub(super) fn detail(answer: &PodSandboxStatusResponse) -> Detail {
    let status = answer.status.clone().unwrap_or_default();
    let network = status.network.unwrap_or_default();
    let addresses = std::iter::once(&network.ip)
        .chain(network.additional_ips.iter().map(|additional| &additional.ip))
        .filter_map(|text| text.parse().ok())
        .take(MOST_ADDRESSES)
        .collect();
    let options = status.linux.and_then(|linux| linux.namespaces).and_then(|namespaces| namespaces.options);
    // A runtime that says nothing of namespaces means a pod's own: that is 0.
    let host_network = options.unwrap_or_default().network == NamespaceMode::Node as i32;
    let info: Info =
        answer.info.get("info").and_then(|text| serde_json::from_str(text).ok()).unwrap_or_default();
    let namespaces = info.spec.and_then(|spec| spec.linux).and_then(|linux| linux.namespaces);
    let netns = namespaces
        .unwrap_or_default()
        .into_iter()
        .find(|namespace| namespace.kind == "network" && namespace.path.starts_with('/'))
        .map(|namespace| PathBuf::from(namespace.path));
    let pid = info.pid.and_then(|pid| u32::try_from(pid).ok()).filter(|&pid| pid > 0);
    Detail { addresses, host_network, netns, pid }
}

#[cfg(test)]
mod tests {
    use super::super::messages::*;
    use super::*;
    use prost::Message;
    use std::collections::BTreeMap;

    fn sandbox(labels: &[(&str, &str)]) -> PodSandbox {
        PodSandbox {
            id: "5d1f".into(),
            metadata: Some(PodSandboxMetadata {
                name: "cart-7c9".into(),
                uid: "2b7c1a7e-8a43-4a62-a0b5-7b4f0a3d8f11".into(),
                namespace: "shop".into(),
            }),
            state: 0,
            created_at: 1_700_000_000_000_000_001,
            labels: labels.iter().map(|&(key, value)| (key.to_owned(), value.to_owned())).collect(),
        }
    }

    #[test]
    fn a_listed_sandbox_is_a_pods() {
        let found = listed(&sandbox(&[("app", "cart"), ("io.kubernetes.pod.name", "cart-7c9")])).unwrap();
        assert_eq!(found.pod.to_string(), "shop/cart-7c9");
        assert_eq!(found.uid, "2b7c1a7e-8a43-4a62-a0b5-7b4f0a3d8f11");
        assert_eq!(found.labels, Labels::from([("app".into(), "cart".into())]));
        assert!(found.ready && !found.host_network && found.netns.is_none());
        assert_eq!(found.created, Some(Timestamp(1_700_000_000_000_000_001)));
    }

    #[test]
    fn what_cannot_be_a_pod_is_left_out() {
        let with = |change: fn(&mut PodSandbox)| {
            let mut sandbox = sandbox(&[]);
            change(&mut sandbox);
            listed(&sandbox)
        };
        assert!(with(|_| ()).is_some());
        assert_eq!(with(|sandbox| sandbox.id = String::new()), None);
        assert_eq!(with(|sandbox| sandbox.id = "x".repeat(257)), None);
        assert_eq!(with(|sandbox| sandbox.metadata = None), None);
        let long = |metadata: &mut PodSandboxMetadata| metadata.name = "x".repeat(254);
        let mut odd = sandbox(&[]);
        odd.metadata.iter_mut().for_each(long);
        assert_eq!(listed(&odd), None);
        odd.metadata.iter_mut().for_each(|metadata| metadata.name = "a\x1b[2Jb".into());
        assert_eq!(listed(&odd), None);
    }

    #[test]
    fn labels_are_bounded() {
        let many: Vec<(String, String)> = (0..1000).map(|n| (format!("k{n}"), "v".into())).collect();
        let many: Vec<(&str, &str)> = many.iter().map(|(k, v)| (k.as_str(), v.as_str())).collect();
        assert_eq!(listed(&sandbox(&many)).unwrap().labels.len(), MOST_LABELS);
        let (key, value) = ("k".repeat(LONGEST_KEY + 1), "v".repeat(LONGEST_VALUE + 1));
        let odd = sandbox(&[(&key, "v"), ("k", &value), ("a\nb", "v"), ("b", "a\x07"), ("good", "")]);
        assert_eq!(listed(&odd).unwrap().labels, Labels::from([("good".into(), String::new())]));
    }

    fn answer(network: i32, info: Option<&str>) -> PodSandboxStatusResponse {
        let addresses = ["fd00::7", "not an address", ""].map(|ip| PodIp { ip: ip.into() });
        PodSandboxStatusResponse {
            status: Some(PodSandboxStatus {
                id: "5d1f".into(),
                network: Some(PodSandboxNetworkStatus {
                    ip: "10.244.3.7".into(),
                    additional_ips: addresses.into(),
                }),
                linux: Some(LinuxPodSandboxStatus {
                    namespaces: Some(Namespace { options: Some(NamespaceOption { network }) }),
                }),
            }),
            info: info.iter().map(|text| ("info".to_owned(), (*text).to_owned())).collect(),
        }
    }

    /// What containerd 1.6 answered, shortened; CRI-O's has the same keys.
    const INFO: &str = r#"{"pid":4711,"processStatus":"running","netNamespaceClosed":false,"image":"x","snapshotter":"overlayfs",
        "runtimeSpec":{"ociVersion":"1.0.2-dev","linux":{"resources":{},"cgroupsPath":"/kubepods/podX/5d1f","namespaces":[
        {"type":"pid"},{"type":"ipc"},{"type":"mount"},{"type":"network","path":"/var/run/netns/cni-1a2b"}]}}}"#;

    #[test]
    fn a_status_has_addresses_and_the_way_to_the_netns() {
        let found = detail(&answer(0, Some(INFO)));
        assert_eq!(
            found.addresses,
            ["10.244.3.7".parse::<IpAddr>().unwrap(), "fd00::7".parse::<IpAddr>().unwrap()]
        );
        assert_eq!(found.netns, Some(PathBuf::from("/var/run/netns/cni-1a2b")));
        assert_eq!((found.pid, found.host_network), (Some(4711), false));
        assert!(detail(&answer(2, Some(INFO))).host_network);
    }

    #[test]
    fn a_status_that_tells_less_leaves_it_out() {
        let odd = [
            "{}",
            "",
            "[",
            "null",
            r#"{"pid":-1}"#,
            r#"{"pid":99999999999,"runtimeSpec":null}"#,
            r#"{"runtimeSpec":{"linux":{"namespaces":null}}}"#,
            r#"{"runtimeSpec":{"linux":{"namespaces":[{"type":"network"},{"type":"network","path":"relative"}]}}}"#,
        ];
        for text in odd {
            let found = detail(&answer(0, Some(text)));
            assert_eq!((found.netns, found.pid, found.addresses.len()), (None, None, 2), "{text}");
        }
        assert_eq!(detail(&answer(0, None)).netns, None);
        assert_eq!(detail(&PodSandboxStatusResponse::default()), Detail::default());
    }

    #[test]
    fn the_wire_has_the_numbers_of_the_proto() {
        // By hand: items(1) { id(1) "ab", metadata(2) { name(1) "p", uid(2) "u", namespace(3) "n", attempt(4) 1 },
        // state(3) 1, created_at(4) 5, labels(5) { key(1) "k", value(2) "v" }, annotations(6) {..}, handler(7) "h" }
        let bytes = b"\x0a\x2b\x0a\x02ab\x12\x0b\x0a\x01p\x12\x01u\x1a\x01n\x20\x01\x18\x01\x20\x05\x2a\x06\x0a\x01k\x12\x01v\x32\x06\x0a\x01k\x12\x01v\x3a\x01h";
        let bytes = {
            let mut bytes = bytes.to_vec();
            bytes[1] = u8::try_from(bytes.len() - 2).unwrap();
            bytes
        };
        let list = ListPodSandboxResponse::decode(&*bytes).unwrap();
        let expected = PodSandbox {
            id: "ab".into(),
            metadata: Some(PodSandboxMetadata { name: "p".into(), uid: "u".into(), namespace: "n".into() }),
            state: 1,
            created_at: 5,
            labels: BTreeMap::from([("k".into(), "v".into())]),
        };
        assert_eq!(list.items, [expected]);
    }

    #[test]
    fn any_bytes_are_refused_or_read() {
        let good = answer(0, Some(INFO)).encode_to_vec();
        for at in 0..good.len() {
            for bit in 0..8 {
                let mut bytes = good.clone();
                bytes[at] ^= 1 << bit;
                if let Ok(answer) = PodSandboxStatusResponse::decode(&*bytes) {
                    let _ = detail(&answer);
                }
                let _ = ListPodSandboxResponse::decode(&bytes[..at]);
            }
        }
    }
}
