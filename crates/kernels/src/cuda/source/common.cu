// What every program begins with: types, bf16, loads of several values, sums over a block.

typedef unsigned char u8;
typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long long u64;
typedef float f32;
typedef double f64;

// An index that stands for nothing.
constexpr u32 NONE = 0xffffffffu;

// The 16 bits of an activation: a bf16, or with F16 defined a half.
struct bf16 {
    u16 bits;
};

__device__ __forceinline__ f32 from_half(u16 bits) {
    f32 value;
    asm("cvt.f32.f16 %0, %1;" : "=f"(value) : "h"(bits));
    return value;
}

#ifdef F16

__device__ __forceinline__ f32 widen(bf16 value) { return from_half(value.bits); }

// Two values rounded to nearest, ties to even; `low` comes first in memory.
__device__ __forceinline__ u32 pack(f32 low, f32 high) {
    u16 first, second;
    asm("cvt.rn.f16.f32 %0, %1;" : "=h"(first) : "f"(low));
    asm("cvt.rn.f16.f32 %0, %1;" : "=h"(second) : "f"(high));
    return u32(first) | u32(second) << 16;
}

__device__ __forceinline__ f32 low(u32 word) { return from_half(u16(word)); }
__device__ __forceinline__ f32 high(u32 word) { return from_half(u16(word >> 16)); }

#else

__device__ __forceinline__ f32 widen(bf16 value) { return __uint_as_float(u32(value.bits) << 16); }

// Two values rounded to nearest, ties to even; `low` comes first in memory.
__device__ __forceinline__ u32 pack(f32 low, f32 high) {
    u32 word;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(word) : "f"(high), "f"(low));
    return word;
}

__device__ __forceinline__ f32 low(u32 word) { return __uint_as_float(word << 16); }
__device__ __forceinline__ f32 high(u32 word) { return __uint_as_float(word & 0xffff0000u); }

#endif

__device__ __forceinline__ bf16 narrow(f32 value) { return bf16{u16(pack(value, 0.0f))}; }

#if __CUDA_ARCH__ >= 800

__device__ __forceinline__ u32 shared_address(const void* pointer) { return u32(__cvta_generic_to_shared(pointer)); }

// 16 bytes to shared memory, zeros where they are not `there`.
__device__ __forceinline__ void copy_async(void* to, const void* from, bool there) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;"
                 :
                 : "r"(shared_address(to)), "l"(__cvta_generic_to_global(from)), "r"(there ? 16 : 0)
                 : "memory");
}

#endif

// Values that a thread reads or writes at a time.
constexpr u32 LANES = 8;

__device__ __forceinline__ void read(f32 (&values)[LANES], const bf16* from) {
    uint4 words = *reinterpret_cast<const uint4*>(from);
    u32 list[4] = {words.x, words.y, words.z, words.w};
#pragma unroll
    for (u32 i = 0; i < 4; i++) {
        values[2 * i] = low(list[i]);
        values[2 * i + 1] = high(list[i]);
    }
}

__device__ __forceinline__ void read(f32 (&values)[LANES], const f32* from) {
    float4 a = reinterpret_cast<const float4*>(from)[0], b = reinterpret_cast<const float4*>(from)[1];
    values[0] = a.x, values[1] = a.y, values[2] = a.z, values[3] = a.w;
    values[4] = b.x, values[5] = b.y, values[6] = b.z, values[7] = b.w;
}

__device__ __forceinline__ void write(bf16* to, const f32 (&values)[LANES]) {
    *reinterpret_cast<uint4*>(to) = make_uint4(pack(values[0], values[1]), pack(values[2], values[3]),
                                               pack(values[4], values[5]), pack(values[6], values[7]));
}

__device__ __forceinline__ void write(f32* to, const f32 (&values)[LANES]) {
    reinterpret_cast<float4*>(to)[0] = make_float4(values[0], values[1], values[2], values[3]);
    reinterpret_cast<float4*>(to)[1] = make_float4(values[4], values[5], values[6], values[7]);
}

__device__ __forceinline__ f32 read_one(const bf16* from) { return widen(*from); }
__device__ __forceinline__ f32 read_one(const f32* from) { return *from; }
__device__ __forceinline__ void write_one(bf16* to, f32 value) { *to = narrow(value); }
__device__ __forceinline__ void write_one(f32* to, f32 value) { *to = value; }

