// Attention over a token tree, for one head size. The lists are made by plan.rs; see there for places and ranges.
//
// The rows of a block are pairs of a token and a query head that share a key/value head, tokens first: row `v` is
// token `v / group`, head `v % group`. So short segments fill tiles too, and keys are loaded once for all their heads.
//
// Fragments (PTX, mma.m16n8k16): with `g = lane / 4`, `t = lane % 4`, a lane holds of a sum (16, 8) the columns
// `2t, 2t + 1` of rows `g` and `g + 8`. Two such sums side by side, rounded, are the left operand (16, 16) of the
// next product.

constexpr u32 D = HEAD_SIZE;
constexpr u32 QUERY_TILE = 32;
constexpr u32 KEY_TILE = 64;
constexpr u32 ITEM_WORDS = 16;
// Ranges that stand in the item itself.
constexpr u32 ITEM_RANGES = 4;
// What a block of `attention_sum` adds up.
constexpr u32 SUM_KEYS = 2;

constexpr f32 LOG2_E = 1.44269504f;
#define INFINITE __int_as_float(0x7f800000)

// A list of ranges, of which the first ones save a walk through memory.
struct Ranges {
    uint2 first[ITEM_RANGES];
};

struct QueryItem {
    u32 row, tokens, place, total, first, ranges, unused[2];
    Ranges inner;
};

struct KeyItem {
    u32 row, keys, place, first, ranges, total, skip, part;
    Ranges inner;
};

struct SumItem {
    u32 row, keys, first, parts, unused[12];
};

static_assert(sizeof(QueryItem) == 4 * ITEM_WORDS && sizeof(KeyItem) == 4 * ITEM_WORDS && sizeof(SumItem) == 4 * ITEM_WORDS);

// The row of a list of ranges.
__device__ __forceinline__ u32 find(const Ranges& inner, const u32* ranges, u32 at) {
    u32 row = 0, begin = 0;
    bool found = false;
#pragma unroll
    for (u32 i = 0; i < ITEM_RANGES; i++) {
        uint2 range = inner.first[i];
        u32 from = at - begin;
        row = from < range.y ? range.x + from : row;
        found |= from < range.y;
        begin += range.y;
    }
    if (found) return row;
    while (at >= ranges[1]) {
        at -= ranges[1];
        ranges += 2;
    }
    return ranges[0] + at;
}

// Which keys a row at a place sees: from `first` on, up to `end`. A comparison is a single one, without branches.
struct Mask {
    u32 window, causal;
    __device__ __forceinline__ u32 first(u32 place) const {
        return causal && window && place + 1 > window ? place + 1 - window : 0;
    }
    __device__ __forceinline__ u32 end(u32 place, u32 total) const { return causal ? min(place + 1, total) : total; }
    // Under a causal mask a row sees a key that stands less than this before it; a key behind it wraps around.
    __device__ __forceinline__ u32 reach() const { return window ? window : 0x80000000u; }
};

// Base 2, as the hardware has it; 0 for -infinity.
__device__ __forceinline__ f32 exp2_fast(f32 x) {
    f32 value;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(value) : "f"(x));
    return value;
}

extern "C" __global__ void attention_sum(bf16* d_qkv, const f32* parts, const SumItem* items, u32 heads, u32 kv_heads) {
    constexpr u32 SLICES = KEY_TILE / SUM_KEYS;
    u32 slice = blockIdx.x % SLICES, head = blockIdx.x / SLICES % kv_heads;
    const SumItem& item = items[blockIdx.x / SLICES / kv_heads];
    u32 stride = (heads + 2 * kv_heads) * D;
    u64 step = u64(kv_heads) * 2 * KEY_TILE * D;
    const f32* from = parts + (u64(item.first) * kv_heads + head) * 2 * KEY_TILE * D;
    for (u32 i = threadIdx.x; i < 2 * SUM_KEYS * D; i += blockDim.x) {
        u32 value = i / (SUM_KEYS * D), key = slice * SUM_KEYS + i / D % SUM_KEYS, d = i % D;
        if (key >= item.keys) continue;
        const f32* at = from + (value * KEY_TILE + key) * D + d;
        f32 sum = 0.0f;
#pragma unroll 16
        for (u32 part = 0; part < item.parts; part++) sum += at[part * step];
        d_qkv[u64(item.row + key) * stride + (heads + value * kv_heads + head) * D + d] = narrow(sum);
    }
}

#if __CUDA_ARCH__ >= 800 && !defined(F16) && HEAD_SIZE % 16 == 0 && HEAD_SIZE <= 128

// Steps of 16 and of 8 columns in a head.
constexpr u32 STEPS = D / 16;
constexpr u32 PIECES = D / 8;
// Rows of shared memory are padded, so that eight of them lie in different banks.
constexpr u32 STRIDE = D + 8;
constexpr u32 TILE = KEY_TILE * STRIDE;
constexpr u32 QUERY_THREADS = 256;
constexpr u32 KEY_THREADS = 128;
// Keys and values of the backward pass over keys stay in registers where there is room.
constexpr bool KEEP = D <= 96;

