//! Loss and gradients of one token tree.

use formats::{ModelConfig, Part};
use kernels::{Backend, Direction, GatedLayer, Linear, Output, PassSpec};

use crate::block::{Block, GATE_UP, QUERY_KEY_VALUE, Saved};
use crate::classifier::Classifier;
use crate::forward::{Kv, Stream};
use crate::model::{FeedForward, Model};
use crate::tree::{Labelled, TokenTree};
use crate::weights::Place;

/// All buffers of a training pass, sized for a number of rows and kept between steps.
pub(crate) struct Tape<B: Backend> {
    rows: usize,
    pass: Option<B::Pass>,
    forward: B::Recording,
    backward: B::Recording,
    /// An encoder's outputs on the host, then their gradient.
    outputs: Vec<f32>,
    stream: Stream<B>,
    /// Of each block; of one at a time where blocks are recomputed.
    saved: Vec<Saved<B>>,
    /// The stream before each block, where blocks are recomputed.
    inputs: Vec<B::Wide>,
    losses: B::Wide,
    d_x: B::Wide,
    d_h: B::Wide,
    d_y: B::Narrow,
    d_attention: B::Narrow,
    d_qkv: B::Narrow,
    /// Of each product, so that what reads one need not be over when the next is written.
    d_mid: [B::Narrow; 4],
}

impl<B: Backend> Tape<B> {
    pub(crate) fn new(model: &Model<B>, rows: usize, recompute: bool) -> Self {
        let (backend, block, heads) = (&model.backend, &model.blocks[0], model.config.heads);
        let (wide, narrow) = (|w: usize| backend.wide(rows * w), |w: usize| backend.narrow(rows * w));
        let width = model.config.hidden_size;
        let mid = model.blocks.iter().flat_map(Block::linears).map(Linear::mid_width).max();
        let (kept, inputs) = if recompute { (1, model.blocks.len()) } else { (model.blocks.len(), 0) };
        let saved = |block| Saved::new(backend, block, heads, rows);
        Self {
            rows,
            pass: None,
            forward: B::Recording::default(),
            backward: B::Recording::default(),
            outputs: Vec::new(),
            stream: Stream::new(model, rows),
            saved: model.blocks[..kept].iter().map(saved).collect(),
            inputs: (0..inputs).map(|_| wide(width)).collect(),
            losses: wide(1),
            d_x: wide(width),
            d_h: wide(width),
            d_y: narrow(width),
            d_attention: narrow(block.out.inputs),
            d_qkv: narrow(block.qkv.outputs),
            d_mid: std::array::from_fn(|_| narrow(mid.unwrap_or(0))),
        }
    }

    /// Bytes of the buffers for each row, in a model of these sizes; `mids` are the ranks of each product of a block.
    pub(crate) fn row_bytes(
        config: &ModelConfig,
        mids: [usize; 4],
        narrow_size: usize,
        recompute: bool,
    ) -> usize {
        let width = config.hidden_size;
        let outputs = |parts: &[Part]| -> usize {
            parts.iter().filter(|&&part| config.has(part)).map(|part| part.shape(config)[0]).sum()
        };
        let (qkv, up, down) = (outputs(&QUERY_KEY_VALUE), outputs(&GATE_UP), config.intermediate_size);
        let attention = config.heads * config.head_dim;
        let saved = narrow_size * (2 * width + qkv + attention + up + mids.iter().sum::<usize>())
            + size_of::<f32>() * (2 + config.heads);
        let inputs = size_of::<f32>() * width;
        let blocks = if recompute { saved + config.layers * inputs } else { config.layers * saved };
        // The stream's and the tape's own.
        let mid = mids.into_iter().max().unwrap_or(0);
        let narrow = 3 * width + down + 2 * attention + qkv + 4 * mid;
        blocks + narrow_size * narrow + size_of::<f32>() * (4 * width + 2)
    }

    /// Rows that fit.
    pub(crate) fn capacity(&self) -> usize {
        self.rows
    }
}

