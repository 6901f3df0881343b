//! A device, its one stream, and memory on it.

use std::ffi::c_void;
use std::marker::PhantomData;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use cudarc::driver::{result, sys};

use super::CudaError;
use super::error::Doing;

/// One of a device's streams.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Lane {
    /// Each op after the one before it.
    Main,
    /// The gradients of LoRA's matrices (see [`super::side::Side`]).
    Gradients,
    /// What LoRA puts between its matrices, beside the frozen weights' share of the product.
    Mid,
}

/// An open device.
#[derive(Debug)]
pub(super) struct Device {
    index: sys::CUdevice,
    context: sys::CUcontext,
    streams: [sys::CUstream; 3],
    pub(super) name: String,
    /// Major, minor.
    pub(super) capability: (i32, i32),
    /// Activations and weights are f16 instead of bf16.
    pub(super) f16: bool,
    held: AtomicUsize,
    most: AtomicUsize,
}

// SAFETY: contexts and streams may be used from any thread; `bind` makes the context the thread's own first.
unsafe impl Send for Device {}
// SAFETY: as above; the driver locks what it must.
unsafe impl Sync for Device {}

impl Device {
    /// Opens device `index`, to compute in bf16 or in f16.
    ///
    /// # Errors
    /// When there is none, or it is too old for that.
    pub(super) fn open(index: usize, f16: bool) -> Result<Arc<Self>, CudaError> {
        use sys::CUdevice_attribute::{
            CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR as MAJOR,
            CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR as MINOR,
        };
        let count = Self::count()?;
        let mut found = 0;
        // SAFETY: writes one integer.
        unsafe { sys::cuDriverGetVersion(&raw mut found) }.result().doing("tell its version")?;
        // The libraries are of CUDA 13, whose minor versions are compatible.
        let needed = 13000;
        if found < needed {
            return Err(CudaError::OldDriver { found, needed });
        }
        if index >= count {
            return Err(CudaError::NoDevice { asked: index, found: count });
        }
        let device = result::device::get(index as i32).doing("open the device")?;
        let name = result::device::get_name(device).doing("name the device")?;
        // SAFETY: the device exists.
        let [major, minor] = [MAJOR, MINOR].map(|of| unsafe { result::device::get_attribute(device, of) });
        let capability = (major.doing("describe the device")?, minor.doing("describe the device")?);
        if capability < if f16 { (7, 5) } else { (8, 0) } {
            return Err(CudaError::OldDevice { name, capability });
        }
        // SAFETY: the device exists; the context is released when this one is dropped.
        let context = unsafe { result::primary_ctx::retain(device) }.doing("open a context")?;
        // SAFETY: the context was just made.
        unsafe { result::ctx::set_current(context) }.doing("use the context")?;
        let stream =
            || result::stream::create(result::stream::StreamKind::NonBlocking).doing("make a stream");
        let streams = [stream()?, stream()?, stream()?];
        let (held, most) = (AtomicUsize::new(0), AtomicUsize::new(0));
        Ok(Arc::new(Self { index: device, context, streams, name, capability, f16, held, most }))
    }

    /// Number of devices.
    pub(super) fn count() -> Result<usize, CudaError> {
        result::init().doing("start")?;
        Ok(result::device::get_count().doing("count devices")? as usize)
    }

    /// The number by which NVIDIA's libraries know it.
    pub(super) fn ordinal(&self) -> i32 {
        // The driver's handle of a device is its number.
        self.index
    }

    /// Products of four warps from shared memory, which only this architecture has.
    pub(super) fn has_warpgroups(&self) -> bool {
        self.capability == (9, 0)
    }

    /// What the compiler calls it, with all that it can do.
    pub(super) fn architecture(&self) -> String {
        let (major, minor) = self.capability;
        format!("sm_{major}{minor}{}", if self.has_warpgroups() { "a" } else { "" })
    }