typedef u32 Left[4];
typedef f32 Square[2][4];

__device__ __forceinline__ void multiply(f32 (&sum)[4], const Left& a, u32 b0, u32 b1) {
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
                 : "+f"(sum[0]), "+f"(sum[1]), "+f"(sum[2]), "+f"(sum[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

__device__ __forceinline__ u32 shared_address(const void* pointer) { return u32(__cvta_generic_to_shared(pointer)); }

__device__ __forceinline__ void load_matrices(u32 (&out)[4], const bf16* row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(out[0]), "=r"(out[1]), "=r"(out[2]), "=r"(out[3])
                 : "r"(shared_address(row))
                 : "memory");
}

__device__ __forceinline__ void load_transposed(u32 (&out)[4], const bf16* row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(out[0]), "=r"(out[1]), "=r"(out[2]), "=r"(out[3])
                 : "r"(shared_address(row))
                 : "memory");
}

// 16 bytes to shared memory, zeros where they are not `there`.
__device__ __forceinline__ void copy_async(bf16* to, const bf16* from, bool there) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;"
                 :
                 : "r"(shared_address(to)), "l"(__cvta_generic_to_global(from)), "r"(there ? 16 : 0)
                 : "memory");
}
__device__ __forceinline__ void copy_word_async(void* to, const void* from, bool there) {
    asm volatile("cp.async.ca.shared.global [%0], [%1], 4, %2;"
                 :
                 : "r"(shared_address(to)), "l"(__cvta_generic_to_global(from)), "r"(there ? 4 : 0)
                 : "memory");
}
__device__ __forceinline__ void copies_wait() { asm volatile("cp.async.wait_all;" ::: "memory"); }

// Adds `left tile^T` for the 16 rows of a tile: their products with the rows of `left`.
__device__ __forceinline__ void scores(Square& sum, const Left (&left)[STEPS], const bf16* tile, u32 lane) {
    const bf16* row = tile + (lane / 16 * 8 + lane % 8) * STRIDE + lane / 8 % 2 * 8;
#pragma unroll
    for (u32 k = 0; k < STEPS; k++) {
        u32 b[4];
        load_matrices(b, row + k * 16);
        multiply(sum[0], left[k], b[0], b[1]);
        multiply(sum[1], left[k], b[2], b[3]);
    }
}

// Adds `left tile` for 16 rows of a tile.
__device__ __forceinline__ void weigh(f32 (&sums)[PIECES][4], const Left& left, const bf16* tile, u32 lane) {
    const bf16* row = tile + (lane / 8 % 2 * 8 + lane % 8) * STRIDE + lane / 16 * 8;
#pragma unroll
    for (u32 n = 0; n < STEPS; n++) {
        u32 b[4];
        load_transposed(b, row + n * 16);
        multiply(sums[2 * n], left, b[0], b[1]);
        multiply(sums[2 * n + 1], left, b[2], b[3]);
    }
}

// Two sums side by side as the left operand of a product.
__device__ __forceinline__ void as_left(Left& left, const Square& sum) {
#pragma unroll
    for (u32 i = 0; i < 4; i++) left[i] = pack(sum[i / 2][i % 2 * 2], sum[i / 2][i % 2 * 2 + 1]);
}

// A left operand of 16 rows, from the addresses of this lane's two rows; zeros where there is none.
__device__ __forceinline__ void load_left(Left (&left)[STEPS], const bf16* upper, const bf16* lower, u32 lane) {
    u32 column = lane % 4 * 2;
#pragma unroll
    for (u32 k = 0; k < STEPS; k++)
#pragma unroll
        for (u32 i = 0; i < 4; i++) {
            const bf16* row = i % 2 ? lower : upper;
            left[k][i] = row ? *reinterpret_cast<const u32*>(row + k * 16 + i / 2 * 8 + column) : 0;
        }
}

// The rows of a block of the kernels over query items: what its warp works on, `together` of them with its neighbours.
struct QueryRows {
    u32 kv_head, lane;
    // The first of the rows together has a token.
    bool active;
    // This lane's two rows.
    bool there[2];
    u32 row[2], head[2];
    // The keys they see: `span` of them, from `least` on.
    u32 least[2], span[2];
    // Keys that the rows together look at; all of them see those before `full_end`.
    u32 begin, full_end, end;

    __device__ QueryRows(const QueryItem& item, u32 heads, u32 kv_heads, Mask mask, u32 block, u32 together) {
        u32 group = heads / kv_heads, chunks = (group + 3) / 4;
        kv_head = block / chunks % kv_heads, lane = threadIdx.x % 32;
        u32 chunk = block % chunks * min(group, 4) * QUERY_TILE, count = item.tokens * group;
        u32 own = threadIdx.x / 32 * 16, first = chunk + own / together * together;
        active = first < count;
#pragma unroll
        for (u32 i = 0; i < 2; i++) {
            u32 v = chunk + own + lane / 4 + 8 * i, token = v / group;
            there[i] = v < count;
            row[i] = item.row + token, head[i] = kv_head * group + v % group;
            least[i] = mask.first(item.place + token);
            span[i] = mask.end(item.place + token, item.total) - least[i];
        }
        u32 upper = item.place + first / group, lower = item.place + (min(first + together, count) - 1) / group;
        begin = mask.first(upper), end = mask.end(lower, item.total);
        full_end = mask.causal && mask.window ? 0 : mask.end(upper, item.total);
    }

