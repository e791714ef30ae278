//! Which Debian mirror to use: the one that this machine's own apt sources name.

use std::{fs, path::Path};

use super::Suite;

/// The archives that kernels come from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mirrors {
    /// The main archive, such as `http://HOST/debian`.
    pub main: String,
    /// The security archive, where there is one.
    pub security: Option<String>,
}

/// One source of apt's, reduced to what tells a Debian mirror from others.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
struct Source {
    uris: Vec<String>,
    suites: Vec<String>,
    components: Vec<String>,
    signed_by: Option<String>,
}

impl Mirrors {
    /// Reads `/etc/apt/sources.list` and `/etc/apt/sources.list.d`; `None` when they name no Debian mirror.
    pub fn of_this_machine() -> Option<Mirrors> {
        let apt = Path::new("/etc/apt");
        let mut files = vec![apt.join("sources.list")];
        if let Ok(entries) = fs::read_dir(apt.join("sources.list.d")) {
            files.extend(entries.filter_map(|entry| Some(entry.ok()?.path())));
        }
        files.sort();
        let mut sources = Vec::new();
        for file in files {
            let Ok(text) = fs::read_to_string(&file) else { continue };
            match file.extension().and_then(|extension| extension.to_str()) {
                Some("list") => sources.extend(parse_one_line(&text)),
                Some("sources") => sources.extend(parse_deb822(&text)),
                _ => {}
            }
        }
        choose(&sources)
    }

    /// Ubuntu's own archive: a Debian machine's sources name no mirror of it.
    #[must_use]
    pub fn of_ubuntu() -> Mirrors {
        let main = "http://archive.ubuntu.com/ubuntu".to_owned();
        Mirrors { security: Some(main.clone()), main }
    }

    /// The mirror at `main`, such as `http://HOST/debian`, and the security archive that by convention lies
    /// beside it.
    pub fn at(main: &str) -> Mirrors {
        let main = main.trim_end_matches('/');
        let security =
            main.strip_suffix("/debian").map(|host_and_path| format!("{host_and_path}/debian-security"));
        Mirrors { main: main.to_owned(), security }
    }
}

/// Reads the one-line format: `deb [option=value ...] URI SUITE COMPONENT...` (sources.list(5)).
fn parse_one_line(text: &str) -> Vec<Source> {
    text.lines().filter_map(parse_line).collect()
}

fn parse_line(line: &str) -> Option<Source> {
    let rest = line.split('#').next()?.trim().strip_prefix("deb")?;
    // Not `deb-src`.
    let rest = rest.strip_prefix(char::is_whitespace)?.trim_start();
    let (options, rest) = match rest.strip_prefix('[') {
        Some(bracketed) => bracketed.split_once(']')?,
        None => ("", rest),
    };
    let mut words = rest.split_whitespace().map(str::to_owned);
    let signed_by = options.split_whitespace().find_map(|option| option.strip_prefix("signed-by="));
    Some(Source {
        uris: vec![words.next()?],
        suites: vec![words.next()?],
        components: words.collect(),
        signed_by: signed_by.map(str::to_owned),
    })
}

/// Reads the deb822 format: stanzas of `Field: values`, continued on indented lines (sources.list(5)).
fn parse_deb822(text: &str) -> Vec<Source> {
    let mut sources = vec![(Source::default(), true)];
    let mut field = String::new();
    for line in text.lines().filter(|line| !line.starts_with('#')) {
        if line.trim().is_empty() {
            sources.push((Source::default(), true));
            continue;
        }
        let values = if line.starts_with(char::is_whitespace) {
            line
        } else if let Some((name, values)) = line.split_once(':') {
            field = name.trim().to_ascii_lowercase();
            values
        } else {
            continue;
        };
        let Some((source, wanted)) = sources.last_mut() else { continue };
        let words = values.split_whitespace().map(str::to_owned);
        match field.as_str() {
            "uris" => source.uris.extend(words),
            "suites" => source.suites.extend(words),
            "components" => source.components.extend(words),
            "signed-by" => source.signed_by.get_or_insert_default().push_str(values.trim()),
            "types" => *wanted &= words.into_iter().any(|word| word == "deb"),
            "enabled" => *wanted &= values.trim() != "no",
            _ => {}
        }
    }
    sources
        .into_iter()
        .filter(|(source, wanted)| *wanted && !source.uris.is_empty())
        .map(|(s, _)| s)
        .collect()
}

