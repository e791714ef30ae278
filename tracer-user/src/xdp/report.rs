//! What `droptrace doctor` says of XDP programs.

use super::links::{Attached, Mode};
use crate::output::escape;
use crate::tc::attribute::Program;
use std::fmt::Write as _;

/// Names of counters that are told of one device.
const TOLD: usize = 3;

/// An XDP program with what is known of it.
#[derive(Clone, Debug)]
pub struct Known {
    /// Where it is.
    pub attached: Attached,
    /// What it is.
    pub program: Program,
    /// What counts its drops: names and numbers, of which several add up. Empty where nothing does.
    pub counters: Vec<(String, u64)>,
    /// By how much they have grown in the last moments; `None` if they were looked at once only.
    pub more: Option<u64>,
}

impl Known {
    /// All of its drops that were counted.
    #[must_use]
    pub fn dropped(&self) -> u64 {
        self.counters.iter().fold(0, |sum, (_, count)| sum.saturating_add(*count))
    }
}

/// The programs as they are now, with what was counted since they were looked at before.
#[must_use]
pub fn since(before: &[Known], now: Vec<Known>) -> Vec<Known> {
    let counted = |mut known: Known| {
        let earlier = before.iter().find(|earlier| earlier.attached == known.attached);
        known.more = earlier.and_then(|earlier| known.dropped().checked_sub(earlier.dropped()));
        known
    };
    now.into_iter().map(counted).collect()
}

/// The report for people. `Err` is why the kernel didn't tell.
#[must_use]
pub fn report(programs: Result<&[Known], &str>) -> String {
    let mut text = String::from("XDP programs in this network namespace\n");
    match programs {
        Ok([]) => text.push_str("  none\n"),
        Ok(programs) => programs.iter().for_each(|program| line(&mut text, program)),
        Err(why) => {
            let _ = writeln!(text, "  not known: {why}");
        }
    }
    text
}

fn line(text: &mut String, known: &Known) {
    let Known { attached: Attached { interface, mode, program: id }, program, counters, more } = known;
    let name = program.name.as_deref().map_or("without a name".into(), escape);
    let _ = write!(text, "  {}  {}  {name} (id {id}", escape(interface), mode.name());
    if let Some(tag) = &program.tag {
        let _ = write!(text, ", tag {tag}");
    }
    if let Some(pinned) = &program.pinned {
        let _ = write!(text, ", pinned at {}", escape(pinned));
    }
    text.push_str("): ");
    text.push_str(match mode {
        // Its drops go through kfree_skb (do_xdp_generic, net/core/dev.c).
        Mode::Generic => "it runs on packets that are an skb already: drops here are seen",
        // veth hands it packets that were one before, which it frees as such.
        Mode::Driver => "drops here never become an skb and can't be seen, but on virtual links such as veth",
        Mode::Hardware => "drops here never become an skb and can't be seen",
    });
    if !counters.is_empty() {
        let names: Vec<_> = counters.iter().take(TOLD).map(|(name, _)| escape(name)).collect();
        let others = if counters.len() > TOLD { " ..." } else { "" };
        let _ = write!(text, "; counted: {} dropped ({}{others})", known.dropped(), names.join(", "));
        if let Some(more) = more {
            let _ = write!(text, ", {more} of them in the last moments");
        }
    }
    text.push('\n');
}

#[cfg(test)]
mod tests {
    use super::*;

    fn known(mode: Mode, counters: &[(&str, u64)]) -> Known {
        Known {
            attached: Attached { interface: "eth\x1b0".to_owned(), mode, program: 7 },
            program: Program {
                name: Some("boun\ncer".to_owned()),
                tag: Some("00ff".to_owned()),
                pinned: Some("/sys/fs/bpf/x".to_owned()),
            },
            counters: counters.iter().map(|(name, count)| ((*name).to_owned(), *count)).collect(),
            more: None,
        }
    }

    #[test]
    fn what_was_counted_since() {
        let before = [known(Mode::Driver, &[("rx0_xdp_drops", 3)]), known(Mode::Hardware, &[("x", 9)])];
        let now = vec![known(Mode::Driver, &[("rx0_xdp_drops", 5)]), known(Mode::Hardware, &[("x", 1)])];
        let more: Vec<_> = since(&before, now.clone()).iter().map(|known| known.more).collect();
        // A driver that was loaded anew counts from 0.
        assert_eq!(more, [Some(2), None]);
        assert!(
            report(Ok(&since(&before, now)))
                .contains("5 dropped (rx0_xdp_drops), 2 of them in the last moments\n")
        );
    }

    #[test]
    fn a_line_for_each_program() {
        let counters = [("rx0_xdp_drops", 3), ("rx1_xdp_drops", u64::MAX), ("c", 0), ("d", 0)];
        let all = [known(Mode::Driver, &counters), known(Mode::Generic, &[])];
        let text = report(Ok(&all));
        for part in [
            "  driver  ",
            "(id 7, tag 00ff, pinned at /sys/fs/bpf/x): drops here never become an skb and can't be seen",
            "counted: 18446744073709551615 dropped (rx0_xdp_drops, rx1_xdp_drops, c ...)\n",
            "  generic  ",
            "drops here are seen\n",
        ] {
            assert!(text.contains(part), "{part}: {text}");
        }
        assert!(!text.contains('\x1b') && text.lines().count() == 3, "{text}");
    }

    #[test]
    fn none_or_not_known() {
        assert!(report(Ok(&[])).ends_with("\n  none\n"));
        assert!(report(Err("no")).ends_with("\n  not known: no\n"));
        let nameless = Known { program: Program::default(), ..known(Mode::Hardware, &[]) };
        assert!(report(Ok(&[nameless])).contains("hardware  without a name (id 7): drops here"));
    }
}
