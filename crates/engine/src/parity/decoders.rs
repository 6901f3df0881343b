//! The logits of decoders against transformers; losses, gradients and ten steps against PEFT.

use super::*;

#[test]
fn logits_equal_transformers() {
    for name in ["tied", "scaled"].into_iter().chain(OTHER_DECODERS) {
        let case = Case::open(name);
        let mut model = case.model(Cpu::<f32>::new());
        let vocabulary = model.config().vocab_size;
        for (kind, folder) in [("base", None), ("lora", Some("adapter")), ("rslora", Some("rslora"))] {
            if folder.is_some_and(|folder| !case.folder.join(folder).exists()) {
                continue;
            }
            if let Some(folder) = folder {
                model.attach(&case.adapter(&model, folder));
            }
            for (index, (sequence, _)) in case.sequences().enumerate() {
                let tensor = format!("{kind}.logits.{index}");
                // The rsLoRA adapter has one sequence only.
                let Some(logits) = case.find(&tensor) else { continue };
                let expected: Vec<f32> = logits.chunks_exact(vocabulary).flat_map(log_softmax).collect();
                let found = all_log_probs(&model, &sequence);
                assert_close(&found, &expected, LOGITS, &format!("{name} {tensor}"));
            }
        }
    }
}

#[test]
fn loss_gradients_and_ten_steps_equal_peft() {
    for name in ["tied", "scaled"] {
        let case = Case::open(name);
        let mut trainer = case.trainer(Cpu::<f32>::new(), 4096, 6);
        for (step, expected) in case.spec["steps"].as_array().unwrap().iter().enumerate() {
            let report = trainer.step().unwrap();
            let what = format!("{name} step {step}");
            assert_close(&[report.loss], &[number(&expected["loss"])], 5e-5, &what);
            assert_like(&[report.gradient_norm], &[number(&expected["grad_norm"])], 1e-4, &what);
            if step == 0 {
                for (tensor, (_, found)) in named_gradients(&trainer) {
                    let expected = case.tensor(&format!("lora.grad.{tensor}"));
                    assert_like(&found, &expected, GRADIENTS, &format!("{name} {tensor}"));
                }
            }
        }
        for (tensor, (_, found)) in trainer.adapter().to_tensors(trainer.config()) {
            let expected = case.tensor(&format!("lora.trained.{tensor}"));
            assert_like(&found, &expected, 2e-3, &format!("{name} trained {tensor}"));
        }
    }
}

#[test]
fn loss_and_gradients_of_the_other_decoders_equal_peft() {
    for name in OTHER_DECODERS {
        let case = Case::open(name);
        let mut trainer = case.trainer(Cpu::<f32>::new(), 4096, 6);
        let report = trainer.step().unwrap();
        assert_close(&[report.loss], &[number(&case.spec["loss"]["lora"])], 2e-5, name);
        for (tensor, (_, found)) in named_gradients(&trainer) {
            let expected = case.tensor(&format!("lora.grad.{tensor}"));
            assert_like(&found, &expected, GRADIENTS, &format!("{name} {tensor}"));
        }
    }
}

/// Beyond the window that a longrope model was first trained with, other divisors rule.
#[test]
fn a_text_beyond_the_original_window_equals_transformers() {
    let case = Case { context: 90, ..Case::open(OTHER_DECODERS[0]) };
    let sequence = &case.spec["beyond"];
    let (ids, prompt) = (ids(&sequence["ids"]), sequence["prompt"].as_u64().unwrap() as usize);
    let mut model = case.model(Cpu::<f32>::new());
    let adapter = case.adapter(&model, "adapter");
    model.attach(&adapter);
    let expected = case.tensor("beyond.logits");
    let expected: Vec<f32> = expected.chunks_exact(model.config().vocab_size).flat_map(log_softmax).collect();
    assert_close(&all_log_probs(&model, &ids), &expected, LOGITS, "beyond");

    let sampler = Sampler::new(1, 1, 0, None);
    let options = options(&case.spec["optimizer"], 4096, 1);
    let example = vec![case.example((ids, prompt))];
    let trainer = |case: &Case, adapter| {
        let model = case.model(Cpu::<f32>::new());
        let (prefix, example) = (case.prefix.clone(), example.clone());
        Trainer::new([model], adapter, prefix, example, sampler.clone(), options.clone())
    };
    let mut within = trainer(&case, adapter).unwrap();
    let report = within.step().unwrap();
    assert_close(&[report.loss], &[number(&case.spec["loss"]["beyond"])], 2e-5, "loss");
    for (tensor, (_, found)) in named_gradients(&within) {
        let expected = case.tensor(&format!("beyond.grad.{tensor}"));
        assert_like(&found, &expected, GRADIENTS, &format!("beyond {tensor}"));
    }

    // Without a context that it fits, it is refused.
    let refused = trainer(&Case { context: 0, ..case }, within.adapter());
    assert!(matches!(refused, Err(crate::Error::TooLong { tokens: 90, limit: 64 })));
}
