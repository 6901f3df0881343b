//! Reliability, coverage, scope and cascade as inline SVG, coloured by the page's style sheet.

use super::format::{count, percent, usd};
use super::{ModelSection, ScopeSection};
use crate::calibration::{BINS, Reliability};
use crate::cascade::Cascade;
use maud::{Markup, html};
use std::fmt::Write;

/// The plot area's left, top, width and height, in the units of a 440 by 340 drawing.
const PLOT: (f64, f64, f64, f64) = (64.0, 14.0, 356.0, 270.0);

/// The horizontal place of a share, 0 to 1.
fn x_at(share: f64) -> f64 {
    round(PLOT.0 + share * PLOT.2)
}

/// The vertical place of a share on an axis from `low` to 1.
fn y_at(share: f64, low: f64) -> f64 {
    round(PLOT.1 + PLOT.3 * (1.0 - (share - low).max(0.0) / (1.0 - low)))
}

/// A tenth of a unit is finer than a pixel, and short numbers keep the page small.
fn round(value: f64) -> f64 {
    (value * 10.0).round() / 10.0
}

/// Accuracy by confidence: bars that reach the dashed diagonal are calibrated.
pub(super) fn reliability_diagram(reliability: &Reliability) -> Markup {
    let width = PLOT.2 / BINS as f64;
    let most = reliability.bins.iter().map(|bin| bin.count).max().unwrap_or(0).max(1);
    html! {
        svg class="chart" viewBox="0 0 440 340" role="img" aria-label="Reliability diagram" {
            (axes(0.0, "Probability given", "Share right"))
            @for (index, bin) in reliability.bins.iter().enumerate().filter(|(_, bin)| bin.count > 0) {
                @let (low, high) = (index as f64 / BINS as f64, (index + 1) as f64 / BINS as f64);
                // a bin of few rows says little, and looks it
                @let weight = round(2.5 + 6.5 * (bin.count as f64 / most as f64).sqrt()) / 10.0;
                g {
                    title {
                        (percent(low)) " to " (percent(high)) ": " (count(bin.count)) " rows, "
                        (percent(bin.accuracy)) " right, " (percent(bin.confidence)) " expected"
                    }
                    rect class="bar" x=(round(x_at(low) + 1.5)) y=(y_at(bin.accuracy, 0.0)) width=(round(width - 3.0))
                        height=(round(y_at(0.0, 0.0) - y_at(bin.accuracy, 0.0))) rx="1.5" fill-opacity=(weight) {}
                    line class="tick" x1=(round(x_at(low) + 1.5)) x2=(round(x_at(high) - 1.5))
                        y1=(y_at(bin.confidence, 0.0)) y2=(y_at(bin.confidence, 0.0)) {}
                }
            }
            line class="ideal" x1=(x_at(0.0)) y1=(y_at(0.0, 0.0)) x2=(x_at(1.0)) y2=(y_at(1.0, 0.0)) {}
        }
    }
}

/// Accuracy of what is routed by how much is routed: the judged model in the accent colour, others in grey.
pub(super) fn coverage_chart(models: &[ModelSection], judged: usize, target: Option<f64>) -> Markup {
    let low = floor(models.iter().flat_map(|model| &model.coverage).map(|point| point.accuracy));
    let others =
        models.iter().enumerate().filter(|&(index, model)| index != judged && !model.coverage.is_empty());
    html! {
        svg class="chart" viewBox="0 0 440 340" role="img" aria-label="Accuracy by share routed" {
            (axes(low, "Share of queries routed", "Share of them right"))
            @if let Some(target) = target.filter(|&target| target >= low) {
                line class="ideal" x1=(x_at(0.0)) x2=(x_at(1.0)) y1=(y_at(target, low)) y2=(y_at(target, low)) {
                    title { "target " (percent(target)) }
                }
            }
            @for (_, model) in others {
                path class="curve other" d=(curve(low, covered(model))) { title { (model.name) } }
            }
            path class="curve" d=(curve(low, covered(&models[judged]))) { title { (models[judged].name) } }
            @for point in models[judged].coverage.iter().step_by(4) {
                (hover(point.coverage, point.accuracy, low, &format!("probability {:.3} or more: {} routed, {} right",
                    point.threshold, percent(point.coverage), percent(point.accuracy))))
            }
        }
    }
}

fn covered(model: &ModelSection) -> impl Iterator<Item = (f64, f64)> + '_ {
    model.coverage.iter().map(|point| (point.coverage, point.accuracy))
}