    __device__ __forceinline__ bool sees(u32 i, u32 key) const { return key - least[i] < span[i]; }
};

// Loads keys `first..` of an item, as many as fit a tile and are before `end`, up to a multiple of 16.
__device__ __forceinline__ void load_keys(bf16* keys, bf16* values, const bf16* kv, u32 stride, u32 k_column, u32 v_column,
                                          const Ranges& inner, const u32* ranges, u32 first, u32 end) {
    u32 rows = min((end - first + 15) / 16 * 16, KEY_TILE);
    for (u32 i = threadIdx.x; i < rows * PIECES; i += blockDim.x) {
        u32 key = i / PIECES, column = i % PIECES * 8;
        bool there = first + key < end;
        const bf16* from = kv + (there ? u64(find(inner, ranges, first + key)) * stride : 0) + column;
        copy_async(keys + key * STRIDE + column, from + k_column, there);
        copy_async(values + key * STRIDE + column, from + v_column, there);
    }
}

extern __shared__ __align__(1024) uint4 shared_memory[];

extern "C" __global__ void __launch_bounds__(QUERY_THREADS)
    attention_forward(bf16* out, f32* lse, const bf16* qkv, const bf16* kv, u32 kv_stride, u32 k_column, u32 v_column,
                      const QueryItem* items, const u32* ranges, u32 heads, u32 kv_heads, u32 window, u32 causal, f32 scale) {
    u32 group = heads / kv_heads, per_item = kv_heads * ((group + 3) / 4);
    const QueryItem& item = items[blockIdx.x / per_item];
    if (item.tokens == 0) return;
    Mask mask = {window, causal};
    QueryRows rows(item, heads, kv_heads, mask, blockIdx.x % per_item, 16);
    ranges += 2 * item.first;
    bf16* tiles = reinterpret_cast<bf16*>(shared_memory);
    u32 lane = rows.lane, width = (heads + 2 * kv_heads) * D;
    k_column += rows.kv_head * D, v_column += rows.kv_head * D;

    u32 begin = mask.first(item.place) / KEY_TILE * KEY_TILE;
    u32 end = mask.end(item.place + item.tokens - 1, item.total);
    if (begin < end) load_keys(tiles, tiles + TILE, kv, kv_stride, k_column, v_column, item.inner, ranges, begin, end);

    Left q[STEPS];
    const bf16* q_row[2];
#pragma unroll
    for (u32 i = 0; i < 2; i++) q_row[i] = rows.there[i] ? qkv + u64(rows.row[i]) * width + rows.head[i] * D : nullptr;
    load_left(q, q_row[0], q_row[1], lane);

    f32 sums[PIECES][4] = {};
    f32 peak[2] = {-INFINITE, -INFINITE}, total[2] = {0.0f, 0.0f};
    f32 factor = scale * LOG2_E;
    for (u32 first = begin, stage = 0; first < end; first += KEY_TILE, stage ^= 1) {
        u32 next = first + KEY_TILE;
        bf16* keys = tiles + stage * 2 * TILE;
        // All warps are done with the tile before this one, whose place the next one takes.
        copies_wait();
        __syncthreads();
        if (next < end) {
            bf16* other = tiles + (stage ^ 1) * 2 * TILE;
            load_keys(other, other + TILE, kv, kv_stride, k_column, v_column, item.inner, ranges, next, end);
        }
        if (rows.active && first < rows.end && rows.begin < next) {
            Square s[KEY_TILE / 16];
#pragma unroll
            for (u32 n = 0; n < KEY_TILE / 16; n++) {
#pragma unroll
                for (u32 i = 0; i < 8; i++) s[n][i / 4][i % 4] = 0.0f;
                if (first + n * 16 < rows.end) scores(s[n], q, keys + n * 16 * STRIDE, lane);
            }
            bool masked = next > rows.full_end;
            f32 most[2] = {peak[0], peak[1]};
#pragma unroll
            for (u32 n = 0; n < KEY_TILE / 16; n++)
#pragma unroll
                for (u32 i = 0; i < 8; i++) {
                    u32 key = first + n * 16 + i / 4 * 8 + lane % 4 * 2 + i % 2, upper = i / 2 % 2;
                    f32& value = s[n][i / 4][i % 4];
                    if (masked) value = rows.sees(upper, key) ? value : -INFINITE;
                    most[upper] = fmaxf(most[upper], value);
                }
            f32 shift[2];
            bool moved = false;
#pragma unroll
            for (u32 i = 0; i < 2; i++) {
                most[i] = fmaxf(most[i], __shfl_xor_sync(0xffffffffu, most[i], 1));
                most[i] = fmaxf(most[i], __shfl_xor_sync(0xffffffffu, most[i], 2));
                moved |= most[i] != peak[i];
                // A row that has seen nothing yet keeps its zeros.
                f32 least = most[i] == -INFINITE ? 0.0f : most[i];
                shift[i] = exp2_fast((peak[i] - least) * factor);
                peak[i] = most[i];
                most[i] = -factor * least;
            }
            if (__any_sync(0xffffffffu, moved)) {
#pragma unroll
                for (u32 i = 0; i < 2; i++) {
                    total[i] *= shift[i];
#pragma unroll
                    for (u32 n = 0; n < PIECES; n++) sums[n][2 * i] *= shift[i], sums[n][2 * i + 1] *= shift[i];
                }
            }
#pragma unroll
            for (u32 n = 0; n < KEY_TILE / 16; n++) {
                if (first + n * 16 >= rows.end) continue;
#pragma unroll
                for (u32 i = 0; i < 8; i++) {
                    f32& value = s[n][i / 4][i % 4];
                    value = exp2_fast(fmaf(value, factor, most[i / 2 % 2]));
                    total[i / 2 % 2] += value;
                }
                Left p;
                as_left(p, s[n]);
                weigh(sums, p, keys + TILE + n * 16 * STRIDE, lane);
            }
        }
    }
#pragma unroll
    for (u32 i = 0; i < 2; i++) {
        total[i] += __shfl_xor_sync(0xffffffffu, total[i], 1);
        total[i] += __shfl_xor_sync(0xffffffffu, total[i], 2);
        if (!rows.there[i]) continue;
        f32 share = total[i] > 0.0f ? 1.0f / total[i] : 0.0f;
        bf16* to = out + (u64(rows.row[i]) * heads + rows.head[i]) * D + lane % 4 * 2;
#pragma unroll
        for (u32 n = 0; n < PIECES; n++)
            *reinterpret_cast<u32*>(to + n * 8) = pack(sums[n][2 * i] * share, sums[n][2 * i + 1] * share);
        if (lane % 4 == 0)
            lse[u64(rows.row[i]) * heads + rows.head[i]] = total[i] > 0.0f ? peak[i] * scale + logf(total[i]) : 0.0f;
    }
}

