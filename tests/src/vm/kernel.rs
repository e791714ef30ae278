//! A suite's current kernel: fetched from the Debian archive once, then kept in the cache.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use super::{
    Cache, Error, Mirrors, Suite,
    apt::Apt,
    cache::{SuiteLock, remove_dir},
    command::stdout_of,
    error::IoContext,
    host, modules,
};

/// A kernel image with its modules, uncompressed and indexed, in the cache.
#[derive(Debug, Clone)]
pub struct Kernel {
    /// The suite it is from.
    pub suite: Suite,
    /// The release, as `uname -r` prints it.
    pub release: String,
    /// The package's version, such as `6.1.192-2`.
    pub version: String,
    folder: PathBuf,
}

/// The file in the kernel's folder that names the packages it was made of, one file name per line.
const PACKAGES: &str = "packages";

impl Kernel {
    /// The kernel that is in the cache, if there is one. Hold the suite's lock.
    pub fn cached(cache: &Cache, suite: Suite) -> Option<Kernel> {
        let folder = folder(cache, suite);
        let packages = fs::read_to_string(folder.join(PACKAGES)).ok()?;
        let (release, version) = packages.lines().find_map(parse_image_file_name)?;
        let kernel = Kernel { suite, release, version, folder };
        let complete = [kernel.image(), kernel.config(), kernel.modules()].iter().all(|path| path.exists());
        complete.then_some(kernel)
    }

    /// The cached kernel or, when there is none, a fetched one.
    ///
    /// # Errors
    /// [`Error::Fetch`] when it is not cached and cannot be fetched.
    pub fn cached_or_fetched(
        cache: &Cache,
        lock: &SuiteLock,
        suite: Suite,
        mirrors: Option<&Mirrors>,
    ) -> Result<Kernel, Error> {
        match Self::cached(cache, suite) {
            Some(kernel) => Ok(kernel),
            None => Self::fetch(cache, lock, suite, mirrors),
        }
    }

    /// Asks the mirror for the suite's current kernel and downloads it unless it is the cached one. A failed
    /// attempt is repeated once; the cached kernel stays until its successor is complete.
    ///
    /// # Errors
    /// [`Error::Fetch`], or [`Error::MissingPrograms`] when this machine lacks what unpacking takes.
    pub fn fetch(
        cache: &Cache,
        _lock: &SuiteLock,
        suite: Suite,
        mirrors: Option<&Mirrors>,
    ) -> Result<Kernel, Error> {
        host::require(&host::HOST_PROGRAMS)?;
        let attempt = || {
            let mirrors = mirrors.ok_or_else(|| {
                Error::Unexpected("apt's sources name no Debian mirror; give one with --mirror".to_owned())
            })?;
            fetch(cache, suite, mirrors)
        };
        attempt().or_else(|_| attempt()).map_err(|source| Error::Fetch { suite, source: Box::new(source) })
    }

    /// The image to boot.
    pub fn image(&self) -> PathBuf {
        self.folder.join("vmlinuz")
    }

    /// The kernel's build configuration.
    pub(super) fn config(&self) -> PathBuf {
        self.folder.join("config")
    }

    /// The folder that has the modules' `kernel/` and indexes in it.
    pub(super) fn modules(&self) -> PathBuf {
        module_folder(&self.folder, &self.release)
    }
}

fn folder(cache: &Cache, suite: Suite) -> PathBuf {
    cache.suite_dir(suite).join("kernel")
}

fn module_folder(kernel: &Path, release: &str) -> PathBuf {
    kernel.join("lib/modules").join(release)
}

fn fetch(cache: &Cache, suite: Suite, mirrors: &Mirrors) -> Result<Kernel, Error> {
    let suite_dir = cache.suite_dir(suite);
    let apt = Apt::new(&suite_dir.join("apt"), suite, mirrors)?;
    apt.update()?;
    let packages = apt.kernel_packages()?;
    let listing: String = apt.file_names(&packages)?.iter().map(|name| format!("{name}\n")).collect();

    let folder = folder(cache, suite);
    let up_to_date = Kernel::cached(cache, suite).is_some()
        && fs::read_to_string(folder.join(PACKAGES)).is_ok_and(|cached| cached == listing);
    if !up_to_date {
        let work = suite_dir.join("kernel.new");
        remove_dir(&work)?;
        let download = work.join("download");
        fs::create_dir_all(&download).context("create", &download)?;
        apt.download(&packages, &download)?;
        unpack(&work, &download, &listing)?;
        remove_dir(&folder)?;
        fs::rename(&work, &folder).context("rename", &work)?;
    }
    Kernel::cached(cache, suite)
        .ok_or_else(|| Error::Unexpected(format!("no kernel image among the packages: {}", listing.trim())))
}

