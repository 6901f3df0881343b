//! Label scores against transformers, against their own bound, and against themselves in another batch.

use super::*;
use crate::Draft;

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

/// A scorer for the labels of a case, and its queries.
fn with_scorer<B: Backend>(
    backend: B,
    encoding: Option<Encoding>,
    check: impl FnOnce(&Model<B>, &mut Scorer<B>, &[&[u32]]),
) {
    let case = Case::open("scaled");
    let model = case.with_adapter(backend, encoding);
    let examples = case.examples();
    let queries: Vec<&[u32]> = examples.iter().map(|e| &e.query[..]).collect();
    let options = ScorerOptions::default();
    let mut scorer = Scorer::new(&model, case.trie(), case.prefix.clone(), options).unwrap();
    check(&model, &mut scorer, &queries);
}

#[test]
fn an_answer_does_not_depend_on_the_batch() {
    fn bits<B: Backend>(backend: B, encoding: Option<Encoding>) {
        with_scorer(backend, encoding, |model, scorer, queries| {
            let together = scorer.score(model, queries).unwrap();
            for (query, together) in queries.iter().zip(&together) {
                assert_eq!(&scorer.score(model, &[query]).unwrap()[0], together);
            }
        });
    }
    for encoding in [None, Some(Encoding::Compute), Some(Encoding::Int8)] {
        bits(Cpu::<f32>::new(), encoding);
        bits(Cpu::<kernels::bf16>::new(), encoding);
    }
}

/// A label guessed before the first pass, right or wrong, changes no bit of any score; right ones save passes.
#[test]
fn a_guess_changes_no_answer() {
    fn bits<B: Backend>(backend: B, encoding: Option<Encoding>) {
        with_scorer(backend, encoding, |model, scorer, queries| {
            let plain = scorer.score(model, queries).unwrap();
            let labels = scorer.trie().labels();
            let mut right = 0;
            for shift in 0..labels {
                let guesses = queries.iter().enumerate().map(|(row, query)| (*query, (row + shift) % labels));
                let draft = Draft::fit(labels, guesses);
                right += queries.iter().zip(&plain).filter(|(q, s)| draft.guess(q) == s.best().0).count();
                scorer.guess_with(draft);
                assert_eq!(scorer.score(model, queries).unwrap(), plain);
                assert_eq!(scorer.score(model, &queries[..1]).unwrap(), plain[..1]);
            }
            assert!((1..labels * queries.len()).contains(&right), "{right} right guesses");
        });
    }
    bits(Cpu::<f32>::new(), None);
    bits(Cpu::<kernels::bf16>::new(), Some(Encoding::Int8));
}

#[test]
fn the_first_pass_computes_the_guess() {
    let case = Case::open("scaled");
    let model = case.model(Cpu::<f32>::new());
    let query = &case.examples()[0].query;
    let trie = LabelTrie::new(&[vec![5, 6, 7]]).unwrap();
    let mut scorer = Scorer::new(&model, trie, case.prefix.clone(), ScorerOptions::default()).unwrap();
    let passes = |scorer: &mut Scorer<_>| {
        let before = scorer.passes;
        scorer.score(&model, &[query]).unwrap();
        scorer.passes - before
    };
    assert_eq!(passes(&mut scorer), 2, "the query, then the label");
    scorer.guess_with(Draft::fit(1, [(&query[..], 0)].into_iter()));
    assert_eq!(passes(&mut scorer), 1);
}
