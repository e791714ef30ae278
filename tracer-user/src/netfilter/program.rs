//! BPF programs on netfilter's hooks.

use super::memory::KernelMemory;
use crate::probe::btf::Btf;
use serde::{Deserialize, Serialize};

/// The hook function that runs one: what it is given is the struct bpf_prog (net/netfilter/nf_bpf_link.c).
pub const HOOK_FUNCTION: &str = "nf_hook_run_bpf";
/// BPF_OBJ_NAME_LEN (include/uapi/linux/bpf.h).
const NAME_BYTES: usize = 16;

/// A program.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Program {
    /// Its id, as `bpftool prog` shows it.
    pub id: u32,
    /// Its name; empty if it has none.
    pub name: String,
}

/// Where the running kernel keeps them: offsets in bytes, from its BTF (include/linux/bpf.h).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ProgramLayout {
    program_aux: u32,
    aux_id: u32,
    aux_name: u32,
    aux_load_time: u32,
}

impl ProgramLayout {
    /// `None` if the kernel doesn't describe them.
    #[must_use]
    pub fn resolve(vmlinux: &Btf) -> Option<Self> {
        Some(Self {
            program_aux: vmlinux.offset_of("bpf_prog", "aux")?,
            aux_id: vmlinux.offset_of("bpf_prog_aux", "id")?,
            aux_name: vmlinux.offset_of("bpf_prog_aux", "name")?,
            aux_load_time: vmlinux.offset_of("bpf_prog_aux", "load_time")?,
        })
    }
}

impl Program {
    /// The program at `address` (struct bpf_prog), and when it was loaded, in ns of CLOCK_BOOTTIME. `None` if it can't be
    /// read, or is gone: its id is 0 then.
    ///
    /// A program that is there now was there at any time since it was loaded.
    pub fn read(memory: &mut impl KernelMemory, layout: &ProgramLayout, address: u64) -> Option<(Self, u64)> {
        let aux = memory.pointer(address + u64::from(layout.program_aux))?;
        let loaded = memory.u64(aux + u64::from(layout.aux_load_time))?;
        let id = memory.u32(aux + u64::from(layout.aux_id)).filter(|id| *id != 0)?;
        Some((Self { id, name: memory.string(aux + u64::from(layout.aux_name), NAME_BYTES)? }, loaded))
    }
}

#[cfg(test)]
mod tests {
    use super::super::memory::fake::Fake;
    use super::*;

    const BASE: u64 = 0xffff_8880_0000_0000;
    const LAYOUT: ProgramLayout =
        ProgramLayout { program_aux: 56, aux_id: 28, aux_name: 64, aux_load_time: 40 };

    #[test]
    fn a_program_has_an_id_and_a_name() {
        let mut memory = Fake::default();
        let aux = BASE + 4096;
        memory.put_u64(BASE + 56, aux);
        memory.put(aux + 28, &7_u32.to_ne_bytes());
        memory.put_u64(aux + 40, 5);
        memory.put(aux + 64, b"sixteen_long_nam");
        memory.put(aux + 80, &[0xaa; 64]);
        let read = |memory: &mut Fake, address| Program::read(memory, &LAYOUT, address);
        assert_eq!(read(&mut memory, BASE), Some((Program { id: 7, name: "sixteen_long_nam".into() }, 5)));
        assert_eq!(read(&mut memory, BASE + 8), None);
        memory.put(aux + 28, &[0; 4]);
        assert_eq!(read(&mut memory, BASE), None);
    }
}
