// Attention without tensor cores, for any head size; comes after attention.cu. A warp a row, its lanes share out the keys
// (or rows) for products and the columns for sums.

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
