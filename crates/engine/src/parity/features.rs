//! The vectors that a head reads, against transformers.

use super::*;

#[test]
fn features_of_encoders_are_the_mean_of_what_transformers_gives() {
    for name in ["../families/bert", "../families/distilbert"] {
        let case = Case::open(name);
        let mut model = case.model(Cpu::<f32>::new());
        let width = model.config().hidden_size;
        let texts: Vec<Vec<u32>> = case.spec["texts"].as_array().unwrap().iter().map(ids).collect();
        let texts: Vec<&[u32]> = texts.iter().map(|text| &text[..]).collect();
        for kind in ["base", "lora"] {
            if kind == "lora" {
                model.attach(&case.adapter(&model, "adapter"));
            }
            let mut computer = Features::new(Vec::new());
            let found = computer.compute(&model, &texts, &mut |_| {}).unwrap();
            let alone = computer.compute(&model, &texts[2..3], &mut |_| {}).unwrap();
            assert_eq!(alone, found[2 * width..3 * width], "depends on the texts around");
            for (index, found) in found.chunks_exact(width).enumerate() {
                let outputs = case.tensor(&format!("{kind}.outputs.{index}"));
                let rows = outputs.len() / width;
                let mean = |c: usize| outputs.iter().skip(c).step_by(width).sum::<f32>() / rows as f32;
                let expected: Vec<f32> = (0..width).map(mean).collect();
                assert_close(found, &expected, LOGITS, &format!("{name} {kind} {index}"));
            }
        }
    }
}

#[test]
fn features_of_a_decoder_are_read_at_the_last_token_behind_the_prefix() {
    let case = Case::open("tied");
    let model = case.model(Cpu::<f32>::new());
    let width = model.config().hidden_size;
    let sequences: Vec<Vec<u32>> = case.sequences().map(|(ids, _)| ids).collect();
    let whole: Vec<&[u32]> = sequences.iter().map(|ids| &ids[..]).collect();
    let expected = Features::new(Vec::new()).compute(&model, &whole, &mut |_| {}).unwrap();
    let behind: Vec<&[u32]> = whole.iter().map(|ids| &ids[case.prefix.len()..]).collect();
    let found = Features::new(case.prefix.clone()).compute(&model, &behind, &mut |_| {}).unwrap();
    assert_close(&found, &expected, LOGITS, "behind the prefix");
    // The output head on these vectors gives the last row of the logits.
    let tensor = BaseModel::open(&case.folder).unwrap();
    let table = tensor.tensor("lm_head.weight").unwrap().to_f32();
    for (index, feature) in found.chunks_exact(width).enumerate() {
        let dot = |row: &[f32]| row.iter().zip(feature).map(|(a, b)| a * b).sum::<f32>();
        let logits: Vec<f32> = table.chunks_exact(width).map(dot).collect();
        let expected = case.tensor(&format!("base.logits.{index}"));
        assert_close(&logits, &expected[expected.len() - logits.len()..], LOGITS, "logits");
    }
}

#[test]
fn minilm_is_what_transformers_says_of_it() {
    let Some(folder) = std::env::var_os("FRONTDESK_MINILM") else {
        eprintln!("skipped: set FRONTDESK_MINILM to the folder that `frontdesk pull minilm-l6` prints");
        return;
    };
    let base = BaseModel::open(folder).unwrap();
    let spec = json(&fixtures("../families/minilm.json"));
    let texts: Vec<Vec<u32>> =
        spec["texts"].as_array().unwrap().iter().map(|text| ids(&text["ids"])).collect();
    let texts: Vec<&[u32]> = texts.iter().map(|text| &text[..]).collect();
    let exact = Model::load(Cpu::<f32>::new(), &base, Storage::Expanded).unwrap();
    let exact = Features::new(Vec::new()).compute(&exact, &texts, &mut |_| {}).unwrap();
    let fast = Model::load(Cpu::<kernels::bf16>::new(), &base, Storage::Expanded).unwrap();
    let fast = Features::new(Vec::new()).compute(&fast, &texts, &mut |_| {}).unwrap();
    for (index, text) in spec["texts"].as_array().unwrap().iter().enumerate() {
        let expected: Vec<f32> = text["mean"].as_array().unwrap().iter().map(number).collect();
        let at = index * expected.len()..(index + 1) * expected.len();
        assert_close(&exact[at.clone()], &expected, 2e-5, &format!("text {index}"));
        let dot = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f32>();
        let size = |a: &[f32]| dot(a, a).sqrt();
        let fast = &fast[at];
        assert!(dot(fast, &expected) > 0.9995 * size(fast) * size(&expected), "text {index} in bf16");
    }
}