// What the backward pass needs of this lane's rows: queries, gradients, `lse` in base 2, and `delta`, which it writes too.
__device__ __forceinline__ void load_query(Left (&q)[STEPS], Left (&d)[STEPS], f32 (&shift)[2], f32 (&deltas)[2],
                                           const QueryRows& rows, f32* delta, const bf16* d_out, const bf16* out,
                                           const f32* lse, const bf16* qkv, u32 heads, u32 width) {
    u32 lane = rows.lane;
    const bf16 *q_row[2], *d_row[2];
#pragma unroll
    for (u32 i = 0; i < 2; i++) {
        u64 at = u64(rows.row[i]) * heads + rows.head[i];
        q_row[i] = rows.there[i] ? qkv + u64(rows.row[i]) * width + rows.head[i] * D : nullptr;
        d_row[i] = rows.there[i] ? d_out + at * D : nullptr;
        shift[i] = rows.there[i] ? lse[at] * LOG2_E : 0.0f;
    }
    load_left(q, q_row[0], q_row[1], lane);
    load_left(d, d_row[0], d_row[1], lane);
#pragma unroll
    for (u32 i = 0; i < 2; i++) {
        u64 at = u64(rows.row[i]) * heads + rows.head[i];
        f32 sum = 0.0f;
        if (rows.there[i])
#pragma unroll
            for (u32 n = 0; n < PIECES; n++) {
                u32 a = d[n / 2][n % 2 * 2 + i], b = *reinterpret_cast<const u32*>(out + at * D + n * 8 + lane % 4 * 2);
                sum = fmaf(low(a), low(b), fmaf(high(a), high(b), sum));
            }
        sum += __shfl_xor_sync(0xffffffffu, sum, 1);
        sum += __shfl_xor_sync(0xffffffffu, sum, 2);
        deltas[i] = sum;
        if (rows.there[i] && lane % 4 == 0) delta[at] = sum;
    }
}

