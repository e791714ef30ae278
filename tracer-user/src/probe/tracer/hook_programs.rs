//! Programs of the object as BPF netfilter programs (BPF_PROG_TYPE_NETFILTER, from 6.4), a type that aya doesn't load: its parts
//! prepare them, bpf(2) loads them, with the maps of the programs that aya has loaded.

use super::OBJECT;
use crate::probe::bpf;
use aya::{
    Ebpf,
    maps::{Map, MapData},
};
use aya_obj::{Object, generated::bpf_cmd};
use std::{
    collections::HashMap,
    io,
    os::fd::{AsFd as _, AsRawFd as _, BorrowedFd, OwnedFd, RawFd},
};
use tracer_common::priority;

/// `BPF_PROG_TYPE_NETFILTER` (include/uapi/linux/bpf.h).
const TYPE: u32 = 32;

/// Bytes of the verifier's log.
const LOG_BYTES: usize = 1 << 20;

/// The programs, and the priorities that they are for.
const PROGRAMS: [(&str, i32); 8] = [
    ("path_hook_first", priority::FIRST),
    ("path_hook_raw", priority::RAW),
    ("path_hook_conntrack", priority::CONNTRACK),
    ("path_hook_mangle", priority::MANGLE),
    ("path_hook_dstnat", priority::DSTNAT),
    ("path_hook_filter", priority::FILTER),
    ("path_hook_security", priority::SECURITY),
    ("path_hook_srcnat", priority::SRCNAT),
];

/// Why they can't be loaded.
#[derive(Debug, thiserror::Error)]
pub(super) enum HookProgramsError {
    /// The object can't be prepared.
    #[error("the object can't be prepared: {0}")]
    Object(String),
    /// It would do more than look.
    #[error(
        "{program} was run as a trial and answered {verdict:?} instead of NF_ACCEPT: this build of droptrace is broken"
    )]
    Decides {
        /// Which.
        program: &'static str,
        /// What it answered, or why it could not be run.
        verdict: Result<u32, String>,
    },
    /// The kernel refuses.
    #[error("the kernel refuses {program}: {error}{}", tail(log))]
    Refused {
        /// Which.
        program: &'static str,
        /// Why.
        error: io::Error,
        /// The verifier's words.
        log: String,
    },
}

/// The last words of the verifier's log.
fn tail(log: &str) -> String {
    let lines: Vec<&str> = log.trim_end().lines().rev().take(4).collect();
    lines.iter().rev().fold(String::new(), |text, line| format!("{text}; {line}"))
}

/// Loads them. The maps must all be there still: those that were taken out of `ebpf` are lacking.
///
/// # Errors
/// See [`HookProgramsError`]; EINVAL where the kernel has no such programs.
pub(super) fn load(ebpf: &Ebpf) -> Result<Vec<(i32, OwnedFd)>, HookProgramsError> {
    let wrong = |error: &dyn std::fmt::Display| HookProgramsError::Object(error.to_string());
    let mut object = Object::parse(OBJECT).map_err(|error| wrong(&error))?;
    let features = aya::features();
    let types = match features.btf() {
        Some(features) => {
            let btf = object.fixup_and_sanitize_btf(features).map_err(|error| wrong(&error))?;
            btf.map(|btf| load_types(&btf.to_bytes())).transpose().map_err(|error| wrong(&error))?
        }
        None => None,
    };
    let maps: HashMap<&str, RawFd> =
        ebpf.maps().filter_map(|(name, map)| Some((name, data(map)?.fd().as_fd().as_raw_fd()))).collect();
    let known = object.maps.clone();
    let ours = known.iter().filter_map(|(name, map)| Some((name.as_str(), *maps.get(name.as_str())?, map)));
    let text = object.functions.keys().map(|(section, _)| *section).collect();
    object.relocate_maps(ours, &text).map_err(|error| wrong(&error))?;
    object.relocate_calls(&text).map_err(|error| wrong(&error))?;
    object.sanitize_functions(features);
    let mut loaded = Vec::with_capacity(PROGRAMS.len());
    for (name, priority) in PROGRAMS {
        let program = object.programs.get(name).ok_or_else(|| wrong(&format!("it has no {name}")))?;
        let function = object.functions.get(&program.function_key()).ok_or_else(|| wrong(&name))?;
        let load = |log: &mut [u8]| load_program(name, program, function, types.as_ref(), log);
        let descriptor = load(&mut []).map_err(|error| {
            // Once more, for the verifier's words: a log that is too small is an error, too.
            let mut log = vec![0_u8; LOG_BYTES];
            let _ = load(&mut log);
            let end = log.iter().position(|byte| *byte == 0).unwrap_or(log.len());
            let log = String::from_utf8_lossy(log.get(..end).unwrap_or_default()).into_owned();
            HookProgramsError::Refused { program: name, error, log }
        })?;
        // Nothing is put on a hook that was not seen to let packets pass.
        let verdict = trial(descriptor.as_fd()).map_err(|error| error.to_string());
        if verdict != Ok(NF_ACCEPT) {
            return Err(HookProgramsError::Decides { program: name, verdict });
        }
        loaded.push((priority, descriptor));
    }
    Ok(loaded)
}

