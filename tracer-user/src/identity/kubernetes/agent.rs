//! What Cilium's agent says over its socket, in the form of what the API server has.
//!
//! Source: api/v1/openapi.yaml of Cilium (definitions Identity and Policy), and api.Rule of pkg/policy/api, whose JSON the text
//! of a policy is. Its rules are those of the objects after Cilium has taken them over: selectors name their namespaces.

use super::cilium::{Spec, parts_taken_over};
use super::wire::nullable;
use super::{Unreadable, convert, limits};
use crate::identity::object::{Identity, Labels, Name};
use crate::identity::policy::{Part, Policy, PolicyKind};
use serde::Deserialize;
use std::collections::BTreeMap;

/// What the keys of the labels begin with that name a rule's object.
const OBJECT: &str = "io.cilium.k8s.policy.";
/// Rules that are read.
const MOST: usize = 20_000;

wire! {
    IdentityWire { id: i64, labels: Vec<String>, }
    /// The rules are JSON in a text.
    PolicyWire { policy: String, }
    LabelWire { key: String, value: String, source: String, }
}

#[derive(Debug, Deserialize)]
struct RuleWire {
    #[serde(default, deserialize_with = "nullable")]
    labels: Vec<LabelWire>,
    #[serde(flatten)]
    spec: Spec,
}

/// Reads the answer about an identity.
///
/// # Errors
/// If it is none, or about another one.
pub fn identity(id: u32, json: &str) -> Result<Identity, Unreadable> {
    let wire: IdentityWire = serde_json::from_str(json)?;
    if wire.id != i64::from(id) {
        return Err(Unreadable::Json(format!("it is about identity {}", wire.id)));
    }
    let split = |label: String| match label.split_once('=') {
        Some((key, value)) => (key.to_owned(), value.to_owned()),
        None => (label, String::new()),
    };
    let labels: Labels = wire.labels.into_iter().map(split).collect();
    Ok(Identity { id, labels: convert::labels_within(labels, limits::SECURITY_LABEL) })
}

/// All policies of an agent, and how many of its rules are of no object of Kubernetes, or of one that can't be read.
///
/// # Errors
/// If it is no such answer.
pub fn policies(json: &str) -> Result<(Vec<Policy>, usize), Unreadable> {
    let wire: PolicyWire = serde_json::from_str(json)?;
    let rules: Vec<&serde_json::value::RawValue> = serde_json::from_str(&wire.policy)?;
    let mut found: BTreeMap<(PolicyKind, Name), (Vec<Part>, bool)> = BTreeMap::new();
    let mut left_out = rules.len().saturating_sub(MOST);
    for rule in rules.into_iter().take(MOST) {
        let read = serde_json::from_str(rule.get()).map_err(Unreadable::from).and_then(taken_over);
        let Ok(Some((object, parts, is_cut))) = read else {
            left_out += 1;
            continue;
        };
        let (all, cut) = found.entry(object).or_default();
        *cut |= is_cut || all.len() + parts.len() > limits::RULES;
        all.extend(parts);
        all.truncate(limits::RULES);
    }
    let policy = |((kind, name), (parts, is_cut))| Policy { kind, name, parts, is_cut };
    Ok((found.into_iter().map(policy).collect(), left_out))
}

