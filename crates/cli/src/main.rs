//! frontdesk: one binary from labelled queries to a router.
//!
//! This crate is the only one that prints, exits, or glues errors together. Data goes to stdout, progress and
//! messages to stderr.

mod config;
mod device;
mod failure;
mod progress;
mod recipe;
mod terminal;
mod values;
mod verbs;

use std::process::ExitCode;

use clap::{CommandFactory, Parser, Subcommand};

/// Turns labelled customer queries into a small model that sends each new query to the right department.
#[derive(Debug, Parser)]
#[command(name = "frontdesk", version, args_override_self = true, max_term_width = 100)]
struct Cli {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Do everything once on the bundled sample: pull, check, train, evaluate, route.
    Demo(verbs::demo::Args),
    /// Fetch a base model into the cache and print where it is.
    Pull(verbs::pull::Args),
    /// Examine data files: labels, duplicates, contradictions, leaks, lengths.
    Check(verbs::check::Args),
    /// Say what training, and a large model instead, will take: tokens, minutes, memory, money.
    Plan(verbs::plan::Args),
    /// Fine-tune a base model on labelled queries and write a run folder.
    Train(verbs::train::Args),
    /// Choose temperature, thresholds and the out-of-scope rule of a run anew, on labelled queries.
    Calibrate(verbs::calibrate::Args),
    /// Judge a trained router on labelled queries, beside a linear baseline and large models.
    Eval(verbs::eval::Args),
    /// Put trained runs side by side: accuracy, time, memory, and whether a difference is shown.
    Compare(verbs::compare::Args),
    /// Send queries to departments: arguments, or lines of standard input.
    Route(verbs::route::Args),
    /// Write a trained router as the files of other programs, after checking that they answer alike.
    Export(verbs::export::Args),
    /// Measure the speed of training or routing on this machine.
    Bench(verbs::bench::Args),
}

/// What a verb came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Done {
    /// All that was asked.
    Fully,
    /// All, but a bar that the user set was missed.
    BelowTheBar,
}

fn run() -> anyhow::Result<Done> {
    let args = config::with_file(std::env::args_os(), &Cli::command())?;
    let verb = Cli::parse_from(args).verb;
    let home = hub::Hub::from_env().home;
    formats::remember_hashes(home.join("hashes"));
    router::keep_packed(home.join("packed"));
    match verb {
        Verb::Demo(args) => verbs::demo::run(&args),
        Verb::Pull(args) => verbs::pull::run(&args),
        Verb::Check(args) => verbs::check::run(&args),
        Verb::Plan(args) => verbs::plan::run(&args),
        Verb::Train(args) => verbs::train::run(&args),
        Verb::Calibrate(args) => verbs::calibrate::run(&args),
        Verb::Eval(args) => verbs::eval::run(&args),
        Verb::Compare(args) => verbs::compare::run(&args),
        Verb::Route(args) => verbs::route::run(&args),
        Verb::Export(args) => verbs::export::run(&args),
        Verb::Bench(args) => verbs::bench::run(&args),
    }
}

fn main() -> ExitCode {
    match run() {
        Ok(Done::Fully) => ExitCode::SUCCESS,
        Ok(Done::BelowTheBar) => ExitCode::from(1),
        // As other tools do when `head` has seen enough.
        Err(error) if matches!(error.downcast_ref(), Some(terminal::OutputError::Closed)) => {
            ExitCode::SUCCESS
        }
        Err(error) => {
            failure::print(&error);
            ExitCode::from(2)
        }
    }
}
