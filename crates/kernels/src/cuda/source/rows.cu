// Ops whose rows stand alone: memory-bound, one pass over the values each.

// Eight columns of a row that are whole when the row's width is a multiple of eight.
struct Columns {
    u32 width;
    bool aligned;
    __device__ explicit Columns(u32 width) : width(width), aligned(width % LANES == 0) {}
    __device__ u32 count(u32 column) const { return min(width - column, LANES); }
};

extern "C" __global__ void embed(f32* x, const u8* table, u32 format, const u32* index, u32 rows, u32 width, u32 add) {
    u32 row = blockIdx.x;
    Columns columns(width);
    x += u64(row) * width;
    u64 first = u64(index[row]) * width;
    for (u32 c = threadIdx.x * LANES; c < width; c += blockDim.x * LANES) {
        f32 values[LANES], sums[LANES];
        u32 count = columns.count(c);
        if (format == BF16)
            read_some(values, reinterpret_cast<const bf16*>(table) + first + c, count, columns.aligned);
        else
            read_block(values, table, format, first + c);
        if (format != BF16)
#pragma unroll
            for (u32 i = 0; i < LANES; i++) values[i] = widen(narrow(values[i]));
        if (add) {
            read_some(sums, x + c, count, columns.aligned);
#pragma unroll
            for (u32 i = 0; i < LANES; i++) values[i] += sums[i];
        }
        write_some(x + c, values, count, columns.aligned);
    }
}

template <typename T>
__device__ void gather(T* to, const T* from, const u32* index, u32 width) {
    u32 row = blockIdx.x, source = index[row];
    to += u64(row) * width;
    from += u64(source == NONE ? 0 : source) * width;
    constexpr u32 PIECE = 16 / sizeof(T);
    if (width % PIECE == 0) {
        uint4* wide_to = reinterpret_cast<uint4*>(to);
        const uint4* wide_from = reinterpret_cast<const uint4*>(from);
        for (u32 c = threadIdx.x; c < width / PIECE; c += blockDim.x)
            wide_to[c] = source == NONE ? make_uint4(0, 0, 0, 0) : wide_from[c];
    } else {
        for (u32 c = threadIdx.x; c < width; c += blockDim.x) to[c] = source == NONE ? T{} : from[c];
    }
}

extern "C" __global__ void gather_wide(f32* to, const f32* from, const u32* index, u32 rows, u32 width) {
    gather(to, from, index, width);
}

extern "C" __global__ void gather_narrow(bf16* to, const bf16* from, const u32* index, u32 rows, u32 width) {
    gather(to, from, index, width);
}

// `unit * weight + bias` for some columns.
__device__ __forceinline__ void affine(f32 (&values)[LANES], const f32* weight, const f32* bias, u32 column, u32 count,
                                       bool whole) {
    f32 factors[LANES], offsets[LANES];
    read_some(factors, weight + column, count, whole);
    if (bias) read_some(offsets, bias + column, count, whole);
#pragma unroll
    for (u32 i = 0; i < LANES; i++) values[i] = bias ? fmaf(values[i], factors[i], offsets[i]) : values[i] * factors[i];
}

