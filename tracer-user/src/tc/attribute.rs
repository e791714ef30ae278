//! From what the kernel half noted of a tc hook to the answer. Pure: no system is asked here.

use super::model::{Bpf, Filter};
use crate::netfilter::model::Confidence;
use tracer_common::{TC_FILTERS, TcFilter, attribution_kind, kind_of, tc_word};

/// What is known of a BPF program by its id.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Program {
    /// Its name; `None` if it has none, or is gone.
    pub name: Option<String>,
    /// Its tag.
    pub tag: Option<String>,
    /// Where it, or a link that holds it, is pinned.
    pub pinned: Option<String>,
}

/// Which filter on a tc hook dropped a packet; `None` if it was not dropped at one. `filters` is what the event lists,
/// `None` for a line of counts: then the key's ids are all that there is.
#[must_use]
pub fn answer(
    attribution: [u64; 2],
    filters: Option<&[TcFilter; TC_FILTERS]>,
    interface: Option<&str>,
    mut program: impl FnMut(u32) -> Program,
) -> Option<Bpf> {
    let [ids, word] = attribution;
    if kind_of(word) != attribution_kind::TC {
        return None;
    }
    #[allow(clippy::cast_possible_truncation, reason = "the low 32 bits")]
    let rest = word as u32;
    let has = |bit| rest & bit != 0;
    let count = (rest & tc_word::COUNT) as usize;
    #[allow(clippy::cast_possible_truncation, reason = "two ids in a word")]
    let of_key = [ids as u32, (ids >> 32) as u32];
    let mut listed: Vec<Filter> = match filters {
        Some(filters) => filters[..count.min(TC_FILTERS)]
            .iter()
            .map(|it| filter(it, has(tc_word::NETKIT), &mut program))
            .collect(),
        None => of_key
            .into_iter()
            .take(count)
            .filter(|id| *id != 0)
            .map(|id| with_program(Filter::default(), id, &mut program))
            .collect(),
    };
    let more = has(tc_word::INCOMPLETE) || listed.len() < count;
    let only = if count == 1 && !more { listed.pop() } else { None };
    let confidence = match only {
        Some(_) if has(tc_word::BY_REASON) && !has(tc_word::INDIRECT) => Confidence::Exact,
        Some(_) => Confidence::Inferred,
        None => Confidence::Ambiguous,
    };
    Some(Bpf {
        hook: match (has(tc_word::NETKIT), has(tc_word::EGRESS)) {
            (true, _) => "NETKIT",
            (false, true) => "EGRESS",
            (false, false) => "INGRESS",
        }
        .to_owned(),
        interface: interface.map(str::to_owned),
        filter: only.unwrap_or_default(),
        confidence,
        candidates: listed,
        more,
    })
}

fn filter(noted: &TcFilter, is_netkit: bool, program: &mut impl FnMut(u32) -> Program) -> Filter {
    let end = noted.kind.iter().position(|byte| *byte == 0).unwrap_or(noted.kind.len());
    let classifier = String::from_utf8_lossy(&noted.kind[..end]).into_owned();
    let is_classic = !classifier.is_empty();
    let [high, low, ..] = noted.priority.to_be_bytes();
    let filter = Filter {
        attached: Some(
            match (is_classic, is_netkit) {
                (true, _) => "clsact",
                (false, true) => "netkit",
                (false, false) => "tcx",
            }
            .to_owned(),
        ),
        priority: is_classic.then_some(u16::from_be_bytes([high, low])),
        handle: (noted.handle != 0).then(|| format!("{:#x}", noted.handle)),
        classifier: is_classic.then_some(classifier),
        ..Filter::default()
    };
    if noted.program == 0 { filter } else { with_program(filter, noted.program, program) }
}

