//! `routing.json`: what a program needs beside the model to route as frontdesk does.

use std::path::Path;

use formats::Tokenizer;
use serde_json::json;

use crate::Result;
use crate::manifest::Manifest;
use crate::run::write_json;

const FILE: &str = "routing.json";

/// Writes labels, prompt, calibration and thresholds.
pub(super) fn write(manifest: &Manifest, tokenizer: &Tokenizer, folder: &Path) -> Result<()> {
    let label = |label: &crate::LabelRecord| -> Result<serde_json::Value> {
        let spoken = label.ids.split_last().map_or(&[][..], |(_, spoken)| spoken);
        Ok(json!({"label": label.text, "answer": tokenizer.decode(spoken, false)?, "ids": label.ids}))
    };
    let labels = manifest.labels.iter().map(label).collect::<Result<Vec<_>>>()?;
    let prompt = &manifest.prompt;
    let routing = json!({
        "labels": labels,
        "prompt": {
            "system": prompt.system,
            "prefix": prompt.prefix,
            "suffix": prompt.suffix,
            "prefix_ids": prompt.prefix_ids,
            "suffix_ids": prompt.suffix_ids,
            "end_id": prompt.end_id,
            "max_tokens": prompt.max_tokens,
        },
        "temperature": manifest.calibration.temperature,
        "thresholds": manifest.thresholds,
        "scope": manifest.scope,
    });
    write_json(&folder.join(FILE), &routing)
}