/// include/uapi/linux/netfilter.h
const NF_ACCEPT: u32 = 1;

/// What the program answers for an IPv4 packet that is nobody's (BPF_PROG_TEST_RUN, net/bpf/test_run.c, bpf_prog_test_run_nf).
fn trial(program: BorrowedFd<'_>) -> io::Result<u32> {
    // An Ethernet header, of IPv4, and an IPv4 header without a payload, zeros elsewhere.
    let mut packet = [0_u8; 64];
    packet[12] = 0x08;
    packet[14] = 0x45;
    let mut attributes = bpf::zeroed();
    attributes.test.prog_fd = bpf::descriptor_of(program);
    attributes.test.data_in = packet.as_ptr() as u64;
    attributes.test.data_size_in = packet.len() as u32;
    bpf::call(bpf_cmd::BPF_PROG_TEST_RUN, &mut attributes)?;
    // SAFETY: plain integers; the kernel has filled this member in.
    Ok(unsafe { attributes.test.retval })
}

/// BPF_BTF_LOAD
fn load_types(bytes: &[u8]) -> io::Result<OwnedFd> {
    let mut attributes = bpf::zeroed();
    // SAFETY: a member of a union of plain integers; the bytes live as long as the call.
    let load = unsafe { &mut attributes.__bindgen_anon_7 };
    load.btf = bytes.as_ptr() as u64;
    load.btf_size = u32::try_from(bytes.len()).map_err(io::Error::other)?;
    bpf::opened(bpf_cmd::BPF_BTF_LOAD, &mut attributes)
}

/// BPF_PROG_LOAD
fn load_program(
    name: &str,
    program: &aya_obj::Program,
    function: &aya_obj::Function,
    types: Option<&OwnedFd>,
    log: &mut [u8],
) -> io::Result<OwnedFd> {
    let functions = function.func_info.func_info_bytes();
    let mut attributes = bpf::zeroed();
    // SAFETY: a member of a union of plain integers; what it points to lives as long as the call.
    let load = unsafe { &mut attributes.__bindgen_anon_3 };
    load.prog_type = TYPE;
    load.expected_attach_type = bpf::ATTACH_NETFILTER;
    load.insns = function.instructions.as_ptr() as u64;
    load.insn_cnt = u32::try_from(function.instructions.len()).map_err(io::Error::other)?;
    load.license = program.license.as_ptr() as u64;
    if !log.is_empty() {
        load.log_level = 1;
        load.log_buf = log.as_mut_ptr() as u64;
        load.log_size = u32::try_from(log.len()).map_err(io::Error::other)?;
    }
    // The last byte stays zero.
    let room = load.prog_name.len() - 1;
    for (to, from) in load.prog_name.iter_mut().take(room).zip(name.bytes()) {
        *to = from.cast_signed();
    }
    if let Some(types) = types {
        load.prog_btf_fd = bpf::descriptor_of(types.as_fd());
        load.func_info = functions.as_ptr() as u64;
        load.func_info_cnt = u32::try_from(function.func_info.len()).map_err(io::Error::other)?;
        load.func_info_rec_size = u32::try_from(function.func_info_rec_size).map_err(io::Error::other)?;
    }
    bpf::opened(bpf_cmd::BPF_PROG_LOAD, &mut attributes)
}

/// Puts a program on a hook of the calling thread's network namespace, at its priority or just behind; it leaves when the link
/// is closed.
///
/// # Errors
/// What the system says; EBUSY if there are such programs at these priorities already.
pub(super) fn link(program: BorrowedFd<'_>, family: u8, hook: u8, priority: i32) -> io::Result<OwnedFd> {
    /// Another trace may be there.
    const TRIES: i32 = 4;
    let mut result = Err(io::Error::from_raw_os_error(libc::EBUSY));
    for priority in (0..TRIES).map(|more| priority + more) {
        result = bpf::link_to_hook(program, family, hook, priority);
        if result.as_ref().err().and_then(io::Error::raw_os_error) != Some(libc::EBUSY) {
            break;
        }
    }
    result
}

/// The map itself; `None` of kinds that the object has none of.
fn data(map: &Map) -> Option<&MapData> {
    match map {
        Map::Array(data)
        | Map::HashMap(data)
        | Map::LpmTrie(data)
        | Map::LruHashMap(data)
        | Map::PerCpuArray(data)
        | Map::PerCpuLruHashMap(data)
        | Map::PerfEventArray(data)
        | Map::RingBuf(data) => Some(data),
        _ => None,
    }
}
