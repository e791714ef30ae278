//! What goes wrong with an API server: told apart, and worded.

use super::Resource;
use crate::identity::kubernetes::Status;
use crate::output::escape;
use std::error::Error;
use std::io;
use std::time::Duration;

/// The most of a server's own words that is shown, in characters.
const WORDS: usize = 300;

/// Why an answer is not what was asked for. Texts are as they came: only [`Trouble::line`] makes them fit for people.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Trouble {
    /// The configuration can't be used.
    Config(String),
    /// Nobody is reached.
    Unreachable(String),
    /// Somebody is, but it is not proven to be the server, or we not to it.
    Tls(String),
    /// It is silent for so long.
    Silent(Duration),
    /// It ended the connection before the answer's end.
    Cut(String),
    /// It answers something else than the API does.
    Nonsense(String),
    /// It answers with more bytes, or objects, than there is reason for.
    TooMuch(&'static str),
    /// There are no credentials to send.
    NoCredentials(String),
    /// It does not know the credentials (401).
    Unauthorized(Status),
    /// It knows them and does not allow that (403).
    Forbidden(Status),
    /// It does not have such objects (404).
    Missing(Status),
    /// The version asked for is too old, or the page's (410): the list is needed again.
    Gone,
    /// It does not take the question (400, 405, 422): an older server, asked for a streaming list.
    Unsupported(Status),
    /// Any other refusal.
    Refused(Status),
}

/// Troubles that are the same to people: said once until it is over.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Class {
    Config,
    Unreachable,
    Tls,
    Silent,
    Answer,
    Credentials,
    Forbidden,
    Missing,
}

impl Trouble {
    /// What an answer with that status code and body means.
    pub(super) fn of_status(code: u16, body: &[u8]) -> Self {
        let status = Status { code, ..Status::read(body) };
        match code {
            401 => Self::Unauthorized(status),
            403 => Self::Forbidden(status),
            404 => Self::Missing(status),
            410 => Self::Gone,
            400 | 405 | 422 => Self::Unsupported(status),
            _ => Self::Refused(status),
        }
    }

    /// What an `ERROR` in a watch means.
    pub(super) fn of_event(status: Status) -> Self {
        match (status.code, status.reason.as_str()) {
            (410, _) | (_, "Expired" | "Gone") => Self::Gone,
            (401, _) => Self::Unauthorized(status),
            (403, _) => Self::Forbidden(status),
            _ => Self::Refused(status),
        }
    }

