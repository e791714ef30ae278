use super::super::object::{Backend, Identity, Middle, ServicePort};
use super::*;

const SECOND: i128 = 1_000_000_000;

fn at(seconds: i128) -> Timestamp {
    Timestamp(seconds * SECOND)
}

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn pod(name: &str, uid: &str, addresses: &[&str], created: i128) -> Pod {
    Pod {
        name: Name::new("shop", name),
        uid: uid.to_owned(),
        node: Some("n1".to_owned()),
        addresses: addresses.iter().map(|address| ip(address)).collect(),
        created: Some(at(created)),
        ..Pod::default()
    }
}

fn sandbox(id: &str, pod: &str, uid: &str, addresses: &[&str], netns: u32, created: i128) -> Sandbox {
    Sandbox {
        id: id.to_owned(),
        pod: Name::new("shop", pod),
        uid: uid.to_owned(),
        addresses: addresses.iter().map(|address| ip(address)).collect(),
        netns: Some(netns),
        ready: true,
        created: Some(at(created)),
        ..Sandbox::default()
    }
}

fn name_at(inventory: &Inventory, address: &str, seconds: i128) -> Option<String> {
    inventory.pod_at(ip(address), at(seconds)).map(|pod| pod.name.name.clone())
}

fn name_in(inventory: &Inventory, netns: u32, seconds: i128) -> Option<String> {
    inventory.pod_in(netns, at(seconds)).map(|pod| pod.name.name.clone())
}

fn set(inventory: &mut Inventory, source: Source, seconds: i128, object: Object) {
    inventory.apply(source, at(seconds), Change::Set(object));
}

fn list(inventory: &mut Inventory, source: Source, seconds: i128, kind: Kind, objects: Vec<Object>) {
    inventory.apply(source, at(seconds), Change::Begin(kind));
    for object in objects {
        set(inventory, source, seconds, object);
    }
    inventory.apply(source, at(seconds), Change::End(kind));
}

#[test]
fn an_address_is_its_pods_from_the_pods_creation_on() {
    let mut inventory = Inventory::default();
    let pods = vec![Object::Pod(pod("cart", "u1", &["10.0.0.1", "fd00::1"], 100))];
    list(&mut inventory, Source::Api, 500, Kind::Pod, pods);
    assert_eq!(name_at(&inventory, "10.0.0.1", 100).as_deref(), Some("cart"));
    assert_eq!(name_at(&inventory, "fd00::1", 900).as_deref(), Some("cart"));
    assert_eq!(name_at(&inventory, "10.0.0.1", 99), None);
    assert_eq!(name_at(&inventory, "10.0.0.2", 500), None);
    assert!(inventory.is_complete(Source::Api, Kind::Pod));
}

#[test]
fn a_deleted_pod_names_its_last_drops_and_the_next_one_inherits_none() {
    let mut inventory = Inventory::default();
    list(&mut inventory, Source::Api, 1, Kind::Pod, vec![Object::Pod(pod("old", "u1", &["10.0.0.1"], 0))]);
    // The next one is there already, and gets the address after the old one has gone.
    set(&mut inventory, Source::Api, 90, Object::Pod(pod("new", "u2", &[], 90)));
    inventory.apply(Source::Api, at(100), Change::Delete(Kind::Pod, "shop/old".to_owned()));
    assert_eq!(name_at(&inventory, "10.0.0.1", 130).as_deref(), Some("old"));
    set(&mut inventory, Source::Api, 120, Object::Pod(pod("new", "u2", &["10.0.0.1"], 90)));
    assert_eq!(name_at(&inventory, "10.0.0.1", 99).as_deref(), Some("old"));
    assert_eq!(name_at(&inventory, "10.0.0.1", 121).as_deref(), Some("new"));
    // Minutes later it is forgotten.
    inventory.forget(at(399));
    assert_eq!(name_at(&inventory, "10.0.0.1", 99).as_deref(), Some("old"));
    inventory.forget(at(401));
    assert_eq!(name_at(&inventory, "10.0.0.1", 99), None);
    assert_eq!(inventory.pods().count(), 1);
}

