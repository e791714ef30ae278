//! Finds or installs what building and testing take.
//!
//! Everything is first looked for where it would be, so that a machine that has it all loses no time. What is
//! missing is installed by root on a machine with apt, in one go; anybody else is told what to type.

use std::{collections::BTreeSet, path::PathBuf};

use anyhow::{Result, bail};

use crate::{
    apt,
    linker::{self, Linker},
    process,
    toolchain::Toolchain,
    tools::{self, Tool},
    unpacked,
    workspace::Workspace,
};

/// How much a command needs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Need {
    /// What builds the eBPF half.
    Build,
    /// That, and what the tests use in network namespaces.
    Namespaces,
    /// That, and what droptrace is measured against.
    Bench,
    /// All that, and what boots virtual machines.
    Everything,
}

/// What builds the eBPF half.
#[derive(Debug, Clone)]
pub(crate) struct EbpfTools {
    pub(crate) toolchain: Toolchain,
    pub(crate) linker: PathBuf,
}

/// Sets of packages that have a compiler with `core` for BPF: Debian's backported one, and its newest.
const TOOLCHAINS: [[&str; 3]; 2] =
    [["rustc-web", "cargo-web", "libstd-rust-web-dev-bpf"], ["rustc", "cargo", "libstd-rust-dev-bpf"]];

/// What is not there.
#[derive(Debug, Default, PartialEq, Eq)]
struct Missing {
    /// No toolchain that can build for BPF.
    toolchain: bool,
    /// No bpf-linker and no LLVM to build it with; one of these would do.
    llvm: Vec<u32>,
    tools: Vec<Tool>,
}

impl Missing {
    fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// Every package that might help.
    fn candidates(&self) -> BTreeSet<String> {
        let toolchains = TOOLCHAINS.iter().flatten().filter(|_| self.toolchain).copied();
        let tools = self.tools.iter().flat_map(|tool| tool.packages).copied();
        let llvm = self.llvm.iter().flat_map(|llvm| linker::packages(*llvm));
        toolchains.chain(tools).map(str::to_owned).chain(llvm).collect()
    }

    /// What to install, given what can be, and what would still be missing then.
    fn plan(&self, available: &BTreeSet<String>) -> Plan {
        let have = |name: &str| available.contains(name);
        let mut plan = Plan::default();
        if self.toolchain {
            match TOOLCHAINS.iter().find(|set| set.iter().all(|name| have(name))) {
                Some(set) => plan.packages.extend(set.map(str::to_owned)),
                None => plan.no_toolchain = true,
            }
        }
        if !self.llvm.is_empty() {
            let sets = self.llvm.iter().map(|llvm| linker::packages(*llvm));
            match sets.into_iter().find(|set| set.iter().all(|name| have(name))) {
                Some(set) => plan.packages.extend(set),
                None => plan.no_linker = true,
            }
        }
        for tool in &self.tools {
            match tool.packages.iter().find(|name| have(name)) {
                Some(name) => plan.packages.extend([(*name).to_owned()]),
                None => plan.no_tools.push(tool.name),
            }
        }
        plan
    }
}

/// What can be done about what is [`Missing`].
#[derive(Debug, Default, PartialEq, Eq)]
struct Plan {
    packages: BTreeSet<String>,
    no_toolchain: bool,
    no_linker: bool,
    no_tools: Vec<&'static str>,
}

impl Plan {
    /// The commands that a person types where we cannot act.
    fn instructions(&self) -> String {
        let mut commands = Vec::new();
        if !self.packages.is_empty() {
            commands.push(apt::install_command(&self.packages));
        }
        if self.no_toolchain {
            commands
                .push("rustup toolchain install nightly --profile minimal --component rust-src".to_owned());
        }
        if self.no_linker {
            commands.push("cargo install cargo-binstall --locked".to_owned());
            commands.push(format!("cargo binstall bpf-linker@{}", linker::VERSION));
        }
        let mut text = String::from("something is missing that cannot be installed from here");
        if !commands.is_empty() {
            text.push_str("; type:\n\n    ");
            text.push_str(&commands.join("\n    "));
            text.push('\n');
        }
        if !self.no_tools.is_empty() {
            text.push_str("\nand install what has these programs and files: ");
            text.push_str(&self.no_tools.join(", "));
        }
        text
    }
}

/// Makes sure that everything needed is there.
///
/// # Errors
/// When something is missing and cannot be installed; the message is what to type.
pub(crate) fn ensure(workspace: &Workspace, need: Need) -> Result<EbpfTools> {
    let (mut missing, mut found) = inspect(workspace, need)?;
    if !missing.is_empty() {
        install(workspace, &missing)?;
        (missing, found) = inspect(workspace, need)?;
    }
    if !missing.tools.is_empty() {
        // The tests themselves tell what they had to skip.
        let names: Vec<_> = missing.tools.iter().map(|tool| tool.name).collect();
        process::note(&format!("no package has {}; what needs it will be skipped", names.join(", ")));
    }
    match found {
        (Some(toolchain), Linker::Ready(linker)) => Ok(EbpfTools { toolchain, linker }),
        (Some(toolchain), Linker::Build(llvm)) => {
            Ok(EbpfTools { toolchain, linker: linker::build(workspace, llvm)? })
        }
        // Only a compiler newer than the LLVM that was installed along with it ends here.
        _ => bail!("{}", missing.plan(&apt_available(&missing)?).instructions()),
    }
}

