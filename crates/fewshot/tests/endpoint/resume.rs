//! Many rows at once, interruptions, and budgets: each row is answered once, and paid for once.

use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use fewshot::{Ending, LabelReader, Observer, Summary};

use crate::common::{Bench, PRICE, label_of, number_of};
use crate::server::{Action, Server};

const ROWS: usize = 5000;

fn many() -> Bench {
    let mut bench = Bench::new(ROWS);
    bench.ask.concurrency = 32;
    bench
}

fn check_all_right(bench: &Bench, server: &Server) {
    let answers = bench.answers(server);
    assert_eq!(answers.len(), ROWS);
    for (row, answer) in answers.iter().enumerate() {
        assert_eq!((answer.row, answer.reply.content.as_deref()), (row, Some(label_of(row).as_str())));
    }
    let answered = server.answered();
    assert_eq!(answered.len(), ROWS, "no row is answered twice");
    assert_eq!(answered.iter().collect::<HashSet<_>>().len(), ROWS);
}

#[test]
fn no_answer_is_lost_doubled_or_taken_for_another() {
    let bench = many();
    let server = Server::start(|question| Action::Say(label_of(number_of(question.query()))));
    assert_eq!(bench.run(&server).unwrap(), Ending::Complete);
    check_all_right(&bench, &server);
    assert_eq!(server.log().len(), ROWS);
    assert_eq!(bench.run(&server).unwrap(), Ending::Complete);
    assert_eq!(server.log().len(), ROWS, "a complete recording asks nobody");
}

#[test]
fn an_interrupted_run_goes_on_where_it_stopped() {
    let bench = many();
    let credit = Arc::new(AtomicBool::new(false));
    let topped_up = Arc::clone(&credit);
    let server = Server::start(move |question| {
        if question.number >= ROWS / 2 && !topped_up.load(Ordering::Relaxed) {
            return Action::Status(429, vec![], r#"{"error":{"code":"insufficient_quota"}}"#.into());
        }
        Action::Say(label_of(number_of(question.query())))
    });
    let error = bench.run(&server).unwrap_err();
    assert!(error.to_string().contains("no credit left"), "{error}");
    assert_eq!(bench.recording(&server).answered(), ROWS / 2, "what was under way is kept");
    credit.store(true, Ordering::Relaxed);
    assert_eq!(bench.run(&server).unwrap(), Ending::Complete);
    check_all_right(&bench, &server);
}

struct Spending(Vec<f64>);

impl Observer for Spending {
    fn answered(&mut self, _: usize, cost: Option<f64>) {
        self.0.extend(cost);
    }
}

#[test]
fn a_budget_is_kept_and_can_be_raised() {
    let mut bench = Bench::new(200);
    let server = Server::start(|question| Action::Say(label_of(number_of(question.query()))));
    let budget = 0.02;
    bench.ask.max_cost = Some(budget);
    let mut spending = Spending(Vec::new());
    let Ending::OutOfBudget { spent } = bench.watched(&server, &mut spending).unwrap() else {
        panic!("200 rows cost more than {budget}")
    };
    let asked = server.log().len();
    assert!(spent <= budget && spent > 0.9 * budget, "{spent}");
    assert!((spending.0.last().unwrap() - spent).abs() < 1e-12);
    assert_eq!(bench.recording(&server).answered(), asked);
    assert_eq!(bench.run(&server).unwrap(), Ending::OutOfBudget { spent });
    assert_eq!(server.log().len(), asked, "what was spent before counts");
    bench.ask.max_cost = Some(1.0);
    assert_eq!(bench.run(&server).unwrap(), Ending::Complete);
    assert_eq!(server.answered().len(), 200);
    let summary = Summary::new(&bench.answers(&server), &LabelReader::new(&bench.labels), Some(&PRICE));
    assert!(summary.cost.unwrap() > budget && summary.cost.unwrap() < 1.0);
    bench.ask.price = None;
    let error = bench.run(&server).unwrap_err().to_string();
    assert!(error.contains("no price for `scripted`"), "{error}");
}
