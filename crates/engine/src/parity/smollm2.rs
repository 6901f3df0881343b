//! SmolLM2's real weights against transformers and PEFT.

use super::*;

/// The real model's file, or `None` with a message.
fn smollm2() -> Option<PathBuf> {
    let path = std::env::var_os("FRONTDESK_SMOLLM2").map(PathBuf::from);
    if path.is_none() {
        eprintln!("skipped: FRONTDESK_SMOLLM2 does not name SmolLM2's GGUF file");
    }
    path
}

#[test]
fn smollm2_equals_transformers_and_peft() {
    let Some(path) = smollm2() else { return };
    let spec = json(&fixtures("smollm2.json"));
    let base = BaseModel::open(path).unwrap();
    let model = Model::load(Cpu::<f32>::new(), &base, Storage::AsStored).unwrap();
    let vocabulary = model.config().vocab_size;
    for prompt in spec["next_tokens"].as_array().unwrap() {
        let found = all_log_probs(&model, &ids(&prompt["ids"]));
        let last = &found[found.len() - vocabulary..];
        for (id, expected) in ids(&prompt["top_ids"]).iter().zip(prompt["top_logprobs"].as_array().unwrap()) {
            assert_close(&[last[*id as usize]], &[number(expected)], 1e-3, "top token");
        }
    }

    let training = &spec["training"];
    let lora = Lora { rank: 4, alpha: 8.0, rslora: false, projections: Projection::ALL.to_vec() };
    let mut adapter = Adapter::new(lora, model.config(), 0);
    for entry in adapter.lora.entries(model.config()) {
        let place = Projection::ALL.iter().position(|p| p.part(model.config()) == Some(entry.part)).unwrap();
        let m = (7 * entry.layer + place) as f64;
        let (a, b) = (entry.a_range(), entry.b_range());
        (0..a.len()).for_each(|i| adapter.values[a.start + i] = ((0.37 * i as f64 + m).sin() * 0.02) as f32);
        (0..b.len()).for_each(|i| adapter.values[b.start + i] = ((0.53 * i as f64 + m).cos() * 0.02) as f32);
    }
    let rows = training["examples"].as_array().unwrap();
    let sequences: Vec<_> =
        rows.iter().map(|e| (ids(&e["ids"]), e["prompt"].as_u64().unwrap() as usize)).collect();
    let shared =
        (0..sequences[0].1).take_while(|&i| sequences.iter().all(|(s, _)| s[i] == sequences[0].0[i])).count();
    let prefix = sequences[0].0[..shared].to_vec();
    let split = |(ids, prompt): &(Vec<u32>, usize)| Example {
        query: ids[shared..*prompt].to_vec(),
        target: ids[*prompt..].to_vec(),
        weight: 1.0,
    };
    let examples: Vec<Example> = sequences.iter().map(split).collect();
    let sampler = Sampler::new(examples.len(), examples.len(), 0, None);
    let options = options(&training["optimizer"], 4096, examples.len());
    let mut trainer = Trainer::new([model], adapter, prefix, examples, sampler, options).unwrap();
    for (step, expected) in training["steps"].as_array().unwrap().iter().enumerate() {
        let report = trainer.step().unwrap();
        assert_close(&[report.loss], &[number(&expected["loss"])], 1e-3, &format!("loss of step {step}"));
        if step == 0 {
            for (tensor, (_, found)) in named_gradients(&trainer) {
                let expected: Vec<f32> =
                    training["gradients"][&tensor].as_array().unwrap().iter().map(number).collect();
                let norm = found.iter().map(|v| v * v).sum::<f32>().sqrt();
                assert_like(&[norm], &expected[..1], 1e-3, &tensor);
                assert_close(&found[..8], &expected[1..], 1e-3 * expected[0], &tensor);
            }
        }
    }
}

#[test]
fn weights_in_few_bits_give_the_same_bytes() {
    let Some(path) = smollm2() else { return };
    let base = BaseModel::open(path).unwrap();
    let score = |storage| {
        let model = Model::load(Cpu::<kernels::bf16>::new(), &base, storage).unwrap();
        (all_log_probs(&model, &[1, 9690, 198, 2683, 359, 253]), model.weight_bytes())
    };
    let ((expanded, large), (stored, small)) = (score(Storage::Expanded), score(Storage::AsStored));
    assert!(expanded == stored, "the storage must not change a bit");
    assert!(small * 5 < large * 2, "{small} bytes in few bits, {large} expanded");
}
