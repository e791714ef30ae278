//! Every Service against what the node translates.

use super::super::skip;
use super::Report;
use crate::bed::mount::with_bpffs;
use crate::bed::namespace::Namespace;
use crate::bed::{calico, cilium, command};
use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};
use std::io::Write as _;
use tempfile::NamedTempFile;

/// As kube-proxy wrote it on a node of the cluster that tests/fixtures is of.
const NFT: &str = include_str!("../../../fixtures/kube-proxy/ruleset.nft");

/// A cluster of two nodes, of which only those named run Cilium's agent.
pub(super) struct Cluster {
    items: Vec<Value>,
}

impl Cluster {
    pub(super) fn new(with_cilium: &[&str]) -> Self {
        let node = |name: &str| json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": name}});
        let pod = |name: &str, node: &str, labels: Value| {
            json!({"apiVersion": "v1", "kind": "Pod",
                   "metadata": {"name": name, "namespace": "kube-system", "uid": name, "labels": labels},
                   "spec": {"nodeName": node, "hostNetwork": true}, "status": {"phase": "Running"}})
        };
        let mut items = vec![node("n1"), node("n2"), pod("etcd", "n1", json!({}))];
        items.extend(
            with_cilium.iter().map(|at| pod(&format!("cilium-{at}"), at, json!({"k8s-app": "cilium"}))),
        );
        Self { items }
    }

    /// A service of one port, and where its endpoints listen: some are ready.
    pub(super) fn service(mut self, name: &str, address: &str, (ready, others): (&[&str], &[&str])) -> Self {
        let endpoint =
            |ready: bool| move |at: &&str| json!({"addresses": [at], "conditions": {"ready": ready}});
        let endpoints: Vec<Value> =
            ready.iter().map(endpoint(true)).chain(others.iter().map(endpoint(false))).collect();
        self.items.push(json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": name, "namespace": "shop"},
            "spec": {"clusterIP": address, "clusterIPs": [address], "ports": [{"port": 80, "protocol": "TCP"}]}}));
        self.items.push(json!({"apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": "IPv4",
            "metadata": {"name": format!("{name}-1"), "namespace": "shop", "labels": {"kubernetes.io/service-name": name}},
            "ports": [{"port": 8080, "protocol": "TCP"}], "endpoints": endpoints}));
        self
    }

    /// A service of pods of which there are none.
    fn scaled_to_zero(mut self, name: &str, address: &str) -> Self {
        self = self.service(name, address, (&[], &[]));
        let is_it = |item: &&mut Value| item["kind"] == "Service" && item["metadata"]["name"] == name;
        if let Some(service) = self.items.iter_mut().find(is_it) {
            service["spec"]["selector"] = json!({"app": name});
        }
        self
    }

    /// A file of it, as kubectl prints it.
    pub(super) fn file(self) -> Result<NamedTempFile> {
        let mut file = NamedTempFile::new().context("a file for the cluster")?;
        let list = json!({"apiVersion": "v1", "kind": "List", "items": self.items});
        file.write_all(list.to_string().as_bytes())?;
        Ok(file)
    }

    /// What doctor says of it in a network namespace.
    fn compare(self, netns: &Namespace) -> Result<Report> {
        let file = self.file()?;
        let path = file.path().to_str().context("its path")?;
        Report::of(netns, &["--inventory", path])
    }
}

/// What kube-proxy writes for a service with one endpoint.
fn rules(address: &str, endpoint: &str, name: &str) -> String {
    format!(
        "-A KUBE-SERVICES -d {address}/32 -p tcp -m comment --comment \"shop/{name} cluster IP\" -m tcp --dport 80 -j KUBE-SVC-{name}\n\
         -A KUBE-SVC-{name} ! -s 10.244.0.0/16 -j KUBE-MARK-MASQ\n-A KUBE-SVC-{name} -j KUBE-SEP-{name}\n\
         -A KUBE-SEP-{name} -p tcp -m tcp -j DNAT --to-destination {endpoint}:8080\n"
    )
}