impl<B: Backend> Model<B> {
    /// Computes the loss of each labelled row and adds the gradient of their weighted sum to `gradients`.
    /// Labelled rows are in order, each once. An encoder reads its texts with the `classifier`, which keeps the
    /// gradients of its own values; a labelled row is then the last of a text and the target its label.
    ///
    /// # Panics
    /// When the tree is larger than the tape, or an encoder has no classifier.
    pub(crate) fn loss_and_gradients(
        &self,
        gradients: &mut B::Wide,
        classifier: Option<&mut Classifier>,
        losses: &mut Vec<f32>,
        tape: &mut Tape<B>,
        tree: &TokenTree,
        labelled: &[Labelled],
    ) {
        assert!(tree.rows() <= tape.rows, "a tree of {} rows on a tape for {}", tree.rows(), tape.rows);
        assert!(classifier.is_some() || !self.is_encoder(), "an encoder predicts no tokens");
        let ops = &self.backend;
        let chosen: Vec<u32> = labelled.iter().map(|l| l.row).collect();
        let (targets, weights): (Vec<u32>, Vec<f32>) = match classifier {
            None => labelled.iter().map(|l| (l.target, l.weight)).unzip(),
            Some(_) => Default::default(),
        };
        let spec = PassSpec { chosen: &chosen, targets: &targets, weights: &weights, ..tree.spec() };
        let pass = ops.pass(&spec, tape.pass.take());
        let (mut forward, mut backward) =
            (std::mem::take(&mut tape.forward), std::mem::take(&mut tape.backward));
        let record = |recording: &mut B::Recording, body: &mut dyn FnMut()| {
            // A recording of very small passes with every weight's gradient was refused by an H100's driver.
            if self.weights.is_some() { body() } else { ops.record(recording, &pass, body) }
        };
        if let Some(classifier) = classifier {
            record(&mut forward, &mut || self.forward(tape, &pass));
            let len = tree.rows() * self.config.hidden_size;
            tape.outputs.resize(len, 0.0);
            ops.download(&mut tape.outputs, &tape.stream.x, 0);
            classifier.loss(losses, &mut tape.outputs, labelled);
            // Rows that no text has carry no gradient.
            ops.clear(&mut tape.d_x, ops.rows(&pass) * self.config.hidden_size);
            ops.upload(&mut tape.d_x, 0, &tape.outputs);
            record(&mut backward, &mut || self.blocks_backward(gradients, tape, &pass));
        } else {
            record(&mut forward, &mut || {
                self.forward(tape, &pass);
                self.head_backward(gradients, tape, &pass);
                self.blocks_backward(gradients, tape, &pass);
            });
            losses.resize(labelled.len(), 0.0);
            ops.download(losses, &tape.losses, 0);
        }
        (tape.pass, tape.forward, tape.backward) = (Some(pass), forward, backward);
    }

    fn forward(&self, tape: &mut Tape<B>, pass: &B::Pass) {
        let Tape { stream, saved, inputs, .. } = tape;
        self.embed(stream, pass);
        for index in 0..self.blocks.len() {
            if let Some(input) = inputs.get_mut(index) {
                self.backend.take(input, &stream.x, 0);
            }
            let saved = &mut saved[if inputs.is_empty() { index } else { 0 }];
            self.run_block(index, saved, stream, Kv::Own, pass);
        }
        self.finish(stream, pass);
    }

    /// The loss over the vocabulary, and the gradient of the last block's output on the chosen rows.
    fn head_backward(&self, gradients: &mut B::Wide, tape: &mut Tape<B>, pass: &B::Pass) {
        let (ops, width, rows) = (&self.backend, self.config.hidden_size, self.backend.chosen(pass));
        let Tape { stream, losses, d_h, d_y, .. } = tape;
        match &self.weights {
            None => ops.cross_entropy(losses, d_h, &stream.h, self.head(), pass),
            Some(weights) => {
                let at = weights.head.unwrap_or(weights.embedding);
                ops.cross_entropy_with_head(losses, d_h, (gradients, at), &stream.h, self.head(), pass);
                self.norm_parameters(gradients, d_h, &stream.unit, weights.norm, rows);
            }
        }
        // The stream itself is over: its gradient takes its place.
        let d_chosen_x = &mut stream.chosen_x;
        ops.clear(d_chosen_x, rows * width);
        ops.norm_backward_rounded(d_y, d_chosen_x, d_h, &stream.unit, &stream.rstd, &self.norm, rows);
    }

    /// From the gradient of the last block's output to those of all parameters below.
    fn blocks_backward(&self, gradients: &mut B::Wide, tape: &mut Tape<B>, pass: &B::Pass) {
        for index in (0..self.blocks.len()).rev() {
            // What the last block saved is still there.
            if let Some(input) = tape.inputs.get(index)
                && index + 1 < self.blocks.len()
            {
                self.backend.take(&mut tape.stream.x, input, 0);
                self.run_block(index, &mut tape.saved[0], &mut tape.stream, Kv::Own, pass);
            }
            self.block_backward(gradients, tape, index, pass);
        }
        if self.weights.is_some() {
            self.embed_backward(gradients, tape, pass);
        }
    }

