//! Wire bytes of a [`tracer_common::Step`].

use crate::event::decode::{self, DecodeError, Raw};
use bytes::Buf as _;
use tracer_common::{
    Device, Event, NftStep, Step, StepHead,
    moved::{CounterLook, Moved},
};

/// Decodes one record of the ring of steps.
///
/// # Errors
/// [`DecodeError::Length`] if it isn't as long as a [`Step`]. Any bytes of that length decode.
pub fn decode(bytes: &[u8]) -> Result<(StepHead, Raw), DecodeError> {
    let wrong = DecodeError::Length { expected: size_of::<Step>(), found: bytes.len() };
    let (mut head, event) = bytes.split_at_checked(size_of::<StepHead>()).ok_or(wrong)?;
    if event.len() != size_of::<Event>() {
        return Err(wrong);
    }
    // The length is checked, so none of the reads runs out of bytes. Fields in the order of `StepHead`.
    let head = StepHead {
        packet: head.get_u64_ne(),
        place: head.get_u32_ne(),
        priority: head.get_i32_ne(),
        location: head.get_u64_ne(),
        route_input: head.get_u64_ne(),
        route_output: head.get_u64_ne(),
        route_device: Device { name: array(&mut head), ifindex: head.get_u32_ne(), netns: head.get_u32_ne() },
        gateway: array(&mut head),
        gateway_family: head.get_u32_ne(),
        link: array(&mut head),
        pid: head.get_u32_ne(),
        process: array(&mut head),
        ethernet: array(&mut head),
        has_ethernet: head.get_u16_ne(),
        counters: counters(&mut head),
    };
    Ok((head, decode::decode(event)?))
}

/// Fields in the order of `CounterLook`.
fn counters(rest: &mut &[u8]) -> CounterLook {
    let mut look = CounterLook {
        version: rest.get_u32_ne(),
        cpu: rest.get_u32_ne(),
        number: rest.get_u32_ne(),
        length: rest.get_u32_ne(),
        ..CounterLook::default()
    };
    for moved in &mut look.moved {
        *moved = Moved { by: rest.get_u64_ne(), chunk: rest.get_u32_ne(), reserved: rest.get_u32_ne() };
    }
    look
}

/// Decodes a record of what nft told; `None` for others, which have another length.
#[must_use]
pub fn nft_step(mut bytes: &[u8]) -> Option<NftStep> {
    // The length is checked, so none of the reads runs out of bytes. Fields in the order of `NftStep`.
    (bytes.len() == size_of::<NftStep>()).then(|| NftStep {
        packet: bytes.get_u64_ne(),
        net: bytes.get_u64_ne(),
        table: bytes.get_u64_ne(),
        base_chain: bytes.get_u64_ne(),
        chain: bytes.get_u64_ne(),
        rule: bytes.get_u64_ne(),
        target: bytes.get_u64_ne(),
        verdict: bytes.get_i32_ne(),
        kind: bytes.get_u32_ne(),
        mark: bytes.get_u32_ne(),
        family: bytes.get_u8(),
        hook: bytes.get_u8(),
        reserved: bytes.get_u16_ne(),
    })
}

fn array<const N: usize>(rest: &mut &[u8]) -> [u8; N] {
    let mut bytes = [0; N];
    rest.copy_to_slice(&mut bytes);
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_are_where_the_kernel_half_puts_them() {
        let mut bytes = vec![0_u8; size_of::<Step>()];
        let mut put = |at: usize, value: &[u8]| bytes[at..at + value.len()].copy_from_slice(value);
        put(std::mem::offset_of!(StepHead, packet), &7_u64.to_ne_bytes());
        put(std::mem::offset_of!(StepHead, priority), &(-299_i32).to_ne_bytes());
        put(std::mem::offset_of!(StepHead, pid), &11_u32.to_ne_bytes());
        put(std::mem::offset_of!(StepHead, process), b"curl");
        put(std::mem::offset_of!(StepHead, has_ethernet), &1_u16.to_ne_bytes());
        let counters = std::mem::offset_of!(StepHead, counters);
        put(counters + std::mem::offset_of!(CounterLook, number), &3_u32.to_ne_bytes());
        let second = counters + std::mem::offset_of!(CounterLook, moved) + size_of::<Moved>();
        put(second + std::mem::offset_of!(Moved, chunk), &5_u32.to_ne_bytes());
        put(size_of::<StepHead>(), &9_u64.to_ne_bytes());
        let (head, raw) = decode(&bytes).unwrap();
        assert_eq!((head.packet, head.priority, head.pid, head.has_ethernet), (7, -299, 11, 1));
        assert_eq!((&head.process[..4], raw.time), (&b"curl"[..], 9));
        assert_eq!((head.counters.number, head.counters.moved[1].chunk), (3, 5));
    }

    #[test]
    fn what_nft_told() {
        let mut bytes = vec![0_u8; size_of::<NftStep>()];
        let mut put = |at: usize, value: &[u8]| bytes[at..at + value.len()].copy_from_slice(value);
        put(std::mem::offset_of!(NftStep, packet), &7_u64.to_ne_bytes());
        put(std::mem::offset_of!(NftStep, target), &8_u64.to_ne_bytes());
        put(std::mem::offset_of!(NftStep, verdict), &(-3_i32).to_ne_bytes());
        put(std::mem::offset_of!(NftStep, mark), &9_u32.to_ne_bytes());
        put(std::mem::offset_of!(NftStep, hook), &[4]);
        let wanted = NftStep { packet: 7, target: 8, verdict: -3, mark: 9, hook: 4, ..NftStep::default() };
        assert_eq!(nft_step(&bytes), Some(wanted));
        assert_eq!(nft_step(&bytes[1..]), None);
        assert_eq!(nft_step(&vec![0; size_of::<Step>()]), None);
    }

    #[test]
    fn other_lengths_are_refused() {
        for length in [0, 10, size_of::<StepHead>(), size_of::<Step>() - 1, size_of::<Step>() + 1] {
            assert!(decode(&vec![0; length]).is_err(), "{length}");
        }
    }
}
