use super::*;
use crate::identity::policy::Prefix;

fn labels(all: &[(&str, &str)]) -> Labels {
    all.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
}

fn is(key: &str, value: &str) -> Requirement {
    Requirement { key: key.to_owned(), test: Test::In(vec![value.to_owned()]) }
}

fn endpoints(requirements: Vec<Requirement>) -> Peer {
    Peer::Endpoints(Selector { requirements })
}

fn block(prefix: &str, except: &[&str]) -> Peer {
    let parse = |text: &str| Prefix::parse(text).unwrap();
    Peer::Block(parse(prefix), except.iter().map(|except| parse(except)).collect())
}

/// A pod that Cilium knows.
fn batch() -> Who {
    let labels =
        labels(&[("k8s:app", "batch"), (NAMESPACE, "pay"), ("k8s:io.cilium.k8s.namespace.labels.team", "a")]);
    Who { identity: 4711, labels: Some(labels), address: "10.1.2.3".parse().ok(), pod: None }
}

fn outside(identity: u32) -> Who {
    Who { identity, labels: None, address: "10.1.2.3".parse().ok(), pod: None }
}

fn of(one: Peer, who: &Who) -> Result<(), Miss> {
    peers(Some(&[one]), who)
}

fn why(one: Peer, who: &Who) -> String {
    of(one, who).unwrap_err().why
}

#[test]
fn peers_by_their_labels() {
    let app = |value: &str| endpoints(vec![is("k8s:app", value)]);
    assert_eq!(of(app("batch"), &batch()), Ok(()));
    assert_eq!(of(endpoints(vec![]), &batch()), Ok(()));
    assert_eq!(why(app("frontend"), &batch()), "peer labels: needs app=frontend, the peer has app=batch");
    let all = endpoints(vec![
        is("any:app", "frontend"),
        is("k8s:tier", "x"),
        is(NAMESPACE, "shop"),
        is("k8s:io.cilium.k8s.namespace.labels.team", "b"),
        Requirement { key: "k8s:app".to_owned(), test: Test::DoesNotExist },
    ]);
    assert_eq!(
        why(all, &batch()),
        "peer labels: needs app=frontend, tier=x, namespace label team=b, no app, to be in namespace shop, the peer has \
         app=batch, no tier, namespace pay, namespace label team=a"
    );
    let unknown = of(app("frontend"), &Who { labels: None, ..batch() }).unwrap_err();
    assert!(
        unknown.is_unsure && unknown.why.ends_with("those of identity 4711 are not known"),
        "{unknown:?}"
    );
    assert!(of(app("frontend"), &outside(0)).unwrap_err().is_unsure);
    // A lot of values, and long ones.
    let test = Test::NotIn((0..9).map(|n| format!("v{n}")).chain(["batch".to_owned()]).collect());
    let many = why(endpoints(vec![Requirement { key: "k8s:app".to_owned(), test }]), &batch());
    assert!(many.contains("needs app not in (v0, v1, v2, v3, v4 and 5 more)"), "{many}");
    let long = why(app(&"x".repeat(10_000)), &batch());
    assert!(long.len() < 200 && long.contains("x ..."), "{long}");
}

