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

/// The metapackage whose dependencies are the suite's current kernel.
const METAPACKAGE: &str = "linux-image-cloud-amd64";
/// The keys that sign Debian's archives.
const KEYRING: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";

/// An apt that knows one suite only.
#[derive(Debug)]
pub(super) struct Apt {
    dir: PathBuf,
}

impl Apt {
    /// Writes the configuration below `dir`.
    pub(super) fn new(dir: &Path, suite: Suite, mirrors: &Mirrors) -> Result<Apt, Error> {
        if !Path::new(KEYRING).exists() {
            return Err(Error::MissingPrograms {
                programs: KEYRING.to_owned(),
                packages: "debian-archive-keyring".to_owned(),
            });
        }
        for sub in ["state/lists/partial", "cache/archives/partial", "empty"] {
            let sub = dir.join(sub);
            fs::create_dir_all(&sub).context("create", &sub)?;
        }
        let apt = Apt { dir: dir.to_owned() };
        let dump = output_of(Command::new("apt-config").arg("dump"))?;
        let transport = transport_settings(&String::from_utf8_lossy(&dump.stdout));
        for (name, text) in [
            ("apt.conf", configuration(&dir.display().to_string(), suite, &transport)),
            ("sources.list", sources_list(suite, mirrors)),
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
        let depends =
            stdout_of(self.command("apt-cache").args(["depends", "--recurse", "--important", METAPACKAGE]))?;
        let packages = kernel_packages(&depends);
        if packages.is_empty() {
            return Err(Error::Unexpected(format!("{METAPACKAGE} depends on no kernel package")));
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

fn sources_list(suite: Suite, mirrors: &Mirrors) -> String {
    let options = format!("[arch=amd64 signed-by={KEYRING}]");
    let mut text = format!("deb {options} {} {suite} main\n", mirrors.main);
    if let Some(security) = mirrors.security.as_ref().filter(|_| suite.has_security()) {
        text.push_str(&format!("deb {options} {security} {suite}-security main\n"));
    }
    text
}

/// Picks the kernel's own packages from `apt-cache depends --recurse`, whose unindented lines are package
/// names: one `linux-image-VERSION` up to trixie, then split into image, base (configuration, list of
/// built-in modules), binary (the image itself) and modules.
fn kernel_packages(depends: &str) -> Vec<String> {
    let is_kernel = |name: &&str| {
        ["linux-image-", "linux-base-", "linux-binary-", "linux-modules-"]
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
        let bullseye = sources_list(Suite::Bullseye, &mirrors);
        assert!(bullseye.contains("http://m.test/debian-security bullseye-security main"));
        assert!(bullseye.lines().all(|line| line.contains("signed-by=")));
        assert_eq!(sources_list(Suite::Sid, &mirrors).lines().count(), 1);
    }

    #[test]
    fn only_sid_skips_the_date_check() {
        assert!(configuration("/c", Suite::Sid, "").contains("Check-Date \"false\""));
        assert!(!configuration("/c", Suite::Bullseye, "").contains("Check-Date"));
    }
}
