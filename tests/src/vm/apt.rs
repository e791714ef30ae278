//! A private apt: its own state, lists and sources, so that the machine's apt is never touched.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use super::{
    Error, Mirrors, Suite,
    command::{output_of, stdout_of},
    error::IoContext,
};

/// The keys that sign Debian's archives.
const KEYRING: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";
/// The key that signs Ubuntu's (2018, fingerprint F6EC B376 2474 EDA9 D21B 7022 8719 20D1 991B C93C), from its package
/// ubuntu-keyring: Debian has none that has it.
const UBUNTU_KEY: &[u8] = include_bytes!("ubuntu-archive-key.gpg");

/// An apt that knows one suite only.
#[derive(Debug)]
pub(super) struct Apt {
    dir: PathBuf,
    suite: Suite,
}

impl Apt {
    /// Writes the configuration below `dir`.
    pub(super) fn new(dir: &Path, suite: Suite, mirrors: &Mirrors) -> Result<Apt, Error> {
        if suite.is_debian() && !Path::new(KEYRING).exists() {
            return Err(Error::MissingPrograms {
                programs: KEYRING.to_owned(),
                packages: "debian-archive-keyring".to_owned(),
            });
        }
        for sub in ["state/lists/partial", "cache/archives/partial", "empty"] {
            let sub = dir.join(sub);
            fs::create_dir_all(&sub).context("create", &sub)?;
        }
        let apt = Apt { dir: dir.to_owned(), suite };
        let keyring = if suite.is_debian() { PathBuf::from(KEYRING) } else { dir.join("ubuntu.gpg") };
        if !suite.is_debian() {
            fs::write(&keyring, UBUNTU_KEY).context("write", &keyring)?;
        }
        let dump = output_of(Command::new("apt-config").arg("dump"))?;
        let transport = transport_settings(&String::from_utf8_lossy(&dump.stdout));
        for (name, text) in [
            ("apt.conf", configuration(&dir.display().to_string(), suite, &transport)),
            ("sources.list", sources_list(suite, mirrors, &keyring.display().to_string())),
        ] {
            let path = dir.join(name);
            fs::write(&path, text).context("write", &path)?;
        }
        Ok(apt)
    }

    /// Fetches the suite's package lists, checking their signature.
    pub(super) fn update(&self) -> Result<(), Error> {
        // Without this option apt takes a list that it could not fetch for a mere warning.
        stdout_of(self.command("apt-get").args(["-q", "-o", "APT::Update::Error-Mode=any", "update"]))
            .map(drop)
    }

    /// The names of the packages that the suite's current kernel consists of.
    pub(super) fn kernel_packages(&self) -> Result<Vec<String>, Error> {
        let metapackage = self.suite.metapackage();
        let depends =
            stdout_of(self.command("apt-cache").args(["depends", "--recurse", "--important", metapackage]))?;
        let packages = kernel_packages(&depends);
        if packages.is_empty() {
            return Err(Error::Unexpected(format!("{metapackage} depends on no kernel package")));
        }
        Ok(packages)
    }

    /// The file names (with versions) that [`Apt::download`] would write.
    pub(super) fn file_names(&self, packages: &[String]) -> Result<Vec<String>, Error> {
        let uris = stdout_of(self.command("apt-get").args(["download", "--print-uris"]).args(packages))?;
        Ok(uris.lines().filter_map(|line| line.split_whitespace().nth(1)).map(str::to_owned).collect())
    }

    /// Downloads the packages into `folder`, checking them against the signed lists.
    pub(super) fn download(&self, packages: &[String], folder: &Path) -> Result<(), Error> {
        stdout_of(self.command("apt-get").args(["-q", "download"]).args(packages).current_dir(folder))
            .map(drop)
    }

    fn command(&self, program: &str) -> Command {
        let mut command = Command::new(program);
        command.env("APT_CONFIG", self.dir.join("apt.conf")).env("LC_ALL", "C");
        command
    }
}

/// The machine's settings on how to reach the network (proxies, certificates), from `apt-config dump`: all
/// others, hooks among them, stay out.
fn transport_settings(dump: &str) -> String {
    let wanted = ["Acquire::http::", "Acquire::https::"];
    dump.lines().filter(|line| wanted.iter().any(|start| line.starts_with(start))).fold(
        String::new(),
        |mut text, line| {
            text.push_str(line);
            text.push('\n');
            text
        },
    )
}