fn inspect(workspace: &Workspace, need: Need) -> Result<(Missing, (Option<Toolchain>, Linker))> {
    let toolchain = Toolchain::find();
    // Without a compiler any LLVM will do for now: the one in the sources fits the compiler next to it.
    let llvm = toolchain.as_ref().map_or(Ok(0), Toolchain::llvm)?;
    let linker = Linker::find(workspace, llvm);
    let mut wanted = Vec::new();
    if need != Need::Build {
        wanted.extend(tools::NAMESPACE_TOOLS);
    }
    if matches!(need, Need::Bench | Need::Everything) {
        wanted.extend(tools::BENCH_TOOLS);
    }
    if need == Need::Everything {
        wanted.extend(tools::VM_TOOLS);
    }
    let missing = Missing {
        toolchain: toolchain.is_none(),
        llvm: if let Linker::NeedsLlvm(llvm) = &linker { llvm.clone() } else { Vec::new() },
        tools: tools::missing(&wanted),
    };
    Ok((missing, (toolchain, linker)))
}

/// Installs what can be; a tool for the tests that no package has is not worth failing for.
fn install(workspace: &Workspace, missing: &Missing) -> Result<()> {
    if !process::is_root() || !apt::is_here() {
        bail!("{}", missing.plan(&apt_available(missing)?).instructions());
    }
    apt::update()?;
    let plan = missing.plan(&apt::available(&missing.candidates())?);
    if plan.no_toolchain || plan.no_linker {
        bail!("{}", plan.instructions());
    }
    if plan.packages.is_empty() {
        return Ok(());
    }
    let (mut fit, unfit) = apt::split(&plan.packages);
    let mut unpack = Vec::new();
    for name in unfit {
        match missing.tools.iter().find(|tool| tool.packages.contains(&name.as_str())) {
            Some(tool) => unpack.push((name, tool.name)),
            // apt says best what is wrong with it.
            None => fit.extend([name]),
        }
    }
    if !fit.is_empty() {
        process::note(&format!(
            "installing {}",
            fit.iter().map(String::as_str).collect::<Vec<_>>().join(" ")
        ));
        apt::install(&fit)?;
    }
    for (package, program) in unpack {
        process::note(&format!(
            "{package} would replace packages of this machine: unpacking it into the target folder"
        ));
        unpacked::add(workspace, &package, program)?;
    }
    Ok(())
}

fn apt_available(missing: &Missing) -> Result<BTreeSet<String>> {
    if apt::is_here() { apt::available(&missing.candidates()) } else { Ok(BTreeSet::new()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(list: &[&str]) -> BTreeSet<String> {
        list.iter().map(|name| (*name).to_owned()).collect()
    }

    fn everything_missing() -> Missing {
        Missing { toolchain: true, llvm: vec![22, 23, 21], tools: vec![tools::NAMESPACE_TOOLS[8]] }
    }

    #[test]
    fn debian_gets_its_own_compiler_and_an_llvm_in_one_go() {
        let mut available = names(&TOOLCHAINS[0]);
        available.extend(linker::packages(22));
        available.extend(linker::packages(21));
        available.extend(names(&["rustc", "cargo", "bpftool"]));
        let plan = everything_missing().plan(&available);
        let mut expected = names(&TOOLCHAINS[0]);
        expected.extend(linker::packages(22));
        expected.extend(names(&["bpftool"]));
        assert_eq!(plan, Plan { packages: expected, ..Plan::default() });
    }

    #[test]
    fn a_machine_without_these_packages_is_told_what_to_type() {
        let plan = everything_missing().plan(&names(&["rustc", "cargo", "linux-tools-common"]));
        assert!(plan.no_toolchain && plan.no_linker);
        let text = plan.instructions();
        for part in [
            "apt-get install --no-install-recommends linux-tools-common\n",
            "component rust-src",
            "bpf-linker@",
        ] {
            assert!(text.contains(part), "{part}: {text}");
        }
    }

    #[test]
    fn only_what_is_missing_is_installed() {
        let missing = Missing { tools: vec![tools::NAMESPACE_TOOLS[0]], ..Missing::default() };
        assert_eq!(missing.plan(&names(&["iproute2"])).packages, names(&["iproute2"]));
        assert_eq!(missing.plan(&names(&[])).no_tools, ["ip"]);
    }
}