extern "C" __global__ void __launch_bounds__(256) norm_forward(bf16* h, bf16* unit, f32* rstd, const f32* x, const f32* weight,
                                                               const f32* bias, f32 eps, u32 center, u32 rows, u32 width) {
    u32 row = blockIdx.x;
    Columns columns(width);
    x += u64(row) * width, h += u64(row) * width, unit += u64(row) * width;
    // A thread's first columns stay in registers; wider rows are read again.
    f32 kept[LANES];
    u32 first = threadIdx.x * LANES;
    bool own = first < width;
    if (own) read_some(kept, x + first, columns.count(first), columns.aligned);
    f32 mean = 0.0f;
    if (center) {
        f32 sum = 0.0f;
        for (u32 c = first; c < width; c += blockDim.x * LANES) {
            f32 values[LANES];
            if (c > first) read_some(values, x + c, columns.count(c), columns.aligned);
#pragma unroll
            for (u32 i = 0; i < LANES; i++) sum += c > first ? values[i] : kept[i];
        }
        mean = block_fold(sum, Add()) / f32(width);
    }
    f32 square = 0.0f;
    for (u32 c = first; c < width; c += blockDim.x * LANES) {
        f32 values[LANES];
        u32 count = columns.count(c);
        if (c > first) read_some(values, x + c, count, columns.aligned);
#pragma unroll
        for (u32 i = 0; i < LANES; i++) {
            f32 from_mean = (c > first ? values[i] : kept[i]) - mean;
            if (i < count) square = fmaf(from_mean, from_mean, square);
        }
    }
    f32 scale = 1.0f / sqrtf(block_fold(square, Add()) / f32(width) + eps);
    if (threadIdx.x == 0) rstd[row] = scale;
    for (u32 c = first; c < width; c += blockDim.x * LANES) {
        f32 values[LANES];
        u32 count = columns.count(c);
        if (c > first) read_some(values, x + c, count, columns.aligned);
#pragma unroll
        for (u32 i = 0; i < LANES; i++) values[i] = ((c > first ? values[i] : kept[i]) - mean) * scale;
        write_some(unit + c, values, count, columns.aligned);
        affine(values, weight, bias, c, count, columns.aligned);
        write_some(h + c, values, count, columns.aligned);
    }
}

extern "C" __global__ void __launch_bounds__(256) norm_again(bf16* h, const bf16* unit, const f32* weight, const f32* bias,
                                                             u32 rows, u32 width) {
    u32 row = blockIdx.x;
    Columns columns(width);
    h += u64(row) * width, unit += u64(row) * width;
    for (u32 c = threadIdx.x * LANES; c < width; c += blockDim.x * LANES) {
        f32 values[LANES];
        u32 count = columns.count(c);
        read_some(values, unit + c, count, columns.aligned);
        affine(values, weight, bias, c, count, columns.aligned);
        write_some(h + c, values, count, columns.aligned);
    }
}

extern "C" __global__ void __launch_bounds__(256) norm_backward(bf16* rounded, f32* d_x, const f32* d_h, const bf16* unit, const f32* rstd,
                                                                const f32* weight, u32 center, u32 rows, u32 width) {
    u32 row = blockIdx.x;
    Columns columns(width);
    d_x += u64(row) * width, d_h += u64(row) * width, unit += u64(row) * width;
    f32 kept_u[LANES], kept_unit[LANES];
    u32 first = threadIdx.x * LANES;
    f32 sum = 0.0f, dot = 0.0f;
    for (u32 c = first; c < width; c += blockDim.x * LANES) {
        f32 u[LANES], units[LANES], factors[LANES];
        u32 count = columns.count(c);
        read_some(u, d_h + c, count, columns.aligned);
        read_some(units, unit + c, count, columns.aligned);
        read_some(factors, weight + c, count, columns.aligned);
#pragma unroll
        for (u32 i = 0; i < LANES; i++) {
            u[i] *= factors[i];
            sum += u[i];
            dot = fmaf(u[i], units[i], dot);
            if (c == first) kept_u[i] = u[i], kept_unit[i] = units[i];
        }
    }
    f32 mean = center ? block_fold(sum, Add()) / f32(width) : 0.0f;
    dot = block_fold(dot, Add()) / f32(width);
    f32 scale = rstd[row];
    for (u32 c = first; c < width; c += blockDim.x * LANES) {
        f32 u[LANES], units[LANES], factors[LANES], values[LANES];
        u32 count = columns.count(c);
        if (c > first) {
            read_some(u, d_h + c, count, columns.aligned);
            read_some(units, unit + c, count, columns.aligned);
            read_some(factors, weight + c, count, columns.aligned);
        }
        read_some(values, d_x + c, count, columns.aligned);
#pragma unroll
        for (u32 i = 0; i < LANES; i++) {
            f32 slope = c > first ? u[i] * factors[i] : kept_u[i];
            f32 value = c > first ? units[i] : kept_unit[i];
            values[i] = fmaf(scale, slope - mean - value * dot, values[i]);
        }
        write_some(d_x + c, values, count, columns.aligned);
        if (rounded) write_some(rounded + u64(row) * width + c, values, count, columns.aligned);
    }
}

