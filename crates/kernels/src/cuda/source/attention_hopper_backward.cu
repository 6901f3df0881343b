// The backward pass by the products of a warpgroup; comes after attention_hopper.cu.

#if defined(__CUDA_ARCH_FEAT_SM90_ALL) && !defined(F16) && HEAD_SIZE == 64

// Columns of scores that are in registers at a time.
constexpr u32 HALF = 32;

// `sum (+)= left tile^T` over 16 columns of two tiles: 64 rows of the left one, 32 of the other.
__device__ __forceinline__ void multiply_32(f32 (&sum)[16], u64 a, u64 tile, bool add) {
    asm volatile(
        "{\n.reg .pred p;\nsetp.ne.b32 p, %18, 0;\n"
        "wgmma.mma_async.sync.aligned.m64n32k16.f32.bf16.bf16 {%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15}, "
        "%16, %17, p, 1, 1, 0, 0;\n}"
        : SUMS16(sum, 0)
        : "l"(a), "l"(tile), "r"(int(add)));
}

// The products of the rows of a tile with `HALF` rows of another one.
__device__ __forceinline__ void half_scores(f32 (&sum)[16], u64 left, u64 rows) {
#pragma unroll
    for (u32 k = 0; k < STEPS; k++) multiply_32(sum, left + k * COLUMNS_16, rows + k * COLUMNS_16, k > 0);
}

extern "C" __global__ void __launch_bounds__(QUERY_THREADS, 2)
    attention_backward_query_hopper(bf16* d_qkv, f32* delta, const bf16* d_out, const bf16* out, const f32* lse,
                                    const bf16* qkv, const QueryItem* items, const u32* ranges, u32 heads, u32 kv_heads,
                                    u32 window, u32 causal, f32 scale) {
    u32 group = heads / kv_heads, per_item = kv_heads * ((group + 3) / 4);
    const QueryItem& item = items[blockIdx.x / per_item];
    if (item.tokens == 0) return;
    Mask mask = {window, causal};
    QueryRows rows(item, heads, kv_heads, mask, blockIdx.x % per_item, GROUP_ROWS);
    ranges += 2 * item.first;
    bf16* tiles = reinterpret_cast<bf16*>(shared_memory);
    u32 lane = rows.lane, width = (heads + 2 * kv_heads) * D;
    u32 k_column = (heads + rows.kv_head) * D, v_column = k_column + kv_heads * D;

    u32 begin = mask.first(item.place) / KEY_TILE * KEY_TILE;
    u32 end = mask.end(item.place + item.tokens - 1, item.total);
    KeyLoader loader(item, qkv, width, k_column, v_column, end);
    if (begin < end) loader.load(tiles, item, ranges, begin);

    Left q[STEPS], d[STEPS];
    f32 shift[2], deltas[2];
    load_query(q, d, shift, deltas, rows, delta, d_out, out, lse, qkv, heads, width);

    bf16* own = tiles + 4 * SQUARE;
#pragma unroll
    for (u32 i = 0; i < 2; i++) {
        u32 row = threadIdx.x / 32 * 16 + lane / 4 + 8 * i;
#pragma unroll
        for (u32 n = 0; n < PIECES; n++) {
            u32 to = place_in_tile(row, n) + lane % 4 * 2;
            *reinterpret_cast<u32*>(own + to) = q[n / 2][n % 2 * 2 + i];
            *reinterpret_cast<u32*>(own + 2 * SQUARE + to) = d[n / 2][n % 2 * 2 + i];
        }
    }
    u64 own_name = tile_of(own + threadIdx.x / WARPGROUP * SQUARE);

    f32 sums[32] = {};
    f32 factor = scale * LOG2_E;
    u64 name = tile_of(tiles);
    for (u32 first = begin, stage = 0; first < end; first += KEY_TILE, stage ^= 1) {
        u32 next = first + KEY_TILE;
        // All warps are done with the tile before this one, whose place the next one takes.
        products_wait();
        hold(sums);
        copies_wait();
        publish();
        __syncthreads();
        if (next < end) loader.load(tiles + (stage ^ 1) * 2 * SQUARE, item, ranges, next);
        if (!rows.active || first >= rows.end || rows.begin >= next) continue;
#pragma unroll
        for (u32 half = 0; half < KEY_TILE / HALF; half++) {
            u32 key = first + half * HALF;
            u64 part = name + 2 * stage * NEXT_TILE + half * HALF * ROW;
            f32 s[16], d_s[16];
            products_begin();
            half_scores(s, own_name, part);
            half_scores(d_s, own_name + 2 * NEXT_TILE, part + NEXT_TILE);
            products_end();
            products_wait();
            hold(s);
            hold(d_s);
            hold(sums);
            bool masked = key + HALF > rows.full_end;
#pragma unroll
            for (u32 i = 0; i < 16; i++) {
                u32 at = key + i / 4 * 8 + lane % 4 * 2 + i % 2, upper = i / 2 % 2;
                f32 p = exp2_fast(fmaf(s[i], factor, -shift[upper]));
                if (masked) p = rows.sees(upper, at) ? p : 0.0f;
                d_s[i] = p * (d_s[i] - deltas[upper]);
            }
            Left left[HALF / 16];
#pragma unroll
            for (u32 n = 0; n < HALF / 16; n++) to_left(left[n], d_s, 2 * n);
            products_begin();
#pragma unroll
            for (u32 n = 0; n < HALF / 16; n++) multiply_64<true>(sums, left[n], part + 16 * n * ROW, true);
            products_end();
        }
    }
    products_wait();
    hold(sums);
#pragma unroll
    for (u32 i = 0; i < 2; i++) {
        if (!rows.there[i]) continue;
        bf16* to = d_qkv + u64(rows.row[i]) * width + rows.head[i] * D + lane % 4 * 2;
#pragma unroll
        for (u32 n = 0; n < PIECES; n++)
            *reinterpret_cast<u32*>(to + n * 8) = pack(sums[4 * n + 2 * i] * scale, sums[4 * n + 2 * i + 1] * scale);
    }
}

