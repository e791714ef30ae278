//! What the server knows: objects, their versions, and what changed. Pure.

use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::ops::Bound;

/// A resource of the API.
#[derive(Debug)]
pub(super) struct Resource {
    pub(super) plural: &'static str,
    /// Its path's beginning: `/api/v1`.
    pub(super) group: &'static str,
    pub(super) version: &'static str,
    pub(super) kind: &'static str,
    /// What an object of it without content has beside its metadata.
    empty: fn() -> Value,
}

const fn core(plural: &'static str, kind: &'static str, empty: fn() -> Value) -> Resource {
    Resource { plural, group: "/api/v1", version: "v1", kind, empty }
}

/// One that a cluster has only with Cilium: a custom resource, whose bookmarks have no more than metadata.
const fn ciliums(plural: &'static str, kind: &'static str) -> Resource {
    Resource { plural, group: "/apis/cilium.io/v2", version: "cilium.io/v2", kind, empty: || json!({}) }
}

/// The resources that there are.
pub(super) const RESOURCES: [Resource; 11] = [
    core("pods", "Pod", || json!({"spec": {"containers": null}, "status": {}})),
    core("services", "Service", || json!({"spec": {}, "status": {"loadBalancer": {}}})),
    core("nodes", "Node", || json!({"spec": {}, "status": {}})),
    core("namespaces", "Namespace", || json!({"spec": {}, "status": {}})),
    Resource {
        plural: "endpointslices",
        group: "/apis/discovery.k8s.io/v1",
        version: "discovery.k8s.io/v1",
        kind: "EndpointSlice",
        empty: || json!({"addressType": "", "endpoints": null, "ports": null}),
    },
    Resource {
        plural: "replicasets",
        group: "/apis/apps/v1",
        version: "apps/v1",
        kind: "ReplicaSet",
        empty: || json!({"spec": {}, "status": {}}),
    },
    Resource {
        plural: "jobs",
        group: "/apis/batch/v1",
        version: "batch/v1",
        kind: "Job",
        empty: || json!({"spec": {}, "status": {}}),
    },
    Resource {
        plural: "networkpolicies",
        group: "/apis/networking.k8s.io/v1",
        version: "networking.k8s.io/v1",
        kind: "NetworkPolicy",
        empty: || json!({"spec": {"podSelector": {}}}),
    },
    ciliums("ciliumnetworkpolicies", "CiliumNetworkPolicy"),
    ciliums("ciliumclusterwidenetworkpolicies", "CiliumClusterwideNetworkPolicy"),
    ciliums("ciliumidentities", "CiliumIdentity"),
];

/// The resource at a path.
pub(super) fn at(path: &str) -> Option<&'static Resource> {
    RESOURCES.iter().find(|resource| {
        path.strip_prefix(resource.group).and_then(|rest| rest.strip_prefix('/')) == Some(resource.plural)
    })
}

/// How a server says that a version is too old.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Gone {
    /// With an event of the watch, as its cache does.
    #[default]
    Event,
    /// With the status code of the answer.
    Code,
}

/// How an object is shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Form {
    Whole,
    Metadata,
}

/// A change, or a sign.
#[derive(Clone, Debug)]
struct Event {
    version: u64,
    resource: &'static str,
    kind: &'static str,
    object: Value,
}

/// The objects of a resource, by their place in etcd: `/namespace/name`.
type Objects = BTreeMap<String, Value>;

/// Everything.
#[derive(Debug, Default)]
pub(super) struct Store {
    version: u64,
    objects: BTreeMap<&'static str, Objects>,
    events: Vec<Event>,
    /// Events up to that version are forgotten.
    compacted: u64,
    /// What there was when a list in pages began.
    snapshots: BTreeMap<(u64, &'static str), Objects>,
    bookmarks: u64,
}

/// A refusal: the status code and the answer.
pub(super) type Refusal = (u16, Value);

impl Store {
    pub(super) fn version(&self) -> u64 {
        self.version
    }

    pub(super) fn bookmarks(&self) -> u64 {
        self.bookmarks
    }

    pub(super) fn bookmark(&mut self) {
        self.bookmarks += 1;
    }

    pub(super) fn compact(&mut self) {
        self.compacted = self.version;
        self.events.clear();
        self.snapshots.clear();
    }

    /// Adds an object or changes it; it is stamped with the next version.
    pub(super) fn set(&mut self, mut object: Value) {
        let Some(resource) = RESOURCES.iter().find(|resource| object["kind"] == resource.kind) else {
            return;
        };
        self.version += 1;
        object["apiVersion"] = resource.version.into();
        object["metadata"]["resourceVersion"] = self.version.to_string().into();
        let known = self.objects.entry(resource.plural).or_default().insert(place(&object), object.clone());
        let kind = if known.is_some() { "MODIFIED" } else { "ADDED" };
        self.events.push(Event { version: self.version, resource: resource.plural, kind, object });
    }

    /// Removes an object, which has the version of its end from then on.
    pub(super) fn delete(&mut self, resource: &str, namespace: &str, name: &str) {
        let Some(resource) = RESOURCES.iter().find(|known| known.plural == resource) else { return };
        let key = place(&json!({"metadata": {"namespace": namespace, "name": name}}));
        if let Some(mut object) = self.objects.get_mut(resource.plural).and_then(|all| all.remove(&key)) {
            self.version += 1;
            object["metadata"]["resourceVersion"] = self.version.to_string().into();
            let resource = resource.plural;
            self.events.push(Event { version: self.version, resource, kind: "DELETED", object });
        }
    }