/// Picks the Debian mirrors from all of apt's sources.
fn choose(sources: &[Source]) -> Option<Mirrors> {
    let debian = || sources.iter().filter(|source| is_debian(source));
    let with_suite = |wanted: fn(&str) -> bool| {
        let mut uris: Vec<&str> = debian()
            .filter(|source| source.suites.iter().any(|suite| wanted(suite)))
            .filter_map(|source| source.uris.first())
            .map(|uri| uri.trim_end_matches('/'))
            .filter(|uri| ["http:", "https:", "file:"].iter().any(|scheme| uri.starts_with(scheme)))
            .collect();
        // The usual path first, should some other archive look like Debian's.
        uris.sort_by_key(|uri| !uri.contains("/debian"));
        uris.first().map(|&uri| uri.to_owned())
    };
    let main = with_suite(|suite| is_debian_suite(suite) && !is_security(suite))?;
    let beside = Mirrors::at(&main);
    Some(Mirrors { security: with_suite(is_security).or(beside.security), main })
}

/// A third party's archive may use Debian's suite names, but not its signing key.
fn is_debian(source: &Source) -> bool {
    source.components.iter().any(|component| component == "main")
        && source.suites.iter().any(|suite| is_debian_suite(suite))
        && source.signed_by.as_deref().is_none_or(|key| key.contains("debian-archive"))
}

fn is_debian_suite(suite: &str) -> bool {
    const OTHERS: [&str; 7] = ["stable", "oldstable", "oldoldstable", "testing", "unstable", "forky", "duke"];
    let base = suite.split(['-', '/']).next().unwrap_or_default();
    OTHERS.contains(&base) || Suite::ALL.iter().any(|known| known.is_debian() && known.name() == base)
}

fn is_security(suite: &str) -> bool {
    suite.ends_with("-security")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mirrors(main: &str, security: &str) -> Option<Mirrors> {
        Some(Mirrors { main: main.to_owned(), security: Some(security.to_owned()) })
    }

    #[test]
    fn one_line_sources() {
        let text = "# deb http://off.test/debian sid main\n\
                    deb-src http://src.test/debian bookworm main\n\
                    deb http://other.test/linux/debian bookworm stable\n\
                    deb [arch=amd64 signed-by=/etc/other.gpg] http://third.test/debian bookworm main\n\
                    deb [arch=amd64] http://mirror.test/debian/ bookworm main contrib # mine\n\
                    deb http://sec.test/debian-security bookworm-security main\n";
        assert_eq!(
            choose(&parse_one_line(text)),
            mirrors("http://mirror.test/debian", "http://sec.test/debian-security")
        );
    }

    #[test]
    fn deb822_sources() {
        let text = "Types: deb deb-src\nURIs: http://mirror.test/debian\nSuites: bookworm\n bookworm-updates\n\
                    # a comment inside\nComponents: main\nSigned-By: /usr/share/keyrings/debian-archive-keyring.gpg\n\
                    \nEnabled: no\nTypes: deb\nURIs: http://off.test/debian-security\nSuites: bookworm-security\n\
                    Components: main\n\nTypes: deb\nURIs: https://node.test/x\nSuites: nodistro\nComponents: main\n";
        // The security archive is off: the one beside the main archive is used.
        assert_eq!(
            choose(&parse_deb822(text)),
            mirrors("http://mirror.test/debian", "http://mirror.test/debian-security")
        );
    }

    #[test]
    fn ubuntu_has_no_debian_mirror() {
        assert_eq!(choose(&parse_one_line("deb http://archive.test/ubuntu noble main\n")), None);
    }

    #[test]
    fn an_unusual_mirror_has_no_security_beside_it() {
        assert_eq!(Mirrors::at("http://m.test/pool-x/").security, None);
        assert_eq!(Mirrors::at("http://m.test/debian/").security.unwrap(), "http://m.test/debian-security");
    }
}
