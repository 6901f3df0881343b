//! The prompt around a query, rendered once from the base model's chat template and frozen with the run.

use formats::{ChatTemplate, Message, Tokenizer};
use routing::{Role, Turn};
use serde::{Deserialize, Serialize};

use crate::manifest::LabelRecord;
use crate::{Error, Result};

/// The system message used when neither the data nor the user gives one.
pub const DEFAULT_SYSTEM: &str =
    "You are a helpful assistant who can route the following query to the relevant department.";

/// Stands for a text while the template is rendered; no template or customer contains it.
const MARK: &str = "\u{f8ff}\u{f8fe}\u{f8ff}";

/// A query as it comes in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Query<'a> {
    /// What the customer wrote last.
    pub text: &'a str,
    /// A system message in place of the run's own.
    pub system: Option<&'a str>,
    /// The turns before, oldest first.
    pub history: &'a [Turn],
}

impl<'a> Query<'a> {
    /// A single message.
    pub fn new(text: &'a str) -> Self {
        Self { text, system: None, history: &[] }
    }
}

impl<'a> From<&'a routing::Example> for Query<'a> {
    fn from(example: &'a routing::Example) -> Self {
        Self { text: &example.text, system: example.system.as_deref(), history: &example.history }
    }
}

/// The frozen prompt: what stands before and after a query, as text and as tokens.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Prompt {
    /// The run's system message.
    pub system: String,
    /// Everything before the query.
    pub prefix: String,
    /// Everything between the query and the label.
    pub suffix: String,
    /// `prefix` as tokens.
    pub prefix_ids: Vec<u32>,
    /// `suffix` as tokens.
    pub suffix_ids: Vec<u32>,
    /// The token that ends a label.
    pub end_id: u32,
    /// How many of `prefix_ids` all queries share, whatever their system message.
    pub shared: usize,
    /// Longest query in tokens, earlier turns included.
    pub max_tokens: usize,
    /// The chat template itself, for queries with a system message or history of their own; empty for an encoder.
    pub template: String,
}

impl Prompt {
    /// Tokens of the longest text with these labels' tokens behind it, which the model must have room for.
    pub(crate) fn longest(&self, labels: &[LabelRecord]) -> usize {
        let label = labels.iter().map(|label| label.ids.len()).max().unwrap_or(0);
        self.prefix_ids.len() + self.max_tokens + self.suffix_ids.len() + label
    }

    /// Renders the template around a mark and splits there.
    ///
    /// With `varied`, queries may bring their own system message or history, and only what stands before the system
    /// message is shared by all.
    ///
    /// # Errors
    /// When the template cannot be rendered, or drops or doubles the texts given to it.
    pub fn freeze(
        template: &str,
        tokenizer: &Tokenizer,
        model: &str,
        system: &str,
        varied: bool,
        max_tokens: usize,
    ) -> Result<Self> {
        let problem = |problem| Error::Template { model: model.to_owned(), problem };
        let chat = ChatTemplate::new(template, tokenizer.bos_token(), tokenizer.eos_token())?;
        let system = system.trim();
        let mut messages = Vec::new();
        if !system.is_empty() {
            messages.push(Message::new("system", system));
        }
        messages.push(Message::new("user", MARK));
        let rendered = chat.render(&messages, true)?;
        let parts: Vec<&str> = rendered.split(MARK).collect();
        let [prefix, suffix] = parts[..] else {
            return Err(problem("does not show the user's message exactly once"));
        };
        messages.push(Message::new("assistant", MARK));
        let answered = chat.render(&messages, false)?;
        let end = answered.rsplit(MARK).next().unwrap_or_default();
        let end_id = match tokenizer.encode(end)?.first() {
            Some(&id) if tokenizer.is_special(id) => id,
            _ => tokenizer.eos_id().ok_or_else(|| problem("ends a turn without a token for it"))?,
        };
        let prefix_ids = tokenizer.encode(prefix)?;
        let shared = if varied {
            let before =
                rendered.split(if system.is_empty() { MARK } else { system }).next().unwrap_or_default();
            let before = tokenizer.encode(before)?;
            before.iter().zip(&prefix_ids).take_while(|(a, b)| a == b).count()
        } else {
            prefix_ids.len()
        };
        Ok(Self {
            system: system.to_owned(),
            prefix: prefix.to_owned(),
            suffix: suffix.to_owned(),
            suffix_ids: tokenizer.encode(suffix)?,
            prefix_ids,
            end_id,
            shared,
            max_tokens,
            template: template.to_owned(),
        })
    }