fn configuration(dir: &str, suite: Suite, transport: &str) -> String {
    let mut text = format!(
        r#"Dir::State "{dir}/state";
Dir::State::status "/dev/null";
Dir::Cache "{dir}/cache";
Dir::Etc::sourcelist "{dir}/sources.list";
Dir::Etc::sourceparts "{dir}/empty";
Dir::Etc::main "/dev/null";
Dir::Etc::parts "{dir}/empty";
Dir::Etc::preferences "/dev/null";
Dir::Etc::preferencesparts "{dir}/empty";
APT::Architecture "amd64";
APT::Architectures {{ "amd64"; }};
APT::Sandbox::User "root";
Acquire::Languages "none";
Acquire::http::Timeout "30";
Acquire::https::Timeout "30";
"#
    );
    if !suite.check_date() {
        text.push_str("Acquire::Check-Date \"false\";\n");
    }
    text.push_str(transport);
    text
}

fn sources_list(suite: Suite, mirrors: &Mirrors, keyring: &str) -> String {
    let options = format!("[arch=amd64 signed-by={keyring}]");
    let mut text = format!("deb {options} {} {suite} main\n", mirrors.main);
    if let Some(security) = mirrors.security.as_ref().filter(|_| suite.has_security()) {
        text.push_str(&format!("deb {options} {security} {suite}-security main\n"));
    }
    text
}

/// Picks the kernel's own packages from `apt-cache depends --recurse`, whose unindented lines are package
/// names: one `linux-image-VERSION` up to trixie, then split into image, base (configuration, list of
/// built-in modules), binary (the image itself) and modules. Ubuntu's modules are in two packages.
fn kernel_packages(depends: &str) -> Vec<String> {
    let is_kernel = |name: &&str| {
        ["linux-image-", "linux-base-", "linux-binary-", "linux-modules-", "linux-modules-extra-"]
            .iter()
            .filter_map(|prefix| name.strip_prefix(prefix))
            .any(|version| version.starts_with(|first: char| first.is_ascii_digit()))
    };
    depends.lines().filter(is_kernel).map(str::to_owned).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_package_or_split_packages() {
        let bookworm = "linux-image-cloud-amd64\n  Depends: linux-image-6.1.0-56-cloud-amd64\n\
                        linux-image-6.1.0-56-cloud-amd64\n  Depends: kmod\nkmod\nlinux-base\n";
        assert_eq!(kernel_packages(bookworm), ["linux-image-6.1.0-56-cloud-amd64"]);
        let sid = "linux-image-cloud-amd64\nlinux-base-cloud-amd64\nlinux-image-7.2.13+deb14-cloud-amd64\n\
                   linux-base-7.2.13+deb14-cloud-amd64\nlinux-binary-7.2.13+deb14-cloud-amd64\n\
                   linux-modules-7.2.13+deb14-cloud-amd64\n";
        let of_sid = ["image", "base", "binary", "modules"]
            .map(|part| format!("linux-{part}-7.2.13+deb14-cloud-amd64"));
        assert_eq!(kernel_packages(sid), of_sid);
    }

    #[test]
    fn only_network_settings_are_taken_over() {
        let dump = "APT::Update::Post-Invoke:: \"rm -f /var/cache/x\";\nAcquire::http::Proxy \"http://p.test\";\n\
                    Acquire::GzipIndexes \"true\";\nDir::Etc \"etc/apt\";\n";
        assert_eq!(transport_settings(dump), "Acquire::http::Proxy \"http://p.test\";\n");
    }

    #[test]
    fn every_source_is_signed_and_sid_has_no_security() {
        let mirrors = Mirrors::at("http://m.test/debian");
        let bullseye = sources_list(Suite::Bullseye, &mirrors, KEYRING);
        assert!(bullseye.contains("http://m.test/debian-security bullseye-security main"));
        assert!(bullseye.lines().all(|line| line.contains("signed-by=")));
        assert_eq!(sources_list(Suite::Sid, &mirrors, KEYRING).lines().count(), 1);
    }

    #[test]
    fn ubuntus_kernel_has_its_modules_in_other_packages() {
        let depends = "linux-image-generic\n  Depends: linux-firmware\nlinux-image-5.15.0-204-generic\n\
                       linux-image-unsigned-5.15.0-204-generic\nlinux-modules-5.15.0-204-generic\n\
                       linux-modules-extra-5.15.0-204-generic\nlinux-firmware\n";
        let packages = ["linux-image-", "linux-modules-", "linux-modules-extra-"]
            .map(|part| format!("{part}5.15.0-204-generic"));
        assert_eq!(kernel_packages(depends), packages);
    }

    #[test]
    fn only_sid_skips_the_date_check() {
        assert!(configuration("/c", Suite::Sid, "").contains("Check-Date \"false\""));
        assert!(!configuration("/c", Suite::Bullseye, "").contains("Check-Date"));
    }
}
