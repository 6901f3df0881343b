//! What an endpoint supports, found once by asking for all and listening to its refusals.

use serde::{Deserialize, Serialize};

/// What is asked for beyond plain text.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Features {
    /// The form of the answer.
    pub structure: Structure,
    /// Log-probabilities of the answer's tokens.
    pub log_probs: bool,
    /// Temperature 0.
    pub temperature: bool,
    /// How the length of the answer is bounded.
    pub limit: Limit,
}

/// The form of an answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Structure {
    /// JSON that a strict schema with the labels as an enum constrains.
    Schema,
    /// Any JSON object.
    Json,
    /// Text.
    Text,
}

/// The name of the parameter that bounds an answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Limit {
    /// `max_tokens`, which everybody knows.
    MaxTokens,
    /// `max_completion_tokens`, which OpenAI's reasoning models want.
    MaxCompletionTokens,
}

impl Default for Features {
    /// Everything.
    fn default() -> Self {
        Self { structure: Structure::Schema, log_probs: true, temperature: true, limit: Limit::MaxTokens }
    }
}

impl Features {
    /// What to ask for after a refusal in these words; `None` when the refusal is about something else, or nothing
    /// is left to do without.
    pub(crate) fn after_refusal(self, words: &str) -> Option<Self> {
        let words = words.to_lowercase();
        let names = |parts: &[&str]| parts.iter().any(|part| words.contains(part));
        if names(&["context length", "context window", "context_length"]) {
            return None;
        }
        if self.limit == Limit::MaxTokens && names(&["max_completion_tokens"]) {
            return Some(Self { limit: Limit::MaxCompletionTokens, ..self });
        }
        if self.temperature && names(&["temperature"]) {
            return Some(Self { temperature: false, ..self });
        }
        if self.log_probs && names(&["logprob", "log_prob", "logits"]) {
            return Some(Self { log_probs: false, ..self });
        }
        if names(&["response_format", "schema", "json", "structured", "grammar"]) {
            return self.simpler();
        }
        // The words name nothing: the dearest features go last.
        if self.log_probs { Some(Self { log_probs: false, ..self }) } else { self.simpler() }
    }

    fn simpler(self) -> Option<Self> {
        match self.structure {
            Structure::Schema => Some(Self { structure: Structure::Json, ..self }),
            Structure::Json => Some(Self { structure: Structure::Text, ..self }),
            Structure::Text => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALL: Features = Features {
        structure: Structure::Schema,
        log_probs: true,
        temperature: true,
        limit: Limit::MaxTokens,
    };

    #[test]
    fn a_refusal_takes_what_it_names() {
        let json = Features { structure: Structure::Json, ..ALL };
        for (words, next) in [
            ("Invalid parameter: 'response_format' of type 'json_schema' is not supported", json),
            (r#"[{"loc":["body","response_format","type"],"msg":"Input should be 'text'"}]"#, json),
            (
                "logprobs is not supported for models created with logits_all=False",
                Features { log_probs: false, ..ALL },
            ),
            ("Use 'max_completion_tokens' instead.", Features { limit: Limit::MaxCompletionTokens, ..ALL }),
            ("'temperature' does not support 0", Features { temperature: false, ..ALL }),
        ] {
            assert_eq!(ALL.after_refusal(words), Some(next), "{words}");
        }
        assert_eq!(ALL.after_refusal("This model's maximum context length is 2048 tokens"), None);
    }

    #[test]
    fn refusals_that_name_nothing_come_to_an_end() {
        let (mut features, mut tries) = (ALL, 0);
        while let Some(next) = features.after_refusal("Bad Request") {
            (features, tries) = (next, tries + 1);
        }
        assert_eq!((features.structure, features.log_probs, tries), (Structure::Text, false, 3));
    }
}
