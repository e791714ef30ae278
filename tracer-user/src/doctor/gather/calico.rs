//! Whether Calico's programs translate services: its eBPF dataplane keeps them in maps of its own, and needs no kube-proxy.

use crate::probe::bpf;
use aya_obj::generated::bpf_map_info;
use std::fs;
use std::os::fd::AsFd as _;
use std::path::Path;

/// How the names of the maps of what clients dial begin; a version of their layout follows (felix/bpf/nat/maps.go).
const FRONTENDS: [&str; 2] = ["cali_v4_nat_fe", "cali_v6_nat_fe"];
/// Where they are pinned (felix/bpf/bpfdefs).
const PINS: &str = "/sys/fs/bpf/tc/globals";
/// Maps that are looked at.
const MOST: usize = 16384;

/// True if there are such maps: by the names of all there are, or by their pins, where it may not be asked for those.
#[must_use]
pub fn translates_services() -> bool {
    by_name().unwrap_or(false) || is_pinned(Path::new(PINS))
}

/// `None` if that may not be asked (it takes CAP_SYS_ADMIN).
fn by_name() -> Option<bool> {
    let mut id = 0;
    for _ in 0..MOST {
        match bpf::next_map(id).ok()? {
            Some(next) => id = next,
            None => return Some(false),
        }
        // One may have gone meanwhile.
        let Ok(map) = bpf::open_map(id) else { continue };
        let Ok(info) = bpf::info::<bpf_map_info>(map.as_fd()) else { continue };
        let name: Vec<u8> = info.name.iter().map(|letter| letter.cast_unsigned()).collect();
        if is_of_services(&name) {
            return Some(true);
        }
    }
    None
}

fn is_pinned(folder: &Path) -> bool {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    entries.into_iter().any(|entry| is_of_services(entry.file_name().as_encoded_bytes()))
}

fn is_of_services(name: &[u8]) -> bool {
    FRONTENDS.iter().any(|start| name.starts_with(start.as_bytes()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frontends_of_any_version() {
        assert!(is_of_services(b"cali_v4_nat_fe3\0") && is_of_services(b"cali_v6_nat_fe3"));
        assert!(!is_of_services(b"cali_v4_nat_be") && !is_of_services(b"cilium_lb4") && !is_of_services(b""));
        let folder = tempfile::tempdir().unwrap();
        assert!(!is_pinned(folder.path()) && !is_pinned(&folder.path().join("none")));
        fs::write(folder.path().join("cali_v4_nat_fe3"), "").unwrap();
        assert!(is_pinned(folder.path()));
    }
}