    /// What the tokenizer puts around a text for an encoder, which is told nothing beside the query and its history.
    ///
    /// # Errors
    /// When the tokenizer fails, or puts nothing at the end of a text.
    pub fn around(tokenizer: &Tokenizer, model: &str, max_tokens: usize) -> Result<Self> {
        let (prefix_ids, suffix_ids) = tokenizer.around()?;
        let problem = "does not exist, and its tokenizer puts no token at the end of a text";
        let end_id =
            *suffix_ids.last().ok_or_else(|| Error::Template { model: model.to_owned(), problem })?;
        Ok(Self {
            system: String::new(),
            prefix: tokenizer.decode(&prefix_ids, false)?,
            suffix: tokenizer.decode(&suffix_ids, false)?,
            prefix_ids,
            suffix_ids,
            end_id,
            shared: 0,
            max_tokens,
            template: String::new(),
        })
    }

    /// The tokens that all queries begin with.
    pub fn shared_ids(&self) -> &[u32] {
        &self.prefix_ids[..self.shared]
    }

    /// The tokens of a query from the end of the shared beginning to where the label starts, and whether it was cut to
    /// fit: a text loses its end, a conversation its oldest turns.
    ///
    /// Text that spells a special token is read as plain characters: a customer cannot forge a turn.
    ///
    /// # Errors
    /// When the query brings a system message or history and the run was not trained with such.
    pub fn encode(&self, tokenizer: &Tokenizer, query: Query<'_>) -> Result<(Vec<u32>, bool)> {
        let mut text = tokenizer.encode_plain(query.text.trim())?;
        let cut = text.len() > self.max_tokens;
        text.truncate(self.max_tokens);
        let history = self.recent(tokenizer, query.history, self.max_tokens - text.len())?;
        let system = query.system.map_or(self.system.as_str(), str::trim);
        let mut ids = if self.template.is_empty() {
            self.turns(tokenizer, history)?
        } else if system == self.system && history.is_empty() {
            self.prefix_ids[self.shared..].to_vec()
        } else {
            self.conversation(tokenizer, system, history)?
        };
        ids.extend(text);
        ids.extend(&self.suffix_ids);
        Ok((ids, cut || history.len() < query.history.len()))
    }

