//! Replicas on several devices beside one device with the whole batch.

use super::*;
use crate::{LossScale, Snapshot};

const CASES: [(&str, What); 6] = [
    ("tied", What::Lora),
    ("scaled", What::Lora),
    ("tied", What::Weights),
    ("../families/gpt-neo", What::Weights),
    ("../families/bert", What::Lora),
    ("../families/distilbert", What::Weights),
];

/// How far from one replica several may be: gradients of the first step by their largest value, then losses and norms
/// by the largest so far.
struct Near(f32, f32, f32);

/// Replicas, examples a step, rows a pass: even and odd shares, and empty ones.
const SHARES: [(usize, usize, usize); 4] = [(2, 4, 4096), (3, 2, 40), (2, 1, 4096), (3, 5, 40)];

/// Ten steps of replicas on the backends of numbers 0, 1 and so on, as far as there are any, beside one on the first.
fn replicas_learn_as_one_does<B: Backend>(
    backend: impl Fn(usize) -> Option<B>,
    all_shares: &[(usize, usize, usize)],
    sums: &str,
    near: &Near,
) {
    for ((name, what), &(count, batch, rows)) in
        CASES.into_iter().flat_map(|case| all_shares.iter().map(move |shares| (case, shares)))
    {
        let case = Case::open(name);
        let recompute = batch == 4 && !name.contains("bert");
        let options = |options| TrainerOptions { batch, recompute, ..options };
        let several: Vec<B> = (0..count).map_while(&backend).collect();
        if several.len() < 2 {
            return;
        }
        let mut several = case.trainer_with(several, what, rows, options);
        let mut one = case.trainer_with(vec![backend(0).unwrap()], what, rows, options);
        let found = several.sums().unwrap();
        assert!(one.sums().is_none() && found.contains(sums), "{found}");
        let (mut loss, mut norm) = (0.0f32, 0.0f32);
        for step in 0..10 {
            let (expected, found) = (one.step().unwrap(), several.step().unwrap());
            (loss, norm) = (loss.max(expected.loss), norm.max(expected.gradient_norm));
            let it = format!("{name} {}, batch {batch} on {count}, step {step}", what.name());
            assert_eq!((found.step, found.examples, found.tokens, found.lr), {
                (expected.step, expected.examples, expected.tokens, expected.lr)
            });
            if step == 0 {
                let expected = one.gradients();
                let largest = expected.iter().fold(0.0f32, |max, v| max.max(v.abs()));
                assert_close(&several.gradients(), &expected, near.0 * largest, &it);
            }
            assert_close(&[found.loss], &[expected.loss], near.1 * loss, &it);
            assert_close(&[found.gradient_norm], &[expected.gradient_norm], near.2 * norm, &it);
            let snapshots = several.snapshots();
            assert!(snapshots.iter().all(|other| *other == snapshots[0]), "{it}: they drift");
        }
    }
}

#[test]
fn they_learn_as_one_does_and_never_drift() {
    replicas_learn_as_one_does(|_| Some(Cpu::<f32>::new()), &SHARES, "host", &Near(1e-5, 1e-3, 1e-2));
    replicas_learn_as_one_does(|_| Some(Cpu::<kernels::bf16>::new()), &SHARES[..2], "host", &ROUNDED);
}

/// Steps in bf16, whose roundings add up.
const ROUNDED: Near = Near(0.05, 0.1, 0.2);

#[test]
fn a_gpu_with_several_replicas_learns_as_with_one() {
    let _one_at_a_time = gpu_lock();
    replicas_learn_as_one_does(|_| cuda(0), &SHARES[..2], "more than once", &ROUNDED);
}

#[test]
fn a_gpu_beside_others_learns_as_alone() {
    let _one_at_a_time = gpu_lock();
    replicas_learn_as_one_does(cuda, &SHARES, "NCCL", &ROUNDED);
}

/// Steps that go on from a checkpoint are those of the run that was not interrupted, to the bit.
#[test]
fn a_restored_training_goes_on_to_the_bit() {
    for (name, what) in CASES {
        let case = Case::open(name);
        let two = || {
            let backends = vec![Cpu::<f32>::new(), Cpu::<f32>::new()];
            case.trainer_with(backends, what, 40, |options| TrainerOptions { batch: 3, ..options })
        };
        let mut whole = two();
        for _ in 0..3 {
            whole.step().unwrap();
        }
        let mut restored = two();
        restored.restore(&whole.snapshot()).unwrap();
        for _ in 0..3 {
            assert_eq!(restored.step().unwrap(), whole.step().unwrap(), "{name}");
        }
        assert_eq!(restored.snapshots(), whole.snapshots(), "{name}");
        let best = vec![0.25; whole.parameters()];
        whole.replace(&best);
        assert!(whole.snapshots().iter().all(|snapshot| snapshot.parameters == best));
    }
}

/// Gradients that overflow make all replicas take the step again with half the factor.
#[test]
fn the_sum_decides_on_the_loss_scale() {
    let case = Case::open("tied");
    let two =
        || case.trainer_with(vec![Cpu::<f32>::new(), Cpu::<f32>::new()], What::Lora, 40, |options| options);
    let (mut plain, mut scaled) = (two(), two());
    // Large values have large gradients.
    let begun = plain.snapshot();
    let parameters = begun.parameters.iter().map(|value| 4.0 * value).collect();
    let begun = Snapshot { parameters, ..begun };
    let first = LossScale { factor: 2.0f32.powi(127), steps: 0 };
    plain.restore(&begun).unwrap();
    scaled.restore(&Snapshot { loss_scale: first, ..begun }).unwrap();
    assert_eq!(scaled.step().unwrap(), plain.step().unwrap());
    let snapshots = scaled.snapshots();
    assert!(snapshots[0] == snapshots[1] && snapshots[0].loss_scale.factor < first.factor);
}