fn nat(services: &[(&str, &str, &str)]) -> String {
    let chains: String = services
        .iter()
        .map(|(.., name)| format!(":KUBE-SVC-{name} - [0:0]\n:KUBE-SEP-{name} - [0:0]\n"))
        .collect();
    let rules: String =
        services.iter().map(|(address, endpoint, name)| rules(address, endpoint, name)).collect();
    format!(
        "*nat\n:KUBE-SERVICES - [0:0]\n:KUBE-MARK-MASQ - [0:0]\n{chains}-A PREROUTING -j KUBE-SERVICES\n-A KUBE-MARK-MASQ -j \
         MARK --set-xmark 0x4000/0x4000\n{rules}COMMIT\n"
    )
}

/// One service is missing, one leads to a pod that is gone, one has no endpoints; then all is well.
pub(super) fn of_iptables() -> Result<()> {
    let netns = Namespace::new()?;
    let cluster = |agents: &[&str]| {
        Cluster::new(agents)
            .service("cart", "10.96.0.9", (&["10.244.0.7"], &[]))
            .service("redis", "10.96.0.10", (&["10.244.0.8"], &[]))
            .service("web", "10.96.0.11", (&["10.244.0.5"], &["10.244.0.6"]))
    };
    netns.feed(
        "iptables-nft-restore",
        &nat(&[("10.96.0.9", "10.244.0.7", "cart"), ("10.96.0.11", "10.244.0.4", "web")]),
    )?;
    let wrong = cluster(&["n1"]).service("empty", "10.96.0.12", (&[], &["10.244.0.3"])).compare(&netns)?;
    wrong.expect_findings(&[
        "svc-not-programmed",
        "svc-stale-endpoint",
        "svc-no-endpoints",
        "cilium-unmanaged-node",
    ])?;
    for (id, name, value) in [
        ("svc-not-programmed", "shop/redis 10.96.0.10:80/TCP", "not translated, 1 endpoints ready"),
        ("svc-not-programmed", "looked at", "iptables-nft-save -c"),
        ("svc-stale-endpoint", "shop/web 10.96.0.11:80/TCP", "leads to 10.244.0.4:8080, no endpoint"),
        ("svc-no-endpoints", "endpoints of shop/empty", "0 of 1 ready"),
        ("cilium-unmanaged-node", "node", "n2"),
    ] {
        wrong.expect_evidence(id, name, value)?;
    }
    // An endpoint that is not ready any more may still be led to: it ends.
    netns.feed(
        "iptables-nft-restore",
        &nat(&[
            ("10.96.0.9", "10.244.0.7", "cart"),
            ("10.96.0.10", "10.244.0.8", "redis"),
            ("10.96.0.11", "10.244.0.6", "web"),
        ]),
    )?;
    cluster(&["n1", "n2"]).compare(&netns)?.expect_findings(&[])
}

/// A Service whose workload is scaled to zero is told, and is no misconfiguration.
pub(super) fn scaled_to_zero() -> Result<()> {
    let netns = Namespace::new()?;
    netns.feed("iptables-nft-restore", &nat(&[("10.96.0.9", "10.244.0.7", "cart")]))?;
    let cluster = Cluster::new(&[]).service("cart", "10.96.0.9", (&["10.244.0.7"], &[]));
    let told = cluster.scaled_to_zero("idle", "10.96.0.12").compare(&netns)?;
    told.expect_code(0)?;
    told.expect_evidence("svc-no-endpoints", "endpoints of shop/idle", "0 of 0 ready")?;
    ensure!(told.finding("svc-no-endpoints")?["severity"] == "info", "{}", told.text);
    Ok(())
}

/// Calico's eBPF dataplane translates instead of kube-proxy: how is not judged, and that is said.
pub(super) fn of_calico() -> Result<()> {
    let netns = Namespace::new()?;
    netns.feed("iptables-nft-restore", &nat(&[]))?;
    let map = calico::frontends()?;
    let told = Cluster::new(&[]).service("cart", "10.96.0.9", (&["10.244.0.7"], &[])).compare(&netns)?;
    drop(map);
    told.expect_findings(&[])?;
    let says =
        |line: &Value| line["why"].as_str().is_some_and(|why| why.starts_with("Calico translates services"));
    ensure!(told.all("unread").any(says), "{}", told.text);
    Ok(())
}

