//! Tools whose packages do not fit into this machine: another package would have to go for them, and we remove
//! nothing. They are unpacked into the target folder instead, with what they need, and run from there.
//!
//! Seen with `qemu-system-x86` on a machine whose `qemu-utils` came from a newer release.

use std::{fs, os::unix::fs::PermissionsExt as _, path::Path, process::Command};

use anyhow::{Context as _, Result, bail};

use crate::{apt, process, workspace::Workspace};

/// The folders below the package's root that the loader looks for libraries in.
const LIBRARIES: [&str; 3] = ["usr/lib/x86_64-linux-gnu", "usr/lib", "lib/x86_64-linux-gnu"];

/// Unpacks `package` and what it needs beyond this machine's packages, and puts a script that starts `program` into
/// the target folder's `tools/bin`.
///
/// # Errors
/// When the packages cannot be fetched or unpacked, or do not have the program.
pub(crate) fn add(workspace: &Workspace, package: &str, program: &str) -> Result<()> {
    let folder = workspace.target.join("tools/unpacked").join(package);
    let (archives, root) = (folder.join("archives"), folder.join("root"));
    let _fresh = fs::remove_dir_all(&folder);
    fs::create_dir_all(archives.join("partial"))
        .and_then(|()| fs::create_dir_all(&root))
        .with_context(|| format!("cannot make {}", folder.display()))?;
    apt::download(package, &folder.join("status"), &archives)?;
    for entry in fs::read_dir(&archives).with_context(|| format!("cannot read {}", archives.display()))? {
        let file = entry?.path();
        if file.extension().is_some_and(|extension| extension == "deb") {
            process::output(Command::new("dpkg-deb").arg("--extract").arg(&file).arg(&root))?;
        }
    }
    let _tidied = fs::remove_dir_all(&archives);
    let Some(binary) =
        ["usr/bin", "usr/sbin"].map(|bin| root.join(bin).join(program)).into_iter().find(|at| at.exists())
    else {
        bail!("the package {package} has no program {program}");
    };
    let bin = workspace.target.join("tools/bin");
    let script = bin.join(program);
    fs::create_dir_all(&bin)
        .and_then(|()| fs::write(&script, starter(&root, &binary)))
        .and_then(|()| fs::set_permissions(&script, fs::Permissions::from_mode(0o755)))
        .with_context(|| format!("cannot write {}", script.display()))
}

/// The script: the program with its own libraries, which other programs must not see.
fn starter(root: &Path, binary: &Path) -> String {
    let libraries = LIBRARIES.map(|folder| root.join(folder).display().to_string()).join(":");
    format!(
        "#!/bin/sh\nLD_LIBRARY_PATH={}${{LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}} exec {} \"$@\"\n",
        quoted(&libraries),
        quoted(&binary.display().to_string())
    )
}

/// A word for the shell.
fn quoted(word: &str) -> String {
    format!("'{}'", word.replace('\'', r"'\''"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_script_takes_any_path() {
        let script = starter(Path::new("/it's here"), Path::new("/it's here/usr/bin/qemu"));
        assert!(
            script.starts_with("#!/bin/sh\nLD_LIBRARY_PATH='/it'\\''s here/usr/lib/x86_64-linux-gnu:"),
            "{script}"
        );
        assert!(script.ends_with(" exec '/it'\\''s here/usr/bin/qemu' \"$@\"\n"), "{script}");
    }
}