    /// Turns the gradient of a block's output into that of its input, in `d_x` (of the last block of a decoder from
    /// `stream.chosen_x`), and adds the parameters' to `gradients`. Where norms stand before the sums, `d_y` holds that
    /// gradient rounded, before and after.
    fn block_backward(&self, gradients: &mut B::Wide, tape: &mut Tape<B>, index: usize, pass: &B::Pass) {
        let (ops, block, shape) = (&self.backend, &self.blocks[index], &self.attention_shape(index));
        let (all, width, post) = (ops.rows(pass), self.config.hidden_size, self.post_norm());
        let places = self.weights.as_ref().map(|weights| &weights.blocks[index]);
        let Tape { stream, saved, d_x, d_h, d_y, d_qkv, d_mid, .. } = tape;
        let (before, saved) = saved.split_at_mut(if tape.inputs.is_empty() { index } else { 0 });
        let [down_mid, up_mid, out_mid, qkv_mid] = d_mid;
        let (d_attention, saved) = (&mut tape.d_attention, &mut saved[0]);
        // The last block of a decoder ran its feed-forward on the chosen rows only.
        let narrows = self.narrows(index);
        let (d_out, rows) = if narrows { (&mut stream.chosen_x, ops.chosen(pass)) } else { (&mut *d_x, all) };

        if post {
            // From here on `d_h` is the gradient of the second sum.
            ops.clear(d_h, rows * width);
            ops.norm_backward(d_h, d_out, &saved.unit2, &saved.rstd2, &block.norm2, rows);
            if let Some(places) = places {
                self.norm_parameters(gradients, d_out, &saved.unit2, places.norm2, rows);
            }
            ops.round(d_y, d_h, rows * width);
        }
        // What the feed-forward layer read: the norm before it.
        let (unit, norm) = if post { (&saved.unit1, &block.norm1) } else { (&saved.unit2, &block.norm2) };
        ops.norm_again(&mut stream.h, unit, norm, rows);
        // From here on `act` and `up` are gradients.
        let (act, h, d_up) = (&mut stream.act, &stream.h, &mut saved.up);
        match (self.feed_forward(), places) {
            (FeedForward::Gated(gate), None) => {
                let layer = GatedLayer { up: &block.up, down: &block.down, gate };
                let (d_mids, mids) = ([&mut *up_mid, &mut *down_mid], [&saved.up_mid, &saved.down_mid]);
                let d_h = into(d_h, post);
                ops.feed_forward_backward(gradients, d_h, d_mids, act, d_up, mids, h, d_y, &layer, rows);
            }
            (kind, _) => {
                let width = block.down.inputs;
                ops.linear_backward(Output::Narrow(act), down_mid, d_y, &block.down, rows);
                // `act` becomes itself again, as the parameters' gradient wants it.
                match kind {
                    FeedForward::Gated(gate) => ops.gated_backward(act, d_up, gate, rows, width),
                    FeedForward::Plain(f) => ops.activation_backward(act, d_up, f, rows, width),
                }
                let x = Inputs { x: act, mid: &saved.down_mid };
                self.linear_parameters(
                    gradients,
                    x,
                    d_y,
                    down_mid,
                    &block.down,
                    places.map(|p| p.down),
                    rows,
                );
                ops.linear_backward(into(d_h, post), up_mid, d_up, &block.up, rows);
                let x = Inputs { x: h, mid: &saved.up_mid };
                self.linear_parameters(gradients, x, d_up, up_mid, &block.up, places.map(|p| p.up), rows);
            }
        }
        if let Some(places) = places {
            let place = if post { places.norm1 } else { places.norm2 };
            self.norm_parameters(gradients, d_h, unit, place, rows);
        }
        if post {
            ops.clear(d_out, rows * width);
            ops.norm_backward_rounded(d_y, d_out, d_h, &saved.unit1, &saved.rstd1, &block.norm1, rows);
        } else {
            ops.norm_backward_rounded(d_y, d_out, d_h, &saved.unit2, &saved.rstd2, &block.norm2, rows);
        }

        let place = places.map(|places| places.out);
        if narrows {
            // What comes here is narrower than `d_qkv`, which is not there yet.
            let d_chosen = &mut *d_qkv;
            ops.linear_backward(Output::Narrow(d_chosen), out_mid, d_y, &block.out, rows);
            let x = Inputs { x: &stream.chosen_attention, mid: &saved.out_mid };
            self.linear_parameters(gradients, x, d_y, out_mid, &block.out, place, rows);
            ops.spread_narrow(d_attention, d_chosen, pass, block.out.inputs);
            ops.spread(d_x, &stream.chosen_x, pass, width);
        } else {
            ops.linear_backward(Output::Narrow(d_attention), out_mid, d_y, &block.out, rows);
            let x = Inputs { x: &saved.attention, mid: &saved.out_mid };
            self.linear_parameters(gradients, x, d_y, out_mid, &block.out, place, rows);
        }
        ops.attention_backward(d_qkv, d_attention, &saved.attention, &saved.lse, &saved.qkv, pass, shape);
        if let Some(table) = &self.rotary {
            ops.rotary(d_qkv, table, pass, shape, Direction::Backward);
        }
        let d_input = if post { &mut *d_x } else { &mut *d_h };
        ops.linear_backward(into(d_input, post), qkv_mid, d_qkv, &block.qkv, all);
        let (unit, norm) = match before.last() {
            _ if !post => (&saved.unit1, &block.norm1),
            Some(below) => (&below.unit2, &self.blocks[index - 1].norm2),
            None => (&stream.unit, &self.norm),
        };
        ops.norm_again(&mut stream.h, unit, norm, all);
        let x = Inputs { x: &stream.h, mid: &saved.qkv_mid };
        self.linear_parameters(gradients, x, d_qkv, qkv_mid, &block.qkv, places.map(|p| p.qkv), all);
        if post {
            return;
        }
        if let Some(places) = places {
            self.norm_parameters(gradients, d_h, &saved.unit1, places.norm1, all);
        }
        // Below the first block only the weights of the embedding may train.
        if index > 0 || places.is_some() {
            ops.norm_backward_rounded(d_y, d_x, d_h, &saved.unit1, &saved.rstd1, &block.norm1, all);
        }
    }

