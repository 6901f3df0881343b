// Attention by the products of a warpgroup (PTX, wgmma), for long rows, heads of 64 values and compute capability 9.0.
// Comes after attention.cu and does the same as its kernels on the same lists.
//
// A product takes its left operand from registers or a tile in shared memory, and its right one from a tile. Of the 64
// rows of a left operand in registers or of a sum, each warp holds 16, as in attention.cu. A tile has 64 rows of 128
// bytes; of row `r` the 16 bytes `c` lie in the place of `c ^ r % 8`, so that reading down a column meets all banks.

#if defined(__CUDA_ARCH_FEAT_SM90_ALL) && !defined(F16) && HEAD_SIZE == 64

constexpr u32 WARPGROUP = 128;
constexpr u32 GROUP_ROWS = 64;
// Values of a tile.
constexpr u32 SQUARE = KEY_TILE * D;

// A tile for a product: from this address on, 8 rows in 1024 bytes, 16-byte pieces exchanged among 8 rows.
__device__ __forceinline__ u64 tile_of(const bf16* from) {
    return u64(shared_address(from) >> 4 & 0x3fff) | u64(1) << 16 | u64(64) << 32 | u64(1) << 62;
}

// The registers named by products under way are not to be touched before this, and products wait for it.
__device__ __forceinline__ void products_begin() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
__device__ __forceinline__ void products_end() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }
// All but the last `OPEN` batches of products.
template <int OPEN = 0>
__device__ __forceinline__ void products_wait() { asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(OPEN) : "memory"); }
// Lets products see what this thread has copied to shared memory.
__device__ __forceinline__ void publish() { asm volatile("fence.proxy.async.shared::cta;" ::: "memory"); }

// Keeps the compiler from moving a sum's registers across.
template <u32 N>
__device__ __forceinline__ void hold(f32 (&sum)[N]) {
#pragma unroll
    for (u32 i = 0; i < N; i++) asm volatile("" : "+f"(sum[i])::"memory");
}

#define SUMS16(s, i)                                                                                                        \
    "+f"(s[i]), "+f"(s[i + 1]), "+f"(s[i + 2]), "+f"(s[i + 3]), "+f"(s[i + 4]), "+f"(s[i + 5]), "+f"(s[i + 6]),             \
        "+f"(s[i + 7]), "+f"(s[i + 8]), "+f"(s[i + 9]), "+f"(s[i + 10]), "+f"(s[i + 11]), "+f"(s[i + 12]), "+f"(s[i + 13]), \
        "+f"(s[i + 14]), "+f"(s[i + 15])

// `sum (+)= left tile^T` over 16 columns of 64 rows of a tile, or with `ROWS` `left tile` over 16 rows.
template <bool ROWS>
__device__ __forceinline__ void multiply_64(f32 (&sum)[32], const Left& a, u64 tile, bool add) {
    asm volatile(
        "{\n.reg .pred p;\nsetp.ne.b32 p, %37, 0;\n"
        "wgmma.mma_async.sync.aligned.m64n64k16.f32.bf16.bf16 {%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15,"
        "%16,%17,%18,%19,%20,%21,%22,%23,%24,%25,%26,%27,%28,%29,%30,%31}, "
        "{%32,%33,%34,%35}, %36, p, 1, 1, %38;\n}"
        : SUMS16(sum, 0), SUMS16(sum, 16)
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(tile), "r"(int(add)), "n"(int(ROWS)));
}

// How far on a tile's name is the one of a later column, of a later row, and of the next tile.
constexpr u64 COLUMNS_16 = 2, ROW = 8, NEXT_TILE = KEY_TILE * ROW;

// 16 values of scores side by side, from column `8 * at` on, as the left operand of a product.
template <u32 N>
__device__ __forceinline__ void to_left(Left& left, const f32 (&sum)[N], u32 at) {
#pragma unroll
    for (u32 i = 0; i < 4; i++) left[i] = pack(sum[4 * at + 2 * i], sum[4 * at + 2 * i + 1]);
}

