//! nf_tables tables of the lab, and the messages that make them (include/uapi/linux/netfilter/nf_tables.h).

use super::netlink::{APPEND, Attributes, Batch, CREATE, EXCLUSIVE, Transaction};
use super::{Hook, Policy, TableError, checked_name};
use std::net::Ipv4Addr;

/// Longest name, in bytes: NFT_NAME_MAXLEN is 256, with the zero byte at its end.
const MAX_NAME: usize = 255;

/// `enum nf_tables_msg_types`
pub(super) mod message {
    pub(crate) const NEW_TABLE: u8 = 0;
    pub(crate) const NEW_CHAIN: u8 = 3;
    pub(crate) const NEW_RULE: u8 = 6;
}

/// Attributes, each in the scope that its name begins with: `NFTA_TABLE_NAME` and so on.
pub(super) mod attribute {
    pub(crate) const TABLE_NAME: u16 = 1;

    pub(crate) const CHAIN_TABLE: u16 = 1;
    pub(crate) const CHAIN_NAME: u16 = 3;
    pub(crate) const CHAIN_HOOK: u16 = 4;
    pub(crate) const CHAIN_POLICY: u16 = 5;

    pub(crate) const COUNTER_BYTES: u16 = 1;
    pub(crate) const COUNTER_PACKETS: u16 = 2;

    pub(crate) const HOOK_HOOKNUM: u16 = 1;
    pub(crate) const HOOK_PRIORITY: u16 = 2;

    pub(crate) const RULE_TABLE: u16 = 1;
    pub(crate) const RULE_CHAIN: u16 = 2;
    pub(crate) const RULE_EXPRESSIONS: u16 = 4;

    pub(crate) const LIST_ELEM: u16 = 1;
    pub(crate) const EXPR_NAME: u16 = 1;
    pub(crate) const EXPR_DATA: u16 = 2;

    pub(crate) const PAYLOAD_DREG: u16 = 1;
    pub(crate) const PAYLOAD_BASE: u16 = 2;
    pub(crate) const PAYLOAD_OFFSET: u16 = 3;
    pub(crate) const PAYLOAD_LEN: u16 = 4;

    pub(crate) const CMP_SREG: u16 = 1;
    pub(crate) const CMP_OP: u16 = 2;
    pub(crate) const CMP_DATA: u16 = 3;

    pub(crate) const IMMEDIATE_DREG: u16 = 1;
    pub(crate) const IMMEDIATE_DATA: u16 = 2;

    pub(crate) const DATA_VALUE: u16 = 1;
    pub(crate) const DATA_VERDICT: u16 = 2;
    pub(crate) const VERDICT_CODE: u16 = 1;
    pub(crate) const VERDICT_CHAIN: u16 = 2;
}

/// `NFT_REG_VERDICT`
const REGISTER_VERDICT: u32 = 0;
/// `NFT_REG_1`
const REGISTER_1: u32 = 1;
/// `NFT_PAYLOAD_NETWORK_HEADER`
const NETWORK_HEADER: u32 = 1;
/// Where the destination address is in an IPv4 header, in bytes (RFC 791).
const DESTINATION: u32 = 16;
/// `NFT_CMP_EQ`
const EQUAL: u32 = 0;
/// Its tables are of family `ip` (NFPROTO_IPV4, include/uapi/linux/netfilter.h).
pub(super) const FAMILY: u8 = 2;

/// A table of family `ip`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Table {
    /// Its name.
    pub name: String,
    /// Its chains; rules may jump to any of them.
    pub chains: Vec<Chain>,
}

/// A chain.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Chain {
    /// Its name.
    pub name: String,
    /// `None`: reached by jumps only.
    pub base: Option<Base>,
    /// Its rules, in order.
    pub rules: Vec<Rule>,
}

/// What makes a chain a base chain, of type `filter`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Base {
    /// Where it is called.
    pub hook: Hook,
    /// Lower ones are called first; 0 is the priority `filter`.
    pub priority: i32,
    /// What befalls a packet that gets to its end.
    pub policy: Policy,
}

