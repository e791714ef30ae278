//! The JSON lines' schema.

/// JSON Schema (draft 2020-12) of one line of `-o json`.
pub const SCHEMA: &str = include_str!("schema.json");

#[cfg(test)]
mod tests {
    use super::SCHEMA;
    use crate::cilium::identity::Identity;
    use crate::cilium::maps::Direction;
    use crate::cilium::model::{Cilium, Entry, Policy, VerdictBy};
    use crate::doctor;
    use crate::event::model::{
        Cause, Conntrack, Drop, Endpoint, Evidence, Inner, K8s, Lost, LostPlace, Network, Original, Packet,
        Peer, Reason, Record, ServiceBy, Stalled, Timestamp, Unreplied,
    };
    use crate::netfilter::model::{Backend, Confidence, Family, Method, Netfilter, RuleRef};
    use crate::netfilter::program::Program;
    use crate::tc::model::{Bpf, Filter};
    use crate::trace::model::{
        Decision, End, Ends, Kind, Line, Met, NatStep, NetfilterStep, Outcome, Route, Step, TunnelStep,
    };
    use serde_json::{Map, Value, json};
    use std::collections::BTreeSet;

    /// Just enough of JSON Schema for ours. Unknown keywords are an error, so that nothing goes unchecked.
    fn check(schema: &Value, value: &Value, root: &Value, at: &str) -> Result<(), String> {
        for (keyword, rule) in schema.as_object().ok_or("a schema is an object")? {
            let holds = match keyword.as_str() {
                "$schema" | "$defs" | "title" | "description" | "format" => true,
                "$ref" => {
                    let name = rule.as_str().and_then(|text| text.strip_prefix('#')).ok_or("a local $ref")?;
                    check(root.pointer(name).ok_or("a $ref that exists")?, value, root, at)?;
                    true
                }
                "anyOf" | "oneOf" => {
                    let fits = |choice: &&Value| check(choice, value, root, at).is_ok();
                    let count = rule.as_array().ok_or("a list")?.iter().filter(fits).count();
                    count == 1 || keyword == "anyOf" && count > 1
                }
                "const" => value == rule,
                "enum" => rule.as_array().ok_or("a list")?.contains(value),
                "minimum" => value.is_null() || value.as_u64() >= rule.as_u64(),
                "maximum" => value.is_null() || value.as_u64() <= rule.as_u64(),
                "type" => {
                    let actual = match value {
                        Value::Null => "null",
                        Value::Bool(_) => "boolean",
                        Value::Number(_) if rule.to_string().contains("number") => "number",
                        Value::Number(_) => "integer",
                        Value::String(_) => "string",
                        Value::Array(_) => "array",
                        Value::Object(_) => "object",
                    };
                    rule == actual || rule.as_array().is_some_and(|types| types.iter().any(|t| t == actual))
                }
                "items" => {
                    for item in value.as_array().into_iter().flatten() {
                        check(rule, item, root, at)?;
                    }
                    true
                }
                "properties" => {
                    for (name, property) in rule.as_object().ok_or("an object")? {
                        if let Some(inner) = value.get(name) {
                            check(property, inner, root, &format!("{at}.{name}"))?;
                        }
                    }
                    true
                }
                "required" => rule
                    .as_array()
                    .ok_or("a list")?
                    .iter()
                    .all(|name| name.as_str().is_some_and(|name| value.get(name).is_some())),
                "additionalProperties" => {
                    let known = schema.get("properties").and_then(Value::as_object).ok_or("properties")?;
                    value.as_object().is_none_or(|object| object.keys().all(|key| known.contains_key(key)))
                }
                other => return Err(format!("{at}: keyword {other} is not understood")),
            };
            if !holds {
                return Err(format!("{at}: {value} breaks {keyword}: {rule}"));
            }
        }
        Ok(())
    }

    fn is_valid(value: &Value) -> Result<(), String> {
        let schema: Value = serde_json::from_str(SCHEMA).unwrap();
        let definition = value.get("type").and_then(Value::as_str).unwrap_or("none");
        // First against its own definition, whose complaint says more than oneOf's.
        if let Some(definition) = schema.pointer(&format!("/$defs/{definition}")) {
            check(definition, value, &schema, "line")?;
        }
        check(&schema, value, &schema, "line")
    }

