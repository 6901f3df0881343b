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