extern "C" __global__ void __launch_bounds__(QUERY_THREADS)
    attention_backward_query(bf16* d_qkv, f32* delta, const bf16* d_out, const bf16* out, const f32* lse, const bf16* qkv,
                             const QueryItem* items, const u32* ranges, u32 heads, u32 kv_heads, u32 window, u32 causal,
                             f32 scale) {
    u32 group = heads / kv_heads, per_item = kv_heads * ((group + 3) / 4);
    const QueryItem& item = items[blockIdx.x / per_item];
    if (item.tokens == 0) return;
    Mask mask = {window, causal};
    QueryRows rows(item, heads, kv_heads, mask, blockIdx.x % per_item, 16);
    ranges += 2 * item.first;
    bf16* tiles = reinterpret_cast<bf16*>(shared_memory);
    u32 lane = rows.lane, width = (heads + 2 * kv_heads) * D;
    u32 k_column = (heads + rows.kv_head) * D, v_column = k_column + kv_heads * D;

    u32 begin = mask.first(item.place) / KEY_TILE * KEY_TILE;
    u32 end = mask.end(item.place + item.tokens - 1, item.total);
    if (begin < end) load_keys(tiles, tiles + TILE, qkv, width, k_column, v_column, item.inner, ranges, begin, end);

    Left q[STEPS], d[STEPS];
    f32 shift[2], deltas[2];
    load_query(q, d, shift, deltas, rows, delta, d_out, out, lse, qkv, heads, width);

    f32 sums[PIECES][4] = {};
    f32 factor = scale * LOG2_E;
    for (u32 first = begin, stage = 0; first < end; first += KEY_TILE, stage ^= 1) {
        u32 next = first + KEY_TILE;
        bf16* keys = tiles + stage * 2 * TILE;
        // All warps are done with the tile before this one, whose place the next one takes.
        copies_wait();
        __syncthreads();
        if (next < end) {
            bf16* other = tiles + (stage ^ 1) * 2 * TILE;
            load_keys(other, other + TILE, qkv, width, k_column, v_column, item.inner, ranges, next, end);
        }
        if (rows.active && first < rows.end && rows.begin < next) {
#pragma unroll
            for (u32 n = 0; n < KEY_TILE / 16; n++) {
                u32 key = first + n * 16;
                if (key >= rows.end) continue;
                Square s = {}, d_s = {};
                const bf16* part = keys + n * 16 * STRIDE;
                scores(s, q, part, lane);
                scores(d_s, d, part + TILE, lane);
                bool masked = key + 16 > rows.full_end;
#pragma unroll
                for (u32 i = 0; i < 8; i++) {
                    u32 at = key + i / 4 * 8 + lane % 4 * 2 + i % 2, upper = i / 2 % 2;
                    f32 p = exp2_fast(fmaf(s[i / 4][i % 4], factor, -shift[upper]));
                    if (masked) p = rows.sees(upper, at) ? p : 0.0f;
                    d_s[i / 4][i % 4] = p * (d_s[i / 4][i % 4] - deltas[upper]);
                }
                Left left;
                as_left(left, d_s);
                weigh(sums, left, part, lane);
            }
        }
    }
#pragma unroll
    for (u32 i = 0; i < 2; i++) {
        if (!rows.there[i]) continue;
        bf16* to = d_qkv + u64(rows.row[i]) * width + rows.head[i] * D + lane % 4 * 2;
#pragma unroll
        for (u32 n = 0; n < PIECES; n++)
            *reinterpret_cast<u32*>(to + n * 8) = pack(sums[n][2 * i] * scale, sums[n][2 * i + 1] * scale);
    }
}

// Which query rows a tile of the pass over keys holds; `NONE` behind the last one.
struct RowNames {
    u32 row[KEY_TILE], head[KEY_TILE];
};

// What it needs of them besides their values.
struct RowFacts {
    f32 lse[KEY_TILE], delta[KEY_TILE];
    u32 place[KEY_TILE];
};