/// A rule.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rule {
    /// The IPv4 destination that it matches; `None`: all packets. Version 4 is not checked: nothing else is sent here.
    pub destination: Option<Ipv4Addr>,
    /// Whether it counts the packets that it decides about. Needs [`super::Backends::nft_counter`].
    pub is_counted: bool,
    /// What it decides.
    pub verdict: Verdict,
}

/// A rule's verdict.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// The packet passes this hook function.
    Accept,
    /// The packet is dropped.
    Drop,
    /// Back to the chain that jumped here; from a base chain, to its policy.
    Return,
    /// To another chain, and back.
    Jump(String),
    /// To another chain; from its end, back to who jumped here, or to the policy.
    Goto(String),
}

impl Table {
    /// Whether any rule counts.
    pub(super) fn counts(&self) -> bool {
        self.chains.iter().flat_map(|chain| &chain.rules).any(|rule| rule.is_counted)
    }

    /// The transaction that makes it: the table, then all chains, then all rules in order. The kernel numbers chains
    /// and rules in that order; their handles start at 1.
    ///
    /// # Errors
    /// If a name is not one.
    pub(super) fn transaction(&self) -> Result<Transaction, TableError> {
        let table = checked_name(&self.name, MAX_NAME)?;
        let mut batch = Batch::new();
        batch.message(format!("table {table}"), message::NEW_TABLE, CREATE | EXCLUSIVE, FAMILY, |out| {
            out.text(attribute::TABLE_NAME, table);
        });
        for chain in &self.chains {
            let name = checked_name(&chain.name, MAX_NAME)?;
            batch.message(format!("chain {name}"), message::NEW_CHAIN, CREATE | EXCLUSIVE, FAMILY, |out| {
                out.text(attribute::CHAIN_TABLE, table);
                out.text(attribute::CHAIN_NAME, name);
                if let Some(base) = chain.base {
                    base.write(out);
                }
            });
        }
        for chain in &self.chains {
            for (rule, number) in chain.rules.iter().zip(1..) {
                rule.verdict.check()?;
                let part = format!("rule {number} of chain {}", chain.name);
                batch.message(part, message::NEW_RULE, CREATE | APPEND, FAMILY, |out| {
                    out.text(attribute::RULE_TABLE, table);
                    out.text(attribute::RULE_CHAIN, &chain.name);
                    out.nest(attribute::RULE_EXPRESSIONS, |list| rule.write(list));
                });
            }
        }
        Ok(batch.end())
    }
}

impl Base {
    /// Without the chain's type: the kernel takes `filter`, and need not look for a module that has the type.
    fn write(self, out: &mut Attributes) {
        out.nest(attribute::CHAIN_HOOK, |hook| {
            hook.number(attribute::HOOK_HOOKNUM, u32::from(self.hook as u8));
            hook.bytes(attribute::HOOK_PRIORITY, &self.priority.to_be_bytes());
        });
        out.number(attribute::CHAIN_POLICY, u32::from(self.policy == Policy::Accept));
    }
}

impl Rule {
    /// Its expressions.
    fn write(&self, list: &mut Attributes) {
        if let Some(destination) = self.destination {
            expression(list, "payload", |payload| {
                payload.number(attribute::PAYLOAD_DREG, REGISTER_1);
                payload.number(attribute::PAYLOAD_BASE, NETWORK_HEADER);
                payload.number(attribute::PAYLOAD_OFFSET, DESTINATION);
                payload.number(attribute::PAYLOAD_LEN, 4);
            });
            expression(list, "cmp", |cmp| {
                cmp.number(attribute::CMP_SREG, REGISTER_1);
                cmp.number(attribute::CMP_OP, EQUAL);
                cmp.nest(attribute::CMP_DATA, |data| {
                    data.bytes(attribute::DATA_VALUE, &destination.octets());
                });
            });
        }
        if self.is_counted {
            expression(list, "counter", |counter| {
                counter.bytes(attribute::COUNTER_BYTES, &[0; 8]);
                counter.bytes(attribute::COUNTER_PACKETS, &[0; 8]);
            });
        }
        self.verdict.write(list);
    }
}

