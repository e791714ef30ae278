//! What one boot runs: a shell script and the files it needs.

use std::path::{Path, PathBuf};

use super::{
    Error, Suite,
    cpio::Archive,
    host::{is_elf, libraries},
    initramfs::guest_path,
};

/// Where init finds the job's script.
const SCRIPT: &str = "/job";

/// A shell script to run in the guest, with files from the host.
#[derive(Debug, Clone)]
pub struct Job {
    files: Vec<(PathBuf, PathBuf)>,
    script: String,
}

impl Job {
    /// A job that runs `script` with the guest's `/bin/sh`; its exit code is the verdict.
    pub fn new(script: impl Into<String>) -> Job {
        Job { files: Vec::new(), script: script.into() }
    }

    /// The end-to-end tests: `e2e`, and `droptrace` for it to test. With filters, those whose names contain one of them.
    pub fn tests(droptrace: &Path, e2e: &Path, only: &[String]) -> Job {
        let only = if only.is_empty() {
            String::new()
        } else {
            format!("export DROPTRACE_ONLY={}\n", quoted(&only.join(",")))
        };
        Job::new(format!("{only}exec /bin/e2e")).file(droptrace, "/bin/droptrace").file(e2e, "/bin/e2e")
    }

    /// Copies the host's file or folder to `guest`; a program's libraries come along.
    #[must_use]
    pub fn file(mut self, host: impl Into<PathBuf>, guest: impl Into<PathBuf>) -> Job {
        self.files.push((host.into(), guest.into()));
        self
    }

    /// The archive to append to the base initramfs.
    pub(super) fn archive(&self, suite: Suite) -> Result<Archive, Error> {
        let mut archive = Archive::default();
        let mut programs = Vec::new();
        for (host, guest) in &self.files {
            archive.host_tree(&guest_path(guest), host)?;
            if host.is_file() && is_elf(host)? {
                programs.push(host.clone());
            }
        }
        for library in libraries(&programs)? {
            archive.host_file(guest_path(&library), &library)?;
        }
        archive.text(SCRIPT, 0o755, self.text(suite));
        Ok(archive)
    }

    fn text(&self, suite: Suite) -> String {
        format!(
            "#!/bin/sh\nexport DROPTRACE=/bin/droptrace DROPTRACE_VM={suite} RUST_BACKTRACE=1\n{}\n",
            self.script
        )
    }
}

/// `word` as one word of a shell command.
fn quoted(word: &str) -> String {
    format!("'{}'", word.replace('\'', r"'\''"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn filters_are_one_word_whatever_is_in_them() {
        let only = ["it's; reboot".to_owned(), "b".to_owned()];
        let text = Job::tests(Path::new("/d"), Path::new("/e"), &only).text(Suite::Sid);
        assert!(text.ends_with("\nexport DROPTRACE_ONLY='it'\\''s; reboot,b'\nexec /bin/e2e\n"), "{text}");
    }

    #[test]
    fn without_filters_all_tests_run() {
        let job = Job::tests(Path::new("/d"), Path::new("/e"), &[]);
        assert!(job.text(Suite::Sid).ends_with("\nexec /bin/e2e\n"));
    }

    #[test]
    fn files_do_not_replace_the_guests_links() {
        // /bin is a link in the base: a folder of that name in the second archive would replace it.
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("file");
        std::fs::write(&file, "#!/bin/sh\n").unwrap();
        let archive = Job::new("true").file(&file, "/bin/e2e").archive(Suite::Sid).unwrap();
        assert!(archive.contains("usr/bin/e2e") && !archive.contains("bin"));
    }
}
