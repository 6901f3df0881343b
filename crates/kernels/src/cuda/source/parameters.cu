// What happens to the trained values: their layout for products, the size of their gradient, the step.

constexpr u32 VALUES = 4;

extern "C" __global__ void adamw(f32* parameters, const f32* gradients, f32* first, f32* second, u32 len, f32 size, f32 root,
                                 f32 keep, f32 beta1, f32 beta2, f32 eps, f32 gradient_scale) {
    u32 base = blockIdx.x * blockDim.x * VALUES + threadIdx.x;
#pragma unroll
    for (u32 i = 0; i < VALUES; i++) {
        u32 at = base + i * blockDim.x;
        if (at >= len) return;
        f32 g = gradients[at] * gradient_scale;
        f32 m = fmaf(beta1, first[at], (1.0f - beta1) * g);
        f32 v = fmaf(beta2, second[at], (1.0f - beta2) * g * g);
        first[at] = m;
        second[at] = v;
        parameters[at] = fmaf(-size, m / fmaf(sqrtf(v), root, eps), parameters[at] * keep);
    }
}

extern "C" __global__ void square_sum(f64* parts, const f32* values, u32 len) {
    f64 sum = 0.0;
    for (u64 at = blockIdx.x * blockDim.x + threadIdx.x; at < len; at += gridDim.x * blockDim.x)
        sum += f64(values[at]) * f64(values[at]);
    sum = block_fold(sum, Add());
    if (threadIdx.x == 0) parts[blockIdx.x] = sum;
}

// One LoRA pair, as the words of `slots` give it.
struct Slot {
    u32 row, rows, rank, a, b;
};

// One layer with LoRA: its matrices, its slots, and the first block that works on it.
struct Layer {
    bf16* a;
    bf16* b;
    const Slot* slots;
    u32 count, inputs, outputs, width;
    u64 first;
};

extern "C" __global__ void refresh(const Layer* layers, u32 count, const f32* parameters) {
    u32 low = 0, high = count;
    while (high - low > 1) {
        u32 middle = (low + high) / 2;
        if (layers[middle].first <= blockIdx.x)
            low = middle;
        else
            high = middle;
    }
    Layer layer = layers[low];
    u32 base = u32(blockIdx.x - layer.first) * blockDim.x * VALUES + threadIdx.x;
    u32 a_len = layer.width * layer.inputs, len = a_len + layer.width * layer.outputs;
#pragma unroll
    for (u32 i = 0; i < VALUES; i++) {
        u32 at = base + i * blockDim.x;
        if (at >= len) return;
        bool is_a = at < a_len;
        u32 row = is_a ? at / layer.inputs : (at - a_len) / layer.width;
        u32 column = is_a ? at % layer.inputs : (at - a_len) % layer.width;
        u32 first = 0, rank = is_a ? row : column;
        f32 value = 0.0f;
        for (u32 s = 0; s < layer.count; s++) {
            Slot slot = layer.slots[s];
            if (rank >= first && rank < first + slot.rank) {
                u32 r = rank - first;
                if (is_a)
                    value = parameters[slot.a + u64(r) * layer.inputs + column];
                else if (row >= slot.row && row < slot.row + slot.rows)
                    value = parameters[slot.b + u64(row - slot.row) * slot.rank + r];
            }
            first += slot.rank;
        }
        if (is_a)
            layer.a[at] = narrow(value);
        else
            layer.b[at - a_len] = narrow(value);
    }
}

// The values of a matrix, rounded; `shared` is a row that is added to each, or null.
extern "C" __global__ void repack(bf16* to, const f32* from, const f32* shared, u32 len, u32 width) {
    u32 base = blockIdx.x * blockDim.x * LANES + threadIdx.x;
#pragma unroll
    for (u32 i = 0; i < LANES; i++) {
        u32 at = base + i * blockDim.x;
        if (at >= len) return;
        to[at] = narrow(shared ? from[at] + shared[at % width] : from[at]);
    }
}

