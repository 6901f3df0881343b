//! A square matrix of labels as inline SVG, shaded by row, by column or by count: what a model confuses, and where two
//! models disagree. Without the page's script it is whole; with it, it can be enlarged and tells what is pointed at.

use super::Disagreement;
use super::format::{count, percent, shorten};
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
    /// Few labels: numbers in the cells, and names above them slanted instead of upright.
    roomy: bool,
}

impl Layout {
    fn new(labels: &[String]) -> Self {
        let (cell, font, roomy) = match labels.len() {
            0..=8 => (52, 13.0, true),
            9..=14 => (46, 13.0, true),
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

/// One cell that is not empty.
struct Cell {
    row: usize,
    column: usize,
    count: usize,
    /// Whether it lies on the diagonal and means that all is well.
    hit: bool,
    /// What it says when pointed at.
    title: String,
}

/// What is drawn.
struct Matrix<'a> {
    /// Tells this matrix's controls from those of the others on the page.
    id: String,
    name: String,
    labels: &'a [String],
    cells: Vec<Cell>,
    /// The largest count.
    most: usize,
    row_totals: Vec<usize>,
    column_totals: Vec<usize>,
    /// What a row's and a column's label means, after the label.
    axes: [String; 2],
}

/// The matrix with true labels as rows.
pub(super) fn confusion_matrix(confusion: &Confusion, model: usize) -> Markup {
    let labels = &confusion.labels;
    let title = |truth: usize, predicted: usize, times: usize| {
        let (support, said) = (confusion.support(truth), confusion.predicted(predicted));
        let [of_true, of_said] = [support, said].map(|all| percent(times as f64 / all as f64));
        let (a, b) = (&labels[truth], &labels[predicted]);
        if truth == predicted {
            format!("{a}: right in {times} of {support} ({of_true}); {of_said} of what was sent there")
        } else {
            format!(
                "{a} taken for {b} in {times} of {support} ({of_true}); {of_said} of what was sent to {b}"
            )
        }
    };
    Matrix {
        id: format!("confusion-{model}"),
        name: format!("Confusion matrix of {} labels", labels.len()),
        labels,
        cells: cells(&confusion.matrix, title),
        most: confusion.matrix.iter().flatten().copied().max().unwrap_or(0),
        row_totals: (0..labels.len()).map(|label| confusion.support(label)).collect(),
        column_totals: (0..labels.len()).map(|label| confusion.predicted(label)).collect(),
        axes: ["truly".to_owned(), "predicted".to_owned()],
    }
    .draw()
}

/// The matrix with the first model's answers as rows and the second's as columns, where they differ.
pub(super) fn disagreement_matrix(disagreement: &Disagreement, pair: usize) -> Markup {
    let Disagreement { first, second, labels, matrix, first_right, second_right, .. } = disagreement;
    let title = |row: usize, column: usize, times: usize| {
        let [a, b] = [first_right, second_right].map(|right| right[row][column]);
        format!(
            "{first} says {}, {second} says {} in {}: the first is right in {a}, the second in {b}",
            labels[row],
            labels[column],
            if times == 1 { "1 row".to_owned() } else { format!("{times} rows") }
        )
    };
    Matrix {
        id: format!("disagreement-{pair}"),
        name: format!("Where {first} and {second} disagree"),
        labels,
        cells: cells(matrix, title),
        most: matrix.iter().flatten().copied().max().unwrap_or(0),
        row_totals: matrix.iter().map(|row| row.iter().sum()).collect(),
        column_totals: (0..labels.len()).map(|column| matrix.iter().map(|row| row[column]).sum()).collect(),
        axes: [format!("says {first}"), format!("says {second}")],
    }
    .draw()
}

fn cells(matrix: &[Vec<usize>], title: impl Fn(usize, usize, usize) -> String) -> Vec<Cell> {
    let mut cells = Vec::new();
    for (row, counts) in matrix.iter().enumerate() {
        for (column, &count) in counts.iter().enumerate().filter(|(_, count)| **count > 0) {
            let title = title(row, column, count);
            cells.push(Cell { row, column, count, hit: row == column, title });
        }
    }
    cells
}

impl Matrix<'_> {
    fn draw(&self) -> Markup {
        let n = self.labels.len();
        let Layout { cell, font, gutter, roomy } = Layout::new(self.labels);
        // slanted names need less room above and some to the right
        let (above, right) = if roomy { (gutter * 3 / 4 + 8, gutter * 3 / 4) } else { (gutter, 4) };
        let (width, height) = (gutter + n * cell + right, above + n * cell + 4);
        let slant = if roomy { -45 } else { -90 };
        html! {
            div class="matrix" data-cell=(cell) data-left=(gutter) data-top=(above) {
                (self.controls())
                div class="scroll pane" tabindex="0" style=(format!("--natural:{width}px")) {
                    svg width=(width) height=(height) viewBox=(format!("0 0 {width} {height}")) role="img"
                        aria-label=(self.name) style=(format!("font-size:{font}px")) {
                        rect class="field" x=(gutter) y=(above) width=(n * cell) height=(n * cell) {}
                        path class="grid" d=(grid_lines(n, cell, gutter, above, if roomy { 1 } else { 5 })) {}
                        path class="cross" {}
                        @for (index, label) in self.labels.iter().enumerate() {
                            @let centre = index * cell + cell / 2;
                            @let name = shorten(label, NAME_CHARS);
                            text x=(gutter - 6) y=(above + centre) text-anchor="end" dominant-baseline="central" {
                                (name) title { (label) ", " (self.axes[0]) ": " (self.row_totals[index]) }
                            }
                            text transform=(format!("translate({} {}) rotate({slant})", gutter + centre, above - 6))
                                dominant-baseline=(if roomy { "auto" } else { "central" }) {
                                (name) title { (label) ", " (self.axes[1]) ": " (self.column_totals[index]) }
                            }
                        }
                        @for it in &self.cells {
                            (self.draw_cell(it, gutter + it.column * cell, above + it.row * cell, cell, roomy))
                        }
                    }
                }
            }
        }
    }

    /// What the shades mean can be chosen; what needs the script is hidden without it.
    fn controls(&self) -> Markup {
        let choices = [("row", "by row"), ("column", "by column"), ("count", "not at all")];
        html! {
            div class="controls" {
                fieldset {
                    legend { "Normalised" }
                    @for (index, (value, words)) in choices.into_iter().enumerate() {
                        label {
                            input type="radio" name=(self.id) value=(value) checked[index == 0];
                            span { (words) }
                        }
                    }
                }
                div class="zoom" hidden {
                    button type="button" data-zoom="out" aria-label="smaller" { "−" }
                    button type="button" data-zoom="fit" { "fit" }
                    button type="button" data-zoom="in" aria-label="larger" { "+" }
                }
                output class="readout" hidden { "Point at a cell." }
            }
        }
    }

    fn draw_cell(&self, it: &Cell, x: usize, y: usize, cell: usize, roomy: bool) -> Markup {
        let shares = [self.row_totals[it.row], self.column_totals[it.column], self.most]
            .map(|whole| it.count as f64 / whole.max(1) as f64);
        let opacity = shares.map(|share| if it.hit { hit_opacity(share) } else { miss_opacity(share) });
        let [row, column, by_count] = opacity;
        let numbers = [
            ("row", format!("{:.0}%", shares[0] * 100.0)),
            ("column", format!("{:.0}%", shares[1] * 100.0)),
            ("count", count(it.count)),
        ];
        html! {
            rect class=(if it.hit { "cell hit" } else { "cell miss" }) x=(x) y=(y) width=(cell) height=(cell)
                style=(format!("--row:{row:.2};--column:{column:.2};--count:{by_count:.2}")) {
                title { (it.title) }
            }
            @if roomy {
                @for ((by, number), opacity) in numbers.into_iter().zip(opacity) {
                    text class=(format!("number by-{by}{}", if it.hit { "" } else { number_class(opacity) }))
                        x=(x + cell / 2) y=(y + cell / 2) text-anchor="middle" dominant-baseline="central" { (number) }
                }
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

/// Lines around every `step`-th cell.
fn grid_lines(n: usize, cell: usize, left: usize, top: usize, step: usize) -> String {
    let mut path = String::new();
    for at in (0..=n).step_by(step).map(|index| index * cell) {
        // writing to a `String` cannot fail
        let _ = write!(path, "M{left} {}h{}M{} {top}v{}", top + at, n * cell, left + at, n * cell);
    }
    path
}

/// Where a number takes the colour of the paper: on a ground from about where that has more contrast than ink, which is
/// later in the light scheme (0.82) than in the dark one (0.62).
fn number_class(opacity: f64) -> &'static str {
    match opacity {
        o if o > 0.82 => " deep middle",
        o if o > 0.62 => " middle",
        _ => "",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_counted_cells_are_drawn_and_names_are_escaped() {
        let labels = ["<b>cards</b>", "loans", "travel"].map(String::from);
        let drawn = confusion_matrix(&Confusion::count(&labels, &[0, 0, 1], &[0, 1, 1]), 0).into_string();
        assert_eq!(drawn.matches("class=\"cell hit\"").count(), 2);
        assert_eq!(drawn.matches("class=\"cell miss\"").count(), 1);
        assert!(
            drawn.contains("&lt;b&gt;cards&lt;/b&gt; taken for loans in 1 of 2 (50.0%); 50.0% of what"),
            "{drawn}"
        );
        assert!(!drawn.contains("<b>"));
    }

    #[test]
    fn shades_follow_row_column_and_count() {
        let labels = ["a", "b"].map(String::from);
        // one of two a's is taken for b, to which four rows go; the largest cell holds three
        let drawn =
            confusion_matrix(&Confusion::count(&labels, &[0, 0, 1, 1, 1], &[0, 1, 1, 1, 1]), 0).into_string();
        let [row, column, by_count] = [1.0 / 2.0, 1.0 / 4.0, 1.0 / 3.0].map(miss_opacity);
        let style = format!("--row:{row:.2};--column:{column:.2};--count:{by_count:.2}");
        assert!(drawn.contains(&style), "{style}: {drawn}");
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
