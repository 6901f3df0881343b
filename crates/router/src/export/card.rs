//! The model card: what an export is, how good it is, and how to ask it.

use std::fmt::Write;
use std::path::Path;

use formats::store;
use routing::compare::CONFIDENCE;

use super::{Accuracy, Export, Gate, Target};
use crate::Result;
use crate::manifest::Manifest;

/// Labels that a card lists; `routing.json` has all.
const SHOWN: usize = 200;

/// What a card says beyond the run's manifest.
#[derive(Debug, Clone, Copy)]
pub struct Card<'a> {
    /// The export.
    pub export: Export,
    /// The run.
    pub manifest: &'a Manifest,
    /// Export and run on the same rows.
    pub gate: &'a Gate,
    /// Where those rows come from.
    pub rows: &'a str,
    /// The licence of the base model's weights, where it is known.
    pub licence: Option<&'a str>,
}

impl Card<'_> {
    /// Writes `README.md`.
    ///
    /// # Errors
    /// Those of writing.
    pub fn write(&self, folder: &Path) -> Result<()> {
        Ok(store::write_atomically(folder.join("README.md"), self.text().as_bytes())?)
    }

    fn text(&self) -> String {
        let Manifest { base, labels, data, .. } = self.manifest;
        let mut text = format!("---\nbase_model: {}\n", quoted(&base.name));
        if let Some(licence) = self.licence {
            let _ = writeln!(text, "license: {}", identifier(licence));
        }
        text.push_str("pipeline_tag: text-generation\ntags:\n- frontdesk\n- query-routing\n---\n\n");
        let _ = write!(
            text,
            "# A router to {} departments\n\nThis model reads a customer's query and answers with the department that \
             should take it. It was trained and exported by frontdesk {}: {}.\n\n",
            labels.len(),
            self.manifest.version,
            self.export,
        );
        text.push_str(&self.facts());
        let data_file = data.path.file_name().unwrap_or(data.path.as_os_str()).to_string_lossy();
        let _ = write!(
            text,
            "## Data\n\n{} labelled queries in `{data_file}` (SHA-256 `{}`). The data is not part of this folder, but a \
             language model may repeat what it was trained on: handle it as you handle the data.\n\n",
            data.rows, data.sha256,
        );
        let _ = write!(text, "## How to ask it\n\n{}\n", self.usage());
        text.push_str(
            "A query stands between `prompt.prefix` and `prompt.suffix` of `routing.json`, encoded without special \
             tokens. Taking the most probable next token until the end token gives a label in most cases; the \
             probability of each label, as frontdesk computes it, is the product of its tokens' probabilities with the \
             end token, normalised over the labels, at `temperature`.\n\n",
        );
        text.push_str(&self.label_table());
        let _ = write!(
            text,
            "## Licence\n\nThe weights derive from `{}`{}\n",
            base.name,
            match self.licence {
                Some(licence) => format!(", whose licence is {licence}; it holds for this export too."),
                None =>
                    ", whose licence holds for this export too: look it up where the base model comes from."
                        .into(),
            }
        );
        text
    }

    fn facts(&self) -> String {
        let Manifest { base, validation, .. } = self.manifest;
        let validated = Accuracy { accuracy: validation.accuracy, interval: validation.interval() };
        let gate = self.gate;
        let mut text = "## Facts\n\n| | |\n|---|---|\n".to_owned();
        let mut row = |name: &str, value: String| {
            let _ = writeln!(text, "| {name} | {value} |");
        };
        row("Base model", format!("`{}` (weights' SHA-256 `{}`)", base.name, base.sha256));
        row("Method", format!("{}; {} steps", self.manifest.method_in_words(), self.manifest.steps));
        row(
            &format!("Accuracy on {} validation rows", validation.rows),
            format!("{validated}; macro-F1 {:.1}%", 100.0 * validation.macro_f1),
        );
        row(&format!("This export on {} rows of {}", gate.rows, self.rows), gate.export.to_string());
        row("The run itself on these rows", gate.original.to_string());
        row("Rows whose top label changed by the export", gate.flips.len().to_string());
        let _ = write!(text, "\nIn brackets: the {:.0}% interval.\n\n", 100.0 * CONFIDENCE);
        text
    }

    fn usage(&self) -> String {
        let base = &self.manifest.base.name;
        match self.export.target() {
            Target::Merged => "```python\nfrom transformers import AutoModelForCausalLM, AutoTokenizer\n\n\
                tokenizer = AutoTokenizer.from_pretrained(\".\")\nmodel = AutoModelForCausalLM.from_pretrained(\".\")\n```\n\n\
                vLLM serves the folder as it is: `vllm serve .`\n"
                .to_owned(),
            Target::Peft => format!(
                "```python\nfrom peft import PeftModel\nfrom transformers import AutoModelForCausalLM\n\n\
                 base = AutoModelForCausalLM.from_pretrained(\"{base}\")  # where you keep it\n\
                 model = PeftModel.from_pretrained(base, \".\")\n```\n"
            ),
            Target::Gguf => "```sh\nllama-server -m model.gguf --temp 0\n```\n".to_owned(),
            Target::Ollama => "```sh\nollama create front-desk -f Modelfile\n\
                ollama run front-desk \"Someone hit my parked car\"\n```\n"
                .to_owned(),
            Target::GgufLora => format!(
                "```sh\nllama-server -m {base}.gguf --lora adapter.gguf --temp 0   # the base model that it was trained on\n```\n"
            ),
        }
    }

    fn label_table(&self) -> String {
        let labels = &self.manifest.labels;
        let mut text = "## Labels\n\n| label | training examples |\n|---|---:|\n".to_owned();
        for label in labels.iter().take(SHOWN) {
            let _ = writeln!(text, "| {} | {} |", label.text.replace('|', "\\|"), label.examples);
        }
        if labels.len() > SHOWN {
            let _ = writeln!(text, "\nand {} more in `routing.json`.", labels.len() - SHOWN);
        }
        text.push_str("\nHow each is spelt in an answer stands in `routing.json`.\n\n");
        text
    }
}

/// A text as a YAML string.
fn quoted(text: &str) -> String {
    format!("\"{}\"", text.replace('\\', "\\\\").replace('"', "\\\""))
}

/// A licence as model hubs spell it.
fn identifier(licence: &str) -> String {
    match licence {
        "Llama 3.2 Community License" => "llama3.2".to_owned(),
        other => other.to_lowercase(),
    }
}
