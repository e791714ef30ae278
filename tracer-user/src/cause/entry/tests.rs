use super::*;
use crate::cause::facts::{NodeState, Reading};
use crate::cause::node::Question;
use crate::event::model::{Cause, Drop, Evidence};
use serde_json::{Value, json};
use std::collections::BTreeSet;

const GOLDEN: &str = include_str!("../golden.toml");
const README: &str = include_str!("../../../../README.md");

/// A drop, what the node says beside it, and what must be said.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Golden {
    cause: String,
    #[serde(default)]
    node: HashMap<String, String>,
    event: toml::Table,
    confidence: String,
    en: [String; 2],
    zh: [String; 2],
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Goldens {
    golden: Vec<Golden>,
}

/// A node that says what it was told.
struct Told(HashMap<String, String>);

impl NodeState for Told {
    fn read(&self, question: Question) -> Vec<Reading> {
        let reading = |fact: &Fact| {
            let value = self.0.get(fact.name())?.clone();
            let evidence =
                Evidence { name: fact.name().to_owned(), value, source: "test".to_owned(), change: None };
            Some(Reading { fact: *fact, evidence })
        };
        question.wanted.iter().filter_map(reading).collect()
    }
}

/// An event of a few fields, in the contract's names; the others are as they are where nothing is known.
fn event(fields: &toml::Table) -> Drop {
    let mut event = serde_json::to_value(Drop::default()).unwrap();
    merge(&mut event, &serde_json::to_value(fields).unwrap(), "");
    serde_json::from_value(event).unwrap_or_else(|error| panic!("{fields:?}: {error}"))
}

fn merge(into: &mut Value, fields: &Value, path: &str) {
    let Value::Object(fields) = fields else {
        *into = fields.clone();
        return;
    };
    if into.is_null() {
        *into = empty(path);
    }
    for (name, value) in fields {
        let path = format!("{path}/{name}");
        let own = into.as_object_mut().and_then(|it| it.get_mut(name));
        merge(own.unwrap_or_else(|| panic!("an event has no {path}")), value, &path);
    }
}

/// What is null where it is not known, as it is where nothing of it is.
fn empty(path: &str) -> Value {
    use crate::event::model::{Conntrack, Inner, K8s, Original};
    match path.rsplit('/').next().unwrap_or_default() {
        "netfilter" => serde_json::to_value(crate::netfilter::model::Netfilter::default()),
        "program" => Ok(json!({"id": 1, "name": ""})),
        "cilium" => serde_json::to_value(crate::cilium::model::Cilium::default()),
        "bpf" => serde_json::to_value(crate::tc::model::Bpf::default()),
        "source_identity" | "destination_identity" => Ok(json!({"id": 0, "labels": null})),
        "cause" => serde_json::to_value(Cause::default()),
        "conntrack" => serde_json::to_value(Conntrack::default()),
        "inner" => serde_json::to_value(Inner::default()),
        "k8s" => serde_json::to_value(K8s::default()),
        "original" => serde_json::to_value(Original::default()),
        other => panic!("{other} has no fields"),
    }
    .unwrap()
}

fn goldens() -> Vec<Golden> {
    toml::from_str::<Goldens>(GOLDEN).unwrap_or_else(|error| panic!("golden.toml: {error}")).golden
}

#[test]
fn every_golden_drop_is_told_its_cause() {
    let mut wrong = String::new();
    for golden in goldens() {
        let node = Told(golden.node.clone());
        let drop = event(&golden.event);
        let told = |language| Base::own().explain(&drop, language, Some(&node)).unwrap_or_default();
        let (english, chinese) = (told(Language::English), told(Language::Chinese));
        let id = &golden.cause;
        let mut check = |what: &str, is: &str, wanted: &str| {
            if is != wanted {
                wrong.push_str(&format!("{id} {what}:\n  {is:?}\n  {wanted:?}\n"));
            }
        };
        check("cause", &english.id, id);
        check("confidence", &english.confidence, &golden.confidence);
        let [why, fix] = &golden.en;
        check("why", &english.why, why);
        check("fix", &english.fix, fix);
        let [why, fix] = &golden.zh;
        check("zh why", &chinese.why, why);
        check("zh fix", &chinese.fix, fix);
    }
    assert!(wrong.is_empty(), "{wrong}");
}

#[test]
fn every_cause_has_a_golden_drop_both_languages_and_its_proof() {
    let shown: BTreeSet<String> = goldens().into_iter().map(|golden| golden.cause).collect();
    let sources = sources();
    let mut proven = 0;
    let base = parse_entries("causes.toml", OWN).unwrap_or_else(|error| panic!("{error}"));
    for entry in &base {
        let id = &entry.id;
        assert!(shown.contains(id), "{id} has no golden drop");
        for text in [Some(&entry.why), entry.fix.as_ref(), entry.resets.as_ref()].into_iter().flatten() {
            assert!(text.chinese.is_some(), "{id} lacks Chinese");
        }
        assert!(entry.fix.is_some() || entry.severity == Severity::Info, "{id} has no fix");
        if let Proven::Kernel(tests) = &entry.proven {
            proven += u32::from(entry.severity != Severity::Info);
            assert!(!tests.is_empty(), "{id}");
            for test in tests {
                let body = body_of(&sources, test).unwrap_or_else(|| panic!("{id}: there is no test {test}"));
                assert!(body.contains(&format!("\"{id}\"")), "{test} does not speak of {id}");
            }
        }
    }
    assert!(proven >= 30, "{proven} causes are proven by the kernel");
}

