//! What was printed for each outage: kept in tests/fixtures/outages, which the README's table is made of.

use crate::bed::kernel;
use anyhow::{Context as _, Result, ensure};
use std::fs;
use std::path::{Path, PathBuf};

/// The first kernel that has all the reasons in these texts.
const KERNEL: (u32, u32) = (6, 14);
/// Set, it makes the tests write what is printed now.
const WRITE: &str = "DROPTRACE_WRITE_OUTAGES";

pub(super) fn file(id: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/outages").join(format!("{id}.txt"))
}

/// A row of the README's table: where, why and what to do, out of what was printed.
#[cfg(test)]
pub(super) fn row(what: &str, text: &str) -> String {
    let line = |name: &str| {
        let lines = text.lines().map(str::trim).filter_map(|line| line.strip_prefix(name));
        lines.map(|line| line.trim_start_matches(" (inferred)").trim_start_matches(": ")).next()
    };
    let cells = match (text.split_once("  DROP  "), line("why"), line("fix")) {
        (Some((_, place)), Some(why), Some(fix)) => {
            let place = place.lines().next().unwrap_or_default().replace("  ", ", ");
            let also = line("also").map(|also| format!(" Also: {also}")).unwrap_or_default();
            [format!("`{place}`"), format!("{why}{also}"), fix.to_owned()]
        }
        _ => {
            let said = text.trim().trim_start_matches("TIME  -- ").trim_end_matches(" --");
            let (said, next) = said.split_once("; next: ").unwrap_or((said, ""));
            ["nothing is dropped here".to_owned(), said.to_owned(), next.to_owned()]
        }
    };
    let cells = cells.map(|cell| cell.trim().replace('|', "\\|"));
    format!("| {what} | {} |\n", cells.join(" | "))
}

/// Compares what is printed with what was.
pub(super) fn compare(id: &str, text: &str) -> Result<()> {
    if kernel::in_vm() {
        eprintln!("PRINTED {id}:\n{text}");
        return Ok(());
    }
    if kernel::version() < KERNEL {
        return Ok(());
    }
    let file = file(id);
    if std::env::var_os(WRITE).is_some() {
        return fs::write(&file, format!("{text}\n")).with_context(|| format!("write {}", file.display()));
    }
    let kept = fs::read_to_string(&file).unwrap_or_default();
    ensure!(
        kept.trim_end() == text,
        "{} has other words than are printed now ({WRITE}=1 writes it, and the README's table follows):\n{text}",
        file.display()
    );
    Ok(())
}

/// The first port that a client may have by chance (net.ipv4.ip_local_port_range).
const BY_CHANCE: u16 = 32_768;
/// Words whose number, before them, is another one each time.
const COUNTED: [&str; 6] = ["SYN", "UDP", "TCP", "lost", "overflows", "retransmits"];

/// The text without times, places in the kernel's code, and numbers that are another one each time.
pub(super) fn stable(text: &str) -> String {
    let line = |line: &str| {
        let indent = line.len() - line.trim_start().len();
        let words: Vec<&str> = line.trim_start().split(' ').collect();
        let next = words.iter().skip(1).copied().chain([""]);
        let stable: Vec<String> =
            words.iter().zip(next).map(|(word, next)| stable_word(word, next)).collect();
        format!("{}{}", " ".repeat(indent.min(6)), stable.join(" "))
    };
    text.lines().map(line).collect::<Vec<_>>().join("\n")
}

fn stable_word(word: &str, next: &str) -> String {
    let is_number = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    let parts: Vec<&str> = word.split([':', '.']).collect();
    if word.matches(':').count() == 2 && parts.len() == 4 && parts.into_iter().all(is_number) {
        return "TIME".to_owned();
    }
    if is_number(word.trim_start_matches('(')) && COUNTED.contains(&next) {
        return word.replace(|c: char| c.is_ascii_digit(), "").to_owned() + "N";
    }
    if let Some((before, port)) = word.rsplit_once(':')
        && port.parse().is_ok_and(|port: u16| port >= BY_CHANCE)
    {
        return format!("{before}:PORT");
    }
    word.split_once("+0x").map_or(word, |(function, _)| function).to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_varies_is_left_out() {
        let text = "10:54:12.173  10.77.71.254:40123 -> b:6379  TCP  DROP  NO_SOCKET tcp_v4_rcv+0x4a1  s0\n              \
                    why: 10.77.71.254 (48 lost so far, 2 of 2), port 6379";
        let stable_text = "TIME  10.77.71.254:PORT -> b:6379  TCP  DROP  NO_SOCKET tcp_v4_rcv  s0\n      why: 10.77.71.254 (N \
                           lost so far, 2 of 2), port 6379";
        assert_eq!(stable(text), stable_text);
    }
}
