//! The report as one HTML page: no network, no fonts to load, readable without its few lines of script.

use super::format::{count, percent, seconds};
use super::section::model_section;
use super::{ModelSection, Provenance, Report};
use maud::{DOCTYPE, Markup, PreEscaped, html};

const STYLE: &str = include_str!("style.css");
const SCRIPT: &str = include_str!("sort.js");
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
                        (provenance(&self.made))
                    }
                    script { (PreEscaped(SCRIPT)) }
                }
            }
        };
        page.into_string()
    }
}

/// The title, the findings, and the judged model's numbers in large type.
fn header(report: &Report) -> Markup {
    html! {
        header {
            p class="eyebrow" { "Evaluation report" }
            h1 { (report.title) }
            @for comparison in &report.comparisons {
                p class="lead" { (comparison.sentence()) }
            }
            @if let Some(model) = report.models.first() {
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
                            "{} of it right, {} wanted", percent(routed.precision), percent(thresholds.target))))
                    }
                }
            }
        }
    }
}

fn number(name: &str, value: &str, note: &str) -> Markup {
    html! {
        div {
            dt { (name) }
            dd { (value) }
            dd class="note" { (note) }
        }
    }
}

/// All models side by side, with their accuracy intervals on one scale.
fn models_table(models: &[ModelSection]) -> Markup {
    let low = models.iter().map(|model| model.accuracy_interval.low).fold(1.0, f64::min);
    let high = models.iter().map(|model| model.accuracy_interval.high).fold(0.0, f64::max);
    let at = |share: f64| format!("{:.1}", 6.0 + 118.0 * (share - low) / (high - low).max(f64::EPSILON));
    html! {
        section {
            h2 { "Models on the same rows" }
            div class="scroll" {
                table {
                    thead {
                        tr {
                            th class="name" { "Model" } th class="n" { "Accuracy" } th { "95% interval" } th class="n" { "Macro F1" }
                            th class="n" { "Weighted F1" } th class="n" { "Training" } th class="n" { "Answering" }
                        }
                    }
                    tbody {
                        @for (index, model) in models.iter().enumerate() {
                            @let interval = model.accuracy_interval;
                            tr class=[(index == 0).then_some("judged")] {
                                td class="name" { (model.name) }
                                td class="n strong" { (percent(model.metrics.accuracy)) }
                                td {
                                    svg class="interval" viewBox="0 0 130 16" width="130" height="16" role="img"
                                        aria-label=(format!("{} to {}", percent(interval.low), percent(interval.high))) {
                                        line x1=(at(interval.low)) x2=(at(interval.high)) y1="8" y2="8" {}
                                        circle cx=(at(model.metrics.accuracy)) cy="8" r="4.5" {}
                                    }
                                    span class="muted" { (format!("{:.1}–{:.1}", interval.low * 100.0, interval.high * 100.0)) }
                                }
                                td class="n" { (percent(model.metrics.macro_avg.f1)) }
                                td class="n" { (percent(model.metrics.weighted.f1)) }
                                td class="n" { (seconds(model.seconds.train)) }
                                td class="n" { (seconds(model.seconds.evaluate)) }
                            }
                        }
                    }
                }
            }
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
                "differences carry a paired bootstrap interval, and McNemar's test is exact."
            }
        }
    }
}
