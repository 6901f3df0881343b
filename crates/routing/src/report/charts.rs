//! The reliability diagram and the coverage curve as inline SVG, coloured by the page's style sheet.

use super::format::{count, percent};
use super::{CoveragePoint, ModelSection};
use crate::calibration::{BINS, Reliability};
use maud::{Markup, html};
use std::fmt::Write;

/// The plot area's left, top, width and height, in the units of a 440 by 340 drawing.
const PLOT: (f64, f64, f64, f64) = (64.0, 14.0, 356.0, 270.0);

/// Maps shares to the plot area; `x` spans 0 to 1 and `y` spans `low` to 1.
#[derive(Clone, Copy)]
struct Scale {
    low: f64,
}

impl Scale {
    fn x(self, share: f64) -> f64 {
        round(PLOT.0 + share * PLOT.2)
    }

    fn y(self, share: f64) -> f64 {
        round(PLOT.1 + PLOT.3 * (1.0 - (share - self.low).max(0.0) / (1.0 - self.low)))
    }
}

/// A tenth of a unit is finer than a pixel, and short numbers keep the page small.
fn round(value: f64) -> f64 {
    (value * 10.0).round() / 10.0
}

/// Accuracy by confidence: bars that reach the dashed diagonal are calibrated.
pub(super) fn reliability_diagram(reliability: &Reliability) -> Markup {
    let scale = Scale { low: 0.0 };
    let width = PLOT.2 / BINS as f64;
    let most = reliability.bins.iter().map(|bin| bin.count).max().unwrap_or(0).max(1);
    html! {
        svg class="chart" viewBox="0 0 440 340" role="img" aria-label="Reliability diagram" {
            (axes(scale, "Probability given", "Share right"))
            @for (index, bin) in reliability.bins.iter().enumerate().filter(|(_, bin)| bin.count > 0) {
                @let (low, high) = (index as f64 / BINS as f64, (index + 1) as f64 / BINS as f64);
                // a bin of few rows says little, and looks it
                @let weight = round(2.5 + 6.5 * (bin.count as f64 / most as f64).sqrt()) / 10.0;
                g {
                    title {
                        (percent(low)) " to " (percent(high)) ": " (count(bin.count)) " rows, "
                        (percent(bin.accuracy)) " right, " (percent(bin.confidence)) " expected"
                    }
                    rect class="bar" x=(round(scale.x(low) + 1.5)) y=(scale.y(bin.accuracy)) width=(round(width - 3.0))
                        height=(round(scale.y(0.0) - scale.y(bin.accuracy))) rx="1.5" fill-opacity=(weight) {}
                    line class="tick" x1=(round(scale.x(low) + 1.5)) x2=(round(scale.x(high) - 1.5))
                        y1=(scale.y(bin.confidence)) y2=(scale.y(bin.confidence)) {}
                }
            }
            line class="ideal" x1=(scale.x(0.0)) y1=(scale.y(0.0)) x2=(scale.x(1.0)) y2=(scale.y(1.0)) {}
        }
    }
}

/// Accuracy of what is routed by how much is routed: the judged model in the accent colour, others in grey.
pub(super) fn coverage_chart(models: &[ModelSection], judged: usize, target: Option<f64>) -> Markup {
    let lowest =
        models.iter().flat_map(|model| &model.coverage).map(|point| point.accuracy).fold(1.0, f64::min);
    // to the next lower tenth, so that the gridlines are round numbers
    let scale = Scale { low: ((lowest * 10.0 - 0.2).floor() / 10.0).clamp(0.0, 0.9) };
    let others =
        models.iter().enumerate().filter(|&(index, model)| index != judged && !model.coverage.is_empty());
    html! {
        svg class="chart" viewBox="0 0 440 340" role="img" aria-label="Accuracy by share routed" {
            (axes(scale, "Share of queries routed", "Share of them right"))
            @if let Some(target) = target.filter(|&target| target >= scale.low) {
                line class="ideal" x1=(scale.x(0.0)) x2=(scale.x(1.0)) y1=(scale.y(target)) y2=(scale.y(target)) {
                    title { "target " (percent(target)) }
                }
            }
            @for (_, model) in others {
                path class="curve other" d=(curve(scale, &model.coverage)) { title { (model.name) } }
            }
            path class="curve" d=(curve(scale, &models[judged].coverage)) { title { (models[judged].name) } }
            @for point in models[judged].coverage.iter().step_by(4) {
                circle class="hover" cx=(scale.x(point.coverage)) cy=(scale.y(point.accuracy)) r="5" {
                    title {
                        "probability " (format!("{:.3}", point.threshold)) " or more: " (percent(point.coverage))
                        " routed, " (percent(point.accuracy)) " right"
                    }
                }
            }
        }
    }
}

fn curve(scale: Scale, points: &[CoveragePoint]) -> String {
    let mut path = String::new();
    for (index, point) in points.iter().enumerate() {
        let step = if index == 0 { 'M' } else { 'L' };
        // writing to a `String` cannot fail
        let _ = write!(path, "{step}{} {}", scale.x(point.coverage), scale.y(point.accuracy));
    }
    path
}

/// Gridlines, their numbers and the names of the axes.
fn axes(scale: Scale, x_name: &str, y_name: &str) -> Markup {
    let bottom = PLOT.1 + PLOT.3;
    html! {
        @for step in 0..=5 {
            @let share = f64::from(step) / 5.0;
            @let height = scale.low + share * (1.0 - scale.low);
            line class="grid" x1=(PLOT.0) x2=(PLOT.0 + PLOT.2) y1=(scale.y(height)) y2=(scale.y(height)) {}
            text class="axis" x=(PLOT.0 - 8.0) y=(scale.y(height) + 4.0) text-anchor="end" { (format!("{:.0}%", height * 100.0)) }
            text class="axis" x=(scale.x(share)) y=(bottom + 20.0) text-anchor="middle" { (format!("{:.0}%", share * 100.0)) }
        }
        text class="axis name" x=(PLOT.0 + PLOT.2 / 2.0) y=(bottom + 44.0) text-anchor="middle" { (x_name) }
        text class="axis name" transform=(format!("translate(12 {}) rotate(-90)", PLOT.1 + PLOT.3 / 2.0))
            text-anchor="middle" { (y_name) }
    }
}
