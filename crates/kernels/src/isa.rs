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
    /// The same with AMX: products of bf16 and of bytes in tiles of 16 by 16.
    Amx,
}

impl Isa {
    /// The name used by `KERNELS_ISA` and in reports.
    pub fn name(self) -> &'static str {
        match self {
            Self::Scalar => "scalar",
            Self::Neon => "neon",
            Self::Avx2 => "avx2",
            Self::Avx512Bf16 => "avx512",
            Self::Amx => "amx",
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
                return if tiles::allowed() { Self::Amx } else { Self::Avx512Bf16 };
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
/// `KERNELS_ISA` (`scalar`, `neon`, `avx2`, `avx512`, `amx`).
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
            "amx" => Isa::Amx,
            other => panic!("KERNELS_ISA is `{other}`; expected scalar, neon, avx2, avx512 or amx"),
        };
        let available = isa == Isa::Scalar || isa == found || (isa < found && isa != Isa::Neon);
        assert!(available, "KERNELS_ISA asks for {}, this processor offers {}", isa.name(), found.name());
        isa
    })
}

/// AMX's tiles, whose registers the system hands out on request.
#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
mod tiles {
    use std::arch::asm;
    use std::arch::x86_64::__cpuid_count;

    /// Whether the processor has tiles of bf16 and of bytes, and this process may use them.
    pub(super) fn allowed() -> bool {
        const BF16: u32 = 1 << 22;
        const TILES: u32 = 1 << 24;
        const BYTES: u32 = 1 << 25;
        let all = BF16 | TILES | BYTES;
        __cpuid_count(7, 0).edx & all == all && permitted()
    }

    /// Asks Linux for the tiles' registers, for all threads (`Documentation/arch/x86/xstate.rst`). A system that does
    /// not know them says no.
    fn permitted() -> bool {
        const ARCH_PRCTL: i64 = 158;
        const REQUEST_PERMISSION: i64 = 0x1023;
        const TILE_DATA: i64 = 18;
        let result: i64;
        // SAFETY: this call changes nothing but what the process may use; the kernel writes rax, rcx and r11.
        unsafe {
            asm!(
                "syscall",
                inlateout("rax") ARCH_PRCTL => result,
                in("rdi") REQUEST_PERMISSION,
                in("rsi") TILE_DATA,
                lateout("rcx") _,
                lateout("r11") _,
                options(nostack),
            );
        }
        result == 0
    }
}

/// Not asked for elsewhere.
#[cfg(all(target_arch = "x86_64", not(target_os = "linux")))]
mod tiles {
    pub(super) fn allowed() -> bool {
        false
    }
}
