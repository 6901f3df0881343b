//! Training against itself: without the shared prefix, resumed, and in bf16.

use super::*;

#[test]
fn a_shared_prefix_and_separate_sequences_give_the_same_step() {
    let case = Case::open("tied");
    let mut shared = case.trainer(Cpu::<f32>::new(), 4096, 6);
    let mut separate = case.trainer(Cpu::<f32>::new(), 1, 6);
    let (one, six) = (shared.step().unwrap(), separate.step().unwrap());
    assert_eq!((one.rows - case.prefix.len(), one.tokens), (six.rows - 6 * case.prefix.len(), six.tokens));
    assert_close(&[one.loss], &[six.loss], 1e-5, "loss");
    let separate = named_gradients(&separate);
    for (tensor, (_, found)) in named_gradients(&shared) {
        assert_like(&found, &separate[&tensor].1, 1e-5, &tensor);
    }
}

#[test]
fn a_restored_run_ends_with_the_same_bytes() {
    let case = Case::open("scaled");
    let trainer = || case.trainer(Cpu::<kernels::bf16>::new(), 60, 4);
    let mut unbroken = trainer();
    let mut losses = Vec::new();
    let mut snapshot = None;
    for step in 0..8 {
        if step == 3 {
            snapshot = Some(unbroken.snapshot());
        }
        losses.push(unbroken.step().unwrap().loss);
    }
    let mut resumed = trainer();
    resumed.restore(&snapshot.unwrap()).unwrap();
    for loss in &losses[3..] {
        assert_eq!(resumed.step().unwrap().loss, *loss);
    }
    assert_eq!(resumed.adapter(), unbroken.adapter());
    let other = trainer().snapshot();
    let wrong = crate::Snapshot { parameters: vec![0.0; 3], ..other };
    assert!(resumed.restore(&wrong).is_err());
}

#[test]
fn bf16_stays_near_f32() {
    stays_near_f32("tied", kernels::Cpu::<kernels::bf16>::new());
}

/// The first step's loss and gradients, and the losses of those that follow.
pub(super) fn stays_near_f32<B: Backend>(name: &str, backend: B) {
    let case = Case::open(name);
    let mut exact = case.trainer(Cpu::<f32>::new(), 4096, 6);
    let mut rounded = case.trainer(backend, 4096, 6);
    for step in 0..5 {
        let (e, r) = (exact.step().unwrap(), rounded.step().unwrap());
        assert!((e.loss - r.loss).abs() < 0.02 * e.loss, "{name} step {step}: {} {}", e.loss, r.loss);
        assert_ne!(e.loss, r.loss, "bf16 must round somewhere");
        if step == 0 {
            near_in_norm(&exact, &rounded, name);
        }
    }
}

/// Each tensor's gradient, by the norm of the difference.
pub(super) fn near_in_norm<A: Backend, B: Backend>(exact: &Trainer<A>, rounded: &Trainer<B>, name: &str) {
    let exact = named_gradients(exact);
    for (tensor, (_, found)) in named_gradients(rounded) {
        let expected = &exact[&tensor].1;
        let norm = |v: &mut dyn Iterator<Item = f32>| v.map(|x| x * x).sum::<f32>().sqrt();
        let off = norm(&mut found.iter().zip(expected).map(|(f, e)| f - e));
        let size = norm(&mut expected.iter().copied());
        assert!(off <= 0.05 * size, "{name} {tensor} of size {size} is off by {off}");
    }
}
