//! One model's part of the HTML page.

use super::charts::{coverage_chart, reliability_diagram};
use super::confusion_chart::confusion_chart;
use super::format::{count, percent, seconds};
use super::{ModelSection, Prediction};
use crate::metrics::{LabelScores, Metrics};
use maud::{Markup, html};

/// Pairs of labels listed as mixed up most.
const MIX_UPS: usize = 10;

/// Facts, confusion, labels, mistakes and probabilities of `models[index]`.
pub(super) fn model_section(models: &[ModelSection], index: usize) -> Markup {
    let model = &models[index];
    html! {
        (facts(model))
        @if model.metrics.n > 0 {
            (confusion(&model.metrics))
            @if model.reliability.is_some() { (probabilities(models, index)) }
            (labels(&model.metrics))
            @if !model.mistakes.is_empty() { (mistakes(&model.mistakes)) }
        }
    }
}

fn facts(model: &ModelSection) -> Markup {
    let timed = [("Training", model.seconds.train), ("Answering", model.seconds.evaluate)];
    html! {
        section class="facts" {
            h2 { (model.name) }
            dl {
                @for (name, time) in timed.into_iter().filter(|(_, time)| time.is_some()) {
                    div { dt { (name) } dd { (seconds(time)) } }
                }
                @for fact in &model.facts {
                    div { dt { (fact.name) } dd { (fact.value) } }
                }
            }
        }
    }
}

fn confusion(metrics: &Metrics) -> Markup {
    html! {
        section {
            h3 { "Where queries went" }
            p class="muted" {
                "Each row is a true label, each column what the model said. "
                span class="key hit" {} " right, " span class="key miss" {} " mistaken; the stronger the shade, the larger its share of the row."
            }
            div class="matrix" {
                (confusion_chart(&metrics.confusion))
                @let pairs = mix_ups(metrics);
                @if !pairs.is_empty() {
                    div class="mix-ups" {
                        h4 { "Mixed up most" }
                        ol class="pairs" {
                            @for (truth, predicted, wrong, support) in pairs {
                                li {
                                    span class="pair" { b { (truth) } " taken for " b { (predicted) } }
                                    span class="muted" { (wrong) " of " (support) }
                                }
                            }
                        }
                    }
                }
            }
        }
    }
}

/// The most frequent mistakes: true label, predicted label, count, rows of the true label.
pub(super) fn mix_ups(metrics: &Metrics) -> Vec<(&str, &str, usize, usize)> {
    let confusion = &metrics.confusion;
    let mut pairs: Vec<(&str, &str, usize, usize)> = Vec::new();
    for (truth, row) in confusion.matrix.iter().enumerate() {
        for (predicted, &wrong) in row.iter().enumerate().filter(|&(at, &wrong)| at != truth && wrong > 0) {
            pairs.push((
                &confusion.labels[truth],
                &confusion.labels[predicted],
                wrong,
                confusion.support(truth),
            ));
        }
    }
    pairs.sort_by_key(|pair| std::cmp::Reverse(pair.2));
    pairs.truncate(MIX_UPS);
    pairs
}

/// A row of the table of labels.
pub(super) struct LabelErrors<'a> {
    pub(super) label: &'a LabelScores,
    /// Rows of the label that were predicted as another.
    pub(super) missed: usize,
    /// The label they were most often taken for, and how often.
    pub(super) taken_for: Option<(&'a str, usize)>,
}

/// All labels, the ones with the most missed rows first.
pub(super) fn labels_by_errors(metrics: &Metrics) -> Vec<LabelErrors<'_>> {
    let confusion = &metrics.confusion;
    let errors = |(index, label): (usize, _)| LabelErrors {
        label,
        missed: confusion.support(index) - confusion.matrix[index][index],
        taken_for: confusion.most_confused(index),
    };
    let mut labels: Vec<LabelErrors<'_>> = metrics.per_label.iter().enumerate().map(errors).collect();
    labels.sort_by_key(|label| std::cmp::Reverse(label.missed));
    labels
}

fn labels(metrics: &Metrics) -> Markup {
    let columns = ["Label", "Rows", "Missed", "Precision", "Recall", "F1", "Taken most for"];
    html! {
        section {
            h3 { "Label by label" }
            p class="muted" { "The labels with the most missed rows first." }
            div class="scroll" {
                table class="sortable" {
                    thead {
                        tr {
                            @for (index, column) in columns.iter().enumerate() {
                                th class=(if (1..=5).contains(&index) { "n" } else { "name" }) scope="col" { (column) }
                            }
                        }
                    }
                    tbody {
                        @for LabelErrors { label, missed, taken_for } in labels_by_errors(metrics) {
                            @let scores = label.scores;
                            tr {
                                td class="name" { (label.label) }
                                td class="n" { (label.support) }
                                td class="n strong" { (missed) }
                                td class="n" { (format!("{:.3}", scores.precision)) }
                                td class="n" { (format!("{:.3}", scores.recall)) }
                                td class="n" { span class="meter" style=(format!("--share:{:.3}", scores.f1)) { (format!("{:.3}", scores.f1)) } }
                                td { @if let Some((other, times)) = taken_for { (other) span class="muted" { " " (times) "×" } } }
                            }
                        }
                    }
                }
            }
        }
    }
}

fn mistakes(mistakes: &[Prediction]) -> Markup {
    html! {
        section {
            h3 { "Most confident mistakes" }
            p class="muted" { "Either the model is wrong here, or the label in the data is: worth a look either way." }
            ol class="mistakes" {
                @for row in mistakes {
                    li {
                        p { (row.text) }
                        p class="muted" {
                            "truly " b { (row.label) } ", predicted " b class="wrong" { (row.predicted) }
                            @if let Some(probability) = row.probability { " at " (percent(probability)) }
                        }
                    }
                }
            }
        }
    }
}

fn probabilities(models: &[ModelSection], index: usize) -> Markup {
    let model = &models[index];
    let target = model.thresholds.as_ref().map(|thresholds| thresholds.target);
    html! {
        section {
            h3 { "How far its probabilities can be trusted" }
            div class="charts" {
                figure {
                    @if let Some(reliability) = &model.reliability {
                        (reliability_diagram(reliability))
                        figcaption {
                            b { "Reliability." } " Bars on the dashed line: 90% sure is right nine times in ten. Calibration error "
                            (percent(reliability.ece)) " over " (reliability.bins.len()) " equal bins; paler bars hold fewer rows."
                            @if let Some(fitted) = &model.calibration {
                                " Temperature " (format!("{:.2}", fitted.temperature)) ", fitted on " (count(fitted.rows))
                                " validation rows, took theirs from " (percent(fitted.ece_before)) " to " (percent(fitted.ece_after)) "."
                            }
                        }
                    }
                }
                figure {
                    (coverage_chart(models, index, target))
                    figcaption {
                        b { "Coverage." } " The more queries are routed without a person, the surest first, the more of them are wrong."
                        @if let (Some(routed), Some(thresholds)) = (model.routed, &model.thresholds) {
                            " With the thresholds chosen on validation rows for " (percent(thresholds.target))
                            " right, " (percent(routed.coverage)) " of these rows are routed and "
                            (percent(routed.precision)) " of those are right."
                        }
                    }
                }
            }
        }
    }
}
