//! Matrix products through cuBLASLt.

use std::collections::HashMap;
use std::ffi::c_void;
use std::mem::MaybeUninit;
use std::sync::{Arc, Mutex, PoisonError};

use cudarc::cublaslt::result::{self as lt, CublasError};
use cudarc::cublaslt::sys;

use super::CudaError;
use super::device::{Device, Lane, Memory};

/// Bytes for each stream: what cuBLASLt recommends for Hopper; less for LoRA's small products.
const WORKSPACES: [usize; 3] = [32 << 20, 8 << 20, 8 << 20];

/// A matrix in the compute type, row-major, as it lies or transposed.
#[derive(Debug, Clone, Copy)]
pub(super) struct Operand {
    pub(super) address: u64,
    /// Values between the beginnings of stored rows.
    pub(super) stride: usize,
    pub(super) transposed: bool,
}

impl Operand {
    pub(super) fn plain(address: u64, stride: usize) -> Self {
        Self { address, stride, transposed: false }
    }

    pub(super) fn transposed(address: u64, stride: usize) -> Self {
        Self { address, stride, transposed: true }
    }
}

/// Where a product goes, row-major.
#[derive(Debug, Clone, Copy)]
pub(super) struct Place {
    pub(super) address: u64,
    pub(super) stride: usize,
    /// f32 values; the compute type otherwise.
    pub(super) wide: bool,
    /// Adds to what is there.
    pub(super) add: bool,
}

/// What decides which of cuBLASLt's kernels is best.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Shape {
    sizes: [usize; 3],
    strides: [usize; 3],
    transposed: [bool; 2],
    wide: bool,
    alignments: [u32; 3],
    workspace: usize,
}

/// A product that has been looked up.
#[derive(Debug)]
struct Recipe {
    description: sys::cublasLtMatmulDesc_t,
    layouts: [sys::cublasLtMatrixLayout_t; 3],
    algorithm: sys::cublasLtMatmulAlgo_t,
}

/// The library, and what it said of each shape.
#[derive(Debug)]
pub(super) struct Products {
    device: Arc<Device>,
    handle: sys::cublasLtHandle_t,
    /// One for each stream.
    workspaces: [Memory; 3],
    recipes: Mutex<HashMap<Shape, Recipe>>,
}

// SAFETY: the library's handle may be used from any thread; the recipes are behind a lock.
unsafe impl Send for Products {}
// SAFETY: as above.
unsafe impl Sync for Products {}

impl Products {
    pub(super) fn new(device: &Arc<Device>) -> Result<Self, CudaError> {
        let [main, gradients, mid] = WORKSPACES.map(|bytes| Memory::try_new(device, bytes));
        let workspaces = [main?, gradients?, mid?];
        let handle = lt::create_handle()
            .map_err(|error| CudaError::Driver { doing: "start cuBLASLt", reason: error.to_string() })?;
        Ok(Self { device: device.clone(), handle, workspaces, recipes: Mutex::default() })
    }

    /// `d = alpha * a b`, or `d += alpha * a b`. Shapes: `d` `(m, n)`, `a` `(m, k)`, `b` `(k, n)`.
    ///
    /// # Safety
    /// The operands are as large as the shapes and strides say, and are not written meanwhile.
    pub(super) unsafe fn run(
        &self,
        lane: Lane,
        d: Place,
        a: Operand,
        b: Operand,
        [m, n, k]: [usize; 3],
        alpha: f32,
    ) {
        if m == 0 || n == 0 {
            return;
        }
        assert!(k > 0, "a product over nothing");
        let shape = Shape {
            sizes: [m, n, k],
            strides: [a.stride, b.stride, d.stride],
            transposed: [a.transposed, b.transposed],
            wide: d.wide,
            alignments: [a.address, b.address, d.address].map(|address| 1 << address.trailing_zeros().min(8)),
            workspace: WORKSPACES[lane as usize],
        };
        self.device.bind();
        let mut recipes = self.recipes.lock().unwrap_or_else(PoisonError::into_inner);
        let recipe = recipes.entry(shape).or_insert_with(|| {
            self.look_up(shape)
                .unwrap_or_else(|error| panic!("cuBLASLt has no product for {shape:?}: {error}"))
        });
        let beta = if d.add { 1.0f32 } else { 0.0 };
        let pointer = |address: u64| address as *mut c_void;
        let [first, second, out] = recipe.layouts;
        // SAFETY: the operands by contract; the library reads column-major, so the operands change places.
        unsafe {
            lt::matmul(
                self.handle,
                recipe.description,
                (&raw const alpha).cast(),
                (&raw const beta).cast(),
                pointer(b.address),
                first,
                pointer(a.address),
                second,
                pointer(d.address),
                out,
                pointer(d.address),
                out,
                &raw const recipe.algorithm,
                pointer(self.workspaces[lane as usize].address),
                shape.workspace,
                self.device.stream(lane).cast(),
            )
        }
        .unwrap_or_else(|error| panic!("cuBLASLt could not compute {shape:?}: {error}"));
    }

