//! One model's part of the HTML page.

use super::charts::{coverage_chart, reliability_diagram, scope_chart};
use super::format::{count, percent, seconds, usd};
use super::matrix::confusion_matrix;
use super::{Mistake, ModelSection, ScopeSection};
use crate::calibration::{Goal, Thresholds};
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
            (confusion(&model.metrics, index))
            @if model.reliability.is_some() { (probabilities(models, index)) }
            @if let Some(scope) = &model.scope { (scope_part(scope)) }
            (labels(model))
            @if !model.mistakes.is_empty() { (mistakes(&model.mistakes)) }
        }
    }
}

/// What is known of a model beside its scores, as name and value.
pub(super) fn named_facts(model: &ModelSection) -> Vec<(&str, String)> {
    let timed = [("Training", model.seconds.train), ("Answering all rows", model.seconds.evaluate)];
    let mut facts: Vec<(&str, String)> = timed
        .into_iter()
        .filter(|(_, time)| time.is_some())
        .map(|(name, time)| (name, seconds(time)))
        .collect();
    if let Some(it) = &model.latency {
        let [p50, p95] = [it.p50_s, it.p95_s].map(|time| seconds(Some(time)));
        facts.push(("One query alone", format!("p50 {p50}, p95 {p95}")));
    }
    if let Some(cost) = &model.cost {
        facts.push(("1,000 queries", format!("{} ({})", usd(cost.per_1000), cost.basis)));
    }
    facts.extend(model.facts.iter().map(|fact| (fact.name.as_str(), fact.value.clone())));
    facts
}

fn facts(model: &ModelSection) -> Markup {
    html! {
        section class="facts" {
            h2 { (model.name) }
            dl {
                @for (name, value) in named_facts(model) {
                    div { dt { (name) } dd { (value) } }
                }
            }
        }
    }
}

