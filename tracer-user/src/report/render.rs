//! The page as HTML: one file that needs no other. All text is escaped by the template engine. Should that ever fail, the
//! page's own content security policy lets nothing run but its own script, known by its hash, and lets it load nothing.

use super::page::Page;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use minijinja::{AutoEscape, Environment, UndefinedBehavior, context};
use ring::digest::{SHA256, digest};

const TEMPLATE: &str = include_str!("page.html");
const STYLE: &str = include_str!("page.css");
const SCRIPT: &str = include_str!("page.js");

/// Makes the page.
///
/// # Errors
/// None in practice: the template is a part of the program.
pub fn render(page: &Page) -> Result<String, minijinja::Error> {
    let mut environment = Environment::new();
    environment.set_auto_escape_callback(|_| AutoEscape::Html);
    environment.set_undefined_behavior(UndefinedBehavior::Strict);
    environment.set_trim_blocks(true);
    environment.set_lstrip_blocks(true);
    let template = environment.template_from_str(TEMPLATE)?;
    template.render(context! { page, policy => policy(), style => STYLE, script => SCRIPT })
}

/// The content security policy (CSP level 3).
fn policy() -> String {
    let hash = |text: &str| format!("'sha256-{}'", STANDARD.encode(digest(&SHA256, text.as_bytes())));
    format!(
        "default-src 'none'; style-src {}; script-src {}; base-uri 'none'; form-action 'none'",
        hash(STYLE),
        hash(SCRIPT)
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_policy_lets_only_our_own_run() {
        let policy = policy();
        assert!(policy.starts_with("default-src 'none'; style-src 'sha256-"));
        assert!(!policy.contains("unsafe") && policy.matches("'sha256-").count() == 2);
        // Of nothing (FIPS 180-4), so that the encoding is the one that browsers have.
        let empty = STANDARD.encode(digest(&SHA256, b""));
        assert_eq!(empty, "47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU=");
    }

    #[test]
    fn nothing_of_the_page_is_elsewhere() {
        for part in [TEMPLATE, STYLE, SCRIPT] {
            for elsewhere in
                ["http:", "https:", "://", "url(", "@import", "src=", "<link", "<iframe", "style="]
            {
                assert!(!part.contains(elsewhere), "{elsewhere}");
            }
        }
        // What would end the elements that they are in.
        assert!(!STYLE.contains("</") && !SCRIPT.contains("</"));
    }
}