#[test]
fn a_peer_that_no_selector_matches_whatever_its_labels() {
    let app = || endpoints(vec![is("k8s:app", "frontend"), is(NAMESPACE, "shop")]);
    assert_eq!(
        why(app(), &outside(2)),
        "peer labels: needs app=frontend, to be in namespace shop, the peer is identity 2 (reserved:world): its address \
         10.1.2.3 belongs to no pod that Cilium knows"
    );
    let pod = |value: &str| Pod {
        name: "shop/client-7d9".to_owned(),
        node: Some("kubenet-4".to_owned()),
        labels: labels(&[("k8s:app", value), (NAMESPACE, "shop")]),
        ports: None,
    };
    let told = |value: &str| why(app(), &Who { pod: Some(pod(value)), ..outside(9) });
    let (right, wrong) = (told("frontend"), told("batch"));
    assert!(
        right.contains(
            "which pod shop/client-7d9 of node kubenet-4 at that address has, but the peer is identity 9"
        ),
        "{right}"
    );
    assert!(right.ends_with("(its node runs no Cilium, or that does not manage the pod)"), "{right}");
    assert!(
        wrong.starts_with(
            "peer labels: needs app=frontend, pod shop/client-7d9 of node kubenet-4 has app=batch; besides"
        ),
        "{wrong}"
    );
    // Not a pod's: another reserved identity.
    assert!(why(app(), &outside(6)).ends_with("the peer is identity 6 (reserved:remote-node)"));
    // Even `{}` of a cluster-wide policy wants a namespace; but a selector may name the reserved label.
    let any = Requirement { key: NAMESPACE.to_owned(), test: Test::Exists };
    assert!(of(endpoints(vec![any]), &outside(2)).is_err());
    let reserved = Requirement { key: "reserved:world".to_owned(), test: Test::Exists };
    assert_eq!(of(endpoints(vec![reserved]), &outside(2)), Ok(()));
    // Kubernetes' empty list of peers is everybody.
    assert_eq!(peers(None, &outside(2)), Ok(()));
}

#[test]
fn blocks_of_addresses() {
    for (block, identity, expected) in [
        (block("10.0.0.0/8", &[]), 2, Ok(())),
        (block("10.0.0.0/8", &[]), 1 << 24 | 5, Ok(())),
        (
            block("10.0.0.0/8", &["10.1.0.0/16"]),
            2,
            Err("10.1.2.3 is in 10.1.0.0/16, which 10.0.0.0/8 leaves out"),
        ),
        (block("10.0.0.0/8", &["10.2.0.0/16"]), 9, Ok(())),
        (block("192.0.2.0/24", &[]), 2, Err("it is about 192.0.2.0/24, the peer is 10.1.2.3")),
        (block("::/0", &[]), 10, Err("it is about ::/0")),
        (
            block("0.0.0.0/0", &[]),
            4711,
            Err("about peers outside of the cluster, and this one is identity 4711"),
        ),
        (block("0.0.0.0/0", &[]), 6, Err("about peers outside of the cluster")),
    ] {
        match (of(block, &outside(identity)), expected) {
            (Ok(()), Ok(())) => {}
            (Err(miss), Err(words)) => assert!(miss.why.contains(words), "{}", miss.why),
            other => panic!("{identity} {other:?}"),
        }
    }
    assert!(of(block("::/0", &[]), &Who { address: None, ..outside(2) }).unwrap_err().is_unsure);
}

#[test]
fn entities() {
    for (entity, are, are_not) in [
        ("all", &[0, 1, 2, 4711, 1 << 24][..], &[][..]),
        ("world", &[2, 9, 10, 1 << 24 | 1], &[0, 1, 6, 4711]),
        ("world-ipv4", &[9, 1 << 24 | 1], &[2, 10]),
        ("world-ipv6", &[10], &[9, 1 << 24 | 1]),
        ("cluster", &[1, 3, 4, 5, 6, 7, 8, 104, 4711, 2 << 24], &[0, 2, 9, 1 << 24]),
        ("host", &[1], &[6, 2]),
        ("remote-node", &[6, 7, 2 << 24], &[1]),
        ("kube-apiserver", &[7], &[6]),
        ("unmanaged", &[3], &[2]),
        ("none", &[], &[0, 1, 2, 4711]),
        ("unknown", &[], &[0]),
    ] {
        let fits = |identity: u32| of(Peer::Entity(entity.to_owned()), &outside(identity)).is_ok();
        assert!(are.iter().all(|id| fits(*id)), "{entity} {are:?}");
        assert!(!are_not.iter().any(|id| fits(*id)), "{entity} {are_not:?}");
    }
    let api = Who { labels: Some(labels(&[("reserved:kube-apiserver", "")])), ..outside(1 << 24 | 3) };
    assert_eq!(of(Peer::Entity("kube-apiserver".to_owned()), &api), Ok(()));
    assert_eq!(
        why(Peer::Entity("world".to_owned()), &batch()),
        "peer: it is about the entity world, the peer is identity 4711"
    );
}

