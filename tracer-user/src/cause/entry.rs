//! The entries of the knowledge base, read from TOML.

use super::condition::{Condition, Key};
use super::facts::{Fact, Origin};
use super::language::Language;
use super::template::Template;
use serde::{Deserialize, Serialize};
use std::collections::HashMap;
use std::path::Path;
use std::sync::{Arc, LazyLock};

/// What is compiled in.
const OWN: &str = include_str!("causes.toml");

/// A knowledge base that can't be used.
#[derive(Debug, thiserror::Error)]
#[error("{file}:{line}: {problem}")]
pub struct BadCauses {
    /// The file.
    pub file: String,
    /// The line, from 1.
    pub line: usize,
    /// What is wrong, and what would be right.
    pub problem: String,
}

/// What shows that an entry is right.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Proven {
    /// End-to-end tests by these names made the kernel drop packets so and were told this cause.
    Kernel(Vec<String>),
    /// Made-up facts.
    #[default]
    Facts,
}

/// How bad it is; the worst first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    /// Something does not work.
    Error,
    /// Something may not work, or not well.
    Warning,
    /// Nothing is wrong.
    Info,
}

impl Severity {
    /// Its name.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Error => "error",
            Self::Warning => "warning",
            Self::Info => "info",
        }
    }
}

/// A text in all languages; where it was written in English only, that.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Localized {
    english: Template,
    chinese: Option<Template>,
}

impl Localized {
    pub(super) fn of(&self, language: Language) -> &Template {
        match language {
            Language::Chinese => self.chinese.as_ref().unwrap_or(&self.english),
            Language::English => &self.english,
        }
    }

    fn all(&self) -> impl Iterator<Item = &Template> {
        std::iter::once(&self.english).chain(&self.chinese)
    }
}

/// A cause that drops may have.
#[derive(Clone, Debug)]
pub struct Entry {
    pub(super) id: String,
    pub(super) severity: Severity,
    pub(super) proven: Proven,
    pub(super) confidence: &'static str,
    pub(super) owner: Option<String>,
    pub(super) when: Condition,
    pub(super) why: Localized,
    pub(super) fix: Option<Localized>,
    pub(super) resets: Option<Localized>,
    /// The facts of it that the node is asked for.
    pub(super) node_facts: Vec<Fact>,
}

impl Entry {
    /// Its name.
    #[must_use]
    pub fn id(&self) -> &str {
        &self.id
    }

    /// How bad it is.
    #[must_use]
    pub fn severity(&self) -> Severity {
        self.severity
    }

    /// What shows that it is right.
    #[must_use]
    pub fn proven(&self) -> &Proven {
        &self.proven
    }

    /// Whom to talk to.
    #[must_use]
    pub fn owner(&self) -> Option<&str> {
        self.owner.as_deref()
    }
}