    /// The gradients of the tables that make the stream before the first block, whose gradient is in `d_x`.
    fn embed_backward(&self, gradients: &mut B::Wide, tape: &mut Tape<B>, pass: &B::Pass) {
        let Some(weights) = &self.weights else { return };
        let (ops, width, rows) = (&self.backend, self.config.hidden_size, self.backend.rows(pass));
        let Tape { stream, d_x, d_h, d_y, .. } = tape;
        let d_sum = if self.post_norm() {
            self.norm_parameters(gradients, d_x, &stream.unit, weights.norm, rows);
            ops.clear(d_h, rows * width);
            ops.norm_backward(d_h, d_x, &stream.unit, &stream.rstd, &self.norm, rows);
            &*d_h
        } else {
            &*d_x
        };
        ops.embed_backward(gradients, weights.embedding, d_sum, pass, width);
        if let Some(at) = weights.positions {
            ops.positions_backward(gradients, at, d_sum, pass, width);
        }
        if let Some(at) = weights.token_types {
            // Every row is of the first kind.
            ops.round(d_y, d_sum, rows * width);
            ops.bias_backward(gradients, at, d_y, width, rows);
        }
    }

    /// The gradients of a product's parameters: its weights where they train, else LoRA's.
    fn linear_parameters(
        &self,
        gradients: &mut B::Wide,
        inputs: Inputs<'_, B>,
        d_y: &B::Narrow,
        d_mid: &B::Narrow,
        linear: &Linear<B>,
        place: Option<Place>,
        rows: usize,
    ) {
        let (ops, Inputs { x, mid }) = (&self.backend, inputs);
        let Some(place) = place else {
            return ops.adapter_backward(gradients, x, mid, d_y, d_mid, linear, rows);
        };
        ops.weight_backward(gradients, place.weight, x, d_y, linear, rows);
        if let Some(at) = place.bias {
            ops.bias_backward(gradients, at, d_y, linear.outputs, rows);
        }
    }

    /// The gradients of a norm's weight and bias.
    fn norm_parameters(
        &self,
        gradients: &mut B::Wide,
        d_h: &B::Wide,
        unit: &B::Narrow,
        place: Place,
        rows: usize,
    ) {
        let width = self.config.hidden_size;
        self.backend.norm_parameters_backward(gradients, place.weight, place.bias, d_h, unit, width, rows);
    }
}

/// What a product read, and what it put between LoRA's matrices.
struct Inputs<'a, B: Backend> {
    x: &'a B::Narrow,
    mid: &'a B::Narrow,
}

/// Adds to `buffer`, or overwrites it.
fn into<B: Backend>(buffer: &mut B::Wide, add: bool) -> Output<'_, B> {
    if add { Output::Add(buffer) } else { Output::Wide(buffer) }
}
