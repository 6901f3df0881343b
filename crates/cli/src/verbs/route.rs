//! `frontdesk route`: queries in, departments out.

use std::io::{BufRead, BufReader, Read};
use std::path::PathBuf;

use anyhow::Context;
use kernels::Backend;
use router::{Answer, Query, Router};
use routing::calibration::Decision;
use serde_json::json;

use crate::Done;
use crate::device::{DeviceArgs, on_device};
use crate::terminal::{Output, on_one_line};
use crate::verbs::open_router;

/// Flags of `route`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Queries; without any, each line of standard input is one.
    text: Vec<String>,
    /// Run folder of a trained router.
    #[arg(long, value_name = "DIR")]
    model: PathBuf,
    /// Base model, when it is elsewhere than the run says.
    #[arg(long, value_name = "MODEL")]
    base: Option<String>,
    /// Print a JSON object a query.
    #[arg(long)]
    json: bool,
    /// Alternatives shown after the label.
    #[arg(long, value_name = "N", default_value_t = 2)]
    top: usize,
    #[command(flatten)]
    device: DeviceArgs,
}

/// Characters of a query that are shown beside its answer.
const QUERY: usize = 100;
/// Lines of standard input that are answered together.
const AT_ONCE: usize = 32;

pub(crate) fn run(args: &Args) -> anyhow::Result<Done> {
    on_device!(args.device, route, args)
}

fn route<B: Backend>(backend: B, args: &Args) -> anyhow::Result<Done> {
    let mut router = open_router(backend, &args.model, args.base.as_deref(), args.device.encoding())?;
    if !args.text.is_empty() {
        answer(&mut router, &args.text, args)?;
        return Ok(Done::Fully);
    }
    let mut lines = Lines { input: BufReader::new(std::io::stdin()), read: 0 };
    loop {
        let Batch { texts, wrong } = lines.next_batch();
        let done = texts.is_empty();
        answer(&mut router, &texts, args)?;
        match wrong {
            Some(error) => return Err(error),
            None if done => return Ok(Done::Fully),
            None => {}
        }
    }
}

/// Lines of text, many together where they come fast, alone where somebody waits for the answer.
struct Lines<R> {
    input: BufReader<R>,
    read: u64,
}

/// Lines to be answered, and why there are no more where something is wrong.
struct Batch {
    texts: Vec<String>,
    wrong: Option<anyhow::Error>,
}

impl<R: Read> Lines<R> {
    /// Waits for one line, and takes with it those that have already come; none at the end.
    fn next_batch(&mut self) -> Batch {
        let mut batch = Batch { texts: Vec::new(), wrong: None };
        while batch.texts.is_empty() || (batch.texts.len() < AT_ONCE && self.input.buffer().contains(&b'\n'))
        {
            match self.next_line() {
                Ok(Some(line)) => batch.texts.push(line),
                Ok(None) => break,
                Err(error) => {
                    batch.wrong = Some(error);
                    break;
                }
            }
        }
        batch
    }

    fn next_line(&mut self) -> anyhow::Result<Option<String>> {
        let mut line = Vec::new();
        // One byte more than may be there tells a line that is too long.
        let most = routing::ROW_LIMIT_BYTES as u64 + 1;
        let read = self.input.by_ref().take(most).read_until(b'\n', &mut line);
        self.read += 1;
        let place = || format!("standard input, line {}", self.read);
        if read.with_context(|| format!("{}: cannot be read", place()))? == 0 {
            return Ok(None);
        }
        anyhow::ensure!(
            line.len() <= routing::ROW_LIMIT_BYTES,
            "{}: has more than {} bytes; one query a line is expected",
            place(),
            routing::ROW_LIMIT_BYTES
        );
        let line = String::from_utf8(line).map_err(|error| {
            let at = error.utf8_error().valid_up_to();
            anyhow::anyhow!(
                "{}: not UTF-8 at byte {at}; convert it, for example with iconv -t UTF-8",
                place()
            )
        })?;
        Ok(Some(line.trim_end_matches(['\r', '\n']).to_owned()))
    }
}

