//! Label scores against transformers, against their own bound, and against themselves in another batch.

use super::*;

#[test]
fn label_scores_equal_transformers() {
    for (name, merged) in [("tied", false), ("scaled", false), ("tied", true), ("scaled", true)] {
        let case = Case::open(name);
        let model = case.with_adapter(Cpu::<f32>::new(), merged.then_some(Encoding::Compute));
        let options = ScorerOptions { epsilon: 0.0, spare_tokens: 3, ..ScorerOptions::default() };
        let mut scorer = Scorer::new(&model, case.trie(), case.prefix.clone(), options).unwrap();
        let examples = case.examples();
        let queries: Vec<&[u32]> = examples.iter().map(|e| &e.query[..]).collect();
        let scores = scorer.score(&model, &queries).unwrap();
        let expected = case.tensor("lora.label_logprobs");
        for (row, (scores, expected)) in scores.iter().zip(expected.chunks_exact(9)).enumerate() {
            let raw: Vec<f32> = scores.log_probs.iter().map(|p| p + scores.log_mass).collect();
            assert_close(&raw, expected, 5e-5, &format!("{name} query {row}"));
            assert_eq!(scores.error_bound, 0.0);
        }
    }
}

#[test]
fn the_error_bound_holds() {
    let case = Case::open("tied");
    let mut model = case.model(Cpu::<f32>::new());
    model.attach(&case.adapter(&model, "adapter"));
    let examples = case.examples();
    let queries: Vec<&[u32]> = examples.iter().map(|e| &e.query[..]).collect();
    let score = |epsilon| {
        let options = ScorerOptions { epsilon, spare_tokens: 0, ..ScorerOptions::default() };
        let mut scorer = Scorer::new(&model, case.trie(), case.prefix.clone(), options).unwrap();
        scorer.score(&model, &queries).unwrap()
    };
    let (exact, rough) = (score(0.0), score(0.5));
    assert!(rough.iter().any(|s| s.error_bound > 0.0), "the search should have stopped early somewhere");
    for (exact, rough) in exact.iter().zip(&rough) {
        assert!(rough.error_bound < 0.34, "half the found mass at most: {}", rough.error_bound);
        for (e, r) in exact.log_probs.iter().zip(&rough.log_probs) {
            assert!((e.exp() - r.exp()).abs() <= rough.error_bound + 1e-6, "{e} {r} {}", rough.error_bound);
        }
    }
}

#[test]
fn an_answer_does_not_depend_on_the_batch() {
    fn bits<B: Backend>(backend: B, encoding: Option<Encoding>) {
        let case = Case::open("scaled");
        let model = case.with_adapter(backend, encoding);
        let examples = case.examples();
        let queries: Vec<&[u32]> = examples.iter().map(|e| &e.query[..]).collect();
        let mut scorer =
            Scorer::new(&model, case.trie(), case.prefix.clone(), ScorerOptions::default()).unwrap();
        let together = scorer.score(&model, &queries).unwrap();
        for (query, together) in queries.iter().zip(&together) {
            assert_eq!(&scorer.score(&model, &[query]).unwrap()[0], together);
        }
    }
    for encoding in [None, Some(Encoding::Compute), Some(Encoding::Int8)] {
        bits(Cpu::<f32>::new(), encoding);
        bits(Cpu::<kernels::bf16>::new(), encoding);
    }
}
