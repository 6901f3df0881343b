// Attention over a token tree, for one head size: what its programs share. The lists are made by plan.rs; see there for
// places and ranges.
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

// The products of tensor cores.
#if __CUDA_ARCH__ >= 800 && !defined(F16) && HEAD_SIZE % 16 == 0 && HEAD_SIZE <= 128
#define TENSOR_CORES

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

// What the pass over keys needs of a tile of query rows besides their values.
struct RowFacts {
    f32 lse[KEY_TILE], delta[KEY_TILE];
    u32 place[KEY_TILE];
};

#endif
