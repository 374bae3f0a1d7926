// What speaking.cpp, transformer.cpp and training.cpp share.
//
// The loops there touch every (caption, region, width), every (word, vocabulary) or every (head,
// word, region) once. Each function is a formula of recurrence.py, heads.py, training/loss.py or
// search.py, letters as there. Those have them in torch too, for where there is no compiler, and
// the tests hold one against the other. What fuses here is what torch would write to memory and
// read again: nothing of size (B, K, L, A) is ever stored, and nothing of size (M, V) is in float32.
//
// The files are compiled once for each precision of the matrix products, T: PRODUCTS is bfloat16 or
// float32, and IS_bfloat16 or IS_float32 is defined. Arithmetic and sums are float. Sums are added
// up in an order that does not depend on the number of threads.

#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <memory>
#include <vector>
#if defined(__AVX512BF16__) && defined(IS_bfloat16)  // products of bf16 by the processor
#define NARROW
#include <immintrin.h>
#if defined(__AMX_BF16__) && defined(__linux__)  // and by its matrix unit
#define TILES
#include <sys/syscall.h>
#include <unistd.h>
#endif
#endif
#if defined(NARROW) || defined(IS_float32)  // captions are written here
#define SPEAKS
#endif

namespace {

using float32 = float;

struct bfloat16 {
    uint16_t bits;
};

inline float wide(float x) { return x; }

inline float wide(bfloat16 x) {
    const uint32_t bits = uint32_t(x.bits) << 16;
    float y;
    std::memcpy(&y, &bits, 4);
    return y;
}

inline void put(float& to, float x) { to = x; }

// Round to nearest, ties to even; what is not a number stays so.
inline void put(bfloat16& to, float x) {
    uint32_t bits;
    std::memcpy(&bits, &x, 4);
    const uint32_t rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
    to.bits = uint16_t(x == x ? rounded : 0x7fc0);
}

// e^x to float's rounding: 2^n times a polynomial of the rest. n is rounded by adding 1.5 * 2^23.
inline float exp_(float x) {
    x = x < -87.0f ? -87.0f : x;
    x = x > 88.0f ? 88.0f : x;
    const float shifted = x * 1.44269504f + 12582912.0f;
    const float n = shifted - 12582912.0f;
    const float r = (x - n * 0.693359375f) + n * 2.12194440e-4f;
    float p = 1.9875691500e-4f;
    p = p * r + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    p = p * r * r + r + 1.0f;
    const uint32_t power = uint32_t(int32_t(n) + 127) << 23;
    float scale;
    std::memcpy(&scale, &power, 4);
    return p * scale;
}

inline float sigmoid(float x) { return 1.0f / (1.0f + exp_(-x)); }

// tanh to float's rounding: the rational function of Eigen (MathFunctionsImpl.h, MPL 2), clamped
// where float's tanh is 1.
inline float tanh_(float x) {
    float y = x < -7.90531110763549805f ? -7.90531110763549805f : x;
    y = y > 7.90531110763549805f ? 7.90531110763549805f : y;
    const float s = y * y;
    float p = -2.76076847742355e-16f;
    p = p * s + 2.00018790482477e-13f;
    p = p * s + -8.60467152213735e-11f;
    p = p * s + 5.12229709037114e-08f;
    p = p * s + 1.48572235717979e-05f;
    p = p * s + 6.37261928875436e-04f;
    p = p * s + 4.89352455891786e-03f;
    float q = 1.19825839466702e-06f;
    q = q * s + 1.18534705686654e-04f;
    q = q * s + 2.26843463243900e-03f;
    q = q * s + 4.89352518554385e-03f;
    return y * p / q;
}

using T = PRODUCTS;

// Of scores whose greatest is known, in place.
inline void softmax(float* e, float most, int64_t L) {
    float sum = 0;
#pragma omp simd reduction(+ : sum)
    for (int64_t i = 0; i < L; i++) sum += e[i] = exp_(e[i] - most);
#pragma omp simd
    for (int64_t i = 0; i < L; i++) e[i] /= sum;
}

constexpr int64_t SOME = 5;  // captions of a photo at a time

#if defined(NARROW)

inline __m512 wide16(const bfloat16* x, __mmask16 mask) {
    const __m256i bits = _mm256_maskz_loadu_epi16(mask, x);
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(bits), 16));
}

