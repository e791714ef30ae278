//! The BPF filters of a clsact hook as rtnetlink lists them, for kernels on which the kernel half sees only that there are
//! some: 5.10 does not describe cls_bpf's structures where that is a module. They are asked for after the drop, so what they
//! tell is never more than inferred. Pure.

use super::attribute::{Program, with_program};
use super::model::{Bpf, Filter};
use crate::netfilter::model::Confidence;
use crate::probe::netlink::{attribute, text, word};

/// Filters told in the place of one.
const TOLD: usize = 8;
/// The classifier of BPF programs.
const BPF: &str = "bpf";

/// A BPF filter.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listed {
    /// `tc`'s preference.
    pub priority: u16,
    /// Its handle, not 0.
    pub handle: u32,
    /// The program's id; `None` for classic BPF.
    pub program: Option<u32>,
    /// What whoever made the filter calls it.
    pub name: Option<String>,
}

/// Reads a message of the dump (RTM_NEWTFILTER: struct tcmsg, attributes; include/uapi/linux/rtnetlink.h). `None` if it is
/// about another classifier, or about the list of filters of one priority as a whole.
#[must_use]
pub fn listed(message: &[u8]) -> Option<Listed> {
    /// Bytes of struct tcmsg: family and padding, ifindex, handle at 8, parent, info at 16 with the priority in its upper
    /// half.
    const TCMSG: usize = 20;
    /// TCA_KIND, TCA_OPTIONS.
    const KIND: u16 = 1;
    const OPTIONS: u16 = 2;
    /// TCA_BPF_NAME, TCA_BPF_ID (include/uapi/linux/pkt_cls.h).
    const NAME: u16 = 7;
    const ID: u16 = 11;
    let attributes = message.get(TCMSG..)?;
    if attribute(attributes, KIND).map(text).as_deref() != Some(BPF) {
        return None;
    }
    let handle = word(message, 8).filter(|handle| *handle != 0)?;
    let [high, low, ..] = word(message, 16)?.to_be_bytes();
    let options = attribute(attributes, OPTIONS)?;
    Some(Listed {
        priority: u16::from_be_bytes([high, low]),
        handle,
        program: attribute(options, ID).and_then(|id| word(id, 0)).filter(|id| *id != 0),
        name: attribute(options, NAME).map(text).filter(|name| !name.is_empty()),
    })
}

/// True for a filter of which the kernel half saw no more than that it is one of BPF programs.
fn is_unread(filter: &Filter) -> bool {
    filter.classifier.as_deref() == Some(BPF) && filter.id.is_none() && filter.handle.is_none()
}

/// True if an answer has such filters.
#[must_use]
pub fn has_unread(bpf: &Bpf) -> bool {
    bpf.candidates.iter().chain([&bpf.filter]).any(is_unread)
}

/// Puts into an answer what is listed of its hook by now.
pub fn name(bpf: &mut Bpf, listed: &[Listed], mut program: impl FnMut(u32) -> Program) {
    let mut named = |filter: &Filter| -> Vec<Filter> {
        let here = listed.iter().filter(|it| is_unread(filter) && Some(it.priority) == filter.priority);
        let all: Vec<_> = here.map(|it| filled(filter, it, &mut program)).collect();
        if all.is_empty() { vec![filter.clone()] } else { all }
    };
    let of_one = named(&bpf.filter);
    let mut candidates: Vec<_> = bpf.candidates.iter().flat_map(&mut named).collect();
    match <[Filter; 1]>::try_from(of_one) {
        Ok([filter]) => bpf.filter = filter,
        // The one list of a priority has several.
        Err(several) => {
            bpf.filter = Filter::default();
            bpf.confidence = Confidence::Ambiguous;
            candidates = several;
        }
    }
    bpf.more |= candidates.len() > TOLD;
    candidates.truncate(TOLD);
    bpf.candidates = candidates;
    if bpf.confidence == Confidence::Exact {
        bpf.confidence = Confidence::Inferred;
    }
}

