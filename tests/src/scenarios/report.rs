//! The page of recordings, opened in a browser: it adds up to what was sent, what a rule or a pod is called stays text, and
//! sorting and filtering work.

use super::{alone, beside, here_only, skip};
use crate::bed::command;
use crate::bed::droptrace::{ATTACHED, Droptrace, Ended, command as droptrace};
use crate::bed::flood::{Load, flood};
use crate::bed::packet;
use crate::bed::topology::{Family, Pair};
use anyhow::{Context, Result, ensure};
use libtest_mimic::Trial;
use serde_json::json;
use std::io::Read;
use std::net::TcpListener;
use std::path::Path;
use std::process::Command;

pub(super) fn trials() -> Vec<Trial> {
    here_only([
        // Alone: it sends more than others' droptraces would have room for.
        alone("report::adds_up_to_what_was_sent", adds_up_to_what_was_sent),
        beside("report::hostile_names_stay_text", hostile_names_stay_text),
        beside("report::what_cannot_be_written_is_said", what_cannot_be_written_is_said),
    ])
}

const PORT: u16 = 9;
/// What a script that ran would leave.
const OWNED: &str = "owned";

/// A page as a browser has it once its scripts have run.
struct Opened(String);

impl Opened {
    /// Opens a page of a folder; `fragment` is what follows its `#`.
    fn new(folder: &Path, page: &str, fragment: &str) -> Result<Self> {
        let mut browser = Command::new("chromium");
        browser.args(["--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"]);
        browser.args(["--no-first-run", "--disable-extensions", "--disable-background-networking"]);
        browser.arg(format!("--user-data-dir={}", folder.join("browser").display()));
        browser.args(["--timeout=20000", "--dump-dom"]);
        browser.arg(format!("file://{}#{fragment}", folder.join(page).display()));
        browser.env("HOME", folder);
        Ok(Self(command::output(browser, "")?))
    }

    /// What stands between two texts, the first time.
    fn between(&self, from: &str, to: &str) -> Result<&str> {
        let after = self.0.split_once(from).with_context(|| format!("no {from}"))?.1;
        Ok(after.split_once(to).with_context(|| format!("no {to} after {from}"))?.0)
    }

    /// The records: each row's text, and whether it is shown.
    fn records(&self) -> Result<Vec<(String, bool)>> {
        let body = self.between("id=\"raw\"", "</tbody>")?.split_once("<tbody>").context("no body")?.1;
        let rows = body.split("<tr").skip(1);
        Ok(rows.map(|row| (text(row), !row.split('>').next().unwrap_or("").contains("hidden"))).collect())
    }
}

/// Without tags.
fn text(html: &str) -> String {
    html.split('<')
        .map(|part| part.split_once('>').map_or("", |(_, text)| text))
        .collect::<Vec<_>>()
        .join(" ")
}

/// A browser, or a reason to skip.
fn need_browser() -> Result<()> {
    let version = Command::new("chromium").arg("--version").output();
    match version {
        Ok(done) if done.status.success() => Ok(()),
        // Ubuntu's package is a stub that asks for a snap.
        _ => Err(skip("there is no chromium that runs: nobody has looked at the page")),
    }
}

fn run(arguments: &[&str]) -> Result<Ended> {
    Droptrace::spawn(droptrace(arguments)?)?.end()
}

