//! What findings say, in English and Chinese: `texts.toml` has the texts, a finding what they are filled with.

use crate::cause::Language;
use serde::Deserialize;
use std::collections::BTreeMap;
use std::sync::LazyLock;

/// What a finding says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Text {
    key: &'static str,
    words: Vec<(&'static str, String)>,
}

impl Text {
    /// The texts of a key of `texts.toml`, with the words that stand in braces there.
    #[must_use]
    pub fn new(key: &'static str, words: impl Into<Vec<(&'static str, String)>>) -> Self {
        Self { key, words: words.into() }
    }

    /// What is wrong, in a sentence.
    #[must_use]
    pub fn title(&self, language: Language) -> String {
        self.filled(|entry| &entry.title, language)
    }

    /// What to change, and where.
    #[must_use]
    pub fn fix(&self, language: Language) -> String {
        self.filled(|entry| &entry.fix, language)
    }

    /// A text that there is not is told by its key (there is none: tested).
    fn filled(&self, which: impl Fn(&Entry) -> &Both, language: Language) -> String {
        let Some(entry) = TEXTS.get(self.key) else { return self.key.to_owned() };
        let mut rest = which(entry).of(language);
        let mut text = String::new();
        while let Some((before, (name, after))) =
            rest.split_once('{').and_then(|(before, behind)| Some((before, behind.split_once('}')?)))
        {
            text.push_str(before);
            text.push_str(self.words.iter().find(|(word, _)| *word == name).map_or("?", |(_, value)| value));
            rest = after;
        }
        text + rest
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Entry {
    title: Both,
    fix: Both,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Both {
    en: String,
    zh: String,
}

impl Both {
    fn of(&self, language: Language) -> &str {
        match language {
            Language::English => &self.en,
            Language::Chinese => &self.zh,
        }
    }
}

const FILE: &str = include_str!("texts.toml");
static TEXTS: LazyLock<BTreeMap<String, Entry>> = LazyLock::new(|| toml::from_str(FILE).unwrap_or_default());

#[cfg(test)]
impl Text {
    /// Checks that there are such texts, and that each of their words is given.
    pub(super) fn check(&self) {
        assert!(TEXTS.contains_key(self.key), "{} has no texts", self.key);
        for language in [Language::English, Language::Chinese] {
            for text in [self.title(language), self.fix(language)] {
                assert!(!text.contains(['?', '{', '}']), "{}: {text}", self.key);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    fn words(text: &str) -> BTreeSet<&str> {
        text.split('{').skip(1).filter_map(|rest| Some(rest.split_once('}')?.0)).collect()
    }

    #[test]
    fn all_are_in_both_languages_with_the_same_words() {
        let texts: BTreeMap<String, Entry> = toml::from_str(FILE).unwrap();
        assert!(texts.len() >= 19);
        for (key, Entry { title, fix }) in &texts {
            for Both { en, zh } in [title, fix] {
                assert_eq!(words(en), words(zh), "{key}");
                assert!(zh.chars().any(|letter| ('\u{4e00}'..='\u{9fff}').contains(&letter)), "{key}: {zh}");
                // A command is the same in all languages, and nothing else is between backquotes.
                let commands = |text: &str| {
                    text.split('`').skip(1).step_by(2).map(str::to_owned).collect::<BTreeSet<_>>()
                };
                assert_eq!(commands(en), commands(zh), "{key}");
            }
            assert!(title.en.len() > 20 && fix.en.len() > 20, "{key}");
        }
    }

    #[test]
    fn words_are_filled_as_they_are() {
        let text = Text::new("conntrack-full", [("percent", "{percent} 97".to_owned())]);
        assert!(
            text.title(Language::English)
                .starts_with("the table of tracked connections is {percent} 97 % full")
        );
        assert!(text.title(Language::Chinese).starts_with("连接跟踪表已用 {percent} 97 %"));
        assert!(Text::new("mtu", []).title(Language::English).starts_with("packets of ? take ? bytes"));
        assert_eq!(Text::new("nothing", []).fix(Language::Chinese), "nothing");
    }
}
