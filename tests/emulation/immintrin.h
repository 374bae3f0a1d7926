// The processor's instructions that the bf16 kernels use, as plain loops: in the place of a compiler's
// own header, for tests on processors that have none of them. See c++ beside it. What each does is in
// Intel's Intrinsics Guide; those of the matrix unit are in its "Architecture Instruction Set
// Extensions Programming Reference", chapter 3.

#pragma once

#include <sys/syscall.h>
#include <unistd.h>

#include <cmath>
#include <cstdint>
#include <cstring>

#define syscall(...) 0  // Linux lends the matrix unit

typedef float __m512 __attribute__((vector_size(64), aligned(4)));
typedef int32_t __m512i __attribute__((vector_size(64), aligned(4)));
typedef uint16_t __m512bh __attribute__((vector_size(64), aligned(2)));
typedef uint16_t __m256i __attribute__((vector_size(32), aligned(2)));
typedef uint16_t __m256bh __attribute__((vector_size(32), aligned(2)));
typedef uint16_t __mmask16;
typedef uint32_t __mmask32;

namespace emulated {

template <class To>
To read(const void* from) {
    To value;
    std::memcpy(&value, from, sizeof value);
    return value;
}

inline float widened(uint16_t bits) {
    const uint32_t wide = uint32_t(bits) << 16;
    return read<float>(&wide);
}

template <class Vector, class Value>
Vector each(int count, Value value) {
    Vector result = {};
    for (int i = 0; i < count; i++) result[i] = value(i);
    return result;
}

template <class Value>
__m512 floats(Value value) {
    return each<__m512>(16, value);
}

template <class Value>
__m512i ints(Value value) {
    return each<__m512i>(16, value);
}

// 16 or 32 values of which those of a mask are read or written.
template <class Vector, class Value>
Vector read_some(uint32_t mask, const void* from, int count) {
    const auto* bytes = static_cast<const char*>(from);
    return each<Vector>(count, [&](int i) {
        return mask >> i & 1 ? read<Value>(bytes + i * sizeof(Value)) : Value(0);
    });
}

template <class Value, class Vector>
void write_some(void* to, uint32_t mask, Vector values, int count) {
    for (int i = 0; i < count; i++) {
        const Value value = values[i];
        if (mask >> i & 1) std::memcpy(static_cast<char*>(to) + i * sizeof value, &value, sizeof value);
    }
}

}  // namespace emulated

inline __m512 _mm512_setzero_ps() { return __m512{}; }
inline __m512 _mm512_set1_ps(float x) {
    return emulated::floats([&](int) { return x; });
}
inline __m512i _mm512_set1_epi32(int32_t x) {
    return emulated::ints([&](int) { return x; });
}
template <class... Values>
__m512i _mm512_setr_epi32(Values... values) {
    return __m512i{int32_t(values)...};
}
inline __m512 _mm512_add_ps(__m512 a, __m512 b) { return a + b; }
inline __m512 _mm512_mul_ps(__m512 a, __m512 b) { return a * b; }
inline __m512 _mm512_max_ps(__m512 a, __m512 b) {  // of what is no number, the second
    return emulated::floats([&](int i) { return a[i] > b[i] ? a[i] : b[i]; });
}
inline __m512 _mm512_min_ps(__m512 a, __m512 b) {
    return emulated::floats([&](int i) { return a[i] < b[i] ? a[i] : b[i]; });
}
inline __m512 _mm512_fmadd_ps(__m512 a, __m512 b, __m512 c) {
    return emulated::floats([&](int i) { return std::fma(a[i], b[i], c[i]); });
}
inline __m512 _mm512_fnmadd_ps(__m512 a, __m512 b, __m512 c) {
    return emulated::floats([&](int i) { return std::fma(-a[i], b[i], c[i]); });
}
inline __m512 _mm512_rcp14_ps(__m512 a) {  // better than 14 bits
    return emulated::floats([&](int i) { return 1 / a[i]; });
}
inline float _mm512_reduce_add_ps(__m512 a) {
    float sum = 0;
    for (int i = 0; i < 16; i++) sum += a[i];
    return sum;
}