    /// The library's first choice: not timed, so that it is the same in every process.
    fn look_up(&self, shape: Shape) -> Result<Recipe, CublasError> {
        use sys::cublasLtMatmulDescAttributes_t::{CUBLASLT_MATMUL_DESC_TRANSA, CUBLASLT_MATMUL_DESC_TRANSB};
        use sys::cublasLtMatmulPreferenceAttributes_t as Preference;
        use sys::cudaDataType_t::{CUDA_R_16BF, CUDA_R_16F};
        let ([m, n, k], [a_stride, b_stride, d_stride]) = (shape.sizes, shape.strides);
        let narrow = if self.device.f16 { CUDA_R_16F } else { CUDA_R_16BF };
        let wide = sys::cudaDataType_t::CUDA_R_32F;
        let layout = |kind, rows: usize, cols: usize, stride: usize| {
            lt::create_matrix_layout(kind, rows as u64, cols as u64, stride as i64)
        };
        // A row-major (r, c) is a column-major (c, r).
        let stored = |r, c, transposed: bool| if transposed { (r, c) } else { (c, r) };
        let (b_rows, b_cols) = stored(k, n, shape.transposed[1]);
        let (a_rows, a_cols) = stored(m, k, shape.transposed[0]);
        let layouts = [
            layout(narrow, b_rows, b_cols, b_stride)?,
            layout(narrow, a_rows, a_cols, a_stride)?,
            layout(if shape.wide { wide } else { narrow }, n, m, d_stride)?,
        ];
        let compute = sys::cublasComputeType_t::CUBLAS_COMPUTE_32F;
        let description = lt::create_matmul_desc(compute, wide)?;
        let preference = lt::create_matmul_pref()?;
        let [a_alignment, b_alignment, d_alignment] = shape.alignments;
        // SAFETY: descriptions, layouts and preferences were just made; each value has its attribute's type.
        unsafe {
            for (attribute, transposed) in [
                (CUBLASLT_MATMUL_DESC_TRANSA, shape.transposed[1]),
                (CUBLASLT_MATMUL_DESC_TRANSB, shape.transposed[0]),
            ] {
                let value = i32::from(transposed);
                lt::set_matmul_desc_attribute(description, attribute, (&raw const value).cast(), 4)?;
            }
            let bytes = shape.workspace;
            let most = Preference::CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES;
            lt::set_matmul_pref_attribute(preference, most, (&raw const bytes).cast(), 8)?;
            for (attribute, value) in [
                (Preference::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, b_alignment),
                (Preference::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES, a_alignment),
                (Preference::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, d_alignment),
                (Preference::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES, d_alignment),
            ] {
                lt::set_matmul_pref_attribute(preference, attribute, (&raw const value).cast(), 4)?;
            }
            let [first, second, out] = layouts;
            let mut found = MaybeUninit::<[sys::cublasLtMatmulHeuristicResult_t; 8]>::zeroed();
            let mut count = 0;
            sys::cublasLtMatmulAlgoGetHeuristic(
                self.handle,
                description,
                first,
                second,
                out,
                out,
                preference,
                8,
                found.as_mut_ptr().cast(),
                &raw mut count,
            )
            .result()?;
            lt::destroy_matmul_pref(preference)?;
            let found = found.assume_init();
            let best = found.iter().take(count as usize).find(|one| one.state.result().is_ok());
            let best = best.ok_or(CublasError(sys::cublasStatus_t::CUBLAS_STATUS_NOT_SUPPORTED))?;
            Ok(Recipe { description, layouts, algorithm: best.algo })
        }
    }
}

impl Drop for Products {
    fn drop(&mut self) {
        let recipes = std::mem::take(&mut *self.recipes.lock().unwrap_or_else(PoisonError::into_inner));
        // SAFETY: made by `look_up` and `new`, destroyed once.
        unsafe {
            for recipe in recipes.into_values() {
                let _ = lt::destroy_matmul_desc(recipe.description);
                for layout in recipe.layouts {
                    let _ = lt::destroy_matrix_layout(layout);
                }
            }
            let _ = lt::destroy_handle(self.handle);
        }
    }
}
