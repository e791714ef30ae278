//! The line for people, `compact` and `wide`.

use super::fold::{Kind, Line};
use super::group::Group;
use super::words;
use crate::event::model::{Cause, Class, Evidence, Lost};
use anstyle::{AnsiColor, Style};

/// How parts of a line look.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Palette {
    pub(crate) faint: Style,
    policy: Style,
    pub(crate) error: Style,
    resource: Style,
    pub(crate) place: Style,
    pub(crate) fix: Style,
}

impl Palette {
    /// Nothing but text if not `color`.
    pub(crate) fn new(color: bool) -> Self {
        if !color {
            return Self::default();
        }
        let bold = |color: AnsiColor| color.on_default().bold();
        Self {
            faint: Style::new().dimmed(),
            policy: bold(AnsiColor::Yellow),
            error: bold(AnsiColor::Red),
            resource: bold(AnsiColor::Magenta),
            place: AnsiColor::Cyan.on_default(),
            fix: AnsiColor::Green.on_default(),
        }
    }

    pub(crate) fn class(&self, class: Class) -> Style {
        match class {
            Class::Policy => self.policy,
            Class::Error => self.error,
            Class::Resource => self.resource,
            Class::Routine => self.faint,
        }
    }
}

pub(crate) fn styled(style: Style, text: &str) -> String {
    format!("{style}{text}{style:#}")
}

/// A line about drops, without its end. `time` is printed first unless it is empty.
pub(super) fn drop(line: &Line, time: &str, wide: bool, palette: &Palette) -> String {
    let drop = &line.drop;
    let mut parts: Vec<String> = Vec::new();
    if !time.is_empty() {
        parts.push(styled(palette.faint, time));
    }
    if line.kind == Kind::Suppressed {
        let count = words::thousands(drop.count);
        parts.push(format!("… {count} similar drop{} suppressed", words::plural(drop.count)));
        parts.push(styled(palette.place, &Group::of(drop).to_string()));
        return parts.join("  ");
    }
    let (ends, protocol) = (words::ends(drop), words::protocol(drop));
    if ends.is_empty() && protocol.is_empty() {
        parts.push("no detail".to_owned());
    }
    parts.extend([ends, protocol].into_iter().filter(|part| !part.is_empty()));
    parts.push(styled(palette.class(drop.drop.class), "DROP"));
    parts.push(styled(palette.place, &words::place(drop)));
    if drop.drop.class == Class::Routine {
        parts.push(format!("routine:{}", super::escape(words::routine_id(drop))));
    }
    parts.extend(Some(words::interfaces(drop)).filter(|part| !part.is_empty()));
    if wide {
        parts.extend(words::wide(drop));
    }
    if drop.count != 1 {
        parts.push(format!("x{}", drop.count));
    }
    parts.join("  ")
}

/// Why, and what to do: lines to go under a line with a time of `time`. `verbose`: also whom to ask, what undoes the fix,
/// what the node said, and what else it may be.
pub(crate) fn cause(cause: &Cause, time: &str, verbose: bool, palette: &Palette) -> String {
    let indent = indent(time);
    let sure = if cause.confidence == "exact" || cause.confidence.is_empty() {
        String::new()
    } else {
        format!(" ({})", super::escape(&cause.confidence))
    };
    let mut text = format!("{indent}why{sure}: {}\n", super::escape(&cause.why));
    if !cause.fix.is_empty() {
        text.push_str(&format!("{indent}{} {}\n", styled(palette.fix, "fix:"), super::escape(&cause.fix)));
    }
    if verbose {
        let mut add = |name: &str, value: &str| {
            text.push_str(&format!("{indent}{} {}\n", styled(palette.faint, name), super::escape(value)));
        };
        cause.resets.iter().for_each(|resets| add("undone by:", resets));
        cause.owner.iter().for_each(|owner| add("ask:", owner));
        for evidence in &cause.evidence {
            let change = evidence.change.map(|more| format!(" (+{more})")).unwrap_or_default();
            let Evidence { name, value, source, .. } = evidence;
            add("node:", &format!("{name} = {value}{change} ({source})"));
        }
        if !cause.others.is_empty() {
            add("or:", &cause.others.join(", "));
        }
        add("cause:", &cause.id);
    }
    text
}

/// What the other backend of iptables has, where both have rules, whatever else the cause is: a line to go under a line with a
/// time of `time`.
pub(super) fn both_backends(other: &str, time: &str, palette: &Palette) -> String {
    format!(
        "{}{} rules of iptables are in both of its backends, and must be in one: {} ({} lists both)\n",
        indent(time),
        styled(palette.faint, "also:"),
        super::escape(other),
        "droptrace doctor"
    )
}

/// The stack: lines to go under a line with a time of `time`.
pub(super) fn stack(frames: &[String], time: &str, palette: &Palette) -> String {
    let indent = indent(time);
    let frame = |frame: &String| format!("{indent}{}\n", styled(palette.faint, &super::escape(frame)));
    frames.iter().map(frame).collect()
}

fn indent(time: &str) -> String {
    " ".repeat(if time.is_empty() { 4 } else { time.chars().count() + 2 })
}

/// A line about a loss, without its end.
pub(super) fn lost(lost: &Lost, time: &str) -> String {
    use crate::event::model::LostPlace::{Flow, Overflow, Recording, Recursion, Ring};
    let count = words::thousands(lost.count);
    let s = words::plural(lost.count);
    let what = match lost.place {
        Ring => format!("{count} event{s} lost (ring): detail lost, counts kept"),
        Flow => format!("{count} drop{s} without a flow (flow): counted by reason, location and netns"),
        Overflow => format!("{count} drop{s} without a reason (overflow): only counted"),
        Recursion => format!("{count} drop{s} missed (recursion): not counted anywhere else"),
        Recording => format!("{count} drop{s} not recorded (recording): the disk was too slow"),
    };
    if time.is_empty() { format!("-- {what} --") } else { format!("{time}  -- {what} --") }
}
