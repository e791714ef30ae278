//! The languages that causes are told in.

/// A language.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Language {
    /// English.
    #[default]
    English,
    /// Chinese, simplified.
    Chinese,
}

impl Language {
    /// The language of messages that the environment asks for (locale(7): `LC_ALL`, else `LC_MESSAGES`, else `LANG`);
    /// English where it asks for one that there is not.
    #[must_use]
    pub fn of(variable: impl Fn(&str) -> Option<String>) -> Self {
        let asked = ["LC_ALL", "LC_MESSAGES", "LANG"]
            .into_iter()
            .find_map(|name| variable(name).filter(|value| !value.is_empty()));
        let is_chinese = asked.is_some_and(|locale| locale.split(['_', '.', '@', '-']).next() == Some("zh"));
        if is_chinese { Self::Chinese } else { Self::English }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_variable_that_is_set_decides() {
        let of = |set: &[(&str, &str)]| {
            Language::of(|name| set.iter().find(|(it, _)| *it == name).map(|(_, value)| (*value).to_owned()))
        };
        assert_eq!(of(&[]), Language::English);
        assert_eq!(of(&[("LANG", "zh_CN.UTF-8")]), Language::Chinese);
        assert_eq!(of(&[("LANG", "zh_CN.UTF-8"), ("LC_ALL", "C.UTF-8")]), Language::English);
        assert_eq!(of(&[("LANG", "de_DE"), ("LC_MESSAGES", "zh")]), Language::Chinese);
        assert_eq!(of(&[("LANG", "zh_CN"), ("LC_ALL", "")]), Language::Chinese);
        assert_eq!(of(&[("LANG", "zha")]), Language::English);
    }
}