#[test]
fn an_old_pod_that_is_told_again_takes_nothing_back() {
    let mut inventory = Inventory::default();
    list(&mut inventory, Source::Api, 1, Kind::Pod, vec![Object::Pod(pod("old", "u1", &["10.0.0.1"], 0))]);
    set(&mut inventory, Source::Api, 100, Object::Pod(pod("new", "u2", &["10.0.0.1"], 90)));
    // It is terminating, and its status still has the address.
    set(&mut inventory, Source::Api, 101, Object::Pod(pod("old", "u1", &["10.0.0.1"], 0)));
    assert_eq!(name_at(&inventory, "10.0.0.1", 102).as_deref(), Some("new"));
    assert_eq!(name_at(&inventory, "10.0.0.1", 99).as_deref(), Some("old"));
}

#[test]
fn a_pod_of_the_same_name_is_another_one() {
    let mut inventory = Inventory::default();
    list(&mut inventory, Source::Api, 1, Kind::Pod, vec![Object::Pod(pod("db-0", "u1", &["10.0.0.1"], 0))]);
    set(&mut inventory, Source::Api, 100, Object::Pod(pod("db-0", "u2", &["10.0.0.2"], 100)));
    assert_eq!(inventory.pod_at(ip("10.0.0.1"), at(99)).map(|pod| pod.uid.as_str()), Some("u1"));
    assert_eq!(inventory.pod_at(ip("10.0.0.2"), at(101)).map(|pod| pod.uid.as_str()), Some("u2"));
    let gone: Vec<bool> = inventory.by_name[&Name::new("shop", "db-0")]
        .iter()
        .map(|id| inventory.as_pod(*id).unwrap().is_gone())
        .collect();
    assert_eq!(gone, [true, false]);
}

#[test]
fn what_a_new_list_lacks_is_gone() {
    let mut inventory = Inventory::default();
    let both =
        vec![Object::Pod(pod("a", "u1", &["10.0.0.1"], 0)), Object::Pod(pod("b", "u2", &["10.0.0.2"], 0))];
    list(&mut inventory, Source::Api, 1, Kind::Pod, both);
    list(&mut inventory, Source::Api, 50, Kind::Pod, vec![Object::Pod(pod("b", "u2", &["10.0.0.2"], 0))]);
    let gone = |name: &str| inventory.pods().any(|(_, pod)| pod.name.name == name && pod.is_gone());
    assert!(gone("a") && !gone("b"));
    // While a list comes, what was known stays.
    inventory.apply(Source::Api, at(60), Change::Begin(Kind::Pod));
    assert_eq!(name_at(&inventory, "10.0.0.2", 61).as_deref(), Some("b"));
}

#[test]
fn the_runtime_knows_before_the_api_server_and_both_make_one_pod() {
    let mut inventory = Inventory::default();
    let cart = sandbox("s1", "cart", "u1", &["10.0.0.1"], 77, 100);
    set(&mut inventory, Source::Cri, 101, Object::Sandbox(cart.clone()));
    assert_eq!(name_at(&inventory, "10.0.0.1", 100).as_deref(), Some("cart"));
    assert_eq!(name_in(&inventory, 77, 100).as_deref(), Some("cart"));
    set(&mut inventory, Source::Api, 103, Object::Pod(pod("cart", "u1", &["10.0.0.1"], 98)));
    assert_eq!(inventory.pods().count(), 1);
    // Stopped: the address is free, whatever the API server still says.
    set(&mut inventory, Source::Cri, 200, Object::Sandbox(Sandbox { ready: false, ..cart }));
    let next = sandbox("s2", "web", "u2", &["10.0.0.1"], 78, 210);
    set(&mut inventory, Source::Cri, 211, Object::Sandbox(next));
    assert_eq!(name_at(&inventory, "10.0.0.1", 205).as_deref(), Some("cart"));
    assert_eq!(name_at(&inventory, "10.0.0.1", 210).as_deref(), Some("web"));
    assert_eq!(name_in(&inventory, 77, 201).as_deref(), Some("cart"));
    // Its inode number may be anybody's soon.
    assert_eq!(name_in(&inventory, 77, 205), None);
}

