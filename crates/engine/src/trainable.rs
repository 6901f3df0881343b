//! What trains, and its values.

use formats::{BaseModel, ModelConfig};

use crate::Result;
use crate::head::Head;
use crate::lora::{Adapter, Lora};
use crate::weights::Weights;

/// What trains in the model itself.
#[derive(Debug, Clone, PartialEq)]
pub enum Body {
    /// LoRA's matrices, laid out as [`Lora::entries`] says.
    Lora(Lora),
    /// Every weight, laid out as [`Weights`] says.
    Weights,
}

/// All values that train.
#[derive(Debug, Clone, PartialEq)]
pub struct Trainable {
    /// What the leading values are.
    pub body: Body,
    /// Labels of an encoder's head, whose values come last: weights `(labels, width)`, then biases. `None` in a
    /// decoder.
    pub classes: Option<usize>,
    /// The values.
    pub values: Vec<f32>,
}

impl From<Adapter> for Trainable {
    fn from(adapter: Adapter) -> Self {
        Self { body: Body::Lora(adapter.lora), classes: None, values: adapter.values }
    }
}

impl Trainable {
    /// Every weight of the base model, with its values.
    ///
    /// # Errors
    /// When a tensor cannot be read.
    pub fn weights(base: &BaseModel) -> Result<Self> {
        let values = Weights::new(&base.config).read(base)?;
        Ok(Self { body: Body::Weights, classes: None, values })
    }

    /// The same with an encoder's head.
    #[must_use]
    pub fn with_head(mut self, head: &Head) -> Self {
        self.values.extend_from_slice(&head.weight);
        self.values.extend_from_slice(&head.bias);
        Self { classes: Some(head.bias.len()), ..self }
    }

    /// Where the head's values begin in a model of this shape.
    pub(crate) fn head_at(&self, config: &ModelConfig) -> usize {
        self.values.len() - self.classes.map_or(0, |classes| classes * (config.hidden_size + 1))
    }

    /// LoRA's part.
    pub fn adapter(&self, config: &ModelConfig) -> Option<Adapter> {
        let Body::Lora(lora) = &self.body else { return None };
        Some(Adapter { lora: lora.clone(), values: self.values[..self.head_at(config)].to_vec() })
    }

    /// The head.
    pub fn head(&self, config: &ModelConfig) -> Option<Head> {
        let values = &self.values[self.head_at(config)..];
        let (weight, bias) = values.split_at(self.classes? * config.hidden_size);
        Some(Head { weight: weight.to_vec(), bias: bias.to_vec(), unit: false })
    }
}
