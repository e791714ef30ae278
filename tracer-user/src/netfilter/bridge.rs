//! Drops by br_handle_frame (net/bridge/br_input.c), which calls the functions of a bridge's PREROUTING hook itself and frees
//! what they drop. It frees frames of its own account, too: of a port that is blocked, with an invalid source, pause frames.

use super::attribute::{self, Hook};
use super::model::{Confidence, Method, Netfilter};

/// The hook: NFPROTO_BRIDGE and NF_BR_PRE_ROUTING (include/uapi/linux/netfilter.h, netfilter_bridge.h).
pub const HOOK: Hook = Hook { family: 7, number: 0 };

/// The one function there that never drops: what it decides is whether a frame is routed (net/bridge/netfilter/ebtable_broute.c).
pub const NEVER_DROPS: &str = "ebt_broute";

/// The function there that frees what it drops itself, on newer kernels (seen on 6.18; net/bridge/br_netfilter_hooks.c).
pub const FREES_ITSELF: &str = "br_nf_pre_routing";

/// The answer for what it freed.
#[must_use]
pub fn by_itself() -> Netfilter {
    Netfilter {
        function: Some(FREES_ITSELF.to_owned()),
        method: Some(Method::Hook),
        confidence: Confidence::Exact,
        ..attribute::at_hook(Some(HOOK))
    }
}

/// What the reason of such a drop tells.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Blame {
    /// A function of the hook did it.
    Hook,
    /// None of them did.
    Other,
    /// One of them may have.
    Unknown,
}

/// Who did it, by the drop's reason and all reasons that the kernel has: where it says why it drops a frame of its own
/// account (from 6.14), only the hook's drops are without a reason.
pub fn blame<'a>(reason: Option<&str>, mut all: impl Iterator<Item = &'a str>) -> Blame {
    const OWN: &str = "BRIDGE_INGRESS_STP_STATE";
    match reason {
        Some(reason) if reason != "NOT_SPECIFIED" => Blame::Other,
        Some(_) if all.any(|name| name == OWN) => Blame::Hook,
        _ => Blame::Unknown,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_frees_itself_is_on_its_hook() {
        let answer = by_itself();
        assert_eq!(
            (answer.hook.as_deref(), answer.function.as_deref()),
            (Some("PREROUTING"), Some(FREES_ITSELF))
        );
    }

    #[test]
    fn a_kernel_that_gives_its_own_reasons_leaves_the_hooks_drops_without() {
        let (old, new) = (["NOT_SPECIFIED"], ["NOT_SPECIFIED", "BRIDGE_INGRESS_STP_STATE"]);
        assert_eq!(blame(Some("NOT_SPECIFIED"), new.into_iter()), Blame::Hook);
        assert_eq!(blame(Some("BRIDGE_INGRESS_STP_STATE"), new.into_iter()), Blame::Other);
        assert_eq!(blame(Some("NOT_SPECIFIED"), old.into_iter()), Blame::Unknown);
        assert_eq!(blame(None, [].into_iter()), Blame::Unknown);
    }
}
