use std::{error::Error as _, net::TcpListener};

use hub::{Error, Secret};

use crate::{
    bench::{Bench, bytes},
    server::{Fault, ID, Side, TOKEN},
};

/// An error with all its causes, in both forms.
fn everything(error: &Error) -> String {
    let mut text = format!("{error} {error:?}");
    let mut cause = error.source();
    while let Some(it) = cause {
        text = format!("{text} {it} {it:?}");
        cause = it.source();
    }
    text
}

#[test]
fn a_gated_repository_says_how_to_get_in_and_lets_a_token_in() {
    let mut bench = Bench::with_model(b"weights");
    bench.server.state().locked = Some("GatedRepo");
    let error = bench.pull(ID).unwrap_err();
    let text = error.to_string();
    assert!(matches!(error, Error::Gated { mirror: None, .. }), "{text}");
    assert!(
        text.contains("no token was sent") && text.contains("/org/repo") && text.contains("HF_TOKEN"),
        "{text}"
    );
    bench.hub.token = Secret::new("hf_stranger");
    let error = bench.pull(ID).unwrap_err();
    assert!(matches!(&error, Error::Gated { reason, .. } if reason.contains("no access")), "{error}");
    assert!(!everything(&error).contains("stranger"));
    bench.sign_in();
    bench.pull(ID).unwrap();
}

#[test]
fn a_gated_catalogue_model_names_its_mirror() {
    let bench = Bench::empty();
    let gate = Fault::Status(401, vec![("X-Error-Code", "GatedRepo".to_owned())]);
    bench.server.fail(Side::Hub, "GET", "/api/models/meta-llama/Llama-3.2-1B-Instruct/revision/main", gate);
    let error = bench.pull("llama-3.2-1b").unwrap_err();
    assert!(error.to_string().contains("pull `unsloth/Llama-3.2-1B-Instruct`"), "{error}");
}

#[test]
fn a_refused_token_is_said_and_not_shown() {
    let mut bench = Bench::with_model(b"weights");
    bench.server.state().locked = Some("");
    assert!(
        matches!(bench.pull(ID), Err(Error::Refused { status: 401, advice, .. }) if advice.contains("set HF_TOKEN"))
    );
    bench.hub.token = Secret::new("hf_wrong");
    let error = bench.pull(ID).unwrap_err();
    assert!(
        matches!(&error, Error::Refused { status: 403, advice, .. } if advice.contains("valid")),
        "{error}"
    );
    assert!(!everything(&error).contains("hf_wrong"));
    bench.hub.token = Secret::new("hf_\u{7}wrong");
    let error = bench.pull(ID).unwrap_err();
    assert!(matches!(error, Error::MalformedToken) && !everything(&error).contains("wrong"), "{error}");
}

#[test]
fn the_token_goes_to_the_hub_alone_and_shows_nowhere() {
    let mut bench = Bench::with_model(b"weights");
    bench.sign_in();
    bench.server.fail(Side::Cdn, "GET", "model.safetensors", Fault::Status(403, vec![]));
    let error = bench.pull(ID).unwrap_err();
    assert!(matches!(error, Error::Status { status: 403, .. }), "{error}");
    let text = everything(&error) + &format!("{:?}", bench.hub);
    assert!(!text.contains(TOKEN) && !text.contains("signed"), "{text}");
    bench.pull(ID).unwrap();
    let log = bench.server.state().log.clone();
    let sent =
        |side| log.iter().filter(|r| r.side == side).map(|r| r.header("authorization")).collect::<Vec<_>>();
    assert!(sent(Side::Hub).iter().all(|it| *it == Some(&format!("Bearer {TOKEN}"))));
    assert_eq!(sent(Side::Cdn), [None, None]);
}

#[test]
fn a_signed_address_shows_in_no_error() {
    let mut bench = Bench::with_gguf(b"gguf", true);
    bench.hub.backoff.tries = 1;
    // A port that was free a moment ago and has no listener now.
    let nobody = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let signed = format!("http://{nobody}/m.gguf?signature=signed");
    bench.server.fail(Side::Hub, "GET", "m.gguf", Fault::With("Location", signed));
    bench.server.fail(Side::Cdn, "GET", "m.gguf", Fault::Cut(2));
    for _ in 0..2 {
        let error = bench.pull_gguf().unwrap_err();
        assert!(matches!(error, Error::GaveUp { .. }), "{error}");
        assert!(!everything(&error).contains("signed"), "{}", everything(&error));
    }
}