inline __m512 _mm512_castsi512_ps(__m512i a) { return (__m512)a; }
inline __m512i _mm512_slli_epi32(__m512i a, int places) {
    return emulated::ints([&](int i) { return int32_t(uint32_t(a[i]) << places); });
}
inline __m512i _mm512_mullo_epi32(__m512i a, __m512i b) {
    return emulated::ints([&](int i) { return int32_t(uint32_t(a[i]) * uint32_t(b[i])); });
}
inline __m512i _mm512_cvtepu16_epi32(__m256i a) {
    return emulated::ints([&](int i) { return int32_t(a[i]); });
}
inline __m512 _mm512_cvtph_ps(__m256i a) {
    return emulated::floats([&](int i) {
        const uint16_t bits = a[i];
        return float(emulated::read<_Float16>(&bits));
    });
}
inline __m256bh _mm512_cvtneps_pbh(__m512 a) {  // to nearest, ties to even
    return emulated::each<__m256bh>(16, [&](int i) {
        const float x = a[i];
        const auto bits = emulated::read<uint32_t>(&x);
        if (x != x) return uint16_t(0x7fc0 | bits >> 16);
        return uint16_t((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
    });
}
inline __m512 _mm512_dpbf16_ps(__m512 sum, __m512bh a, __m512bh b) {
    using emulated::widened;
    return emulated::floats([&](int i) {
        const float odd = std::fma(widened(a[2 * i + 1]), widened(b[2 * i + 1]), sum[i]);
        return std::fma(widened(a[2 * i]), widened(b[2 * i]), odd);
    });
}
inline __m512i _mm512_permutex2var_epi16(__m512i a, __m512i which, __m512i b) {
    const auto first = (__m512bh)a, second = (__m512bh)b, from = (__m512bh)which;
    return (__m512i)emulated::each<__m512bh>(32, [&](int i) {
        return from[i] & 32 ? second[from[i] & 31] : first[from[i] & 31];
    });
}

inline __m512 _mm512_loadu_ps(const void* from) { return emulated::read<__m512>(from); }
inline __m512i _mm512_loadu_si512(const void* from) { return emulated::read<__m512i>(from); }
inline __m512i _mm512_load_si512(const void* from) { return emulated::read<__m512i>(from); }
inline void _mm512_storeu_ps(void* to, __m512 a) { std::memcpy(to, &a, sizeof a); }
inline void _mm512_storeu_si512(void* to, __m512i a) { std::memcpy(to, &a, sizeof a); }
inline __m512 _mm512_maskz_loadu_ps(__mmask16 mask, const void* from) {
    return emulated::read_some<__m512, float>(mask, from, 16);
}
inline __m256i _mm256_maskz_loadu_epi16(__mmask16 mask, const void* from) {
    return emulated::read_some<__m256i, uint16_t>(mask, from, 16);
}
inline __m512i _mm512_maskz_loadu_epi16(__mmask32 mask, const void* from) {
    return (__m512i)emulated::read_some<__m512bh, uint16_t>(mask, from, 32);
}
inline void _mm512_mask_storeu_ps(void* to, __mmask16 mask, __m512 a) {
    emulated::write_some<float>(to, mask, a, 16);
}
inline void _mm256_mask_storeu_epi16(void* to, __mmask16 mask, __m256i a) {
    emulated::write_some<uint16_t>(to, mask, a, 16);
}
inline __m512i _mm512_i32gather_epi32(__m512i places, const void* from, int scale) {
    const auto* bytes = static_cast<const char*>(from);
    return emulated::ints([&](int i) {
        return emulated::read<int32_t>(bytes + int64_t(places[i]) * scale);
    });
}

// The matrix unit: eight tiles of up to 16 rows of 64 bytes, each thread its own.
namespace emulated {

struct Shape {
    uint8_t palette, start, reserved[14];
    uint16_t bytes[16];
    uint8_t rows[16];
};

inline thread_local Shape shape;
inline thread_local char tiles[8][16][64];

}  // namespace emulated

inline void _tile_loadconfig(const void* from) {
    emulated::shape = emulated::read<emulated::Shape>(from);
    std::memset(emulated::tiles, 0, sizeof emulated::tiles);
}
inline void _tile_release() {}
inline void _tile_zero(int t) { std::memset(emulated::tiles[t], 0, sizeof emulated::tiles[t]); }
inline void _tile_loadd(int t, const void* from, int64_t stride) {
    for (int r = 0; r < emulated::shape.rows[t]; r++) {
        std::memcpy(emulated::tiles[t][r], static_cast<const char*>(from) + r * stride,
                    emulated::shape.bytes[t]);
    }
}
inline void _tile_stored(int t, void* to, int64_t stride) {
    for (int r = 0; r < emulated::shape.rows[t]; r++) {
        std::memcpy(static_cast<char*>(to) + r * stride, emulated::tiles[t][r],
                    emulated::shape.bytes[t]);
    }
}
inline void _tile_dpbf16ps(int sums, int a, int b) {
    using namespace emulated;
    const auto value = [](int t, int r, int i) {
        return widened(read<uint16_t>(&tiles[t][r][2 * i]));
    };
    for (int m = 0; m < shape.rows[sums]; m++) {
        for (int n = 0; n < shape.bytes[sums] / 4; n++) {
            float sum = read<float>(&tiles[sums][m][4 * n]);
            for (int k = 0; k < shape.bytes[a] / 4; k++) {
                sum += value(a, m, 2 * k) * value(b, k, 2 * n);
                sum += value(a, m, 2 * k + 1) * value(b, k, 2 * n + 1);
            }
            std::memcpy(&tiles[sums][m][4 * n], &sum, sizeof sum);
        }
    }
}