    fn full_drop() -> Drop {
        let k8s = K8s {
            namespace: Some("shop".into()),
            pod: Some("cart".into()),
            workload: Some("deployment/cart".into()),
            service: Some("cart".into()),
            service_by: Some(ServiceBy::Original),
            services: vec!["redis".into()],
            node: Some("n1".into()),
            container: Some("web".into()),
            unit: Some("nginx.service".into()),
        };
        let end = Endpoint { address: "10.0.0.1".parse().ok(), port: Some(80), k8s: Some(k8s) };
        let tuple = || Original { source: end.clone(), destination: end.clone() };
        let filter = Filter {
            attached: Some("clsact".into()),
            classifier: Some("bpf".into()),
            priority: Some(49152),
            handle: Some("0x1".into()),
            program: Some("bouncer".into()),
            id: Some(7),
            tag: Some("a0b1".into()),
            pinned: Some("/sys/fs/bpf/bouncer".into()),
        };
        let text = || Some("text".to_owned());
        Drop {
            count: 3,
            segments: 4,
            detail: true,
            source: end.clone(),
            destination: end.clone(),
            original: Some(tuple()),
            network: Network {
                family: text(),
                transport: text(),
                interface: text(),
                interface_in: text(),
                interface_out: text(),
                netns: Some(u32::MAX),
                netns_by: text(),
            },
            packet: Packet {
                length: Some(60),
                mark: Some(1),
                ttl: Some(64),
                ip_id: Some(7),
                tcp_flags: text(),
                icmp_type: Some(8),
                icmp_code: Some(0),
                icmp_id: Some(1),
                icmp_sequence: Some(2),
                segments: Some(1),
                fragment: Some(false),
            },
            conntrack: Some(Conntrack {
                state: "new".into(),
                direction: text(),
                status: "confirmed".into(),
                zone: Some(0),
                mark: Some(0),
                tcp_state: text(),
                original: tuple(),
                reply: tuple(),
            }),
            inner: Some(Inner {
                kind: "vxlan".into(),
                vni: Some(1),
                source: end.clone(),
                destination: end.clone(),
                transport: text(),
            }),
            drop: Reason {
                reason: text(),
                subsystem: text(),
                location: text(),
                netfilter: Some(Box::new(Netfilter {
                    backend: Some(Backend::Legacy),
                    family: Some(Family::Ipv4),
                    method: Some(Method::Counter),
                    program: Some(Program { id: 7, name: "guard".into() }),
                    other_backend: text(),
                    mark_set_by: vec![RuleRef::default()],
                    candidates: vec![RuleRef {
                        rule: Some(1),
                        handle: Some(2),
                        text: text(),
                        ..RuleRef::default()
                    }],
                    ..Netfilter::default()
                })),
                cilium: Some(Box::new(full_cilium())),
                bpf: Some(Box::new(Bpf {
                    hook: "EGRESS".into(),
                    filter: filter.clone(),
                    candidates: vec![filter],
                    ..Bpf::default()
                })),
                cause: Some(Cause {
                    id: "ip-forward-off".into(),
                    severity: "error".into(),
                    why: "why".into(),
                    fix: "fix".into(),
                    confidence: "exact".into(),
                    owner: text(),
                    resets: text(),
                    evidence: vec![Evidence {
                        name: "net.ipv4.ip_forward".into(),
                        value: "0".into(),
                        source: "sysctl".into(),
                        change: Some(1),
                    }],
                    others: vec!["no-route".into()],
                }),
                ..Reason::default()
            },
            stack: vec!["a+0x1".into()],
            ..Drop::default()
        }
    }

    fn full_cilium() -> Cilium {
        let identity = || Some(Identity { id: 2, labels: Some(vec!["reserved:world".into()]) });
        let entry = Entry {
            identity: identity(),
            port: Some(1),
            port_last: Some(3),
            auth: Some(1),
            ..Entry::default()
        };
        Cilium {
            code: Some(189),
            extended_error: Some(-1),
            verdict_by: Some(VerdictBy::Auth),
            direction: Some(Direction::Ingress),
            source_identity: identity(),
            policies: Some(vec![Policy { name: "allow".into(), ..Policy::default() }]),
            entry: Some(entry.clone()),
            nearest: vec![entry],
            allowed_now: Some(true),
            line: Some(7),
            notes: vec!["note".into()],
            ..Cilium::default()
        }
    }

