//! What a pod is a part of: by its owner references, else by the labels and names that Kubernetes' own controllers give.

use super::object::{Labels, Owner};

/// `kind/name` of a pod's workload. `above` tells the owner of a pod's owner (a ReplicaSet's Deployment); `None` if that
/// isn't known, `Some(None)` if it has none.
#[must_use]
pub fn of_pod(
    pod: &str,
    labels: &Labels,
    owner: Option<&Owner>,
    above: impl Fn(&Owner) -> Option<Option<Owner>>,
) -> Option<String> {
    let Some(owner) = owner else { return by_labels(pod, labels) };
    if owner.kind == "Node" {
        // A static pod, which the kubelet started by itself.
        return None;
    }
    let top = match above(owner) {
        Some(top) => top.unwrap_or_else(|| owner.clone()),
        None => guess_above(owner, labels).unwrap_or_else(|| owner.clone()),
    };
    Some(format!("{}/{}", top.kind.to_ascii_lowercase(), top.name))
}

/// A ReplicaSet that a Deployment made is called after it and the hash that its pods have as a label
/// (pkg/controller/deployment/sync.go).
fn guess_above(owner: &Owner, labels: &Labels) -> Option<Owner> {
    if owner.kind != "ReplicaSet" {
        return None;
    }
    let hash = labels.get("pod-template-hash").filter(|hash| !hash.is_empty())?;
    let name = owner.name.strip_suffix(hash.as_str())?.strip_suffix('-')?;
    Some(Owner { kind: "Deployment".to_owned(), name: name.to_owned() })
}

/// Where only the node's container runtime is asked, there are no owners.
fn by_labels(pod: &str, labels: &Labels) -> Option<String> {
    let label = |name: &str| labels.get(name).map(String::as_str).filter(|value| !value.is_empty());
    // The last part of the name, which the controller made up.
    let stem = pod.rsplit_once('-').map(|(stem, _)| stem);
    if let Some(hash) = label("pod-template-hash") {
        let name = stem?.strip_suffix(hash)?.strip_suffix('-')?;
        return Some(format!("deployment/{name}"));
    }
    if label("statefulset.kubernetes.io/pod-name") == Some(pod) {
        return Some(format!("statefulset/{}", stem?));
    }
    if let Some(job) = label("batch.kubernetes.io/job-name").or_else(|| label("job-name")) {
        return Some(format!("job/{job}"));
    }
    if label("controller-revision-hash").is_some() {
        return Some(format!("daemonset/{}", stem?));
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    fn labels(pairs: &[(&str, &str)]) -> Labels {
        pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
    }

    fn owner(kind: &str, name: &str) -> Owner {
        Owner { kind: kind.to_owned(), name: name.to_owned() }
    }

    #[test]
    fn a_replica_set_is_a_deployments_where_that_is_known_or_its_name_says_so() {
        let hash = labels(&[("pod-template-hash", "6d4cf56db6")]);
        let set = owner("ReplicaSet", "web-6d4cf56db6");
        let of = |above: &dyn Fn(&Owner) -> Option<Option<Owner>>| {
            of_pod("web-6d4cf56db6-ax9k2", &hash, Some(&set), above)
        };
        assert_eq!(of(&|_| Some(Some(owner("Rollout", "web")))).unwrap(), "rollout/web");
        assert_eq!(of(&|_| Some(None)).unwrap(), "replicaset/web-6d4cf56db6");
        assert_eq!(of(&|_| None).unwrap(), "deployment/web");
        let alone = owner("ReplicaSet", "web");
        assert_eq!(of_pod("web-x", &labels(&[]), Some(&alone), |_| None).unwrap(), "replicaset/web");
    }

    #[test]
    fn labels_tell_where_there_are_no_owners() {
        let of = |pod: &str, pairs: &[(&str, &str)]| of_pod(pod, &labels(pairs), None, |_| None);
        assert_eq!(
            of("web-6d4cf56db6-ax9k2", &[("pod-template-hash", "6d4cf56db6")]).unwrap(),
            "deployment/web"
        );
        assert_eq!(of("web-ax9k2", &[("pod-template-hash", "6d4cf56db6")]), None);
        let pod_name = [("statefulset.kubernetes.io/pod-name", "redis-0"), ("controller-revision-hash", "x")];
        assert_eq!(of("redis-0", &pod_name).unwrap(), "statefulset/redis");
        assert_eq!(of("agent-8fk2s", &[("controller-revision-hash", "x")]).unwrap(), "daemonset/agent");
        assert_eq!(of("load-abcde", &[("job-name", "load")]).unwrap(), "job/load");
        assert_eq!(of("plain", &[("app", "plain")]), None);
        let node = owner("Node", "n1");
        assert_eq!(of_pod("kube-proxy-n1", &labels(&[]), Some(&node), |_| None), None);
    }
}