fn filled(filter: &Filter, listed: &Listed, program: &mut impl FnMut(u32) -> Program) -> Filter {
    let filter = Filter { handle: Some(format!("{:#x}", listed.handle)), ..filter.clone() };
    let filter = match listed.program {
        Some(id) => with_program(filter, id, program),
        None => filter,
    };
    Filter { program: filter.program.or_else(|| listed.name.clone()), ..filter }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::probe::netlink::encoded;

    fn message(kind: &[u8], handle: u32, priority: u32, options: &[(u16, &[u8])]) -> Vec<u8> {
        let words = [0, 2, handle, 0xffff_fff2, priority << 16 | 3].map(u32::to_ne_bytes).concat();
        let options: Vec<u8> = options.iter().flat_map(|(kind, value)| encoded(*kind, value)).collect();
        [words, encoded(1, kind), encoded(11, &[0; 4]), encoded(2, &options)].concat()
    }

    fn one(priority: u16, handle: u32, program: u32) -> Listed {
        Listed { priority, handle, program: Some(program), name: Some("filter".to_owned()) }
    }

    #[test]
    fn filters_as_they_are_listed() {
        let id = 41_u32.to_ne_bytes();
        let full = message(b"bpf\0", 1, 49152, &[(7, b"filter\0"), (11, &id), (10, &[0; 8])]);
        assert_eq!(listed(&full), Some(one(49152, 1, 41)));
        let classic = message(b"bpf\0", 2, 1, &[(4, &[0; 2])]);
        assert_eq!(listed(&classic), Some(Listed { priority: 1, handle: 2, program: None, name: None }));
        // The priority's list as a whole, another classifier, garbage.
        assert_eq!(listed(&message(b"bpf\0", 0, 1, &[(11, &id)])), None);
        assert_eq!(listed(&message(b"u32\0", 1, 1, &[(11, &id)])), None);
        assert_eq!([listed(&[]), listed(&[0xff; 64])], [None, None]);
    }

    fn unread(priority: u16) -> Filter {
        Filter {
            attached: Some("clsact".to_owned()),
            classifier: Some(BPF.to_owned()),
            priority: Some(priority),
            ..Filter::default()
        }
    }

    fn program(id: u32) -> Program {
        Program { name: (id == 7).then(|| "seven".to_owned()), tag: Some("00".to_owned()), pinned: None }
    }

    #[test]
    fn the_only_filter_is_named_and_inferred() {
        let mut bpf = Bpf { filter: unread(1), confidence: Confidence::Exact, ..Bpf::default() };
        assert!(has_unread(&bpf));
        name(&mut bpf, &[one(2, 1, 8), one(1, 1, 7)], program);
        let Filter { program: name, id, handle, tag, .. } = &bpf.filter;
        assert_eq!((name.as_deref(), *id, handle.as_deref()), (Some("seven"), Some(7), Some("0x1")));
        assert_eq!(
            (tag.as_deref(), bpf.confidence, has_unread(&bpf)),
            (Some("00"), Confidence::Inferred, false)
        );
        // A program without a name goes by the filter's.
        let mut bpf = Bpf { filter: unread(2), ..Bpf::default() };
        name_all(&mut bpf, &[one(2, 1, 8)]);
        assert_eq!(bpf.filter.program.as_deref(), Some("filter"));
    }

    fn name_all(bpf: &mut Bpf, listed: &[Listed]) {
        name(bpf, listed, program);
    }

    #[test]
    fn several_of_one_priority_are_candidates() {
        let mut bpf = Bpf { filter: unread(1), confidence: Confidence::Inferred, ..Bpf::default() };
        name_all(&mut bpf, &[one(1, 2, 8), one(1, 1, 7)]);
        let ids: Vec<_> = bpf.candidates.iter().map(|it| it.id).collect();
        assert_eq!(
            (ids, bpf.confidence, &bpf.filter),
            (vec![Some(8), Some(7)], Confidence::Ambiguous, &Filter::default())
        );
        let mut bpf = Bpf { candidates: vec![unread(1), unread(3)], ..Bpf::default() };
        name_all(&mut bpf, &[one(1, 1, 7), one(3, 1, 8), one(3, 2, 9)]);
        let ids: Vec<_> = bpf.candidates.iter().map(|it| it.id).collect();
        assert_eq!((ids, bpf.more), (vec![Some(7), Some(8), Some(9)], false));
        let mut bpf = Bpf { filter: unread(1), ..Bpf::default() };
        name_all(&mut bpf, &(1..20).map(|handle| one(1, handle, handle)).collect::<Vec<_>>());
        assert_eq!((bpf.candidates.len(), bpf.more), (TOLD, true));
    }

    #[test]
    fn what_is_not_listed_any_more_stays_as_it_was() {
        let before = Bpf { filter: unread(1), confidence: Confidence::Inferred, ..Bpf::default() };
        let mut bpf = before.clone();
        name_all(&mut bpf, &[one(2, 1, 7)]);
        assert_eq!(bpf, before);
        // What the kernel half has read is not looked for.
        let read = Filter { id: Some(5), ..unread(1) };
        let u32s = Filter { classifier: Some("u32".to_owned()), ..unread(1) };
        for filter in [read, u32s, Filter { handle: Some("0x1".to_owned()), ..unread(1) }] {
            let mut bpf = Bpf { filter: filter.clone(), ..Bpf::default() };
            assert!(!has_unread(&bpf));
            name_all(&mut bpf, &[one(1, 1, 7)]);
            assert_eq!(bpf.filter, filter);
        }
    }
}