#[test]
fn nodes_by_their_labels() {
    let edge = || Peer::Nodes(Selector { requirements: vec![is("any:role", "edge")] });
    let node = |identity, labels| Who { identity, labels, ..Who::default() };
    let told = |role: &str| Some(labels(&[("k8s:role", role), ("reserved:remote-node", "")]));
    assert_eq!(of(edge(), &node(2 << 24 | 5, told("edge"))), Ok(()));
    assert_eq!(
        why(edge(), &node(2 << 24 | 5, told("db"))),
        "peer: its peers are nodes chosen by labels (role=edge), the peer is a node that has role=db"
    );
    // A pod or the world is none, whatever its labels are; of a node without labels that is not known.
    let pod = of(edge(), &node(4711, told("edge"))).unwrap_err();
    assert!(
        !pod.is_unsure && pod.why.ends_with("the peer is no node to Cilium: identity 4711"),
        "{}",
        pod.why
    );
    assert!(!of(edge(), &outside(2)).unwrap_err().is_unsure);
    for identity in [0, 1, 6, 7, 2 << 24 | 5] {
        assert!(of(edge(), &node(identity, None)).unwrap_err().is_unsure, "{identity}");
    }
}

#[test]
fn addresses_that_are_listed_elsewhere() {
    let group = || Peer::Listed("an AWS security group".to_owned());
    let world = of(group(), &outside(2)).unwrap_err();
    assert!(world.is_unsure && world.why.contains("the addresses of an AWS security group, which"));
    let pod = of(group(), &batch()).unwrap_err();
    assert!(!pod.is_unsure && pod.why.contains("which are outside of the cluster, and the peer is"));
}

#[test]
fn other_peers_and_several() {
    let dns = why(Peer::DnsName("api.example.com".to_owned()), &outside(2));
    assert!(dns.contains("the DNS name api.example.com"), "{dns}");
    assert!(why(Peer::Service("shop/db".to_owned()), &batch()).contains("the service shop/db"));
    assert!(of(Peer::Unread("requires"), &batch()).unwrap_err().is_unsure);
    assert_eq!(peers(Some(&[]), &batch()).unwrap_err().why, "peer: it is about nobody");
    // The one that lacks least.
    let far = endpoints(vec![is("k8s:a", "1"), is("k8s:b", "2")]);
    let near = endpoints(vec![is("k8s:app", "frontend")]);
    let all = [far, near, block("10.0.0.0/8", &[])];
    let miss = peers(Some(&all), &batch()).unwrap_err();
    assert_eq!(miss.why, "peer labels: needs app=frontend, the peer has app=batch (the nearest of 3 peers)");
    // One that may fit makes it unsure.
    assert!(peers(Some(&[all[0].clone(), Peer::Unread("requires")]), &batch()).unwrap_err().is_unsure);
}

fn to(protocol: u8, port: Option<u16>) -> What {
    What { direction: Direction::Ingress, protocol: Some(protocol), port, icmp_type: None, destination: None }
}

fn range(protocol: Option<u8>, first: u16, last: u16) -> Port {
    Port::Range { protocol, first, last }
}