/// Turns the downloaded packages into the kernel's folder: `vmlinuz`, `lib/modules/RELEASE`, and last the
/// list of packages, which marks it as complete.
fn unpack(work: &Path, download: &Path, listing: &str) -> Result<(), Error> {
    let (release, _) = listing
        .lines()
        .find_map(parse_image_file_name)
        .ok_or_else(|| Error::Unexpected("no linux-image package".to_owned()))?;
    let tree = download.join("tree");
    for entry in fs::read_dir(download).context("list", download)? {
        let path = entry.context("list", download)?.path();
        if path.extension().is_some_and(|extension| extension == "deb") {
            stdout_of(Command::new("dpkg").arg("-x").arg(&path).arg(&tree))?;
        }
    }
    // Up to bookworm below /lib, then below /usr/lib, where in sid the image and its
    // configuration are too.
    let modules_now = first_existing(&[
        tree.join("usr/lib/modules").join(&release),
        tree.join("lib/modules").join(&release),
    ])?;
    for name in ["vmlinuz", "config"] {
        let from = first_existing(&[tree.join(format!("boot/{name}-{release}")), modules_now.join(name)])?;
        fs::rename(&from, work.join(name)).context("move", &from)?;
    }
    let modules_to = module_folder(work, &release);
    if let Some(parent) = modules_to.parent() {
        fs::create_dir_all(parent).context("create", parent)?;
    }
    fs::rename(&modules_now, &modules_to).context("move", &modules_now)?;
    remove_dir(download)?;
    modules::decompress(&modules_to)?;
    modules::index(work, &release)?;
    let packages = work.join(PACKAGES);
    fs::write(&packages, listing).context("write", &packages)
}

fn first_existing(candidates: &[PathBuf]) -> Result<PathBuf, Error> {
    candidates.iter().find(|path| path.exists()).cloned().ok_or_else(|| {
        let names: Vec<String> = candidates.iter().map(|path| path.display().to_string()).collect();
        Error::Unexpected(format!("the kernel packages have none of {}", names.join(", ")))
    })
}

/// Release and version from `linux-image-RELEASE_VERSION_amd64.deb`; apt writes a colon as `%3a`.
fn parse_image_file_name(name: &str) -> Option<(String, String)> {
    let mut parts = name.strip_prefix("linux-image-")?.split('_');
    Some((parts.next()?.to_owned(), parts.next()?.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn release_and_version_from_the_file_name() {
        assert_eq!(
            parse_image_file_name("linux-image-6.1.0-56-cloud-amd64_6.1.192-2_amd64.deb"),
            Some(("6.1.0-56-cloud-amd64".to_owned(), "6.1.192-2".to_owned()))
        );
        assert_eq!(parse_image_file_name("linux-modules-7.2.13_7.2.13-1_amd64.deb"), None);
    }

    #[test]
    fn an_incomplete_kernel_is_not_cached() {
        let root = tempfile::tempdir().unwrap();
        let cache = Cache::open(root.path()).unwrap();
        let folder = folder(&cache, Suite::Sid);
        fs::create_dir_all(module_folder(&folder, "7.2.13")).unwrap();
        for name in ["vmlinuz", "config"] {
            fs::write(folder.join(name), "").unwrap();
        }
        assert!(Kernel::cached(&cache, Suite::Sid).is_none());
        fs::write(folder.join(PACKAGES), "linux-image-7.2.13_7.2.13-1_amd64.deb\n").unwrap();
        assert_eq!(Kernel::cached(&cache, Suite::Sid).unwrap().version, "7.2.13-1");
        fs::remove_file(folder.join("config")).unwrap();
        assert!(Kernel::cached(&cache, Suite::Sid).is_none());
    }
}
