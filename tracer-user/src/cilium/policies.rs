//! Which policies select a pod, and why none of them let a packet through. A default deny has no culprit: all are told.

use super::fit::{Miss, What, Who, fits};
use super::maps::Direction;
use super::model;
use crate::identity::object::Labels;
use crate::identity::policy::{Part, Policy, Rule, Way};
use std::sync::Arc;

/// Policies that are told of one pod.
const TOLD: usize = 64;

/// How a policy stands to a packet: the first says most.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Stand {
    /// It denies it.
    Denies,
    /// It allows it, or would.
    Allows,
    /// It may be either: not enough is known.
    Unsure,
    /// It is not about it.
    Other,
}

/// Who policies are asked about: its labels as Cilium has them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Subject {
    /// A pod.
    Pod(Labels),
    /// The node itself (reserved:host): only policies with a nodeSelector are about it.
    Node(Labels),
}

impl Subject {
    fn is_selected(&self, part: &Part) -> bool {
        match self {
            Self::Pod(labels) => !part.is_of_nodes && part.subject.selects(labels),
            Self::Node(labels) => part.is_of_nodes && part.subject.selects(labels),
        }
    }
}

/// The policies that are about someone in that direction, each with why it didn't let the packet through; those that deny it
/// first. Also how many are left out, for there are too many.
pub fn explain<'a>(
    policies: impl Iterator<Item = &'a Arc<Policy>>,
    subject: &Subject,
    who: &Who,
    what: &What,
) -> (Vec<model::Policy>, usize) {
    let mut all: Vec<_> = policies
        .filter_map(|policy| judge(policy, subject, who, what).map(|(stand, why)| (stand, policy, why)))
        .collect();
    all.sort_by(|(a, one, _), (b, other, _)| (a, &one.name, one.kind).cmp(&(b, &other.name, other.kind)));
    let left_out = all.len().saturating_sub(TOLD);
    let told = all.into_iter().take(TOLD).map(|(_, policy, why)| model::Policy {
        namespace: Some(policy.name.namespace.clone()).filter(|namespace| !namespace.is_empty()),
        name: policy.name.name.clone(),
        kind: policy.kind.as_str().to_owned(),
        why_not: Some(why),
    });
    (told.collect(), left_out)
}

/// How a policy stands to a packet and why; `None` if it is not about that one in that direction.
fn judge(policy: &Policy, subject: &Subject, who: &Who, what: &What) -> Option<(Stand, String)> {
    let ways =
        policy.parts.iter().filter(|part| subject.is_selected(part)).map(|part| match what.direction {
            Direction::Ingress => &part.ingress,
            Direction::Egress => &part.egress,
        });
    let (stand, mut why) =
        ways.filter(|way| way.applies).map(|way| of_way(way, who, what)).min_by_key(|(stand, _)| *stand)?;
    if policy.is_cut && stand == Stand::Other {
        why += "; it has more rules, peers or labels than droptrace reads, so that may not be all";
    }
    Some((stand, why))
}

fn of_way(way: &Way, who: &Who, what: &What) -> (Stand, String) {
    let deny = nearest(&way.deny, who, what);
    if let Some(Ok(_)) = deny {
        return (
            Stand::Denies,
            "it is a deny rule that matches: it denies this packet, whatever others allow".to_owned(),
        );
    }
    let allow = nearest(&way.allow, who, what);
    if let Some(Ok(rule)) = allow {
        return (Stand::Allows, would_allow(rule));
    }
    let default =
        if way.denies_by_default { "" } else { "it denies nothing by default (enableDefaultDeny); " };
    if let Some(Err(miss)) = &deny
        && miss.is_unsure
    {
        return (Stand::Unsure, format!("{default}it may deny the packet: {}", miss.why));
    }
    let direction = what.direction;
    let (stand, why) = match allow {
        Some(Err(miss)) => {
            let stand = if miss.is_unsure { Stand::Unsure } else { Stand::Other };
            let of = if way.allow.len() > 1 {
                format!("the nearest of its {} rules: ", way.allow.len())
            } else {
                String::new()
            };
            (stand, format!("{of}{}", miss.why))
        }
        _ if way.deny.is_empty() => {
            (Stand::Other, format!("no {direction} rule at all, so it allows nothing"))
        }
        _ => (Stand::Other, "it has only deny rules, and none is about this packet".to_owned()),
    };
    (stand, format!("{default}{why}"))
}

fn would_allow(rule: &Rule) -> String {
    if rule.authenticates {
        return "it allows this packet only once the peers have authenticated".to_owned();
    }
    "it would allow this packet: Cilium may not have taken it over yet, or it was made since".to_owned()
}

/// The rule that fits, or why the one that comes nearest does not; `None` without rules.
fn nearest<'r>(rules: &'r [Rule], who: &Who, what: &What) -> Option<Result<&'r Rule, Miss>> {
    let mut nearest: Option<Miss> = None;
    for rule in rules {
        let miss = match fits(rule, who, what) {
            Ok(()) => return Some(Ok(rule)),
            Err(miss) => miss,
        };
        let key = |miss: &Miss| (!miss.is_unsure, miss.distance);
        if nearest.as_ref().is_none_or(|nearest| key(&miss) < key(nearest)) {
            nearest = Some(miss);
        }
    }
    nearest.map(Err)
}

#[cfg(test)]
mod tests;