    /// The lines of `droptrace doctor`.
    const DOCTOR: [&str; 6] = ["finding", "dropped", "unread", "mechanism", "table", "xdp"];

    #[test]
    fn every_line_of_doctor_is_valid() {
        let text = doctor::json::lines(&doctor::json::example(), crate::cause::Language::English);
        let lines: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        assert_eq!(lines.iter().map(|line| line["type"].as_str().unwrap()).collect::<Vec<_>>(), DOCTOR);
        lines.iter().for_each(|line| is_valid(line).unwrap());
    }

    fn json_of(drop: Drop) -> Value {
        serde_json::to_value(Record::Drop(Box::new(drop))).unwrap()
    }

    #[test]
    fn every_record_is_valid() {
        is_valid(&json_of(full_drop())).unwrap();
        is_valid(&json_of(Drop::default())).unwrap();
        let mut little = full_drop();
        little.drop.cilium = Some(Box::default());
        is_valid(&json_of(little)).unwrap();
        let places = [LostPlace::Ring, LostPlace::Flow, LostPlace::Overflow, LostPlace::Recursion];
        for place in places.into_iter().chain([LostPlace::Recording]) {
            let lost = Record::Lost(Lost { time: Timestamp(0), count: 1, place });
            is_valid(&serde_json::to_value(lost).unwrap()).unwrap();
        }
        let Drop { source, destination, .. } = full_drop();
        let other =
            Unreplied { source: source.clone(), destination: destination.clone(), ..Unreplied::default() };
        let peer = Peer { source, destination, retransmits: 3, answered: false };
        let stalled = Stalled { seconds: 10, peers: vec![peer], ..Stalled::default() };
        is_valid(&serde_json::to_value(Record::Stalled(stalled.clone())).unwrap()).unwrap();
        let stalled = Stalled { unreplied: Some(2), unreplied_peers: vec![other], ..stalled };
        is_valid(&serde_json::to_value(Record::Stalled(stalled)).unwrap()).unwrap();
    }

    #[test]
    fn every_property_is_there() {
        let schema: Value = serde_json::from_str(SCHEMA).unwrap();
        let full = json_of(full_drop());
        let defs = schema["$defs"].as_object().unwrap();
        let places = [
            ("drop", ""),
            ("endpoint", "/source"),
            ("k8s", "/source/k8s"),
            ("tuple", "/original"),
            ("network", "/network"),
            ("packet", "/packet"),
            ("conntrack", "/conntrack"),
            ("inner", "/inner"),
            ("reason", "/drop"),
            ("netfilter", "/drop/netfilter"),
            ("rule", "/drop/netfilter/candidates/0"),
            ("program", "/drop/netfilter/program"),
            ("bpf", "/drop/bpf"),
            ("filter", "/drop/bpf/candidates/0"),
            ("cilium", "/drop/cilium"),
            ("identity", "/drop/cilium/source_identity"),
            ("policy", "/drop/cilium/policies/0"),
            ("entry", "/drop/cilium/nearest/0"),
            ("cause", "/drop/cause"),
            ("evidence", "/drop/cause/evidence/0"),
        ];
        for (name, pointer) in places {
            let keys = |object: &Map<String, Value>| object.keys().cloned().collect::<BTreeSet<_>>();
            let described = keys(defs[name]["properties"].as_object().unwrap());
            let present = keys(full.pointer(pointer).and_then(Value::as_object).unwrap());
            assert_eq!(described, present, "{name}");
        }
        // And `lost`, `stalled`, its `peer` and `unreplied`, those of a trace, and doctor's.
        assert_eq!(defs.len(), places.len() + 4 + TRACED.len() + DOCTOR.len());
    }

    /// The definitions of a trace's lines, and where they are in [`full_story`].
    const TRACED: [(&str, &str); 6] = [
        ("step", "/0"),
        ("netfilter_step", "/0/netfilter"),
        ("nat_step", "/0/nat"),
        ("route", "/0/route"),
        ("tunnel_step", "/0/tunnel"),
        ("end", "/1"),
    ];

