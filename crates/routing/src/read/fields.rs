//! Which fields of a row hold the query and the label, and how a row becomes an example.

use serde_json::{Map, Value};

use super::ReadOptions;
use crate::Error;
use crate::example::{Example, Origin, Role, Turn};

/// Field names that mean the text, the surest first. All lists are in the form that [`canonical`] gives.
const TEXT: [&[&str]; 2] = [
    &[
        "text",
        "query",
        "querytext",
        "userquery",
        "customerquery",
        "utterance",
        "question",
        "sentence",
        "message",
        "usermessage",
    ],
    &["input", "prompt", "body", "instruction", "content", "request", "description"],
];
/// Field names that mean the label, the surest first: a name is easier to learn than the number beside it.
const LABEL: [&[&str]; 3] = [
    &["labeltext", "labelname", "intentname", "categoryname"],
    &["label", "department", "intent", "category", "class", "route", "topic"],
    &["target", "answer", "output", "completion", "response", "queue", "team", "tag"],
];
const CONVERSATION: &[&str] = &["conversations", "conversation", "messages", "dialogue", "dialog", "turns"];
const SYSTEM: &[&str] = &["system", "systemprompt", "systemmessage"];

/// Where a row keeps its parts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Layout {
    /// Text and label are fields.
    Fields { text: String, label: String, system: Option<String> },
    /// The text is the last user message of a list of messages; the label is the assistant's last message, or
    /// the field named here.
    Conversation { messages: String, label: Option<String> },
}

impl Layout {
    /// Finds the layout of rows with these fields.
    ///
    /// `at` is the header or the first row; `is_list` tells whether a field holds a list.
    pub(super) fn choose(
        at: &Origin,
        columns: &[String],
        is_list: impl Fn(&str) -> bool,
        options: &ReadOptions,
    ) -> Result<Self, Error> {
        let named = |name: &Option<String>| match name {
            Some(field) if !columns.contains(field) => {
                Err(Error::MissingField { at: at.clone(), field: field.clone(), columns: columns.to_vec() })
            }
            _ => Ok(name.clone()),
        };
        let ambiguous = |role, candidates: Vec<String>| Error::AmbiguousField {
            path: at.file.to_path_buf(),
            role,
            candidates,
            columns: columns.to_vec(),
        };
        let pick = |role, tiers: &[&[&str]], taken: Option<&String>| {
            for names in tiers {
                let mut matching = matches(columns, names);
                matching.retain(|column| Some(column) != taken);
                match matching.len() {
                    0 => {}
                    1 => return Ok(matching.pop()),
                    _ => return Err(ambiguous(role, matching)),
                }
            }
            Ok(None)
        };
        let missing = |role| Error::NoField { path: at.file.to_path_buf(), role, columns: columns.to_vec() };

        let (text_field, label_field) = (named(&options.text_field)?, named(&options.label_field)?);
        let mut lists = match &text_field {
            Some(field) => vec![field.clone()],
            None => matches(columns, CONVERSATION),
        };
        lists.retain(|column| is_list(column));
        if lists.len() > 1 {
            return Err(ambiguous("text", lists));
        }
        if let Some(messages) = lists.pop() {
            let label = match label_field {
                Some(field) => (field != messages).then_some(field),
                None => match pick("label", &LABEL[..2], None)? {
                    Some(column) => return Err(ambiguous("label", vec![messages, column])),
                    None => None,
                },
            };
            return Ok(Self::Conversation { messages, label });
        }

        let text = match text_field {
            Some(field) => field,
            None => pick("text", &TEXT, label_field.as_ref())?.ok_or_else(|| missing("text"))?,
        };
        let label = match label_field {
            Some(field) => field,
            None => pick("label", &LABEL, Some(&text))?.ok_or_else(|| missing("label"))?,
        };
        let system = matches(columns, SYSTEM).into_iter().find(|column| *column != text && *column != label);
        Ok(Self::Fields { text, label, system })
    }

