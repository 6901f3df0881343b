// The gate of a feed-forward layer with LoRA's share of the products around it: their outputs are read once. For ranks
// of 16; sums by the products of a warp (PTX, mma.m16n8k16; for the fragments see attention.cu).
//
// A warp has 32 columns and goes through rows 16 at a time. So that a lane's values lie side by side, column `2t + e` of
// its `j`-th product of eight columns is column `8t + 2j + e` of the 32.

#if __CUDA_ARCH__ >= 800 && !defined(F16)

constexpr u32 RANK = 16;
constexpr u32 TILE_ROWS = 16;
constexpr u32 TILE_COLUMNS = 32;
constexpr u32 GATE_WARPS = 8;
// Of the gates' B, the ups' B, and A of the product behind them.
constexpr u32 PART_ROWS = 3 * RANK;

typedef u32 Left[4];
typedef u32 Right[2];

__device__ __forceinline__ void multiply(f32 (&sum)[4], const Left& a, const Right& b) {
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
                 : "+f"(sum[0]), "+f"(sum[1]), "+f"(sum[2]), "+f"(sum[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

// Rows and columns of eight by eight values change places.
__device__ __forceinline__ u32 turn(u32 word) {
    u32 turned;
    asm volatile("movmatrix.sync.aligned.m8n8.trans.b16 %0, %1;" : "=r"(turned) : "r"(word));
    return turned;
}

__device__ __forceinline__ u32 word_at(const bf16* from) { return *reinterpret_cast<const u32*>(from); }

// 16 rows of `mid` from `from` on, in rows of `width`.
__device__ __forceinline__ void load_mid(Left& left, const bf16* from, u32 width, u32 lane) {
    const bf16* row = from + lane / 4 * width + lane % 4 * 2;
    left[0] = word_at(row), left[1] = word_at(row + 8 * width);
    left[2] = word_at(row + 8), left[3] = word_at(row + 8 * width + 8);
}

// The same with rows and columns exchanged.
__device__ __forceinline__ void turn_mid(Left& turned, const Left& left) {
    turned[0] = turn(left[0]), turned[1] = turn(left[2]), turned[2] = turn(left[1]), turned[3] = turn(left[3]);
}

// What LoRA adds to 32 columns, rows of B `(O, 2 RANK)`: those from `from` on.
__device__ __forceinline__ void load_b(Right (&right)[4], const bf16* from, u32 lane) {
    u32 n = lane / 4;
#pragma unroll
    for (u32 j = 0; j < 4; j++) {
        const bf16* row = from + (n / 2 * 8 + 2 * j + n % 2) * 2 * RANK + lane % 4 * 2;
        right[j][0] = word_at(row), right[j][1] = word_at(row + 8);
    }
}

// The same of A `(RANK, width)`.
__device__ __forceinline__ void load_a(Right (&right)[4], const bf16* from, u32 width, u32 lane) {
    u32 n = lane / 4;
#pragma unroll
    for (u32 j = 0; j < 4; j++)
#pragma unroll
        for (u32 i = 0; i < 2; i++) {
            const bf16* at = from + u64(lane % 4 * 2 + 8 * i) * width + n / 2 * 8 + 2 * j + n % 2;
            right[j][i] = u32(at[0].bits) | u32(at[width].bits) << 16;
        }
}

// For the products with B itself: its columns as rows, of two products side by side.
__device__ __forceinline__ void turn_b(Right (&turned)[4], const Right (&right)[4]) {
#pragma unroll
    for (u32 i = 0; i < 4; i++)
#pragma unroll
        for (u32 k = 0; k < 2; k++) turned[i][k] = turn(right[i / 2 * 2 + k][i % 2]);
}

// For products of 32 columns with A: pairs of products of eight, each with the lower and the upper ranks.
__device__ __forceinline__ void load_a_columns(Right (&right)[4], const bf16* from, u32 width, u32 lane) {
#pragma unroll
    for (u32 i = 0; i < 4; i++) {
        const bf16* at = from + u64(lane / 4 + 8 * (i % 2)) * width + lane % 4 * 8 + i / 2 * 4;
        right[i][0] = word_at(at), right[i][1] = word_at(at + 2);
    }
}

// What the warps of a block have found of 16 rows of `(rows, RANKS)`, added up in order.
template <u32 RANKS>
struct MidSums {
    f32 of[GATE_WARPS][TILE_ROWS][RANKS];
    __device__ __forceinline__ void put(const f32 (&sums)[RANKS / 8][4], u32 lane) {
#pragma unroll
        for (u32 n = 0; n < RANKS / 8; n++)
#pragma unroll
            for (u32 i = 0; i < 2; i++)
                *reinterpret_cast<float2*>(&of[threadIdx.x / 32][lane / 4 + 8 * i][8 * n + lane % 4 * 2]) =
                    make_float2(sums[n][2 * i], sums[n][2 * i + 1]);
    }
    __device__ __forceinline__ void add_up(f32* to) const {
        u32 at = threadIdx.x * 2;
        if (at >= TILE_ROWS * RANKS) return;
        float2 sum = make_float2(0.0f, 0.0f);
#pragma unroll
        for (u32 warp = 0; warp < GATE_WARPS; warp++) {
            float2 one = *reinterpret_cast<const float2*>(&of[warp][at / RANKS][at % RANKS]);
            sum.x += one.x, sum.y += one.y;
        }
        *reinterpret_cast<float2*>(to + at) = sum;
    }
};

// Eight values of each of the two rows of a lane.
struct Pair {
    uint4 row[2];
    __device__ __forceinline__ void store(bf16* to, u64 eight_rows) const {
#pragma unroll
        for (u32 i = 0; i < 2; i++) *reinterpret_cast<uint4*>(to + i * eight_rows) = row[i];
    }
    __device__ __forceinline__ u32& word(u32 i, u32 j) { return j == 0 ? row[i].x : j == 1 ? row[i].y : j == 2 ? row[i].z : row[i].w; }
};

// What the lanes of a block read of `PAIRS` matrices, on its way while the rows before are worked on. Each lane gets what
// it has asked for itself, so that none waits for another.
template <u32 PAIRS>
struct Coming {
    uint4 of[2][PAIRS][2][32 * GATE_WARPS];
    __device__ __forceinline__ void ask(u32 round, u32 pair, const bf16* from, u64 eight_rows) {
#pragma unroll
        for (u32 i = 0; i < 2; i++) copy_async(&of[round % 2][pair][i][threadIdx.x], from + i * eight_rows, true);
    }
    __device__ __forceinline__ void take(Pair& pair, u32 round, u32 which) const {
#pragma unroll
        for (u32 i = 0; i < 2; i++) pair.row[i] = of[round % 2][which][i][threadIdx.x];
    }
};

// Ends what is asked for in this round; waits for what was asked for in the round before.
__device__ __forceinline__ void round_asked() { asm volatile("cp.async.commit_group;" ::: "memory"); }
__device__ __forceinline__ void round_before_wait() { asm volatile("cp.async.wait_group 1;" ::: "memory"); }

extern __shared__ uint4 shared_memory[];

// The values of the `j`-th product, in the order of its sum.
__device__ __forceinline__ void unpack(f32 (&values)[4], Pair& pair, u32 j) {
#pragma unroll
    for (u32 i = 0; i < 2; i++) values[2 * i] = low(pair.word(i, j)), values[2 * i + 1] = high(pair.word(i, j));
}

__device__ __forceinline__ f32 sigmoid(f32 z) { return __fdividef(1.0f, 1.0f + __expf(-z)); }

// `act = silu(gates) * ups`, with `gates, ups = gate_up + mid B^T`; `mids` gets, of each block of columns, the products
// of `act` with the A behind it, `(rows, RANK)`.
extern "C" __global__ void __launch_bounds__(32 * GATE_WARPS)
    gated_with_lora(bf16* act, f32* mids, const bf16* gate_up, const bf16* mid, const bf16* b, const bf16* a, u32 rows,
                    u32 width, u32 chunk) {
    __shared__ MidSums<RANK> found[2];
    u32 lane = threadIdx.x % 32, blocks = width / (GATE_WARPS * TILE_COLUMNS);
    u32 first = (blockIdx.x % blocks * GATE_WARPS + threadIdx.x / 32) * TILE_COLUMNS, column = first + lane % 4 * 8;
    Right gate_b[4], up_b[4], down_a[4];
    load_b(gate_b, b + u64(first) * 2 * RANK, lane);
    load_b(up_b, b + u64(width + first) * 2 * RANK + RANK, lane);
    load_a_columns(down_a, a + first, width, lane);
    mids += u64(blockIdx.x % blocks) * rows * RANK;
    u32 begin = blockIdx.x / blocks * chunk, end = min(rows, begin + chunk);
    auto& coming = *reinterpret_cast<Coming<2>*>(shared_memory);
    auto ask = [&](u32 row) {
        const bf16* from = gate_up + u64(row + lane / 4) * 2 * width + column;
        if (row < end) {
            coming.ask(row / TILE_ROWS, 0, from, u64(16) * width);
            coming.ask(row / TILE_ROWS, 1, from + width, u64(16) * width);
        }
        round_asked();
    };
    ask(begin);
    for (u32 row = begin; row < end; row += TILE_ROWS) {
        ask(row + TILE_ROWS);
        u64 own = row + lane / 4;
        Left gate_mid, up_mid;
        load_mid(gate_mid, mid + u64(row) * 2 * RANK, 2 * RANK, lane);
        load_mid(up_mid, mid + u64(row) * 2 * RANK + RANK, 2 * RANK, lane);
        Pair gates, ups;
        round_before_wait();
        coming.take(gates, row / TILE_ROWS, 0);
        coming.take(ups, row / TILE_ROWS, 1);
        Pair out;
        f32 mid_sums[2][4] = {};
#pragma unroll
        for (u32 j = 0; j < 4; j++) {
            f32 z[4], up[4];
            unpack(z, gates, j);
            unpack(up, ups, j);
            multiply(z, gate_mid, gate_b[j]);
            multiply(up, up_mid, up_b[j]);
#pragma unroll
            for (u32 i = 0; i < 4; i++) z[i] *= sigmoid(z[i]) * up[i];
            out.word(0, j) = pack(z[0], z[1]), out.word(1, j) = pack(z[2], z[3]);
            if (j % 2 == 0) continue;
            Left left = {out.word(0, j - 1), out.word(1, j - 1), out.word(0, j), out.word(1, j)};
#pragma unroll
            for (u32 n = 0; n < 2; n++) multiply(mid_sums[n], left, down_a[j - 1 + n]);
        }
        out.store(act + own * width + column, u64(8) * width);
        // The block's other sums are those of the rows before: no warp is two rounds ahead.
        auto& sums = found[row / TILE_ROWS % 2];
        sums.put(mid_sums, lane);
        __syncthreads();
        sums.add_up(mids + u64(row) * RANK);
    }
}

// In place: `gate_up` becomes the gradient of `gate_up + mid B^T`. `d_act` lacks `d_down A`, LoRA's share of the product
// behind the gate. For each chunk of rows `parts` gets the gradients of the gates' and the ups' B, and of that A, all
// `(RANK, width)`; `d_mids` gets, of each block of columns, the products of the gradient with B, `(rows, 2 RANK)`.
extern "C" __global__ void __launch_bounds__(32 * GATE_WARPS, 2)
    gated_with_lora_backward(bf16* gate_up, f32* parts, f32* d_mids, const bf16* d_act, const bf16* mid, const bf16* d_down,
                             const bf16* b, const bf16* a, u32 rows, u32 width, u32 chunk) {
    __shared__ MidSums<2 * RANK> found;
    // The matrices wait in shared memory, so that registers are left for two blocks.
    __shared__ uint2 matrices[3][4][32 * GATE_WARPS];
    u32 lane = threadIdx.x % 32, blocks = width / (GATE_WARPS * TILE_COLUMNS);
    u32 first = (blockIdx.x % blocks * GATE_WARPS + threadIdx.x / 32) * TILE_COLUMNS, column = first + lane % 4 * 8;
    {
        Right right[3][4];
        load_b(right[0], b + u64(first) * 2 * RANK, lane);
        load_b(right[1], b + u64(width + first) * 2 * RANK + RANK, lane);
        load_a(right[2], a + first, width, lane);
#pragma unroll
        for (u32 m = 0; m < 3; m++)
#pragma unroll
            for (u32 j = 0; j < 4; j++) matrices[m][j][threadIdx.x] = make_uint2(right[m][j][0], right[m][j][1]);
    }
    auto matrix = [&](Right& right, u32 m, u32 j) {
        uint2 words = matrices[m][j][threadIdx.x];
        right[0] = words.x, right[1] = words.y;
    };
    f32 d_gate_b[4][4] = {}, d_up_b[4][4] = {}, d_down_a[4][4] = {};
    d_mids += u64(blockIdx.x % blocks) * rows * 2 * RANK;
    u32 begin = blockIdx.x / blocks * chunk, end = min(rows, begin + chunk);
    u64 own = begin + lane / 4;
    bf16* at = gate_up + own * 2 * width + column;
    d_act += own * width + column;
    auto& coming = *reinterpret_cast<Coming<3>*>(shared_memory);
    auto ask = [&](u32 row, const bf16* gate, const bf16* slope) {
        if (row < end) {
            coming.ask(row / TILE_ROWS, 0, gate, u64(16) * width);
            coming.ask(row / TILE_ROWS, 1, gate + width, u64(16) * width);
            coming.ask(row / TILE_ROWS, 2, slope, u64(8) * width);
        }
        round_asked();
    };
    ask(begin, at, d_act);
    for (u32 row = begin; row < end; row += TILE_ROWS) {
        d_act += u64(TILE_ROWS) * width;
        ask(row + TILE_ROWS, at + u64(2 * TILE_ROWS) * width, d_act);
        Left gate_mid, up_mid, d_mid, turned_gate, turned_up, turned_down;
        load_mid(gate_mid, mid + u64(row) * 2 * RANK, 2 * RANK, lane);
        load_mid(up_mid, mid + u64(row) * 2 * RANK + RANK, 2 * RANK, lane);
        load_mid(d_mid, d_down + u64(row) * RANK, RANK, lane);
        turn_mid(turned_gate, gate_mid);
        turn_mid(turned_up, up_mid);
        turn_mid(turned_down, d_mid);
        Pair gates, ups, slopes;
        round_before_wait();
        coming.take(gates, row / TILE_ROWS, 0);
        coming.take(ups, row / TILE_ROWS, 1);
        coming.take(slopes, row / TILE_ROWS, 2);
        // Ranks of the gates, then of the ups.
        f32 d_mid_sums[4][4] = {};
#pragma unroll
        for (u32 j = 0; j < 4; j++) {
            f32 z[4], up[4], d[4];
            unpack(z, gates, j);
            unpack(up, ups, j);
            unpack(d, slopes, j);
            Right right;
            matrix(right, 0, j);
            multiply(z, gate_mid, right);
            matrix(right, 1, j);
            multiply(up, up_mid, right);
            matrix(right, 2, j);
            multiply(d, d_mid, right);
            f32 act[4];
#pragma unroll
            for (u32 i = 0; i < 4; i++) {
                f32 s = sigmoid(z[i]), silu = z[i] * s, slope = d[i];
                act[i] = silu * up[i];
                d[i] = slope * silu;
                z[i] = slope * up[i] * s * (1.0f + z[i] * (1.0f - s));
            }
            Right turned;
#pragma unroll
            for (u32 i = 0; i < 2; i++) {
                gates.word(i, j) = pack(z[2 * i], z[2 * i + 1]);
                turned[i] = turn(gates.word(i, j));
            }
            multiply(d_gate_b[j], turned_gate, turned);
#pragma unroll
            for (u32 i = 0; i < 2; i++) {
                ups.word(i, j) = pack(d[2 * i], d[2 * i + 1]);
                turned[i] = turn(ups.word(i, j));
            }
            multiply(d_up_b[j], turned_up, turned);
#pragma unroll
            for (u32 i = 0; i < 2; i++) turned[i] = turn(pack(act[2 * i], act[2 * i + 1]));
            multiply(d_down_a[j], turned_down, turned);
            if (j % 2 == 0) continue;
#pragma unroll
            for (u32 m = 0; m < 2; m++) {
                Pair& slope = m ? ups : gates;
                Left left = {slope.word(0, j - 1), slope.word(1, j - 1), slope.word(0, j), slope.word(1, j)};
                Right lower, upper;
                matrix(lower, m, j - 1);
                matrix(upper, m, j);
#pragma unroll
                for (u32 n = 0; n < 2; n++) {
                    right[0] = turn(lower[n]), right[1] = turn(upper[n]);
                    multiply(d_mid_sums[2 * m + n], left, right);
                }
            }
        }
        gates.store(at, u64(16) * width);
        ups.store(at + width, u64(16) * width);
        at += u64(2 * TILE_ROWS) * width;
        __syncthreads();
        found.put(d_mid_sums, lane);
        __syncthreads();
        found.add_up(d_mids + u64(row) * 2 * RANK);
    }
    parts += u64(blockIdx.x / blocks) * PART_ROWS * width + u64(lane / 4) * width + column;
#pragma unroll
    for (u32 i = 0; i < 2; i++) {
        f32* to = parts + u64(8 * i) * width;
#pragma unroll
        for (u32 j = 0; j < 4; j++) {
            *reinterpret_cast<float2*>(to + 2 * j) = make_float2(d_gate_b[j][2 * i], d_gate_b[j][2 * i + 1]);
            *reinterpret_cast<float2*>(to + RANK * width + 2 * j) = make_float2(d_up_b[j][2 * i], d_up_b[j][2 * i + 1]);
            *reinterpret_cast<float2*>(to + 2 * RANK * width + 2 * j) = make_float2(d_down_a[j][2 * i], d_down_a[j][2 * i + 1]);
        }
    }
}

constexpr u32 SUM_COLUMNS = 32;

// Adds the parts, in order, to the gradients: of B `(width, RANK)` twice, and of A `(RANK, width)`.
extern "C" __global__ void __launch_bounds__(256)
    sum_lora_parts(f32* d_gate_b, f32* d_up_b, f32* d_a, const f32* parts, u32 chunks, u32 width) {
    __shared__ f32 sums[2 * RANK][SUM_COLUMNS + 1];
    u32 x = threadIdx.x % SUM_COLUMNS, column = blockIdx.x * SUM_COLUMNS + x;
    for (u32 k = threadIdx.x / SUM_COLUMNS; k < PART_ROWS; k += 256 / SUM_COLUMNS) {
        const f32* from = parts + u64(k) * width + column;
        f32 sum = 0.0f;
        for (u32 chunk = 0; chunk < chunks; chunk++) sum += from[u64(chunk) * PART_ROWS * width];
        if (k < 2 * RANK)
            sums[k][x] = sum;
        else
            d_a[u64(k - 2 * RANK) * width + column] += sum;
    }
    __syncthreads();
    u64 first = u64(blockIdx.x) * SUM_COLUMNS * RANK;
    for (u32 i = threadIdx.x; i < SUM_COLUMNS * RANK; i += 256) {
        d_gate_b[first + i] += sums[i % RANK][i / RANK];
        d_up_b[first + i] += sums[RANK + i % RANK][i / RANK];
    }
}

// `mid = scale * (the sum of the parts, in order)`.
extern "C" __global__ void sum_mid_parts(bf16* mid, const f32* parts, f32 scale, u32 count, u32 len) {
    u32 at = (blockIdx.x * blockDim.x + threadIdx.x) * 4;
    if (at >= len) return;
    float4 sum = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
#pragma unroll 8
    for (u32 part = 0; part < count; part++) {
        float4 one = *reinterpret_cast<const float4*>(parts + u64(part) * len + at);
        sum.x += one.x, sum.y += one.y, sum.z += one.z, sum.w += one.w;
    }
    *reinterpret_cast<uint2*>(mid + at) = make_uint2(pack(scale * sum.x, scale * sum.y), pack(scale * sum.z, scale * sum.w));
}

#endif