pub(super) fn with_program(filter: Filter, id: u32, program: &mut impl FnMut(u32) -> Program) -> Filter {
    let Program { name, tag, pinned } = program(id);
    Filter { program: name, id: Some(id), tag, pinned, ..filter }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tracer_common::attribution_word;

    const NONE: TcFilter = TcFilter { program: 0, priority: 0, handle: 0, kind: [0; 16] };

    fn kind(name: &[u8]) -> [u8; 16] {
        std::array::from_fn(|at| name.get(at).copied().unwrap_or(0))
    }

    fn named(id: u32) -> Program {
        Program { name: (id == 7).then(|| "seven".to_owned()), ..Program::default() }
    }

    fn told(ids: u64, rest: u32, filters: Option<[TcFilter; TC_FILTERS]>) -> Bpf {
        let word = attribution_word(attribution_kind::TC, None, rest);
        answer([ids, word], filters.as_ref(), Some("eth0"), named).unwrap()
    }

    #[test]
    fn the_only_program_did_it() {
        let tcx = TcFilter { program: 7, ..NONE };
        let bpf = told(7, 1 | tc_word::BY_REASON, Some([tcx, NONE, NONE, NONE]));
        assert_eq!((bpf.hook.as_str(), bpf.interface.as_deref()), ("INGRESS", Some("eth0")));
        assert_eq!((bpf.filter.program.as_deref(), bpf.filter.id), (Some("seven"), Some(7)));
        assert_eq!((bpf.filter.attached.as_deref(), bpf.filter.priority), (Some("tcx"), None));
        assert_eq!((bpf.confidence, bpf.candidates.len(), bpf.more), (Confidence::Exact, 0, false));
        // The key alone says as much of the program, but not how it is attached.
        let bpf = told(7, 1 | tc_word::BY_REASON, None);
        assert_eq!((bpf.filter.id, bpf.filter.attached, bpf.confidence), (Some(7), None, Confidence::Exact));
    }

    #[test]
    fn without_a_reason_it_is_inferred() {
        let tcx = TcFilter { program: 9, ..NONE };
        let bpf = told(9, 1 | tc_word::EGRESS, Some([tcx, NONE, NONE, NONE]));
        assert_eq!((bpf.hook.as_str(), bpf.confidence), ("EGRESS", Confidence::Inferred));
        assert_eq!((bpf.filter.id, bpf.filter.program), (Some(9), None));
    }

    #[test]
    fn netkits_programs_are_at_no_tc_hook() {
        let program = TcFilter { program: 7, ..NONE };
        let bpf = told(7, 1 | tc_word::NETKIT, Some([program, NONE, NONE, NONE]));
        assert_eq!((bpf.hook.as_str(), bpf.filter.attached.as_deref()), ("NETKIT", Some("netkit")));
        // The device may have dropped it for another reason.
        assert_eq!((bpf.filter.id, bpf.confidence), (Some(7), Confidence::Inferred));
        assert_eq!(told(7, 1 | tc_word::NETKIT, None).hook, "NETKIT");
    }

    #[test]
    fn classic_filters_have_a_classifier_and_a_priority() {
        let classic = TcFilter { priority: 49152 << 16 | 3, handle: 0x8000_0001, kind: kind(b"u32"), ..NONE };
        let bpf = told(0, 1 | tc_word::BY_REASON | tc_word::INDIRECT, Some([classic, NONE, NONE, NONE]));
        let Filter { attached, classifier, priority, handle, id, .. } = bpf.filter;
        assert_eq!((attached.as_deref(), classifier.as_deref()), (Some("clsact"), Some("u32")));
        assert_eq!((priority, handle.as_deref(), id), (Some(49152), Some("0x80000001"), None));
        // Its actions may have led to another chain's filters.
        assert_eq!(bpf.confidence, Confidence::Inferred);
        // The key has no id of it: a line of counts says only that there was something.
        let bpf = told(0, 1 | tc_word::BY_REASON, None);
        assert_eq!((bpf.confidence, bpf.more, bpf.filter), (Confidence::Ambiguous, true, Filter::default()));
    }

    #[test]
    fn one_of_several_is_not_guessed() {
        let (first, second) =
            (TcFilter { program: 7, ..NONE }, TcFilter { program: 8, kind: kind(b"bpf"), ..NONE });
        let ids = 8 << 32 | 7;
        let bpf = told(ids, 2 | tc_word::BY_REASON, Some([first, second, NONE, NONE]));
        assert_eq!((bpf.confidence, bpf.filter, bpf.more), (Confidence::Ambiguous, Filter::default(), false));
        let candidates: Vec<_> = bpf.candidates.iter().map(|it| it.id).collect();
        assert_eq!(candidates, [Some(7), Some(8)]);
        assert_eq!(told(ids, 2 | tc_word::BY_REASON, None).candidates.len(), 2);
        assert!(told(ids, 9 | tc_word::BY_REASON, Some([first; 4])).more);
        let unread = told(7, 1 | tc_word::BY_REASON | tc_word::INCOMPLETE, Some([first, NONE, NONE, NONE]));
        assert_eq!((unread.confidence, unread.more), (Confidence::Ambiguous, true));
    }

    #[test]
    fn an_empty_hook_and_another_kind_name_nothing() {
        let bpf = told(0, tc_word::BY_REASON, Some([NONE; 4]));
        assert_eq!((bpf.confidence, bpf.candidates.len()), (Confidence::Ambiguous, 0));
        let word = attribution_word(attribution_kind::HOOK, None, 1);
        assert_eq!(answer([7, word], None, None, named), None);
    }
}