#[test]
fn what_is_not_there_is_named() {
    let bench = Bench::with_model(b"weights");
    let error = bench.pull("org/absent").unwrap_err();
    assert!(
        matches!(&error, Error::NotFound { what, status: 404, .. } if what.contains("org/absent")),
        "{error}"
    );
    let error = bench.pull("org/repo:absent.gguf").unwrap_err();
    assert!(
        error.to_string().contains("absent.gguf") && error.to_string().contains("no GGUF file"),
        "{error}"
    );
    bench.server.put("m.gguf", "gguf", true);
    let error = bench.pull("org/repo:absent.gguf").unwrap_err();
    assert!(error.to_string().contains("its GGUF files are m.gguf"), "{error}");
    bench.server.state().listed.push("tokenizer_absent.json".to_owned());
    let error = bench.pull(ID).unwrap_err();
    assert!(
        matches!(&error, Error::NotFound { what, .. } if what.contains("tokenizer_absent.json")),
        "{error}"
    );
}

#[test]
fn a_repository_without_safetensors_names_its_gguf_files() {
    let bench = Bench::empty();
    bench.server.put("config.json", "{}", false);
    assert!(matches!(bench.pull(ID), Err(Error::Unsuitable { missing: "model.safetensors", .. })));
    bench.server.put("m.gguf", "gguf", true);
    let error = bench.pull(ID).unwrap_err();
    assert!(error.to_string().contains("pull `org/repo:m.gguf`"), "{error}");
}

#[test]
fn names_that_leave_the_cache_are_refused() {
    for name in ["../evil.json", "tokenizer/../../evil", "/etc/evil", "tokenizer\\..\\evil", "C:evil", "a//b"]
    {
        let bench = Bench::with_model(b"weights");
        bench.server.state().listed.push(name.to_owned());
        assert!(matches!(bench.pull(ID), Err(Error::UnsafeName { file, .. }) if file == name), "{name}");
    }
    let bench = Bench::with_model(b"weights");
    bench.server.put("model.safetensors.index.json", r#"{"weight_map":{"a":"../../../evil"}}"#, false);
    assert!(matches!(bench.pull(ID), Err(Error::UnsafeName { file, .. }) if file == "../../../evil"));
}

#[test]
fn an_etag_that_leaves_the_cache_is_refused() {
    for etag in ["\"../../evil\"", "\"..\"", "\"\"", "\"a b\""] {
        let bench = Bench::with_gguf(b"gguf", true);
        bench.server.fail(Side::Hub, "HEAD", "m.gguf", Fault::With("X-Linked-Etag", etag.to_owned()));
        assert!(matches!(bench.pull_gguf(), Err(Error::Protocol { .. })), "{etag}");
    }
}

#[test]
fn a_disk_too_small_is_seen_before_any_byte() {
    let bench = Bench::with_model(b"weights");
    let huge = u64::MAX.to_string();
    bench.server.fail(Side::Hub, "HEAD", "model.safetensors", Fault::With("X-Linked-Size", huge));
    let error = bench.pull(ID).unwrap_err();
    assert!(matches!(error, Error::DiskFull { needed: u64::MAX, .. }), "{error}");
    assert!(bench.server.gets("model.safetensors", Side::Cdn).is_empty());
}

#[test]
fn an_answer_that_is_no_hub_s_is_refused() {
    let broken = [
        Fault::Without("X-Repo-Commit"),
        Fault::Without("X-Linked-Size"),
        Fault::With("X-Repo-Commit", "b".repeat(40)),
        Fault::With("Location", "http://[".to_owned()),
    ];
    for (i, fault) in broken.into_iter().enumerate() {
        let bench = Bench::with_gguf(&bytes(100), true);
        bench.server.fail(Side::Hub, "HEAD", "m.gguf", fault);
        let error = bench.pull_gguf().unwrap_err();
        assert!(matches!(error, Error::Protocol { .. }), "{i}: {error}");
        assert!(!bench.hub.cache.exists(), "{i}");
    }
    let mut bench = Bench::empty();
    bench.server.fail(Side::Hub, "GET", "revision", Fault::Status(200, vec![]));
    assert!(matches!(bench.pull(ID), Err(Error::Protocol { .. })));
    bench.hub.endpoint = "ftp://host".to_owned();
    assert!(matches!(bench.pull(ID), Err(Error::Endpoint { .. })));
}

#[test]
fn redirects_in_a_circle_come_to_an_end() {
    let bench = Bench::with_gguf(b"gguf", true);
    for _ in 0..20 {
        let again = vec![("Location", "/m.gguf".to_owned())];
        bench.server.fail(Side::Hub, "HEAD", "m.gguf", Fault::Status(302, again));
    }
    assert!(matches!(bench.pull_gguf(), Err(Error::Protocol { reason, .. }) if reason.contains("circle")));
}