    pub(super) fn stream(&self, lane: Lane) -> sys::CUstream {
        self.streams[lane as usize]
    }

    /// Makes the device that of the calling thread.
    pub(super) fn bind(&self) {
        // SAFETY: the context lives as long as this device.
        unsafe { result::ctx::set_current(self.context) }.certain("use the context");
    }

    /// Waits until all work is done.
    pub(super) fn wait(&self) {
        self.bind();
        // SAFETY: the stream lives as long as this device.
        unsafe { result::stream::synchronize(self.stream(Lane::Main)) }.certain("finish its work");
    }

    /// Bytes free, and in all.
    pub(super) fn memory(&self) -> (usize, usize) {
        self.bind();
        result::mem_get_info().certain("tell its free memory")
    }

    /// Most bytes held at a time.
    pub(super) fn most_held(&self) -> usize {
        self.most.load(Ordering::Relaxed)
    }
}

impl Drop for Device {
    fn drop(&mut self) {
        // A failure here has been seen before by whoever used the device.
        // SAFETY: nothing uses the stream any more: memory and programs hold the device.
        unsafe {
            let _ = result::ctx::set_current(self.context);
            for stream in self.streams {
                let _ = result::stream::destroy(stream);
            }
            let _ = result::primary_ctx::release(self.index);
        }
    }
}

/// Bytes on a device.
#[derive(Debug)]
pub(super) struct Memory {
    device: Arc<Device>,
    pub(super) address: u64,
    pub(super) bytes: usize,
}

impl Memory {
    /// `bytes` zeros, at a multiple of 256.
    ///
    /// # Errors
    /// [`CudaError::Memory`] when they are not free.
    pub(super) fn try_new(device: &Arc<Device>, bytes: usize) -> Result<Self, CudaError> {
        device.bind();
        if bytes == 0 {
            return Ok(Self { device: device.clone(), address: 0, bytes });
        }
        // SAFETY: the context is current.
        let Ok(address) = (unsafe { result::malloc_sync(bytes) }) else {
            let (free, total) = device.memory();
            return Err(CudaError::Memory { name: device.name.clone(), wanted: bytes, free, total });
        };
        let held = device.held.fetch_add(bytes, Ordering::Relaxed) + bytes;
        device.most.fetch_max(held, Ordering::Relaxed);
        // SAFETY: just allocated.
        unsafe { result::memset_d8_async(address, 0, bytes, device.stream(Lane::Main)) }
            .doing("clear memory")?;
        Ok(Self { device: device.clone(), address, bytes })
    }

    /// [`Memory::try_new`] where the plan has made sure that there is room.
    pub(super) fn new(device: &Arc<Device>, bytes: usize) -> Self {
        Self::try_new(device, bytes).unwrap_or_else(|error| panic!("{error}"))
    }

    /// Copies host values to byte `at`.
    pub(super) fn upload<T: bytemuck::Pod>(&mut self, at: usize, values: &[T]) {
        assert!(
            at + size_of_val(values) <= self.bytes,
            "{} values at byte {at} of {}",
            values.len(),
            self.bytes
        );
        if values.is_empty() {
            return;
        }
        self.device.bind();
        // SAFETY: in bounds; pageable memory has been read when the call returns.
        unsafe {
            result::memcpy_htod_async(self.address + at as u64, values, self.device.stream(Lane::Main))
        }
        .certain("copy to the device");
    }

    /// Copies to the host from byte `at`, when all work before is done.
    pub(super) fn download<T: bytemuck::Pod>(&self, out: &mut [T], at: usize) {
        assert!(at + size_of_val(out) <= self.bytes, "{} values at byte {at} of {}", out.len(), self.bytes);
        if out.is_empty() {
            return;
        }
        self.device.bind();
        // SAFETY: in bounds; `out` outlives the copy, which `wait` waits for.
        unsafe { result::memcpy_dtoh_async(out, self.address + at as u64, self.device.stream(Lane::Main)) }
            .certain("copy to the host");
        self.device.wait();
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        if self.bytes > 0 {
            self.device.held.fetch_sub(self.bytes, Ordering::Relaxed);
            // SAFETY: allocated by `try_new`. The driver waits for kernels that use it; after a broken kernel there is
            // nothing left to free.
            unsafe {
                let _ = result::ctx::set_current(self.device.context);
                let _ = result::free_sync(self.address);
            }
        }
    }
}