extern "C" __global__ void __launch_bounds__(KEY_THREADS)
    attention_backward_key(bf16* d_qkv, f32* parts, const bf16* d_out, const f32* lse, const f32* delta, const bf16* qkv,
                           const KeyItem* items, const u32* ranges, const u32* places, u32 heads, u32 kv_heads, u32 window,
                           u32 causal, f32 scale) {
    const KeyItem& item = items[blockIdx.x / kv_heads];
    if (item.keys == 0) return;
    __shared__ RowFacts facts[2];
    __shared__ RowNames names[2];
    Mask mask = {window, causal};
    u32 kv_head = blockIdx.x % kv_heads, group = heads / kv_heads, width = (heads + 2 * kv_heads) * D;
    u32 lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    ranges += 2 * item.first;
    bf16* tiles = reinterpret_cast<bf16*>(shared_memory);
    bf16 *k_tile = tiles + 4 * TILE, *v_tile = k_tile + TILE;

    // Few keys leave warps over: they share out the rows instead, and the sums are added up at the end.
    u32 splits = item.keys <= 16 ? 4 : item.keys <= 32 ? 2 : 1, key_warps = 4 / splits;
    u32 split = warp / key_warps, first_key = warp % key_warps * 16;
    bool active = first_key < item.keys;

    u32 begin = (causal ? item.skip : 0) * group / 16 * 16, end = item.total * group;
    // Rows are looked up one tile before they are loaded, and loaded one tile before they are used.
    auto look_up = [&](u32 stage, u32 first) {
        if (threadIdx.x >= KEY_TILE) return;
        u32 at = first + threadIdx.x;
        names[stage].row[threadIdx.x] = at < end ? find(item.inner, ranges, at / group) : NONE;
        names[stage].head[threadIdx.x] = kv_head * group + at % group;
    };
    auto load = [&](u32 stage, u32 first) {
        bf16 *queries = tiles + stage * 2 * TILE, *d_outs = queries + TILE;
        u32 rows = min((end - first + 15) / 16 * 16, KEY_TILE);
        for (u32 i = threadIdx.x; i < rows * PIECES; i += KEY_THREADS) {
            u32 at = i / PIECES, column = i % PIECES * 8, to = at * STRIDE + column;
            bool there = names[stage].row[at] != NONE;
            u64 row = there ? names[stage].row[at] : 0, head = names[stage].head[at];
            copy_async(queries + to, qkv + row * width + head * D + column, there);
            copy_async(d_outs + to, d_out + (row * heads + head) * D + column, there);
        }
        // What is not there is zeros, which add nothing.
        u32 at = threadIdx.x;
        if (at >= rows) return;
        bool there = names[stage].row[at] != NONE;
        u64 row = there ? names[stage].row[at] : 0, value = row * heads + names[stage].head[at];
        copy_word_async(&facts[stage].lse[at], lse + value, there);
        copy_word_async(&facts[stage].delta[at], delta + value, there);
        copy_word_async(&facts[stage].place[at], places + row, there);
    };
    look_up(0, begin);
    if (begin + KEY_TILE < end) look_up(1, begin + KEY_TILE);
    __syncthreads();
    if (begin < end) load(0, begin);

    Left k[STEPS], v[STEPS];
    const bf16* first_column = qkv + (heads + kv_head) * D;
    if (KEEP) {
        const bf16* row[2];
#pragma unroll
        for (u32 i = 0; i < 2; i++) {
            u32 key = first_key + lane / 4 + 8 * i;
            row[i] = key < item.keys ? first_column + u64(item.row + key) * width : nullptr;
        }
        load_left(k, row[0], row[1], lane);
        load_left(v, row[0] ? row[0] + kv_heads * D : nullptr, row[1] ? row[1] + kv_heads * D : nullptr, lane);
    } else {
        for (u32 i = threadIdx.x; i < KEY_TILE * PIECES; i += KEY_THREADS) {
            u32 key = i / PIECES, column = i % PIECES * 8;
            bool there = key < item.keys;
            const bf16* from = first_column + u64(item.row + (there ? key : 0)) * width + column;
            copy_async(k_tile + key * STRIDE + column, from, there);
            copy_async(v_tile + key * STRIDE + column, from + kv_heads * D, there);
        }
    }

    f32 d_k[PIECES][4] = {}, d_v[PIECES][4] = {};
    f32 factor = scale * LOG2_E;
    u32 place = item.place + first_key + lane / 4;
    for (u32 first = begin, stage = 0; first < end; first += KEY_TILE, stage ^= 1) {
        u32 next = first + KEY_TILE;
        copies_wait();
        __syncthreads();
        if (next < end) load(stage ^ 1, next);
        if (next + KEY_TILE < end) look_up(stage, next + KEY_TILE);
        const bf16* queries = tiles + stage * 2 * TILE;
        const RowFacts& fact = facts[stage];
        // Only rows among the keys themselves may stand before one of them.
        bool masked = causal && (window || first < (item.skip + item.keys) * group);
        for (u32 n = split; n < KEY_TILE / 16; n += splits) {
            if (!active || first + n * 16 >= end) continue;
            const bf16* part = queries + n * 16 * STRIDE;
            Square s = {}, d_s = {};
            if (!KEEP) {
                const bf16* row = k_tile + (first_key + lane % 16) * STRIDE + lane / 16 * 8;
#pragma unroll
                for (u32 i = 0; i < STEPS; i++) load_matrices(k[i], row + i * 16);
            }
            scores(s, k, part, lane);
            if (!KEEP) {
                const bf16* row = v_tile + (first_key + lane % 16) * STRIDE + lane / 16 * 8;
#pragma unroll
                for (u32 i = 0; i < STEPS; i++) load_matrices(v[i], row + i * 16);
            }
            scores(d_s, v, part + TILE, lane);
#pragma unroll
            for (u32 i = 0; i < 8; i++) {
                u32 row = n * 16 + i / 4 * 8 + lane % 4 * 2 + i % 2, upper = i / 2 % 2;
                f32 p = exp2_fast(fmaf(s[i / 4][i % 4], factor, -LOG2_E * fact.lse[row]));
                if (masked) p = fact.place[row] - (place + 8 * upper) < mask.reach() ? p : 0.0f;
                s[i / 4][i % 4] = p;
                d_s[i / 4][i % 4] = p * (d_s[i / 4][i % 4] - fact.delta[row]);
            }
            Left left;
            as_left(left, s);
            weigh(d_v, left, part + TILE, lane);
            as_left(left, d_s);
            weigh(d_k, left, part, lane);
        }
    }

    // The splits' sums go to the first one, in order, through what was the tiles' memory.
    if (splits > 1) {
        f32* buffer = reinterpret_cast<f32*>(shared_memory) + (warp % key_warps * 32 + lane);
        for (u32 from = 1; from < splits; from++) {
            __syncthreads();
#pragma unroll
            for (u32 n = 0; n < PIECES * 4; n++) {
                f32 &a = d_k[n / 4][n % 4], &b = d_v[n / 4][n % 4];
                if (split == from) buffer[2 * n * 64] = a, buffer[(2 * n + 1) * 64] = b;
            }
            __syncthreads();
#pragma unroll
            for (u32 n = 0; n < PIECES * 4; n++) {
                f32 &a = d_k[n / 4][n % 4], &b = d_v[n / 4][n % 4];
                if (split == 0) a += buffer[2 * n * 64], b += buffer[(2 * n + 1) * 64];
            }
        }
        if (split > 0) return;
    }
#pragma unroll
    for (u32 i = 0; i < 2; i++) {
        u32 key = first_key + lane / 4 + 8 * i;
        if (key >= item.keys) continue;
        if (item.part == NONE) {
            bf16* to = d_qkv + u64(item.row + key) * width + (heads + kv_head) * D + lane % 4 * 2;
#pragma unroll
            for (u32 n = 0; n < PIECES; n++) {
                *reinterpret_cast<u32*>(to + n * 8) = pack(d_k[n][2 * i] * scale, d_k[n][2 * i + 1] * scale);
                *reinterpret_cast<u32*>(to + kv_heads * D + n * 8) = pack(d_v[n][2 * i], d_v[n][2 * i + 1]);
            }
        } else {
            f32* to = parts + ((u64(item.part) * kv_heads + kv_head) * 2 * KEY_TILE + key) * D + lane % 4 * 2;
#pragma unroll
            for (u32 n = 0; n < PIECES; n++) {
                *reinterpret_cast<float2*>(to + n * 8) = make_float2(d_k[n][2 * i] * scale, d_k[n][2 * i + 1] * scale);
                *reinterpret_cast<float2*>(to + KEY_TILE * D + n * 8) = make_float2(d_v[n][2 * i], d_v[n][2 * i + 1]);
            }
        }
    }
}

