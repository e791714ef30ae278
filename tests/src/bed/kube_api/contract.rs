//! The server answers as a real one did: fed with its objects it gives its answers, but for the versions.

use super::objects;
use super::serve::{forbidden, not_found, unauthorized};
use super::store::{Form, RESOURCES, Resource, Store};
use serde_json::{Value, json};

const PODS: &str = include_str!("../../../../tracer-user/src/identity/fixtures/pods.list.json");
const SERVICES: &str = include_str!("../../../../tracer-user/src/identity/fixtures/services.list.json");
const SLICES: &str = include_str!("../../../../tracer-user/src/identity/fixtures/endpointslices.list.json");
const NODES: &str = include_str!("../../../../tracer-user/src/identity/fixtures/nodes.list.json");
const NAMESPACES: &str = include_str!("../../../../tracer-user/src/identity/fixtures/namespaces.list.json");
const NETWORK_POLICIES: &str =
    include_str!("../../../../tracer-user/src/identity/fixtures/networkpolicies.list.json");
/// Its items are left out.
const PAGE: &str = include_str!("../../../../tracer-user/src/identity/fixtures/pods.page1.envelope.json");
const STREAM: &str = include_str!("../../../../tracer-user/src/identity/fixtures/pods.watchlist.jsonl");
const POD_WATCH: &str =
    include_str!("../../../../tracer-user/src/identity/fixtures/pods.watch-changes.jsonl");
const SLICE_WATCH: &str =
    include_str!("../../../../tracer-user/src/identity/fixtures/endpointslices.watch-changes.jsonl");
const FORBIDDEN: &str = include_str!("../../../../tracer-user/src/identity/fixtures/forbidden.json");
const UNAUTHORIZED: &str = include_str!("../../../../tracer-user/src/identity/fixtures/unauthorized.json");

fn resource(plural: &str) -> &'static Resource {
    RESOURCES.iter().find(|resource| resource.plural == plural).unwrap()
}

/// A store with all that was recorded.
fn store() -> Store {
    let mut store = Store::default();
    for object in objects::recorded() {
        store.set(object);
    }
    store
}

fn parse(text: &str) -> Value {
    serde_json::from_str(text).unwrap()
}

fn lines(text: &str) -> Vec<Value> {
    text.lines().map(parse).collect()
}

/// The same without versions, which the store counts itself.
fn timeless(mut answer: Value) -> Value {
    for object in answer["items"].as_array_mut().into_iter().flatten() {
        object["metadata"]["resourceVersion"] = Value::Null;
    }
    if answer.get("metadata").is_some() {
        answer["metadata"]["resourceVersion"] = Value::Null;
    }
    if answer.get("object").is_some() {
        answer["object"]["metadata"]["resourceVersion"] = Value::Null;
    }
    answer
}

/// Names and types of all fields, without what is in them.
fn shape(value: &Value) -> Value {
    match value {
        Value::Object(fields) => fields.iter().map(|(name, value)| (name.clone(), shape(value))).collect(),
        Value::Array(_) => json!("array"),
        Value::String(_) => json!("string"),
        Value::Number(_) => json!("number"),
        Value::Bool(_) => json!("bool"),
        Value::Null => Value::Null,
    }
}

#[test]
fn lists_are_the_recorded_ones() {
    let mut store = store();
    let recorded = [
        ("pods", PODS),
        ("services", SERVICES),
        ("endpointslices", SLICES),
        ("nodes", NODES),
        ("namespaces", NAMESPACES),
        ("networkpolicies", NETWORK_POLICIES),
    ];
    for (plural, text) in recorded {
        let list = store.list(resource(plural), Form::Whole, None, None).unwrap();
        assert_eq!(shape(&list["metadata"]), shape(&parse(text)["metadata"]));
        assert_eq!(timeless(list), timeless(parse(text)), "{plural}");
    }
}