#[test]
fn ports_of_a_packet() {
    let tcp = Some(6);
    let any_port = || range(tcp, 0, u16::MAX);
    for (port, what, expected) in [
        (range(tcp, 80, 80), to(6, Some(80)), Some(true)),
        (range(tcp, 80, 80), to(6, Some(81)), Some(false)),
        (range(tcp, 80, 80), to(17, Some(80)), Some(false)),
        (range(tcp, 80, 80), to(6, None), None),
        (range(tcp, 80, 90), to(6, Some(90)), Some(true)),
        (range(tcp, 80, 90), to(6, Some(91)), Some(false)),
        (range(None, 53, 53), to(17, Some(53)), Some(true)),
        (range(None, 53, 53), to(132, Some(53)), Some(true)),
        (range(None, 53, 53), to(1, None), Some(false)),
        (any_port(), to(6, None), Some(true)),
        (any_port(), to(17, Some(5)), Some(false)),
        (Port::Protocol(String::new()), to(1, None), Some(true)),
        (Port::Protocol("VRRP".to_owned()), to(112, None), Some(true)),
        (Port::Protocol("VRRP".to_owned()), to(6, Some(1)), Some(false)),
    ] {
        assert_eq!(has_port(&port, what.protocol.unwrap(), &what), expected, "{port:?} {what:?}");
    }
    let icmp = |is_v6, kind| Port::Icmp { is_v6, kind };
    let echo = |protocol| What { icmp_type: Some(8), ..to(protocol, None) };
    assert_eq!(has_port(&icmp(false, Ok(8)), 1, &echo(1)), Some(true));
    assert_eq!(has_port(&icmp(false, Ok(0)), 1, &echo(1)), Some(false));
    assert_eq!(has_port(&icmp(true, Ok(8)), 1, &echo(1)), Some(false));
    assert_eq!(has_port(&icmp(false, Err("Photuris".to_owned())), 1, &echo(1)), None);
}

#[test]
fn named_ports_are_those_of_the_destinations_pod() {
    let port = Port::Named { protocol: Some(6), name: "Http".to_owned() };
    let pod = |ports| Some(Pod { ports, ..Pod::default() });
    let http = || Some(vec![("http".to_owned(), 6, 8080)]);
    for (number, destination, expected) in [
        (8080, pod(http()), Some(true)),
        (8081, pod(http()), Some(false)),
        (8080, pod(Some(vec![("http".to_owned(), 17, 8080)])), Some(false)),
        (8080, pod(None), None),
        (8080, None, None),
    ] {
        let what = What { destination, ..to(6, Some(number)) };
        assert_eq!(has_port(&port, 6, &what), expected, "{what:?}");
    }
}

#[test]
fn both_defects_are_told_the_peers_first() {
    let rule = |peer: &str, port: u16| Rule {
        peers: Some(vec![endpoints(vec![is("k8s:app", peer)])]),
        ports: Some(vec![range(Some(6), port, port), range(Some(17), 53, 54)]),
        authenticates: false,
    };
    let what = to(6, Some(9999));
    let told = |peer, port| fits(&rule(peer, port), &batch(), &what).map_err(|miss| miss.why);
    assert_eq!(told("batch", 9999), Ok(()));
    assert_eq!(
        told("batch", 80),
        Err("port: it is about TCP 80, UDP 53-54, the packet is TCP 9999".to_owned())
    );
    assert_eq!(told("web", 9999), Err("peer labels: needs app=web, the peer has app=batch".to_owned()));
    assert_eq!(
        told("web", 80),
        Err("peer labels: needs app=web, the peer has app=batch; port: it is about TCP 80, UDP 53-54, the packet is TCP \
             9999"
            .to_owned())
    );
    let fragment = fits(&rule("batch", 80), &batch(), &to(6, None)).unwrap_err();
    assert!(fragment.is_unsure && fragment.why.contains("TCP 80"), "{fragment:?}");
    // Another peer's rule is not about the packet, whatever its port.
    assert!(!fits(&rule("web", 80), &batch(), &to(6, None)).unwrap_err().is_unsure);
    let unknown = What { protocol: None, ..what };
    assert!(fits(&rule("batch", 80), &batch(), &unknown).unwrap_err().is_unsure);
    assert_eq!(fits(&Rule::default(), &batch(), &unknown), Ok(()));
}