/// The scenarios' files, by name without end.
fn sources() -> HashMap<String, String> {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/src/scenarios");
    let files = std::fs::read_dir(folder).unwrap().filter_map(|file| {
        let path = file.unwrap().path();
        let name = path.file_stem()?.to_str()?.to_owned();
        Some((name, std::fs::read_to_string(&path).ok()?))
    });
    files.collect()
}

/// The function behind `module::test`: from its line to the next that begins a function.
fn body_of<'a>(sources: &'a HashMap<String, String>, test: &str) -> Option<&'a str> {
    let (module, name) = test.split_once("::")?;
    let (_, rest) = sources.get(module)?.split_once(&format!("\nfn {name}("))?;
    Some(rest.split_once("\n}\n").map_or(rest, |(body, _)| body))
}

#[test]
fn the_readme_has_the_table() {
    let mut table = String::from("| cause | severity | proven by | for example |\n|---|---|---|---|\n");
    let goldens = goldens();
    for entry in Base::own().entries.iter().filter(|entry| entry.severity != Severity::Info) {
        let proof = match &entry.proven {
            Proven::Kernel(tests) => format!("kernel: {}", tests.join(", ")),
            Proven::Facts => "facts".to_owned(),
        };
        let example =
            goldens.iter().find(|golden| golden.cause == entry.id).map_or("", |golden| &*golden.en[0]);
        table.push_str(&format!("| `{}` | {} | {proof} | {example} |\n", entry.id, entry.severity.name()));
    }
    assert!(README.contains(&table), "README.md needs this table:\n{table}");
}

#[test]
fn no_fix_removes_a_rule() {
    for word in ["iptables -D", "iptables -F", "nft delete", "nft flush", "ip6tables -D", "conntrack -F"] {
        assert!(!OWN.contains(word), "{word}");
    }
}

#[test]
fn what_is_wrong_is_said_with_its_line() {
    let wrong = |text: &str| Base::parse("own.toml", text).unwrap_err().to_string();
    let entry = |line: &str| format!("# own\n\n[[cause]]\nid = \"own\"\nseverity = \"error\"\n{line}\n");
    let why = "when = { reason = \"X\" }\nwhy = \"w\"";
    assert!(Base::parse("own.toml", &entry(why)).is_ok());
    assert!(wrong("[[cause]]\nid = ").starts_with("own.toml:2: "));
    let unknown = wrong(&entry(&format!("{why}\nwhi = \"x\"")));
    assert!(unknown.starts_with("own.toml:") && unknown.contains("unknown field `whi`"), "{unknown}");
    assert!(
        wrong(&entry("when = { reasn = \"X\" }\nwhy = \"w\""))
            .starts_with("own.toml:3: cause \"own\": when: there is no fact `reasn`")
    );
    let needs = wrong(&entry("when = { reason = \"X\" }\nwhy = \"ttl {ttl}\""));
    assert!(needs.contains("{ttl} may be unknown: put it in brackets"), "{needs}");
    assert!(wrong(&format!("{0}{0}", entry(why))).contains("twice"));
    assert!(wrong(&entry(why).replace("\"own\"", "\"O n\"")).contains("lower case"));
}

#[test]
fn causes_of_ones_own_come_first_and_replace() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("own.toml");
    let own = "[[cause]]\nid = \"ours\"\nseverity = \"warning\"\nwhen = { reason = \"NO_SOCKET\", destination_port = 9 }\n\
        why = \"known\"\n[[cause]]\nid = \"rp-filter\"\nseverity = \"error\"\nwhen = { reason = \"IP_RPFILTER\" }\nwhy = \"ours\"\n";
    std::fs::write(&file, own).unwrap();
    let base = Base::with_files(&[&file]).unwrap();
    assert_eq!(base.entries.len(), Base::own().entries.len() + 1);
    let told = |text: &str| base.explain(&event(&text.parse().unwrap()), Language::Chinese, None).unwrap();
    let ours = told("drop.reason = \"NO_SOCKET\"\ndestination.port = 9\nnetwork.transport = \"udp\"");
    assert_eq!(
        (ours.id.as_str(), ours.why.as_str(), ours.confidence.as_str()),
        ("ours", "known", "inferred")
    );
    assert_eq!(ours.others, ["no-listener"]);
    assert_eq!(told("drop.reason = \"IP_RPFILTER\"").why, "ours");
    let missing = Base::with_files(&[folder.path().join("none.toml")]).unwrap_err().to_string();
    assert!(missing.contains("none.toml:1: can't be read"), "{missing}");
}
