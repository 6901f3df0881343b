// Attention by the products of a warp; comes after attention.cu.

#ifdef TENSOR_CORES

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

#endif
