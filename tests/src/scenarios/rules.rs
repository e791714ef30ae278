//! nft rules of one chain.

use crate::bed::namespace::Namespace;
use anyhow::Result;

/// A table `t` with one filter chain `c` on a hook, and its rules, one a line.
///
/// `hook` is what follows `hook` in nft's grammar: `forward`, `ingress device r0`.
pub(super) fn chain(netns: &Namespace, family: &str, hook: &str, rules: &str) -> Result<()> {
    let text = format!(
        "table {family} t {{\nchain c {{\ntype filter hook {hook} priority 0; policy accept;\n{rules}\n}}\n}}\n"
    );
    netns.feed("nft -f -", &text).map(drop)
}
