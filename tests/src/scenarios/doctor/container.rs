//! `doctor` in a container: with the node's root at /host it tells of the node.

use super::Report;
use super::node::Node;
use crate::bed::droptrace::binary;
use anyhow::{Context as _, Result, ensure};
use std::io::Write as _;
use std::process::Stdio;

/// Run by the node's first process, in its network namespace: droptrace in a root of its own, with processes, mounts and a network
/// namespace of its own; the node's root is at /host if that is asked for.
const CONTAINER: &str = r#"
set -e
root=$1 droptrace=$2 host=$3
mount -t tmpfs tmpfs "$root"
mkdir "$root/host" "$root/proc" "$root/sys" "$root/dev" "$root/run" "$root/tmp"
for name in bin lib lib64 sbin usr; do
    if [ -L "/$name" ]; then cp -P "/$name" "$root/$name"
    elif [ -d "/$name" ]; then mkdir "$root/$name"; mount --bind "/$name" "$root/$name"
    fi
done
touch "$root/droptrace"
mount --bind "$droptrace" "$root/droptrace"
mount --rbind /sys "$root/sys"
mount --rbind /dev "$root/dev"
if [ "$host" = host ]; then mount --rbind / "$root/host"; fi
unshare --net --pid --fork --mount sh -c '
    mount -t proc proc "$0/proc"
    exec chroot "$0" /droptrace doctor -o json --offline' "$root"
"#;

/// What doctor says in a container on that node.
fn report(node: &Node, host: &str) -> Result<Report> {
    let root = tempfile::tempdir()?;
    let (root, droptrace) = (root.path().display(), binary()?);
    let line = format!(
        "unshare --mount --pid --fork --kill-child --mount-proc sh -s {root} {} {host}",
        droptrace.display()
    );
    let mut command = node.netns.command(&line)?;
    let mut shell = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?;
    shell.stdin.take().context("no standard input")?.write_all(CONTAINER.as_bytes())?;
    Report::read(&shell.wait_with_output()?)
}

pub(super) fn in_a_container() -> Result<()> {
    let node = Node::new()?;
    node.set(&[("net.ipv4.ip_forward", "0")])?;
    let told = report(&node, "host")?;
    told.expect_findings(&["ip-forward-off", "hairpin-off"])?;
    told.expect_evidence("ip-forward-off", "net.ipv4.ip_forward", "0")?;
    told.expect_evidence("ip-forward-off", "interface", "cni0")?;
    ensure!(told.finding("ip-forward-off")?["netns"] == node.netns.inode(), "{}", told.text);
    let is_elsewhere = |line: &serde_json::Value| line["what"] == "the node's network namespace";
    ensure!(!told.all("unread").any(is_elsewhere), "{}", told.text);
    // Without the node's root it is the container's own, with which nothing is wrong.
    report(&node, "none")?.expect_findings(&[])
}
