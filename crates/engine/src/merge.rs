//! LoRA put into the weights: for routing, where neither changes any more.

use formats::{BaseModel, ModelConfig};
use kernels::{Backend, Encoding};

use crate::Result;
use crate::block::Block;
use crate::load::{Source, Storage};
use crate::lora::{Adapter, LoraEntry};
use crate::model::Model;

impl<B: Backend> Model<B> {
    /// Reads the base model's weights as [`Model::load`] does, merges the adapter into them, if there is one, and
    /// encodes them and a decoder's output head: for routing, where neither changes any more.
    ///
    /// # Errors
    /// As [`Model::load`].
    pub fn load_merged(
        backend: B,
        base: &BaseModel,
        storage: Storage,
        adapter: Option<&Adapter>,
        encoding: Encoding,
    ) -> Result<Self> {
        let merge = Merge::new(adapter, &base.config, encoding);
        // One block after the other, so that what only the merging needs uses the same memory again and again.
        let mut model = Self::load_blocks(backend, base, Source::Files(storage), |backend, layer, block| {
            merge.run(backend, layer, block);
        })?;
        model.encode_head(encoding);
        Ok(model)
    }

    /// Does to a model that was trained what [`Model::load_merged`] does to the files'.
    pub fn merge(&mut self, adapter: &Adapter, encoding: Encoding) {
        let merge = Merge::new(Some(adapter), &self.config, encoding);
        for (layer, block) in self.blocks.iter_mut().enumerate() {
            merge.run(&self.backend, layer, block);
        }
        self.encode_head(encoding);
    }

    fn encode_head(&mut self, encoding: Encoding) {
        if !self.is_encoder() {
            self.head = Some(self.backend.encode(self.head(), encoding));
        }
    }
}

/// An adapter on its way into the weights.
struct Merge<'a> {
    adapter: Option<&'a Adapter>,
    entries: Vec<LoraEntry>,
    encoding: Encoding,
}

impl<'a> Merge<'a> {
    fn new(adapter: Option<&'a Adapter>, config: &ModelConfig, encoding: Encoding) -> Self {
        let entries = adapter.map_or_else(Vec::new, |adapter| adapter.lora.entries(config));
        Self { adapter, entries, encoding }
    }

    /// Merges a block's part and encodes its weights.
    fn run<B: Backend>(&self, backend: &B, layer: usize, block: &mut Block<B>) {
        let of_layer = self.entries.iter().filter(|entry| entry.layer == layer).copied();
        let mut entries: Vec<LoraEntry> = of_layer.collect();
        // The block's values alone go to the device, and the offsets count from their first.
        let first = entries.iter().map(|entry| entry.a).min().unwrap_or(0);
        let end = entries.iter().map(|entry| entry.b_range().end).max().unwrap_or(first);
        for entry in &mut entries {
            (entry.a, entry.b) = (entry.a - first, entry.b - first);
        }
        let parameters = self.adapter.map(|adapter| {
            block.open_slots(entries.into_iter(), adapter.lora.scale());
            let mut parameters = backend.wide(end - first);
            backend.upload(&mut parameters, 0, &adapter.values[first..end]);
            parameters
        });
        for linear in block.linears_mut() {
            if let Some(parameters) = &parameters
                && !linear.slots.is_empty()
            {
                backend.refresh(linear, parameters);
            }
            backend.merge(linear, self.encoding);
        }
    }
}
