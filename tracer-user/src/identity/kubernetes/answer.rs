//! The API's answers: pages of a list, lines of a watch, refusals.

use super::{Found, Unreadable, key, object, wire};
use crate::identity::object::{Key, Kind};
use serde::Deserialize;
use serde_json::value::RawValue;
use std::borrow::Cow;

/// A page of a list. Its objects are raw: each is read by itself, so one that is broken spoils no other.
#[derive(Debug)]
pub struct List<'a> {
    /// The version that a watch goes on from.
    pub version: String,
    /// Where the next page begins; `None` on the last.
    pub next: Option<String>,
    pub(super) items: Vec<&'a RawValue>,
}

impl List<'_> {
    /// Reads the objects, which are of that kind: each, or why it can't be read.
    pub fn objects(&self, kind: Kind) -> impl Iterator<Item = Result<Found, Unreadable>> {
        self.items.iter().map(move |item| object(kind, item.get()))
    }
}

/// Reads a page.
///
/// # Errors
/// If it is none.
pub fn list(json: &[u8]) -> Result<List<'_>, Unreadable> {
    #[derive(Deserialize)]
    struct Page<'a> {
        #[serde(default)]
        metadata: Option<wire::ListMeta>,
        #[serde(default, borrow)]
        items: Option<Vec<&'a RawValue>>,
    }
    let Page { metadata, items } = serde_json::from_slice(json)?;
    let wire::ListMeta { resource_version, next } = metadata.unwrap_or_default();
    Ok(List {
        version: resource_version,
        next: Some(next).filter(|next| !next.is_empty()),
        items: items.unwrap_or_default(),
    })
}

/// A line of a watch.
#[derive(Clone, Debug, PartialEq, Eq)]
#[expect(clippy::large_enum_variant, reason = "there is one at a time")]
pub enum Event {
    /// An object was added, or changed.
    Set(Found),
    /// An object is gone.
    Delete {
        /// Its kind's key.
        key: Key,
        /// The version from which it is gone.
        version: String,
    },
    /// Nothing happened up to that version.
    Bookmark {
        /// The version.
        version: String,
        /// True if a streaming list is complete with it.
        listed: bool,
    },
    /// The server ends the watch, and why.
    Error(Status),
    /// An object that can't be read, and the version, as far as that could.
    Unreadable(Unreadable, Option<String>),
    /// A type of event that did not exist when this was written.
    Unknown,
}

/// Reads a line of a watch for objects of a kind.
///
/// # Errors
/// If it is no such line.
pub fn event(kind: Kind, line: &[u8]) -> Result<Event, Unreadable> {
    #[derive(Deserialize)]
    struct Line<'a> {
        #[serde(borrow)]
        r#type: Cow<'a, str>,
        #[serde(borrow)]
        object: &'a RawValue,
    }
    let Line { r#type, object: raw } = serde_json::from_slice(line)?;
    let json = raw.get();
    Ok(match &*r#type {
        "ADDED" | "MODIFIED" => match object(kind, json) {
            Ok(found) => Event::Set(found),
            Err(error) => Event::Unreadable(error, key(kind, json).ok().map(|(_, version)| version)),
        },
        "DELETED" => {
            let named = key(kind, json);
            named.map_or_else(
                |error| Event::Unreadable(error, None),
                |(key, version)| Event::Delete { key, version },
            )
        }
        "BOOKMARK" => {
            let wire::Bare { metadata } = serde_json::from_str(json).unwrap_or_default();
            // Set on the bookmark after which a watch with sendInitialEvents has sent what was there at its start.
            let listed =
                metadata.annotations.get("k8s.io/initial-events-end").is_some_and(|end| end == "true");
            Event::Bookmark { version: metadata.resource_version, listed }
        }
        "ERROR" => Event::Error(Status::read(json.as_bytes())),
        _ => Event::Unknown,
    })
}

/// What the API answers instead of what was asked for. Its texts are the server's: escape them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Status {
    /// The HTTP status code that goes with it; 0 if it has none.
    pub code: u16,
    /// One word, like `Forbidden` or `Expired`.
    pub reason: String,
    /// A sentence.
    pub message: String,
}

impl Status {
    /// Reads an answer that refuses. One that is no `Status` gives an empty one.
    #[must_use]
    pub fn read(json: &[u8]) -> Self {
        let wire::Status { message, reason, code } = serde_json::from_slice(json).unwrap_or_default();
        Self { code, reason, message }
    }
}
