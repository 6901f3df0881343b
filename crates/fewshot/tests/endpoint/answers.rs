//! Odd answers, and endpoints that support less than OpenAI's.

use fewshot::{LabelReader, Outcome, Structure, Summary};
use serde_json::{Value, json};

use crate::common::{Bench, PRICE, label_of, number_of};
use crate::server::{Action, Server, completion};

#[test]
fn odd_answers_are_counted_and_none_is_hidden() {
    let bench = Bench::new(8);
    let server = Server::start(|question| {
        let row = number_of(question.query());
        let mut body = completion(&format!("{{\"label\":\"{}\"}}", label_of(row)), question);
        let message = &mut body["choices"][0]["message"];
        match row {
            0 => {}
            1 => (message["refusal"], message["content"]) = (json!("I will not."), Value::Null),
            2 => message["content"] = json!("{\"label\": \"LABEL_2\"}"),
            3 => body["choices"][0]["finish_reason"] = json!(""),
            4 => body["usage"] = Value::Null,
            5 => body["choices"][0]["logprobs"] = Value::Null,
            6 => message["content"] = json!("{\"label\": \"somewhere else\"}"),
            _ => (message["content"], body["choices"][0]["finish_reason"]) = (json!(""), json!("length")),
        }
        Action::Body(body)
    });
    bench.run(&server).unwrap();
    let right = |label| Outcome::Label { label, exact: true };
    assert_eq!(
        bench.outcomes(&server),
        [
            right(0),
            Outcome::Refused,
            Outcome::Label { label: 2, exact: false },
            right(3),
            right(4),
            right(5),
            Outcome::Outside,
            Outcome::Empty,
        ]
    );
    let answers = bench.answers(&server);
    let summary = Summary::new(&answers, &LabelReader::new(&bench.labels), Some(&PRICE));
    assert_eq!((summary.refused, summary.outside, summary.empty, summary.spelled_otherwise), (1, 1, 1, 1));
    assert_eq!((summary.tokens_counted, answers[4].counted), (1, true));
    assert!(answers[4].usage.prompt > 20 && answers[4].usage.completion == 1, "{:?}", answers[4].usage);
    let probability = |row: usize| LabelReader::new(&bench.labels).read(&answers[row].reply).1;
    assert_eq!((probability(0), probability(5)), (Some((-0.25f64).exp()), None));
}

#[test]
fn a_filter_before_the_model_is_a_refusal() {
    let bench = Bench::new(2);
    let server = Server::start(|question| match number_of(question.query()) {
        1 => {
            Action::Status(400, vec![], r#"{"error":{"code":"content_filter","message":"filtered"}}"#.into())
        }
        row => Action::Say(label_of(row)),
    });
    bench.run(&server).unwrap();
    assert_eq!(bench.outcomes(&server)[1], Outcome::Refused);
}

/// A server that refuses the features in its list, each in its own words.
fn without(refused: &'static [&'static str]) -> Server {
    Server::start(move |question| {
        let asked = |feature: &str| match feature {
            "json_schema" | "json_object" => question.body["response_format"]["type"] == feature,
            _ => !question.body[feature].is_null(),
        };
        match refused.iter().find(|feature| asked(feature)) {
            Some(&"logprobs") => {
                Action::Status(500, vec![], r#"{"error":{"message":"logprobs need logits_all"}}"#.into())
            }
            Some(&"max_tokens") => {
                Action::Status(400, vec![], r#"{"error":{"message":"use 'max_completion_tokens'"}}"#.into())
            }
            Some(_) => Action::Status(
                422,
                vec![],
                r#"{"detail":[{"loc":["body","response_format","type"],"msg":"Input should be 'text'"}]}"#
                    .into(),
            ),
            None => Action::Say(label_of(number_of(question.query()))),
        }
    })
}

#[test]
fn what_the_endpoint_supports_is_found_once_and_remembered() {
    for (refused, probes, structure, log_probs) in [
        (&[][..], 0, Structure::Schema, true),
        (&["json_schema"], 1, Structure::Json, true),
        (&["json_schema", "json_object"], 2, Structure::Text, true),
        (&["json_schema", "json_object", "logprobs", "max_tokens"], 4, Structure::Text, false),
    ] {
        let mut bench = Bench::new(6);
        let server = without(refused);
        bench.ask.max_cost = Some(0.0);
        bench.run(&server).unwrap();
        assert_eq!(server.log().len(), 0, "no budget, no question");
        bench.ask.max_cost = None;
        bench.run(&server).unwrap();
        assert_eq!(server.log().len(), 6 + probes, "{refused:?}");
        let features = bench.recording(&server).features().unwrap();
        assert_eq!((features.structure, features.log_probs), (structure, log_probs));
        let last = server.log().pop().unwrap();
        let system = last.body["messages"][0]["content"].as_str().unwrap();
        assert_eq!(system.contains("JSON"), structure != Structure::Text);
        if structure == Structure::Schema {
            let schema = &last.body["response_format"]["json_schema"];
            assert_eq!(schema["strict"], true);
            assert_eq!(schema["schema"]["properties"]["label"]["enum"], json!(bench.labels));
        }
        assert_eq!(last.body["temperature"], 0);
    }
}
