//! The confusion matrix as inline SVG: right answers in grey, mistakes in the accent colour.

use super::format::{percent, shorten};
use crate::metrics::Confusion;
use maud::{Markup, html};
use std::fmt::Write;

/// Characters of a label's name at most; the tooltip has all of them.
const NAME_CHARS: usize = 28;

/// Sizes in pixels, by the number of labels.
struct Layout {
    cell: usize,
    font: f64,
    /// Room for the names, left of the cells and above them.
    gutter: usize,
    /// Few labels: counts in the cells, and names above them slanted instead of upright.
    roomy: bool,
}

impl Layout {
    fn new(labels: &[String]) -> Self {
        let (cell, font, roomy) = match labels.len() {
            0..=8 => (52, 13.0, true),
            9..=14 => (44, 13.0, true),
            15..=24 => (34, 12.0, true),
            25..=50 => (18, 11.0, false),
            51..=90 => (12, 10.0, false),
            _ => (10, 8.5, false),
        };
        let longest = labels.iter().map(|label| label.chars().count().min(NAME_CHARS)).max().unwrap_or(0);
        // 0.6 em a character holds for the widest of the usual fonts
        let gutter = (longest as f64 * font * 0.6) as usize + 14;
        Self { cell, font, gutter, roomy }
    }
}

/// The matrix with true labels as rows; shades are shares of the row, and every counted cell has a tooltip.
pub(super) fn confusion_chart(confusion: &Confusion) -> Markup {
    let n = confusion.labels.len();
    let Layout { cell, font, gutter, roomy } = Layout::new(&confusion.labels);
    // slanted names need less room above and some to the right
    let (above, right) = if roomy { (gutter * 3 / 4 + 8, gutter * 3 / 4) } else { (gutter, 4) };
    let (width, height) = (gutter + n * cell + right, above + n * cell + 4);
    let slant = if roomy { -45 } else { -90 };
    html! {
        // the page lets a wide matrix out of its column, and needs its width for that
        div class="scroll wide" style=(format!("--natural:{width}px")) {
            svg class="confusion" width=(width) height=(height) viewBox=(format!("0 0 {width} {height}")) role="img"
                aria-label=(format!("Confusion matrix of {n} labels")) style=(format!("font-size:{font}px")) {
                rect class="field" x=(gutter) y=(above) width=(n * cell) height=(n * cell) {}
                path class="grid" d=(grid_lines(n, cell, gutter, above, if roomy { 1 } else { 5 })) {}
                @for (index, label) in confusion.labels.iter().enumerate() {
                    @let centre = index * cell + cell / 2;
                    @let name = shorten(label, NAME_CHARS);
                    text x=(gutter - 6) y=(above + centre) text-anchor="end" dominant-baseline="central" {
                        (name) title { (label) ", truly " (confusion.support(index)) }
                    }
                    text transform=(format!("translate({} {}) rotate({slant})", gutter + centre, above - 6))
                        dominant-baseline=(if roomy { "auto" } else { "central" }) {
                        (name) title { (label) ", predicted " (confusion.predicted(index)) }
                    }
                }
                @for (truth, row) in confusion.matrix.iter().enumerate() {
                    @let support = confusion.support(truth);
                    @for (predicted, &count) in row.iter().enumerate().filter(|(_, count)| **count > 0) {
                        (draw_cell(confusion, truth, predicted, count as f64 / support as f64, gutter + predicted * cell, above + truth * cell, cell))
                        @if roomy {
                            text class=(count_class(truth == predicted, count as f64 / support as f64))
                                x=(gutter + predicted * cell + cell / 2) y=(above + truth * cell + cell / 2)
                                text-anchor="middle" dominant-baseline="central" { (count) }
                        }
                    }
                }
            }
        }
    }
}

fn draw_cell(
    confusion: &Confusion,
    truth: usize,
    predicted: usize,
    share: f64,
    x: usize,
    y: usize,
    cell: usize,
) -> Markup {
    let labels = &confusion.labels;
    let (class, opacity) =
        if truth == predicted { ("hit", hit_opacity(share)) } else { ("miss", miss_opacity(share)) };
    html! {
        rect class=(class) x=(x) y=(y) width=(cell) height=(cell) fill-opacity=(format!("{opacity:.2}")) {
            title {
                (labels[truth]) @if truth == predicted { ": right in " } @else { " taken for " (labels[predicted]) " in " }
                (confusion.matrix[truth][predicted]) " of " (confusion.support(truth)) " (" (percent(share)) ")"
            }
        }
    }
}

/// Right answers stay pale, so that a full diagonal does not outshine the mistakes.
fn hit_opacity(share: f64) -> f64 {
    0.06 + 0.34 * share
}

/// The square root lets a single mistake among a hundred rows be seen.
fn miss_opacity(share: f64) -> f64 {
    0.2 + 0.8 * share.sqrt()
}

/// Light digits on dark cells.
fn count_class(hit: bool, share: f64) -> &'static str {
    if !hit && miss_opacity(share) > 0.55 { "count light" } else { "count" }
}

/// Lines around every `step`-th cell.
fn grid_lines(n: usize, cell: usize, left: usize, top: usize, step: usize) -> String {
    let mut path = String::new();
    for at in (0..=n).step_by(step).map(|index| index * cell) {
        // writing to a `String` cannot fail
        let _ = write!(path, "M{left} {}h{}M{} {top}v{}", top + at, n * cell, left + at, n * cell);
    }
    path
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_counted_cells_are_drawn_and_names_are_escaped() {
        let labels = ["<b>cards</b>", "loans", "travel"].map(String::from);
        let drawn = confusion_chart(&Confusion::count(&labels, &[0, 0, 1], &[0, 1, 1])).into_string();
        assert_eq!(drawn.matches("class=\"hit\"").count(), 2);
        assert_eq!(drawn.matches("class=\"miss\"").count(), 1);
        assert!(drawn.contains("&lt;b&gt;cards&lt;/b&gt; taken for loans in 1 of 2 (50.0%)"), "{drawn}");
        assert!(!drawn.contains("<b>"));
    }

    #[test]
    fn names_stay_readable_with_many_labels() {
        for n in [1, 12, 77, 150, 400] {
            let labels: Vec<String> = (0..n).map(|index| format!("label number {index}")).collect();
            assert!(Layout::new(&labels).font >= 8.5);
            assert!(Layout::new(&labels).font <= Layout::new(&labels).cell as f64);
        }
    }
}
