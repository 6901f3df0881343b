//! The report as one HTML page: no network, no fonts to load, readable without its few lines of script.

use super::format::{count, percent, seconds, usd};
use super::section::model_section;
use super::versus::{cascade, comparisons, models_table, suspects};
use super::{ModelSection, Provenance, Report};
use maud::{DOCTYPE, Markup, PreEscaped, html};

const STYLE: &str = include_str!("style.css");
const SCRIPT: &str = include_str!("page.js");
/// Nothing is loaded from anywhere, whatever a label or a query may contain.
const POLICY: &str = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'";

impl Report {
    /// The report as a self-contained HTML page.
    pub fn to_html(&self) -> String {
        let page = html! {
            (DOCTYPE)
            html lang="en" {
                head {
                    meta charset="utf-8";
                    meta name="viewport" content="width=device-width, initial-scale=1";
                    meta name="color-scheme" content="light dark";
                    meta http-equiv="Content-Security-Policy" content=(POLICY);
                    title { (self.title) }
                    style { (PreEscaped(STYLE)) }
                }
                body {
                    main {
                        (header(self))
                        @if self.models.len() > 1 { (models_table(&self.models)) }
                        @if !self.comparisons.is_empty() { (comparisons(self)) }
                        @for it in &self.cascades { (cascade(it)) }
                        @for (index, model) in self.models.iter().enumerate() {
                            @if index == 0 {
                                (model_section(&self.models, index))
                            } @else {
                                details class="model" {
                                    summary { (model.name) span { "in detail" } }
                                    (model_section(&self.models, index))
                                }
                            }
                        }
                        @if let Some(found) = self.suspects_found { (suspects(found, &self.suspects)) }
                        (provenance(&self.made))
                    }
                    script { (PreEscaped(SCRIPT)) }
                }
            }
        };
        page.into_string()
    }
}

/// The title, the judged model's numbers in large type, and the findings in words.
fn header(report: &Report) -> Markup {
    html! {
        header {
            p class="eyebrow" { "Evaluation report" }
            h1 { (report.title) }
            @if let Some((first, rest)) = report.summary.split_first() {
                p class="lead" { (first) }
                @if let Some(model) = report.models.first() { (numbers(model)) }
                @if !rest.is_empty() {
                    ul class="findings" { @for sentence in rest { li { (sentence) } } }
                }
            }
        }
    }
}

fn numbers(model: &ModelSection) -> Markup {
    html! {
        dl class="numbers" {
            (number("Accuracy", &percent(model.metrics.accuracy), &format!(
                "95% interval {} to {}, {} rows", percent(model.accuracy_interval.low),
                percent(model.accuracy_interval.high), count(model.metrics.n))))
            (number("Macro F1", &percent(model.metrics.macro_avg.f1), &format!(
                "over {} labels; weighted {}", model.metrics.per_label.len(), percent(model.metrics.weighted.f1))))
            @if let Some(reliability) = &model.reliability {
                (number("Calibration error", &percent(reliability.ece), "mean gap between probability and share right"))
            }
            @if let (Some(routed), Some(thresholds)) = (model.routed, &model.thresholds) {
                (number("Routed unaided", &percent(routed.coverage), &format!(
                    "{} of it right; thresholds for {}", percent(routed.precision), thresholds.goal.describe())))
            }
            @if let Some(scope) = &model.scope {
                (number("Out of scope", &percent(scope.scores.recall), &format!(
                    "recognised, at {} in-scope accuracy", percent(scope.scores.in_scope_accuracy))))
            }
            @if let Some(latency) = model.latency {
                (number("One query", &seconds(Some(latency.p50_s)), &format!(
                    "at the median, 95% within {}", seconds(Some(latency.p95_s)))))
            }
            @if let Some(cost) = &model.cost {
                (number("1,000 queries", &usd(cost.per_1000), &cost.basis))
            }
        }
    }
}

fn number(name: &str, value: &str, note: &str) -> Markup {
    html! {
        div {
            dt { (name) }
            // the unit in small type
            @let (digits, unit) = value.split_once(' ').unwrap_or((value, ""));
            dd { (digits) @if !unit.is_empty() { small { " " (unit) } } }
            dd class="note" { (note) }
        }
    }
}

/// The command, the inputs with their hashes, and the versions.
fn provenance(made: &Provenance) -> Markup {
    html! {
        section class="made" {
            h2 { "How this was made" }
            @if !made.command.is_empty() { pre { code { (made.command) } } }
            div class="scroll" {
                table {
                    tbody {
                        @for input in &made.inputs {
                            tr {
                                th { (input.role) }
                                td { (input.name) span class="muted" { " " (input.size) } }
                                td class="hash" title="SHA-256" { (input.sha256) }
                            }
                        }
                        tr { th { "seed" } td colspan="2" { (made.seed) } }
                        @for version in &made.versions {
                            tr { th { (version.name) } td colspan="2" { (version.value) } }
                        }
                    }
                }
            }
            p class="muted" {
                "Metrics follow scikit-learn; a score whose denominator is zero counts as 0. Accuracy intervals are Wilson's, "
                "differences carry a paired bootstrap interval, and McNemar's test is exact. The calibration error has 15 equal bins."
            }
        }
    }
}
