//! The exponential, to about 1e-7 relative, in arithmetic that compilers turn into vectors.

/// `log2(e)`, and `ln(2)` in two parts.
pub(super) const LOG2_E: f32 = std::f32::consts::LOG2_E;
pub(super) const LN_2_HIGH: f32 = 0.693_359_4;
pub(super) const LN_2_LOW: f32 = -2.121_944_4e-4;
/// Below it the result is denormal and taken as zero.
pub(super) const LOWEST: f32 = -87.336_54;
/// Above it the result is infinite.
pub(super) const HIGHEST: f32 = 88.722_83;
/// Coefficients of `(exp(r) - 1 - r) / r^2` on `|r| <= ln(2) / 2`, highest power first (Cephes).
pub(super) const POLYNOMIAL: [f32; 6] =
    [1.987_569_1e-4, 1.398_199_9e-3, 8.333_452e-3, 4.166_579_6e-2, 0.166_666_66, 0.5];

#[inline(always)] // into functions compiled for wider instruction sets
#[allow(clippy::inline_always)]
pub(super) fn exp(x: f32) -> f32 {
    let clamped = x.clamp(LOWEST, HIGHEST);
    let n = (clamped * LOG2_E).round_ties_even();
    let r = clamped - n * LN_2_HIGH - n * LN_2_LOW;
    let poly = POLYNOMIAL.into_iter().reduce(|sum, c| sum * r + c).unwrap_or(0.0);
    let fraction = poly * (r * r) + r + 1.0;
    // Two factors, as 2^128 is no number but exp(88.7) is one.
    let half = (n as i32) >> 1;
    let power = |n: i32| f32::from_bits(((n + 127) << 23) as u32);
    let value = fraction * power(half) * power(n as i32 - half);
    let value = if x < LOWEST { 0.0 } else { value };
    let value = if x > HIGHEST { f32::INFINITY } else { value };
    if x.is_nan() { x } else { value }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::linear::kernel::Compute;

    #[test]
    fn exp_is_close_for_every_magnitude() {
        let values: Vec<f32> = (-8800..=8870).map(|i| i as f32 / 100.0 + 0.001).collect();
        let mut fast = values.clone();
        (f32::kernels().exp)(&mut fast, 0.0);
        for (x, fast) in values.iter().zip(&fast) {
            let exact = f64::from(*x).exp();
            for y in [exp(*x), *fast] {
                let zero = *x < LOWEST && y == 0.0;
                assert!(zero || (f64::from(y) / exact - 1.0).abs() < 2e-7, "exp({x}) = {y}, not {exact}");
            }
        }
    }

    #[test]
    fn exponentials_are_shifted_and_summed() {
        let mut values: Vec<f32> = (0..1001).map(|i| i as f32 / 50.0).collect();
        let exact: f64 = values.iter().map(|x| f64::from(x - 20.0).exp()).sum();
        let sum = (f32::kernels().exp)(&mut values, 20.0);
        assert!((f64::from(sum) / exact - 1.0).abs() < 1e-6, "{sum}, not {exact}");
        assert!((values[1000] - 1.0).abs() < 1e-6);
    }

    #[test]
    fn exp_of_what_is_no_number() {
        for (x, y) in [(f32::NEG_INFINITY, 0.0), (f32::INFINITY, f32::INFINITY), (0.0, 1.0)] {
            let mut values = [x; 17];
            (f32::kernels().exp)(&mut values, 0.0);
            assert_eq!((exp(x), values[0], values[16]), (y, y, y));
        }
        assert!(exp(f32::NAN).is_nan());
    }
}
