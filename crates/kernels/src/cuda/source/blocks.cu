// A matrix kept in the few bits of a file, as bf16 for a product.

extern "C" __global__ void expand(bf16* to, const u8* raw, u32 format, u64 len) {
    u64 at = (u64(blockIdx.x) * blockDim.x + threadIdx.x) * LANES;
    if (at >= len) return;
    f32 values[LANES];
    read_block(values, raw, format, at);
    write(to + at, values);
}