// Reads up to `count` values, as one piece where `whole` says that all of them are there and aligned.
template <typename T>
__device__ __forceinline__ void read_some(f32 (&values)[LANES], const T* from, u32 count, bool whole) {
    if (whole) return read(values, from);
#pragma unroll
    for (u32 i = 0; i < LANES; i++) values[i] = i < count ? read_one(from + i) : 0.0f;
}

template <typename T>
__device__ __forceinline__ void write_some(T* to, const f32 (&values)[LANES], u32 count, bool whole) {
    if (whole) return write(to, values);
#pragma unroll
    for (u32 i = 0; i < LANES; i++)
        if (i < count) write_one(to + i, values[i]);
}

// The piece of a flat array that this thread works on.
struct Piece {
    u32 at, count;
    bool whole;
};

__device__ __forceinline__ Piece flat_piece(u32 len) {
    u32 at = (blockIdx.x * blockDim.x + threadIdx.x) * LANES;
    u32 count = at < len ? min(len - at, LANES) : 0;
    return {at, count, count == LANES};
}

struct Add {
    template <typename T>
    __device__ __forceinline__ T operator()(T a, T b) const { return a + b; }
};
struct Max {
    template <typename T>
    __device__ __forceinline__ T operator()(T a, T b) const { return a < b ? b : a; }
};

// Over the 32 lanes; every lane gets the result.
template <typename T, typename Op>
__device__ __forceinline__ T warp_fold(T value, Op op) {
#pragma unroll
    for (u32 distance = 16; distance > 0; distance /= 2)
        value = op(value, __shfl_xor_sync(0xffffffffu, value, distance));
    return value;
}

// Over a block of whole warps; every thread gets the result.
template <typename T, typename Op>
__device__ __forceinline__ T block_fold(T value, Op op) {
    __shared__ T parts[32];
    u32 warps = blockDim.x / 32;
    value = warp_fold(value, op);
    __syncthreads();
    if (threadIdx.x % 32 == 0) parts[threadIdx.x / 32] = value;
    __syncthreads();
    T total = parts[0];
    for (u32 i = 1; i < warps; i++) total = op(total, parts[i]);
    return total;
}

// How the values of a frozen matrix are kept.
enum Format : u32 { BF16 = 0, Q4_0 = 1, Q4_1 = 2, Q8_0 = 3, NF4 = 4 };

__device__ const f32 NF4_LEVELS[16] = {
    -1.0f, -0.6961928f, -0.52507305f, -0.3949175f, -0.28444138f, -0.18477343f, -0.091050036f, 0.0f,
    0.0795803f, 0.1609302f, 0.2461123f, 0.33791524f, 0.44070983f, 0.562617f, 0.72295684f, 1.0f};

// Eight values of a matrix from its value `at` on, a multiple of 8.
__device__ __forceinline__ void read_block(f32 (&values)[LANES], const u8* raw, u32 format, u64 at) {
    u64 block = at / 32;
    u32 from = u32(at % 32);
    if (format == Q8_0) {
        const u16* words = reinterpret_cast<const u16*>(raw + block * 34);
        f32 scale = from_half(words[0]);
#pragma unroll
        for (u32 i = 0; i < 4; i++) {
            u32 word = words[1 + from / 2 + i];
            values[2 * i] = scale * f32((signed char)(word & 255));
            values[2 * i + 1] = scale * f32((signed char)(word >> 8));
        }
        return;
    }
    // ggml keeps the first half of the values in the lower four bits.
    u32 head = format == Q4_0 ? 1 : 2, shift = from / 16 * 4;
    const u16* words = reinterpret_cast<const u16*>(raw + block * (16 + 2 * head));
    if (format == NF4) {
        f32 scale = __uint_as_float(u32(words[0]) | u32(words[1]) << 16);
#pragma unroll
        for (u32 i = 0; i < 4; i++) {
            u32 word = words[head + from % 16 / 2 + i] >> shift;
            values[2 * i] = scale * NF4_LEVELS[word & 15];
            values[2 * i + 1] = scale * NF4_LEVELS[word >> 8 & 15];
        }
        return;
    }
    f32 scale = from_half(words[0]);
    f32 least = format == Q4_1 ? from_half(words[1]) : -8.0f * scale;
#pragma unroll
    for (u32 i = 0; i < 4; i++) {
        u32 word = words[head + from % 16 / 2 + i] >> shift;
        values[2 * i] = scale * f32(word & 15) + least;
        values[2 * i + 1] = scale * f32(word >> 8 & 15) + least;
    }
}
