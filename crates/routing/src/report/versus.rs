//! The parts of the HTML page that hold several models beside each other: their numbers, whether they differ, and what
//! a cascade of two would do; and the training rows to look at.

use super::charts::cascade_chart;
use super::format::{count, percent, seconds, usd};
use super::matrix::disagreement_matrix;
use super::{Disagreement, ModelSection, Report};
use crate::cascade::{Cascade, CascadeGoal, CascadePoint};
use crate::compare::Comparison;
use crate::suspects::{Reason, Suspect};
use maud::{Markup, html};

/// Shares of the queries for which a cascade's table has a line.
const SHARES: [f64; 7] = [0.0, 0.05, 0.1, 0.2, 0.3, 0.5, 1.0];

/// All models side by side, with their accuracy intervals on one scale.
pub(super) fn models_table(models: &[ModelSection]) -> Markup {
    let low = models.iter().map(|model| model.accuracy_interval.low).fold(1.0, f64::min);
    let high = models.iter().map(|model| model.accuracy_interval.high).fold(0.0, f64::max);
    let at = |share: f64| format!("{:.1}", 6.0 + 118.0 * (share - low) / (high - low).max(f64::EPSILON));
    let scoped = models.iter().any(|model| model.scope.is_some());
    let or_dash = |value: Option<String>| value.unwrap_or_else(|| "–".to_owned());
    html! {
        section {
            h2 { "Models on the same rows" }
            div class="scroll" {
                table {
                    thead {
                        tr {
                            th class="name" { "Model" } th class="n" { "Accuracy" } th { "95% interval" } th class="n" { "Macro F1" }
                            th class="n" { "Weighted F1" }
                            @if scoped { th class="n" { "In scope" } th class="n" { "Out of scope" } }
                            th class="n" { "One query, p50" } th class="n" { "p95" } th class="n" { "1,000 queries" } th class="n" { "Training" }
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
                                @if scoped {
                                    td class="n" { (or_dash(model.scope.as_ref().map(|scope| percent(scope.scores.in_scope_accuracy)))) }
                                    td class="n" { (or_dash(model.scope.as_ref().map(|scope| percent(scope.scores.recall)))) }
                                }
                                td class="n" { (seconds(model.latency.map(|it| it.p50_s))) }
                                td class="n" { (seconds(model.latency.map(|it| it.p95_s))) }
                                td class="n" { (or_dash(model.cost.as_ref().map(|cost| usd(cost.per_1000)))) }
                                td class="n" { (seconds(model.seconds.train)) }
                            }
                        }
                    }
                }
            }
        }
    }
}

/// Each pair: the finding, its interval, who is right where, and where they differ.
pub(super) fn comparisons(report: &Report) -> Markup {
    let widest = report
        .comparisons
        .iter()
        .flat_map(|it| [it.accuracy_interval.low.abs(), it.accuracy_interval.high.abs()])
        .fold(0.01, f64::max);
    html! {
        section {
            h2 { "Is the difference real?" }
            p class="muted" {
                "Each dot is how many points more the first model has right on the same rows, each line its paired bootstrap "
                "interval. A line that crosses zero shows no difference."
            }
            @for (pair, (comparison, disagreement)) in report.comparisons.iter().zip(&report.disagreements).enumerate() {
                article class="pair-of-models" {
                    h3 { (comparison.first) " and " (comparison.second) }
                    (difference(comparison, widest))
                    p { (comparison.sentence()) }
                    (who_is_right(disagreement))
                    @if disagreement.rows() > 0 {
                        details {
                            summary {
                                "Where they disagree " span { (count(disagreement.rows())) " of " (count(comparison.n)) " rows" }
                            }
                            p class="muted" {
                                "Each row is what " (comparison.first) " says, each column what " (comparison.second)
                                " says; equal answers are left out."
                            }
                            (disagreement_matrix(disagreement, pair))
                        }
                    }
                }
            }
        }
    }
}

/// The interval of a difference on a line with zero in its middle.
fn difference(comparison: &Comparison, widest: f64) -> Markup {
    let at = |share: f64| format!("{:.1}", 160.0 + 150.0 * share / widest);
    let interval = comparison.accuracy_interval;
    let points = |share: f64| format!("{:+.1}", share * 100.0);
    html! {
        svg class="difference" viewBox="0 0 320 40" role="img"
            aria-label=(format!("{} points, {} to {}", points(comparison.accuracy_difference), points(interval.low), points(interval.high))) {
            line class="zero" x1="160" x2="160" y1="2" y2="26" {}
            line class="range" x1=(at(interval.low)) x2=(at(interval.high)) y1="14" y2="14" {}
            circle cx=(at(comparison.accuracy_difference)) cy="14" r="5" {}
            text x="10" y="38" { (points(-widest)) } text x="160" y="38" text-anchor="middle" { "0" }
            text x="310" y="38" text-anchor="end" { (points(widest)) }
        }
    }
}

