//! The guest's root file system: a base per kernel, built from the host's programs and kept in the cache.

use std::{
    fs::{self, File},
    io::{BufWriter, Write},
    path::{Path, PathBuf},
    process::Command,
};

use super::{
    Cache, Error, Job, Kernel,
    cache::{SuiteLock, remove_dir},
    command::stdout_of,
    cpio::Archive,
    error::IoContext,
    host, modules,
};

/// The guest's first process.
const INIT: &str = include_str!("guest-init.sh");
/// Folders that the host's programs load plug-ins or data from, where they exist.
const DATA: [&str; 8] = [
    "/usr/lib/x86_64-linux-gnu/xtables",
    "/usr/lib/x86_64-linux-gnu/tc",
    "/usr/lib/tc",
    "/etc/iproute2",
    "/usr/share/iproute2",
    "/etc/protocols",
    "/etc/services",
    "/etc/ethertypes",
];
/// The names that Debian's alternatives give to the nft variants; fixed here, so that a host set to legacy
/// makes no other guest.
const IPTABLES_NAMES: [&str; 6] =
    ["iptables", "iptables-save", "iptables-restore", "ip6tables", "ip6tables-save", "ip6tables-restore"];
/// Users that programs look up by name: tcpdump gives up root for a user of its own.
const PASSWD: &str = "root:x:0:0:root:/root:/bin/sh\n\
                      tcpdump:x:100:100::/nonexistent:/bin/false\n\
                      nobody:x:65534:65534::/nonexistent:/bin/false\n";
const GROUP: &str = "root:x:0:\ntcpdump:x:100:\nnogroup:x:65534:\n";

/// One kernel's base initramfs, uncompressed: a second archive can follow it.
#[derive(Debug, Clone)]
pub struct Initramfs {
    base: PathBuf,
}

impl Initramfs {
    /// The cached base, or a new one when there is none or when the kernel, the host's programs or the recipe
    /// have changed since.
    ///
    /// # Errors
    /// When a program is missing on the host, or on a failure to read or write.
    pub fn base(cache: &Cache, _lock: &SuiteLock, kernel: &Kernel) -> Result<Initramfs, Error> {
        host::require(&host::HOST_PROGRAMS)?;
        host::require(&host::GUEST_PROGRAMS)?;
        let dir = cache.suite_dir(kernel.suite);
        let (base, recipe_file) = (dir.join("base.cpio"), dir.join("base.recipe"));
        let mut archive = programs()?;
        skeleton(&mut archive);
        archive.host_file(format!("/boot/config-{}", kernel.release), &kernel.config())?;
        let recipe =
            format!("{} {}\n{}{}", kernel.release, kernel.version, modules::recipe(), archive.describe());
        let current = fs::read_to_string(&recipe_file).is_ok_and(|cached| cached == recipe);
        if !current || !base.exists() {
            // Without its recipe a base that is half written counts for nothing.
            let _ = fs::remove_file(&recipe_file);
            let staging = dir.join("staging");
            remove_dir(&staging)?;
            modules::stage(&kernel.modules(), &kernel.release, &staging)?;
            archive.host_tree(Path::new("/usr/lib/modules"), &staging.join("lib/modules"))?;
            let file = File::create(&base).context("create", &base)?;
            write(&archive, file, &base)?;
            remove_dir(&staging)?;
            fs::write(&recipe_file, recipe).context("write", &recipe_file)?;
        }
        Ok(Initramfs { base })
    }

    /// Writes the initramfs of one boot: the base with the job's archive behind it.
    pub(super) fn with_job(&self, kernel: &Kernel, job: &Job, path: &Path) -> Result<(), Error> {
        let archive = job.archive(kernel.suite)?;
        fs::copy(&self.base, path).context("copy", &self.base)?;
        let file = File::options().append(true).open(path).context("open", path)?;
        write(&archive, file, path)
    }
}

fn write(archive: &Archive, file: File, path: &Path) -> Result<(), Error> {
    let mut out = BufWriter::with_capacity(1 << 20, file);
    archive.write_to(&mut out)?;
    out.flush().context("write", path)
}

