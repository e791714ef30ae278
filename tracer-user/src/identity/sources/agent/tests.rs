use super::*;
use crate::identity::object::Update;
use serde_json::json;
use std::io::{Read as _, Write as _};
use std::os::unix::net::UnixListener;
use std::sync::mpsc as std_mpsc;
use std::thread;
use std::time::Duration;

/// An agent that says one thing to each who connects; what it was asked comes out.
fn agent(socket: &Path, says: Vec<Vec<u8>>) -> std_mpsc::Receiver<String> {
    let listener = UnixListener::bind(socket).unwrap();
    let (tell, asked) = std_mpsc::channel();
    thread::spawn(move || {
        for answer in says {
            let Ok((mut stream, _)) = listener.accept() else { return };
            let mut request = vec![0; 4096];
            let read = stream.read(&mut request).unwrap_or(0);
            let line =
                String::from_utf8_lossy(&request[..read]).lines().next().unwrap_or_default().to_owned();
            let _ = tell.send(line);
            if answer.is_empty() {
                // It hangs.
                thread::sleep(Duration::from_secs(10));
            }
            let _ = stream.write_all(&answer);
        }
    });
    asked
}

fn ok(body: &str) -> Vec<u8> {
    format!(
        "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    )
    .into_bytes()
}

/// What the source tells when it is asked these, one after the other.
fn told(says: Vec<Vec<u8>>, requests: &[Request]) -> (Vec<Update>, Vec<String>, bool) {
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("cilium.sock");
    let asked = agent(&socket, says);
    let (handle, questions) = channel(Options { sockets: vec![folder.path().join("none"), socket] });
    let (sink, mut updates) = Sink::new(64);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let watch = tokio::time::timeout(Duration::from_secs(4), watch(questions, sink));
        let ask = async {
            for request in requests {
                assert!(handle.ask(*request));
            }
            std::future::pending::<()>().await;
        };
        tokio::select! { _ = watch => {}, () = ask => {} }
    });
    let mut all = Vec::new();
    while let Ok(update) = updates.try_recv() {
        all.push(update);
    }
    (all, asked.try_iter().collect(), handle.is_there())
}

fn notes(updates: &[Update]) -> Vec<&str> {
    updates
        .iter()
        .filter_map(|update| if let Update::Note(line) = update { Some(&**line) } else { None })
        .collect()
}

#[test]
fn an_identity_and_policies() {
    let identity = json!({"id": 7, "labels": ["k8s:app=web"]}).to_string();
    let rules = json!([{"endpointSelector": {}, "ingress": [{}], "labels": [
        {"source": "k8s", "key": "io.cilium.k8s.policy.derived-from", "value": "NetworkPolicy"},
        {"source": "k8s", "key": "io.cilium.k8s.policy.name", "value": "deny"},
        {"source": "k8s", "key": "io.cilium.k8s.policy.namespace", "value": "shop"}]}, {"ingress": [{}]}]);
    let policies = json!({"policy": rules.to_string()}).to_string();
    let (updates, asked, is_there) =
        told(vec![ok(&identity), ok(&policies)], &[Request::Identity(7), Request::Policies]);
    assert_eq!(asked, ["GET /v1/identity/7 HTTP/1.1", "GET /v1/policy HTTP/1.1"]);
    let changes: Vec<_> = updates
        .iter()
        .filter_map(|update| match update {
            Update::Change(Source::Agent, _, change) => Some(change),
            _ => None,
        })
        .collect();
    assert!(
        matches!(changes[0], Change::Set(Object::Identity(it)) if it.id == 7 && it.labels["k8s:app"] == "web")
    );
    assert_eq!(changes.len(), 1 + 3 + 1 + 3);
    assert!(matches!(changes[4], Change::Set(Object::Policy(it)) if it.name.to_string() == "shop/deny"));
    assert!(notes(&updates)[0].contains("1 of its rules are of no Kubernetes object") && is_there);
}

#[test]
fn an_agent_that_lies() {
    let huge = ok(&"x".repeat(IDENTITY + 1));
    let wrong = ok(r#"{"id": 7, "labels": {"a": "b"}}"#);
    let refused = b"HTTP/1.1 500 Internal Server Error\r\nContent-Length: 0\r\n\r\n".to_vec();
    let missing = b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n".to_vec();
    let says = vec![huge, wrong, refused, missing, b"\x1b[31mSSH-2.0\r\n\r\n".to_vec(), ok("{")];
    let requests: Vec<_> = (1..=6).map(Request::Identity).collect();
    let (updates, asked, _) = told(says, &requests);
    assert_eq!(asked.len(), 6);
    let notes = notes(&updates);
    for part in ["longer than is read", "can't be read", "500", "GET /v1/identity/5: "] {
        assert!(notes.iter().any(|note| note.contains(part)), "{part}: {notes:?}");
    }
    assert!(updates.len() == notes.len() && !notes.iter().any(|note| note.contains('\x1b')), "{notes:?}");
}

#[test]
fn an_agent_that_hangs_or_is_not_there() {
    let (updates, asked, is_there) = told(vec![vec![]], &[Request::Policies]);
    assert_eq!(asked.len(), 1);
    assert!(notes(&updates)[0].contains("no answer to GET /v1/policy in time") && !is_there);
    let (handle, _questions) = channel(Options { sockets: vec!["/nothing/here".into()] });
    assert!(!handle.is_there());
}