// Which query rows a tile of the pass over keys holds, `NONE` behind the last one, and where their heads lie, in heads.
struct HeadRows {
    u32 row[KEY_TILE], query[KEY_TILE], value[KEY_TILE];
};

extern "C" __global__ void __launch_bounds__(WARPGROUP, 3)
    attention_backward_key_hopper(bf16* d_qkv, f32* parts, const bf16* d_out, const f32* lse, const f32* delta,
                                  const bf16* qkv, const KeyItem* items, const u32* ranges, const u32* places, u32 heads,
                                  u32 kv_heads, u32 window, u32 causal, f32 scale) {
    const KeyItem& item = items[blockIdx.x / kv_heads];
    if (item.keys == 0) return;
    __shared__ RowFacts facts[2];
    __shared__ HeadRows names[2];
    Mask mask = {window, causal};
    u32 kv_head = blockIdx.x % kv_heads, group = heads / kv_heads, width = (heads + 2 * kv_heads) * D;
    u32 lane = threadIdx.x % 32, first_key = threadIdx.x / 32 * 16;
    ranges += 2 * item.first;
    bf16* tiles = reinterpret_cast<bf16*>(shared_memory);

    u32 begin = (causal ? item.skip : 0) * group / 16 * 16, end = item.total * group;
    // Rows are looked up one tile before they are loaded, and loaded one tile before they are used.
    auto look_up = [&](u32 stage, u32 first) {
        if (threadIdx.x >= KEY_TILE) return;
        u32 at = first + threadIdx.x, row = at < end ? find(item.inner, ranges, at / group) : NONE;
        u32 head = kv_head * group + at % group;
        names[stage].row[threadIdx.x] = row;
        names[stage].query[threadIdx.x] = row * (heads + 2 * kv_heads) + head;
        names[stage].value[threadIdx.x] = row * heads + head;
    };
    u32 own_row = threadIdx.x / PIECES, own_piece = threadIdx.x % PIECES, own_place = place_in_tile(own_row, own_piece);
    const bf16 *own_query = qkv + own_piece * 8, *own_d_out = d_out + own_piece * 8;
    auto load = [&](u32 stage) {
        bf16* queries = tiles + stage * 2 * SQUARE + own_place;
        const HeadRows& name = names[stage];
#pragma unroll
        for (u32 i = 0; i < KEY_TILE; i += WARPGROUP / PIECES) {
            bool there = name.row[own_row + i] != NONE;
            u64 query = there ? name.query[own_row + i] : 0, value = there ? name.value[own_row + i] : 0;
            copy_async(queries + i * D, own_query + query * D, there);
            copy_async(queries + SQUARE + i * D, own_d_out + value * D, there);
        }
        // What is not there is zeros, which add nothing.
        u32 at = threadIdx.x;
        if (at >= KEY_TILE) return;
        bool there = name.row[at] != NONE;
        u64 row = there ? name.row[at] : 0, value = there ? name.value[at] : 0;
        copy_word_async(&facts[stage].lse[at], lse + value, there);
        copy_word_async(&facts[stage].delta[at], delta + value, there);
        copy_word_async(&facts[stage].place[at], places + row, there);
    };
    look_up(0, begin);
    if (begin + KEY_TILE < end) look_up(1, begin + KEY_TILE);
    __syncthreads();
    if (begin < end) load(0);

    bf16* own = tiles + 4 * SQUARE;
    for (u32 i = threadIdx.x; i < KEY_TILE * PIECES; i += WARPGROUP) {
        u32 key = i / PIECES, piece = i % PIECES, to = place_in_tile(key, piece);
        bool there = key < item.keys;
        const bf16* from = qkv + u64(item.row + (there ? key : 0)) * width + (heads + kv_head) * D + piece * 8;
        copy_async(own + to, from, there);
        copy_async(own + SQUARE + to, from + kv_heads * D, there);
    }
    u64 own_name = tile_of(own);

    f32 d_k[32] = {}, d_v[32] = {};
    f32 factor = scale * LOG2_E;
    u32 place = item.place + first_key + lane / 4;
    u64 name = tile_of(tiles);
    hold(d_k);
    hold(d_v);
    for (u32 first = begin, stage = 0; first < end; first += KEY_TILE, stage ^= 1) {
        u32 next = first + KEY_TILE;
        products_wait();
        hold(d_k);
        hold(d_v);
        copies_wait();
        publish();
        __syncthreads();
        if (next < end) load(stage ^ 1);
        if (next + KEY_TILE < end) look_up(stage, next + KEY_TILE);
        const RowFacts& fact = facts[stage];
        // Only rows among the keys themselves may stand before one of them.
        bool masked = causal && (window || first < (item.skip + item.keys) * group);
#pragma unroll
        for (u32 half = 0; half < KEY_TILE / HALF; half++) {
            u64 part = name + 2 * stage * NEXT_TILE + half * HALF * ROW;
            f32 s[16], d_s[16];
            products_begin();
            half_scores(s, own_name, part);
            half_scores(d_s, own_name + NEXT_TILE, part + NEXT_TILE);
            products_end();
            products_wait();
            hold(s);
            hold(d_s);
            hold(d_k);
            hold(d_v);
#pragma unroll
            for (u32 i = 0; i < 16; i++) {
                u32 row = half * HALF + i / 4 * 8 + lane % 4 * 2 + i % 2, upper = i / 2 % 2;
                f32 p = exp2_fast(fmaf(s[i], factor, -LOG2_E * fact.lse[row]));
                if (masked) p = fact.place[row] - (place + 8 * upper) < mask.reach() ? p : 0.0f;
                s[i] = p;
                d_s[i] = p * (d_s[i] - fact.delta[row]);
            }
            Left p[HALF / 16], left[HALF / 16];
#pragma unroll
            for (u32 n = 0; n < HALF / 16; n++) to_left(p[n], s, 2 * n), to_left(left[n], d_s, 2 * n);
            products_begin();
#pragma unroll
            for (u32 n = 0; n < HALF / 16; n++) {
                multiply_64<true>(d_v, p[n], part + NEXT_TILE + 16 * n * ROW, true);
                multiply_64<true>(d_k, left[n], part + 16 * n * ROW, true);
            }
            products_end();
        }
    }
    products_wait();
    hold(d_k);
    hold(d_v);
#pragma unroll
    for (u32 i = 0; i < 2; i++) {
        u32 key = first_key + lane / 4 + 8 * i;
        if (key >= item.keys) continue;
        if (item.part == NONE) {
            bf16* to = d_qkv + u64(item.row + key) * width + (heads + kv_head) * D + lane % 4 * 2;
#pragma unroll
            for (u32 n = 0; n < PIECES; n++) {
                u32 at = 4 * n + 2 * i;
                *reinterpret_cast<u32*>(to + n * 8) = pack(d_k[at] * scale, d_k[at + 1] * scale);
                *reinterpret_cast<u32*>(to + kv_heads * D + n * 8) = pack(d_v[at], d_v[at + 1]);
            }
        } else {
            f32* to = parts + ((u64(item.part) * kv_heads + kv_head) * 2 * KEY_TILE + key) * D + lane % 4 * 2;
#pragma unroll
            for (u32 n = 0; n < PIECES; n++) {
                u32 at = 4 * n + 2 * i;
                *reinterpret_cast<float2*>(to + n * 8) = make_float2(d_k[at] * scale, d_k[at + 1] * scale);
                *reinterpret_cast<float2*>(to + KEY_TILE * D + n * 8) = make_float2(d_v[at], d_v[at + 1]);
            }
        }
    }
}

#endif
