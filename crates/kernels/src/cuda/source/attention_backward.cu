// The backward pass of attention by the products of a warp; comes after attention.cu.

#ifdef TENSOR_CORES

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