// `(a, b) -> (a cos - b sin, b cos + a sin)` for `a = x[i]`, `b = x[i + D/2]`.
extern "C" __global__ void rotary(bf16* qkv, const f32* table, const u32* positions, u32 rotated, u32 head_dim, u32 stride,
                                  u32 rows, f32 sign) {
    u32 half = head_dim / 2, row = blockIdx.x;
    qkv += u64(row) * stride;
    const f32* angles = table + u64(positions[row]) * head_dim;
    bool whole = half % LANES == 0 && stride % LANES == 0;
    u32 pieces = (half + LANES - 1) / LANES;
    for (u32 i = threadIdx.x; i < rotated * pieces; i += blockDim.x) {
        u32 column = i % pieces * LANES, count = min(half - column, LANES);
        bf16* left = qkv + i / pieces * head_dim + column;
        bf16* right = left + half;
        f32 a[LANES], b[LANES], cosines[LANES], sines[LANES];
        read_some(a, left, count, whole);
        read_some(b, right, count, whole);
        read_some(cosines, angles + column, count, whole);
        read_some(sines, angles + half + column, count, whole);
#pragma unroll
        for (u32 j = 0; j < LANES; j++) {
            f32 sine = sign * sines[j], first = a[j];
            a[j] = first * cosines[j] - b[j] * sine;
            b[j] = fmaf(first, sine, b[j] * cosines[j]);
        }
        write_some(left, a, count, whole);
        write_some(right, b, count, whole);
    }
}

extern "C" __global__ void store_kv(bf16* cache, const bf16* qkv, const u32* kv_rows, u32 rows, u32 qkv_width, u32 q_width) {
    u32 row = blockIdx.x, width = qkv_width - q_width, target = kv_rows[row];
    if (target == NONE) return;
    cache += u64(target) * width;
    qkv += u64(row) * qkv_width + q_width;
    if (width % LANES == 0 && q_width % LANES == 0) {
        for (u32 c = threadIdx.x; c < width / LANES; c += blockDim.x)
            reinterpret_cast<uint4*>(cache)[c] = reinterpret_cast<const uint4*>(qkv)[c];
    } else {
        for (u32 c = threadIdx.x; c < width; c += blockDim.x) cache[c] = qkv[c];
    }
}

extern "C" __global__ void round_wide(bf16* to, const f32* from, u32 len) {
    Piece piece = flat_piece(len);
    f32 values[LANES];
    read_some(values, from + piece.at, piece.count, piece.whole);
    write_some(to + piece.at, values, piece.count, piece.whole);
}

extern "C" __global__ void widen(f32* to, const bf16* from, u32 len) {
    Piece piece = flat_piece(len);
    f32 values[LANES];
    read_some(values, from + piece.at, piece.count, piece.whole);
    write_some(to + piece.at, values, piece.count, piece.whole);
}

// Where `exp` overflows, the quotient is 0 as it should be.
__device__ __forceinline__ f32 sigmoid(f32 z) { return __fdividef(1.0f, 1.0f + __expf(-z)); }

// Where a value of `(rows, width)` has its gate in rows of `2 * width`; its up is `width` further.
__device__ __forceinline__ u64 gates_at(u32 at, u32 width) { return u64(at / width) * 2 * width + at % width; }

// Gates and ups of a flat piece of `(rows, width)`, in rows of `2 * width`; the piece may go over the end of a row.
__device__ __forceinline__ void read_pairs(f32 (&gates)[LANES], f32 (&ups)[LANES], const bf16* gate_up, Piece piece,
                                           u32 width) {
    if (piece.whole && width % LANES == 0) {
        const bf16* from = gate_up + gates_at(piece.at, width);
        read(gates, from);
        read(ups, from + width);
        return;
    }
#pragma unroll
    for (u32 i = 0; i < LANES; i++) {
        const bf16* from = gate_up + gates_at(piece.at + i, width);
        gates[i] = i < piece.count ? read_one(from) : 0.0f;
        ups[i] = i < piece.count ? read_one(from + width) : 0.0f;
    }
}

extern "C" __global__ void gated(bf16* act, const bf16* gate_up, u32 rows, u32 width) {
    Piece piece = flat_piece(rows * width);
    f32 gates[LANES], ups[LANES];
    read_pairs(gates, ups, gate_up, piece, width);
#pragma unroll
    for (u32 i = 0; i < LANES; i++) ups[i] *= gates[i] * sigmoid(gates[i]);
    write_some(act + piece.at, ups, piece.count, piece.whole);
}