// Where the 16 bytes `piece` of a row of a tile lie.
__device__ __forceinline__ u32 place_in_tile(u32 row, u32 piece) { return row * D + (piece ^ row % 8) * 8; }

// What loads the keys of an item: the first row and the 16 bytes of a row that are this thread's.
struct KeyLoader {
    const bf16* from;
    u32 stride, values, row, to, end, flat;

    __device__ KeyLoader(const QueryItem& item, const bf16* kv, u32 stride, u32 k_column, u32 v_column, u32 end)
        : stride(stride), values(v_column - k_column), row(threadIdx.x / PIECES), end(end) {
        u32 piece = threadIdx.x % PIECES;
        from = kv + k_column + piece * 8;
        to = place_in_tile(row, piece);
        // Where all keys lie in one range, as those of long rows do, none is looked up.
        flat = item.inner.first[0].y >= end ? item.inner.first[0].x : NONE;
    }

    // Keys `first..`, at most a tile, and zeros behind the last.
    __device__ __forceinline__ void load(bf16* keys, const QueryItem& item, const u32* ranges, u32 first) const {
        // A multiple of 8, so that a row's pieces change places in the same way.
        u32 rows = blockDim.x / PIECES;
#pragma unroll 2
        for (u32 i = 0; i < KEY_TILE; i += rows) {
            u32 key = first + row + i;
            bool there = key < end;
            u32 at = flat != NONE ? flat + key : there ? find(item.inner, ranges, key) : 0;
            const bf16* source = there ? from + u64(at) * stride : from;
            copy_async(keys + to + i * D, source, there);
            copy_async(keys + SQUARE + to + i * D, source + values, there);
        }
    }
};

