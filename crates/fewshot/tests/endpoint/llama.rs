//! A real second implementation: `llama-cpp-python[server]` with SmolLM2. `FRONTDESK_LLAMA_PYTHON` names a Python that
//! has it, `FRONTDESK_SMOLLM2` the GGUF file.

use std::env;
use std::net::{TcpListener, TcpStream};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use fewshot::{
    Asker, Backoff, Client, Ending, Endpoint, KeptPrompt, Outcome, Structure, TokenCounter, Unanswered,
};

use crate::common::Bench;
use crate::server::{Action, Server};

/// The server's process, ended with the test.
struct Llama(Child);

impl Drop for Llama {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Llama {
    /// Starts the server on a free port and waits until it listens.
    fn start(python: &str, model: &str) -> (Self, String) {
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port().to_string();
        let mut command = Command::new(python);
        command.args(["-m", "llama_cpp.server", "--model", model, "--host", "127.0.0.1", "--port", &port]);
        command.args(["--n_ctx", "2048", "--n_threads", "1"]).stdout(Stdio::null()).stderr(Stdio::null());
        let mut llama = Self(command.spawn().unwrap());
        let begun = Instant::now();
        while TcpStream::connect(format!("127.0.0.1:{port}")).is_err() {
            assert!(begun.elapsed() < Duration::from_mins(3), "the server does not listen");
            assert!(
                llama.0.try_wait().unwrap().is_none(),
                "the server ended; is llama-cpp-python[server] installed?"
            );
            std::thread::sleep(Duration::from_millis(100));
        }
        (llama, format!("http://127.0.0.1:{port}/v1"))
    }
}

#[test]
fn a_llama_server_is_asked_offline_again_and_never_twice() {
    let (Ok(python), Ok(model)) = (env::var("FRONTDESK_LLAMA_PYTHON"), env::var("FRONTDESK_SMOLLM2")) else {
        eprintln!("skipped: FRONTDESK_LLAMA_PYTHON and FRONTDESK_SMOLLM2 are not both set");
        return;
    };
    let (llama, url) = Llama::start(&python, &model);
    let mut bench = Bench::new(6);
    bench.timeout = Duration::from_mins(2);
    bench.labels = ["card", "fee", "greeting"].map(str::to_owned).to_vec();
    let texts =
        ["I lost my card", "why this fee", "hello", "my card is gone", "what does it cost", "good day"];
    for (row, text) in bench.rows.iter_mut().zip(texts) {
        text.clone_into(&mut row.text);
    }
    // Only its address differs from that of the scripted one.
    let mut server = Server::start(|_| Action::Hang);
    server.url = url;
    assert_eq!(bench.run(&server).unwrap(), Ending::Complete);
    let features = bench.recording(&server).features().unwrap();
    assert_ne!(features.structure, Structure::Text, "it knows JSON mode at least: {features:?}");
    for answer in bench.answers(&server) {
        assert!(!answer.counted && answer.usage.prompt > 50 && answer.usage.completion > 0, "{answer:?}");
        assert!(answer.reply.content.as_deref().is_some_and(|text| text.contains('{')), "{answer:?}");
    }
    let labelled =
        bench.outcomes(&server).iter().filter(|outcome| matches!(outcome, Outcome::Label { .. })).count();
    eprintln!("{features:?}; {labelled} of 6 answers are labels");

    // Queries that come later, with the same prompt; half way through the server is killed.
    let open = || {
        let prompt = KeptPrompt::of(&bench.prompts(), features).open(bench.labels.clone()).unwrap();
        let endpoint = Endpoint::with_key("scripted", &server.url, "").unwrap();
        let backoff = Backoff { tries: 2, first: Duration::from_millis(2), longest: Duration::from_secs(1) };
        let client = Client::new(endpoint, backoff, bench.timeout).unwrap();
        Asker::new(client, prompt, bench.folder.path(), &bench.ask).unwrap()
    };
    let mut counter = TokenCounter::new(str::len);
    let mut asker = open();
    let before = asker.ask(&["my card was stolen", "good morning", "my card was stolen"], &mut counter);
    assert!(before.iter().all(|said| said.as_ref().is_ok_and(|said| said.usage.prompt > 50)), "{before:?}");
    let [first, again] = [0, 2].map(|at| before[at].clone().unwrap());
    assert!(first.outcome == again.outcome && again.recorded && again.cost == Some(0.0), "{before:?}");
    drop(llama);
    assert_eq!(bench.run(&server).unwrap(), Ending::Complete, "a complete recording needs no server");
    let after = asker.ask(&["good morning", "a fee again"], &mut counter);
    assert_eq!(after[0].as_ref().unwrap().outcome, before[1].as_ref().unwrap().outcome);
    assert!(matches!(&after[1], Err(Unanswered::Failed(why)) if why.contains("connect")), "{after:?}");
    assert!(matches!(asker.ask(&["and a card"], &mut counter)[0], Err(Unanswered::Resting(_))));
    drop(asker);
    let known = open().ask(&["my card was stolen"], &mut counter)[0].clone().unwrap();
    assert!(known.recorded && known.cost == Some(0.0), "{known:?}");
}