#endif

// The plain versions: a warp a row, its lanes share out the keys (or rows) for products and the columns for sums.

constexpr u32 PLAIN_WARPS = 4;
constexpr u32 PER_LANE = (D + 31) / 32;

__device__ __forceinline__ f32 dot(const bf16* a, const bf16* b) {
    f32 sum = 0.0f;
    for (u32 d = 0; d < D; d++) sum = fmaf(widen(a[d]), widen(b[d]), sum);
    return sum;
}

// Adds each lane's row times that lane's weight.
__device__ __forceinline__ void add_rows(f32 (&sums)[PER_LANE], f32 weight, const bf16* row, u32 lane) {
    for (u32 j = 0; j < 32; j++) {
        f32 w = __shfl_sync(0xffffffffu, weight, j);
        const bf16* from = reinterpret_cast<const bf16*>(__shfl_sync(0xffffffffu, reinterpret_cast<u64>(row), j));
        if (!from) continue;
#pragma unroll
        for (u32 i = 0; i < PER_LANE; i++)
            if (i * 32 + lane < D) sums[i] = fmaf(w, widen(from[i * 32 + lane]), sums[i]);
    }
}

extern "C" __global__ void __launch_bounds__(32 * PLAIN_WARPS)
    attention_forward_plain(bf16* out, f32* lse, const bf16* qkv, const bf16* kv, u32 kv_stride, u32 k_column, u32 v_column,
                            const QueryItem* items, const u32* ranges, u32 heads, u32 kv_heads, u32 window, u32 causal,
                            f32 scale) {
    const QueryItem& item = items[blockIdx.x / heads];
    Mask mask = {window, causal};
    u32 head = blockIdx.x % heads, group = heads / kv_heads, lane = threadIdx.x % 32;
    ranges += 2 * item.first;
    kv += head / group * D;
    for (u32 token = threadIdx.x / 32; token < item.tokens; token += PLAIN_WARPS) {
        u32 place = item.place + token;
        u64 row = item.row + token;
        const bf16* q = qkv + row * (heads + 2 * kv_heads) * D + head * D;
        f32 peak = -INFINITE, total = 0.0f, sums[PER_LANE] = {};
        u32 end = mask.end(place, item.total);
        for (u32 first = mask.first(place); first < end; first += 32) {
            bool there = first + lane < end;
            const bf16* from = there ? kv + u64(find(item.inner, ranges, first + lane)) * kv_stride : nullptr;
            f32 score = there ? scale * dot(q, from + k_column) : -INFINITE;
            f32 most = fmaxf(peak, warp_fold(score, Max())), shift = expf(peak - most), p = expf(score - most);
            peak = most;
            total = total * shift + p;
#pragma unroll
            for (u32 i = 0; i < PER_LANE; i++) sums[i] *= shift;
            add_rows(sums, p, there ? from + v_column : nullptr, lane);
        }
        total = warp_fold(total, Add());
#pragma unroll
        for (u32 i = 0; i < PER_LANE; i++)
            if (i * 32 + lane < D) out[(row * heads + head) * D + i * 32 + lane] = narrow(total > 0.0f ? sums[i] / total : 0.0f);
        if (lane == 0) lse[row * heads + head] = total > 0.0f ? peak + logf(total) : 0.0f;
    }
}

