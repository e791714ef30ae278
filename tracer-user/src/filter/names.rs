//! What words about Kubernetes stand for: names of pods, services and workloads, and label selectors.

use super::value::Problem;
use std::collections::BTreeMap;

/// The longest name that Kubernetes allows (RFC 1123 subdomain).
const LONGEST: usize = 253;

/// A name as it is typed, `[namespace/]name`.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Named {
    /// Its namespace; `None` for any.
    pub namespace: Option<String>,
    /// Its name, of a pod also the beginning of it.
    pub name: String,
}

/// A workload, `[namespace/][kind/]name`.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct WorkloadName {
    /// Its namespace; `None` for any.
    pub namespace: Option<String>,
    /// Its kind in lower case, `deployment`; `None` for any.
    pub kind: Option<String>,
    /// Its name.
    pub name: String,
}

/// A label selector: all of its terms must hold (labels and selectors, as `kubectl -l` has them).
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Selector(Vec<Term>);

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Term {
    In(String, Vec<String>),
    NotIn(String, Vec<String>),
    Exists(String),
    Absent(String),
}

impl Selector {
    /// True if the labels satisfy it.
    #[must_use]
    pub fn matches(&self, labels: &BTreeMap<String, String>) -> bool {
        self.0.iter().all(|term| match term {
            Term::In(key, values) => labels.get(key).is_some_and(|value| values.contains(value)),
            // A label that is absent is none of the values, as in the API.
            Term::NotIn(key, values) => labels.get(key).is_none_or(|value| !values.contains(value)),
            Term::Exists(key) => labels.contains_key(key),
            Term::Absent(key) => !labels.contains_key(key),
        })
    }
}

/// Kinds of workloads with what else they are called (kubectl's short names).
const KINDS: &[(&str, &[&str])] = &[
    ("deployment", &["deploy", "deployments"]),
    ("statefulset", &["sts", "statefulsets"]),
    ("daemonset", &["ds", "daemonsets"]),
    ("replicaset", &["rs", "replicasets"]),
    ("replicationcontroller", &["rc", "replicationcontrollers"]),
    ("job", &["jobs"]),
    ("cronjob", &["cj", "cronjobs"]),
];

/// `name`, `namespace/name`, `pod/name`.
pub(super) fn pod(text: &str) -> Result<Named, Problem> {
    named(
        text,
        &["pod", "pods", "po"],
        "a pod, `redis-0`, `shop/redis-0`, or the beginning of its name, `cart-`",
    )
}

/// `name`, `namespace/name`, `service/name`.
pub(super) fn service(text: &str) -> Result<Named, Problem> {
    named(text, &["service", "services", "svc"], "a service, `redis` or `shop/redis`")
}

fn named(text: &str, kinds: &[&str], hint: &str) -> Result<Named, Problem> {
    let parts: Vec<&str> = text.split('/').collect();
    let (namespace, name) = match parts.as_slice() {
        [name] => (None, *name),
        [kind, name] if kinds.contains(kind) => (None, *name),
        [namespace, name] => (Some(*namespace), *name),
        [namespace, kind, name] if kinds.contains(kind) => (Some(*namespace), *name),
        _ => return Err(Problem::new("more parts than a name has", hint)),
    };
    checked(name, hint)?;
    namespace.map_or(Ok(()), |namespace| checked(namespace, hint))?;
    Ok(Named { namespace: namespace.map(str::to_owned), name: name.to_owned() })
}

/// The name of a namespace.
pub(super) fn namespace(text: &str) -> Result<String, Problem> {
    let text =
        ["namespace/", "namespaces/", "ns/"].iter().find_map(|kind| text.strip_prefix(kind)).unwrap_or(text);
    checked(text, "a namespace, `shop`")?;
    Ok(text.to_owned())
}

/// `[namespace/][kind/]name`.
pub(super) fn workload(text: &str) -> Result<WorkloadName, Problem> {
    let hint = "a workload, `deployment/cart`, `sts/redis`, `shop/ds/agent` or just `cart`";
    let parts: Vec<&str> = text.split('/').collect();
    let (namespace, kind, name) = match parts.as_slice() {
        [name] => (None, None, *name),
        [first, name] => match kind_of(first) {
            Some(kind) => (None, Some(kind), *name),
            None => (Some(*first), None, *name),
        },
        [namespace, kind, name] => {
            // Others than the usual ones own pods as well.
            let kind = kind_of(kind).unwrap_or_else(|| kind.to_ascii_lowercase());
            (Some(*namespace), Some(kind), *name)
        }
        _ => return Err(Problem::new("more parts than a workload has", hint)),
    };
    checked(name, hint)?;
    namespace.map_or(Ok(()), |namespace| checked(namespace, hint))?;
    Ok(WorkloadName { namespace: namespace.map(str::to_owned), kind, name: name.to_owned() })
}

fn kind_of(word: &str) -> Option<String> {
    let word = word.to_ascii_lowercase();
    let is_it = |(kind, others): &&(&str, &[&str])| *kind == word || others.contains(&word.as_str());
    KINDS.iter().find(is_it).map(|(kind, _)| (*kind).to_owned())
}

/// Names of Kubernetes have lower case letters, digits, `-` and `.` (RFC 1123).
fn checked(name: &str, hint: &str) -> Result<(), Problem> {
    let is_allowed = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-' || c == '.';
    if name.is_empty() {
        return Err(Problem::new("a name is missing", hint));
    }
    if name.len() > LONGEST {
        return Err(Problem::new(format!("longer than the {LONGEST} characters that a name may have"), hint));
    }
    if let Some(other) = name.chars().find(|c| !is_allowed(*c)) {
        let problem = format!("names have lower case letters, digits, '-' and '.', not {other:?}");
        return Err(Problem::new(problem, hint));
    }
    Ok(())
}