/// Where a host's path goes in the guest, in which /bin, /sbin, /lib and /lib64 are links into /usr: an entry
/// below the links' own names would replace them.
pub(super) fn guest_path(path: &Path) -> PathBuf {
    let merged = ["/bin", "/sbin", "/lib", "/lib64"].iter().any(|link| path.starts_with(link));
    match path.strip_prefix("/") {
        Ok(inside) if merged => Path::new("/usr").join(inside),
        _ => path.to_owned(),
    }
}

/// The host's programs, their libraries and data, and busybox under the names that are still free.
fn programs() -> Result<Archive, Error> {
    let mut archive = Archive::default();
    let mut elf_files = Vec::new();
    for (name, _) in host::GUEST_PROGRAMS {
        let Some(found) = host::find(name) else { continue };
        // Many names are links to one program that looks at the name it was called by.
        let program = fs::canonicalize(&found).context("find", &found)?;
        let (link, target) = (guest_path(&found), guest_path(&program));
        archive.host_file(&target, &program)?;
        if link != target {
            archive.symlink(link, target);
        }
        elf_files.push(program);
    }
    for name in IPTABLES_NAMES {
        archive.symlink(Path::new("/usr/sbin").join(name), "xtables-nft-multi");
    }
    for path in DATA.map(Path::new).into_iter().filter(|path| path.exists()) {
        archive.host_tree(path, path)?;
        if path.is_dir() {
            for entry in path.read_dir().context("list", path)? {
                let file = entry.context("list", path)?.path();
                if file.is_file() && host::is_elf(&file)? {
                    elf_files.push(file);
                }
            }
        }
    }
    for library in host::libraries(&elf_files)? {
        archive.host_file(guest_path(&library), &library)?;
    }
    // dash, not busybox's shell: that one prefers its own `ip` and `ping` to the real ones.
    archive.symlink("/usr/bin/sh", "dash");
    for applet in stdout_of(Command::new("busybox").arg("--list"))?.lines() {
        let taken = ["/usr/bin", "/usr/sbin"].iter().any(|dir| archive.contains(Path::new(dir).join(applet)));
        if !taken {
            archive.symlink(Path::new("/usr/bin").join(applet), "/bin/busybox");
        }
    }
    Ok(archive)
}

/// Everything that is not a program: folders, links, device nodes, init and a few files of /etc.
fn skeleton(archive: &mut Archive) {
    for folder in ["/proc", "/sys", "/tmp", "/run", "/root", "/mnt", "/var/lib", "/var/log", "/etc"] {
        archive.folder(folder);
    }
    for (link, target) in [
        ("bin", "usr/bin"),
        ("sbin", "usr/sbin"),
        ("lib", "usr/lib"),
        ("lib64", "usr/lib64"),
        ("var/run", "/run"),
    ] {
        archive.symlink(link, target);
    }
    archive.symlink("etc/mtab", "/proc/self/mounts");
    // The kernel opens the console before anything is mounted.
    archive.char_device("dev/console", 0o600, 5, 1);
    archive.char_device("dev/null", 0o666, 1, 3);
    archive.text("init", 0o755, INIT);
    archive.text("etc/passwd", 0o644, PASSWD);
    archive.text("etc/group", 0o644, GROUP);
    archive.text("etc/hosts", 0o644, "127.0.0.1 localhost\n::1 localhost\n");
    archive.text("etc/resolv.conf", 0o644, "");
    archive.text("etc/nsswitch.conf", 0o644, "passwd: files\ngroup: files\nhosts: files\nservices: files\n");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn guest_paths_are_below_usr() {
        let cases = [
            ("/bin/e2e", "/usr/bin/e2e"),
            ("/lib64/ld-linux-x86-64.so.2", "/usr/lib64/ld-linux-x86-64.so.2"),
            ("/lib/x86_64-linux-gnu/libc.so.6", "/usr/lib/x86_64-linux-gnu/libc.so.6"),
            ("/usr/bin/ip", "/usr/bin/ip"),
            ("/binary", "/binary"),
        ];
        for (host, guest) in cases {
            assert_eq!(guest_path(Path::new(host)), Path::new(guest));
        }
    }
}
