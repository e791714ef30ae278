//! A story as lines of JSON: one for each step, and one for its end. [`Line`] is the contract.

use super::model::{Line, Story};
use crate::output;

/// The lines of a story, each with its end.
pub(super) fn lines(story: Story) -> String {
    let steps = story.steps.into_iter().map(|step| Line::Step(Box::new(step)));
    let mut text = String::new();
    for line in steps.chain([Line::End(Box::new(story.end))]) {
        output::render_json(&line, &mut text);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::trace::fixtures;
    use crate::trace::story::Stories;
    use serde_json::{Value, json};
    use std::time::Duration;

    fn told(seen: Vec<crate::trace::model::Seen>) -> Vec<Value> {
        let mut stories = Stories::default();
        seen.into_iter().for_each(|seen| stories.take(seen, Duration::ZERO));
        let text = lines(stories.due(Duration::from_secs(9)).remove(0));
        assert!(text.ends_with('\n'));
        text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }

    #[test]
    fn a_line_for_each_step_and_one_for_the_end() {
        let lines = told(fixtures::ip_forward_off());
        assert_eq!(lines.len(), 10);
        for (line, number) in lines.iter().take(9).zip(1..) {
            assert_eq!(
                (&line["type"], &line["packet"], &line["step"]),
                (&json!("step"), &json!("1"), &json!(number))
            );
        }
        let rule = &lines[3];
        assert_eq!((&rule["kind"], &rule["method"]), (&json!("netfilter"), &json!("evaluated")));
        let expected = json!({"backend": "legacy", "family": "ipv4", "hook": "PREROUTING", "table": "raw",
            "chain": "cali-PREROUTING", "what": "return", "rule": 5, "handle": null, "verdict": "return",
            "text": null, "mark": 0, "priority": null});
        assert_eq!(rule["netfilter"], expected);
        assert_eq!(lines[6]["nat"]["after"]["destination"]["address"], "10.244.3.7");
        assert_eq!(lines[7]["route"]["decision"], "refused");
        let end = &lines[9];
        assert_eq!(
            (&end["type"], &end["outcome"], &end["steps"]),
            (&json!("end"), &json!("dropped"), &json!(9))
        );
        assert_eq!(end["cause"]["id"], "ip-forward-off");
        assert_eq!(end["drop"]["drop"]["reason"], "IP_INNOROUTES");
        assert_eq!(end["time"], "2026-11-20T22:14:03.112395Z");
    }

    #[test]
    fn a_tunnel_and_its_end() {
        let lines = told(fixtures::vxlan());
        let tunnel = &lines[4]["tunnel"];
        assert_eq!((&tunnel["encapsulated"], &tunnel["type"]), (&json!(true), &json!("vxlan")));
        assert_eq!(tunnel["inner"]["source"]["address"], "10.244.0.1");
        assert_eq!(lines[10]["outcome"], "no-reply");
        assert!(lines[10]["drop"].is_null());
    }

    #[test]
    fn names_are_safe_for_terminals() {
        let mut seen = fixtures::udp_read();
        seen.iter_mut().for_each(|seen| seen.pod = Some("shop/\u{1b}[31m\u{202e}".into()));
        let mut stories = Stories::default();
        seen.into_iter().for_each(|seen| stories.take(seen, Duration::ZERO));
        let text = lines(stories.due(Duration::ZERO).remove(0));
        assert!(text.contains(r"shop/\u001b[31m\u202e"), "{text}");
    }
}