    /// The field of the text.
    pub(super) fn text_field(&self) -> &str {
        match self {
            Self::Fields { text, .. } => text,
            Self::Conversation { messages, .. } => messages,
        }
    }

    /// The field of the label.
    pub(super) fn label_field(&self) -> &str {
        match self {
            Self::Fields { label, .. } => label,
            Self::Conversation { messages, label } => label.as_ref().unwrap_or(messages),
        }
    }

    /// The fields that are read.
    pub(super) fn fields(&self) -> Vec<&str> {
        let mut fields = vec![self.text_field(), self.label_field()];
        if let Self::Fields { system: Some(system), .. } = self {
            fields.push(system);
        }
        fields
    }

    /// Turns a row into an example.
    pub(super) fn example(&self, row: &Map<String, Value>, at: Origin) -> Result<Example, Error> {
        match self {
            Self::Fields { text, label, system } => {
                let mut example = Example::new(scalar(row, text, &at)?, label_of(row, label, &at)?, at);
                if let Some(field) = system.as_ref().filter(|field| row.contains_key(*field)) {
                    example.system =
                        Some(scalar(row, field, &example.origin)?).filter(|text| !text.is_empty());
                }
                Ok(example)
            }
            Self::Conversation { messages, label } => {
                let mut example = conversation(row, messages, label.is_none(), at)?;
                if let Some(field) = label {
                    example.label = label_of(row, field, &example.origin)?;
                }
                Ok(example)
            }
        }
    }
}

/// The columns whose name is one of `names`.
fn matches(columns: &[String], names: &[&str]) -> Vec<String> {
    columns.iter().filter(|column| names.contains(&canonical(column).as_str())).cloned().collect()
}

/// A name without what people write differently: `User Query`, `user_query` and `userQuery` are one.
fn canonical(name: &str) -> String {
    name.chars().filter(|c| c.is_alphanumeric()).flat_map(char::to_lowercase).collect()
}

/// What stands in a field, in words.
pub(super) fn kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "a truth value",
        Value::Number(_) => "a number",
        Value::String(_) => "a text",
        Value::Array(_) => "a list",
        Value::Object(_) => "an object",
    }
}

fn field<'a>(row: &'a Map<String, Value>, name: &str, at: &Origin) -> Result<&'a Value, Error> {
    row.get(name).ok_or_else(|| Error::MissingField {
        at: at.clone(),
        field: name.to_owned(),
        columns: row.keys().cloned().collect(),
    })
}

fn scalar(row: &Map<String, Value>, name: &str, at: &Origin) -> Result<String, Error> {
    match field(row, name, at)? {
        Value::Null => Ok(String::new()),
        Value::String(text) => Ok(text.clone()),
        Value::Number(number) => Ok(number_text(number)),
        Value::Bool(truth) => Ok(truth.to_string()),
        other => Err(Error::FieldType {
            at: at.clone(),
            field: name.to_owned(),
            found: kind(other),
            expected: "a text or a number",
        }),
    }
}

fn label_of(row: &Map<String, Value>, name: &str, at: &Origin) -> Result<String, Error> {
    Ok(scalar(row, name, at)?.trim().to_owned())
}

/// Numbers that are whole read alike whether a tool wrote `3` or `3.0`.
fn number_text(number: &serde_json::Number) -> String {
    let text = number.to_string();
    text.strip_suffix(".0").map_or(text.clone(), str::to_owned)
}

