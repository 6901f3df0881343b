//! From an answer to a label, tolerantly: JSON or text, in any case, with words around it.

use std::collections::HashMap;

use routing::duplicates::normalise;
use serde_json::Value;

use crate::answer::Outcome;
use crate::chat::Reply;

/// How texts begin that refuse to answer, after [`normalise`].
const REFUSALS: [&str; 9] = [
    "i cant",
    "i cannot",
    "im sorry",
    "i am sorry",
    "sorry",
    "im unable",
    "i am unable",
    "im not able",
    "as an ai",
];

/// Reads labels out of answers.
#[derive(Debug)]
pub struct LabelReader<'a> {
    labels: &'a [String],
    /// The label of each normal form; `None` where two labels share one.
    by_normal: HashMap<String, Option<usize>>,
    /// The normal form of each label between blanks.
    padded: Vec<String>,
}

impl<'a> LabelReader<'a> {
    /// A reader of these labels.
    pub fn new(labels: &'a [String]) -> Self {
        let mut by_normal = HashMap::new();
        for (index, label) in labels.iter().enumerate() {
            by_normal.entry(normalise(label)).and_modify(|known| *known = None).or_insert(Some(index));
        }
        Self { labels, by_normal, padded: labels.iter().map(|label| padded(label)).collect() }
    }

    /// The labels that are read.
    pub fn labels(&self) -> &'a [String] {
        self.labels
    }

    /// What an answer means, and the probability of its label where the endpoint gave log-probabilities.
    pub fn read(&self, reply: &Reply) -> (Outcome, Option<f64>) {
        if reply.refusal.is_some() || reply.finish_reason.as_deref() == Some("content_filter") {
            return (Outcome::Refused, None);
        }
        let content = reply.content.as_deref().unwrap_or_default().trim();
        if content.is_empty() {
            return (Outcome::Empty, None);
        }
        let said = label_field(content);
        let text = said.as_deref().unwrap_or(content).trim();
        let cut = reply.finish_reason.as_deref() == Some("length");
        let label = self.equal(text).or_else(|| if cut { None } else { self.mentioned(text) });
        match label {
            Some(label) => {
                let exact = self.labels[label] == text;
                (Outcome::Label { label, exact }, probability(&reply.tokens, text))
            }
            None if text.is_empty() => (Outcome::Empty, None),
            None if refuses(text) => (Outcome::Refused, None),
            None => (Outcome::Outside, None),
        }
    }

    /// The label that the text is, as it stands or in its normal form.
    fn equal(&self, text: &str) -> Option<usize> {
        let exact = self.labels.iter().position(|label| label == text);
        exact.or_else(|| self.by_normal.get(&normalise(text)).copied().flatten())
    }

    /// The one label that the text mentions; a label inside a longer one that is mentioned does not count.
    fn mentioned(&self, text: &str) -> Option<usize> {
        let text = padded(text);
        let found: Vec<usize> =
            (0..self.labels.len()).filter(|&label| text.contains(&self.padded[label])).collect();
        let inside = |label: usize| {
            found.iter().any(|&other| other != label && self.padded[other].contains(&self.padded[label]))
        };
        let mut outermost = found.iter().filter(|&&label| !inside(label));
        outermost.next().copied().filter(|_| outermost.next().is_none())
    }
}

fn padded(text: &str) -> String {
    format!(" {} ", normalise(text))
}

fn refuses(text: &str) -> bool {
    let text = normalise(text);
    REFUSALS.iter().any(|refusal| text.starts_with(refusal))
}

/// The label that a JSON answer holds, also in a code fence or between words: the field `label`, or the only text.
fn label_field(content: &str) -> Option<String> {
    if let Ok(Value::String(text)) = serde_json::from_str(content) {
        return Some(text);
    }
    let object =
        content.match_indices('{').find_map(|(at, _)| {
            match serde_json::Deserializer::from_str(&content[at..]).into_iter::<Value>().next() {
                Some(Ok(Value::Object(object))) => Some(object),
                _ => None,
            }
        })?;
    if let Some(label) = object.get("label") {
        return Some(label.as_str().unwrap_or_default().to_owned());
    }
    let mut texts = object.values().filter_map(Value::as_str);
    texts.next().filter(|_| texts.next().is_none()).map(str::to_owned)
}