extern "C" __global__ void __launch_bounds__(QUERY_THREADS, 2)
    attention_forward_hopper(bf16* out, f32* lse, const bf16* qkv, const bf16* kv, u32 kv_stride, u32 k_column, u32 v_column,
                             const QueryItem* items, const u32* ranges, u32 heads, u32 kv_heads, u32 window, u32 causal,
                             f32 scale) {
    u32 group = heads / kv_heads, per_item = kv_heads * ((group + 3) / 4);
    const QueryItem& item = items[blockIdx.x / per_item];
    if (item.tokens == 0) return;
    Mask mask = {window, causal};
    QueryRows rows(item, heads, kv_heads, mask, blockIdx.x % per_item, GROUP_ROWS);
    ranges += 2 * item.first;
    bf16* tiles = reinterpret_cast<bf16*>(shared_memory);
    u32 lane = rows.lane, width = (heads + 2 * kv_heads) * D;
    k_column += rows.kv_head * D, v_column += rows.kv_head * D;

    u32 begin = mask.first(item.place) / KEY_TILE * KEY_TILE;
    u32 end = mask.end(item.place + item.tokens - 1, item.total);
    KeyLoader loader(item, kv, kv_stride, k_column, v_column, end);
    if (begin < end) loader.load(tiles, item, ranges, begin);
    if (begin + KEY_TILE < end) loader.load(tiles + 2 * SQUARE, item, ranges, begin + KEY_TILE);

    Left q[STEPS];
    const bf16* q_row[2];
#pragma unroll
    for (u32 i = 0; i < 2; i++) q_row[i] = rows.there[i] ? qkv + u64(rows.row[i]) * width + rows.head[i] * D : nullptr;
    load_left(q, q_row[0], q_row[1], lane);

    f32 s[32], sums[32] = {};
    f32 peak[2] = {-INFINITE, -INFINITE}, total[2] = {0.0f, 0.0f};
    f32 factor = scale * LOG2_E;
    u64 name = tile_of(tiles);
    auto score = [&](u32 stage) {
        products_begin();
#pragma unroll
        for (u32 k = 0; k < STEPS; k++) multiply_64<false>(s, q[k], name + stage * 2 * NEXT_TILE + k * COLUMNS_16, k > 0);
        products_end();
    };
    copies_wait();
    publish();
    __syncthreads();
    hold(sums);
    score(0);
    products_wait<0>();
    hold(s);
    // While a tile's values are weighed, the next one's scores become weights.
    for (u32 first = begin, stage = 0; first < end; first += KEY_TILE, stage = stage == 2 ? 0 : stage + 1) {
        u32 next = first + KEY_TILE, after = stage == 2 ? 0 : stage + 1;
        Left p[KEY_TILE / 16];
        f32 shift[2] = {1.0f, 1.0f};
        bool masked = next > rows.full_end;
        f32 most[2] = {peak[0], peak[1]};
#pragma unroll
        for (u32 i = 0; i < 32; i++) {
            u32 key = first + i / 4 * 8 + lane % 4 * 2 + i % 2, upper = i / 2 % 2;
            if (masked) s[i] = rows.sees(upper, key) ? s[i] : -INFINITE;
            most[upper] = fmaxf(most[upper], s[i]);
        }
#pragma unroll
        for (u32 i = 0; i < 2; i++) {
            most[i] = fmaxf(most[i], __shfl_xor_sync(0xffffffffu, most[i], 1));
            most[i] = fmaxf(most[i], __shfl_xor_sync(0xffffffffu, most[i], 2));
            // A row that has seen nothing yet keeps its zeros.
            f32 least = most[i] == -INFINITE ? 0.0f : most[i];
            shift[i] = exp2_fast((peak[i] - least) * factor);
            peak[i] = most[i];
            most[i] = -factor * least;
            total[i] *= shift[i];
        }
#pragma unroll
        for (u32 i = 0; i < 32; i++) {
            s[i] = exp2_fast(fmaf(s[i], factor, most[i / 2 % 2]));
            total[i / 2 % 2] += s[i];
        }
        products_wait<0>();
        hold(sums);
#pragma unroll
        for (u32 i = 0; i < 32; i++) sums[i] *= shift[i / 2 % 2];
#pragma unroll
        for (u32 n = 0; n < KEY_TILE / 16; n++) to_left(p[n], s, 2 * n);
        copies_wait();
        publish();
        // All warps are done with the tile before this one, whose place the one after the next takes.
        __syncthreads();
        u32 last = after == 2 ? 0 : after + 1;
        if (next + KEY_TILE < end) loader.load(tiles + last * 2 * SQUARE, item, ranges, next + KEY_TILE);
        hold(sums);
        score(after);
        products_begin();
#pragma unroll
        for (u32 n = 0; n < KEY_TILE / 16; n++)
            multiply_64<true>(sums, p[n], name + (2 * stage + 1) * NEXT_TILE + 16 * n * ROW, true);
        products_end();
        products_wait<1>();
        hold(s);
    }
    products_wait();
    hold(sums);
#pragma unroll
    for (u32 i = 0; i < 2; i++) {
        total[i] += __shfl_xor_sync(0xffffffffu, total[i], 1);
        total[i] += __shfl_xor_sync(0xffffffffu, total[i], 2);
        if (!rows.there[i]) continue;
        f32 share = total[i] > 0.0f ? 1.0f / total[i] : 0.0f;
        bf16* to = out + (u64(rows.row[i]) * heads + rows.head[i]) * D + lane % 4 * 2;
#pragma unroll
        for (u32 n = 0; n < PIECES; n++)
            *reinterpret_cast<u32*>(to + n * 8) = pack(sums[4 * n + 2 * i] * share, sums[4 * n + 2 * i + 1] * share);
        if (lane % 4 == 0)
            lse[u64(rows.row[i]) * heads + rows.head[i]] = total[i] > 0.0f ? peak[i] * scale + logf(total[i]) : 0.0f;
    }
}

#endif