// What a block of `sum_columns` sums.
constexpr u32 SUM_COLUMNS = 32;
constexpr u32 SUM_ROWS = 256;
constexpr u32 SUM_WARPS = 8;

// Of each chunk of rows and each column two parts: the sum of the values, and of the values times the factors.
template <typename T>
__device__ void sum_parts(f32* parts, const T* values, const bf16* factors, u32 rows, u32 width) {
    __shared__ f32 found[2][SUM_WARPS][SUM_COLUMNS];
    u32 tiles = (width + SUM_COLUMNS - 1) / SUM_COLUMNS, chunk = blockIdx.x / tiles;
    u32 lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    u32 column = blockIdx.x % tiles * SUM_COLUMNS + lane;
    u32 end = min(rows, (chunk + 1) * SUM_ROWS);
    f32 sum = 0.0f, product = 0.0f;
    if (column < width)
        for (u32 row = chunk * SUM_ROWS + warp; row < end; row += SUM_WARPS) {
            u64 at = u64(row) * width + column;
            f32 value = read_one(values + at);
            sum += value;
            if (factors) product = fmaf(value, widen(factors[at]), product);
        }
    found[0][warp][lane] = sum, found[1][warp][lane] = product;
    __syncthreads();
    if (warp < 2 && column < width) {
        f32 total = 0.0f;
        for (u32 i = 0; i < SUM_WARPS; i++) total += found[warp][i][lane];
        parts[(u64(chunk) * 2 + warp) * width + column] = total;
    }
}

extern "C" __global__ void sum_columns(f32* parts, const bf16* values, const bf16* factors, u32 rows, u32 width) {
    sum_parts(parts, values, factors, rows, width);
}

extern "C" __global__ void sum_norm_columns(f32* parts, const f32* values, const bf16* factors, u32 rows, u32 width) {
    sum_parts(parts, values, factors, rows, width);
}

extern "C" __global__ void add_columns(f32* sums, f32* products, const f32* parts, u32 chunks, u32 width) {
    u32 column = blockIdx.x * blockDim.x + threadIdx.x;
    if (column >= width) return;
    f32 sum = 0.0f, product = 0.0f;
    for (u32 chunk = 0; chunk < chunks; chunk++) {
        const f32* part = parts + u64(chunk) * 2 * width + column;
        sum += part[0], product += part[width];
    }
    if (sums) sums[column] += sum;
    if (products) products[column] += product;
}

// `to[index[t]] += from[t]`: a block for each row, of which the first that names an index adds all that do, in order.
extern "C" __global__ void __launch_bounds__(128) add_rows(f32* to, const f32* from, const u32* index, u32 rows, u32 width) {
    __shared__ u32 found[128], counts[4];
    u32 own = blockIdx.x, target = index[own], lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    bool earlier = false;
    for (u32 row = threadIdx.x; row < own; row += blockDim.x) earlier |= index[row] == target;
    if (__syncthreads_or(earlier)) return;
    to += u64(target) * width;
    for (u32 first = own; first < rows; first += blockDim.x) {
        u32 row = first + threadIdx.x;
        bool hit = row < rows && index[row] == target;
        u32 hits = __ballot_sync(0xffffffffu, hit);
        if (lane == 0) counts[warp] = __popc(hits);
        __syncthreads();
        u32 place = __popc(hits & ((1u << lane) - 1)), total = 0;
        for (u32 i = 0; i < 4; i++) {
            if (i < warp) place += counts[i];
            total += counts[i];
        }
        if (hit) found[place] = row;
        __syncthreads();
        if (total == 0) continue;
        for (u32 c = threadIdx.x; c < width; c += blockDim.x) {
            f32 sum = to[c];
            for (u32 i = 0; i < total; i++) sum += from[u64(found[i]) * width + c];
            to[c] = sum;
        }
    }
}