/// `a=b,c!=d,e in (f,g),h notin (i),j,!k`.
pub(super) fn selector(text: &str) -> Result<Selector, Problem> {
    let hint = "a selector, `app=cart`, `app in (cart,web),tier!=db`, `canary` or `!canary`";
    let fail = |problem: String| Problem::new(problem, hint);
    let mut terms = Vec::new();
    for part in split(text) {
        let part = part.trim();
        let term = if let Some((key, values)) = part.split_once(" in ").or_else(|| part.split_once(" in(")) {
            Term::In(label_key(key).map_err(fail)?, list(values).map_err(fail)?)
        } else if let Some((key, values)) = part.split_once(" notin ").or_else(|| part.split_once(" notin("))
        {
            Term::NotIn(label_key(key).map_err(fail)?, list(values).map_err(fail)?)
        } else if let Some((key, value)) = part.split_once("!=") {
            Term::NotIn(label_key(key).map_err(fail)?, vec![label_value(value).map_err(fail)?])
        } else if let Some((key, value)) = part.split_once("==").or_else(|| part.split_once('=')) {
            Term::In(label_key(key).map_err(fail)?, vec![label_value(value).map_err(fail)?])
        } else if let Some(key) = part.strip_prefix('!') {
            Term::Absent(label_key(key).map_err(fail)?)
        } else {
            Term::Exists(label_key(part).map_err(fail)?)
        };
        terms.push(term);
    }
    Ok(Selector(terms))
}

/// Parts between commas that are in no parentheses.
fn split(text: &str) -> Vec<&str> {
    let mut depth = 0_u32;
    text.split(|c| {
        match c {
            '(' => depth += 1,
            ')' => depth = depth.saturating_sub(1),
            _ => {}
        }
        c == ',' && depth == 0
    })
    .collect()
}

fn list(text: &str) -> Result<Vec<String>, String> {
    let text = text.trim();
    let inner = text.strip_prefix('(').unwrap_or(text).strip_suffix(')').ok_or("the ')' is missing")?;
    inner.split(',').map(label_value).collect()
}

fn label_key(text: &str) -> Result<String, String> {
    let text = text.trim();
    let is_allowed = |c: char| c.is_ascii_alphanumeric() || "-_./".contains(c);
    match text.chars().find(|c| !is_allowed(*c)) {
        _ if text.is_empty() => Err("the name of a label is missing".to_owned()),
        Some(other) => Err(format!("names of labels have no {other:?}")),
        None => Ok(text.to_owned()),
    }
}

fn label_value(text: &str) -> Result<String, String> {
    let text = text.trim();
    let is_allowed = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
    match text.chars().find(|c| !is_allowed(*c)) {
        Some(other) => Err(format!("values of labels have no {other:?}")),
        None => Ok(text.to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_have_their_namespace_where_it_is_given() {
        let named = |namespace: Option<&str>, name: &str| Named {
            namespace: namespace.map(str::to_owned),
            name: name.to_owned(),
        };
        assert_eq!(pod("cart-7c9").unwrap(), named(None, "cart-7c9"));
        assert_eq!(pod("pod/cart-7c9").unwrap(), named(None, "cart-7c9"));
        assert_eq!(pod("shop/cart-7c9").unwrap(), named(Some("shop"), "cart-7c9"));
        assert_eq!(pod("shop/pod/cart").unwrap(), named(Some("shop"), "cart"));
        assert_eq!(service("svc/redis").unwrap(), named(None, "redis"));
        assert_eq!(namespace("ns/shop").unwrap(), "shop");
        for bad in ["", "/", "shop/", "/cart", "a/b/c", "Cart", "ca rt", "cart\u{1b}"] {
            assert!(pod(bad).is_err(), "{bad:?}");
        }
        assert!(pod(&"a".repeat(254)).is_err());
    }

    #[test]
    fn workloads_have_their_kind_where_it_is_given() {
        let of = |text| {
            let WorkloadName { namespace, kind, name } = workload(text).unwrap();
            format!("{}|{}|{name}", namespace.unwrap_or_default(), kind.unwrap_or_default())
        };
        assert_eq!(of("cart"), "||cart");
        assert_eq!(of("deploy/cart"), "|deployment|cart");
        assert_eq!(of("shop/cart"), "shop||cart");
        assert_eq!(of("shop/sts/redis"), "shop|statefulset|redis");
        assert_eq!(of("shop/Rollout/cart"), "shop|rollout|cart");
        assert!(workload("a/b/c/d").is_err());
    }

    #[test]
    fn selectors_select() {
        let labels: BTreeMap<String, String> =
            [("app", "cart"), ("tier", "web")].map(|(key, value)| (key.to_owned(), value.to_owned())).into();
        for (text, expected) in [
            ("app=cart", true),
            ("app==cart,tier=web", true),
            ("app=cart,tier=db", false),
            ("app!=cart", false),
            ("zone!=a", true),
            ("app in (cart, web)", true),
            ("app in (web),tier", false),
            ("app notin (web,db),tier", true),
            ("!canary", true),
            ("!app", false),
            ("canary", false),
            ("example.com/x notin(a)", true),
        ] {
            assert_eq!(selector(text).unwrap().matches(&labels), expected, "{text}");
        }
        for bad in ["", "=x", "app in (a", "a b", "app=c@rt", "app=a,,b"] {
            assert!(selector(bad).is_err(), "{bad:?}");
        }
    }
}
