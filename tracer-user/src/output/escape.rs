//! Text from outside (interface names, rules, symbols of modules) made safe for a terminal.

use std::borrow::Cow;
use std::fmt::Write as _;

/// True if the character could do something to a terminal or to the eye that reads it: control characters
/// (C0, DEL, C1), line and paragraph separators, and the invisible ones that turn text around (Unicode UAX #9).
fn is_dangerous(c: char) -> bool {
    c.is_control()
        || matches!(c,
            '\u{ad}' | '\u{61c}' | '\u{180e}' | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}'
            | '\u{2060}'..='\u{206f}' | '\u{feff}' | '\u{fff9}'..='\u{fffb}')
}

/// The text with every dangerous character written as `\xHH` or `\u{H}`.
#[must_use]
pub fn escape(text: &str) -> Cow<'_, str> {
    if !text.contains(is_dangerous) {
        return Cow::Borrowed(text);
    }
    let mut safe = String::with_capacity(text.len() + 8);
    for c in text.chars() {
        match u32::from(c) {
            _ if !is_dangerous(c) => safe.push(c),
            code @ ..=0xff => drop(write!(safe, "\\x{code:02x}")),
            code => drop(write!(safe, "\\u{{{code:x}}}")),
        }
    }
    Cow::Owned(safe)
}

/// JSON with every dangerous character as `\uHHHH`: the same JSON, since such characters only stand in its
/// strings. (RFC 8259 asks for escapes of U+0000 to U+001F only.)
#[must_use]
pub(crate) fn escape_json(json: &str) -> Cow<'_, str> {
    if !json.contains(is_dangerous) {
        return Cow::Borrowed(json);
    }
    let mut safe = String::with_capacity(json.len() + 8);
    for c in json.chars() {
        if is_dangerous(c) {
            // All of them are in the basic plane: one UTF-16 unit.
            let _ = write!(safe, "\\u{:04x}", u32::from(c));
        } else {
            safe.push(c);
        }
    }
    Cow::Owned(safe)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_reaches_the_terminal_but_text() {
        assert_eq!(escape("eth0 \u{fc}"), "eth0 \u{fc}");
        assert_eq!(escape("a\x1b[31m\n\x7f\u{9b}"), "a\\x1b[31m\\x0a\\x7f\\x9b");
        assert_eq!(escape("a\u{202e}b"), "a\\u{202e}b");
    }

    #[test]
    fn json_stays_the_same_json() {
        let value = serde_json::json!({"name": "a\u{9b}\u{202e}b\u{7f}\u{1b}"});
        let text = value.to_string();
        let safe = escape_json(&text);
        assert_eq!(safe, r#"{"name":"a\u009b\u202eb\u007f\u001b"}"#);
        assert_eq!(serde_json::from_str::<serde_json::Value>(&safe).unwrap(), value);
    }
}