    /// A list, or a page of it: with `limit`, from where `following` says.
    pub(super) fn list(
        &mut self,
        resource: &'static Resource,
        form: Form,
        limit: Option<usize>,
        following: Option<&str>,
    ) -> Result<Value, Refusal> {
        let (version, after) = match following.map(read_token) {
            None => (self.version, None),
            Some(Some((version, after))) => (version, Some(after)),
            Some(None) => return Err(status(400, "BadRequest", "continue key is not valid", json!({}))),
        };
        let now = self.objects.entry(resource.plural).or_default();
        let objects = match (after.is_some(), self.snapshots.get(&(version, resource.plural))) {
            (false, _) => now.clone(),
            (true, Some(snapshot)) => snapshot.clone(),
            (true, None) => return Err(expired("The provided continue parameter is too old")),
        };
        let from = after.as_ref().map_or(Bound::Unbounded, |after| Bound::Excluded(after.clone()));
        let mut rest = objects.range((from, Bound::Unbounded));
        let mut items: Vec<Value> = Vec::new();
        let mut last = None;
        for (key, object) in rest.by_ref().take(limit.unwrap_or(usize::MAX)) {
            items.push(shown(object, form, true));
            last = Some(key.clone());
        }
        let remaining = rest.count();
        let mut metadata = json!({"resourceVersion": version.to_string()});
        if let (true, Some(last)) = (remaining > 0, last) {
            metadata["continue"] = token(version, &last).into();
            metadata["remainingItemCount"] = remaining.into();
            self.snapshots.insert((version, resource.plural), objects);
        }
        let (kind, api) = match form {
            Form::Whole => (format!("{}List", resource.kind), resource.version),
            Form::Metadata => ("PartialObjectMetadataList".to_owned(), "meta.k8s.io/v1"),
        };
        Ok(json!({"kind": kind, "apiVersion": api, "metadata": metadata, "items": items}))
    }

    /// What there is, as the events of a watch.
    pub(super) fn initial(&self, resource: &Resource, form: Form) -> Vec<Value> {
        let objects = self.objects.get(resource.plural).into_iter().flat_map(BTreeMap::values);
        objects.map(|object| json!({"type": "ADDED", "object": shown(object, form, false)})).collect()
    }

    /// The changes after a version.
    pub(super) fn since(&self, resource: &Resource, form: Form, version: u64) -> Result<Vec<Value>, Refusal> {
        if version < self.compacted {
            return Err(expired(&format!("too old resource version: {version} ({})", self.compacted)));
        }
        Ok(self.after(resource, form, version))
    }

    /// The same, for who watches already: that is never too late.
    pub(super) fn after(&self, resource: &Resource, form: Form, version: u64) -> Vec<Value> {
        let events =
            self.events.iter().filter(|event| event.version > version && event.resource == resource.plural);
        events.map(|event| json!({"type": event.kind, "object": shown(&event.object, form, false)})).collect()
    }

    /// A bookmark; with it a streaming list may end.
    pub(super) fn bookmark_of(&self, resource: &Resource, form: Form, ends_list: bool) -> Value {
        let mut object = (resource.empty)();
        object["kind"] = resource.kind.into();
        object["apiVersion"] = resource.version.into();
        object["metadata"] = json!({"resourceVersion": self.version.to_string()});
        if ends_list {
            object["metadata"]["annotations"] = json!({"k8s.io/initial-events-end": "true"});
        }
        json!({"type": "BOOKMARK", "object": shown(&object, form, false)})
    }
}

/// Where etcd has it.
fn place(object: &Value) -> String {
    let text = |field: &str| object["metadata"][field].as_str().unwrap_or_default();
    match text("namespace") {
        "" => format!("/{}", text("name")),
        namespace => format!("/{namespace}/{}", text("name")),
    }
}

/// In lists the objects don't say their kind.
fn shown(object: &Value, form: Form, in_list: bool) -> Value {
    let mut object = object.clone();
    match (form, object.as_object_mut()) {
        (Form::Whole, Some(fields)) if in_list => {
            fields.remove("kind");
            fields.remove("apiVersion");
            object
        }
        (Form::Whole, _) => object,
        (Form::Metadata, _) => {
            json!({"kind": "PartialObjectMetadata", "apiVersion": "meta.k8s.io/v1", "metadata": object["metadata"]})
        }
    }
}

/// Where the next page begins. Clients must not read anything into it; characters that need encoding prove that they encode.
fn token(version: u64, after: &str) -> String {
    format!("{version}&after={after} +/=")
}

fn read_token(token: &str) -> Option<(u64, String)> {
    let (version, after) = token.strip_suffix(" +/=")?.split_once("&after=")?;
    Some((version.parse().ok()?, after.to_owned()))
}

/// A `Status`, as the server sends it in place of an answer.
pub(super) fn status(code: u16, reason: &str, message: &str, details: Value) -> Refusal {
    let mut status = json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
        "message": message, "reason": reason, "code": code});
    if details != json!({}) {
        status["details"] = details;
    }
    (code, status)
}

fn expired(message: &str) -> Refusal {
    status(410, "Expired", message, json!({}))
}
