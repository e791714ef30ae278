//! bpf(2), as far as it reads: pins, programs by id, and what the kernel says of them.

use aya_obj::generated::{BPF_F_RDONLY, bpf_attr, bpf_cmd, bpf_map_info, bpf_prog_info};
use std::{
    ffi::CString,
    io,
    os::{
        fd::{AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd},
        unix::ffi::OsStrExt as _,
    },
    path::Path,
};

/// A structure that BPF_OBJ_GET_INFO_BY_FD fills.
///
/// # Safety
/// It must be a plain C structure of integers, for which zero is valid.
pub(crate) unsafe trait Info {}
// SAFETY: as the kernel's header declares them (include/uapi/linux/bpf.h).
unsafe impl Info for bpf_map_info {}
// SAFETY: likewise.
unsafe impl Info for bpf_prog_info {}

/// Opens a pin (BPF_OBJ_GET) with BPF_F_RDONLY: it can't be used to change what it stands for.
pub(crate) fn open_pin(path: &Path) -> io::Result<OwnedFd> {
    let path = CString::new(path.as_os_str().as_bytes())?;
    let mut attributes = zeroed();
    attributes.__bindgen_anon_4.pathname = path.as_ptr() as u64;
    attributes.__bindgen_anon_4.file_flags = BPF_F_RDONLY;
    opened(bpf_cmd::BPF_OBJ_GET, &mut attributes)
}

/// Opens the program with an id (BPF_PROG_GET_FD_BY_ID).
pub(crate) fn open_program(id: u32) -> io::Result<OwnedFd> {
    let mut attributes = zeroed();
    attributes.__bindgen_anon_6.__bindgen_anon_1.prog_id = id;
    opened(bpf_cmd::BPF_PROG_GET_FD_BY_ID, &mut attributes)
}

/// Opens the map with an id (BPF_MAP_GET_FD_BY_ID) with BPF_F_RDONLY.
pub(crate) fn open_map(id: u32) -> io::Result<OwnedFd> {
    let mut attributes = zeroed();
    attributes.__bindgen_anon_6.__bindgen_anon_1.map_id = id;
    attributes.__bindgen_anon_6.open_flags = BPF_F_RDONLY;
    opened(bpf_cmd::BPF_MAP_GET_FD_BY_ID, &mut attributes)
}

/// The id of the next map that there is on this machine, from 0 on (BPF_MAP_GET_NEXT_ID); `None` after the last one.
pub(crate) fn next_map(id: u32) -> io::Result<Option<u32>> {
    let mut attributes = zeroed();
    attributes.__bindgen_anon_6.__bindgen_anon_1.start_id = id;
    match call(bpf_cmd::BPF_MAP_GET_NEXT_ID, &mut attributes) {
        // SAFETY: the kernel has written it; zero before.
        Ok(_) => Ok(Some(unsafe { attributes.__bindgen_anon_6.next_id })),
        Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(None),
        Err(error) => Err(error),
    }
}

/// What the kernel says of an open program or map (BPF_OBJ_GET_INFO_BY_FD).
pub(crate) fn info<T: Info>(of: BorrowedFd<'_>) -> io::Result<T> {
    // SAFETY: the trait's.
    let mut info: T = unsafe { std::mem::zeroed() };
    let mut attributes = zeroed();
    attributes.info.bpf_fd = descriptor_of(of);
    attributes.info.info_len = size_of::<T>() as u32;
    attributes.info.info = (&raw mut info) as u64;
    call(bpf_cmd::BPF_OBJ_GET_INFO_BY_FD, &mut attributes)?;
    Ok(info)
}

/// A command that opens something.
pub(crate) fn opened(command: bpf_cmd, attributes: &mut bpf_attr) -> io::Result<OwnedFd> {
    let descriptor = call(command, attributes)?;
    // SAFETY: the kernel gave it to us just now, and nobody else has it.
    Ok(unsafe { OwnedFd::from_raw_fd(descriptor) })
}

/// `BPF_NETFILTER`, the attach type of programs on netfilter's hooks (from 6.4).
pub(crate) const ATTACH_NETFILTER: u32 = 45;

/// Puts a BPF_PROG_TYPE_NETFILTER program on a hook of the calling thread's network namespace (BPF_LINK_CREATE); it leaves when
/// the link is closed. `family` is NFPROTO_*, `hook` NF_INET_*. EBUSY if there is one with that priority.
pub(crate) fn link_to_hook(
    program: BorrowedFd<'_>,
    family: u8,
    hook: u8,
    priority: i32,
) -> io::Result<OwnedFd> {
    /// The head of `link_create`, and its part `netfilter` (include/uapi/linux/bpf.h).
    #[repr(C)]
    struct Create {
        program: u32,
        target: u32,
        attach_type: u32,
        flags: u32,
        family: u32,
        hook: u32,
        priority: i32,
        netfilter_flags: u32,
    }
    const _: () = assert!(size_of::<Create>() == 32);
    let create = Create {
        program: descriptor_of(program),
        target: 0,
        attach_type: ATTACH_NETFILTER,
        flags: 0,
        family: family.into(),
        hook: hook.into(),
        priority,
        netfilter_flags: 0,
    };
    let mut attributes = zeroed();
    // SAFETY: both are plain integers, and the union is larger.
    unsafe { std::ptr::from_mut(&mut attributes).cast::<Create>().write(create) };
    opened(bpf_cmd::BPF_LINK_CREATE, &mut attributes)
}

pub(crate) fn zeroed() -> bpf_attr {
    // SAFETY: a plain C union of integers: zero is valid.
    unsafe { std::mem::zeroed() }
}

#[allow(clippy::cast_sign_loss, reason = "a descriptor that is open")]
pub(crate) fn descriptor_of(of: BorrowedFd<'_>) -> u32 {
    of.as_raw_fd() as u32
}

/// What `attributes` points to must be alive and as large as the command takes it to be.
pub(crate) fn call(command: bpf_cmd, attributes: &mut bpf_attr) -> io::Result<i32> {
    // SAFETY: the callers see to it: keys and values have the sizes that the kernel said the map has.
    let result = unsafe {
        libc::syscall(libc::SYS_bpf, command, std::ptr::from_mut(attributes), size_of::<bpf_attr>())
    };
    match i32::try_from(result) {
        Ok(result) if result >= 0 => Ok(result),
        _ => Err(io::Error::last_os_error()),
    }
}
