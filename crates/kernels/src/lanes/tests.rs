use super::*;

/// Runs one function over all inputs, on the lanes in use.
struct Map<'a, const F: u8> {
    to: &'a mut [f32],
    from: &'a [f32],
}

impl<const F: u8> Kernel for Map<'_, F> {
    type Output = ();
    #[inline(always)]
    fn run<L: Lanes>(self, l: L) {
        for (to, from) in self.to.chunks_mut(L::N).zip(self.from.chunks(L::N)) {
            let x = l.read(from);
            l.write(to, if F == 0 { l.exp(x) } else { l.sigmoid(x) });
        }
    }
}

fn map<const F: u8>(from: &[f32]) -> Vec<f32> {
    let mut to = vec![0.0; from.len()];
    dispatch(Map::<F> { to: &mut to, from });
    to
}

#[test]
fn exp_and_sigmoid_are_close_to_f64() {
    let inputs: Vec<f32> = (0..200_001).map(|i| (i as f32 - 100_000.0) * 8.7e-4).collect();
    for (x, y) in inputs.iter().zip(map::<0>(&inputs)) {
        let exact = f64::from(*x).exp();
        assert!((f64::from(y) - exact).abs() <= 2e-7 * exact, "exp({x}) = {y}, expected {exact}");
    }
    for (x, y) in inputs.iter().zip(map::<1>(&inputs)) {
        let exact = 1.0 / (1.0 + f64::from(-*x).exp());
        assert!((f64::from(y) - exact).abs() <= 4e-7 * exact, "sigmoid({x}) = {y}, expected {exact}");
    }
}

#[test]
fn exp_keeps_nan_and_the_ends() {
    let out = map::<0>(&[f32::NAN, f32::NEG_INFINITY, f32::INFINITY, 0.0]);
    assert!(
        out[0].is_nan()
            && out[1] >= 0.0
            && out[1] < 2e-38
            && out[2] > 1e38
            && out[3].to_bits() == 1.0f32.to_bits(),
        "{out:?}"
    );
}

/// Transposes one tile, and makes words of two of its first rows.
struct Shuffle<'a> {
    transposed: &'a mut Vec<f32>,
    paired: &'a mut Vec<u32>,
    rounded: &'a mut Vec<bf16>,
    from: &'a [f32],
}

impl Kernel for Shuffle<'_> {
    type Output = usize;
    #[inline(always)]
    fn run<L: Lanes>(self, l: L) -> usize {
        let n = L::N;
        let (stride, mut words) = (n + 3, vec![0.0; n]);
        self.transposed.resize(n * n, 0.0);
        self.rounded.resize(n, bf16::ZERO);
        // SAFETY: `from` holds n rows of n + 3 values, `transposed` n rows of n.
        unsafe { l.transpose(self.transposed.as_mut_ptr(), n, self.from.as_ptr(), stride) };
        let word = l.pair(l.read(self.from), l.read(&self.from[stride..]));
        l.write(&mut words, word);
        self.paired.extend(words.iter().map(|w: &f32| w.to_bits()));
        l.write(self.rounded, l.read(self.from));
        n
    }
}

#[test]
fn shuffles_move_and_round_as_scalar_code_does() {
    let from: Vec<f32> = (0..16 * 19).map(|i| 1.0 + i as f32 * 0.0137).collect();
    let (mut transposed, mut paired, mut rounded) = (Vec::new(), Vec::new(), Vec::new());
    let n = dispatch(Shuffle {
        transposed: &mut transposed,
        paired: &mut paired,
        rounded: &mut rounded,
        from: &from,
    });
    let bits = |v: f32| u32::from(bf16::from_f32(v).to_bits());
    for i in 0..n {
        for j in 0..n {
            assert_eq!(
                transposed[j * n + i].to_bits(),
                from[i * (n + 3) + j].to_bits(),
                "row {i}, column {j}"
            );
        }
        assert_eq!(paired[i], bits(from[i]) | bits(from[n + 3 + i]) << 16, "pair {i}");
        assert_eq!(rounded[i], bf16::from_f32(from[i]), "lane {i}");
    }
}