#[test]
fn pages_are_like_the_recorded_ones_and_together_the_list() {
    let mut store = store();
    let pods = resource("pods");
    let mut page = store.list(pods, Form::Whole, Some(5), None).unwrap();
    let mut recorded = parse(PAGE);
    // Counted from another moment, with one pod more.
    assert_eq!(
        (recorded["metadata"]["remainingItemCount"].take(), page["items"].as_array().unwrap().len()),
        (json!(16), 5)
    );
    assert_eq!(page["metadata"]["remainingItemCount"].take(), json!(16));
    assert_eq!(shape(&page), shape(&recorded));
    let mut keys = Vec::new();
    loop {
        keys.extend(page["items"].as_array().unwrap().iter().map(|item| item["metadata"]["name"].clone()));
        let Some(next) = page["metadata"]["continue"].as_str().map(str::to_owned) else { break };
        // What changes meanwhile is not in the list that has begun.
        store.delete("pods", "shop", "sick-0");
        page = store.list(pods, Form::Whole, Some(5), Some(&next)).unwrap();
    }
    let all: Vec<Value> = parse(PODS)["items"]
        .as_array()
        .unwrap()
        .iter()
        .map(|item| item["metadata"]["name"].clone())
        .collect();
    assert_eq!(keys, all);
    let first = store.list(pods, Form::Whole, Some(5), None).unwrap();
    store.compact();
    let (code, status) =
        store.list(pods, Form::Whole, Some(5), first["metadata"]["continue"].as_str()).unwrap_err();
    assert_eq!((code, &status["reason"]), (410, &json!("Expired")));
}

#[test]
fn a_streaming_list_is_the_recorded_one() {
    let store = store();
    let pods = resource("pods");
    let events = store.initial(pods, Form::Whole);
    assert_eq!(events.len(), 21);
    let mut recorded = lines(STREAM);
    let end = recorded.pop().unwrap();
    for event in recorded {
        let ours = events
            .iter()
            .find(|ours| ours["object"]["metadata"]["name"] == event["object"]["metadata"]["name"]);
        assert_eq!(timeless(ours.unwrap().clone()), timeless(event));
    }
    assert_eq!(timeless(store.bookmark_of(pods, Form::Whole, true)), timeless(end));
}

#[test]
fn a_watch_is_the_recorded_one() {
    let mut store = Store::default();
    let mut recorded = lines(POD_WATCH);
    recorded.retain(|event| event["object"]["metadata"]["name"] == "late-0");
    let types: Vec<_> = recorded.iter().map(|event| event["type"].clone()).collect();
    assert_eq!(types, ["ADDED", "MODIFIED", "MODIFIED", "DELETED"]);
    for event in &recorded {
        if event["type"] != "DELETED" {
            store.set(event["object"].clone());
        }
    }
    store.delete("pods", "shop", "late-0");
    let events = store.since(resource("pods"), Form::Whole, 0).unwrap();
    // The last state is that of the change before: a real server changes metadata once more.
    for (ours, recorded) in events.iter().zip(&recorded).take(3) {
        assert_eq!(timeless(ours.clone()), timeless(recorded.clone()));
    }
    assert_eq!((events.len(), &events[3]["type"]), (4, &json!("DELETED")));
    assert_eq!(events[3]["object"]["metadata"]["resourceVersion"], "4");
    for (plural, text) in [("pods", POD_WATCH), ("endpointslices", SLICE_WATCH)] {
        let recorded = lines(text).into_iter().find(|event| event["type"] == "BOOKMARK").unwrap();
        assert_eq!(timeless(store.bookmark_of(resource(plural), Form::Whole, false)), timeless(recorded));
    }
}

#[test]
fn refusals_are_the_recorded_ones() {
    assert_eq!(unauthorized(), (401, parse(UNAUTHORIZED)));
    let (code, status) = forbidden(resource("pods"), false);
    let mut recorded = parse(FORBIDDEN);
    let message = recorded["message"].as_str().unwrap().replace("system:anonymous", "droptrace");
    recorded["message"] = message.into();
    assert_eq!((code, &status), (403, &recorded));
    assert_eq!(shape(&not_found().1), shape(&recorded));
}
