//! Progress bars on stderr; plain lines where stderr is no terminal.

use std::io::IsTerminal;
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};
use router::{Observer, Started, Validated};

use crate::terminal::{on_one_line, say};

fn bar(len: u64, template: &str) -> ProgressBar {
    let bar = ProgressBar::new(len);
    if let Ok(style) = ProgressStyle::with_template(template) {
        bar.set_style(style.progress_chars("━╸─"));
    }
    bar
}

/// A download's bar.
#[derive(Default)]
pub(crate) struct Download(Option<ProgressBar>);

impl hub::Progress for Download {
    fn start(&mut self, what: &str, total_bytes: Option<u64>) {
        let bar =
            bar(total_bytes.unwrap_or(0), "{msg} {wide_bar} {bytes}/{total_bytes} {bytes_per_sec} {eta}");
        bar.set_message(what.to_owned());
        self.0 = Some(bar);
    }
    fn advance(&mut self, bytes: u64) {
        if let Some(bar) = &self.0 {
            bar.inc(bytes);
        }
    }
    fn finish(&mut self) {
        if let Some(bar) = self.0.take() {
            bar.finish_and_clear();
        }
    }
}

/// A bar over a number of rows.
pub(crate) fn rows(what: &str, total: usize) -> ProgressBar {
    let bar = bar(total as u64, "{msg} {wide_bar} {pos}/{len} {per_sec} {eta}");
    bar.set_message(what.to_owned());
    bar
}

/// How often a line is printed where there is no terminal for a bar.
const LINE_EVERY: Duration = Duration::from_secs(10);

/// Characters of an example's line that are shown.
const LINE: usize = 200;

/// A number of parameters in words: 480, 29 thousand, 134.5 million.
fn parameters(count: usize) -> String {
    match count {
        0..10_000 => count.to_string(),
        10_000..999_500 => format!("{} thousand", (count as f64 / 1e3).round()),
        999_500..1_000_000_000 => format!("{:.1} million", count as f64 / 1e6),
        _ => format!("{:.2} billion", count as f64 / 1e9),
    }
}

/// A training run on stderr.
pub(crate) struct Training {
    bar: ProgressBar,
    terminal: bool,
    begun: Instant,
    line: Instant,
    /// Taken by this process.
    steps: u64,
    examples: usize,
    tokens: usize,
    loss: f32,
}

impl Training {
    pub(crate) fn new() -> Self {
        let (bar, now) = (ProgressBar::hidden(), Instant::now());
        let terminal = std::io::stderr().is_terminal();
        Self { bar, terminal, begun: now, line: now, steps: 0, examples: 0, tokens: 0, loss: f32::NAN }
    }

    fn say(&self, text: &str) {
        if self.terminal {
            self.bar.println(text);
        } else {
            say!("{text}");
        }
    }
}

impl Observer for Training {
    fn started(&mut self, run: &Started) {
        let trains = match (parameters(run.trainable), parameters(run.parameters)) {
            (some, all) if run.trainable < run.parameters => format!("{some} of {all} parameters train"),
            (_, all) => format!("all {all} parameters train"),
        };
        say!(
            "training on {} examples with {} labels, validating on {}; {trains}",
            run.examples,
            run.labels,
            run.validation,
        );
        if let Some(sums) = &run.sums {
            say!("{} devices share each step; their gradients are added up {sums}", run.devices);
        }
        if let Some(memory) = run.memory {
            let each = if run.devices > 1 { ", on each device" } else { "" };
            let free = memory.free.map(|free| format!("; {:.2} GB were free", free as f64 / 1e9));
            say!("memory of the training{each}: {memory}{}", free.unwrap_or_default());
        }
        if run.cut > 0 {
            say!("{} queries were longer than --max-tokens and were cut", run.cut);
        }
        for (number, pieces) in (1..).zip(&run.shown) {
            let mark = if pieces.iter().any(|(_, loss)| *loss) {
                " (the loss is on what stands in ⟦ ⟧)"
            } else {
                ""
            };
            say!("example {number}{mark}:");
            let text: String = pieces
                .iter()
                .map(|(piece, loss)| if *loss { format!("⟦{piece}⟧") } else { piece.clone() })
                .collect();
            for line in text.lines() {
                say!("    {}", on_one_line(line, LINE));
            }
        }
        if run.steps_done > 0 {
            say!("going on after step {}", run.steps_done);
        }
        self.bar = bar(run.total_steps, "train {wide_bar} {pos}/{len} {msg} {eta}");
        self.bar.set_position(run.steps_done);
        (self.begun, self.line) = (Instant::now(), Instant::now());
    }

    fn stepped(&mut self, step: &router::StepReport) {
        self.steps += 1;
        self.examples += step.examples;
        self.tokens += step.tokens;
        self.loss = if self.loss.is_nan() { step.loss } else { 0.9 * self.loss + 0.1 * step.loss };
        let seconds = self.begun.elapsed().as_secs_f64();
        let (examples, tokens) = (self.examples as f64 / seconds, self.tokens as f64 / seconds);
        let state = format!("loss {:.3} {examples:.1} examples/s {tokens:.0} tokens/s", self.loss);
        self.bar.set_position(step.step);
        self.bar.set_message(state.clone());
        if !self.terminal && self.line.elapsed() > LINE_EVERY {
            self.line = Instant::now();
            let total = self.bar.length().unwrap_or(0);
            let left = total.saturating_sub(step.step) as f64 * seconds / self.steps as f64;
            say!("step {}/{total} {state}, {left:.0} s left", step.step);
        }
    }

    fn scoring(&mut self, done: usize, total: usize) {
        self.bar.set_message(format!("validating {done}/{total}"));
        if done == total && Some(self.bar.position()) == self.bar.length() {
            self.bar.finish_and_clear();
        }
    }

    fn validated(&mut self, v: &Validated) {
        let note = if v.kept { "" } else { ", worse than an earlier one" };
        self.say(&format!(
            "step {}: validation accuracy {:.1}%, macro-F1 {:.3}{note}",
            v.step,
            100.0 * v.accuracy,
            v.macro_f1
        ));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parameters_are_counted_in_words() {
        let words = [480, 29_568, 999_999, 22_600_000, 1_235_814_400].map(parameters);
        assert_eq!(words, ["480", "30 thousand", "1.0 million", "22.6 million", "1.24 billion"]);
    }
}