    /// The last turns for which there is room, from one of the customer's on, as templates expect it.
    fn recent<'a>(&self, tokenizer: &Tokenizer, history: &'a [Turn], mut room: usize) -> Result<&'a [Turn]> {
        let mut from = history.len();
        for (index, turn) in history.iter().enumerate().rev() {
            let tokens = tokenizer.encode_plain(turn.text.trim())?.len() + self.suffix_ids.len();
            if tokens > room {
                from += history[from..].iter().take_while(|turn| turn.role != Role::User).count();
                break;
            }
            (room, from) = (room - tokens, index);
        }
        Ok(&history[from..])
    }

    /// Each label's tokens with the end token.
    ///
    /// Underscores and hyphens are spoken as spaces (`card_arrival` as "card arrival"): fewer tokens, and words that
    /// the model knows. Where two labels would become one that way, all are taken as they stand.
    ///
    /// # Errors
    /// When the tokenizer fails.
    pub fn encode_labels(&self, tokenizer: &Tokenizer, labels: &[String]) -> Result<Vec<Vec<u32>>> {
        let spoken: Vec<String> = labels.iter().map(|label| speak(label)).collect();
        let distinct = spoken.iter().collect::<std::collections::HashSet<_>>().len() == labels.len();
        let usable = distinct && spoken.iter().all(|label| !label.is_empty());
        let texts = if usable { &spoken } else { labels };
        let encode = |text: &String| -> Result<Vec<u32>> {
            let mut ids = tokenizer.encode_plain(text)?;
            ids.push(self.end_id);
            Ok(ids)
        };
        texts.iter().map(encode).collect()
    }

    /// Everything before the query's text, for an encoder: each earlier turn with the token that ends a text.
    fn turns(&self, tokenizer: &Tokenizer, history: &[Turn]) -> Result<Vec<u32>> {
        let mut ids = self.prefix_ids.clone();
        for turn in history {
            ids.extend(tokenizer.encode_plain(turn.text.trim())?);
            ids.extend(&self.suffix_ids);
        }
        Ok(ids)
    }

    /// Everything before the query's text, after the shared beginning, for a conversation of its own.
    fn conversation(&self, tokenizer: &Tokenizer, system: &str, history: &[Turn]) -> Result<Vec<u32>> {
        let model = || "the base model".to_owned();
        let chat = ChatTemplate::new(&self.template, tokenizer.bos_token(), tokenizer.eos_token())?;
        let turn = |turn: &Turn| match turn.role {
            Role::User => "user",
            Role::Assistant => "assistant",
        };
        let mut texts = Vec::new();
        let mut messages = Vec::new();
        if !system.is_empty() {
            messages.push(Message::new("system", MARK));
            texts.push(system);
        }
        for past in history {
            messages.push(Message::new(turn(past), MARK));
            texts.push(past.text.trim());
        }
        messages.push(Message::new("user", MARK));
        let rendered = chat.render(&messages, true)?;
        let pieces: Vec<&str> = rendered.split(MARK).collect();
        if pieces.len() != texts.len() + 2 {
            return Err(Error::Template {
                model: model(),
                problem: "does not show every message exactly once",
            });
        }
        let mut ids = Vec::new();
        for (index, piece) in pieces[..pieces.len() - 1].iter().enumerate() {
            ids.extend(tokenizer.encode(piece)?);
            if let Some(text) = texts.get(index) {
                ids.extend(tokenizer.encode_plain(text)?);
            }
        }
        if !ids.starts_with(self.shared_ids()) {
            return Err(Error::Template {
                model: model(),
                problem: "was frozen for one system message and no history, as the training data had it",
            });
        }
        Ok(ids.split_off(self.shared))
    }
}

/// A label as it would be said: `card_arrival` as "card arrival".
fn speak(label: &str) -> String {
    label
        .split(|c: char| c == '_' || c == '-' || c.is_whitespace())
        .filter(|word| !word.is_empty())
        .collect::<Vec<_>>()
        .join(" ")
}

#[cfg(test)]
mod tests {
    use formats::BaseModel;

    use super::*;

    #[test]
    fn labels_are_spoken() {
        assert_eq!(speak("card_arrival"), "card arrival");
        assert_eq!(speak("health-and-dental"), "health and dental");
        assert_eq!(speak("Refund_not__showing_up "), "Refund not showing up");
        assert_eq!(speak("--"), "");
    }

    #[test]
    fn a_long_conversation_keeps_its_last_turns() {
        let base = BaseModel::open(concat!(env!("CARGO_MANIFEST_DIR"), "/../../fixtures/tiny-chat")).unwrap();
        let tokenizer = base.tokenizer().unwrap();
        let template = base.chat_template().unwrap();
        let prompt = Prompt::freeze(template, &tokenizer, "tiny", "Route.", true, 60).unwrap();
        let turn = |number: usize| Turn {
            role: if number.is_multiple_of(2) { Role::User } else { Role::Assistant },
            text: format!("turn {number}"),
        };
        let history: Vec<Turn> = (0..200).map(turn).collect();
        let encode = |history: &[Turn]| {
            let query = Query { text: "my card", system: None, history };
            prompt.encode(&tokenizer, query).unwrap()
        };
        let (ids, cut) = encode(&history);
        let (kept, _) = encode(&history[198..]);
        assert!(cut && ids.len() < 150 && ids.ends_with(&kept[kept.len() - 20..]), "{} tokens", ids.len());
        let recent = prompt.recent(&tokenizer, &history, 60).unwrap();
        assert!(!recent.is_empty() && recent[0].role == Role::User, "templates begin with a user's turn");
        assert_eq!(encode(recent), (ids, false));
        assert_eq!(encode(&[]).0, encode(&[Turn { role: Role::User, text: "word ".repeat(90) }]).0);
    }
}
