//! What the cluster's objects say of its nodes.

use super::super::facts::Facts;
use super::super::model::{Finding, Severity, evidence};
use super::super::texts::Text;

/// Nodes without an agent of Cilium's in a cluster that has some: Cilium knows no pod there, and takes their addresses for the
/// world's.
pub(super) fn check(facts: &Facts) -> Vec<Finding> {
    let Some(cluster) = &facts.cluster else { return Vec::new() };
    if cluster.cilium_nodes.is_empty() {
        return Vec::new();
    }
    let without: Vec<&String> =
        cluster.nodes.iter().filter(|node| !cluster.cilium_nodes.contains(node)).collect();
    if without.is_empty() {
        return Vec::new();
    }
    let listed =
        without.iter().take(super::LISTED).map(|node| evidence("node", node.as_str(), cluster.source));
    let with = evidence("nodes with an agent", cluster.cilium_nodes.len(), cluster.source);
    vec![Finding {
        id: "cilium-unmanaged-node",
        severity: Severity::Warning,
        text: Text::new(
            "cilium-unmanaged-node",
            [("without", without.len().to_string()), ("nodes", cluster.nodes.len().to_string())],
        ),
        evidence: listed.chain([with]).collect(),
        netns: None,
        interface: None,
    }]
}

#[cfg(test)]
mod tests {
    use super::super::super::facts::Cluster;
    use super::super::fixtures::{ids, node};
    use super::*;

    #[test]
    fn nodes_without_an_agent() {
        let with = |agents: &[&str]| {
            let own = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect();
            let cluster =
                Cluster { nodes: own(&["n1", "n2"]), cilium_nodes: own(agents), ..Cluster::default() };
            check(&Facts { cluster: Some(cluster), ..node() })
        };
        assert_eq!(ids(&with(&["n1"])), ["cilium-unmanaged-node"]);
        assert_eq!(with(&["n1"])[0].evidence[0].value, "n2");
        assert_eq!(with(&["n1", "n2"]), []);
        assert_eq!(with(&[]), []);
    }
}
