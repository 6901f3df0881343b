//! A GPU against the processor, transformers and PEFT; skipped without one.

use std::sync::{Mutex, MutexGuard, PoisonError};

use super::itself::stays_near_f32;
use super::*;

/// Held by each test of the GPU: one thread's allocations may break another's recording.
pub(super) fn gpu_lock() -> MutexGuard<'static, ()> {
    static LOCK: Mutex<()> = Mutex::new(());
    LOCK.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The GPU of this number, or `None` with a message.
pub(super) fn cuda(index: usize) -> Option<kernels::Cuda> {
    let f16 = std::env::var("FRONTDESK_CUDA").is_ok_and(|asked| asked == "f16");
    let open = if f16 { kernels::Cuda::open_f16 } else { kernels::Cuda::open };
    open(index, Some(std::env::temp_dir().join("frontdesk-kernels")))
        .inspect_err(|error| eprintln!("skipped: {error}"))
        .ok()
}

#[test]
fn a_gpu_stays_near_f32() {
    let _one_at_a_time = gpu_lock();
    for name in ["tied", "scaled"].into_iter().chain(OTHER_DECODERS) {
        let Some(cuda) = cuda(0) else { return };
        stays_near_f32(name, cuda);
    }
}

/// Llama 3.2 and Phi-3.5 at their published sizes, which `tools/parity/full_size.py` makes on the same machine.
#[test]
fn a_gpu_computes_full_sizes_as_peft_does() {
    let _one_at_a_time = gpu_lock();
    let Some(folder) = std::env::var_os("FRONTDESK_FULL_SIZE") else {
        eprintln!("skipped: FRONTDESK_FULL_SIZE does not name what tools/parity/full_size.py wrote");
        return;
    };
    for entry in std::fs::read_dir(folder).unwrap() {
        let Some(cuda) = cuda(0) else { return };
        let path = entry.unwrap().path();
        let name = path.to_str().unwrap();
        let case = Case::open(name);
        let mut trainer = case.trainer(cuda, 4096, case.examples().len());
        let (loss, expected) = (trainer.step().unwrap().loss, number(&case.spec["loss"]["lora"]));
        let norm = |v: &mut dyn Iterator<Item = f32>| v.map(|x| x * x).sum::<f32>().sqrt();
        let off = named_gradients(&trainer).into_iter().map(|(tensor, (_, found))| {
            let expected = case.tensor(&format!("lora.grad.{tensor}"));
            norm(&mut found.iter().zip(&expected).map(|(f, e)| f - e)) / norm(&mut expected.iter().copied())
        });
        let worst = off.fold(0.0, f32::max);
        let theirs = number(&case.spec["deviation_bf16"]["gradients"]);
        eprintln!(
            "{name}: loss {loss}, in f32 {expected}; worst gradient off by {worst}, PyTorch's by {theirs}"
        );
        assert!((loss - expected).abs() < 0.005 * expected, "{name}: loss {loss}, expected {expected}");
        assert!(worst < 1.5 * theirs, "{name}: a gradient is off by {worst}, in PyTorch's bf16 by {theirs}");
    }
}

#[test]
fn a_gpu_scores_labels_as_transformers_does() {
    let _one_at_a_time = gpu_lock();
    for (name, merged) in [("tied", false), ("scaled", false), ("scaled", true)] {
        let Some(cuda) = cuda(0) else { return };
        let case = Case::open(name);
        let mut model = case.model(cuda);
        let adapter = case.adapter(&model, "adapter");
        if merged {
            model.merge(&adapter, Encoding::Int8);
        } else {
            model.attach(&adapter);
        }
        let options = ScorerOptions { epsilon: 0.0, spare_tokens: 3, ..ScorerOptions::default() };
        let mut scorer = Scorer::new(&model, case.trie(), case.prefix.clone(), options).unwrap();
        let examples = case.examples();
        let queries: Vec<&[u32]> = examples.iter().map(|e| &e.query[..]).collect();
        let expected = case.tensor("lora.label_logprobs");
        let first = scorer.score(&model, &queries).unwrap();
        for (row, (scores, expected)) in first.iter().zip(expected.chunks_exact(9)).enumerate() {
            let raw: Vec<f32> = scores.log_probs.iter().map(|p| p + scores.log_mass).collect();
            for (label, (found, expected)) in raw.iter().zip(expected).enumerate() {
                let most = 0.05 + 0.01 * expected.abs();
                let near = (found - expected).abs() < most;
                assert!(near, "{name} query {row} label {label}: {found}, expected {expected} within {most}");
            }
        }
        // The second time work is recorded, the third time it is replayed.
        for _ in 0..2 {
            assert_eq!(scorer.score(&model, &queries).unwrap(), first);
        }
    }
}

#[test]
fn a_gpu_makes_the_same_features() {
    let _one_at_a_time = gpu_lock();
    for name in ["../families/bert", "../families/distilbert", "tied"] {
        let Some(cuda) = cuda(0) else { return };
        let case = Case::open(name);
        let texts: Vec<Vec<u32>> = match &case.spec["texts"] {
            Value::Array(texts) => texts.iter().map(ids).collect(),
            _ => case.sequences().map(|(ids, _)| ids).collect(),
        };
        let texts: Vec<&[u32]> = texts.iter().map(|text| &text[..]).collect();
        let exact =
            Features::new(Vec::new()).compute(&case.model(Cpu::<f32>::new()), &texts, &mut |_| {}).unwrap();
        let found = Features::new(Vec::new()).compute(&case.model(cuda), &texts, &mut |_| {}).unwrap();
        assert_like(&found, &exact, 0.03, name);
    }
}

#[test]
fn a_gpu_repeats_itself_to_the_bit() {
    let _one_at_a_time = gpu_lock();
    let steps = || {
        let case = Case::open("scaled");
        let mut trainer = case.trainer(cuda(0)?, 60, 4);
        let losses: Vec<f32> = (0..8).map(|_| trainer.step().unwrap().loss).collect();
        Some((losses, trainer.adapter()))
    };
    assert_eq!(steps(), steps());
}