#[test]
fn an_inode_number_that_is_used_again_is_the_next_pods() {
    let mut inventory = Inventory::default();
    let first = sandbox("s1", "cart", "u1", &["10.0.0.1"], 77, 100);
    set(&mut inventory, Source::Cri, 100, Object::Sandbox(first.clone()));
    inventory.apply(Source::Cri, at(200), Change::Delete(Kind::Sandbox, "s1".to_owned()));
    set(
        &mut inventory,
        Source::Cri,
        201,
        Object::Sandbox(sandbox("s2", "web", "u2", &["10.0.0.2"], 77, 201)),
    );
    assert_eq!(name_in(&inventory, 77, 199).as_deref(), Some("cart"));
    assert_eq!(name_in(&inventory, 77, 201).as_deref(), Some("web"));
}

#[test]
fn a_static_pod_has_two_uids_and_is_one() {
    let mut inventory = Inventory::default();
    let node = Pod { host_network: true, ..pod("proxy", "mirror", &["192.0.2.1"], 0) };
    let own = Sandbox {
        host_network: true,
        netns: None,
        addresses: vec![],
        ..sandbox("s", "proxy", "hash", &[], 0, 0)
    };
    list(&mut inventory, Source::Api, 1, Kind::Pod, vec![Object::Pod(node)]);
    set(&mut inventory, Source::Cri, 2, Object::Sandbox(own));
    assert_eq!(inventory.pods().count(), 1);
    assert_eq!(inventory.pod_of("hash").unwrap().uid, "mirror");
    // It has no address of its own.
    assert!(inventory.pod_at(ip("192.0.2.1"), at(5)).is_none());
}

#[test]
fn processes_of_a_pod_show_its_netns_where_no_runtime_does() {
    let mut inventory = Inventory::default();
    list(&mut inventory, Source::Api, 1, Kind::Pod, vec![Object::Pod(pod("cart", "u1", &["10.0.0.1"], 0))]);
    let owner = NetnsOwner {
        netns: 77,
        cgroup: Cgroup { pod: Some("u1".to_owned()), ..Cgroup::default() },
        addresses: vec![ip("10.9.9.9")],
    };
    list(&mut inventory, Source::Proc, 5, Kind::Netns, vec![Object::Netns(owner)]);
    set(&mut inventory, Source::Api, 6, Object::Pod(pod("cart", "u1", &["10.0.0.1"], 0)));
    assert_eq!(name_in(&inventory, 77, 6).as_deref(), Some("cart"));
    // The address of a second interface, which the API server doesn't know.
    assert_eq!(name_at(&inventory, "10.9.9.9", 6).as_deref(), Some("cart"));
    list(&mut inventory, Source::Proc, 10, Kind::Netns, vec![]);
    let known = inventory.pods().next().unwrap().1;
    assert!(known.netns().is_empty() && known.addresses() == [ip("10.0.0.1")]);
}

#[test]
fn processes_outside_of_pods_have_names_too() {
    let mut inventory = Inventory::default();
    let cgroup = Cgroup { container_name: Some("web".to_owned()), ..Cgroup::default() };
    let owner = NetnsOwner { netns: 5, cgroup, addresses: vec![ip("172.17.0.2")] };
    list(&mut inventory, Source::Proc, 5, Kind::Netns, vec![Object::Netns(owner)]);
    let name = |group: Option<&NetnsOwner>| group.and_then(|group| group.cgroup.container_name.clone());
    assert_eq!(name(inventory.group_in(5, at(6))).as_deref(), Some("web"));
    assert_eq!(name(inventory.group_at(ip("172.17.0.2"), at(6))).as_deref(), Some("web"));
    inventory.forget(at(7));
    assert!(inventory.group_in(5, at(8)).is_some());
}

