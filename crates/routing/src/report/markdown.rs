//! The report as Markdown, for a pull request or a model card.

use super::format::{count, percent, seconds, usd};
use super::section::{LabelErrors, labels_by_errors, mix_ups, named_facts, routed_from};
use super::versus::{goal_words, lines};
use super::{ModelSection, Report};
use crate::cascade::Cascade;

impl Report {
    /// The report as GitHub-flavoured Markdown, without its charts.
    pub fn to_markdown(&self) -> String {
        let mut out = vec![format!("# {}", plain(&self.title))];
        let findings: Vec<String> =
            self.summary.iter().map(|sentence| format!("- {}", plain(sentence))).collect();
        if !findings.is_empty() {
            out.push(findings.join("\n"));
        }
        let models = self.models.iter().map(|model| {
            let interval = model.accuracy_interval;
            vec![
                plain(&model.name),
                percent(model.metrics.accuracy),
                format!("{} to {}", percent(interval.low), percent(interval.high)),
                percent(model.metrics.macro_avg.f1),
                percent(model.metrics.weighted.f1),
                seconds(model.latency.map(|it| it.p50_s)),
                seconds(model.latency.map(|it| it.p95_s)),
                model.cost.as_ref().map_or_else(|| "–".to_owned(), |cost| usd(cost.per_1000)),
                seconds(model.seconds.train),
            ]
        });
        out.push(table(
            &[
                "Model",
                "Accuracy",
                "95% interval",
                "Macro F1",
                "Weighted F1",
                "p50",
                "p95",
                "1,000 queries",
                "Training",
            ],
            models,
        ));
        if !self.disagreements.is_empty() {
            let rows = self.disagreements.iter().map(|it| {
                let names = format!("{} and {}", plain(&it.first), plain(&it.second));
                let counts = [it.both_right, it.only_first, it.only_second, it.both_wrong, it.rows()];
                std::iter::once(names).chain(counts.map(count)).collect()
            });
            let columns = [
                "Models",
                "Both right",
                "Only the first",
                "Only the second",
                "Neither",
                "Say different things",
            ];
            out.push(table(&columns, rows));
        }
        for cascade in &self.cascades {
            push_cascade(&mut out, cascade);
        }
        for model in &self.models {
            push_model(&mut out, model);
        }
        if let Some(found) = self.suspects_found {
            out.push(format!("## Training rows worth a look\n\n{} may be labelled wrongly.", count(found)));
            let rows = self.suspects.iter().map(|it| {
                vec![
                    it.row.to_string(),
                    plain(&it.text),
                    plain(&it.label),
                    plain(&it.suggested),
                    percent(it.confidence),
                ]
            });
            if !self.suspects.is_empty() {
                out.push(table(&["Row", "Query", "Label", "Rather", "Sure"], rows));
            }
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
    let facts: Vec<String> = named_facts(model)
        .into_iter()
        .map(|(name, value)| format!("- {}: {}", plain(name), plain(&value)))
        .collect();
    if !facts.is_empty() {
        out.push(facts.join("\n"));
    }
    if let Some(reliability) = &model.reliability {
        let routed = model.routed.zip(model.thresholds.as_ref()).map_or(String::new(), |(routed, thresholds)| {
            let [coverage, precision] = [routed.coverage, routed.precision].map(percent);
            let goal = thresholds.goal.describe();
            format!(" With thresholds for {goal}, {coverage} of the rows are routed, {precision} of them right.")
        });
        out.push(format!("Calibration error {}.{routed}", percent(reliability.ece)));
    }
    if let Some(scope) = &model.scope {
        let [inside, recall, precision] =
            [scope.scores.in_scope_accuracy, scope.scores.recall, scope.scores.precision].map(percent);
        out.push(format!(
            "In scope {inside} are right; out of scope {recall} are recognised, {precision} of what it holds for such."
        ));
    }
    let labels = labels_by_errors(&model.metrics).into_iter().map(
        |LabelErrors { label, missed, received, taken_for }| {
            vec![
                plain(&label.label),
                label.support.to_string(),
                missed.to_string(),
                received.to_string(),
                format!("{:.3}", label.scores.precision),
                format!("{:.3}", label.scores.recall),
                format!("{:.3}", label.scores.f1),
                routed_from(model.thresholds.as_ref(), &label.label).unwrap_or_default(),
                taken_for.map_or(String::new(), |(other, times)| format!("{} ({times})", plain(other))),
            ]
        },
    );
    let columns = [
        "Label",
        "Rows",
        "Missed",
        "Wrongly sent",
        "Precision",
        "Recall",
        "F1",
        "Routed from",
        "Taken most for",
    ];
    out.push(table(&columns, labels));
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
    let mistakes = model.mistakes.iter().map(|mistake| {
        let row = &mistake.row;
        let probability = row.probability.map_or(String::new(), percent);
        let near = mistake.nearest.first();
        let near =
            near.map_or(String::new(), |near| format!("{}: {}", plain(&near.label), plain(&near.text)));
        vec![plain(&row.text), plain(&row.label), plain(&row.predicted), probability, near]
    });
    if !model.mistakes.is_empty() {
        let mistakes =
            table(&["Query", "True", "Predicted", "Probability", "Nearest training row"], mistakes);
        out.push(format!("### Most confident mistakes\n\n{mistakes}"));
    }
}

fn push_cascade(out: &mut Vec<String>, cascade: &Cascade) {
    let second = plain(&cascade.second);
    out.push(format!(
        "## Asking {second} only where unsure\n\nChosen: {} go on, for {}.",
        percent(cascade.point().share),
        goal_words(cascade.goal)
    ));
    let rows = lines(cascade).into_iter().map(|line| {
        vec![
            percent(line.share),
            format!("{:.3}", line.threshold.min(1.0)),
            percent(line.accuracy),
            line.cost_per_1000.map_or_else(|| "–".to_owned(), usd),
            seconds(line.p50_s),
            seconds(line.p95_s),
        ]
    });
    out.push(table(&["Go on", "Below", "Right", "1,000 queries", "p50", "p95"], rows));
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