fn adds_up_to_what_was_sent() -> Result<()> {
    let pair = Pair::new()?;
    let comment = format!("</script><script>document.title='{OWNED}'</script>");
    let rule =
        ["-A", "INPUT", "-p", "udp", "--dport", "4242", "-m", "comment", "--comment", &comment, "-j", "DROP"];
    pair.server.netns.enter(|| {
        let mut iptables = Command::new("iptables-legacy");
        iptables.args(rule);
        command::output(iptables, "").map(|_| ())
    })?;
    let folder = tempfile::tempdir()?;
    let at = |name: &str| folder.path().join(name).display().to_string();
    let inode = pair.server.netns.inode().to_string();
    let recording = at("drops");
    let words = ["record", "--offline", "-w", &recording, "--protocol", "udp", "--netns", &inode];
    let recorder = Droptrace::spawn(droptrace(&words)?)?;
    recorder.wait("attached", |output| output.stderr.contains(ATTACHED))?;
    let (from, to) = (pair.client.port(Family::V4, 40_000), pair.server.port(Family::V4, 4242));
    pair.client.inject(&vec![packet::udp(from, to, b"x"); 3])?;
    // So that they are among the first records, which are shown.
    std::thread::sleep(std::time::Duration::from_millis(1500));
    let sent = flood(&pair.client.netns, pair.server.port(Family::V4, PORT), Load::RandomSources, 5000)?;
    let sent = sent.accepted + 3;
    recorder.signal(libc::SIGINT);
    recorder.end()?.expect_code(0)?;

    let made = run(&["report", &recording, "-w", &at("page.html"), "--utc", "--rows", "100"])?;
    made.expect_code(0)?;
    let page = std::fs::read_to_string(folder.path().join("page.html"))?;
    ensure!(
        page.contains(&format!("id=\"total\" data-v=\"{sent}\"")),
        "not {sent} in all; {}",
        made.output.stderr
    );
    ensure!(page.contains("filter:INPUT:rule:1 (ipv4, legacy)"), "the rule is not named");
    ensure!(page.contains("--dport 4242"), "the rule's text is not there");
    // stdout has the same.
    let mut printed = droptrace(&["report", &recording, "-w", "-", "--utc", "--rows", "100"])?;
    printed.env("RUST_BACKTRACE", "0");
    ensure!(command::output(printed, "")? == page, "stdout has another page");

    need_browser()?;
    let opened = Opened::new(folder.path(), "page.html", "q=4242%20udp&sort=drops&down=1")?;
    ensure!(!opened.between("<title>", "</title>")?.contains(OWNED), "the rule's comment ran");
    let records = opened.records()?;
    let shown: Vec<_> = records.iter().filter(|(_, shown)| *shown).collect();
    ensure!(records.len() == 100, "{} records", records.len());
    ensure!(!shown.is_empty() && shown.iter().all(|(row, _)| row.contains("4242")), "filtered: {shown:?}");
    let hidden = records.iter().filter(|(_, shown)| !shown);
    ensure!(hidden.clone().all(|(row, _)| !row.contains("4242")), "some rows are hidden that should not be");
    let all = Opened::new(folder.path(), "page.html", "sort=time&down=1")?.records()?;
    ensure!(all.iter().all(|(_, shown)| *shown), "rows are hidden without a filter");
    ensure!(
        all.is_sorted_by(|(a, _), (b, _)| a.trim_start()[..23] >= b.trim_start()[..23]),
        "not the latest first"
    );
    Ok(())
}

