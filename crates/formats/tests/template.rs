//! Chat templates against what transformers makes of them, and templates made to harm.

#![allow(clippy::unwrap_used)] // a test that cannot go on should stop

use std::path::PathBuf;

use formats::{ChatTemplate, Date, Error, Message};
use serde::Deserialize;

#[derive(Deserialize)]
struct Renders {
    bos_token: String,
    eos_token: String,
    cases: Vec<Case>,
}

#[derive(Deserialize)]
struct Case {
    template: String,
    messages: Vec<Message>,
    add_generation_prompt: bool,
    text: Option<String>,
    error: Option<String>,
}

fn fixture(name: &str) -> String {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../fixtures/template").join(name);
    std::fs::read_to_string(path).expect("run tools/parity/template.py to make the fixture")
}

fn template(source: &str) -> ChatTemplate {
    ChatTemplate::new(source, "<|bos|>", "<|eos|>").unwrap()
}

/// An error with its causes.
fn chain(error: &Error) -> String {
    let first: &dyn std::error::Error = error;
    let causes = std::iter::successors(Some(first), |error| error.source());
    causes.map(ToString::to_string).collect::<Vec<_>>().join(": ")
}

#[test]
fn renders_equal_those_of_transformers() {
    let renders: Renders = serde_json::from_str(&fixture("renders.json")).unwrap();
    assert!(renders.cases.len() > 50);
    for case in &renders.cases {
        let template =
            ChatTemplate::new(&fixture(&case.template), &renders.bos_token, &renders.eos_token).unwrap();
        let found = template.render(&case.messages, case.add_generation_prompt);
        let what = format!("{} {:?}", case.template, case.messages);
        match (&case.text, &case.error) {
            (Some(text), _) => assert_eq!(found.unwrap(), *text, "{what}"),
            (None, Some(error)) => assert!(chain(&found.unwrap_err()).contains(error), "{what}"),
            (None, None) => panic!("{what}: a case without text or error"),
        }
    }
}

#[test]
fn today_is_frozen_until_it_is_given() {
    let template = template("{{ strftime_now('%d %b %Y') }}");
    assert_eq!(template.render(&[], false).unwrap(), "26 Jul 2024");
    let template = template.with_date(Date::new(2026, 1, 2).unwrap());
    assert_eq!(template.render(&[], false).unwrap(), "02 Jan 2026");
}

#[test]
fn a_template_that_does_not_parse_names_its_line() {
    let error = ChatTemplate::new("line\n{% if %}", "", "").unwrap_err();
    assert!(chain(&error).contains("chat template:2"), "{}", chain(&error));
}

#[test]
fn an_unknown_directive_of_the_clock_is_an_error() {
    let error = template("{{ strftime_now('%Q') }}").render(&[], false).unwrap_err();
    assert!(chain(&error).contains("%Q"), "{}", chain(&error));
}

#[test]
fn hostile_templates_end_in_an_error() {
    let hostile = [
        "{% for a in range(100000) %}{% for b in range(100000) %}{{ a * b }}{% endfor %}{% endfor %}",
        "{% macro m(n) %}{{ m(n) }}{% endmacro %}{{ m(1) }}",
        "{% set ns = namespace(s='xxxxxxxx') %}{% for i in range(99999) %}{% set ns.s = ns.s ~ ns.s %}{% endfor %}",
        "{{ 'x' * 100000000000 }}",
        "{{ '%999999999d' | format(1) }}",
    ];
    for source in hostile {
        let error = template(source).render(&[], false).unwrap_err();
        assert!(matches!(error, Error::Template { .. }), "{source}: {error}");
    }
    let nested = "{% if true %}".repeat(20_000);
    assert!(ChatTemplate::new(&nested, "", "").is_err());
    let nested = format!("{{{{ {}1{} }}}}", "(".repeat(20_000), ")".repeat(20_000));
    assert!(ChatTemplate::new(&nested, "", "").is_err());
}