/// Reads a list of messages; `answered` when the label is the assistant's last message.
fn conversation(row: &Map<String, Value>, name: &str, answered: bool, at: Origin) -> Result<Example, Error> {
    let Value::Array(messages) = field(row, name, &at)? else {
        let found = field(row, name, &at).map_or("null", kind);
        return Err(Error::FieldType { at, field: name.to_owned(), found, expected: "a list of messages" });
    };
    let fail = |problem: String| Error::Conversation { at: at.clone(), field: name.to_owned(), problem };
    let (mut system, mut turns) = (Vec::new(), Vec::new());
    for (number, message) in (1..).zip(messages) {
        let part = |names: [&str; 3]| names.iter().find_map(|name| message.get(*name));
        let role = part(["role", "from", "speaker"]).and_then(Value::as_str);
        let role = role.ok_or_else(|| fail(format!("has no role in message {number}")))?;
        let text = part(["content", "value", "text"]).map(message_text);
        let text = text.ok_or_else(|| fail(format!("has no content in message {number}")))?;
        let text = text.ok_or_else(|| fail(format!("has something other than text in message {number}")))?;
        let role = match role.to_lowercase().as_str() {
            "user" | "human" | "customer" | "prompter" => Role::User,
            "assistant" | "gpt" | "model" | "bot" | "chatbot" | "agent" | "ai" => Role::Assistant,
            "system" | "developer" => {
                system.push(text);
                continue;
            }
            // What a tool was asked and said is no turn between the customer and the desk.
            "tool" | "function" | "function_call" | "observation" => continue,
            _ => return Err(fail(format!("has the unknown role {role:.40?} in message {number}"))),
        };
        turns.push(Turn { role, text });
    }
    let mut label = String::new();
    if answered {
        match turns.pop() {
            Some(turn) if turn.role == Role::Assistant => turn.text.trim().clone_into(&mut label),
            _ => return Err(fail("does not end with an assistant message that holds the label".into())),
        }
    }
    let Some(last) = turns.iter().rposition(|turn| turn.role == Role::User) else {
        return Err(fail("has no user message before the label".into()));
    };
    turns.truncate(last + 1);
    let text = turns.pop().map(|turn| turn.text).unwrap_or_default();
    let system = (!system.is_empty()).then(|| system.join("\n"));
    Ok(Example { text, label, system, history: turns, origin: at })
}