/// IPVS translates instead, both families.
pub(super) fn of_ipvs() -> Result<()> {
    for module in ["ip_vs", "ip_vs_rr"] {
        let _ = command::run(&format!("modprobe {module}"));
    }
    if !std::path::Path::new("/proc/net/ip_vs").exists() {
        return Err(skip("this kernel has no IPVS"));
    }
    let netns = Namespace::new()?;
    for (service, backend) in [("10.96.0.9", "10.244.0.7"), ("[fd77:96::9]", "[fd77:244::7]")] {
        netns.run(&format!("ipvsadm -A -t {service}:80 -s rr"))?;
        netns.run(&format!("ipvsadm -a -t {service}:80 -r {backend}:8080 -m"))?;
    }
    let told = Cluster::new(&[])
        .service("cart", "10.96.0.9", (&["10.244.0.7"], &[]))
        .service("cart-six", "fd77:96::9", (&["fd77:244::8"], &[]))
        .service("redis", "10.96.0.10", (&["10.244.0.8"], &[]))
        .compare(&netns)?;
    told.expect_findings(&["svc-not-programmed", "svc-stale-endpoint"])?;
    let ready = "not translated, 1 endpoints ready";
    told.expect_evidence("svc-not-programmed", "shop/redis 10.96.0.10:80/TCP", ready)?;
    told.expect_evidence("svc-not-programmed", "looked at", "IPVS (/proc/net/ip_vs)")?;
    let gone = "leads to [fd77:244::7]:8080, no endpoint";
    told.expect_evidence("svc-stale-endpoint", "shop/cart-six [fd77:96::9]:80/TCP", gone)
}

/// Cilium's maps translate instead of kube-proxy; what Cilium counted of its drops is told, too.
pub(super) fn of_cilium() -> Result<()> {
    /// Policy denied, and a packet that it let pass.
    const DENIED: u8 = 133;
    const FORWARDED: u8 = 3;
    with_bpffs(|| {
        let netns = Namespace::new()?;
        let metrics = cilium::Metrics::new()?;
        metrics.set(DENIED, 10)?;
        metrics.set(FORWARDED, 1000)?;
        let (cart, pod) = ("10.96.0.9:80".parse()?, ["10.244.0.7:8080".parse()?]);
        cilium::services(&[(cart, &pod), ("10.96.0.10:80".parse()?, &[])])?;
        let told = Cluster::new(&["n1", "n2"])
            .service("cart", "10.96.0.9", (&["10.244.0.7"], &[]))
            .service("redis", "10.96.0.10", (&["10.244.0.8"], &[]))
            .compare(&netns)?;
        told.expect_findings(&["svc-not-programmed"])?;
        let ready = "not translated, 1 endpoints ready";
        told.expect_evidence("svc-not-programmed", "shop/redis 10.96.0.10:80/TCP", ready)?;
        told.expect_evidence("svc-not-programmed", "looked at", "Cilium's maps of services")?;
        let counted: Vec<_> = told.all("dropped").filter(|row| row["by"] == "cilium").collect();
        let [denied] = counted[..] else { anyhow::bail!("not one counter of Cilium's: {counted:#?}") };
        ensure!((&denied["name"], &denied["count"]) == (&"Policy denied".into(), &10.into()), "{denied}");
        Ok(())
    })
}

/// kube-proxy's own table of nftables, as it wrote it.
pub(super) fn of_nft() -> Result<()> {
    let netns = Namespace::new()?;
    netns.feed("nft -f -", NFT)?;
    let carts = (&["10.244.1.7", "10.244.1.8"][..], &[][..]);
    let cluster = || Cluster::new(&[]).service("cart", "10.96.42.74", carts);
    let wrong = cluster().service("ghost", "10.96.99.99", (&["10.244.1.9"], &[])).compare(&netns)?;
    // It has rules of IPv6, too, in a network namespace that does not forward it.
    wrong.expect_findings(&["svc-not-programmed", "ipv6-forward-off"])?;
    wrong.expect_evidence(
        "svc-not-programmed",
        "shop/ghost 10.96.99.99:80/TCP",
        "not translated, 1 endpoints ready",
    )?;
    netns.sysctl("net.ipv6.conf.all.forwarding", "1")?;
    cluster().compare(&netns)?.expect_findings(&[])
}
