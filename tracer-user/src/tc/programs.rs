//! What the kernel says of BPF programs: by id, and where they are pinned. Only reads.

use super::attribute::Program;
use crate::probe::bpf;
use aya_obj::generated::bpf_prog_info;
use std::{
    collections::HashMap,
    fs,
    os::{
        fd::{AsFd as _, AsRawFd as _, OwnedFd},
        unix::ffi::OsStrExt as _,
    },
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

/// Where pins are.
const BPFFS: &str = "/sys/fs/bpf";
/// f_type of such a file system (BPF_FS_MAGIC, include/uapi/linux/magic.h).
const BPF_FS_MAGIC: i64 = 0xcafe_4a11;
/// Pins and folders that are looked at, and how deep.
const MOST_PINS: usize = 8192;
const DEEPEST: usize = 8;
/// Least time between two looks at all pins.
const PINS_INTERVAL: Duration = Duration::from_secs(10);
/// Programs that are remembered.
const MOST_PROGRAMS: usize = 4096;

/// What was asked before: an id is never another program's.
#[derive(Debug, Default)]
pub struct Programs {
    known: HashMap<u32, Program>,
    pins: HashMap<u32, PathBuf>,
    looked: Option<Instant>,
}

impl Programs {
    /// What is known of a program.
    pub fn get(&mut self, id: u32) -> Program {
        if let Some(known) = self.known.get(&id) {
            return known.clone();
        }
        // A program may be gone by now; or, without CAP_SYS_ADMIN, may not be asked for.
        let info = bpf::open_program(id).and_then(|fd| bpf::info::<bpf_prog_info>(fd.as_fd())).ok();
        let program = Program {
            name: info.as_ref().and_then(name),
            tag: info.map(|info| info.tag.iter().map(|byte| format!("{byte:02x}")).collect()),
            pinned: self.pin(id).map(|path| path.to_string_lossy().into_owned()),
        };
        if self.known.len() >= MOST_PROGRAMS {
            self.known.clear();
        }
        self.known.insert(id, program.clone());
        program
    }

    fn pin(&mut self, id: u32) -> Option<&PathBuf> {
        if self.looked.is_none_or(|looked| looked.elapsed() >= PINS_INTERVAL) {
            self.looked = Some(Instant::now());
            self.pins = if is_bpffs(Path::new(BPFFS)) { pins(Path::new(BPFFS)) } else { HashMap::new() };
        }
        self.pins.get(&id)
    }
}

fn name(info: &bpf_prog_info) -> Option<String> {
    let bytes: Vec<u8> =
        info.name.iter().map(|byte| byte.to_ne_bytes()[0]).take_while(|byte| *byte != 0).collect();
    (!bytes.is_empty()).then(|| String::from_utf8_lossy(&bytes).into_owned())
}

fn is_bpffs(path: &Path) -> bool {
    let Ok(path) = std::ffi::CString::new(path.as_os_str().as_bytes()) else { return false };
    // SAFETY: a plain C structure: zero is valid; the call fills it.
    let mut about: libc::statfs = unsafe { std::mem::zeroed() };
    // SAFETY: a NUL-terminated path, and room for the answer.
    let result = unsafe { libc::statfs(path.as_ptr(), &raw mut about) };
    result == 0 && about.f_type == BPF_FS_MAGIC
}

/// Pins of programs, and of links that hold one: by the program's id, the first in order of their paths.
fn pins(root: &Path) -> HashMap<u32, PathBuf> {
    let mut found = HashMap::new();
    let mut left = MOST_PINS;
    let mut folders = vec![(root.to_owned(), 0)];
    while let Some((folder, depth)) = folders.pop() {
        let mut entries: Vec<_> = fs::read_dir(&folder).into_iter().flatten().flatten().take(left).collect();
        left -= entries.len();
        entries.sort_by_key(fs::DirEntry::file_name);
        for entry in entries {
            match entry.file_type() {
                Ok(kind) if kind.is_dir() && depth < DEEPEST => folders.push((entry.path(), depth + 1)),
                Ok(kind) if kind.is_file() => {
                    let id = bpf::open_pin(&entry.path()).ok().and_then(|fd| program_of(&fd));
                    if let Some(id) = id {
                        found.entry(id).or_insert_with(|| entry.path());
                    }
                }
                _ => {}
            }
        }
    }
    found
}

/// The program that a descriptor of a program or a link stands for (bpf_prog_show_fdinfo, bpf_link_show_fdinfo,
/// kernel/bpf/syscall.c).
fn program_of(fd: &OwnedFd) -> Option<u32> {
    let text = fs::read_to_string(format!("/proc/self/fdinfo/{}", fd.as_raw_fd())).ok()?;
    program_id(&text)
}

fn program_id(fdinfo: &str) -> Option<u32> {
    fdinfo.lines().find_map(|line| line.strip_prefix("prog_id:"))?.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn programs_and_links_have_a_program_and_maps_have_none() {
        assert_eq!(program_id("pos:\t0\nprog_type:\t3\nprog_tag:\t00\nprog_id:\t41\n"), Some(41));
        assert_eq!(
            program_id("link_type:\ttcx\nlink_id:\t3\nprog_tag:\t00\nprog_id:\t7\nifindex:\t2\n"),
            Some(7)
        );
        assert_eq!(program_id("map_type:\t1\nmap_id:\t9\n"), None);
    }

    #[test]
    fn an_ordinary_folder_is_no_bpffs() {
        assert!(!is_bpffs(Path::new("/proc")) && !is_bpffs(Path::new("/no/such/folder")));
    }
}