/// Values on a device.
#[derive(Debug)]
pub struct Values<T> {
    pub(super) memory: Memory,
    pub(super) len: usize,
    of: PhantomData<T>,
}

impl<T> Values<T> {
    /// `len` zeros.
    pub(super) fn new(device: &Arc<Device>, len: usize) -> Self {
        Self { memory: Memory::new(device, len * size_of::<T>()), len, of: PhantomData }
    }

    /// Where value `at` lies, when `len` follow it.
    pub(super) fn at(&self, at: usize, len: usize) -> u64 {
        assert!(at + len <= self.len, "values {at}..{} of {}", at + len, self.len);
        self.memory.address + (at * size_of::<T>()) as u64
    }

    /// Where the first `len` values lie.
    pub(super) fn first(&self, len: usize) -> u64 {
        self.at(0, len)
    }
}

/// An argument of a kernel: up to eight bytes.
#[derive(Debug, Clone, Copy)]
pub(super) struct Arg(u64);

impl From<u64> for Arg {
    fn from(value: u64) -> Self {
        Self(value)
    }
}
impl From<u32> for Arg {
    fn from(value: u32) -> Self {
        Self(value.into())
    }
}
impl From<usize> for Arg {
    /// Lengths are 32 bits wide on the device.
    fn from(value: usize) -> Self {
        Self(
            u32::try_from(value).unwrap_or_else(|_| panic!("{value} does not fit a kernel's 32 bits")).into(),
        )
    }
}
impl From<f32> for Arg {
    fn from(value: f32) -> Self {
        Self(value.to_bits().into())
    }
}

/// A loaded kernel.
#[derive(Debug, Clone, Copy)]
pub(super) struct Function(pub(super) sys::CUfunction);

// SAFETY: a handle into a module that lives as long as its `Program`.
unsafe impl Send for Function {}
// SAFETY: as above.
unsafe impl Sync for Function {}

impl Function {
    /// Lets the kernel use so many bytes of dynamic shared memory.
    ///
    /// # Errors
    /// When the device has not as much.
    pub(super) fn allow_shared(self, bytes: usize) -> Result<(), CudaError> {
        use sys::CUfunction_attribute_enum::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES as MOST;
        // SAFETY: the function is of a loaded module.
        unsafe { result::function::set_function_attribute(self.0, MOST, bytes as i32) }
            .doing("give a kernel shared memory")
    }
}

impl Device {
    /// Starts a kernel on `grid` blocks, none if there are none.
    ///
    /// # Safety
    /// The arguments are those of the kernel, and what they point to is as long as it wants.
    pub(super) unsafe fn launch<const N: usize>(
        &self,
        lane: Lane,
        function: Function,
        grid: usize,
        block: usize,
        shared: usize,
        args: [Arg; N],
    ) {
        if grid == 0 {
            return;
        }
        self.bind();
        // Little-endian: four bytes of the eight are where a four-byte argument is looked for.
        let mut pointers: [*mut c_void; N] =
            std::array::from_fn(|i| (&raw const args[i].0).cast_mut().cast());
        let (grid, block) = ((grid as u32, 1, 1), (block as u32, 1, 1));
        // SAFETY: by contract; the driver copies the arguments before it returns.
        unsafe {
            result::launch_kernel(function.0, grid, block, shared as u32, self.stream(lane), &mut pointers)
        }
        .certain("start a kernel");
    }
}