/// A recording that somebody made up, with names that would be code.
fn hostile_names_stay_text() -> Result<()> {
    let folder = tempfile::tempdir()?;
    // Whatever the page would load would come here.
    let listener = TcpListener::bind("127.0.0.1:0")?;
    listener.set_nonblocking(true)?;
    let address = listener.local_addr()?;
    let code = format!("document.title='{OWNED}';document.body.dataset.x='{OWNED}'");
    let names = [
        format!("</script><script>{code}</script>"),
        format!("\"><img src=http://{address}/x onerror=\"{code}\">"),
        format!("' onmouseover='{code}' x='"),
        format!("</title></style><svg onload=\"{code}\"><link rel=stylesheet href=http://{address}/x>"),
    ];
    let lines = names.iter().enumerate().map(|(second, name)| {
        let end = |address: &str| {
            json!({"address": address, "port": 1, "k8s": {"namespace": name, "pod": name, "workload": name, "service": name}})
        };
        let netfilter = json!({"backend": "nft", "family": "inet", "table": name, "chain": name, "handle": 7, "text": name,
            "verdict": name, "owner": name, "method": "stack", "confidence": "exact"});
        let cause = json!({"id": name, "severity": name, "why": name, "fix": name, "confidence": name});
        let time = format!("2026-11-20T22:14:{second:02}Z");
        let record = json!({"type": "drop", "time": time, "time_last": time, "node": name, "count": 10, "segments": 10,
            "detail": true, "source": end("10.0.0.1"), "destination": end("10.0.0.2"), "original": null,
            "network": {"transport": "tcp", "interface": name}, "packet": {"tcp_flags": name},
            "conntrack": null, "inner": null,
            "drop": {"reason": name, "location": name, "class": "policy", "netfilter": netfilter, "cause": cause}});
        format!("{record}\n")
    });
    std::fs::write(folder.path().join("lines.json"), lines.collect::<String>())?;
    let (read, written) = (folder.path().join("lines.json"), folder.path().join("page.html"));
    let [read, written] = [&read, &written].map(|path| path.display().to_string());
    let made = run(&["report", &read, "-w", &written, "--utc", "--title", &names[0]])?;
    made.expect_code(0)?;
    ensure!(!made.output.stderr.contains("means nothing"), "{}", made.output.stderr);
    let page = std::fs::read_to_string(&written)?;
    ensure!(page.contains("40 drops in 3.0 s on 4 nodes"), "it does not add up");

    need_browser()?;
    let opened = Opened::new(folder.path(), "page.html", "sort=node")?;
    ensure!(opened.records()?.len() == 4, "{:?}", opened.records());
    ensure!(!opened.0.contains("data-x="), "a name ran");
    ensure!(opened.0.matches("<script").count() == 1 && !opened.0.contains("<img"), "a name is an element");
    // Its own script did run.
    ensure!(opened.0.contains("aria-sort=\"ascending\""), "the page's own script did not run");
    let mut request = Vec::new();
    if let Ok((mut stream, _)) = listener.accept() {
        let _ = stream.set_read_timeout(Some(std::time::Duration::from_secs(1)));
        let _ = stream.read_to_end(&mut request);
        anyhow::bail!("the page asked the network: {}", String::from_utf8_lossy(&request));
    }
    // Nor does it even if escaping fails: a page that was tampered with runs nothing, and loads nothing.
    let tampered = page.replacen(
        "<main>",
        &format!("<main><script>{code}</script><img src=\"http://{address}/x\" onerror=\"{code}\">"),
        1,
    );
    std::fs::write(folder.path().join("tampered.html"), tampered)?;
    let opened = Opened::new(folder.path(), "tampered.html", "")?;
    ensure!(opened.0.contains("<img") && !opened.0.contains("data-x="), "the policy lets other scripts run");
    ensure!(listener.accept().is_err(), "the policy lets a page load what is elsewhere");
    Ok(())
}

fn what_cannot_be_written_is_said() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let lines = folder.path().join("lines.json");
    std::fs::write(&lines, "")?;
    let (lines, inside) =
        (lines.display().to_string(), folder.path().join("no/page.html").display().to_string());
    let folder_name = folder.path().display().to_string();
    for (write, said) in [
        (&inside, "No such file"),
        (&folder_name, "is a folder"),
        (&lines, "is one of the recordings"),
        (&"drops.parquet".to_owned(), "has a recording's name"),
        (&"/dev/full".to_owned(), "No space left"),
    ] {
        let ended = run(&["report", &lines, "-w", write])?;
        ended.expect_code(1)?;
        ensure!(ended.output.stderr.contains(said), "{write}: {}", ended.output.stderr);
    }
    run(&["report", "no-such-file", "-w", "-"])?.expect_code(1)?;
    run(&["report", &lines])?.expect_code(2)?;
    ensure!(std::fs::read_dir(folder.path())?.count() == 1, "something is left in the folder");
    Ok(())
}
