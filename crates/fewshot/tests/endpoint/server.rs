//! An OpenAI-compatible endpoint in the test's own process that answers as its script says.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use serde_json::{Value, json};

/// A request as it came.
#[derive(Clone, Debug)]
pub(crate) struct Question {
    /// How many came before it.
    pub(crate) number: usize,
    /// Request line and headers, as they were sent.
    pub(crate) head: String,
    pub(crate) body: Value,
}

impl Question {
    /// The last message.
    pub(crate) fn query(&self) -> &str {
        let messages = self.body["messages"].as_array().expect("a request has messages");
        messages.last().and_then(|message| message["content"].as_str()).expect("a message is a text")
    }
}

/// What the server does with a request.
pub(crate) enum Action {
    /// Answers with this text, and with all that OpenAI says beside it.
    Say(String),
    /// Answers with this body.
    Body(Value),
    /// Answers with a status, headers and a body.
    Status(u16, Vec<(&'static str, String)>, String),
    /// Announces a whole answer and breaks off after this many bytes.
    Cut(usize),
    /// The same in pieces, without an end.
    CutPieces,
    /// Never answers.
    Hang,
}

type Script = Box<dyn Fn(&Question) -> Action + Send + Sync>;

struct State {
    script: Script,
    log: Mutex<Vec<Question>>,
    answered: Mutex<Vec<String>>,
}

/// The endpoint, until the process ends.
#[derive(Clone)]
pub(crate) struct Server {
    /// Its base address.
    pub(crate) url: String,
    state: Arc<State>,
}

impl Server {
    pub(crate) fn start(script: impl Fn(&Question) -> Action + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a loopback port is free");
        let url = format!("http://{}/v1", listener.local_addr().expect("a bound port has an address"));
        let state = State { script: Box::new(script), log: Mutex::default(), answered: Mutex::default() };
        let server = Self { url, state: Arc::new(state) };
        let accepting = server.clone();
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let server = accepting.clone();
                thread::spawn(move || server.serve(&stream));
            }
        });
        server
    }

    /// The requests so far.
    pub(crate) fn log(&self) -> Vec<Question> {
        self.state.log.lock().expect("no script panics").clone()
    }

    /// The queries that were answered, each as often as it was.
    pub(crate) fn answered(&self) -> Vec<String> {
        self.state.answered.lock().expect("no script panics").clone()
    }

    /// Answers one request after the other on a connection that stays open.
    fn serve(&self, stream: &TcpStream) {
        let mut reader = BufReader::new(stream);
        while let Some((head, body)) = read(&mut reader) {
            let question = {
                let mut log = self.state.log.lock().expect("no script panics");
                let question = Question { number: log.len(), head, body };
                log.push(question.clone());
                question
            };
            let action = (self.state.script)(&question);
            if matches!(action, Action::Say(_) | Action::Body(_)) {
                self.state.answered.lock().expect("no script panics").push(question.query().to_owned());
            }
            // The client may have gone.
            if !send(stream, action, &question).unwrap_or(false) {
                return;
            }
        }
    }
}

/// A full answer as OpenAI gives it.
pub(crate) fn completion(content: &str, question: &Question) -> Value {
    let prompt: usize = question.body["messages"].to_string().len() / 4;
    json!({
        "id": "chatcmpl-1", "object": "chat.completion", "created": 1, "model": "scripted-2026-01-01",
        "choices": [{
            "index": 0,
            "message": { "role": "assistant", "content": content, "refusal": null },
            "logprobs": { "content": [{ "token": content, "logprob": -0.25, "bytes": null, "top_logprobs": [] }] },
            "finish_reason": "stop",
        }],
        "usage": {
            "prompt_tokens": prompt, "completion_tokens": 8, "total_tokens": prompt + 8,
            "prompt_tokens_details": { "cached_tokens": prompt / 2 },
        },
    })
}

/// Whether the connection stays open.
fn send(mut stream: &TcpStream, action: Action, question: &Question) -> std::io::Result<bool> {
    let full = || completion("x", question).to_string();
    match action {
        Action::Say(content) => {
            whole(stream, 200, &[], &completion(&content, question).to_string()).map(|()| true)
        }
        Action::Body(body) => whole(stream, 200, &[], &body.to_string()).map(|()| true),
        Action::Status(status, headers, body) => whole(stream, status, &headers, &body).map(|()| true),
        Action::Cut(bytes) => {
            let body = full();
            write!(stream, "HTTP/1.1 200 X\r\nContent-Length: {}\r\n\r\n{}", body.len(), &body[..bytes])?;
            Ok(false)
        }
        Action::CutPieces => {
            let piece = &full()[..20];
            write!(stream, "HTTP/1.1 200 X\r\nTransfer-Encoding: chunked\r\n\r\n14\r\n{piece}\r\n")?;
            Ok(false)
        }
        Action::Hang => loop {
            thread::park_timeout(Duration::from_hours(1));
        },
    }
}

fn whole(
    mut stream: &TcpStream,
    status: u16,
    headers: &[(&'static str, String)],
    body: &str,
) -> std::io::Result<()> {
    let mut head = format!("HTTP/1.1 {status} X\r\n");
    for (name, value) in headers {
        head += &[name, ": ", value, "\r\n"].concat();
    }
    write!(stream, "{head}Content-Length: {}\r\n\r\n{body}", body.len())
}

fn read(reader: &mut BufReader<&TcpStream>) -> Option<(String, Value)> {
    let mut head = String::new();
    while !head.ends_with("\r\n\r\n") {
        if reader.read_line(&mut head).ok()? == 0 {
            return None;
        }
    }
    let length = head
        .lines()
        .find_map(|line| line.to_ascii_lowercase().strip_prefix("content-length:")?.trim().parse().ok());
    let mut body = vec![0; length?];
    reader.read_exact(&mut body).ok()?;
    Some((head, serde_json::from_slice(&body).ok()?))
}