#[test]
fn processes_with_a_pods_address_do_not_take_it() {
    let mut inventory = Inventory::default();
    list(&mut inventory, Source::File, 1, Kind::Pod, vec![Object::Pod(pod("cart", "u1", &["10.0.0.1"], 0))]);
    set(&mut inventory, Source::Cri, 2, Object::Sandbox(sandbox("s1", "cart", "u1", &["10.0.0.1"], 4, 0)));
    let cgroup = Cgroup { unit: Some("ssh.service".to_owned()), ..Cgroup::default() };
    for (netns, address) in [(4, "10.0.0.1"), (5, "10.0.0.1"), (4, "10.0.0.2")] {
        let addresses = vec![ip(address)];
        set(
            &mut inventory,
            Source::Proc,
            3,
            Object::Netns(NetnsOwner { netns, cgroup: cgroup.clone(), addresses }),
        );
    }
    assert_eq!(name_at(&inventory, "10.0.0.1", 4).as_deref(), Some("cart"));
    assert_eq!(name_in(&inventory, 4, 4).as_deref(), Some("cart"));
    assert!(inventory.group_at(ip("10.0.0.1"), at(4)).is_none() && inventory.group_in(4, at(4)).is_none());
    assert!(inventory.group_in(5, at(4)).is_some());
    let (id, _) = inventory.pods().next().unwrap();
    assert!(inventory.has_last(id, ip("10.0.0.1")) && inventory.has_last_netns(id, 4));
    // Those in its netns have gone with it, whether anybody has looked or not.
    inventory.apply(Source::Proc, at(5), Change::Delete(Kind::Netns, "5".to_owned()));
    inventory.apply(Source::File, at(6), Change::Delete(Kind::Pod, "shop/cart".to_owned()));
    inventory.apply(Source::Cri, at(6), Change::Delete(Kind::Sandbox, "s1".to_owned()));
    assert_eq!(name_at(&inventory, "10.0.0.1", 7).as_deref(), Some("cart"));
    assert!(inventory.is_free(ip("10.0.0.1"), at(7)) && inventory.group_at(ip("10.0.0.2"), at(7)).is_none());
}

