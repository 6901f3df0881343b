//! AdamW (Loshchilov and Hutter, 2019), as `torch.optim.AdamW` computes it.

/// The constants of one step.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct AdamW {
    /// Learning rate of this step.
    pub lr: f32,
    /// Decay of the first moment.
    pub beta1: f32,
    /// Decay of the second moment.
    pub beta2: f32,
    /// Added to the root of the second moment.
    pub eps: f32,
    /// Decoupled decay: `p -= lr * weight_decay * p`.
    pub weight_decay: f32,
    /// Count of steps, from 1, for the bias correction.
    pub step: u64,
    /// The gradients are multiplied by this first (clipping).
    pub gradient_scale: f32,
}

/// Updates `parameters`, `first` and `second` moments in place. All slices have one length.
pub fn step(parameters: &mut [f32], gradients: &[f32], first: &mut [f32], second: &mut [f32], adamw: &AdamW) {
    let AdamW { lr, beta1, beta2, eps, weight_decay, step, gradient_scale } = *adamw;
    let correction1 = 1.0 - f64::from(beta1).powf(step as f64);
    let correction2 = (1.0 - f64::from(beta2).powf(step as f64)).sqrt();
    let size = (f64::from(lr) / correction1) as f32;
    let (root, keep) = (1.0 / correction2 as f32, 1.0 - lr * weight_decay);
    let moments = first.iter_mut().zip(second.iter_mut());
    for ((p, g), (m, v)) in parameters.iter_mut().zip(gradients).zip(moments) {
        let g = g * gradient_scale;
        *m = beta1 * *m + (1.0 - beta1) * g;
        *v = beta2 * *v + (1.0 - beta2) * g * g;
        *p = *p * keep - size * *m / (v.sqrt() * root + eps);
    }
}

/// Sum of squares in f64, in a fixed order.
pub fn square_sum(values: &[f32]) -> f64 {
    values.iter().map(|&v| f64::from(v) * f64::from(v)).sum()
}
