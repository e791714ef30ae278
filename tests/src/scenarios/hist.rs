//! Histograms of a live run: they add up to what was sent, in every form.

use super::{alone, here_only};
use crate::bed::droptrace::{Droptrace, Ended, command};
use crate::bed::flood::{Load, flood};
use crate::bed::record::Record;
use crate::bed::topology::{Family, Pair};
use anyhow::{Context, Result, ensure};
use libtest_mimic::Trial;

pub(super) fn trials() -> Vec<Trial> {
    // Alone: they send more than others' droptraces would have room for.
    here_only([
        alone("hist::json_adds_up_to_what_was_sent", json_adds_up),
        alone("hist::csv_names_the_rule", csv_names_the_rule),
        alone("hist::table_is_a_line_a_group", table_is_a_line_a_group),
        alone("hist::windows_are_compared", windows_are_compared),
        alone("hist::a_file_that_is_not_there", a_file_that_is_not_there),
    ])
}

const PORT: u16 = 9;

/// Starts `droptrace hist WORDS` for the UDP drops of some servers, and waits until it watches.
fn start(pairs: &[&Pair], words: &str) -> Result<Droptrace> {
    let inodes: Vec<String> = pairs.iter().map(|pair| pair.server.netns.inode().to_string()).collect();
    let mut all = vec!["hist", "--protocol", "udp"];
    for inode in &inodes {
        all.extend(["--netns", inode]);
    }
    all.extend(words.split_whitespace());
    let hist = Droptrace::spawn(command(&all)?)?;
    hist.wait("attached", |output| output.stderr.contains(crate::bed::droptrace::ATTACHED))?;
    Ok(hist)
}

fn stop(hist: Droptrace) -> Result<Ended> {
    hist.signal(libc::SIGINT);
    let ended = hist.end()?;
    ended.expect_code(0)?;
    Ok(ended)
}

/// Sends datagrams that nobody reads.
fn send(pair: &Pair, load: Load, total: u64) -> Result<u64> {
    let sent = flood(&pair.client.netns, pair.server.port(Family::V4, PORT), load, total)?;
    ensure!(sent.refused == 0, "the client's kernel refused {}", sent.refused);
    Ok(sent.accepted)
}

fn json_adds_up() -> Result<()> {
    let (one, other) = (Pair::new()?, Pair::new()?);
    let hist = start(&[&one, &other], "-o json --by netns,reason,to-port --bucket 100ms")?;
    let sent = [send(&one, Load::Datagrams, 30_000)?, send(&other, Load::RandomSources, 20_000)?];
    let output = stop(hist)?.output;
    ensure!(output.strays.is_empty(), "no JSON on stdout: {:?}", output.strays);
    let (head, groups) = output.records.split_first().context("nothing on stdout")?;
    ensure!(head.text("/type") == Some("histogram"), "the first line is {}", head.0);
    let missed = head.number("/lost/recursion").unwrap_or(0);
    let mut total = 0;
    for (pair, sent) in [&one, &other].into_iter().zip(sent) {
        let inode = pair.server.netns.inode().to_string();
        let of_netns = groups.iter().filter(|group| group.text("/key/netns") == Some(&inode));
        let counted: u64 = of_netns.map(Record::count).sum();
        ensure!(counted <= sent && counted + missed >= sent, "{counted} of {sent} counted, {missed} missed");
        ensure!(counted == sent, "{missed} missed of {sent}");
        total += counted;
    }
    ensure!(head.count() == total, "{} in all, but {total} in groups", head.count());
    for line in &output.records {
        let buckets = line.get("/buckets").as_array().context("no buckets")?;
        let sum: u64 = buckets.iter().filter_map(|bucket| bucket["count"].as_u64()).sum();
        ensure!(sum == line.count(), "buckets have {sum} of {}", line.0);
    }
    ensure!(output.stderr.contains(" drops, "), "no summary: {}", output.stderr);
    Ok(())
}

/// Fields of a line of CSV (RFC 4180).
fn fields(line: &str) -> Vec<String> {
    let (mut fields, mut quoted) = (vec![String::new()], false);
    for letter in line.chars() {
        match letter {
            '"' => quoted = !quoted,
            ',' if !quoted => fields.push(String::new()),
            _ => fields.last_mut().into_iter().for_each(|field| field.push(letter)),
        }
    }
    fields
}

fn csv_names_the_rule() -> Result<()> {
    let pair = Pair::new()?;
    pair.server.netns.run(&format!("iptables-legacy -A INPUT -p udp --dport {PORT} -j DROP"))?;
    let hist = start(&[&pair], "-o csv --by rule,protocol")?;
    let sent = send(&pair, Load::Datagrams, 20_000)?;
    let ended = stop(hist)?;
    let mut lines = ended.output.strays.iter().map(|line| fields(line));
    let head = lines.next().context("nothing on stdout")?;
    ensure!(head == ["type", "time", "rule", "protocol", "count", "segments"], "{head:?}");
    let mut counted = 0;
    for line in lines {
        let [kind, _, rule, protocol, count, _] = line.as_slice() else {
            anyhow::bail!("{} fields: {line:?}", line.len())
        };
        ensure!(kind == "group" && protocol == "udp", "{line:?}");
        ensure!(rule == "filter:INPUT:rule:1 (ipv4, legacy)", "{line:?}");
        counted += count.parse::<u64>()?;
    }
    ensure!(counted == sent, "{counted} of {sent} counted; {}", ended.output.stderr);
    Ok(())
}

fn table_is_a_line_a_group() -> Result<()> {
    let pair = Pair::new()?;
    let hist = start(&[&pair], "-o table --by reason,netns")?;
    let sent = send(&pair, Load::Datagrams, 5000)?;
    let ended = stop(hist)?;
    let inode = pair.server.netns.inode().to_string();
    let lines: Vec<Vec<&str>> =
        ended.output.strays.iter().map(|line| line.split_whitespace().collect()).collect();
    let [head, group, all] = lines.as_slice() else { anyhow::bail!("{:?}", ended.output.strays) };
    ensure!(head.starts_with(&["DROPS", "SEGMENTS"]) && head.ends_with(&["REASON", "NETNS"]), "{head:?}");
    ensure!(group.ends_with(&["NO_SOCKET", &inode]) && all.ends_with(&["(all)"]), "{lines:?}");
    for line in [group, all] {
        ensure!(line.first() == Some(&sent.to_string().as_str()), "{sent} sent; {line:?}");
    }
    Ok(())
}

fn windows_are_compared() -> Result<()> {
    let pair = Pair::new()?;
    let hist = start(&[&pair], "-o json --by reason --compare 0s..1h 1h..")?;
    let sent = send(&pair, Load::Datagrams, 5000)?;
    let output = stop(hist)?.output;
    let [head, group] = output.records.as_slice() else { anyhow::bail!("{:?}", output.records) };
    ensure!(head.text("/type") == Some("comparison"), "{}", head.0);
    for line in [head, group] {
        ensure!(line.number("/before/count") == Some(sent), "{sent} sent; {}", line.0);
        // The second window was not reached: nothing is said to be gone.
        ensure!(line.number("/after/count") == Some(0) && line.get("/change").is_null(), "{}", line.0);
    }
    Ok(())
}

fn a_file_that_is_not_there() -> Result<()> {
    let ended = Droptrace::spawn(command(&["hist", "no-such-file.parquet"])?)?.end()?;
    ended.expect_code(1)?;
    ensure!(ended.output.stderr.contains("can't read no-such-file.parquet"), "{}", ended.output.stderr);
    Ok(())
}
