//! The head of an encoder in training: softmax regression on the vector that a text's outputs are pooled to.
//!
//! It is some thousand values, and runs on the host whatever the device.

use formats::Pooling;

use crate::features::{pooled, read_rows};
use crate::head::Head;
use crate::tree::Labelled;

/// A head and its gradients.
pub(crate) struct Classifier {
    /// Where its values lie in the parameters: weights `(labels, width)`, then biases.
    pub(crate) at: usize,
    pub(crate) classes: usize,
    width: usize,
    pooling: Pooling,
    /// See [`crate::Care::smoothing`].
    smoothing: f32,
    pub(crate) values: Vec<f32>,
    pub(crate) gradients: Vec<f32>,
}

impl Classifier {
    /// A head whose values lie at `at`.
    pub(crate) fn new(at: usize, classes: usize, width: usize, pooling: Pooling, smoothing: f32) -> Self {
        let len = classes * (width + 1);
        Self { at, classes, width, pooling, smoothing, values: vec![0.0; len], gradients: vec![0.0; len] }
    }

    /// As a head that reads features.
    pub(crate) fn head(&self) -> Head {
        let (weight, bias) = self.values.split_at(self.classes * self.width);
        Head { weight: weight.to_vec(), bias: bias.to_vec(), unit: false }
    }

    /// Writes each text's loss, adds the head's gradients of their weighted sum, and replaces the encoder's outputs
    /// `(rows, width)` by the gradient of that sum. A text's [`Labelled`] row is its last, the target its label.
    pub(crate) fn loss(&mut self, losses: &mut Vec<f32>, outputs: &mut [f32], texts: &[Labelled]) {
        let (width, classes) = (self.width, self.classes);
        let ends: Vec<u32> = texts.iter().map(|text| text.row).collect();
        let features = pooled(outputs, &ends, width, self.pooling);
        let (weight, bias) = self.values.split_at(classes * width);
        let (d_weight, d_bias) = self.gradients.split_at_mut(classes * width);
        losses.clear();
        let mut first = 0;
        for (feature, text) in features.chunks_exact(width).zip(texts) {
            let log_probs = Head::log_softmax(weight, bias, feature);
            let spread = self.smoothing / classes as f32;
            let target = (1.0 - self.smoothing) * log_probs[text.target as usize];
            losses.push(-target - spread * log_probs.iter().sum::<f32>());
            let mut d_feature = vec![0.0; width];
            for (label, log_prob) in log_probs.iter().enumerate() {
                let hit = if label == text.target as usize { 1.0 - self.smoothing } else { 0.0 };
                let d = text.weight * (log_prob.exp() - hit - spread);
                d_bias[label] += d;
                let at = label * width..(label + 1) * width;
                d_feature.iter_mut().zip(&weight[at.clone()]).for_each(|(sum, w)| *sum += d * w);
                d_weight[at].iter_mut().zip(feature).for_each(|(sum, f)| *sum += d * f);
            }
            let rows = read_rows(first, text.row, self.pooling);
            for d in &mut d_feature {
                *d /= rows.len() as f32;
            }
            let end = text.row as usize + 1;
            outputs[first * width..end * width].fill(0.0);
            for row in outputs[rows.start * width..rows.end * width].chunks_exact_mut(width) {
                row.copy_from_slice(&d_feature);
            }
            first = end;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gradients_are_the_slopes() {
        for pooling in [Pooling::Mean, Pooling::First] {
            check_slopes(pooling, 0.0);
            check_slopes(pooling, 0.3);
        }
    }

    #[test]
    fn smoothing_is_the_cross_entropy_with_spread_targets() {
        let losses = |smoothing| {
            let mut classifier = Classifier::new(0, 2, 1, Pooling::Mean, smoothing);
            classifier.values = vec![3.0f32.ln(), 0.0, 0.0, 0.0];
            let mut losses = Vec::new();
            let text = Labelled { row: 0, target: 0, weight: 1.0 };
            classifier.loss(&mut losses, &mut [1.0], &[text]);
            losses[0]
        };
        // Probabilities 3/4 and 1/4.
        let (right, wrong) = (-(0.75f32).ln(), -(0.25f32).ln());
        assert!((losses(0.0) - right).abs() < 1e-6);
        assert!((losses(0.2) - (0.9 * right + 0.1 * wrong)).abs() < 1e-6);
    }

    fn check_slopes(pooling: Pooling, smoothing: f32) {
        let wave = |i: usize| (i as f32 * 0.9).sin();
        let mut classifier = Classifier::new(0, 4, 5, pooling, smoothing);
        classifier.values = (0..24).map(wave).collect();
        let outputs: Vec<f32> = (0..35).map(|i| wave(3 * i + 1)).collect();
        let label = |row, target, weight| Labelled { row, target, weight };
        let texts = [label(0, 2, 0.5), label(4, 0, 0.7), label(6, 3, 1.1)];
        let objective = |classifier: &Classifier, outputs: &[f32]| {
            let empty = Classifier::new(0, 4, 5, pooling, smoothing);
            let mut classifier = Classifier { values: classifier.values.clone(), ..empty };
            let (mut losses, mut outputs) = (Vec::new(), outputs.to_vec());
            classifier.loss(&mut losses, &mut outputs, &texts);
            losses.iter().zip(&texts).map(|(loss, text)| f64::from(loss * text.weight)).sum::<f64>()
        };
        let mut d_outputs = outputs.clone();
        classifier.loss(&mut Vec::new(), &mut d_outputs, &texts);
        let near = |found: f32, up: f64, down: f64, what: &str| {
            let slope = (up - down) / 2e-2;
            assert!((f64::from(found) - slope).abs() < 2e-4, "{what}: {found}, expected {slope}");
        };
        for (i, found) in d_outputs.iter().enumerate() {
            let moved = |by: f32| {
                let mut outputs = outputs.clone();
                outputs[i] += by;
                objective(&classifier, &outputs)
            };
            near(*found, moved(1e-2), moved(-1e-2), &format!("output {i}"));
        }
        for (i, found) in classifier.gradients.clone().iter().enumerate() {
            let mut moved = |by: f32| {
                let before = classifier.values[i];
                classifier.values[i] += by;
                let loss = objective(&classifier, &outputs);
                classifier.values[i] = before;
                loss
            };
            near(*found, moved(1e-2), moved(-1e-2), &format!("value {i}"));
        }
    }
}