impl Verdict {
    /// The verdict code (include/uapi/linux/netfilter.h: `NF_*`; nf_tables.h: `enum nft_verdicts`) and the chain
    /// that it names.
    fn code(&self) -> (i32, Option<&str>) {
        match self {
            Self::Drop => (0, None),
            Self::Accept => (1, None),
            Self::Jump(chain) => (-3, Some(chain)),
            Self::Goto(chain) => (-4, Some(chain)),
            Self::Return => (-5, None),
        }
    }

    /// A chain that is not there is left to the kernel, which says so.
    fn check(&self) -> Result<(), TableError> {
        self.code().1.map_or(Ok(()), |chain| checked_name(chain, MAX_NAME).map(drop))
    }

    /// The expression that sets it.
    fn write(&self, list: &mut Attributes) {
        let (code, chain) = self.code();
        expression(list, "immediate", |immediate| {
            immediate.number(attribute::IMMEDIATE_DREG, REGISTER_VERDICT);
            immediate.nest(attribute::IMMEDIATE_DATA, |data| {
                data.nest(attribute::DATA_VERDICT, |verdict| {
                    verdict.bytes(attribute::VERDICT_CODE, &code.to_be_bytes());
                    if let Some(chain) = chain {
                        verdict.text(attribute::VERDICT_CHAIN, chain);
                    }
                });
            });
        });
    }
}

