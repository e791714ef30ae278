//! Misconfigured nodes, and the same nodes healthy.

use super::Report;
use crate::bed::droptrace::command as droptrace;
use crate::bed::namespace::Namespace;
use crate::bed::packet;
use crate::bed::topology::{Family, Pair};
use anyhow::{Context as _, Result, ensure};
use std::fs;
use std::os::unix::process::CommandExt as _;

/// A service that kube-proxy translates, in nat.
const SERVICE: &str =
    "*nat\n:KUBE-SEP-X - [0:0]\n-A KUBE-SEP-X -p tcp -j DNAT --to-destination 10.244.0.7:80\nCOMMIT\n";

/// A node: two uplinks, and pods on a bridge.
pub(super) struct Node {
    pub(super) netns: Namespace,
    /// The other ends of its wires.
    _others: [Namespace; 3],
}

impl Node {
    pub(super) fn new() -> Result<Self> {
        let (netns, others) = (Namespace::new()?, [Namespace::new()?, Namespace::new()?, Namespace::new()?]);
        let mut batch = String::new();
        for (device, other, setting) in [
            ("eth0", &others[0], "addr add 192.0.2.1/24 dev eth0"),
            ("eth1", &others[1], "addr add 198.51.100.1/24 dev eth1"),
            ("veth1", &others[2], "link add cni0 type bridge"),
        ] {
            batch +=
                &format!("link add {device} type veth peer name eth0 netns {}\n{setting}\n", other.name());
            batch += &format!("link set {device} up\n");
        }
        batch += "link set veth1 master cni0\nlink set cni0 up\naddr add 10.244.0.1/24 dev cni0\n\
                  link add flannel.1 type vxlan id 1 dev eth0 dstport 8472 nolearning\nlink set flannel.1 up\n\
                  route add default via 192.0.2.254\nroute add default via 198.51.100.254 metric 100\n";
        netns.feed("ip -batch -", &batch)?;
        for other in &others {
            other.run("ip link set eth0 up")?;
        }
        netns.feed("iptables-legacy-restore", SERVICE)?;
        Ok(Self { netns, _others: others })
    }

    pub(super) fn set(&self, settings: &[(&str, &str)]) -> Result<()> {
        settings.iter().try_for_each(|(name, value)| self.netns.sysctl(name, value))
    }
}

/// All of it wrong; put right but for one thing; healthy.
pub(super) fn misconfigurations() -> Result<()> {
    let node = Node::new()?;
    node.set(&[
        ("net.ipv4.ip_forward", "0"),
        ("net.ipv4.conf.eth1.rp_filter", "1"),
        ("net.bridge.bridge-nf-call-iptables", "0"),
    ])?;
    node.netns.run("ip link set eth0 mtu 1400")?;
    node.netns.run("iptables-legacy -P FORWARD DROP")?;
    node.netns.run("iptables-nft -A INPUT -p udp --dport 9 -j ACCEPT")?;
    let wrong = Report::of(&node.netns, &[])?;
    let all = ["ip-forward-off", "forward-policy-drop", "rp-filter", "brnf-off", "mtu", "mixed-iptables"];
    wrong.expect_findings(&all)?;
    for (id, name, value) in [
        ("ip-forward-off", "net.ipv4.conf.eth0.forwarding", "0"),
        ("ip-forward-off", "interface", "cni0"),
        ("forward-policy-drop", "policy of filter:FORWARD", "DROP"),
        ("rp-filter", "net.ipv4.conf.eth1.rp_filter", "1"),
        ("rp-filter", "default route (metric 100)", "eth1"),
        ("brnf-off", "net.bridge.bridge-nf-call-iptables", "0"),
        ("mtu", "flannel.1 mtu", "1450"),
        ("mtu", "eth0 mtu", "1400"),
        ("mixed-iptables", "legacy table nat", "1 rules: 1 of kube-proxy"),
        ("mixed-iptables", "nft table filter", "1 rules: 1 of unknown"),
    ] {
        wrong.expect_evidence(id, name, value)?;
    }
    ensure!(wrong.finding("rp-filter")?["interface"] == "eth1");
    ensure!(wrong.finding("mtu")?["netns"] == node.netns.inode());
    let is_error = |finding: &&serde_json::Value| finding["severity"] == "error";
    // The most severe first.
    let severe = wrong.all("finding").take_while(is_error).count();
    ensure!(severe == wrong.all("finding").filter(is_error).count(), "{}", wrong.text);

    node.set(&[
        ("net.ipv4.ip_forward", "1"),
        ("net.ipv4.conf.eth1.rp_filter", "2"),
        ("net.bridge.bridge-nf-call-iptables", "1"),
    ])?;
    node.netns.run("ip link set eth0 mtu 1500")?;
    // The policy may drop the rest where pods are accepted.
    node.netns.run("iptables-legacy -A FORWARD -i cni0 -j ACCEPT")?;
    node.netns.run("nft flush ruleset")?;
    let hairpin = Report::of(&node.netns, &[])?;
    hairpin.expect_findings(&["hairpin-off"])?;
    hairpin.expect_evidence("hairpin-off", "veth1 hairpin", "off")?;

    node.netns.run("bridge link set dev veth1 hairpin on")?;
    Report::of(&node.netns, &[])?.expect_findings(&[])
}