fn answer<B: Backend>(router: &mut Router<B>, texts: &[String], args: &Args) -> anyhow::Result<()> {
    let queries: Vec<Query<'_>> = texts.iter().map(|text| Query::new(text)).collect();
    let answers = router.route(&queries)?;
    let mut out = Output;
    for (text, answer) in texts.iter().zip(&answers) {
        if args.json {
            writeln!(out, "{}", to_json(router, answer, args.top))?;
        } else {
            writeln!(out, "{}", to_line(router, text, answer))?;
        }
    }
    Ok(())
}

/// Other labels, the most probable first.
pub(crate) fn alternatives(answer: &Answer, count: usize) -> Vec<(usize, f64)> {
    let mut ranked: Vec<(usize, f64)> = answer
        .probabilities
        .iter()
        .copied()
        .enumerate()
        .filter(|(label, _)| *label != answer.label)
        .collect();
    ranked.sort_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
    ranked.truncate(count);
    ranked
}

fn to_json<B: Backend>(router: &Router<B>, answer: &Answer, top: usize) -> serde_json::Value {
    let others: Vec<_> = alternatives(answer, top)
        .into_iter()
        .map(|(label, probability)| json!({"label": router.label(label), "probability": probability}))
        .collect();
    json!({
        "label": router.label(answer.label),
        "probability": answer.probability,
        "decision": answer.decision,
        "in_scope": answer.in_scope,
        "alternatives": others,
        "ask": router.manifest().goes_on_to(answer.probability).map(|cascade| &cascade.model),
    })
}

pub(crate) fn to_line<B: Backend>(router: &Router<B>, text: &str, answer: &Answer) -> String {
    let label = router.label(answer.label);
    let decision = match answer.decision {
        Decision::Route => "",
        Decision::Triage if answer.in_scope => "  (triage)",
        Decision::Triage => "  (out of scope)",
    };
    let ask = router.manifest().goes_on_to(answer.probability);
    let ask = ask.map_or_else(String::new, |cascade| format!("  (ask {})", cascade.model));
    let text = on_one_line(text, QUERY);
    format!("{:>5.1}%  {label}{decision}{ask}  «{text}»", 100.0 * answer.probability)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Gives out its pieces one a read, as a pipe does.
    struct Pieces(Vec<&'static [u8]>);

    impl Read for Pieces {
        fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
            assert!(!self.0.is_empty(), "more was read than was needed to answer");
            let piece = self.0.remove(0);
            buffer[..piece.len()].copy_from_slice(piece);
            Ok(piece.len())
        }
    }

    fn lines(pieces: &[&'static [u8]]) -> Lines<Pieces> {
        Lines { input: BufReader::new(Pieces(pieces.to_vec())), read: 0 }
    }

    #[test]
    fn whoever_waits_is_answered_before_writing_more() {
        let mut lines = lines(&[b"a\nb\r\n\nha", b"lf\n", b"end", b""]);
        assert_eq!(lines.next_batch().texts, ["a", "b", ""]);
        assert_eq!(lines.next_batch().texts, ["half"]);
        assert_eq!(lines.next_batch().texts, ["end"]);
    }

    #[test]
    fn what_stands_before_a_wrong_line_is_answered() {
        let mut lines = lines(&[b"fine\n\xff wrong\nlater\n"]);
        let Batch { texts, wrong } = lines.next_batch();
        assert_eq!(texts, ["fine"]);
        assert!(wrong.unwrap().to_string().starts_with("standard input, line 2: not UTF-8 at byte 0"));
    }

    #[test]
    fn a_line_without_end_is_refused_in_bounded_memory() {
        let mut lines = Lines { input: BufReader::new(std::io::repeat(b'x')), read: 0 };
        assert!(lines.next_batch().wrong.unwrap().to_string().contains("line 1: has more than"));
    }
}