fn confusion(metrics: &Metrics, index: usize) -> Markup {
    let pairs = mix_ups(metrics);
    html! {
        section {
            h3 { "Where queries went" }
            p class="muted" {
                "Each row is a true label, each column what the model said. "
                span class="key hit" {} " right, " span class="key miss" {}
                " mistaken; the stronger the shade, the larger the share."
            }
            (confusion_matrix(&metrics.confusion, index))
            @if !pairs.is_empty() {
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
    /// Rows of other labels that were predicted as this one.
    pub(super) received: usize,
    /// The label they were most often taken for, and how often.
    pub(super) taken_for: Option<(&'a str, usize)>,
}

/// All labels, those first that cost most: whose own rows went elsewhere, or that got rows of others.
pub(super) fn labels_by_errors(metrics: &Metrics) -> Vec<LabelErrors<'_>> {
    let confusion = &metrics.confusion;
    let errors = |(index, label): (usize, _)| {
        let right = confusion.matrix[index][index];
        LabelErrors {
            label,
            missed: confusion.support(index) - right,
            received: confusion.predicted(index) - right,
            taken_for: confusion.most_confused(index),
        }
    };
    let mut labels: Vec<LabelErrors<'_>> = metrics.per_label.iter().enumerate().map(errors).collect();
    labels.sort_by_key(|label| std::cmp::Reverse(label.missed + label.received));
    labels
}

/// The probability from which a label is routed, in words.
pub(super) fn routed_from(thresholds: Option<&Thresholds>, label: &str) -> Option<String> {
    let found = thresholds?.per_label.iter().find(|threshold| threshold.label == label)?;
    Some(found.threshold.map_or_else(|| "never".to_owned(), |threshold| format!("{threshold:.3}")))
}

fn labels(model: &ModelSection) -> Markup {
    let thresholds = model.thresholds.as_ref();
    let mut columns = vec!["Label", "Rows", "Missed", "Wrongly sent", "Precision", "Recall", "F1"];
    columns.extend(thresholds.map(|_| "Routed from"));
    columns.push("Taken most for");
    html! {
        section {
            h3 { "Label by label" }
            p class="muted" {
                "What costs most comes first: a department's own queries that went elsewhere, and those of others that it got."
            }
            div class="scroll" {
                table class="sortable" {
                    thead {
                        tr {
                            @for (index, column) in columns.iter().enumerate() {
                                @let text = index == 0 || index + 1 == columns.len();
                                th class=(if text { "name" } else { "n" }) scope="col" { (column) }
                            }
                        }
                    }
                    tbody {
                        @for LabelErrors { label, missed, received, taken_for } in labels_by_errors(&model.metrics) {
                            @let scores = label.scores;
                            tr {
                                td class="name" { (label.label) }
                                td class="n" { (label.support) }
                                td class="n strong" { (missed) }
                                td class="n strong" { (received) }
                                td class="n" { (format!("{:.3}", scores.precision)) }
                                td class="n" { (format!("{:.3}", scores.recall)) }
                                td class="n" { span class="meter" style=(format!("--share:{:.3}", scores.f1)) { (format!("{:.3}", scores.f1)) } }
                                @if thresholds.is_some() { td class="n" { (routed_from(thresholds, &label.label).unwrap_or_default()) } }
                                td { @if let Some((other, times)) = taken_for { (other) span class="muted" { " " (times) "×" } } }
                            }
                        }
                    }
                }
            }
        }
    }
}

fn mistakes(mistakes: &[Mistake]) -> Markup {
    html! {
        section {
            h3 { "Most confident mistakes" }
            p class="muted" {
                "Either the model is wrong here, or the label in the data is. Below each, the training rows that are most like it."
            }
            ol class="mistakes" {
                @for Mistake { row, nearest } in mistakes {
                    li {
                        p { (row.text) }
                        p class="muted" {
                            "truly " b { (row.label) } ", predicted " b class="wrong" { (row.predicted) }
                            @if let Some(probability) = row.probability { " at " (percent(probability)) }
                        }
                        @if !nearest.is_empty() {
                            ul class="nearest" {
                                @for near in nearest {
                                    li {
                                        span class="alike" title="how alike" { (format!("{:.2}", near.similarity)) }
                                        span { b { (near.label) } " “" (near.text) "”" }
                                    }
                                }
                            }
                        }
                    }
                }
            }
        }
    }
}

fn probabilities(models: &[ModelSection], index: usize) -> Markup {
    let model = &models[index];
    let target = model.thresholds.as_ref().and_then(|thresholds| match thresholds.goal {
        Goal::Precision { target } => Some(target),
        Goal::Cost { .. } => None,
    });
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
                            " With the thresholds chosen on validation rows for " (thresholds.goal.describe())
                            ", " (percent(routed.coverage)) " of these rows are routed and "
                            (percent(routed.precision)) " of those are right."
                        }
                    }
                }
            }
        }
    }
}

fn scope_part(scope: &ScopeSection) -> Markup {
    let scores = scope.scores;
    html! {
        section {
            h3 { "Queries that no label covers" }
            div class="charts" {
                @if !scope.curve.is_empty() { figure { (scope_chart(scope)) } }
                div {
                    p {
                        (percent(scores.in_scope_accuracy)) " of the " (count(scores.in_scope_rows)) " queries in scope are right, "
                        (percent(scores.recall)) " of the " (count(scores.out_of_scope_rows)) " out of scope (" b { (scope.label) }
                        ") are recognised, and " (percent(scores.precision)) " of what it holds to be out of scope truly is."
                    }
                    @if let Some(rule) = &scope.rule {
                        p class="muted" {
                            "The rule was chosen on validation rows alone: below a top probability of " (format!("{:.3}", rule.threshold))
                            " a query counts as out of scope. There it kept " (percent(rule.validation.in_scope_accuracy))
                            " in-scope accuracy and recognised " (percent(rule.validation.recall)) "."
                        }
                    }
                    @if !scope.curve.is_empty() {
                        p class="muted" { "The curve is every other threshold on these rows; the ring is how the model answers." }
                    }
                }
            }
        }
    }
}