extern "C" __global__ void __launch_bounds__(32 * PLAIN_WARPS)
    attention_backward_query_plain(bf16* d_qkv, f32* delta, const bf16* d_out, const bf16* out, const f32* lse,
                                   const bf16* qkv, const QueryItem* items, const u32* ranges, u32 heads, u32 kv_heads,
                                   u32 window, u32 causal, f32 scale) {
    const QueryItem& item = items[blockIdx.x / heads];
    Mask mask = {window, causal};
    u32 head = blockIdx.x % heads, group = heads / kv_heads, lane = threadIdx.x % 32, width = (heads + 2 * kv_heads) * D;
    ranges += 2 * item.first;
    for (u32 token = threadIdx.x / 32; token < item.tokens; token += PLAIN_WARPS) {
        u32 place = item.place + token;
        u64 row = item.row + token, at = row * heads + head;
        const bf16* q = qkv + row * width + head * D;
        f32 sum = 0.0f, sums[PER_LANE] = {};
        for (u32 d = lane; d < D; d += 32) sum = fmaf(widen(d_out[at * D + d]), widen(out[at * D + d]), sum);
        sum = warp_fold(sum, Add());
        if (lane == 0) delta[at] = sum;
        u32 end = mask.end(place, item.total);
        for (u32 first = mask.first(place); first < end; first += 32) {
            bool there = first + lane < end;
            const bf16* key = there ? qkv + u64(find(item.inner, ranges, first + lane)) * width + (heads + head / group) * D : nullptr;
            f32 d_score = 0.0f;
            if (there) {
                f32 p = expf(scale * dot(q, key) - lse[at]);
                d_score = p * (dot(d_out + at * D, key + kv_heads * D) - sum) * scale;
            }
            add_rows(sums, d_score, key, lane);
        }
#pragma unroll
        for (u32 i = 0; i < PER_LANE; i++)
            if (i * 32 + lane < D) d_qkv[row * width + head * D + i * 32 + lane] = narrow(sums[i]);
    }
}

extern "C" __global__ void __launch_bounds__(32 * PLAIN_WARPS)
    attention_backward_key_plain(bf16* d_qkv, f32* parts, const bf16* d_out, const f32* lse, const f32* delta,
                                 const bf16* qkv, const KeyItem* items, const u32* ranges, const u32* places, u32 heads,
                                 u32 kv_heads, u32 window, u32 causal, f32 scale) {
    const KeyItem& item = items[blockIdx.x / kv_heads];
    Mask mask = {window, causal};
    u32 head = blockIdx.x % kv_heads, group = heads / kv_heads, lane = threadIdx.x % 32, width = (heads + 2 * kv_heads) * D;
    ranges += 2 * item.first;
    for (u32 key = threadIdx.x / 32; key < item.keys; key += PLAIN_WARPS) {
        const bf16* k = qkv + u64(item.row + key) * width + (heads + head) * D;
        const bf16* v = k + kv_heads * D;
        f32 d_k[PER_LANE] = {}, d_v[PER_LANE] = {};
        for (u32 first = (causal ? item.skip : 0) * group; first < item.total * group; first += 32) {
            u32 at = first + lane, query_head = head * group + at % group;
            u64 row = at < item.total * group ? find(item.inner, ranges, at / group) : 0;
            bool seen = at < item.total * group && (!causal || places[row] - (item.place + key) < mask.reach());
            const bf16* q = seen ? qkv + row * width + query_head * D : nullptr;
            const bf16* d = seen ? d_out + (row * heads + query_head) * D : nullptr;
            f32 p = 0.0f, d_score = 0.0f;
            if (seen) {
                p = expf(scale * dot(q, k) - lse[row * heads + query_head]);
                d_score = p * (dot(d, v) - delta[row * heads + query_head]) * scale;
            }
            add_rows(d_k, d_score, q, lane);
            add_rows(d_v, p, d, lane);
        }
#pragma unroll
        for (u32 i = 0; i < PER_LANE; i++) {
            u32 column = i * 32 + lane;
            if (column >= D) continue;
            if (item.part == NONE) {
                bf16* to = d_qkv + u64(item.row + key) * width + (heads + head) * D + column;
                to[0] = narrow(d_k[i]), to[kv_heads * D] = narrow(d_v[i]);
            } else {
                f32* to = parts + ((u64(item.part) * kv_heads + head) * 2 * KEY_TILE + key) * D + column;
                to[0] = d_k[i], to[KEY_TILE * D] = d_v[i];
            }
        }
    }
}