#[test]
fn services_are_found_by_what_clients_dial_and_by_their_backends() {
    let mut inventory = Inventory::default();
    let service = Service {
        name: Name::new("shop", "redis"),
        cluster: vec![ip("10.96.0.1")],
        external: vec![ip("203.0.113.1")],
        ports: vec![ServicePort {
            protocol: 6,
            port: 6379,
            node_port: Some(30379),
            ..ServicePort::default()
        }],
        ..Service::default()
    };
    set(&mut inventory, Source::Api, 1, Object::Service(service.clone()));
    let name = |found: Option<&Service>| found.map(|service| service.name.to_string());
    let redis = Some("shop/redis".to_owned());
    assert_eq!(name(inventory.service_at(ip("10.96.0.1"), 6, Some(6379))), redis);
    assert_eq!(name(inventory.service_at(ip("203.0.113.1"), 6, Some(6379))), redis);
    assert_eq!(name(inventory.service_at(ip("10.96.0.1"), 6, Some(80))), redis);
    assert_eq!(name(inventory.service_at(ip("10.96.0.2"), 6, Some(6379))), None);
    assert_eq!(name(inventory.service_at_node(6, 30379)), redis);
    let slice = |name: &str, service: &str| Slice {
        name: Name::new("shop", name),
        service: service.to_owned(),
        ports: vec![(6, 6379)],
        backends: vec![Backend { addresses: vec![ip("10.0.0.1")], ready: true, pod: None }],
    };
    set(&mut inventory, Source::Api, 2, Object::Slice(slice("redis-a", "redis")));
    set(&mut inventory, Source::Api, 2, Object::Slice(slice("redis-b", "redis")));
    set(&mut inventory, Source::Api, 2, Object::Slice(slice("cache-a", "cache")));
    let of = |inventory: &Inventory| {
        let found = inventory.services_of(ip("10.0.0.1"), 6, 6379);
        found.iter().map(ToString::to_string).collect::<Vec<_>>()
    };
    assert_eq!(of(&inventory), ["shop/cache", "shop/redis"]);
    inventory.apply(Source::Api, at(3), Change::Delete(Kind::Slice, "shop/redis-a".to_owned()));
    inventory.apply(Source::Api, at(3), Change::Delete(Kind::Slice, "shop/cache-a".to_owned()));
    assert_eq!(of(&inventory), ["shop/redis"]);
    // It moves to another address; the old one is nobody's.
    let moved = Service { cluster: vec![ip("10.96.0.9")], ..service };
    set(&mut inventory, Source::Api, 4, Object::Service(moved));
    assert_eq!(name(inventory.service_at(ip("10.96.0.1"), 6, Some(6379))), None);
    assert_eq!(name(inventory.service_at(ip("10.96.0.9"), 6, Some(6379))), redis);
    inventory.apply(Source::Api, at(5), Change::Delete(Kind::Service, "shop/redis".to_owned()));
    assert!(inventory.service_ports.is_empty() && inventory.node_ports.is_empty());
    assert!(inventory.service_addresses.is_empty());
}

#[test]
fn workloads_are_found_through_owners() {
    let mut inventory = Inventory::default();
    let owner = |kind: &str, name: &str| Owner { kind: kind.to_owned(), name: name.to_owned() };
    let web = Pod { owner: Some(owner("ReplicaSet", "web-5d")), ..pod("web-5d-x", "u1", &["10.0.0.1"], 0) };
    set(&mut inventory, Source::Api, 1, Object::Pod(web));
    let of = |inventory: &Inventory| inventory.workload(inventory.pod_of("u1").unwrap());
    assert_eq!(of(&inventory).as_deref(), Some("replicaset/web-5d"));
    let middle = Middle {
        namespace: "shop".to_owned(),
        itself: owner("ReplicaSet", "web-5d"),
        owner: Some(owner("Deployment", "web")),
    };
    set(&mut inventory, Source::Api, 1, Object::Middle(middle));
    assert_eq!(of(&inventory).as_deref(), Some("deployment/web"));
    inventory.apply(Source::Api, at(2), Change::Delete(Kind::ReplicaSet, "shop/web-5d".to_owned()));
    assert_eq!(of(&inventory).as_deref(), Some("replicaset/web-5d"));
}

fn policy(kind: PolicyKind, namespace: &str, name: &str) -> Policy {
    Policy { kind, name: Name::new(namespace, name), ..Policy::default() }
}

