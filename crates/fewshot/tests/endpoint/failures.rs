//! What goes wrong on the way, and what is done about it.

use std::collections::HashMap;
use std::io::Write;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use fewshot::Error;
use serde_json::json;

use crate::common::{Bench, KEY, label_of, number_of};
use crate::server::{Action, Server};

/// A server whose answer to the first try of each query is `fault`, by the query's number; later tries are answered.
fn failing_once(fault: impl Fn(usize) -> Action + Send + Sync + 'static) -> Server {
    let tries: Mutex<HashMap<usize, usize>> = Mutex::default();
    Server::start(move |question| {
        let row = number_of(question.query());
        let mut tries = tries.lock().unwrap();
        let tries = tries.entry(row).or_default();
        *tries += 1;
        if *tries == 1 { fault(row) } else { Action::Say(label_of(row)) }
    })
}

#[test]
fn passing_failures_are_tried_again() {
    let mut bench = Bench::new(10);
    bench.timeout = Duration::from_millis(500);
    let server = failing_once(|row| match row {
        0 => Action::Status(
            429,
            vec![],
            r#"{"error":{"message":"slow down","code":"rate_limit_exceeded"}}"#.into(),
        ),
        1 => Action::Status(429, vec![("retry-after-ms", "30".into())], String::new()),
        2 => Action::Status(500, vec![], "<html>Internal Server Error</html>".into()),
        3 => Action::Status(503, vec![("Retry-After", "0".into())], String::new()),
        4 => Action::Hang,
        5 => Action::Cut(40),
        6 => Action::CutPieces,
        7 => Action::Status(200, vec![], "{\"choices\": [".into()),
        8 => Action::Body(json!({ "error": { "message": "upstream is overloaded", "code": 502 } })),
        _ => Action::Body(json!({ "choices": [] })),
    });
    bench.run(&server).unwrap();
    let answers = bench.answers(&server);
    assert!(answers.iter().all(|answer| answer.tries == 2), "{answers:?}");
    let said: Vec<_> = answers.iter().map(|answer| answer.reply.content.clone().unwrap()).collect();
    assert_eq!(said, (0..10).map(label_of).collect::<Vec<_>>());
}

#[test]
fn a_server_that_names_a_wait_is_left_alone_for_so_long_by_all() {
    let bench = Bench::new(9);
    let asked: Arc<Mutex<Vec<Instant>>> = Arc::default();
    let seen = Arc::clone(&asked);
    let server = Server::start(move |question| {
        let mut seen = seen.lock().unwrap();
        seen.push(Instant::now());
        // The first row finds the features alone; the second request is told to wait.
        match seen.len() {
            2 => Action::Status(429, vec![("Retry-After", "1".into())], String::new()),
            _ => Action::Say(label_of(number_of(question.query()))),
        }
    });
    let begun = Instant::now();
    bench.run(&server).unwrap();
    assert!(begun.elapsed() >= Duration::from_secs(1));
    let asked = asked.lock().unwrap();
    // Those that had left already come at once; the others after the second.
    let early =
        asked[1..].iter().filter(|at| at.duration_since(asked[1]) < Duration::from_millis(900)).count();
    assert!(early <= bench.ask.concurrency * 2, "{early} requests did not wait");
    assert!(asked.last().unwrap().duration_since(asked[1]) >= Duration::from_millis(990));
}

#[test]
fn failures_that_stay_stop_the_run_and_say_what_to_do() {
    let quota = r#"{"error":{"message":"You exceeded your current quota","code":"insufficient_quota"}}"#;
    let long =
        r#"{"error":{"message":"maximum context length is 8192 tokens","code":"context_length_exceeded"}}"#;
    for (status, headers, body, requests, expected) in [
        (401, vec![], r#"{"error":{"message":"Incorrect API key"}}"#, 1, "check the key"),
        (404, vec![], r#"{"error":{"message":"no such model"}}"#, 1, "check the model's name"),
        (429, vec![], quota, 1, "no credit left"),
        (400, vec![], long, 1, "lower --shots"),
        (429, vec![("Retry-After", "3600".to_owned())], "", 1, "asks to wait 3600 s"),
        (302, vec![("Location", "http://127.0.0.1:9/".to_owned())], "", 1, "answered 302"),
        (500, vec![], "", 4, "failed 4 times in a row"),
        // Nothing names a feature: asked with fewer and fewer, the endpoint refuses all the same.
        (400, vec![], "", 4, "the request is not understood"),
    ] {
        let bench = Bench::new(3);
        let server = Server::start(move |_| Action::Status(status, headers.clone(), body.into()));
        let error = bench.run(&server).unwrap_err();
        assert!(error.to_string().contains(expected), "{error}");
        assert_eq!(server.log().len(), requests, "{error}");
        assert_eq!(bench.recording(&server).answered(), 0);
    }
}

#[test]
fn a_broken_connection_is_an_error_after_enough_tries() {
    let bench = Bench::new(1);
    // Nobody listens on a port that was just given back.
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let mut server = Server::start(|_| Action::Hang);
    server.url = format!("http://{port}/v1");
    let error = bench.run(&server).unwrap_err();
    assert!(matches!(error, Error::GaveUp { tries: 4, .. }), "{error}");
}

/// Collects what is logged.
#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<u8>>>);

impl Write for Log {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().extend(bytes);
        Ok(bytes.len())
    }
    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

#[test]
fn the_key_is_in_the_request_and_nowhere_else() {
    let log = Log::default();
    let writer = log.clone();
    let subscriber =
        tracing_subscriber::fmt().with_max_level(tracing::Level::TRACE).with_writer(move || writer.clone());
    // For all threads, since other tests reach the same places in the code.
    tracing::subscriber::set_global_default(subscriber.finish()).unwrap();
    let mut seen = Vec::new();
    // A server that repeats the key wherever it can.
    for status in [200, 400, 401, 429, 500] {
        let bench = Bench::new(2);
        let server = Server::start(move |question| {
            let key = question.head.lines().find_map(|line| line.split_once("Bearer ")).unwrap().1.to_owned();
            match (status, question.number) {
                (200, 0) => Action::Status(500, vec![], format!("{{\"error\":\"you sent {key}\"}}")),
                (200, _) => Action::Say(format!("label_1 {key}")),
                _ => {
                    Action::Status(status, vec![], format!("{{\"error\":{{\"message\":\"bad key {key}\"}}}}"))
                }
            }
        });
        if let Err(error) = bench.run(&server) {
            seen.push(format!("{error} {error:?} {:?}", std::error::Error::source(&error)));
        }
        assert!(server.log().iter().all(|question| question.head.contains(KEY)));
        for file in std::fs::read_dir(bench.folder.path()).unwrap() {
            seen.push(std::fs::read_to_string(file.unwrap().path()).unwrap());
        }
    }
    seen.push(String::from_utf8(log.0.lock().unwrap().clone()).unwrap());
    assert!(
        seen.iter().any(|text| text.contains("[key hidden]")),
        "the server's words are kept, the key is not"
    );
    assert!(seen.last().unwrap().contains("trying again"), "the log is collected");
    assert!(seen.iter().all(|text| !text.contains(KEY)), "{seen:?}");
}
