//! A label guessed before the first pass, right or wrong, changes no bit of any score.

use super::*;
use crate::Draft;

#[test]
fn a_guess_changes_no_answer() {
    fn bits<B: Backend>(backend: B, encoding: Option<Encoding>) {
        let case = Case::open("scaled");
        let model = case.with_adapter(backend, encoding);
        let examples = case.examples();
        let queries: Vec<&[u32]> = examples.iter().map(|e| &e.query[..]).collect();
        let mut scorer =
            Scorer::new(&model, case.trie(), case.prefix.clone(), ScorerOptions::default()).unwrap();
        let plain = scorer.score(&model, &queries).unwrap();
        let labels = scorer.trie().labels();
        let mut right = 0;
        for shift in 0..labels {
            let guesses = queries.iter().enumerate().map(|(row, query)| (*query, (row + shift) % labels));
            let draft = Draft::fit(labels, guesses);
            right += queries.iter().zip(&plain).filter(|(q, s)| draft.guess(q) == s.best().0).count();
            scorer.guess_with(draft);
            assert_eq!(scorer.score(&model, &queries).unwrap(), plain);
            assert_eq!(scorer.score(&model, &queries[..1]).unwrap(), plain[..1]);
        }
        assert!((1..labels * queries.len()).contains(&right), "{right} right guesses");
    }
    bits(Cpu::<f32>::new(), None);
    bits(Cpu::<kernels::bf16>::new(), Some(Encoding::Int8));
}
