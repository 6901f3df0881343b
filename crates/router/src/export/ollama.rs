//! The `Modelfile` beside a GGUF file from which `ollama create` makes a model.

use std::fmt::Write;
use std::path::Path;

use formats::{Tokenizer, store};

use super::GGUF;
use crate::Result;
use crate::manifest::Manifest;

/// The mark around texts of several lines.
const QUOTES: &str = "\"\"\"";

/// Writes the frozen prompt as template and system message, and what keeps answers to labels.
pub(super) fn write(manifest: &Manifest, tokenizer: &Tokenizer, folder: &Path) -> Result<()> {
    let bos = tokenizer.bos_token();
    // Ollama puts the first token there itself when the file says that the tokenizer does.
    let begins = tokenizer.bos_id().is_some() && tokenizer.around()?.0.first().copied() == tokenizer.bos_id();
    let prompt = &manifest.prompt;
    let prefix =
        if begins { prompt.prefix.strip_prefix(bos).unwrap_or(&prompt.prefix) } else { &prompt.prefix };
    let longest = manifest.labels.iter().map(|label| label.ids.len()).max().unwrap_or_default();
    let end = tokenizer.token(prompt.end_id).unwrap_or_default();
    let text = modelfile(prefix, &prompt.system, &prompt.suffix, &end, longest);
    Ok(store::write_atomically(folder.join("Modelfile"), text.as_bytes())?)
}

fn modelfile(prefix: &str, system: &str, suffix: &str, end: &str, longest: usize) -> String {
    let quotable = !system.is_empty() && !system.contains(QUOTES) && !system.ends_with('"');
    let mut around_system = prefix.splitn(2, system);
    let (before, after) = (around_system.next().unwrap_or_default(), around_system.next());
    let after = after.filter(|_| quotable);
    let mut template = String::new();
    match after {
        Some(after) => {
            let _ = write!(template, "{}{{{{ .System }}}}{}", literal(before), literal(after));
        }
        None => template.push_str(&literal(prefix)),
    }
    let _ = write!(template, "{{{{ .Prompt }}}}{}", literal(suffix));
    let mut text = format!("FROM ./{GGUF}\nTEMPLATE {QUOTES}{template}{QUOTES}\n");
    if after.is_some() {
        let _ = writeln!(text, "SYSTEM {QUOTES}{system}{QUOTES}");
    }
    let _ = write!(text, "PARAMETER temperature 0\nPARAMETER num_predict {longest}\n");
    if !end.is_empty() {
        let _ = writeln!(text, "PARAMETER stop {QUOTES}{end}{QUOTES}");
    }
    text
}

/// A text that Go's template language and the quotes around it leave as it is.
fn literal(text: &str) -> String {
    let mut out = text.replace("{{", "{{ `{{` }}").replace(QUOTES, "{{ `\"` }}{{ `\"` }}{{ `\"` }}");
    if out.ends_with('"') {
        out.pop();
        out.push_str("{{ `\"` }}");
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What a Modelfile makes of a query: only the constructs that [`modelfile`] writes are known.
    fn prompt(text: &str, query: &str) -> String {
        let quoted = |key: &str| {
            let rest = text.split_once(&format!("{key} {QUOTES}"))?.1;
            Some(rest.split_once(QUOTES)?.0)
        };
        let mut out = String::new();
        let mut rest = quoted("TEMPLATE").unwrap();
        while let Some((before, action)) = rest.split_once("{{ ") {
            let (action, after) = action.split_once(" }}").unwrap();
            out.push_str(before);
            out.push_str(match action {
                ".System" => quoted("SYSTEM").unwrap(),
                ".Prompt" => query,
                string => string.strip_prefix('`').unwrap().strip_suffix('`').unwrap(),
            });
            rest = after;
        }
        out + rest
    }

    #[test]
    fn the_frozen_prompt_comes_back() {
        let cases = [
            ("<|s|>system\nRoute it.<|e|>\n<|s|>user\n", "Route it.", "<|e|>\n<|s|>assistant\n"),
            ("<|s|>user\n", "", "<|e|>"),
            ("a {{ b }} \"\"\" c\"", "c\"", "d\"\"\"\""),
            ("before never after", "Say \"\"\" so", "\n"),
        ];
        for (prefix, system, suffix) in cases {
            let text = modelfile(prefix, system, suffix, "<|e|>", 9);
            assert_eq!(prompt(&text, "{q}"), format!("{prefix}{{q}}{suffix}"), "{text}");
            assert!(text.contains("temperature 0\n") && text.contains("num_predict 9\n"));
            assert!(text.contains("stop \"\"\"<|e|>\"\"\"\n"));
        }
    }

    #[test]
    fn the_system_message_stands_apart_where_it_can() {
        let text = modelfile("<|s|>Route it.<|e|>", "Route it.", "", "", 1);
        assert!(text.contains("TEMPLATE \"\"\"<|s|>{{ .System }}<|e|>{{ .Prompt }}\"\"\"\n"), "{text}");
        assert!(text.contains("SYSTEM \"\"\"Route it.\"\"\"\n") && !text.contains("stop"), "{text}");
    }
}
