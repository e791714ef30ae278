//! `--inventory FILE`: what `kubectl get pods,services,endpointslices,nodes -A -o json` printed, in place of a server.
//!
//! A file is read as a stream, one object at a time. It holds one or several documents: a `List` of mixed kinds, a
//! `PodList` or the like, or single objects.

use super::{Closed, Sink};
use crate::identity::kubernetes::{self, Unreadable};
use crate::identity::object::{Change, Kind, Object, Source};
use crate::output::escape;
use serde::Deserialize;
use serde::de::{DeserializeSeed, Error as _, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde_json::value::RawValue;
use std::collections::BTreeMap;
use std::fmt;
use std::fs::File;
use std::io::{self, BufReader, Read};
use std::path::{Path, PathBuf};

/// Bytes of a file. A cluster of ten thousand pods prints about 200 MiB.
const MOST: u64 = 1 << 30;
/// Bytes that are read at once.
const PIECE: usize = 1 << 16;

/// The command that writes such a file.
const COMMAND: &str =
    "kubectl get pods,services,endpointslices,nodes,namespaces,replicasets,jobs,networkpolicies -A -o json";

/// Why a file of `--inventory` can't be used. Says which and what to do.
#[derive(Debug, thiserror::Error)]
pub enum FileError {
    /// It can't be read.
    #[error("--inventory {}: {error}", shown(.path))]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        error: io::Error,
    },
    /// It is too long.
    #[error("--inventory {}: it has more than {} MiB; leave kinds out, or give the namespaces in files of their own", shown(.path), MOST >> 20)]
    TooLong {
        /// The file.
        path: PathBuf,
    },
    /// It is not JSON, or breaks off.
    #[error("--inventory {}: line {line}, column {column}: {why}; write it with `{COMMAND}`", shown(.path))]
    Json {
        /// The file.
        path: PathBuf,
        /// Where, counted from 1.
        line: usize,
        /// Likewise.
        column: usize,
        /// What is wrong there.
        why: String,
    },
    /// It is JSON, but has nothing that names addresses.
    #[error("--inventory {}: there is no pod, service, endpoint slice or node in it; write it with `{COMMAND}`", shown(.path))]
    Empty {
        /// The file.
        path: PathBuf,
    },
    /// All that is in it is broken.
    #[error("--inventory {}: none of its {count} objects can be read, the first because: {first}; write it with `{COMMAND}`", shown(.path))]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// How many there are.
        count: u64,
        /// What is wrong with the first.
        first: String,
    },
}

fn shown(path: &Path) -> String {
    escape(&path.to_string_lossy()).into_owned()
}

/// What a file has.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Contents {
    /// The objects that can be read.
    pub objects: Vec<Object>,
    /// How many can't, and what is wrong with the first.
    pub unreadable: Option<(u64, String)>,
}

/// Reads a file.
///
/// # Errors
/// If it can't be read, is too long, is not JSON, or nothing in it can be used.
pub fn read(path: &Path) -> Result<Contents, FileError> {
    let broken = |error| FileError::Read { path: path.to_owned(), error };
    let mut contents = Contents::default();
    // A list of one kind may tell that only after its objects, which don't tell theirs: then it is read again.
    let mut kind = None;
    for _ in 0..2 {
        let file = File::open(path).map_err(broken)?;
        let length = file.metadata().map_err(broken)?.len();
        let mut reader = Reading::new(kind);
        let ended = reader.all(BufReader::with_capacity(PIECE, file.take(MOST)));
        match ended {
            // What lies beyond the ceiling was not seen: that is why the text seems to break off.
            _ if length > MOST => return Err(FileError::TooLong { path: path.to_owned() }),
            Err(error) if error.is_io() => return Err(broken(error.into())),
            Err(error) => return Err(json(path, &error)),
            Ok(()) => {}
        }
        contents = reader.contents;
        kind = reader.list;
        if reader.kindless == 0 || kind.is_none() {
            break;
        }
    }
    match &contents.unreadable {
        _ if !contents.objects.is_empty() => Ok(contents),
        Some((count, first)) => Err(FileError::Unreadable {
            path: path.to_owned(),
            count: *count,
            first: escape(first).into_owned(),
        }),
        None => Err(FileError::Empty { path: path.to_owned() }),
    }
}

fn json(path: &Path, error: &serde_json::Error) -> FileError {
    let (line, column) = (error.line(), error.column());
    let whole = error.to_string();
    let why = whole.strip_suffix(&format!(" at line {line} column {column}")).unwrap_or(&whole);
    FileError::Json { path: path.to_owned(), line, column, why: escape(why).into_owned() }
}

