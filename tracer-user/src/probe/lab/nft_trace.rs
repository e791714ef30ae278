//! What makes nft tell its own tracing of all packets: a rule `meta nftrace set 1` anywhere in the system (nft_meta_set_init(),
//! net/netfilter/nft_meta.c, switches nft_trace_enabled on). This one is in a chain on no hook, that nothing jumps to.

use super::netlink::{APPEND, Attributes, Batch, CREATE, EXCLUSIVE, Transaction};
use super::nft::{FAMILY, attribute, expression, message};

/// The table and its chain.
const TABLE: &str = "trace";
/// `NFT_REG_1` (include/uapi/linux/netfilter/nf_tables.h)
const REGISTER: u32 = 1;
/// `NFTA_META_KEY` and `NFTA_META_SREG`
const META_KEY: u16 = 2;
const META_SREG: u16 = 3;
/// `NFT_META_NFTRACE`
const NFTRACE: u32 = 12;

/// The transaction that makes it.
pub(super) fn transaction() -> Transaction {
    let mut batch = Batch::new();
    let new = CREATE | EXCLUSIVE;
    batch.message("the table for tracing".into(), message::NEW_TABLE, new, FAMILY, |out| {
        out.text(attribute::TABLE_NAME, TABLE);
    });
    batch.message("its chain".into(), message::NEW_CHAIN, new, FAMILY, |out| {
        out.text(attribute::CHAIN_TABLE, TABLE);
        out.text(attribute::CHAIN_NAME, TABLE);
    });
    batch.message("its rule".into(), message::NEW_RULE, CREATE | APPEND, FAMILY, |out| {
        out.text(attribute::RULE_TABLE, TABLE);
        out.text(attribute::RULE_CHAIN, TABLE);
        out.nest(attribute::RULE_EXPRESSIONS, write);
    });
    batch.end()
}

/// The rule's expressions.
fn write(list: &mut Attributes) {
    expression(list, "immediate", |immediate| {
        immediate.number(attribute::IMMEDIATE_DREG, REGISTER);
        immediate.nest(attribute::IMMEDIATE_DATA, |data| data.bytes(attribute::DATA_VALUE, &[1]));
    });
    expression(list, "meta", |meta| {
        meta.number(META_KEY, NFTRACE);
        meta.number(META_SREG, REGISTER);
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[cfg(target_endian = "little")]
    #[test]
    #[rustfmt::skip]
    fn the_rules_expressions_byte_by_byte() {
        let mut list = Attributes::default();
        write(&mut list);
        let expected: &[&[u8]] = &[
            &[44, 0, 1, 0x80],
                &[14, 0, 1, 0], b"immediate\0\0\0",
                &[24, 0, 2, 0x80],
                    &[8, 0, 1, 0, 0, 0, 0, 1],
                    &[12, 0, 2, 0x80],
                        &[5, 0, 1, 0, 1, 0, 0, 0],
            &[36, 0, 1, 0x80],
                &[9, 0, 1, 0], b"meta\0\0\0\0",
                &[20, 0, 2, 0x80],
                    &[8, 0, 2, 0, 0, 0, 0, 12],
                    &[8, 0, 3, 0, 0, 0, 0, 1],
        ];
        assert_eq!(list.into_bytes(), expected.concat());
    }

    #[test]
    fn no_packet_comes_to_it() {
        let bytes = transaction().bytes;
        // NFTA_CHAIN_HOOK, nested: no message has it.
        let hook = (attribute::CHAIN_HOOK | 0x8000).to_ne_bytes();
        let chain = &bytes[20..].windows(4).filter(|at| at[2..] == hook).count();
        // NFTA_RULE_EXPRESSIONS has the same number.
        assert_eq!(*chain, 1);
    }
}
