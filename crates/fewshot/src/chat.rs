//! The wire format of chat completions; of an answer every field is optional, because servers differ.

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::features::{Features, Limit, Structure};

/// One message of a prompt.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Message {
    /// Who speaks.
    pub role: Role,
    /// What is said.
    pub content: String,
}

/// Who speaks in a prompt.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// The instructions and examples.
    System,
    /// The query.
    User,
}

/// What a model answered, as it came.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Reply {
    /// The text.
    pub content: Option<String>,
    /// The model's own refusal, as structured outputs give it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub refusal: Option<String>,
    /// Why the text ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub finish_reason: Option<String>,
    /// The exact model that answered.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub model: Option<String>,
    /// Tokens as the endpoint counts them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub usage: Option<Usage>,
    /// The text's tokens and their natural log-probabilities; empty where the endpoint gives none.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub tokens: Vec<(String, f64)>,
}

/// Tokens of one request.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Usage {
    /// Tokens of the prompt, cached ones included.
    pub prompt: u64,
    /// Those of them that the provider had in its cache.
    #[serde(default)]
    pub cached: u64,
    /// Tokens of the answer.
    pub completion: u64,
}

/// The body of a request.
pub(crate) fn body(model: &str, messages: &[Message], labels: &[String], features: Features) -> Value {
    let mut body = json!({ "model": model, "messages": messages });
    if features.temperature {
        body["temperature"] = json!(0);
    }
    if features.log_probs {
        body["logprobs"] = json!(true);
    }
    let limit = answer_limit(labels, features);
    match features.limit {
        Limit::MaxTokens => body["max_tokens"] = json!(limit),
        Limit::MaxCompletionTokens => body["max_completion_tokens"] = json!(limit),
    }
    match features.structure {
        Structure::Schema => {
            body["response_format"] = json!({ "type": "json_schema", "json_schema": {
                "name": "route", "strict": true,
                "schema": {
                    "type": "object",
                    "properties": { "label": { "type": "string", "enum": labels } },
                    "required": ["label"],
                    "additionalProperties": false,
                },
            }});
        }
        Structure::Json => body["response_format"] = json!({ "type": "json_object" }),
        Structure::Text => {}
    }
    body
}

/// Tokens that an answer may take: no label has more tokens than bytes, and JSON adds a few. A model that counts
/// its thinking as well gets room for it.
pub(crate) fn answer_limit(labels: &[String], features: Features) -> u64 {
    const AROUND: u64 = 32;
    const THINKING: u64 = 4096;
    let longest = labels.iter().map(String::len).max().unwrap_or(0) as u64;
    AROUND + longest + if features.limit == Limit::MaxCompletionTokens { THINKING } else { 0 }
}

impl Reply {
    /// Reads the body of a successful response.
    ///
    /// # Errors
    /// What is wrong with it, in words.
    pub(crate) fn parse(body: &str) -> Result<Self, String> {
        let value: Value = serde_json::from_str(body).map_err(|error| format!("broken JSON: {error}"))?;
        if let Some(error) = value.get("error").filter(|error| !error.is_null()) {
            return Err(error_message(&json!({ "error": error })).unwrap_or_else(|| "an error".into()));
        }
        let choice = &value["choices"][0];
        let message = &choice["message"];
        if !message.is_object() {
            return Err("choices[0].message is missing".into());
        }
        let text = |value: &Value| value.as_str().map(str::to_owned);
        Ok(Self {
            content: content(&message["content"]),
            refusal: text(&message["refusal"]).filter(|refusal| !refusal.trim().is_empty()),
            finish_reason: text(&choice["finish_reason"]).filter(|reason| !reason.is_empty()),
            model: text(&value["model"]),
            usage: Usage::parse(&value["usage"]),
            tokens: tokens(&choice["logprobs"]["content"]),
        })
    }
}

impl Usage {
    fn parse(usage: &Value) -> Option<Self> {
        let prompt = usage["prompt_tokens"].as_u64().filter(|&tokens| tokens > 0)?;
        let cached = usage["prompt_tokens_details"]["cached_tokens"].as_u64().unwrap_or(0);
        let completion = usage["completion_tokens"].as_u64()?;
        Some(Self { prompt, cached: cached.min(prompt), completion })
    }
}

/// A text, or the texts of its parts.
fn content(value: &Value) -> Option<String> {
    match value {
        Value::String(text) => Some(text.clone()),
        Value::Array(parts) => Some(parts.iter().filter_map(|part| part["text"].as_str()).collect()),
        _ => None,
    }
}

fn tokens(value: &Value) -> Vec<(String, f64)> {
    let token = |token: &Value| Some((token["token"].as_str()?.to_owned(), token["logprob"].as_f64()?));
    let items = value.as_array().map(Vec::as_slice).unwrap_or_default();
    items.iter().map(token).collect::<Option<_>>().unwrap_or_default()
}

/// The server's words about an error: OpenAI's form, a validation error's, or a plain text.
pub(crate) fn error_message(value: &Value) -> Option<String> {
    let error = &value["error"];
    let found = [&error["message"], error, &value["message"], &value["detail"]];
    found.into_iter().find_map(|value| match value {
        Value::String(text) if !text.is_empty() => Some(text.clone()),
        Value::Array(_) => Some(value.to_string()),
        _ => None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_answer_is_read() {
        let reply = Reply::parse(
            r#"{"model":"gpt-4o-2024-08-06","choices":[{"finish_reason":"stop","message":{"content":"{\"label\":\"a\"}",
            "refusal":null},"logprobs":{"content":[{"token":"{\"","logprob":-0.5,"bytes":[1],"top_logprobs":[]}]}}],
            "usage":{"prompt_tokens":9,"completion_tokens":4,"prompt_tokens_details":{"cached_tokens":5}}}"#,
        )
        .unwrap();
        assert_eq!(reply.content.as_deref(), Some("{\"label\":\"a\"}"));
        assert_eq!(reply.usage, Some(Usage { prompt: 9, cached: 5, completion: 4 }));
        assert_eq!(reply.tokens, [("{\"".to_owned(), -0.5)]);
        assert_eq!(reply.refusal, None);
    }

    #[test]
    fn a_bare_answer_is_read() {
        for body in [
            r#"{"choices":[{"message":{"content":"a"}}]}"#,
            r#"{"choices":[{"message":{"content":"a"},"finish_reason":"","logprobs":null}],"usage":null}"#,
            r#"{"choices":[{"message":{"content":[{"type":"text","text":"a"}]}}],"usage":{"prompt_tokens":0}}"#,
        ] {
            assert_eq!(Reply::parse(body).unwrap(), Reply { content: Some("a".into()), ..Reply::default() });
        }
    }

    #[test]
    fn what_is_no_answer_says_why() {
        let reason = |body| Reply::parse(body).unwrap_err();
        assert!(reason(r#"{"choices":[{"mess"#).contains("broken JSON"));
        assert!(reason("{}").contains("choices[0].message"));
        assert!(reason("[]").contains("choices[0].message"));
        assert_eq!(reason(r#"{"error":{"message":"overloaded"}}"#), "overloaded");
    }
}
