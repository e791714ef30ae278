//! Finds or installs what building and testing take.
//!
//! Everything is first looked for where it would be, so that a machine that has it all loses no time. What is
//! missing is installed by root on a machine with apt, in one go; anybody else is told what to type.

use std::path::PathBuf;

use anyhow::{Result, bail};

use crate::{
    apt,
    linker::{self, Linker},
    process,
    toolchain::Toolchain,
    tools::{self, Tool},
    unpacked,
    ways::{self, Packages},
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

/// What is not there.
#[derive(Debug, Default, PartialEq, Eq)]
struct Missing {
    ebpf: Option<NoEbpf>,
    tools: Vec<Tool>,
}

/// Why the eBPF half cannot be built.
#[derive(Debug, Default, PartialEq, Eq)]
struct NoEbpf {
    /// The LLVMs of the compilers that could build it, if they had a linker.
    compilers: Vec<u32>,
    /// Whether there is no linker, either.
    no_linker: bool,
}

impl Missing {
    fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// What to install, given what can be, and what would still be missing then. Of `ways`, one is enough.
    fn plan(&self, ways: &[Packages], available: &Packages) -> Plan {
        let mut plan = Plan::default();
        if let Some(missing) = &self.ebpf {
            match ways.iter().find(|way| way.is_subset(available)) {
                Some(way) => plan.packages.extend(way.iter().cloned()),
                None => {
                    plan.no_toolchain = missing.compilers.is_empty();
                    plan.no_linker = missing.no_linker;
                }
            }
        }
        for tool in &self.tools {
            match tool.packages.iter().find(|name| available.contains(**name)) {
                Some(name) => plan.packages.extend([(*name).to_owned()]),
                None if tool.is_optional => plan.without.push(tool.name),
                None => plan.no_tools.push(tool.name),
            }
        }
        plan
    }

    /// The same, asking apt what can be installed.
    fn plan_with_apt(&self, workspace: &Workspace) -> Result<Plan> {
        if !apt::is_here() {
            return Ok(self.plan(&[], &Packages::new()));
        }
        let ways = match &self.ebpf {
            Some(missing) => {
                let rusts: Vec<u32> = apt::named(ways::SOURCE_PREFIX)?
                    .iter()
                    .filter_map(|package| ways::source_version(package))
                    .collect();
                ways::ways(&missing.compilers, &rusts, |llvm| Linker::find(workspace, llvm))
            }
            None => Vec::new(),
        };
        let tools = self.tools.iter().flat_map(|tool| tool.packages).map(|name| (*name).to_owned());
        let candidates = ways.iter().flatten().cloned().chain(tools).collect();
        Ok(self.plan(&ways, &apt::available(&candidates)?))
    }
}

/// What can be done about what is [`Missing`].
#[derive(Debug, Default, PartialEq, Eq)]
struct Plan {
    packages: Packages,
    no_toolchain: bool,
    no_linker: bool,
    no_tools: Vec<&'static str>,
    /// Tools that cannot be had, and need not.
    without: Vec<&'static str>,
}

impl Plan {
    /// Whether there is nothing that anybody could do.
    fn is_done(&self) -> bool {
        let Self { packages, no_toolchain, no_linker, no_tools, without: _ } = self;
        packages.is_empty() && !no_toolchain && !no_linker && no_tools.is_empty()
    }

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
    if missing.ebpf.is_some() {
        // A compiler can be asked for its LLVM only now that it is there: it takes a newer one to link for it.
        install(workspace, &missing)?;
        (missing, found) = inspect(workspace, need)?;
    }
    if !missing.tools.is_empty() {
        // The tests themselves tell what they had to skip.
        let names: Vec<_> = missing.tools.iter().map(|tool| tool.name).collect();
        process::note(&format!("no package has {}; what needs it will be skipped", names.join(", ")));
    }
    match found {
        Some((toolchain, Linker::Ready(linker))) => Ok(EbpfTools { toolchain, linker }),
        Some((toolchain, Linker::Build(llvm))) => {
            Ok(EbpfTools { toolchain, linker: linker::build(workspace, llvm)? })
        }
        // Only a compiler newer than the LLVM that was installed along with it ends here.
        _ => bail!("{}", missing.plan_with_apt(workspace)?.instructions()),
    }
}

/// What is missing, and the compiler to use with its linker.
fn inspect(workspace: &Workspace, need: Need) -> Result<(Missing, Option<(Toolchain, Linker)>)> {
    let mut compilers = Vec::new();
    let mut found = None;
    for toolchain in Toolchain::all() {
        let llvm = toolchain.llvm()?;
        match Linker::find(workspace, llvm) {
            Linker::NeedsLlvm(_) => compilers.push(llvm),
            linker => {
                found = Some((toolchain, linker));
                break;
            }
        }
    }
    let ebpf = found.is_none().then(|| NoEbpf {
        no_linker: !compilers.is_empty() || matches!(Linker::find(workspace, 0), Linker::NeedsLlvm(_)),
        compilers,
    });
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
    Ok((Missing { ebpf, tools: tools::missing(&wanted) }, found))
}

/// Installs what can be; a tool for the tests that no package has is not worth failing for.
fn install(workspace: &Workspace, missing: &Missing) -> Result<()> {
    if !process::is_root() || !apt::is_here() {
        let plan = missing.plan_with_apt(workspace)?;
        if plan.is_done() {
            return Ok(());
        }
        bail!("{}", plan.instructions());
    }
    apt::update()?;
    let plan = missing.plan_with_apt(workspace)?;
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
        for (_, service) in tools::SERVICES.iter().filter(|(package, _)| fit.contains(*package)) {
            apt::disable(service)?;
        }
    }
    for (package, program) in unpack {
        process::note(&format!(
            "{package} would replace packages of this machine: unpacking it into the target folder"
        ));
        unpacked::add(workspace, &package, program)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(list: &[&str]) -> Packages {
        list.iter().map(|name| (*name).to_owned()).collect()
    }

    fn everything_missing() -> Missing {
        Missing {
            ebpf: Some(NoEbpf { compilers: Vec::new(), no_linker: true }),
            tools: vec![tools::NAMESPACE_TOOLS[8]],
        }
    }

    #[test]
    fn the_first_way_whose_packages_can_all_be_had_is_installed_in_one_go() {
        let ways =
            [names(&["rustc-web", "llvm-22-dev"]), names(&["rustc", "llvm-22-dev"]), names(&["rustc"])];
        let available = names(&["rustc", "llvm-22-dev", "bpftool"]);
        let plan = everything_missing().plan(&ways, &available);
        assert_eq!(plan, Plan { packages: available, ..Plan::default() });
    }

    #[test]
    fn a_machine_without_these_packages_is_told_what_to_type() {
        let ways = [names(&["rustc-web", "llvm-22-dev"])];
        let plan = everything_missing().plan(&ways, &names(&["rustc-web", "linux-tools-common"]));
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
    fn a_compiler_without_a_linker_needs_only_that() {
        let ebpf = Some(NoEbpf { compilers: vec![23], no_linker: true });
        let plan = Missing { ebpf, tools: Vec::new() }.plan(&[], &Packages::new());
        assert_eq!(plan, Plan { no_linker: true, ..Plan::default() });
    }

    #[test]
    fn a_machine_that_cannot_have_a_browser_does_without() {
        let browser = tools::NAMESPACE_TOOLS.iter().copied().find(|tool| tool.name == "chromium");
        let missing = |tool| Missing { tools: vec![tool], ..Missing::default() };
        let without = missing(browser.unwrap()).plan(&[], &Packages::new());
        assert!(without.is_done() && without.without == ["chromium"]);
        let can_be_had = missing(browser.unwrap()).plan(&[], &names(&["chromium"]));
        assert!(!can_be_had.is_done() && can_be_had.packages == names(&["chromium"]));
        assert!(!missing(tools::NAMESPACE_TOOLS[0]).plan(&[], &Packages::new()).is_done());
    }

    #[test]
    fn only_what_is_missing_is_installed() {
        let missing = Missing { tools: vec![tools::NAMESPACE_TOOLS[0]], ..Missing::default() };
        assert_eq!(missing.plan(&[], &names(&["iproute2"])).packages, names(&["iproute2"]));
        assert_eq!(missing.plan(&[], &names(&[])).no_tools, ["ip"]);
    }
}
