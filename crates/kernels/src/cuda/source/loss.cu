// Softmax over the vocabulary for a chunk of rows of logits.

constexpr f32 LEAST = -3.402823466e38f;

// The largest of some values, and the sum of `exp(value - max)`.
struct Sum {
    f32 max, sum;
};

// Of one row, in every thread of the block.
__device__ Sum sum_row(const f32* z, u32 vocabulary, bool aligned) {
    Sum sum = {LEAST, 0.0f};
    for (u32 c = threadIdx.x * LANES; c < vocabulary; c += blockDim.x * LANES) {
        f32 values[LANES];
        u32 count = min(vocabulary - c, LANES);
        read_some(values, z + c, count, aligned && count == LANES);
        f32 max = sum.max;
#pragma unroll
        for (u32 i = 0; i < LANES; i++)
            if (i < count) max = fmaxf(max, values[i]);
        sum.sum *= expf(sum.max - max);
        sum.max = max;
#pragma unroll
        for (u32 i = 0; i < LANES; i++)
            if (i < count) sum.sum += expf(values[i] - max);
    }
    f32 max = block_fold(sum.max, Max());
    return {max, block_fold(sum.sum * expf(sum.max - max), Add())};
}

extern "C" __global__ void __launch_bounds__(512) cross_entropy(f32* losses, f32* z, const u32* targets, const f32* weights,
                                                                u32 rows, u32 vocabulary, u32 stride) {
    u32 row = blockIdx.x, target = targets[row];
    f32 weight = weights[row];
    z += u64(row) * stride;
    bf16* d_z = reinterpret_cast<bf16*>(z);
    bool aligned = stride % LANES == 0;
    Sum sum = sum_row(z, vocabulary, aligned);
    f32 lse = sum.max + logf(sum.sum);
    if (threadIdx.x == 0) losses[row] = lse - z[target];
    f32 scale = weight / sum.sum;
    for (u32 first = 0; first < stride; first += blockDim.x * LANES) {
        f32 values[LANES];
        u32 c = first + threadIdx.x * LANES;
        u32 count = c < stride ? min(stride - c, LANES) : 0, real = c < vocabulary ? min(vocabulary - c, LANES) : 0;
        read_some(values, z + c, real, aligned && real == LANES);
#pragma unroll
        for (u32 i = 0; i < LANES; i++) {
            values[i] = i < real ? scale * expf(values[i] - sum.max) : 0.0f;
            if (c + i == target) values[i] -= weight;
        }
        // A gradient lies over values of a lower column, which have been read by now.
        __syncthreads();
        write_some(d_z + c, values, count, aligned && count == LANES);
    }
}

extern "C" __global__ void __launch_bounds__(512) log_sum_exp(f32* lse, const f32* z, u32 rows, u32 vocabulary, u32 stride) {
    u32 row = blockIdx.x;
    Sum sum = sum_row(z + u64(row) * stride, vocabulary, stride % LANES == 0);
    if (threadIdx.x == 0) lse[row] = sum.max + logf(sum.sum);
}

extern "C" __global__ void pick(f32* out, const f32* z, const f32* lse, const uint2* wanted, u32 count, u32 first, u32 rows,
                                u32 stride) {
    u32 i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= count) return;
    uint2 pair = wanted[i];
    u32 index = pair.x - first;
    if (pair.x == NONE || pair.x < first || index >= rows) return;
    out[i] = z[u64(index) * stride + pair.y] - lse[index];
}
