//! The report as Markdown, for a pull request or a model card.

use super::format::{count, percent, seconds};
use super::section::{LabelErrors, labels_by_errors, mix_ups};
use super::{ModelSection, Report};

impl Report {
    /// The report as GitHub-flavoured Markdown, without its charts.
    pub fn to_markdown(&self) -> String {
        let mut out = vec![format!("# {}", plain(&self.title))];
        out.extend(self.comparisons.iter().map(|comparison| plain(&comparison.sentence())));
        let models = self.models.iter().map(|model| {
            let interval = model.accuracy_interval;
            vec![
                plain(&model.name),
                percent(model.metrics.accuracy),
                format!("{} to {}", percent(interval.low), percent(interval.high)),
                percent(model.metrics.macro_avg.f1),
                percent(model.metrics.weighted.f1),
                seconds(model.seconds.train),
                seconds(model.seconds.evaluate),
            ]
        });
        out.push(table(
            &["Model", "Accuracy", "95% interval", "Macro F1", "Weighted F1", "Training", "Answering"],
            models,
        ));
        for model in &self.models {
            push_model(&mut out, model);
        }
        out.push("## How this was made".to_owned());
        if !self.made.command.is_empty() {
            // indented, so that nothing in the command can end the block
            let lines: Vec<String> = self.made.command.lines().map(|line| format!("    {line}")).collect();
            out.push(lines.join("\n"));
        }
        let inputs = self.made.inputs.iter().map(|input| {
            let name = format!("{} ({})", plain(&input.name), plain(&input.size));
            vec![plain(&input.role), name, format!("`{}`", input.sha256)]
        });
        let versions =
            self.made.versions.iter().map(|fact| vec![plain(&fact.name), plain(&fact.value), String::new()]);
        let seed = vec!["seed".to_owned(), self.made.seed.to_string(), String::new()];
        out.push(table(&["", "", "SHA-256"], inputs.chain([seed]).chain(versions)));
        out.join("\n\n") + "\n"
    }
}

fn push_model(out: &mut Vec<String>, model: &ModelSection) {
    out.push(format!("## {}", plain(&model.name)));
    let facts: Vec<String> =
        model.facts.iter().map(|fact| format!("- {}: {}", plain(&fact.name), plain(&fact.value))).collect();
    if !facts.is_empty() {
        out.push(facts.join("\n"));
    }
    if let Some(reliability) = &model.reliability {
        let routed = model.routed.zip(model.thresholds.as_ref()).map_or(String::new(), |(routed, thresholds)| {
            let [target, coverage, precision] =
                [thresholds.target, routed.coverage, routed.precision].map(percent);
            format!(" With thresholds for {target} right, {coverage} of the rows are routed, {precision} of them right.")
        });
        out.push(format!("Calibration error {}.{routed}", percent(reliability.ece)));
    }
    let labels =
        labels_by_errors(&model.metrics).into_iter().map(|LabelErrors { label, missed, taken_for }| {
            vec![
                plain(&label.label),
                label.support.to_string(),
                missed.to_string(),
                format!("{:.3}", label.scores.precision),
                format!("{:.3}", label.scores.recall),
                format!("{:.3}", label.scores.f1),
                taken_for.map_or(String::new(), |(other, times)| format!("{} ({times})", plain(other))),
            ]
        });
    out.push(table(&["Label", "Rows", "Missed", "Precision", "Recall", "F1", "Taken most for"], labels));
    let pairs: Vec<String> = mix_ups(&model.metrics)
        .into_iter()
        .map(|(truth, predicted, wrong, support)| {
            format!(
                "- {} taken for {}: {} of {}",
                plain(truth),
                plain(predicted),
                count(wrong),
                count(support)
            )
        })
        .collect();
    if !pairs.is_empty() {
        out.push(format!("### Mixed up most\n\n{}", pairs.join("\n")));
    }
    let mistakes = model.mistakes.iter().map(|row| {
        let probability = row.probability.map_or(String::new(), percent);
        vec![plain(&row.text), plain(&row.label), plain(&row.predicted), probability]
    });
    if !model.mistakes.is_empty() {
        let mistakes = table(&["Query", "True", "Predicted", "Probability"], mistakes);
        out.push(format!("### Most confident mistakes\n\n{mistakes}"));
    }
}

fn table(columns: &[&str], rows: impl Iterator<Item = Vec<String>>) -> String {
    let line = |cells: &[String]| format!("| {} |", cells.join(" | "));
    let head: Vec<String> = columns.iter().map(|&column| column.to_owned()).collect();
    let mut lines = vec![line(&head), line(&vec!["---".to_owned(); columns.len()])];
    lines.extend(rows.map(|cells| line(&cells)));
    lines.join("\n")
}

/// One line of text that Markdown shows as it is: line breaks become blanks, markup is escaped.
fn plain(text: &str) -> String {
    let mut out = String::new();
    for word in text.split_whitespace() {
        if !out.is_empty() {
            out.push(' ');
        }
        for c in word.chars() {
            if matches!(c, '\\' | '`' | '*' | '_' | '[' | ']' | '<' | '>' | '#' | '|' | '~' | '&' | '!') {
                out.push('\\');
            }
            out.push(c);
        }
    }
    out
}
