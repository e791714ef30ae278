use super::*;
use crate::identity::object::Update;
use std::fs;
use tempfile::TempDir;

const PODS: &str = include_str!("../../fixtures/pods.list.json");
const SERVICES: &str = include_str!("../../fixtures/services.list.json");

/// A file with that in it, in a folder of its own.
fn file(text: &str) -> (TempDir, PathBuf) {
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("inventory.json");
    fs::write(&path, text).unwrap();
    (folder, path)
}

fn read_text(text: &str) -> Result<Contents, FileError> {
    let (_folder, path) = file(text);
    read(&path)
}

/// The objects of a list, each with its kind, as kubectl prints them.
fn items(list: &str, kind: &str) -> Vec<serde_json::Value> {
    let list: serde_json::Value = serde_json::from_str(list).unwrap();
    let with_kind = |mut item: serde_json::Value| {
        item["kind"] = kind.into();
        item
    };
    list["items"].as_array().unwrap().iter().cloned().map(with_kind).collect()
}

#[test]
fn what_kubectl_prints() {
    let all = [items(PODS, "Pod"), items(SERVICES, "Service")].concat();
    // kubectl sorts the fields: `items` come before `kind`.
    let list = serde_json::json!({"apiVersion": "v1", "items": all, "kind": "List", "metadata": {"resourceVersion": ""}});
    let contents = read_text(&list.to_string()).unwrap();
    assert_eq!((contents.objects.len(), contents.unreadable), (21 + 26, None));
}

#[test]
fn what_the_api_answers_and_several_documents() {
    assert_eq!(read_text(PODS).unwrap().objects.len(), 21);
    assert_eq!(read_text(&format!("{PODS}\n{SERVICES}\n")).unwrap().objects.len(), 21 + 26);
    let single = items(SERVICES, "Service").remove(3).to_string();
    assert_eq!(read_text(&single).unwrap().objects.len(), 1);
}

#[test]
fn policies_and_identities() {
    let text = r#"{"kind":"CiliumIdentity","metadata":{"name":"4711"},"security-labels":{"k8s:app":"web"}}
        {"kind":"NetworkPolicyList","items":[{"metadata":{"name":"a","namespace":"n"},"spec":{"podSelector":{}}}]}
        {"kind":"CiliumClusterwideNetworkPolicy","metadata":{"name":"b"},"specs":[{"endpointSelector":{}}]}"#;
    let contents = read_text(text).unwrap();
    let [Object::Identity(identity), Object::Policy(network), Object::Policy(clusterwide)] =
        &contents.objects[..]
    else {
        panic!("{contents:?}")
    };
    assert_eq!(
        (identity.labels["k8s:app"].as_str(), network.parts.len(), clusterwide.parts.len()),
        ("web", 1, 1)
    );
}

#[test]
fn a_kind_that_is_told_after_its_objects() {
    let mut list: serde_json::Value = serde_json::from_str(PODS).unwrap();
    let rest = list["items"].take();
    let text = format!(r#"{{"items":{rest},"kind":"PodList"}}"#);
    let contents = read_text(&text).unwrap();
    assert_eq!((contents.objects.len(), contents.unreadable), (21, None));
}

#[test]
fn broken_objects_are_counted() {
    let text = r#"{"items":[{"kind":"Pod","metadata":{"name":"a","namespace":"n"}},{"kind":"Pod"},{"kind":"Pod","metadata":7},
        {"kind":"ConfigMap"}]}"#;
    let contents = read_text(text).unwrap();
    assert_eq!((contents.objects.len(), contents.unreadable.unwrap().0), (1, 2));
    assert!(matches!(
        read_text(r#"{"kind":"Pod","metadata":{}}"#),
        Err(FileError::Unreadable { count: 1, .. })
    ));
}

#[test]
fn errors_name_the_file_the_place_and_what_to_do() {
    let message = |text: &str| read_text(text).unwrap_err().to_string();
    let yaml = message("apiVersion: v1\nitems:\n");
    assert!(
        yaml.contains("inventory.json: line 1, column 1: expected value; write it with `kubectl get pods"),
        "{yaml}"
    );
    let cut = message(&PODS[..20_000]);
    assert!(cut.contains("EOF while parsing"), "{cut}");
    assert!(message(&format!("{PODS} {{")).contains("EOF while parsing an object"));
    assert!(message("").contains("there is no pod, service"));
    assert!(message("[]").contains("expected what kubectl prints"), "{}", message("[]"));
    assert!(message(r#"{"items":7}"#).contains("expected a list of objects"));
    let absent = read(Path::new("/nonexistent/\u{1b}file")).unwrap_err().to_string();
    assert!(absent.contains("/nonexistent/\\x1bfile: No such file"), "{absent}");
}

#[test]
fn a_file_beyond_the_ceiling_is_refused() {
    let (_folder, path) = file(PODS);
    // Sparse: it takes no room.
    fs::OpenOptions::new().write(true).open(&path).unwrap().set_len(MOST + 1).unwrap();
    assert!(matches!(read(&path), Err(FileError::TooLong { .. })));
}

#[tokio::test]
async fn kinds_are_told_as_whole_lists() {
    let (_pods, pods) = file(PODS);
    let (_services, services) = file(SERVICES);
    let (sink, mut reader) = Sink::new(1000);
    tell(vec![pods, PathBuf::from("/nonexistent"), services], sink).await.unwrap();
    let mut updates = Vec::new();
    while let Some(update) = reader.recv().await {
        updates.push(update);
    }
    assert!(matches!(&updates[0], Update::Note(line) if line.contains("/nonexistent: No such file")));
    let changes: Vec<_> = updates[1..]
        .iter()
        .map(|update| match update {
            Update::Change(Source::File, _, change) => change,
            other => panic!("{other:?}"),
        })
        .collect();
    assert_eq!(changes.len(), 21 + 26 + 4);
    assert_eq!((changes[0], changes[22]), (&Change::Begin(Kind::Pod), &Change::End(Kind::Pod)));
    assert_eq!((changes[23], changes[50]), (&Change::Begin(Kind::Service), &Change::End(Kind::Service)));
}