fn who_is_right(it: &Disagreement) -> Markup {
    let parts = [
        ("both", "both right", it.both_right),
        ("first", "only the first", it.only_first),
        ("second", "only the second", it.only_second),
        ("neither", "neither", it.both_wrong),
    ];
    html! {
        div class="shares" {
            @for (class, name, rows) in parts.into_iter().filter(|part| part.2 > 0) {
                div class=(class) style=(format!("flex-grow:{rows}")) title=(format!("{name}: {rows} rows")) {}
            }
        }
        ul class="legend" {
            @for (class, name, rows) in parts {
                li { span class=(format!("key {class}")) {} (name) " " b { (count(rows)) } }
            }
        }
    }
}

/// What asking a large model about the least certain queries would do.
pub(super) fn cascade(cascade: &Cascade) -> Markup {
    let point = cascade.point();
    html! {
        section {
            h2 { "Asking " (cascade.second) " only where unsure" }
            div class="charts" {
                figure {
                    (cascade_chart(cascade))
                    figcaption {
                        "All queries go to " (cascade.first) "; those it is least sure of go on to " (cascade.second)
                        ". From answers both have given to these rows. The ring is the chosen point: " (goal_words(cascade.goal)) "."
                    }
                }
                div {
                    div class="scroll" {
                        table {
                            thead {
                                tr {
                                    th class="n" { "Go on" } th class="n" { "Below" } th class="n" { "Right" }
                                    th class="n" { "1,000 queries" } th class="n" { "p50" } th class="n" { "p95" }
                                }
                            }
                            tbody {
                                @for line in lines(cascade) {
                                    tr class=[(line == *point).then_some("chosen")] {
                                        td class="n" { (percent(line.share)) }
                                        td class="n" { (format!("{:.3}", line.threshold.min(1.0))) }
                                        td class="n" { (percent(line.accuracy)) }
                                        td class="n" { (line.cost_per_1000.map_or_else(|| "–".to_owned(), usd)) }
                                        td class="n" { (seconds(line.p50_s)) }
                                        td class="n" { (seconds(line.p95_s)) }
                                    }
                                }
                            }
                        }
                    }
                    p class="muted" {
                        "The bold line is the chosen point. It was chosen on these very rows, which flatters it a little."
                    }
                }
            }
        }
    }
}

/// The points of a cascade that a table shows: the chosen one among round shares.
pub(super) fn lines(cascade: &Cascade) -> Vec<CascadePoint> {
    let at = |share: f64| cascade.points.iter().find(|point| point.share >= share - 1e-9).copied();
    let mut lines: Vec<CascadePoint> = SHARES.into_iter().filter_map(at).chain([*cascade.point()]).collect();
    lines.sort_by(|a, b| a.share.total_cmp(&b.share));
    lines.dedup();
    lines
}

/// What a point was chosen for, in words.
pub(super) fn goal_words(goal: CascadeGoal) -> String {
    match goal {
        CascadeGoal::Accuracy => "the highest accuracy for the fewest queries that go on".to_owned(),
        CascadeGoal::AtLeast(least) => format!("the fewest queries that reach {}", percent(least)),
        CascadeGoal::AtMostCost(most) => format!("the highest accuracy for {} a thousand", usd(most)),
        CascadeGoal::AtMostShare(most) => format!("the highest accuracy with {} going on", percent(most)),
    }
}

/// Training rows whose label may be wrong.
pub(super) fn suspects(found: usize, suspects: &[Suspect]) -> Markup {
    html! {
        section {
            h2 { "Training rows worth a look" }
            p class="muted" {
                @if found == 0 { "No training row is suspected to be labelled wrongly." }
                @else {
                    (count(found)) " training rows may be labelled wrongly: a model that has not seen the row is sure of another label, or "
                    "near copies of it have one. "
                    @if found > suspects.len() { "The " (suspects.len()) " surest; " code { "frontdesk check --suspects FILE" } " writes all, to be corrected." }
                    @else { code { "frontdesk check --suspects FILE" } " writes them, to be corrected." }
                }
            }
            ol class="mistakes" {
                @for it in suspects {
                    li {
                        p { (it.text) }
                        p class="muted" {
                            "row " (count(it.row)) ", labelled " b { (it.label) } ", rather " b class="wrong" { (it.suggested) }
                            " (" (percent(it.confidence))
                            @match it.reason { Reason::OutOfFold => {} Reason::NearCopy => " of its near copies" }
                            ")"
                        }
                    }
                }
            }
        }
    }
}