// In place: a thread reads its values before it writes them.
extern "C" __global__ void gated_backward(bf16* act, bf16* gate_up, u32 rows, u32 width) {
    Piece piece = flat_piece(rows * width);
    f32 gates[LANES], ups[LANES], slopes[LANES];
    read_some(slopes, act + piece.at, piece.count, piece.whole);
    read_pairs(gates, ups, gate_up, piece, width);
    f32 acts[LANES];
#pragma unroll
    for (u32 i = 0; i < LANES; i++) {
        f32 z = gates[i], s = sigmoid(z), silu = z * s, d = slopes[i];
        acts[i] = silu * ups[i];
        gates[i] = d * ups[i] * s * (1.0f + z * (1.0f - s));
        ups[i] = d * silu;
    }
    write_some(act + piece.at, acts, piece.count, piece.whole);
    if (piece.whole && width % LANES == 0) {
        bf16* to = gate_up + gates_at(piece.at, width);
        write(to, gates);
        write(to + width, ups);
        return;
    }
#pragma unroll
    for (u32 i = 0; i < LANES; i++) {
        if (i >= piece.count) return;
        bf16* to = gate_up + gates_at(piece.at + i, width);
        write_one(to, gates[i]), write_one(to + width, ups[i]);
    }
}

struct Curve {
    f32 value, slope;
};

// GELU and its slope, by the normal distribution or by its approximation.
__device__ __forceinline__ Curve gelu(f32 z, u32 tanh) {
    if (tanh) {
        f32 s = sigmoid(1.595769f * z * fmaf(0.044715f * z, z, 1.0f));
        f32 inner = 1.595769f * fmaf(3.0f * 0.044715f * z, z, 1.0f);
        return {z * s, s + z * s * (1.0f - s) * inner};
    }
    f32 phi = 0.5f * erfcf(-0.70710678f * z);
    return {z * phi, fmaf(z * 0.39894228f, expf(-0.5f * z * z), phi)};
}

extern "C" __global__ void activation(bf16* act, const bf16* up, u32 tanh, u32 len) {
    Piece piece = flat_piece(len);
    f32 values[LANES];
    read_some(values, up + piece.at, piece.count, piece.whole);
#pragma unroll
    for (u32 i = 0; i < LANES; i++) values[i] = gelu(values[i], tanh).value;
    write_some(act + piece.at, values, piece.count, piece.whole);
}

extern "C" __global__ void activation_backward(bf16* act, bf16* up, u32 tanh, u32 len) {
    Piece piece = flat_piece(len);
    f32 values[LANES], slopes[LANES];
    read_some(values, up + piece.at, piece.count, piece.whole);
    read_some(slopes, act + piece.at, piece.count, piece.whole);
#pragma unroll
    for (u32 i = 0; i < LANES; i++) {
        Curve curve = gelu(values[i], tanh);
        values[i] = curve.value;
        slopes[i] *= curve.slope;
    }
    write_some(act + piece.at, values, piece.count, piece.whole);
    write_some(up + piece.at, slopes, piece.count, piece.whole);
}

template <typename T>
__device__ __forceinline__ void add_bias(T* y, const f32* bias, u32 len, u32 width) {
    Piece piece = flat_piece(len);
    bool whole = piece.whole && width % LANES == 0;
    f32 values[LANES], offsets[LANES];
    read_some(values, y + piece.at, piece.count, piece.whole);
    if (whole)
        read(offsets, bias + piece.at % width);
    else
#pragma unroll
        for (u32 i = 0; i < LANES; i++) offsets[i] = bias[(piece.at + i) % width];
#pragma unroll
    for (u32 i = 0; i < LANES; i++) values[i] += offsets[i];
    write_some(y + piece.at, values, piece.count, piece.whole);
}

extern "C" __global__ void add_bias_narrow(bf16* y, const f32* bias, u32 rows, u32 width) {
    add_bias(y, bias, rows * width, width);
}

extern "C" __global__ void add_bias_wide(f32* y, const f32* bias, u32 rows, u32 width) {
    add_bias(y, bias, rows * width, width);
}