// A tanh that is as far from tanh as 1.5e-4, less than a tenth of what rounding its argument to bf16
// can move it: a rational function, fitted on (-5, 5) to a largest error of 4.3e-5, and a quotient of
// 14 bits. What is not a number stays so.
inline __m512 tanh16(__m512 x) {
    x = _mm512_min_ps(_mm512_set1_ps(5.0f), _mm512_max_ps(_mm512_set1_ps(-5.0f), x));
    const __m512 s = _mm512_mul_ps(x, x);
    __m512 p = _mm512_set1_ps(6.549568411949376e-04f);
    p = _mm512_fmadd_ps(p, s, _mm512_set1_ps(0.10172358483918637f));
    p = _mm512_fmadd_ps(p, s, _mm512_set1_ps(0.9998101651335595f));
    __m512 q = _mm512_set1_ps(1.2639313264533304e-02f);
    q = _mm512_fmadd_ps(q, s, _mm512_set1_ps(0.4345045705679071f));
    q = _mm512_fmadd_ps(q, s, _mm512_set1_ps(1.0f));
    return _mm512_mul_ps(_mm512_mul_ps(x, p), _mm512_rcp14_ps(q));
}

inline __mmask16 lanes(int64_t left) { return left < 16 ? (__mmask16(1) << left) - 1 : 0xffff; }

#if defined(TILES)

// A tile of a product by the processor's matrix unit (AMX): up to 16 rows of x with 64 columns of y,
// which are packed by pairs: for each pair of the N values, the pair of each column. The unit takes 16
// pairs at a time. A row's sums do not depend on the rows beside it.
constexpr int HIGH = 16, DEEP = 16;

// Linux lends the unit to a process that asks.
bool matrix_unit() {
    constexpr long ASK = 0x1023, TILE_DATA = 18;  // arch/x86/include/uapi/asm/prctl.h
    static const bool lent = syscall(SYS_arch_prctl, ASK, TILE_DATA) == 0;
    return lent;
}

void set_up(int rows) {
    struct alignas(64) {
        uint8_t palette = 1, start = 0, reserved[14] = {};
        uint16_t bytes[16] = {};
        uint8_t rows[16] = {};
    } shape;
    for (int i = 0; i < 6; i++) {  // 0 to 3: sums, 4: rows of x, 5: columns of y
        shape.bytes[i] = 64;
        shape.rows[i] = i < 5 ? uint8_t(rows) : DEEP;
    }
    _tile_loadconfig(&shape);
}

// How many rows the next tile has of those that are left; the unit is set up for as many.
inline int next_rows(int64_t left, int& now) {
    const int rows = left < HIGH ? int(left) : HIGH;
    if (rows != now) set_up(now = rows);
    return rows;
}

void high_tile(const bfloat16* x, int64_t stride, const bfloat16* packed, const float* bias,
               float* out, int rows, int64_t pairs, int64_t width, int64_t columns) {
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
    for (int64_t p = 0; p < pairs; p += DEEP) {
        const bfloat16* y = packed + p * 128;
        _tile_loadd(4, x + p * 2, stride * 2);
        _tile_loadd(5, y, 256);
        _tile_dpbf16ps(0, 4, 5);
        _tile_loadd(5, y + 32, 256);
        _tile_dpbf16ps(1, 4, 5);
        _tile_loadd(5, y + 64, 256);
        _tile_dpbf16ps(2, 4, 5);
        _tile_loadd(5, y + 96, 256);
        _tile_dpbf16ps(3, 4, 5);
    }
    alignas(64) float sums[HIGH][64];
    _tile_stored(0, sums[0], 256);
    _tile_stored(1, sums[0] + 16, 256);
    _tile_stored(2, sums[0] + 32, 256);
    _tile_stored(3, sums[0] + 48, 256);
    columns = columns < 64 ? columns : 64;
    for (int r = 0; r < rows; r++) {
#pragma omp simd
        for (int64_t j = 0; j < columns; j++) out[r * width + j] = sums[r][j] + (bias ? bias[j] : 0);
    }
}

inline int64_t up(int64_t n, int64_t block) { return (n + block - 1) / block * block; }

#endif

#endif

}  // namespace
