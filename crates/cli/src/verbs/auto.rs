//! `frontdesk train --base auto`: the candidates that fit the time, cheapest first; the best is kept.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::Context;
use formats::BaseModel;
use kernels::Backend;
use router::{Method, Observer, Outcome, Plan, Recipe, RunFolder, Started, StepReport, TrainData, Validated};
use routing::Example;
use serde_json::json;

use crate::device::{on_device, on_devices};
use crate::progress::Training;
use crate::terminal::say;
use crate::verbs::compare::{self, Line};
use crate::verbs::{base_path, train};

/// A base and a method to try.
struct Candidate {
    name: &'static str,
    base: &'static str,
    method: Method,
    /// Out of reach of a processor.
    gpu: bool,
}

const fn candidate(name: &'static str, base: &'static str, method: Method) -> Candidate {
    Candidate { name, base, method, gpu: false }
}

/// The cheapest first.
const CANDIDATES: [Candidate; 5] = [
    candidate("linear", "", Method::Linear),
    candidate("minilm-head", "minilm-l6", Method::Head),
    candidate("minilm-full", "minilm-l6", Method::Full),
    candidate("smollm2-lora", "smollm2-135m", Method::Lora),
    Candidate { gpu: true, ..candidate("llama-lora", "llama-3.2-1b", Method::Lora) },
];

/// Where the candidates are trained, in the folder of the run.
const FOLDER: &str = "candidates";
/// Validation rows from which a difference of ten points shows.
const ENOUGH_ROWS: usize = 100;
/// Steps before the whole time is judged, and the share that validations add to it.
const JUDGED_STEPS: u64 = 4;
const VALIDATIONS: f64 = 1.15;

/// Trains what fits the budget and moves the best run to `out`; the others stay in a folder inside it.
pub(crate) fn run(args: &train::Args, budget: Duration) -> anyhow::Result<Outcome> {
    let begun = Instant::now();
    if RunFolder::is_in(&args.out) {
        return Err(router::Error::Occupied { path: args.out.clone() }.into());
    }
    let mut lines: Vec<Line> = Vec::new();
    let mut outcomes = Vec::new();
    let candidates = on_device!(args.device.first(), within_reach, &CANDIDATES)?;
    for candidate in &candidates {
        let left = budget.saturating_sub(begun.elapsed());
        if left.is_zero() && !lines.is_empty() {
            say!("{}: not tried, the time is up", candidate.name);
            continue;
        }
        say!("\n── {} ({:.0} s left)", candidate.name, left.as_secs_f64());
        let folder = args.out.join(FOLDER).join(candidate.name);
        match attempt(args, candidate, &folder, left) {
            Ok((outcome, line)) => {
                lines.push(line);
                outcomes.push(outcome);
            }
            Err(error) if stopped(&error) => {
                say!("{}: given up, it would take longer than what is left", candidate.name);
                std::fs::remove_dir_all(&folder)
                    .with_context(|| format!("{}: cannot be removed", folder.display()))?;
            }
            // Bad data is bad for all of them; a base that cannot be had is not.
            Err(error) if lines.is_empty() => return Err(error),
            Err(error) => say!("{}: not tried: {error:#}", candidate.name),
        }
    }
    say!("\n{}", compare::table(&lines, compare::best(&lines)).trim_end());
    let best =
        compare::best(&lines).context("no candidate could be trained; give it more time with --budget")?;
    let outcome = outcomes.swap_remove(best);
    say!(
        "{} of {} candidates trained in {:.0} s; kept {} {}",
        lines.len(),
        candidates.len(),
        begun.elapsed().as_secs_f64(),
        outcome.run.manifest.method.name(),
        if outcome.run.manifest.method == Method::Linear { "" } else { &outcome.run.manifest.base.source },
    );
    let rows = outcome.run.manifest.validation.rows;
    if rows < ENOUGH_ROWS {
        say!("{rows} validation rows hardly tell them apart, see the intervals: more, with --valid, would");
    }
    let table = serde_json::to_vec_pretty(&json!({ "kept": lines[best].run, "candidates": lines }))?;
    formats::store::write_atomically(args.out.join("candidates.json"), &table)?;
    let run = outcome.run.move_to(&args.out)?;
    Ok(Outcome { run, ..outcome })
}