/// The knowledge base: entries, the most specific first, and where to look.
#[derive(Clone, Debug, Default)]
pub struct Base {
    pub(super) entries: Vec<Entry>,
    /// Numbers of the entries that may hold for a drop with that key.
    pub(super) index: HashMap<Key, Vec<usize>>,
    /// Of those that may hold for any.
    pub(super) of_any: Vec<usize>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawFile {
    #[serde(default)]
    cause: Vec<toml::Spanned<RawEntry>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawEntry {
    id: String,
    severity: Severity,
    #[serde(default)]
    proven: Proven,
    #[serde(default)]
    confidence: RawConfidence,
    owner: Option<String>,
    when: toml::Table,
    why: RawText,
    fix: Option<RawText>,
    resets: Option<RawText>,
}

#[derive(Clone, Copy, Default, Deserialize)]
#[serde(rename_all = "lowercase")]
enum RawConfidence {
    #[default]
    Exact,
    Inferred,
}

#[derive(Deserialize)]
#[serde(untagged, expecting = "a text, or { en = \"...\", zh = \"...\" }")]
enum RawText {
    English(String),
    Each(RawTexts),
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawTexts {
    en: String,
    zh: Option<String>,
}

impl Base {
    /// What is compiled in.
    #[must_use]
    pub fn own() -> Arc<Self> {
        static BASE: LazyLock<Arc<Base>> = LazyLock::new(|| {
            // It has no fault: tested.
            Arc::new(Base::parse("causes.toml", OWN).unwrap_or_default())
        });
        Arc::clone(&BASE)
    }

    /// What is compiled in, and before it what these files have. An entry with the id of another takes its place.
    ///
    /// # Errors
    /// If a file can't be read, or makes no sense.
    pub fn with_files(files: &[impl AsRef<Path>]) -> Result<Arc<Self>, BadCauses> {
        if files.is_empty() {
            return Ok(Self::own());
        }
        let mut entries: Vec<Entry> = Vec::new();
        for file in files {
            let name = file.as_ref().display().to_string();
            let text = std::fs::read_to_string(file).map_err(|error| BadCauses {
                file: name.clone(),
                line: 1,
                problem: format!("can't be read: {error}"),
            })?;
            entries.extend(parse_entries(&name, &text)?);
        }
        let is_new = |entry: &&Entry| entries.iter().all(|own| own.id != entry.id);
        let own: Vec<Entry> = Self::own().entries.iter().filter(is_new).cloned().collect();
        entries.extend(own);
        Ok(Arc::new(Self::of(entries)))
    }

    /// Reads the entries of one file.
    ///
    /// # Errors
    /// If it makes no sense.
    pub fn parse(file: &str, text: &str) -> Result<Self, BadCauses> {
        Ok(Self::of(parse_entries(file, text)?))
    }

    fn of(entries: Vec<Entry>) -> Self {
        let mut base = Self { entries, ..Self::default() };
        for (number, entry) in base.entries.iter().enumerate() {
            match entry.when.keys() {
                Some(keys) => {
                    for key in keys {
                        base.index.entry(key).or_default().push(number);
                    }
                }
                None => base.of_any.push(number),
            }
        }
        base
    }

    /// All entries, the most specific first.
    #[must_use]
    pub fn entries(&self) -> &[Entry] {
        &self.entries
    }
}

fn parse_entries(file: &str, text: &str) -> Result<Vec<Entry>, BadCauses> {
    let line = |at: usize| text.get(..at).unwrap_or(text).matches('\n').count() + 1;
    let bad = |at: usize, problem: String| BadCauses { file: file.to_owned(), line: line(at), problem };
    let raw: RawFile = toml::from_str(text)
        .map_err(|error| bad(error.span().map_or(0, |span| span.start), error.message().trim().to_owned()))?;
    let mut entries: Vec<Entry> = Vec::with_capacity(raw.cause.len());
    for spanned in raw.cause {
        let at = spanned.span().start;
        let raw = spanned.into_inner();
        let id = raw.id.clone();
        if entries.iter().any(|entry| entry.id == id) {
            return Err(bad(at, format!("cause {id:?} is there twice: give one another id")));
        }
        entries.push(entry_of(raw).map_err(|problem| bad(at, format!("cause {id:?}: {problem}")))?);
    }
    Ok(entries)
}

fn entry_of(raw: RawEntry) -> Result<Entry, String> {
    let RawEntry { id, severity, proven, confidence, owner, when, why, fix, resets } = raw;
    let is_name = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
    if id.is_empty() || !id.chars().all(is_name) {
        return Err("an id has lower case letters, digits and `-`".to_owned());
    }
    let when = Condition::parse(&when).map_err(|problem| format!("when: {problem}"))?;
    let why = localized("why", why, &when)?;
    let fix = fix.map(|text| localized("fix", text, &when)).transpose()?;
    let resets = resets.map(|text| localized("resets", text, &when)).transpose()?;
    let mut node_facts = Vec::new();
    when.facts(&mut node_facts);
    for template in [Some(&why), fix.as_ref()].into_iter().flatten().flat_map(Localized::all) {
        template.facts(&mut node_facts);
    }
    node_facts.retain(|fact| fact.origin() == Origin::Node);
    node_facts.sort_unstable();
    node_facts.dedup();
    let confidence = match confidence {
        RawConfidence::Exact => "exact",
        RawConfidence::Inferred => "inferred",
    };
    Ok(Entry { id, severity, proven, confidence, owner, when, why, fix, resets, node_facts })
}

fn localized(name: &str, text: RawText, when: &Condition) -> Result<Localized, String> {
    let (english, chinese) = match text {
        RawText::English(text) => (text, None),
        RawText::Each(RawTexts { en, zh }) => (en, zh),
    };
    let template = |text: &str| {
        let template = Template::parse(text).map_err(|problem| format!("{name}: {problem}"))?;
        match template.needed().into_iter().find(|fact| !when.makes_known(*fact)) {
            Some(fact) => {
                let fact = fact.name();
                Err(format!(
                    "{name}: {{{fact}}} may be unknown: put it in brackets, `[... {{{fact}}} ...]`, or ask for it in `when`"
                ))
            }
            None => Ok(template),
        }
    };
    Ok(Localized { english: template(&english)?, chinese: chinese.as_deref().map(template).transpose()? })
}

#[cfg(test)]
mod tests;
