//! Which instructions this processor has, asked once.

use std::sync::OnceLock;

/// Instruction sets that the kernels know, from the plainest to the widest.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Isa {
    /// Plain Rust: the reference path.
    Scalar,
    /// 128-bit vectors of Arm, with dot products of bytes (Armv8.2, about 2018 and later).
    Neon,
    /// AVX2 with FMA.
    Avx2,
    /// AVX-512 (F, BW, VL, DQ, VNNI) with BF16 dot products.
    Avx512Bf16,
}

impl Isa {
    /// The name used by `KERNELS_ISA` and in reports.
    pub fn name(self) -> &'static str {
        match self {
            Self::Scalar => "scalar",
            Self::Neon => "neon",
            Self::Avx2 => "avx2",
            Self::Avx512Bf16 => "avx512",
        }
    }

    /// The widest set that this processor has.
    pub fn detect() -> Self {
        #[cfg(target_arch = "x86_64")]
        {
            use std::arch::is_x86_feature_detected as has;
            let avx2 = has!("avx2") && has!("fma") && has!("f16c");
            let avx512 = has!("avx512f") && has!("avx512bw") && has!("avx512vl") && has!("avx512dq");
            if avx2 && avx512 && has!("avx512bf16") && has!("avx512vnni") {
                return Self::Avx512Bf16;
            }
            if avx2 {
                return Self::Avx2;
            }
        }
        #[cfg(target_arch = "aarch64")]
        {
            use std::arch::is_aarch64_feature_detected as has;
            if has!("neon") && has!("dotprod") {
                return Self::Neon;
            }
        }
        Self::Scalar
    }
}

/// The set in use: the widest that the processor has, or a lower one named by the environment variable
/// `KERNELS_ISA` (`scalar`, `neon`, `avx2`, `avx512`).
///
/// # Panics
/// When `KERNELS_ISA` holds another word, or a set that this processor lacks.
pub fn current() -> Isa {
    static CURRENT: OnceLock<Isa> = OnceLock::new();
    *CURRENT.get_or_init(|| {
        let found = Isa::detect();
        let Ok(wanted) = std::env::var("KERNELS_ISA") else { return found };
        let isa = match wanted.as_str() {
            "scalar" => Isa::Scalar,
            "neon" => Isa::Neon,
            "avx2" => Isa::Avx2,
            "avx512" => Isa::Avx512Bf16,
            other => panic!("KERNELS_ISA is `{other}`; expected scalar, neon, avx2 or avx512"),
        };
        let available = isa == Isa::Scalar || isa == found || (isa == Isa::Avx2 && found == Isa::Avx512Bf16);
        assert!(available, "KERNELS_ISA asks for {}, this processor offers {}", isa.name(), found.name());
        isa
    })
}