/// The object that a rule comes from, what it is made of, and whether more than is kept.
#[allow(clippy::type_complexity, reason = "taken apart at once")]
fn taken_over(rule: RuleWire) -> Result<Option<((PolicyKind, Name), Vec<Part>, bool)>, Unreadable> {
    let RuleWire { labels, spec } = rule;
    let label = |wanted: &str| {
        let is_it = |it: &&LabelWire| it.source == "k8s" && it.key.strip_prefix(OBJECT) == Some(wanted);
        labels.iter().find(is_it).map(|it| it.value.clone())
    };
    let kind = match label("derived-from").as_deref() {
        Some("NetworkPolicy") => PolicyKind::Network,
        Some("CiliumNetworkPolicy") => PolicyKind::Cilium,
        Some("CiliumClusterwideNetworkPolicy") => PolicyKind::Clusterwide,
        _ => return Ok(None),
    };
    let name = convert::name(label("name").unwrap_or_default())?;
    let name = match kind {
        PolicyKind::Clusterwide => Name::new("", name),
        _ => Name::new(convert::name(label("namespace").unwrap_or_default())?, name),
    };
    let (parts, is_cut) = parts_taken_over(spec)?;
    Ok(Some(((kind, name), parts, is_cut)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    #[test]
    fn an_identity() {
        let json = json!({"id": 16_777_217, "labels": ["cidr:10.0.0.0/8", "reserved:world", "k8s:a=b=c"], "labelsSHA256": ""});
        let found = identity(16_777_217, &json.to_string()).unwrap();
        let labels: Vec<_> = found.labels.iter().map(|(key, value)| (&**key, &**value)).collect();
        assert_eq!(labels, [("cidr:10.0.0.0/8", ""), ("k8s:a", "b=c"), ("reserved:world", "")]);
        // About another one, of another type, too long, or nothing.
        assert!(identity(7, &json.to_string()).is_err());
        for wrong in [json!({"id": "7"}), json!({"id": 7, "labels": "x"}), json!([]), Value::Null, json!({})]
        {
            assert!(identity(7, &wrong.to_string()).is_err(), "{wrong}");
        }
        let many: Vec<_> = (0..9999).map(|n| format!("k8s:{n}={}", "x".repeat(999))).collect();
        let found = identity(7, &json!({"id": 7, "labels": many}).to_string()).unwrap();
        assert!(found.labels.len() <= limits::LABELS);
        assert!(found.labels.values().all(|value| value.len() <= limits::LABEL_VALUE));
    }

    fn labels(kind: &str, namespace: Option<&str>, name: &str) -> Value {
        let one = |key: &str, value: &str| json!({"key": format!("{OBJECT}{key}"), "value": value, "source": "k8s"});
        let of_namespace = namespace.map(|namespace| one("namespace", namespace));
        json!(
            [Some(one("derived-from", kind)), Some(one("name", name)), of_namespace, Some(one("uid", "u"))]
                .into_iter()
                .flatten()
                .collect::<Vec<_>>()
        )
    }

    #[test]
    fn rules_by_their_object() {
        let subject = json!({"matchLabels": {"any:app": "redis", "k8s:io.kubernetes.pod.namespace": "shop"}});
        let rule = |labels: Value| json!({"endpointSelector": subject, "ingress": [{"fromEndpoints": [{"matchLabels": {"any:app": "web"}}]}], "labels": labels});
        let rules = json!([
            rule(labels("CiliumNetworkPolicy", Some("shop"), "two")),
            rule(labels("CiliumNetworkPolicy", Some("shop"), "two")),
            {"endpointSelector": subject, "ingress": [{}], "labels": labels("NetworkPolicy", Some("shop"), "deny")},
            {"nodeSelector": {}, "ingress": [{}], "labels": labels("CiliumClusterwideNetworkPolicy", None, "nodes")},
            // Of no object, of one without a name, unreadable.
            rule(json!([{"key": "mine", "value": "", "source": "unspec"}])),
            rule(labels("CiliumNetworkPolicy", Some("shop"), "")),
            {"endpointSelector": 7, "labels": labels("NetworkPolicy", Some("shop"), "x")},
            7,
        ]);
        let (all, left_out) =
            policies(&json!({"revision": 3, "policy": rules.to_string()}).to_string()).unwrap();
        let names: Vec<_> =
            all.iter().map(|it| (it.kind.as_str(), it.name.to_string(), it.parts.len())).collect();
        assert_eq!(
            names,
            [
                ("NetworkPolicy", "shop/deny".to_owned(), 1),
                ("CiliumNetworkPolicy", "shop/two".to_owned(), 2),
                ("CiliumClusterwideNetworkPolicy", "/nodes".to_owned(), 1),
            ]
        );
        assert_eq!(left_out, 4);
        assert!(all[2].parts[0].is_of_nodes && all[0].parts[0].ingress.denies_by_default);
        // Selectors are whole already: nothing is added to them.
        let Some([crate::identity::policy::Peer::Endpoints(peer)]) =
            all[1].parts[0].ingress.allow[0].peers.as_deref()
        else {
            panic!("{all:?}")
        };
        assert_eq!(peer.requirements.len(), 1);
        assert_eq!(all[1].parts[0].subject.requirements.len(), 2);
    }

    #[test]
    fn what_is_no_policy() {
        for wrong in
            [json!({"policy": 7}), json!({"policy": "["}), json!({"policy": "{}"}), json!([]), json!("x")]
        {
            assert!(policies(&wrong.to_string()).is_err(), "{wrong}");
        }
        assert_eq!(policies(&json!({"policy": "[]"}).to_string()).unwrap(), (vec![], 0));
    }
}
