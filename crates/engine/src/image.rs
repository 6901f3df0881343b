//! A model's matrices as they lie in memory, written once and mapped by later processes.

use std::cell::RefCell;
use std::io::{self, Write};

use formats::BaseModel;
use kernels::{Backend, Images, Mapped};

use crate::block::Block;
use crate::load::Source;
use crate::model::Model;
use crate::{Error, Result};

impl<B: Backend> Model<B> {
    /// Writes every matrix of a decoder that was merged: the blocks', the embedding and the head.
    ///
    /// # Errors
    /// When `out` does not take them, or the device makes no images.
    pub fn write_image(&self, out: &mut dyn Write) -> io::Result<()> {
        let linears = self.blocks.iter().flat_map(Block::linears).map(|linear| &linear.matrix);
        linears
            .chain([&self.embedding, self.head()])
            .try_for_each(|matrix| self.backend.write_image(matrix, out))
    }

    /// A decoder whose matrices are those that [`Model::write_image`] wrote; its norms and biases are the base's.
    ///
    /// # Errors
    /// When the bytes hold something else.
    pub fn load_image(backend: B, base: &BaseModel, bytes: Mapped) -> Result<Self> {
        let mut images = RefCell::new(Images::new(bytes));
        let mut model = Self::load_blocks(backend, base, Source::Images(&images), |_, _, _| {})?;
        if model.head.is_none() {
            let (rows, cols) = (base.config.vocab_size, base.config.hidden_size);
            let head = model.backend.matrix_from_image(rows, cols, images.get_mut());
            model.head = Some(head.ok_or(Error::Image { rows, cols })?);
        }
        Ok(model)
    }
}
