//! XDP programs on interfaces, as BPF links (from 5.9).

use super::fixture;
use super::namespace::Namespace;
use anyhow::{Context, Result};
use aya::Ebpf;
use aya::programs::{Xdp, XdpMode};

/// The program's name.
pub const NAME: &str = "xdp_bouncer";

/// A program that drops all that comes in; it leaves when this is dropped.
#[derive(Debug)]
pub struct Attached {
    /// Its id.
    pub id: u32,
    _fixture: Ebpf,
}

/// Loads such a program and puts it on a device.
///
/// # Errors
/// When the kernel refuses.
pub fn attach(netns: &Namespace, device: &str, mode: XdpMode) -> Result<Attached> {
    let mut fixture = fixture::open(None)?;
    let program: &mut Xdp = fixture.program_mut(NAME).context("the fixture has none")?.try_into()?;
    program.load().context("load an XDP program")?;
    let id = program.info()?.id();
    netns.enter(|| Ok(program.attach(device, mode)?)).context("attach an XDP program")?;
    Ok(Attached { id, _fixture: fixture })
}
