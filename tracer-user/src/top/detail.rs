//! All that is known of one drop, in lines.

use super::neighbours::Neighbours;
use crate::event::model::Drop;
use crate::output::{escape, line, words};

/// A line, and what it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Text {
    pub(super) text: String,
    pub(super) look: Look,
}

/// What a line is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Look {
    Plain,
    Heading,
    /// What is to be done, and the rule that it was.
    Strong,
}

/// The lines. `neighbours`: the rules around the one that dropped it, once they are known, or why they are not.
pub(super) fn lines(drop: &Drop, time: &str, neighbours: Option<&Result<Neighbours, String>>) -> Vec<Text> {
    let mut lines = Vec::new();
    let mut add = |look: Look, text: String| lines.push(Text { text, look });
    let mut part = |name: &str, value: &str| {
        if !value.is_empty() {
            add(Look::Plain, format!("{name:<11} {value}"));
        }
    };
    let why = &drop.drop;
    part("time", &format!("{time}  {}", drop.time));
    part("packet", &format!("{}  {}", words::ends(drop), words::protocol(drop)));
    part("dropped by", &words::place(drop));
    let reason = [&why.reason, &why.location].map(|it| it.as_deref().map(escape).unwrap_or_default());
    part("kernel", &format!("{} at {}  class {}", reason[0], reason[1], words::class(drop)));
    if let Some(netfilter) = &why.netfilter {
        let sure = serde_json::to_value(netfilter.confidence).ok();
        let sure = sure.as_ref().and_then(|it| it.as_str()).unwrap_or_default();
        let method = netfilter.method.and_then(|method| serde_json::to_value(method).ok());
        let method = method.as_ref().and_then(|it| it.as_str()).unwrap_or_default();
        part("known by", &format!("{method}, {sure}"));
        part("owner", &netfilter.owner.as_deref().map(escape).unwrap_or_default());
        part("rule", &netfilter.text.as_deref().map(escape).unwrap_or_default());
    }
    part("interfaces", &words::interfaces(drop));
    part("more", &words::wide(drop).join("  "));
    if drop.count != 1 {
        part("count", &words::thousands(drop.count));
    }
    if let Some(cause) = &why.cause {
        add(Look::Plain, String::new());
        add(Look::Heading, "Cause".to_owned());
        for text in line::cause(cause, "", true, &line::Palette::new(false)).lines() {
            let text = text.trim_start().to_owned();
            let look = if text.starts_with("fix:") { Look::Strong } else { Look::Plain };
            add(look, text);
        }
    }
    match neighbours {
        None => {}
        Some(Err(why)) => {
            add(Look::Plain, String::new());
            add(Look::Heading, "Rules around it".to_owned());
            add(Look::Plain, format!("not known: {}", escape(why)));
        }
        Some(Ok(neighbours)) => {
            add(Look::Plain, String::new());
            add(Look::Heading, format!("Rules around it, as they are now, in {}", escape(&neighbours.place)));
            for rule in &neighbours.rules {
                let (mark, look) = if rule.is_it { (">", Look::Strong) } else { (" ", Look::Plain) };
                add(look, format!("{mark} {:>5}  {}", rule.number, escape(&rule.text)));
            }
        }
    }
    if !drop.stack.is_empty() {
        add(Look::Plain, String::new());
        add(Look::Heading, "Kernel stack".to_owned());
        for frame in &drop.stack {
            add(Look::Plain, escape(frame).into_owned());
        }
    }
    lines
}
