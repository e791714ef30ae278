//! What policies are about: themselves, Cilium's identities and the labels of namespaces.

use super::Known;
use crate::identity::object::{Identity, Key, Labels, Namespace};
use crate::identity::policy::{NAMESPACE, NAMESPACE_LABELS, Policy, PolicyKind};
use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

/// Policies that are kept; more are left out.
const MAX_POLICIES: usize = 100_000;
/// Identities that are kept: as many as a cluster can have (256 to 65535).
const MAX_IDENTITIES: usize = 1 << 16;

/// All of that.
#[derive(Debug, Default)]
pub(super) struct Policies {
    /// By namespace, which is empty for those of the whole cluster; then by kind and name.
    policies: HashMap<String, BTreeMap<(PolicyKind, String), Arc<Policy>>>,
    count: usize,
    identities: HashMap<u32, Labels>,
    namespaces: HashMap<String, Labels>,
}

impl Policies {
    /// Takes a policy. False if there is no room.
    pub(super) fn set(&mut self, policy: Policy) -> bool {
        let key = (policy.kind, policy.name.name.clone());
        let of_namespace = self.policies.entry(policy.name.namespace.clone()).or_default();
        if let Some(known) = of_namespace.get_mut(&key) {
            *known = Arc::new(policy);
        } else if self.count < MAX_POLICIES {
            of_namespace.insert(key, Arc::new(policy));
            self.count += 1;
        } else {
            return false;
        }
        true
    }

    pub(super) fn delete(&mut self, kind: PolicyKind, key: &Key) {
        let (namespace, name) = key.split_once('/').unwrap_or(("", key));
        let Some(of_namespace) = self.policies.get_mut(namespace) else { return };
        self.count -= usize::from(of_namespace.remove(&(kind, name.to_owned())).is_some());
        if of_namespace.is_empty() {
            self.policies.remove(namespace);
        }
    }

    /// Takes an identity. False if there is no room.
    pub(super) fn set_identity(&mut self, identity: Identity) -> bool {
        if self.identities.len() >= MAX_IDENTITIES && !self.identities.contains_key(&identity.id) {
            return false;
        }
        self.identities.insert(identity.id, identity.labels);
        true
    }

    pub(super) fn delete_identity(&mut self, key: &Key) {
        if let Ok(id) = key.parse() {
            self.identities.remove(&id);
        }
    }

    pub(super) fn set_namespace(&mut self, namespace: Namespace) {
        self.namespaces.insert(namespace.name, namespace.labels);
    }

    pub(super) fn delete_namespace(&mut self, key: &Key) {
        self.namespaces.remove(key);
    }

    /// Those of a namespace and of the whole cluster, by kind and name.
    pub(super) fn of(&self, namespace: Option<&str>) -> impl Iterator<Item = &Arc<Policy>> {
        let own =
            namespace.filter(|namespace| !namespace.is_empty()).and_then(|name| self.policies.get(name));
        own.into_iter().chain(self.policies.get("")).flat_map(BTreeMap::values)
    }

    pub(super) fn identity(&self, id: u32) -> Option<&Labels> {
        self.identities.get(&id)
    }

    /// A pod's labels as an identity would have them, but for those that Cilium makes up or is told to leave out.
    pub(super) fn labels_of(&self, pod: &Known) -> Labels {
        let namespace = &pod.name.namespace;
        let of_namespace = self.namespaces.get(namespace).into_iter().flatten();
        let own = pod.labels.iter().map(|(key, value)| (format!("k8s:{key}"), value.clone()));
        own.chain(of_namespace.map(|(key, value)| (format!("{NAMESPACE_LABELS}{key}"), value.clone())))
            .chain([(NAMESPACE.to_owned(), namespace.clone())])
            .collect()
    }
}