/// Adds an expression to a rule's list.
pub(super) fn expression(list: &mut Attributes, name: &str, fill: impl FnOnce(&mut Attributes)) {
    list.nest(attribute::LIST_ELEM, |element| {
        element.text(attribute::EXPR_NAME, name);
        element.nest(attribute::EXPR_DATA, fill);
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rule(destination: Option<Ipv4Addr>, verdict: Verdict) -> Rule {
        Rule { destination, is_counted: false, verdict }
    }

    fn table(rules: Vec<Rule>) -> Table {
        let base = Base { hook: Hook::Output, priority: -5, policy: Policy::Accept };
        let chain = Chain { name: "out".into(), base: Some(base), rules };
        Table { name: "lab".into(), chains: vec![chain] }
    }

    /// The attributes of a verdict, as a rule's list has them.
    fn written(verdict: &Verdict) -> Vec<u8> {
        let mut list = Attributes::default();
        verdict.write(&mut list);
        list.into_bytes()
    }

    #[cfg(target_endian = "little")]
    #[test]
    #[rustfmt::skip]
    fn a_transaction_byte_by_byte() {
        let table = table(vec![rule(Some(Ipv4Addr::new(127, 1, 2, 3)), Verdict::Drop)]);
        let expected: &[&[u8]] = &[
            // Begin: 20 bytes, NFNL_MSG_BATCH_BEGIN, NLM_F_REQUEST, sequence 0; resource 10 is nf_tables.
            &[20, 0, 0, 0, 0x10, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 10],
            // NFT_MSG_NEWTABLE with CREATE and EXCL, sequence 1, NFPROTO_IPV4.
            &[28, 0, 0, 0, 0, 10, 1, 6, 1, 0, 0, 0, 0, 0, 0, 0, 2, 0, 0, 0],
            &[8, 0, 1, 0], b"lab\0",
            // NFT_MSG_NEWCHAIN, sequence 2.
            &[64, 0, 0, 0, 3, 10, 1, 6, 2, 0, 0, 0, 0, 0, 0, 0, 2, 0, 0, 0],
            &[8, 0, 1, 0], b"lab\0",
            &[8, 0, 3, 0], b"out\0",
            &[20, 0, 4, 0x80],
                &[8, 0, 1, 0, 0, 0, 0, 3],
                &[8, 0, 2, 0, 0xff, 0xff, 0xff, 0xfb],
            &[8, 0, 5, 0, 0, 0, 0, 1],
            // NFT_MSG_NEWRULE with CREATE, APPEND and ACK, sequence 3.
            &[184, 0, 0, 0, 6, 10, 5, 12, 3, 0, 0, 0, 0, 0, 0, 0, 2, 0, 0, 0],
            &[8, 0, 1, 0], b"lab\0",
            &[8, 0, 2, 0], b"out\0",
            &[148, 0, 4, 0x80],
                &[52, 0, 1, 0x80],
                    &[12, 0, 1, 0], b"payload\0",
                    &[36, 0, 2, 0x80],
                        &[8, 0, 1, 0, 0, 0, 0, 1],
                        &[8, 0, 2, 0, 0, 0, 0, 1],
                        &[8, 0, 3, 0, 0, 0, 0, 16],
                        &[8, 0, 4, 0, 0, 0, 0, 4],
                &[44, 0, 1, 0x80],
                    &[8, 0, 1, 0], b"cmp\0",
                    &[32, 0, 2, 0x80],
                        &[8, 0, 1, 0, 0, 0, 0, 1],
                        &[8, 0, 2, 0, 0, 0, 0, 0],
                        &[12, 0, 3, 0x80],
                            &[8, 0, 1, 0, 127, 1, 2, 3],
                &[48, 0, 1, 0x80],
                    &[14, 0, 1, 0], b"immediate\0\0\0",
                    &[28, 0, 2, 0x80],
                        &[8, 0, 1, 0, 0, 0, 0, 0],
                        &[16, 0, 2, 0x80],
                            &[12, 0, 2, 0x80],
                                &[8, 0, 1, 0, 0, 0, 0, 0],
            // End: NFNL_MSG_BATCH_END.
            &[20, 0, 0, 0, 0x11, 0, 1, 0, 3, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 10],
        ];
        assert_eq!(table.transaction().unwrap().bytes, expected.concat());
    }

    #[cfg(target_endian = "little")]
    #[test]
    fn verdicts() {
        for (verdict, code) in [(Verdict::Drop, 0), (Verdict::Accept, 1), (Verdict::Return, 0xfb)] {
            let sign = if code == 0xfb { 0xff } else { 0 };
            let bytes = written(&verdict);
            assert!(bytes.ends_with(&[12, 0, 2, 0x80, 8, 0, 1, 0, sign, sign, sign, code]), "{verdict:?}");
        }
        for (verdict, code) in [(Verdict::Jump("sub".into()), 0xfd), (Verdict::Goto("sub".into()), 0xfc)] {
            let expected = [&[20, 0, 2, 0x80, 8, 0, 1, 0, 0xff, 0xff, 0xff, code, 8, 0, 2, 0], &b"sub\0"[..]];
            assert!(written(&verdict).ends_with(&expected.concat()), "{verdict:?}");
        }
    }

    #[test]
    fn a_policy_that_drops_and_a_chain_without_a_hook() {
        let accepting = table(vec![]);
        let mut dropping = accepting.clone();
        dropping.chains[0].base.as_mut().unwrap().policy = Policy::Drop;
        let [accepting, dropping] = [accepting, dropping].map(|table| table.transaction().unwrap().bytes);
        let different: Vec<_> = accepting.iter().zip(&dropping).filter(|(one, other)| one != other).collect();
        assert_eq!(different, [(&1, &0)], "NF_ACCEPT, NF_DROP");
        let mut plain = table(vec![]);
        plain.chains[0].base = None;
        assert_eq!(plain.transaction().unwrap().bytes.len() + 28, accepting.len(), "no hook, no policy");
    }

    #[test]
    fn names_are_checked() {
        let bad = Err(TableError::Name { name: "a b".into(), most: MAX_NAME });
        let outcome = |table: &Table| table.transaction().map(drop);
        assert_eq!(outcome(&Table { name: "a b".into(), ..table(vec![]) }), bad);
        assert_eq!(outcome(&table(vec![rule(None, Verdict::Jump("a b".into()))])), bad);
        let mut named = table(vec![]);
        named.chains[0].name = "a b".into();
        assert_eq!(outcome(&named), bad);
        named.chains[0].name = "x".repeat(MAX_NAME);
        assert_eq!(outcome(&named), Ok(()));
    }
}
