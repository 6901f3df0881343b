//! What the frozen layers alone would take: the ceiling that a training step is measured against.

use std::time::{Duration, Instant};

use kernels::{Backend, Linear, Output};

use crate::block::Block;
use crate::model::Model;

/// Rounds begin for so long, and so many at the most.
const MOST: Duration = Duration::from_secs(2);
const ROUNDS: usize = 100;

impl<B: Backend> Model<B> {
    /// Rows a second through the forward and the input gradient of all linear layers of the blocks, and nothing else:
    /// no LoRA, as many rows at a time as keep the device busy. The best of a few rounds.
    ///
    /// # Panics
    /// When LoRA is attached.
    pub fn linear_ceiling(&self) -> f64 {
        let rows = self.backend.room(self.backend.rows_at_once());
        let linears: Vec<&Linear<B>> = self.blocks.iter().flat_map(Block::linears).collect();
        assert!(linears.iter().all(|linear| linear.slots.is_empty()), "LoRA is not part of the ceiling");
        let width = linears.iter().map(|linear| linear.inputs.max(linear.outputs)).max().unwrap_or(1);
        // Zeros would be multiplied at a higher clock than values.
        let values: Vec<f32> = (0..rows * width).map(|i| (i * 7919 % 2003) as f32 / 1001.5 - 1.0).collect();
        let mut wide = self.backend.wide(values.len());
        self.backend.upload(&mut wide, 0, &values);
        let [mut x, mut y, mut mid] = [values.len(), values.len(), 1].map(|len| self.backend.narrow(len));
        self.backend.round(&mut x, &wide, values.len());
        let mut round = || {
            let begun = Instant::now();
            for linear in &linears {
                self.backend.linear(Output::Narrow(&mut y), &mut mid, &x, linear, rows);
                self.backend.linear_backward(Output::Narrow(&mut y), &mut mid, &x, linear, rows);
            }
            // Waits for the device.
            self.backend.widen(&mut wide, &y, 1);
            self.backend.download(&mut [0.0], &wide, 0);
            begun.elapsed().as_secs_f64()
        };
        let begun = Instant::now();
        let rounds = (0..ROUNDS).map_while(|done| (done == 0 || begun.elapsed() < MOST).then(&mut round));
        rows as f64 / rounds.fold(f64::INFINITY, f64::min)
    }

    /// Gives the device back.
    pub fn into_backend(self) -> B {
        self.backend
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use formats::BaseModel;
    use kernels::{Cpu, bf16};

    use super::*;
    use crate::load::Storage;
    use crate::lora::{Adapter, Lora, Projection};

    fn model() -> (BaseModel, Model<Cpu<bf16>>) {
        let base = BaseModel::open(Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fixtures/llama/tied"));
        let base = base.unwrap();
        let model = Model::load(Cpu::new(), &base, Storage::AsStored).unwrap();
        (base, model)
    }

    #[test]
    fn rows_are_counted() {
        let rows = model().1.linear_ceiling();
        assert!(rows.is_finite() && rows > 100.0, "{rows} rows a second of a tiny model");
    }

    #[test]
    #[should_panic(expected = "LoRA is not part of the ceiling")]
    fn lora_is_left_out() {
        let (base, mut model) = model();
        let lora = Lora { rank: 2, alpha: 2.0, rslora: false, projections: Projection::ALL.to_vec() };
        model.attach(&Adapter::new(lora, &base.config, 0));
        model.linear_ceiling();
    }
}
