//! Cilium's agent, as much of one as droptrace asks: HTTP over a Unix socket (api/v1/openapi.yaml of Cilium).

use anyhow::{Context, Result};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use tempfile::TempDir;

/// A running one; its socket is gone when this is dropped.
#[derive(Debug)]
pub struct Agent {
    folder: TempDir,
    asked: Arc<Mutex<Vec<String>>>,
}

impl Agent {
    /// Starts one that knows identities, by number, and policies: rules with what they come from (kind, namespace, name).
    ///
    /// # Errors
    /// When the socket can't be made.
    pub fn start(identities: &[(u32, &[&str])], rules: &[(&str, &str, &str, Value)]) -> Result<Self> {
        let label = |key: &str, value: &str| json!({"source": "k8s", "key": format!("io.cilium.k8s.policy.{key}"), "value": value});
        let rules: Vec<_> = rules
            .iter()
            .map(|(kind, namespace, name, rule)| {
                let mut rule = rule.clone();
                rule["labels"] =
                    json!([label("derived-from", kind), label("namespace", namespace), label("name", name)]);
                rule
            })
            .collect();
        let mut answers: BTreeMap<String, Value> = identities
            .iter()
            .map(|(id, labels)| {
                (format!("/v1/identity/{id}"), json!({"id": id, "labels": labels, "labelsSHA256": ""}))
            })
            .collect();
        answers.insert(
            "/v1/policy".to_owned(),
            json!({"revision": 7, "policy": Value::from(rules).to_string()}),
        );
        let folder = tempfile::tempdir()?;
        let listener = UnixListener::bind(folder.path().join("cilium.sock")).context("listen")?;
        let asked = Arc::new(Mutex::new(Vec::new()));
        let log = Arc::clone(&asked);
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                // One that broke off is the other's affair.
                let _ = answer(stream, &answers, &log);
            }
        });
        Ok(Self { folder, asked })
    }

    /// Its socket.
    #[must_use]
    pub fn socket(&self) -> PathBuf {
        self.folder.path().join("cilium.sock")
    }

    /// The first lines of the requests so far.
    #[must_use]
    pub fn asked(&self) -> Vec<String> {
        self.asked.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

fn answer(mut stream: UnixStream, answers: &BTreeMap<String, Value>, log: &Mutex<Vec<String>>) -> Result<()> {
    let mut request = Vec::new();
    while !request.ends_with(b"\r\n\r\n") {
        let mut byte = [0];
        stream.read_exact(&mut byte)?;
        request.extend(byte);
    }
    let line = String::from_utf8_lossy(&request).lines().next().unwrap_or_default().to_owned();
    log.lock().unwrap_or_else(PoisonError::into_inner).push(line.clone());
    let found = line.split(' ').nth(1).and_then(|path| answers.get(path));
    let (status, body) = match found {
        Some(body) if line.starts_with("GET ") => ("200 OK", body.to_string()),
        _ => ("404 Not Found", String::new()),
    };
    let head = format!(
        "HTTP/1.1 {status}\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n",
        body.len()
    );
    stream.write_all(head.as_bytes())?;
    stream.write_all(body.as_bytes())?;
    Ok(())
}
