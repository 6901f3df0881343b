//! Weights in NF4: as bitsandbytes makes them, and on the GPU as on the processor.

use kernels::linear::nf4;

use super::gpu::{cuda, gpu_lock};
use super::itself::near_in_norm;
use super::*;

/// What a 4-bit block of 32 values holds: its magnitude and the level of each value.
fn block(bytes: &[u8]) -> (f32, [u8; 32]) {
    let magnitude = f32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]);
    (magnitude, std::array::from_fn(|i| bytes[4 + i % 16] >> (i / 16 * 4) & 15))
}

#[test]
fn levels_and_magnitudes_are_those_of_bitsandbytes() {
    let file = std::fs::read(fixtures("../quant/nf4.safetensors")).unwrap();
    let tensors = SafeTensors::deserialize(&file).unwrap();
    let bytes = |name: &str| tensors.tensor(name).unwrap().data();
    let values: Vec<f32> = bytes("source")
        .chunks_exact(2)
        .map(|b| f32::from_bits(u32::from(u16::from_le_bytes([b[0], b[1]])) << 16))
        .collect();
    let levels: Vec<u8> = bytes("levels").iter().flat_map(|pair| [pair >> 4, pair & 15]).collect();
    let magnitudes: Vec<f32> =
        bytes("magnitudes").chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().unwrap())).collect();
    let quantized = nf4::quantize(&values);
    let blocks = quantized.chunks_exact(kernels::BlockFormat::Nf4.bytes());
    assert_eq!((blocks.len(), levels.len()), (2 * magnitudes.len(), values.len()));
    for (index, (found, expected)) in blocks.zip(levels.chunks_exact(32)).enumerate() {
        let (magnitude, found) = block(found);
        // All magnitudes are scaled by a mean, whose last bits depend on the order of its sum.
        let near = magnitudes[index / 2];
        assert!(
            (magnitude - near).abs() <= 2e-6 * near.abs() + 1e-7,
            "block {index}: {magnitude}, expected {near}"
        );
        assert_eq!(found, expected, "block {index}");
    }
}

/// SmolLM2's shape with random weights, which become NF4: two steps near those of f32 on the same values.
#[test]
fn a_gpu_learns_beside_nf4() {
    fn trainer<B: Backend>(backend: B) -> Trainer<B> {
        let base = BaseModel::random("smollm2-135m:bf16").unwrap();
        let model = Model::load(backend, &base, Storage::FourBits).unwrap();
        let lora = Lora { rank: 8, alpha: 16.0, rslora: false, projections: Projection::ALL.to_vec() };
        let adapter = Adapter::new(lora, model.config(), 0);
        let tokens = |from: u32, len: u32| (0..len).map(|i| (from + i * 7919) % 49152).collect::<Vec<u32>>();
        let example = |i: u32| Example { query: tokens(1 + i, 9), target: tokens(90 * i, 3), weight: 1.0 };
        let spec = serde_json::json!({ "lr": 0.01, "weight_decay": 0.0, "max_grad_norm": 1.0, "steps": 4 });
        let sampler = Sampler::new(4, 4, 0, None);
        Trainer::new(
            [model],
            adapter,
            tokens(5, 12),
            (0..4).map(example).collect(),
            sampler,
            options(&spec, 4096, 4),
        )
        .unwrap()
    }
    let _one_at_a_time = gpu_lock();
    let Some(cuda) = cuda(0) else { return };
    let (mut exact, mut rounded) = (trainer(Cpu::<f32>::new()), trainer(cuda));
    for step in 0..2 {
        let (expected, found) = (exact.step().unwrap().loss, rounded.step().unwrap().loss);
        assert!((found - expected).abs() < 0.02 * expected, "step {step}: {found}, expected {expected}");
        if step == 0 {
            near_in_norm(&exact, &rounded, "nf4");
        }
    }
}