/// In-scope accuracy by out-of-scope recall, with the point of the rule that was chosen on validation rows.
pub(super) fn scope_chart(scope: &ScopeSection) -> Markup {
    let points = || scope.curve.iter().map(|(_, scores)| (scores.recall, scores.in_scope_accuracy));
    let low = floor(points().map(|point| point.1).filter(|accuracy| *accuracy > 0.0));
    html! {
        svg class="chart" viewBox="0 0 440 340" role="img" aria-label="In-scope accuracy by out-of-scope recall" {
            (axes(low, "Out-of-scope queries recognised", "In-scope queries right"))
            path class="curve" d=(curve(low, points())) {}
            @for (threshold, scores) in scope.curve.iter().step_by(4) {
                (hover(scores.recall, scores.in_scope_accuracy, low, &format!(
                    "threshold {threshold:.3}: {} of the in-scope rows right, {} of the others recognised",
                    percent(scores.in_scope_accuracy), percent(scores.recall))))
            }
            circle class="chosen" cx=(x_at(scope.scores.recall)) cy=(y_at(scope.scores.in_scope_accuracy, low)) r="6" {
                title { "as it answers" }
            }
        }
    }
}

/// Accuracy by the share of queries that go on to the large model, with the chosen point.
pub(super) fn cascade_chart(cascade: &Cascade) -> Markup {
    let points = || cascade.points.iter().map(|point| (point.share, point.accuracy));
    let low = floor(points().map(|point| point.1));
    let chosen = cascade.point();
    html! {
        svg class="chart" viewBox="0 0 440 340" role="img" aria-label="Accuracy by share asked of the large model" {
            (axes(low, "Share of queries that go on", "Share of all queries right"))
            path class="curve" d=(curve(low, points())) {}
            @for point in cascade.points.iter().step_by(2) {
                (hover(point.share, point.accuracy, low, &format!(
                    "below probability {:.3}: {} go on, {} right{}", point.threshold.min(1.0), percent(point.share),
                    percent(point.accuracy),
                    point.cost_per_1000.map_or(String::new(), |cost| format!(", {} a thousand", usd(cost))))))
            }
            circle class="chosen" cx=(x_at(chosen.share)) cy=(y_at(chosen.accuracy, low)) r="6" { title { "chosen" } }
        }
    }
}

/// A place on a curve that tells its numbers when pointed at.
fn hover(share: f64, height: f64, low: f64, title: &str) -> Markup {
    html! {
        circle class="hover" cx=(x_at(share)) cy=(y_at(height, low)) r="5" { title { (title) } }
    }
}

/// Where a vertical axis begins: the next lower tenth, so that the gridlines are round numbers.
fn floor(heights: impl Iterator<Item = f64>) -> f64 {
    ((heights.fold(1.0, f64::min) * 10.0 - 0.2).floor() / 10.0).clamp(0.0, 0.9)
}

/// A line through points of (horizontal, vertical) shares.
fn curve(low: f64, points: impl Iterator<Item = (f64, f64)>) -> String {
    let mut path = String::new();
    for (index, (share, height)) in points.enumerate() {
        let step = if index == 0 { 'M' } else { 'L' };
        // writing to a `String` cannot fail
        let _ = write!(path, "{step}{} {}", x_at(share), y_at(height, low));
    }
    path
}

/// Gridlines, their numbers and the names of the axes.
fn axes(low: f64, x_name: &str, y_name: &str) -> Markup {
    let bottom = PLOT.1 + PLOT.3;
    html! {
        @for step in 0..=5 {
            @let share = f64::from(step) / 5.0;
            @let height = low + share * (1.0 - low);
            line class="grid" x1=(PLOT.0) x2=(PLOT.0 + PLOT.2) y1=(y_at(height, low)) y2=(y_at(height, low)) {}
            text class="axis" x=(PLOT.0 - 8.0) y=(y_at(height, low) + 4.0) text-anchor="end" { (format!("{:.0}%", height * 100.0)) }
            text class="axis" x=(x_at(share)) y=(bottom + 20.0) text-anchor="middle" { (format!("{:.0}%", share * 100.0)) }
        }
        text class="axis name" x=(PLOT.0 + PLOT.2 / 2.0) y=(bottom + 44.0) text-anchor="middle" { (x_name) }
        text class="axis name" transform=(format!("translate(12 {}) rotate(-90)", PLOT.1 + PLOT.3 / 2.0))
            text-anchor="middle" { (y_name) }
    }
}