/// The candidates that this device can train.
#[allow(clippy::needless_pass_by_value, clippy::unnecessary_wraps)] // as `on_device!` calls it
fn within_reach<B: Backend>(
    backend: B,
    all: &'static [Candidate],
) -> anyhow::Result<Vec<&'static Candidate>> {
    let gpu = !backend.name().starts_with("cpu");
    Ok(all.iter().filter(|candidate| gpu || !candidate.gpu).collect())
}

fn attempt(
    args: &train::Args,
    candidate: &Candidate,
    folder: &Path,
    left: Duration,
) -> anyhow::Result<(Outcome, Line)> {
    let plan = train::plan(args)?;
    let recipe = Recipe { method: Some(candidate.method), ..plan.recipe.clone() };
    let plan = Plan { base: candidate.base.to_owned(), recipe, ..plan };
    let data = train::data(&plan)?;
    let mut observer =
        Watch { inner: Training::new(), begun: Instant::now(), left, total: 0, first: None, late: false };
    forget_peak_memory();
    let outcome = if candidate.method == Method::Linear {
        router::train_linear(&data, &plan, folder, &mut observer)?
    } else {
        let base = BaseModel::open(base_path(candidate.base)?)?;
        on_devices!(args.device.open(), start, base, &data, &plan, folder, &mut observer)?
    };
    let rows: &[Example] = &data.train()[..data.train().len().min(60)];
    let ms = on_device!(args.device.first(), compare::ms_a_query, folder, rows, &args.device)?;
    let mut line = Line::of(&outcome.run);
    line.ms_a_query = Some(ms);
    Ok((outcome, line))
}

fn start<B: Backend>(
    backends: Vec<B>,
    base: BaseModel,
    data: &TrainData,
    plan: &Plan,
    folder: &Path,
    observer: &mut dyn Observer,
) -> anyhow::Result<Outcome> {
    Ok(router::train(backends, base, data, plan, folder, false, observer)?)
}

fn stopped(error: &anyhow::Error) -> bool {
    matches!(error.downcast_ref::<router::Error>(), Some(router::Error::Stopped))
}

/// Lets the next peak be that of the next candidate, where the system can.
fn forget_peak_memory() {
    let _ = std::fs::write("/proc/self/clear_refs", "5");
}

/// Shows a training, and gives it up when it cannot end in the time that is left.
struct Watch {
    inner: Training,
    begun: Instant,
    left: Duration,
    /// Steps in all.
    total: u64,
    /// When the first step ended, and its number.
    first: Option<(Instant, u64)>,
    late: bool,
}

impl Observer for Watch {
    fn started(&mut self, run: &Started) {
        self.inner.started(run);
        self.total = run.total_steps;
    }
    fn stepped(&mut self, step: &StepReport) {
        self.inner.stepped(step);
        let (first, at) = *self.first.get_or_insert((Instant::now(), step.step));
        let steps = step.step - at;
        if steps >= JUDGED_STEPS {
            let a_step = first.elapsed().as_secs_f64() / steps as f64;
            let rest = (self.total - step.step) as f64 * a_step * VALIDATIONS;
            self.judge(rest);
        }
    }
    fn scoring(&mut self, done: usize, total: usize) {
        self.inner.scoring(done, total);
        if self.first.is_none() {
            // The features of a frozen model, most of a head's time.
            let spent = self.begun.elapsed().as_secs_f64();
            self.judge(spent / done.max(1) as f64 * (total - done) as f64);
        }
    }
    fn validated(&mut self, validated: &Validated) {
        self.inner.validated(validated);
    }
    fn goes_on(&mut self) -> bool {
        !self.late && self.begun.elapsed() < self.left
    }
}

impl Watch {
    /// Whether so many seconds more are too many.
    fn judge(&mut self, rest: f64) {
        self.late = self.begun.elapsed().as_secs_f64() + rest > self.left.as_secs_f64();
    }
}
