//! Examples as a data file that [`crate::read()`] reads back.

use serde_json::{Value, json};

use crate::example::{Example, Role};

/// JSON lines: `text` and `label`, or `messages` where there is a system message or a history.
pub fn to_json_lines(examples: &[Example]) -> String {
    examples.iter().flat_map(|example| [row(example).to_string(), "\n".to_owned()]).collect()
}

fn row(example: &Example) -> Value {
    if example.system.is_none() && example.history.is_empty() {
        return json!({ "text": example.text, "label": example.label });
    }
    let message = |role: &str, content: &str| json!({ "role": role, "content": content });
    let mut messages = Vec::new();
    messages.extend(example.system.as_deref().map(|system| message("system", system)));
    for turn in &example.history {
        let role = match turn.role {
            Role::User => "user",
            Role::Assistant => "assistant",
        };
        messages.push(message(role, &turn.text));
    }
    messages.push(message("user", &example.text));
    messages.push(message("assistant", &example.label));
    json!({ "messages": messages })
}

#[cfg(test)]
mod tests {
    use std::path::Path;
    use std::sync::Arc;

    use super::*;
    use crate::example::{Origin, Turn};
    use crate::{ReadOptions, read};

    #[test]
    fn what_is_written_is_read_back() {
        let file: Arc<Path> = Arc::from(Path::new("x"));
        let plain = |text: &str| Example::new(text, "a \"quoted\" label", Origin::line(&file, 1));
        let mut talk = plain("and my card?");
        talk.system = Some("be kind".into());
        talk.history = vec![
            Turn { role: Role::User, text: "hello".into() },
            Turn { role: Role::Assistant, text: "good day".into() },
        ];
        for rows in [vec![plain("one\nline"), plain("größe")], vec![talk.clone(), talk]] {
            let folder = tempfile::tempdir().unwrap();
            let path = folder.path().join("rows.jsonl");
            std::fs::write(&path, to_json_lines(&rows)).unwrap();
            let found = read(&path, &ReadOptions::default()).unwrap().examples;
            let parts = |row: &Example| {
                (row.text.clone(), row.label.clone(), row.system.clone(), row.history.clone())
            };
            assert_eq!(
                found.iter().map(parts).collect::<Vec<_>>(),
                rows.iter().map(parts).collect::<Vec<_>>()
            );
        }
    }
}
