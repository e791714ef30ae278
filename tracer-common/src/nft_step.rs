//! `droptrace trace`: what a followed packet met in nft's rules.

use core::mem::size_of;

/// What of a chain it met ([`NftStep::kind`]): `enum nft_trace_types` (include/uapi/linux/netfilter/nf_tables.h).
pub mod trace_type {
    /// A base chain's policy.
    pub const POLICY: u32 = 1;
    /// A rule that returns, or the end of a chain, on older kernels.
    pub const RETURN: u32 = 2;
    /// A rule; on newer kernels the end of a chain, too.
    pub const RULE: u32 = 3;
}

/// A record of the ring `STEPS`. Tables, chains and rules are told by their handles, which never become another's; names and
/// texts are for the user half to find.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct NftStep {
    /// The packet's number, as in a [`Step`](crate::Step).
    pub packet: u64,
    /// Address of the struct net whose hook that is.
    pub net: u64,
    /// Handle of the table.
    pub table: u64,
    /// Handle of the base chain by which the packet came in.
    pub base_chain: u64,
    /// Handle of the chain; 0 where the kernel doesn't tell.
    pub chain: u64,
    /// The rule's word of bitfields (struct nft_rule_dp; struct nft_rule before 5.17); 0 without a rule.
    pub rule: u64,
    /// Where the rule jumps: handle of that chain, else 0.
    pub target: u64,
    /// The rule's verdict: NF_* (include/uapi/linux/netfilter.h) or NFT_* (nf_tables.h); a policy's.
    pub verdict: i32,
    /// [`trace_type`]
    pub kind: u32,
    /// skb->mark behind the rule.
    pub mark: u32,
    /// The hook's family (NFPROTO_*).
    pub family: u8,
    /// The hook (NF_INET_* and the like).
    pub hook: u8,
    /// Explicit padding.
    pub reserved: u16,
}

const _: () = assert!(size_of::<NftStep>() == 7 * 8 + 16);