/// Reads the files and tells what is in them, kind by kind. A file that can't be used is told as a note.
///
/// # Errors
/// If nobody reads any more.
pub async fn tell(paths: Vec<PathBuf>, sink: Sink) -> Result<(), Closed> {
    let mut kinds: BTreeMap<Kind, Vec<Object>> = BTreeMap::new();
    for path in paths {
        let name = shown(&path);
        let contents = match tokio::task::spawn_blocking(move || read(&path)).await {
            Ok(Ok(contents)) => contents,
            Ok(Err(error)) => {
                sink.note(error.to_string()).await?;
                continue;
            }
            Err(died) => {
                sink.note(format!("--inventory {name}: {died}")).await?;
                continue;
            }
        };
        if let Some((count, first)) = contents.unreadable {
            let first = escape(&first).into_owned();
            sink.note(format!(
                "--inventory {name}: {count} objects can't be read and are left out (the first: {first})"
            ))
            .await?;
        }
        for object in contents.objects {
            kinds.entry(object.kind()).or_default().push(object);
        }
    }
    for (kind, objects) in kinds {
        sink.change(Source::File, Change::Begin(kind)).await?;
        for object in objects {
            sink.change(Source::File, Change::Set(object)).await?;
        }
        sink.change(Source::File, Change::End(kind)).await?;
    }
    Ok(())
}

/// The reading of a file.
struct Reading {
    contents: Contents,
    /// The kind of a document's objects, if they don't tell: from its `PodList`, or, until that comes, as an earlier
    /// reading had it.
    list: Option<Kind>,
    hint: Option<Kind>,
    /// Objects of which the kind was not known when they came.
    kindless: u64,
}

impl Reading {
    fn new(hint: Option<Kind>) -> Self {
        Self { contents: Contents::default(), list: None, hint, kindless: 0 }
    }

    fn all(&mut self, from: impl Read) -> serde_json::Result<()> {
        let mut json = serde_json::Deserializer::from_reader(from);
        while json.end().is_err() {
            self.list = self.hint;
            Document(self).deserialize(&mut json)?;
        }
        Ok(())
    }

    fn item(&mut self, raw: &str) {
        #[derive(Default, Deserialize)]
        struct Kinded<'a> {
            #[serde(borrow)]
            kind: Option<std::borrow::Cow<'a, str>>,
        }
        let kind = match serde_json::from_str(raw).unwrap_or_default() {
            Kinded { kind: Some(kind) } => match kubernetes::kind_named(&kind) {
                Some(kind) => kind,
                // A kind that is not used here: `kubectl get all` prints many.
                None => return,
            },
            Kinded { kind: None } => match self.list {
                Some(kind) => kind,
                None => {
                    self.kindless += 1;
                    return self.unreadable(&Unreadable::Json("it does not say its kind".to_owned()));
                }
            },
        };
        match kubernetes::object(kind, raw) {
            Ok(found) => self.contents.objects.push(found.object),
            Err(error) => self.unreadable(&error),
        }
    }

    fn unreadable(&mut self, error: &Unreadable) {
        let (count, _) = self.contents.unreadable.get_or_insert_with(|| (0, error.to_string()));
        *count += 1;
    }
}

/// One document: a list, or one object.
struct Document<'a>(&'a mut Reading);

impl<'de> DeserializeSeed<'de> for Document<'_> {
    type Value = ();

    fn deserialize<D: serde::Deserializer<'de>>(self, from: D) -> Result<(), D::Error> {
        from.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for Document<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("what kubectl prints: an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut fields: A) -> Result<(), A::Error> {
        let Self(reading) = self;
        let mut single: BTreeMap<String, Box<RawValue>> = BTreeMap::new();
        let mut is_list = false;
        while let Some(field) = fields.next_key::<String>()? {
            match field.as_str() {
                "items" => {
                    is_list = true;
                    fields.next_value_seed(Items(reading))?;
                }
                "kind" => {
                    let raw: Box<RawValue> = fields.next_value()?;
                    let kind: Option<String> = serde_json::from_str(raw.get()).unwrap_or_default();
                    let of_items = kind.as_deref().and_then(|kind| kind.strip_suffix("List"));
                    if let Some(kind) = of_items.and_then(kubernetes::kind_named) {
                        reading.list = Some(kind);
                    }
                    single.insert(field, raw);
                }
                // What an object is read from, if it turns out to be one.
                "metadata" | "spec" | "specs" | "status" | "endpoints" | "ports" | "security-labels" => {
                    single.insert(field, fields.next_value()?);
                }
                _ => drop(fields.next_value::<IgnoredAny>()?),
            }
        }
        if !is_list {
            reading.item(&serde_json::to_string(&single).map_err(A::Error::custom)?);
        }
        Ok(())
    }
}

/// The objects of a list.
struct Items<'a>(&'a mut Reading);

impl<'de> DeserializeSeed<'de> for Items<'_> {
    type Value = ();

    fn deserialize<D: serde::Deserializer<'de>>(self, from: D) -> Result<(), D::Error> {
        from.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Items<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a list of objects")
    }

    fn visit_unit<E>(self) -> Result<(), E> {
        Ok(())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<(), A::Error> {
        while let Some(raw) = items.next_element::<Box<RawValue>>()? {
            self.0.item(raw.get());
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
