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