/// The product of the probabilities of the tokens that spell `text` and end it.
fn probability(tokens: &[(String, f64)], text: &str) -> Option<f64> {
    let whole: String = tokens.iter().map(|(token, _)| token.as_str()).collect();
    let start = whole.rfind(text)?;
    // The quote after the text says that no longer label follows.
    let end = start + text.len() + 1;
    let mut at = 0;
    let mut sum = 0.0;
    for (token, log_prob) in tokens {
        let next = at + token.len();
        if at < end && next > start {
            sum += log_prob;
        }
        at = next;
    }
    Some(sum.exp().min(1.0))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn labels() -> Vec<String> {
        ["card_arrival", "card", "Refund_not_showing_up", "oos"].map(str::to_owned).to_vec()
    }

    fn read(content: &str) -> Outcome {
        let reply = Reply { content: Some(content.into()), ..Reply::default() };
        LabelReader::new(&labels()).read(&reply).0
    }

    fn label(label: usize, exact: bool) -> Outcome {
        Outcome::Label { label, exact }
    }

    #[test]
    fn labels_are_found_in_every_form() {
        for (content, expected) in [
            (r#"{"label":"card_arrival"}"#, label(0, true)),
            ("card_arrival\n", label(0, true)),
            (r#""card_arrival""#, label(0, true)),
            (r#"{"label": "CARD_ARRIVAL"}"#, label(0, false)),
            ("Card arrival.", label(0, false)),
            ("```json\n{\"label\": \"card\"}\n```", label(1, true)),
            (r#"Sure! {"department": "card"} is my answer."#, label(1, true)),
            ("Label: card_arrival", label(0, false)),
            ("The label is **Refund_not_showing_up**, I think.", label(2, false)),
            ("refund-not-showing-up", label(2, false)),
            (r#"{"label": "card", "reason": "a card arrival"}"#, label(1, true)),
        ] {
            assert_eq!(read(content), expected, "{content}");
        }
    }

    #[test]
    fn what_is_no_label_is_said_to_be_none() {
        for (content, expected) in [
            ("loans", Outcome::Outside),
            ("cardboard", Outcome::Outside),
            ("either card_arrival or oos", Outcome::Outside),
            (r#"{"label": 3}"#, Outcome::Empty),
            (r#"{"label": ""}"#, Outcome::Empty),
            ("  ", Outcome::Empty),
            ("I'm sorry, but I can't assist with that.", Outcome::Refused),
        ] {
            assert_eq!(read(content), expected, "{content}");
        }
        let labels = labels();
        let reader = LabelReader::new(&labels);
        let cut = Reply {
            content: Some(r#"{"label": "card_arr"#.into()),
            finish_reason: Some("length".into()),
            ..Reply::default()
        };
        assert_eq!(reader.read(&cut).0, Outcome::Outside, "half a label is not the shorter label");
        let refused = Reply { refusal: Some("No.".into()), ..Reply::default() };
        assert_eq!(reader.read(&refused).0, Outcome::Refused);
        let filtered = Reply { finish_reason: Some("content_filter".into()), ..Reply::default() };
        assert_eq!(reader.read(&filtered).0, Outcome::Refused);
        assert_eq!(reader.read(&Reply::default()).0, Outcome::Empty);
    }

    #[test]
    fn labels_that_differ_in_case_alone_are_told_apart() {
        let labels = ["Card", "card"].map(str::to_owned);
        let reader = LabelReader::new(&labels);
        let read =
            |content: &str| reader.read(&Reply { content: Some(content.into()), ..Reply::default() }).0;
        assert_eq!((read("card"), read("Card")), (label(1, true), label(0, true)));
        assert_eq!(read("CARD"), Outcome::Outside);
    }

    #[test]
    fn a_probability_is_that_of_the_label_with_its_end() {
        let labels = labels();
        let token = |(text, p): (&str, f64)| (text.to_owned(), p.ln());
        let probability = |tokens: &[(&str, f64)]| {
            let tokens: Vec<_> = tokens.iter().copied().map(token).collect();
            let content = tokens.iter().map(|(text, _)| text.as_str()).collect();
            LabelReader::new(&labels)
                .read(&Reply { content: Some(content), tokens, ..Reply::default() })
                .1
                .unwrap()
        };
        let p = probability(&[
            ("{\"", 0.9),
            ("label", 0.9),
            ("\":\"", 0.8),
            ("card", 0.5),
            ("_arrival", 0.5),
            ("\"}", 0.6),
        ]);
        assert!((p - 0.15).abs() < 1e-12, "{p}");
        let p = probability(&[("Card", 0.5), (" arrival", 0.4)]);
        assert!((p - 0.2).abs() < 1e-12, "{p}");
    }
}