#[test]
fn policies_are_those_of_a_namespace_and_of_the_cluster() {
    let mut inventory = Inventory::default();
    let all = [
        policy(PolicyKind::Network, "shop", "a"),
        policy(PolicyKind::Cilium, "shop", "a"),
        policy(PolicyKind::Network, "pay", "b"),
        policy(PolicyKind::Clusterwide, "", "a"),
    ];
    for kind in [PolicyKind::Network, PolicyKind::Cilium, PolicyKind::Clusterwide] {
        let of_kind = all.iter().filter(|policy| policy.kind == kind).cloned().map(Object::Policy).collect();
        assert!(!inventory.knows_policies(kind));
        list(&mut inventory, Source::Api, 1, Kind::Policy(kind), of_kind);
        assert!(inventory.knows_policies(kind));
    }
    let names = |inventory: &Inventory, namespace: Option<&str>| -> Vec<String> {
        inventory.policies_of(namespace).map(|policy| format!("{:?} {}", policy.kind, policy.name)).collect()
    };
    assert_eq!(names(&inventory, Some("shop")), ["Network shop/a", "Cilium shop/a", "Clusterwide /a"]);
    assert_eq!(names(&inventory, Some("none")), ["Clusterwide /a"]);
    assert_eq!(names(&inventory, None), ["Clusterwide /a"]);
    let delete = |inventory: &mut Inventory, kind, key: &str| {
        inventory.apply(Source::Api, at(2), Change::Delete(Kind::Policy(kind), key.to_owned()));
    };
    delete(&mut inventory, PolicyKind::Cilium, "shop/a");
    delete(&mut inventory, PolicyKind::Clusterwide, "a");
    assert_eq!(names(&inventory, Some("shop")), ["Network shop/a"]);
    // A list without it.
    list(&mut inventory, Source::Api, 3, Kind::Policy(PolicyKind::Network), vec![]);
    assert_eq!(names(&inventory, Some("shop")), [""; 0]);
}

#[test]
fn a_file_is_older_than_the_api_server() {
    let mut inventory = Inventory::default();
    let identity = |app: &str| {
        let labels = Labels::from([("k8s:app".to_owned(), app.to_owned())]);
        Object::Identity(Identity { id: 4711, labels })
    };
    let app = |inventory: &Inventory| inventory.identity(4711).map(|labels| labels["k8s:app"].clone());
    list(&mut inventory, Source::File, 1, Kind::Identity, vec![identity("file")]);
    assert_eq!(app(&inventory).as_deref(), Some("file"));
    list(&mut inventory, Source::Api, 2, Kind::Identity, vec![identity("api")]);
    list(&mut inventory, Source::File, 3, Kind::Identity, vec![identity("file")]);
    assert_eq!(app(&inventory).as_deref(), Some("api"));
    inventory.apply(Source::Api, at(4), Change::Delete(Kind::Identity, "4711".to_owned()));
    assert_eq!(app(&inventory), None);
}

#[test]
fn the_agents_policies_give_way_to_the_clusters() {
    let kind = PolicyKind::Network;
    let set = |name: &str| {
        let policy = Policy { kind, name: Name::new("shop", name), ..Policy::default() };
        Change::Set(Object::Policy(policy))
    };
    let (begin, end) = (Change::Begin(Kind::Policy(kind)), Change::End(Kind::Policy(kind)));
    let names = |inventory: &Inventory| {
        inventory.policies_of(Some("shop")).map(|policy| policy.name.name.clone()).collect::<Vec<_>>()
    };
    let mut inventory = Inventory::default();
    let tell = |inventory: &mut Inventory, source, changes: &[Change]| {
        changes.iter().for_each(|change| inventory.apply(source, at(1), change.clone()));
    };
    tell(&mut inventory, Source::Agent, &[begin.clone(), set("a"), set("b"), end.clone()]);
    assert!(inventory.knows_policies(kind) && !inventory.has_policies_of_cluster(kind));
    // It tells anew what there is.
    tell(&mut inventory, Source::Agent, &[begin.clone(), set("a"), set("c"), end.clone()]);
    assert_eq!(names(&inventory), ["a", "c"]);
    // The API server has told all: what only the agent had is gone, and what it says counts no more.
    tell(&mut inventory, Source::Api, &[begin.clone(), set("a"), set("d"), end.clone()]);
    assert_eq!(names(&inventory), ["a", "d"]);
    tell(&mut inventory, Source::Agent, &[begin.clone(), set("a"), set("e"), end.clone()]);
    assert_eq!(names(&inventory), ["a", "d"]);
    tell(&mut inventory, Source::Agent, &[begin, end]);
    assert_eq!(names(&inventory), ["a", "d"]);
}