    /// A step that has everything, and an end.
    fn full_story() -> Value {
        let Drop { source, destination, .. } = full_drop();
        let ends = || Ends { source: source.clone(), destination: destination.clone() };
        let text = || Some("text".to_owned());
        let step = Step {
            packet: "1".into(),
            step: 1,
            time: Timestamp(0),
            netns: Some(u32::MAX),
            pod: text(),
            kind: Kind::Netfilter,
            interface_in: text(),
            interface_out: text(),
            source: source.clone(),
            destination: destination.clone(),
            method: "compared",
            confidence: Confidence::Inferred,
            netfilter: Some(NetfilterStep {
                backend: Some(Backend::Legacy),
                family: Family::Ipv4,
                hook: "FORWARD",
                table: text(),
                chain: text(),
                what: Some(Met::Return),
                rule: Some(1),
                handle: Some(2),
                verdict: text(),
                text: text(),
                mark: Some(1),
                priority: Some(-300),
            }),
            nat: Some(NatStep { before: ends(), after: ends() }),
            route: Some(Route { gateway: "10.0.0.1".parse().ok(), function: text(), ..Route::default() }),
            tunnel: Some(TunnelStep {
                encapsulated: true,
                kind: "vxlan".into(),
                vni: Some(1),
                outer: ends(),
                inner: ends(),
            }),
            note: text(),
            seen: None,
        };
        let end = End {
            packet: "1".into(),
            time: Timestamp(0),
            steps: 1,
            outcome: Outcome::NoReply,
            last: Some(Kind::Drop),
            note: "note".into(),
            cause: full_drop().drop.cause,
            drop: Some(Box::new(full_drop())),
        };
        json!([Line::Step(Box::new(step)), Line::End(Box::new(end))])
    }

    #[test]
    fn every_line_of_a_trace_is_valid_and_described() {
        let full = full_story();
        for line in full.as_array().unwrap() {
            is_valid(line).unwrap();
        }
        let mut little = full.clone();
        for name in ["netfilter", "nat", "route", "tunnel", "note"] {
            little[0][name] = Value::Null;
        }
        for name in ["drop", "cause", "last"] {
            little[1][name] = Value::Null;
        }
        for line in little.as_array().unwrap() {
            is_valid(line).unwrap();
        }
        use Kind::{Bridge, Device, Nat, Neighbour, Netfilter, Qdisc, Socket, Tc, Tunnel};
        let kinds =
            [Device, Tc, Netfilter, Nat, Kind::Route, Bridge, Tunnel, Neighbour, Qdisc, Socket, Kind::Drop];
        use Decision::{Forward, Local, Other, Output, Refused};
        use Outcome::{Delivered, Dropped, Left, NoReply, Vanished};
        let choices = [
            ("/0/kind", json!(kinds)),
            ("/0/netfilter/what", json!([Met::Rule, Met::Return, Met::Policy])),
            ("/0/route/decision", json!([Local, Forward, Output, Refused, Other])),
            ("/1/outcome", json!([Dropped, Delivered, Left, NoReply, Vanished])),
        ];
        for (pointer, choices) in choices {
            for choice in choices.as_array().unwrap() {
                let mut other = full.clone();
                *other.pointer_mut(pointer).unwrap() = choice.clone();
                is_valid(&other[0]).and_then(|()| is_valid(&other[1])).unwrap();
            }
        }
        little[1]["outcome"] = json!("lost");
        assert!(is_valid(&little[1]).is_err());
        let schema: Value = serde_json::from_str(SCHEMA).unwrap();
        for (name, pointer) in TRACED {
            let keys = |object: &Value| object.as_object().unwrap().keys().cloned().collect::<BTreeSet<_>>();
            let described = keys(&schema["$defs"][name]["properties"]);
            assert_eq!(described, keys(full.pointer(pointer).unwrap()), "{name}");
        }
        // What a drop's line says is a drop's event.
        assert_eq!(full[1]["drop"], json_of(full_drop()));
    }

    #[test]
    fn what_is_not_a_line_is_invalid() {
        let mut extra = json_of(full_drop());
        extra["more"] = json!(1);
        let mut missing = json_of(full_drop());
        missing["drop"].as_object_mut().unwrap().remove("reason");
        let mut wrong = json_of(full_drop());
        wrong["packet"]["ttl"] = json!(256);
        let mut class = json_of(full_drop());
        class["drop"]["class"] = json!("other");
        for value in [extra, missing, wrong, class, json!({"type": "lost"}), json!({})] {
            assert!(is_valid(&value).is_err(), "{value}");
        }
    }
}