/// The text of a message: a string, or a list of parts of which some are text.
fn message_text(content: &Value) -> Option<String> {
    match content {
        Value::Null => Some(String::new()),
        Value::String(text) => Some(text.clone()),
        Value::Number(number) => Some(number_text(number)),
        Value::Array(parts) => {
            let texts = parts.iter().map(|part| part.as_str().or_else(|| part.get("text")?.as_str()));
            Some(texts.collect::<Option<Vec<_>>>()?.join("\n"))
        }
        Value::Bool(_) | Value::Object(_) => None,
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use serde_json::json;

    use super::*;

    fn origin() -> Origin {
        Origin::line(&Path::new("rows.jsonl").into(), 7)
    }

    fn choose(columns: &[&str], options: &ReadOptions) -> Result<Layout, Error> {
        let columns: Vec<String> = columns.iter().map(|&column| column.to_owned()).collect();
        Layout::choose(&origin(), &columns, |column| CONVERSATION.contains(&column), options)
    }

    fn read(row: &Value) -> Result<Example, Error> {
        let row = row.as_object().unwrap();
        let columns: Vec<String> = row.keys().cloned().collect();
        Layout::choose(&origin(), &columns, |column| row[column].is_array(), &ReadOptions::default())?
            .example(row, origin())
    }

    #[test]
    fn the_surest_names_win_whatever_their_spelling_and_order() {
        for (columns, text, label) in [
            (&["label", "text"][..], "text", "label"),
            (&["id", "User Query", "Department"], "User Query", "Department"),
            (&["text", "label", "label_text"], "text", "label_text"),
            (&["prompt", "completion"], "prompt", "completion"),
            (&["question", "answer", "category"], "question", "category"),
            (&["input", "text", "intent"], "text", "intent"),
        ] {
            let layout = choose(columns, &ReadOptions::default()).unwrap();
            assert_eq!((layout.text_field(), layout.label_field()), (text, label), "{columns:?}");
        }
    }

    #[test]
    fn doubt_is_an_error_that_lists_the_fields_and_the_flags() {
        let error = choose(&["instruction", "category", "intent"], &ReadOptions::default()).unwrap_err();
        assert_eq!(
            error.to_string(),
            "rows.jsonl: \"category\", \"intent\" could each be the label; found \"instruction\", \"category\", \"intent\""
        );
        assert!(error.hint().contains("--label-field NAME"));
        let error = choose(&["a", "b"], &ReadOptions::default()).unwrap_err();
        assert_eq!(error.to_string(), "rows.jsonl: no field looks like the text; found \"a\", \"b\"");
        let error = choose(&["messages", "label"], &ReadOptions::default()).unwrap_err();
        assert!(error.to_string().contains("\"messages\", \"label\" could each be the label"));
    }

    #[test]
    fn named_fields_are_taken_as_they_are() {
        let options = ReadOptions { text_field: Some("b".into()), label_field: Some("a".into()) };
        let layout = choose(&["a", "b"], &options).unwrap();
        assert_eq!((layout.text_field(), layout.label_field()), ("b", "a"));
        let options = ReadOptions { text_field: None, label_field: Some("c".into()) };
        assert!(choose(&["text", "b"], &options).unwrap_err().to_string().contains("no field \"c\""));
        // A named text field is not also the label, and the other way round.
        let options = ReadOptions { text_field: Some("label".into()), label_field: None };
        assert!(matches!(choose(&["label", "text"], &options), Err(Error::NoField { role: "label", .. })));
    }

    #[test]
    fn a_conversation_is_its_last_question_and_answer() {
        let example = read(&json!({"messages": [
            {"role": "system", "content": "Route."},
            {"role": "user", "content": "Hello"},
            {"role": "assistant", "content": "How can I help?"},
            {"role": "user", "content": [{"type": "text", "text": "My card"}]},
            {"role": "assistant", "content": " cards\n"},
        ]}))
        .unwrap();
        assert_eq!((example.text.as_str(), example.label.as_str()), ("My card", "cards"));
        assert_eq!(example.system.as_deref(), Some("Route."));
        let history: Vec<_> = example.history.iter().map(|turn| (turn.role, turn.text.as_str())).collect();
        assert_eq!(history, [(Role::User, "Hello"), (Role::Assistant, "How can I help?")]);

        let example = read(&json!({"conversations": [
            {"from": "human", "value": "My card"}, {"from": "gpt", "value": "cards"}]}))
        .unwrap();
        assert_eq!((example.text.as_str(), example.label.as_str()), ("My card", "cards"));
    }

    #[test]
    fn broken_conversations_say_what_is_wrong() {
        let message = |messages: Value| read(&json!({ "messages": messages })).unwrap_err().to_string();
        let user = json!({"role": "user", "content": "q"});
        assert!(
            message(json!([user])).ends_with("does not end with an assistant message that holds the label")
        );
        assert!(message(json!([])).contains("does not end"));
        assert!(message(json!([{"role": "assistant", "content": "x"}])).contains("no user message"));
        assert!(message(json!([{"content": "x"}])).contains("no role in message 1"));
        assert!(message(json!([{"role": "user"}])).contains("no content in message 1"));
        assert!(
            message(json!([user, {"role": "wizard", "content": "x"}])).contains("\"wizard\" in message 2")
        );
        assert!(message(json!([{"role": "user", "content": {}}])).contains("other than text"));
    }

    #[test]
    fn labels_may_be_numbers_and_nothing_else() {
        assert_eq!(read(&json!({"text": "q", "label": 3})).unwrap().label, "3");
        assert_eq!(read(&json!({"text": "q", "label": 3.0})).unwrap().label, "3");
        assert_eq!(read(&json!({"text": "q", "label": null})).unwrap().label, "");
        let error = read(&json!({"text": "q", "label": ["a"]})).unwrap_err();
        assert_eq!(
            error.to_string(),
            "rows.jsonl:7: field \"label\" holds a list, expected a text or a number"
        );
    }
}