/// What is found, in Chinese, where the locale is.
pub(super) fn in_chinese() -> Result<()> {
    let node = Node::new()?;
    node.set(&[("net.ipv4.ip_forward", "0")])?;
    let told = node.netns.enter(|| {
        let mut command = droptrace(&["doctor", "--offline"])?;
        Ok(command.env("LC_ALL", "zh_CN.UTF-8").output()?.stdout)
    })?;
    let told = String::from_utf8_lossy(&told).into_owned();
    for part in
        ["上的 IPv4 转发已关闭：从这些接口进入", "    fix: 执行 `sysctl -w net.ipv4.ip_forward=1`，并写入"]
    {
        ensure!(told.contains(part), "no {part:?} in {told}");
    }
    Ok(())
}

/// Without capabilities droptrace can't work, and says why; what is wrong with the node it says all the same.
pub(super) fn without_privileges() -> Result<()> {
    let node = Node::new()?;
    node.set(&[("net.ipv4.ip_forward", "0")])?;
    let report = node.netns.enter(|| {
        let mut command = droptrace(&["doctor", "-o", "json", "--offline"])?;
        // SAFETY: between fork and exec the closure makes system calls only and touches no heap.
        unsafe {
            command.pre_exec(|| {
                for capability in 0..64 {
                    libc::prctl(libc::PR_CAPBSET_DROP, capability, 0, 0, 0);
                }
                Ok(())
            });
        }
        Report::read(&command.output().context("can't start droptrace")?)
    })?;
    report.expect_code(3)?;
    let line = report.all("mechanism").find(|line| line["name"] == "capabilities");
    let line = line.with_context(|| format!("nothing of capabilities: {}", report.text))?;
    ensure!(
        line["state"] == "off" && line["says"].as_str().is_some_and(|says| says.contains("CAP_BPF")),
        "{line}"
    );
    ensure!(line["fix"].as_str().is_some_and(|fix| fix.contains("PERFMON")), "{line}");
    report.expect_evidence("ip-forward-off", "net.ipv4.ip_forward", "0")
}

/// The limit is the whole machine's.
struct Limit(String);

impl Limit {
    const FILE: &str = "/proc/sys/net/netfilter/nf_conntrack_max";

    fn set(limit: u32) -> Result<Self> {
        let before = fs::read_to_string(Self::FILE).context("read nf_conntrack_max")?;
        fs::write(Self::FILE, limit.to_string()).context("set nf_conntrack_max")?;
        Ok(Self(before))
    }
}

impl Drop for Limit {
    fn drop(&mut self) {
        if let Err(error) = fs::write(Self::FILE, self.0.trim()) {
            eprintln!("{} stays small, it was {}: {error}", Self::FILE, self.0.trim());
        }
    }
}

/// A table of connections that is nearly full, and the same with room.
pub(super) fn conntrack_nearly_full() -> Result<()> {
    let pair = Pair::new()?;
    let netns = &pair.server.netns;
    netns.run("iptables-nft -A INPUT -m conntrack --ctstate INVALID -j DROP")?;
    let to = pair.server.port(Family::V4, 4242);
    let flows: Vec<_> =
        (40_000..40_019).map(|port| packet::udp(pair.client.port(Family::V4, port), to, b"x")).collect();
    pair.client.inject(&flows)?;
    let limit = Limit::set(20)?;
    let nearly = Report::of(netns, &[])?;
    nearly.expect_findings(&["conntrack-full"])?;
    nearly.expect_evidence("conntrack-full", "net.netfilter.nf_conntrack_count", "19")?;
    nearly.expect_evidence("conntrack-full", "net.netfilter.nf_conntrack_max", "20")?;
    drop(limit);
    Report::of(netns, &[])?.expect_findings(&[])
}