    /// What an error of the client means. The reason is somewhere down its chain of sources.
    pub(super) fn of_client(error: &(dyn Error + 'static)) -> Self {
        let chain: Vec<_> = std::iter::successors(Some(error), |error| cause(*error)).collect();
        let find =
            |matches: fn(&(dyn Error + 'static)) -> Option<Self>| chain.iter().find_map(|e| matches(*e));
        let deepest = chain.last().map(ToString::to_string).unwrap_or_default();
        find(tls)
            .or_else(|| find(credentials))
            .or_else(|| find(network))
            .unwrap_or(Self::Unreachable(deepest))
    }

    /// What it is to people.
    pub(super) fn class(&self) -> Class {
        match self {
            Self::Config(_) => Class::Config,
            Self::Unreachable(_) => Class::Unreachable,
            Self::Tls(_) => Class::Tls,
            Self::Silent(_) | Self::Cut(_) => Class::Silent,
            Self::NoCredentials(_) | Self::Unauthorized(_) => Class::Credentials,
            Self::Forbidden(_) => Class::Forbidden,
            Self::Missing(_) => Class::Missing,
            Self::Nonsense(_) | Self::TooMuch(_) | Self::Gone | Self::Unsupported(_) | Self::Refused(_) => {
                Class::Answer
            }
        }
    }

    /// True if it concerns one kind only: the server is well.
    pub(super) fn is_of_one_kind(&self) -> bool {
        matches!(self, Self::Forbidden(_) | Self::Missing(_))
    }

    /// True if the server answered, and what it answered may have to do with what it was asked.
    pub(super) fn is_answer(&self) -> bool {
        matches!(self.class(), Class::Answer)
    }

    /// The line for people: what, why, what to do.
    pub(super) fn line(&self, resource: &Resource, url: &str) -> String {
        let (url, name) = (escape(url), resource.name);
        match self {
            Self::Config(why) => format!(
                "the Kubernetes API can't be asked: {}; {MEANWHILE} (--kubeconfig and --context say which one to use)",
                words(why)
            ),
            Self::Unreachable(why) => {
                format!("the Kubernetes API server does not answer at {url}: {}; {MEANWHILE}", words(why))
            }
            Self::Tls(why) => format!(
                "the connection to the Kubernetes API server at {url} is not secure, so it is not used: {}; {MEANWHILE} \
                 (certificate-authority of the kubeconfig must be what signed the server's certificate)",
                words(why)
            ),
            Self::Silent(time) => format!(
                "the Kubernetes API server at {url} is silent: no answer about {name} in {}; {MEANWHILE}",
                seconds(*time)
            ),
            Self::Cut(why) => format!(
                "the Kubernetes API server at {url} broke off its answer about {name}: {}; {MEANWHILE}",
                words(why)
            ),
            Self::Nonsense(why) => format!(
                "what answers at {url} does not answer about {name} like a Kubernetes API server: {}; {MEANWHILE}",
                words(why)
            ),
            Self::TooMuch(what) => {
                format!("the Kubernetes API server at {url} sends too much about {name}: {what}; {MEANWHILE}")
            }
            Self::NoCredentials(why) => format!(
                "there are no credentials for the Kubernetes API server at {url}: {}; {MEANWHILE} \
                 (see the user of the kubeconfig's context)",
                words(why)
            ),
            Self::Unauthorized(status) => format!(
                "the Kubernetes API server at {url} does not accept the credentials ({}): the token or certificate has \
                 expired or is another cluster's; {MEANWHILE} (`kubectl auth whoami` with the same kubeconfig tells)",
                said(status)
            ),
            Self::Forbidden(status) => format!(
                "the Kubernetes API server does not let droptrace list and watch {name} ({}): names that need them are \
                 missing; add the verbs list and watch on {name} to its ClusterRole (`kubectl auth can-i list {name} \
                 --all-namespaces` tells), it is tried again",
                said(status)
            ),
            Self::Missing(status) => format!(
                "the Kubernetes API server at {url} has no {name} ({}): names that need them are missing; it is tried again",
                said(status)
            ),
            Self::Gone => {
                format!("the Kubernetes API server at {url} keeps no version of {name}; {MEANWHILE}")
            }
            Self::Unsupported(status) | Self::Refused(status) => format!(
                "the Kubernetes API server at {url} refuses to list {name} ({}); {MEANWHILE}",
                said(status)
            ),
        }
    }
}

/// What names come from without the API.
const MEANWHILE: &str = "names come from the container runtime and /proc meanwhile; retrying";

/// Text from outside: escaped, and no longer than one wants to read.
pub(super) fn words(text: &str) -> String {
    match text.char_indices().nth(WORDS) {
        Some((end, _)) => format!("{} ...", escape(text.get(..end).unwrap_or_default())),
        None => escape(text).into_owned(),
    }
}

fn said(status: &Status) -> String {
    match words(&status.message) {
        message if message.is_empty() => status.code.to_string(),
        message => format!("{}: {message}", status.code),
    }
}

fn seconds(time: Duration) -> String {
    format!("{} s", time.as_secs_f64().ceil())
}

/// What is below an error. An [`io::Error`] hides what it was made of: its source is that one's.
fn cause<'a>(error: &'a (dyn Error + 'static)) -> Option<&'a (dyn Error + 'static)> {
    match error.downcast_ref::<io::Error>().and_then(io::Error::get_ref) {
        Some(wrapped) => Some(wrapped),
        None => error.source(),
    }
}

fn tls(error: &(dyn Error + 'static)) -> Option<Trouble> {
    error.downcast_ref::<rustls::Error>().map(|error| Trouble::Tls(error.to_string()))
}

fn credentials(error: &(dyn Error + 'static)) -> Option<Trouble> {
    match error.downcast_ref::<kube::Error>() {
        Some(kube::Error::Auth(error)) => return Some(Trouble::NoCredentials(error.to_string())),
        Some(kube::Error::RustlsTls(error)) => return Some(Trouble::Tls(error.to_string())),
        _ => {}
    }
    error.downcast_ref::<kube::client::AuthError>().map(|error| Trouble::NoCredentials(error.to_string()))
}

fn network(error: &(dyn Error + 'static)) -> Option<Trouble> {
    let io = error.downcast_ref::<io::Error>()?;
    Some(match io.kind() {
        io::ErrorKind::ConnectionReset | io::ErrorKind::UnexpectedEof | io::ErrorKind::BrokenPipe => {
            Trouble::Cut(io.to_string())
        }
        _ => Trouble::Unreachable(io.to_string()),
    })
}

#[cfg(test)]
mod tests {
    use super::super::RESOURCES;
    use super::*;

    const FORBIDDEN: &[u8] = include_bytes!("../../fixtures/forbidden.json");
    const UNAUTHORIZED: &[u8] = include_bytes!("../../fixtures/unauthorized.json");

    #[test]
    fn refusals_of_a_real_server_say_what_to_do() {
        let line = Trouble::of_status(403, FORBIDDEN).line(&RESOURCES[0], "https://a:6443");
        assert!(
            line.contains("list and watch pods (403: pods is forbidden: User \"system:anonymous\""),
            "{line}"
        );
        assert!(line.contains("kubectl auth can-i list pods --all-namespaces"), "{line}");
        let line = Trouble::of_status(401, UNAUTHORIZED).line(&RESOURCES[0], "https://a:6443");
        assert!(
            line.contains("at https://a:6443 does not accept the credentials (401: Unauthorized)"),
            "{line}"
        );
    }

    #[test]
    fn a_lying_server_reaches_no_terminal() {
        let message = format!("\u{1b}[2J{}", "x".repeat(10_000));
        let status = Status { code: 500, reason: String::new(), message };
        let line = Trouble::Refused(status).line(&RESOURCES[0], "https://a\u{202e}");
        assert!(line.contains("\\x1b[2J") && line.contains("https://a\\u{202e}"), "{line}");
        assert!(line.len() < 600 && !line.contains('\u{1b}'), "{line}");
    }

    #[test]
    fn reasons_are_found_down_the_chain() {
        let refused = io::Error::from(io::ErrorKind::ConnectionRefused);
        let client = kube::Error::Service(Box::new(io::Error::other(refused)));
        assert!(matches!(Trouble::of_client(&client), Trouble::Unreachable(_)));
        let tls = rustls::Error::InvalidCertificate(rustls::CertificateError::UnknownIssuer);
        let client =
            kube::Error::Service(Box::new(io::Error::other(io::Error::new(io::ErrorKind::InvalidData, tls))));
        assert!(matches!(Trouble::of_client(&client), Trouble::Tls(why) if why.contains("UnknownIssuer")));
        assert_eq!(Trouble::of_status(410, b"").class(), Class::Answer);
        let expired = Status { code: 0, reason: "Expired".to_owned(), message: String::new() };
        assert_eq!(Trouble::of_event(expired), Trouble::Gone);
    }
}
