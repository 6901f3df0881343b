//! A model hub in the test's own process: the API, the redirects, and a second origin that has the bytes.

use std::{
    collections::BTreeMap,
    io::{BufRead, BufReader, Write},
    net::{TcpListener, TcpStream},
    sync::{Arc, Mutex, MutexGuard},
    thread,
};

use sha2::{Digest, Sha256};

pub(crate) const ID: &str = "org/repo";
pub(crate) const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";
pub(crate) const TOKEN: &str = "hf_secret";

/// Which of the two origins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Side {
    Hub,
    Cdn,
}

/// What goes wrong, once, with the next fitting request.
pub(crate) enum Fault {
    /// Nothing: lets one request pass.
    Nothing,
    /// Answers with this status and headers.
    Status(u16, Vec<(&'static str, String)>),
    /// Sends this many bytes of the body that it announces.
    Cut(usize),
    /// Has other bytes for the file from now on.
    Change(Vec<u8>),
    /// Sends the body with one bit flipped.
    Flip,
    /// Knows no ranges.
    NoRanges,
    /// Leaves this header out.
    Without(&'static str),
    /// Puts this header in.
    With(&'static str, String),
}

/// A request as it came.
#[derive(Clone, Debug)]
pub(crate) struct Request {
    pub(crate) side: Side,
    pub(crate) method: String,
    pub(crate) path: String,
    /// The path as it was sent, with its escapes.
    raw: String,
    headers: BTreeMap<String, String>,
}

impl Request {
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).map(String::as_str)
    }
}

/// A file: large ones live on the other origin and have their SHA-256 as `ETag`.
struct Stored {
    bytes: Vec<u8>,
    large: bool,
}

impl Stored {
    fn etag(&self) -> String {
        let hash = format!("{:x}", Sha256::digest(&self.bytes));
        hash[..if self.large { 64 } else { 40 }].to_owned()
    }
}

/// What the hub holds, and what it does wrong.
#[derive(Default)]
pub(crate) struct State {
    files: BTreeMap<String, Stored>,
    /// Names that only the list has.
    pub(crate) listed: Vec<String>,
    /// Asks for the token with this `X-Error-Code`.
    pub(crate) locked: Option<&'static str>,
    faults: Vec<(Side, &'static str, &'static str, Fault)>,
    pub(crate) log: Vec<Request>,
}

/// The two origins, until the process ends.
#[derive(Clone)]
pub(crate) struct Server {
    pub(crate) endpoint: String,
    cdn: String,
    state: Arc<Mutex<State>>,
}

impl Server {
    /// A hub without files.
    pub(crate) fn start() -> Self {
        let [hub, cdn] = [(); 2].map(|()| TcpListener::bind("127.0.0.1:0").unwrap());
        let address = |listener: &TcpListener| format!("http://{}", listener.local_addr().unwrap());
        let server = Self { endpoint: address(&hub), cdn: address(&cdn), state: Arc::default() };
        for (side, listener) in [(Side::Hub, hub), (Side::Cdn, cdn)] {
            let server = server.clone();
            thread::spawn(move || {
                for stream in listener.incoming().flatten() {
                    let server = server.clone();
                    thread::spawn(move || server.answer(side, stream));
                }
            });
        }
        server
    }

    pub(crate) fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }

    pub(crate) fn put(&self, file: &str, bytes: impl Into<Vec<u8>>, large: bool) {
        self.state().files.insert(file.to_owned(), Stored { bytes: bytes.into(), large });
    }

    pub(crate) fn etag(&self, file: &str) -> String {
        self.state().files[file].etag()
    }

    /// The next request to `side` with this method and `part` in its path goes wrong.
    pub(crate) fn fail(&self, side: Side, method: &'static str, part: &'static str, fault: Fault) {
        self.state().faults.push((side, method, part, fault));
    }

    /// The requests for bytes of `file` so far.
    pub(crate) fn gets(&self, file: &str, side: Side) -> Vec<Request> {
        let log = self.state().log.clone();
        log.into_iter().filter(|r| r.side == side && r.method == "GET" && r.path.ends_with(file)).collect()
    }

    fn answer(&self, side: Side, stream: TcpStream) {
        let Some(request) = read(side, &stream) else { return };
        let mut state = self.state();
        state.log.push(request.clone());
        let fits = |(at, method, part, _): &(Side, &str, &str, Fault)| {
            *at == side && *method == request.method && request.path.contains(part)
        };
        let fault = state.faults.iter().position(fits).map(|at| state.faults.remove(at).3);
        let answer = self.respond(&mut state, &request, fault);
        drop(state);
        // The client may have gone, as after a HEAD that it did not like.
        let _ = answer.send(stream, request.method == "HEAD");
    }

    fn respond(&self, state: &mut State, request: &Request, fault: Option<Fault>) -> Answer {
        if let Some(Fault::Status(status, headers)) = fault {
            return Answer::new(status, headers, Vec::new());
        }
        let path = &request.path;
        if *path == format!("/api/models/{ID}/revision/main") {
            let names: Vec<_> = state.files.keys().chain(&state.listed).collect();
            let siblings: Vec<_> =
                names.iter().map(|name| serde_json::json!({ "rfilename": name })).collect();
            let body = serde_json::json!({ "id": ID, "sha": COMMIT, "siblings": siblings });
            return Answer::new(200, vec![], body.to_string().into_bytes());
        }
        let (resolve, local) = (format!("/{ID}/resolve/{COMMIT}/"), format!("/api/resolve-cache/{COMMIT}/"));
        let hub = request.side == Side::Hub;
        let found = [&resolve, &local, "/bytes/"].into_iter().find_map(|prefix| path.strip_prefix(prefix));
        let Some((name, file)) = found.and_then(|name| Some((name, state.files.get_mut(name)?))) else {
            let code = if path.starts_with(&resolve) { "EntryNotFound" } else { "RepoNotFound" };
            return Answer::new(
                if hub { 404 } else { 403 },
                vec![("X-Error-Code", code.to_owned())],
                Vec::new(),
            );
        };
        if let Some(code) = state.locked
            && hub
            && request.header("authorization") != Some(&format!("Bearer {TOKEN}"))
        {
            let status = if request.header("authorization").is_some() { 403 } else { 401 };
            return Answer::new(status, vec![("X-Error-Code", code.to_owned())], Vec::new());
        }
        if let Some(Fault::Change(bytes)) = &fault {
            file.bytes.clone_from(bytes);
        }
        let etag = format!("\"{}\"", file.etag());
        let commit = ("X-Repo-Commit", COMMIT.to_owned());
        let mut answer = if path.starts_with(&resolve) && file.large {
            let size = file.bytes.len().to_string();
            let location = format!("{}/bytes/{name}?signature=signed", self.cdn);
            let linked = [("X-Linked-Etag", etag), ("X-Linked-Size", size), ("Location", location)];
            Answer::new(302, [vec![commit], linked.to_vec()].concat(), b"Found".to_vec())
        } else if path.starts_with(&resolve) {
            Answer::new(
                307,
                vec![commit, ("Location", request.raw.replace(&resolve, &local))],
                b"Moved".to_vec(),
            )
        } else {
            let etag = if hub { etag } else { "\"of-the-other-origin\"".to_owned() };
            let ranges = !matches!(fault, Some(Fault::NoRanges))
                && request.header("if-range").is_none_or(|condition| condition == etag);
            let start = request.header("range").filter(|_| ranges);
            let start = start.and_then(|r| r.strip_prefix("bytes=")?.strip_suffix('-')?.parse().ok());
            let mut answer = part(&file.bytes, start);
            answer.headers.push(("ETag", etag));
            answer.headers.extend(hub.then_some(commit));
            answer
        };
        match fault {
            Some(Fault::Cut(bytes)) => answer.cut = Some(bytes),
            Some(Fault::Flip) => answer.body[0] ^= 1,
            Some(Fault::Without(name)) => answer.headers.retain(|(n, _)| *n != name),
            Some(Fault::With(name, value)) => {
                answer.headers.retain(|(n, _)| *n != name);
                answer.headers.push((name, value));
            }
            _ => {}
        }
        answer
    }
}

fn part(bytes: &[u8], start: Option<usize>) -> Answer {
    let size = bytes.len();
    match start {
        None => Answer::new(200, vec![], bytes.to_vec()),
        Some(start) if start >= size => Answer::new(416, vec![], Vec::new()),
        Some(start) => {
            let range = format!("bytes {start}-{}/{size}", size - 1);
            Answer::new(206, vec![("Content-Range", range)], bytes[start..].to_vec())
        }
    }
}

struct Answer {
    status: u16,
    headers: Vec<(&'static str, String)>,
    body: Vec<u8>,
    cut: Option<usize>,
}

impl Answer {
    fn new(status: u16, headers: Vec<(&'static str, String)>, body: Vec<u8>) -> Self {
        Self { status, headers, body, cut: None }
    }

    fn send(&self, mut stream: TcpStream, head: bool) -> std::io::Result<()> {
        let mut text = format!("HTTP/1.1 {} X\r\nConnection: close\r\n", self.status);
        for (name, value) in &self.headers {
            text += &[name, ": ", value, "\r\n"].concat();
        }
        write!(stream, "{text}Content-Length: {}\r\n\r\n", self.body.len())?;
        if head {
            return Ok(());
        }
        stream.write_all(&self.body[..self.cut.unwrap_or(self.body.len()).min(self.body.len())])
    }
}

fn read(side: Side, stream: &TcpStream) -> Option<Request> {
    let mut lines = BufReader::new(stream).lines();
    let first = lines.next()?.ok()?;
    let mut words = first.split(' ');
    let (method, target) = (words.next()?.to_owned(), words.next()?);
    let headers = lines
        .map_while(Result::ok)
        .take_while(|line| !line.is_empty())
        .filter_map(|line| line.split_once(": ").map(|(n, v)| (n.to_ascii_lowercase(), v.to_owned())))
        .collect();
    let raw = target.split('?').next()?.to_owned();
    let path = unescape(&raw);
    Some(Request { side, method, path, raw, headers })
}

fn unescape(path: &str) -> String {
    let mut parts = path.split('%');
    let first = parts.next().unwrap_or_default().to_owned();
    parts.fold(first, |path, part| {
        let byte = u8::from_str_radix(&part[..2], 16).unwrap();
        path + &char::from(byte).to_string() + &part[2..]
    })
}
