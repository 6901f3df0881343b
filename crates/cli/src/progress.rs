//! Progress bars on stderr; plain lines where stderr is no terminal.

use std::io::IsTerminal;
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};
use router::{Observer, Started, Validated};

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

/// A training run on stderr.
pub(crate) struct Training {
    bar: ProgressBar,
    terminal: bool,
    begun: Instant,
    line: Instant,
    examples: usize,
    tokens: usize,
    loss: f32,
}

impl Training {
    pub(crate) fn new() -> Self {
        let (bar, now) = (ProgressBar::hidden(), Instant::now());
        let terminal = std::io::stderr().is_terminal();
        Self { bar, terminal, begun: now, line: now, examples: 0, tokens: 0, loss: f32::NAN }
    }

    fn say(&self, text: &str) {
        if self.terminal {
            self.bar.println(text);
        } else {
            eprintln!("{text}");
        }
    }
}

impl Observer for Training {
    fn started(&mut self, run: &Started) {
        eprintln!(
            "training on {} examples with {} labels, validating on {}; {} of {} million parameters train",
            run.examples,
            run.labels,
            run.validation,
            format_args!("{:.1}", run.trainable as f64 / 1e6),
            run.parameters / 1_000_000,
        );
        if let Some(memory) = run.memory {
            let free = memory.free.map(|free| format!("; {:.2} GB were free", free as f64 / 1e9));
            eprintln!("memory of the training: {memory}{}", free.unwrap_or_default());
        }
        if run.cut > 0 {
            eprintln!("{} queries were longer than --max-tokens and lost their end", run.cut);
        }
        for (number, pieces) in (1..).zip(&run.shown) {
            eprintln!("example {number} (the loss is on what stands in ⟦ ⟧):");
            let text: String = pieces
                .iter()
                .map(|(piece, loss)| if *loss { format!("⟦{piece}⟧") } else { piece.clone() })
                .collect();
            for line in text.lines() {
                eprintln!("    {line}");
            }
        }
        if run.steps_done > 0 {
            eprintln!("going on after step {}", run.steps_done);
        }
        self.bar = bar(run.total_steps, "train {wide_bar} {pos}/{len} {msg} {eta}");
        self.bar.set_position(run.steps_done);
        (self.begun, self.line) = (Instant::now(), Instant::now());
    }

    fn stepped(&mut self, step: &router::StepReport) {
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
            let left = (total.saturating_sub(step.step)) as f64 * seconds * step.examples as f64
                / self.examples.max(1) as f64;
            eprintln!("step {}/{total} {state}, {left:.0} s left", step.step);
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
