// The loops that touch every (caption, region, width) or every (word, vocabulary) once.
//
// Each function is a formula of recurrence.py or of training/loss.py, letters as there.
// Both have them in torch too, for where there is no compiler, and the tests hold one against the
// other. What fuses here is what torch would write to memory and read again:
// nothing of size (B, K, L, A) is ever stored, and nothing of size (M, V) is in float32.
//
// The file is compiled once for each precision of the matrix products, T: PRODUCTS is bfloat16 or
// float32. Arithmetic and sums are float. Sums are added up in an order that does not depend on the
// number of threads.

#include <cmath>
#include <cstdint>
#include <cstring>
#include <vector>
#if defined(__AVX512BF16__)
#include <immintrin.h>
#endif
#if defined(__AVX512BF16__) && defined(IS_bfloat16)
#define ROUGH
#endif
#if defined(__AMX_BF16__) && defined(__linux__)
#define TILES
#include <sys/syscall.h>
#include <unistd.h>
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
    for (int64_t i = 0; i < L; i++) sum += e[i] = exp_(e[i] - most);
    for (int64_t i = 0; i < L; i++) e[i] /= sum;
}

// Softmax over the regions of score . tanh(key + query): alpha (L), for one row.
template <typename V>
inline void look_one(const V* key, const V* query, const float* score, float* out, int64_t L,
                     int64_t A) {
    float most = -3e38f;
    for (int64_t i = 0; i < L; i++, key += A) {
        float e = 0;
#pragma omp simd reduction(+ : e)
        for (int64_t a = 0; a < A; a++) e += score[a] * tanh_(wide(key[a]) + wide(query[a]));
        out[i] = e;
        most = e > most ? e : most;
    }
    softmax(out, most, L);
}

// The way back of one row's scores, without the factor v: see look_back.
template <typename V>
inline void look_back_one(const V* key, const V* query, const float* d_e, float* d_q, float* d_key,
                          float* d_v, int64_t L, int64_t A) {
    for (int64_t i = 0; i < L; i++, key += A, d_key += A) {
        const float d = d_e[i];
#pragma omp simd
        for (int64_t a = 0; a < A; a++) {
            const float r = tanh_(wide(key[a]) + wide(query[a]));
            const float slope = d - d * r * r;
            d_q[a] += slope;
            d_key[a] += slope;
            d_v[a] += d * r;
        }
    }
}

constexpr int64_t SOME = 5;    // captions of a photo at a time
constexpr int64_t PART = 128;  // channels whose sums stay in registers

// Some channels of the weighted sum of one row's regions (L, D).
template <typename V>
inline void gather_part(const float* alpha, const V* region, float* sum, int64_t width, int64_t L,
                        int64_t D) {
    for (int64_t d = 0; d < width; d++) sum[d] = 0;
    for (int64_t i = 0; i < L; i++, region += D) {
        const float a = alpha[i];
#pragma omp simd
        for (int64_t d = 0; d < width; d++) sum[d] += a * wide(region[d]);
    }
}

// The whole of it for ROWS rows of one photo, rounded to z (ROWS, D): what is read of a region is
// used for all of them. A row's sums are the same whatever stands beside it.
template <int ROWS>
inline void gather_rows(const float* alpha, const T* regions, T* z, int64_t L, int64_t D) {
    constexpr int64_t SPAN = ROWS > 1 ? 64 : PART;
    for (int64_t from = 0; from < D; from += SPAN) {
        const int64_t width = D - from < SPAN ? D - from : SPAN;
        float sum[ROWS][SPAN];
        if (width == SPAN) {
            for (int r = 0; r < ROWS; r++) {
                for (int64_t d = 0; d < SPAN; d++) sum[r][d] = 0;
            }
            const T* region = regions + from;
            for (int64_t i = 0; i < L; i++, region += D) {
#pragma GCC unroll 5
                for (int r = 0; r < ROWS; r++) {
                    const float a = alpha[r * L + i];
#pragma omp simd
                    for (int64_t d = 0; d < SPAN; d++) sum[r][d] += a * wide(region[d]);
                }
            }
        } else {
            for (int r = 0; r < ROWS; r++) {
                gather_part(alpha + r * L, regions + from, sum[r], width, L, D);
            }
        }
        for (int r = 0; r < ROWS; r++) {
            for (int64_t d = 0; d < width; d++) put(z[r * D + from + d], sum[r][d]);
        }
    }
}

// Products of ROWS rows with each of the regions (L, D) of their photo, (ROWS, L).
template <int ROWS>
inline void compare(const T* rows, const T* region, T* out, int64_t L, int64_t D) {
    for (int64_t i = 0; i < L; i++, region += D) {
        float sum[ROWS] = {};
        int64_t d = 0;
#if defined(__AVX512BF16__)
        if (sizeof(T) == 2) {
            __m512 sums[ROWS];
            for (int r = 0; r < ROWS; r++) sums[r] = _mm512_setzero_ps();
            for (; d + 32 <= D; d += 32) {
                const auto y = (__m512bh)_mm512_loadu_si512(region + d);
#pragma GCC unroll 5
                for (int r = 0; r < ROWS; r++) {
                    const auto x = (__m512bh)_mm512_loadu_si512(rows + r * D + d);
                    sums[r] = _mm512_dpbf16_ps(sums[r], x, y);
                }
            }
            for (int r = 0; r < ROWS; r++) sum[r] = _mm512_reduce_add_ps(sums[r]);
        }
#endif
        for (int r = 0; r < ROWS; r++) {
            float rest = 0;
#pragma omp simd reduction(+ : rest)
            for (int64_t e = d; e < D; e++) rest += wide(rows[r * D + e]) * wide(region[e]);
            put(out[r * L + i], sum[r] + rest);
        }
    }
}

template <typename V>
inline void cell_one(const V* p, const V* z, const V* x, const float* c, float* g, float* after,
                     V* h, int64_t N) {
#pragma omp simd
    for (int64_t j = 0; j < 3 * N; j++) g[j] = sigmoid(wide(p[j]) + wide(z[j]) + wide(x[j]));
#pragma omp simd
    for (int64_t j = 3 * N; j < 4 * N; j++) g[j] = tanh_(wide(p[j]) + wide(z[j]) + wide(x[j]));
#pragma omp simd
    for (int64_t j = 0; j < N; j++) {
        const float now = g[N + j] * c[j] + g[j] * g[3 * N + j];
        after[j] = now;
        put(h[j], g[2 * N + j] * tanh_(now));
    }
}

#if defined(__AVX512BF16__)

// The same for ROWS rows of one photo whose keys and queries are bf16, with a tanh that is as far
// from tanh as 1.5e-4: less than a tenth of what rounding its argument to bf16 can move it.

inline __m512 wide16(const bfloat16* x, __mmask16 mask) {
    const __m256i bits = _mm256_maskz_loadu_epi16(mask, x);
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(bits), 16));
}

// A rational function, fitted on (-5, 5) to a largest error of 4.3e-5, and a quotient of 14 bits.
// What is not a number stays so.
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

template <int ROWS>
void look_rows(const bfloat16* key, const bfloat16* queries, int64_t stride, const float* score,
               float* alpha, int64_t L, int64_t A) {
    const int64_t room = (A + 15) / 16 * 16;
    float query[ROWS * room];
    for (int r = 0; r < ROWS; r++) {
        for (int64_t a = 0; a < A; a++) query[r * room + a] = wide(queries[r * stride + a]);
        for (int64_t a = A; a < room; a++) query[r * room + a] = 0;
    }
    float most[ROWS];
    for (int r = 0; r < ROWS; r++) most[r] = -3e38f;
    for (int64_t i = 0; i < L; i++, key += A) {
        __m512 sum[ROWS];
#pragma GCC unroll 5
        for (int r = 0; r < ROWS; r++) sum[r] = _mm512_setzero_ps();
        for (int64_t a = 0; a < A; a += 16) {
            const __mmask16 mask = lanes(A - a);
            const __m512 k = wide16(key + a, mask), v = _mm512_maskz_loadu_ps(mask, score + a);
#pragma GCC unroll 5
            for (int r = 0; r < ROWS; r++) {
                const __m512 x = _mm512_add_ps(k, _mm512_loadu_ps(query + r * room + a));
                sum[r] = _mm512_fmadd_ps(v, tanh16(x), sum[r]);
            }
        }
#pragma GCC unroll 5
        for (int r = 0; r < ROWS; r++) {
            const float e = alpha[r * L + i] = _mm512_reduce_add_ps(sum[r]);
            most[r] = e > most[r] ? e : most[r];
        }
    }
    for (int r = 0; r < ROWS; r++) softmax(alpha + r * L, most[r], L);
}

// Its way back, without the factor v: see look_back. d_q (ROWS, A) and d_e (ROWS, L) are float.
template <int ROWS>
void look_back_rows(const bfloat16* key, const bfloat16* queries, int64_t stride, const float* d_e,
                    float* d_q, float* d_key, float* d_v, int64_t L, int64_t A) {
    for (int64_t i = 0; i < L; i++, key += A, d_key += A) {
        for (int64_t a = 0; a < A; a += 16) {
            const __mmask16 mask = lanes(A - a);
            const __m512 k = wide16(key + a, mask);
            __m512 by_key = _mm512_maskz_loadu_ps(mask, d_key + a);
            __m512 by_v = _mm512_maskz_loadu_ps(mask, d_v + a);
#pragma GCC unroll 5
            for (int r = 0; r < ROWS; r++) {
                float* to = d_q + r * A + a;
                const __m512 d = _mm512_set1_ps(d_e[r * L + i]);
                const __m512 t = tanh16(_mm512_add_ps(k, wide16(queries + r * stride + a, mask)));
                const __m512 dt = _mm512_mul_ps(d, t), slope = _mm512_fnmadd_ps(dt, t, d);
                const __m512 by_query = _mm512_maskz_loadu_ps(mask, to);
                _mm512_mask_storeu_ps(to, mask, _mm512_add_ps(by_query, slope));
                by_key = _mm512_add_ps(by_key, slope);
                by_v = _mm512_add_ps(by_v, dt);
            }
            _mm512_mask_storeu_ps(d_key + a, mask, by_key);
            _mm512_mask_storeu_ps(d_v + a, mask, by_v);
        }
    }
}

// A tile of a product: ROWS rows of x with 64 columns of y, which are packed by pairs: for each
// pair of the N values, the pair of each column. A row's sums are added up in the order of N
// whatever stands beside it.
template <int ROWS>
void tile(const bfloat16* x, const bfloat16* packed, const float* bias, float* out, int64_t pairs,
          int64_t width, int64_t columns) {
    constexpr int LANES = 16, VECTORS = 4;
    __m512 sum[ROWS][VECTORS];
#pragma GCC unroll 6
    for (int r = 0; r < ROWS; r++)
#pragma GCC unroll 4
        for (int v = 0; v < VECTORS; v++) sum[r][v] = _mm512_setzero_ps();
    for (int64_t p = 0; p < pairs; p++) {
        __m512bh y[VECTORS];
#pragma GCC unroll 4
        for (int v = 0; v < VECTORS; v++) {
            y[v] = (__m512bh)_mm512_loadu_si512(packed + (p * VECTORS + v) * 2 * LANES);
        }
#pragma GCC unroll 6
        for (int r = 0; r < ROWS; r++) {
            int32_t pair;
            std::memcpy(&pair, x + (r * pairs + p) * 2, 4);
            const auto both = (__m512bh)_mm512_set1_epi32(pair);
#pragma GCC unroll 4
            for (int v = 0; v < VECTORS; v++) sum[r][v] = _mm512_dpbf16_ps(sum[r][v], both, y[v]);
        }
    }
#pragma GCC unroll 4
    for (int v = 0; v < VECTORS; v++) {
        const int64_t left = columns - v * LANES;
        if (left <= 0) return;
        const __mmask16 mask = left < LANES ? (__mmask16(1) << left) - 1 : 0xffff;
        const __m512 b = bias ? _mm512_maskz_loadu_ps(mask, bias + v * LANES) : _mm512_setzero_ps();
#pragma GCC unroll 6
        for (int r = 0; r < ROWS; r++) {
            _mm512_mask_storeu_ps(out + r * width + v * LANES, mask, _mm512_add_ps(sum[r][v], b));
        }
    }
}

#if defined(TILES)

// The same tile of up to 16 rows by the processor's matrix unit (AMX), which takes 16 pairs at a
// time. A row's sums do not depend on the rows beside it here either.
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

#endif

#if defined(TILES)

inline int64_t up(int64_t n, int64_t block) { return (n + block - 1) / block * block; }

// Rows (count, W) as the columns of a product over W, see tile; what is missing is zero.
void as_columns(const bfloat16* x, int64_t stride, bfloat16* packed, int64_t count, int64_t W) {
    if (count % 64) std::memset((void*)packed, 0, up(count, 64) * W * sizeof(bfloat16));
    for (int64_t j = 0; j < count; j++) {
        bfloat16* to = packed + j / 64 * 64 * W + j % 64 * 2;
        for (int64_t p = 0; p < W / 2; p++) std::memcpy(to + p * 128, x + j * stride + p * 2, 4);
    }
}

// Two rows of 32 values as 32 pairs.
inline void as_pairs(__m512i a, __m512i b, bfloat16* to) {
    alignas(64) static constexpr uint16_t ORDER[2][32] = {
        {0, 32, 1, 33, 2, 34, 3, 35, 4, 36, 5, 37, 6, 38, 7, 39,
         8, 40, 9, 41, 10, 42, 11, 43, 12, 44, 13, 45, 14, 46, 15, 47},
        {16, 48, 17, 49, 18, 50, 19, 51, 20, 52, 21, 53, 22, 54, 23, 55,
         24, 56, 25, 57, 26, 58, 27, 59, 28, 60, 29, 61, 30, 62, 31, 63}};
    const __m512i first = _mm512_load_si512(ORDER[0]), second = _mm512_load_si512(ORDER[1]);
    _mm512_storeu_si512(to, _mm512_permutex2var_epi16(a, first, b));
    _mm512_storeu_si512(to + 32, _mm512_permutex2var_epi16(a, second, b));
}

// Rows (count, W), W 32 or 64, as the rows of a product over them; what is missing is zero.
void as_rows(const bfloat16* x, int64_t stride, bfloat16* packed, int64_t count, int64_t W) {
    for (int64_t j = 0; j < up(count, 32); j += 2, x += 2 * stride, packed += 128) {
        for (int64_t w = 0; w < 64; w += 32) {
            const bool one = j < count && w < W, two = j + 1 < count && w < W;
            const __m512i none = _mm512_setzero_si512();
            as_pairs(one ? _mm512_loadu_si512(x + w) : none,
                     two ? _mm512_loadu_si512(x + stride + w) : none, packed + w * 2);
        }
    }
}

// Turn (tall, wide), tall a multiple of 32 and wide of 32, into its first L columns (L, tall).
void turn(const bfloat16* x, bfloat16* turned, bfloat16* room, int64_t tall, int64_t wide,
          int64_t L) {
    for (int64_t p = 0; p < tall; p += 2) {
        for (int64_t j = 0; j < wide; j += 32) {
            as_pairs(_mm512_loadu_si512(x + p * wide + j),
                     _mm512_loadu_si512(x + (p + 1) * wide + j), room + p * wide + j * 2);
        }
    }
    const __m512i order = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
    const __m512i places = _mm512_mullo_epi32(order, _mm512_set1_epi32(int(wide)));
    for (int64_t j = 0; j < L; j++) {
        for (int64_t p = 0; p < tall; p += 32) {
            const __m512i pairs = _mm512_i32gather_epi32(places, room + p * wide + j * 2, 4);
            _mm512_storeu_si512(turned + j * tall + p, pairs);
        }
    }
}

inline void put_rows(const float* x, bfloat16* to, int64_t stride, int rows, int64_t W) {
    for (int r = 0; r < rows; r++) {
#pragma omp simd
        for (int64_t w = 0; w < W; w++) put(to[r * stride + w], x[r * 64 + w]);
    }
}

#endif

// out (M, width), float: x (M, 2 pairs) by packed columns, see tile, and a bias. To be called by
// all threads of a team.
void product(const bfloat16* x, const bfloat16* packed, const float* bias, float* out, int64_t M,
             int64_t pairs, int64_t width) {
#if defined(TILES)
    if (pairs % DEEP == 0 && matrix_unit()) {
        int now = 0;
#pragma omp for schedule(static)
        for (int64_t column = 0; column < width; column += 64) {
            for (int64_t m = 0; m < M; m += HIGH) {
                const int rows = M - m < HIGH ? int(M - m) : HIGH;
                if (rows != now) set_up(now = rows);
                high_tile(x + m * pairs * 2, pairs * 2, packed + column * pairs * 2,
                          bias ? bias + column : nullptr, out + m * width + column, rows, pairs,
                          width, width - column);
            }
        }
        if (now) _tile_release();
        return;
    }
#endif
#pragma omp for schedule(static)
    for (int64_t column = 0; column < width; column += 64) {
        const bfloat16* y = packed + column * pairs * 2;
        const float* b = bias ? bias + column : nullptr;
        const int64_t columns = width - column;
        int64_t m = 0;
        for (; m + 6 <= M; m += 6) {
            tile<6>(x + m * pairs * 2, y, b, out + m * width + column, pairs, width, columns);
        }
        const bfloat16* rest = x + m * pairs * 2;
        float* to = out + m * width + column;
        switch (M - m) {
            case 5: tile<5>(rest, y, b, to, pairs, width, columns); break;
            case 4: tile<4>(rest, y, b, to, pairs, width, columns); break;
            case 3: tile<3>(rest, y, b, to, pairs, width, columns); break;
            case 2: tile<2>(rest, y, b, to, pairs, width, columns); break;
            case 1: tile<1>(rest, y, b, to, pairs, width, columns); break;
        }
    }
}

// Rows of floats to bf16.
void narrow(const float* x, bfloat16* out, int64_t count) {
#pragma omp for schedule(static)
    for (int64_t block = 0; block < count; block += 512) {
        const int64_t end = block + 512 < count ? block + 512 : count;
#pragma omp simd
        for (int64_t i = block; i < end; i++) put(out[i], x[i]);
    }
}

#endif

}  // namespace

extern "C" {

void look(const T* keys, const T* queries, int64_t stride, const float* score, float* alpha,
          int64_t B, int64_t K, int64_t L, int64_t A, int threads) {
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t b = 0; b < B; b++) {
        const T* key = keys + b * L * A;
        int64_t row = b * K;
        const int64_t end = row + K;
#if defined(ROUGH)
        for (; row + 5 <= end; row += 5) {
            look_rows<5>(key, queries + row * stride, stride, score, alpha + row * L, L, A);
        }
        for (; row < end; row++) {
            look_rows<1>(key, queries + row * stride, stride, score, alpha + row * L, L, A);
        }
#endif
        for (; row < end; row++) {
            look_one(key, queries + row * stride, score, alpha + row * L, L, A);
        }
    }
}

void gather(const float* alpha, const T* regions, T* z, int64_t B, int64_t K, int64_t L, int64_t D,
            int threads) {
#pragma omp parallel for num_threads(threads) schedule(static) if (B > 1)
    for (int64_t b = 0; b < B; b++) {
        const T* region = regions + b * L * D;
        int64_t row = b * K;
        const int64_t end = row + K;
        for (; row + 5 <= end; row += 5) gather_rows<5>(alpha + row * L, region, z + row * D, L, D);
        for (; row + 3 <= end; row += 3) gather_rows<3>(alpha + row * L, region, z + row * D, L, D);
        for (; row < end; row++) gather_rows<1>(alpha + row * L, region, z + row * D, L, D);
    }
}

// The gradient by the weights alpha, (B, K, L), of that by z, (B, K, D).
void gather_back(const T* d_z, const T* regions, T* d_alpha, int64_t B, int64_t K, int64_t L,
                 int64_t D, int threads) {
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t b = 0; b < B; b++) {
        const T* region = regions + b * L * D;
        int64_t row = b * K;
        const int64_t end = row + K;
        for (; row + 5 <= end; row += 5) compare<5>(d_z + row * D, region, d_alpha + row * L, L, D);
        for (; row < end; row++) compare<1>(d_z + row * D, region, d_alpha + row * L, L, D);
    }
}

// d_keys (B, L, A) and d_score (B, A) are added to, d_keys without its factor v.
void look_back(const T* keys, const T* queries, int64_t stride, const float* score,
               const float* alpha, const T* d_alpha, const float* d_alpha_too, T* d_queries,
               int64_t d_stride, float* d_keys, float* d_score, int64_t B, int64_t K, int64_t L,
               int64_t A, int threads) {
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t b = 0; b < B; b++) {
        const T* key = keys + b * L * A;
        float *d_key = d_keys + b * L * A, *d_v = d_score + b * A;
        float d_e[SOME * L], d_q[SOME * A];
        for (int64_t k = 0; k < K; k += SOME) {
            const int64_t row = b * K + k, rows = K - k < SOME ? K - k : SOME;
            for (int64_t r = 0; r < rows; r++) {
                float mean = 0, *to = d_e + r * L;
                for (int64_t i = 0; i < L; i++) {
                    const int64_t at = (row + r) * L + i;
                    to[i] = wide(d_alpha[at]) + (d_alpha_too ? d_alpha_too[at] : 0.0f);
                    mean += alpha[at] * to[i];
                }
                for (int64_t i = 0; i < L; i++) to[i] = alpha[(row + r) * L + i] * (to[i] - mean);
            }
            for (int64_t j = 0; j < rows * A; j++) d_q[j] = 0;
            const T* query = queries + row * stride;
#if defined(ROUGH)
            if (rows == SOME) {
                look_back_rows<SOME>(key, query, stride, d_e, d_q, d_key, d_v, L, A);
            } else {
                for (int64_t r = 0; r < rows; r++) {
                    look_back_rows<1>(key, query + r * stride, stride, d_e + r * L, d_q + r * A,
                                      d_key, d_v, L, A);
                }
            }
#else
            for (int64_t r = 0; r < rows; r++) {
                look_back_one(key, query + r * stride, d_e + r * L, d_q + r * A, d_key, d_v, L, A);
            }
#endif
            for (int64_t r = 0; r < rows; r++) {
                T* to = d_queries + (row + r) * d_stride;
                for (int64_t a = 0; a < A; a++) put(to[a], score[a] * d_q[r * A + a]);
            }
        }
    }
}

void cell(const T* past, int64_t stride, const T* context, const T* words, const float* before,
          float* gates, float* after, T* h, int64_t R, int64_t N, int threads) {
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t row = 0; row < R; row++) {
        cell_one(past + row * stride, context + row * 4 * N, words + row * 4 * N, before + row * N,
                 gates + row * 4 * N, after + row * N, h + row * N, N);
    }
}

void cell_back(const float* gates, const float* before, const float* after, const T* d_h,
               const T* d_output, float* d_c, T* d_gates, int64_t d_stride, int64_t R, int64_t N,
               int threads) {
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t row = 0; row < R; row++) {
        const float* g = gates + row * 4 * N;
        T* d_g = d_gates + row * d_stride;
#pragma omp simd
        for (int64_t j = 0; j < N; j++) {
            const int64_t at = row * N + j;
            const float i = g[j], f = g[N + j], o = g[2 * N + j], n = g[3 * N + j];
            const float d = wide(d_h[at]) + wide(d_output[at]);
            const float squashed = tanh_(after[at]);
            const float d_cell = d_c[at] + d * o * (1 - squashed * squashed);
            put(d_g[j], d_cell * n * i * (1 - i));
            put(d_g[N + j], d_cell * before[at] * f * (1 - f));
            put(d_g[2 * N + j], d * squashed * o * (1 - o));
            put(d_g[3 * N + j], d_cell * i * (1 - n * n));
            d_c[at] = d_cell * f;
        }
    }
}

// For each word: the logarithm of the sum of e^logit, -log p(target), and the mean of all -log p; zero
// where the target is negative.
void surprise(const T* logits, const int64_t* targets, float* normaliser, float* nll,
              float* spread, int64_t M, int64_t V, int threads) {
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t m = 0; m < M; m++) {
        const T* row = logits + m * V;
        float most = -3e38f, total = 0, sum = 0;
        if (targets[m] < 0) {
            normaliser[m] = nll[m] = spread[m] = 0;
            continue;
        }
#pragma omp simd reduction(max : most) reduction(+ : total)
        for (int64_t j = 0; j < V; j++) {
            const float x = wide(row[j]);
            most = x > most ? x : most;
            total += x;
        }
#pragma omp simd reduction(+ : sum)
        for (int64_t j = 0; j < V; j++) sum += exp_(wide(row[j]) - most);
        normaliser[m] = most + std::log(sum);
        nll[m] = normaliser[m] - wide(row[targets[m]]);
        spread[m] = normaliser[m] - total / float(V);
    }
}

// The gradient takes the place of the logits: scale * weight * (p - smoothed target), the weight of
// each word 1 where there are none.
void surprise_back(T* logits, const int64_t* targets, const float* normaliser,
                   const float* weights, float all, float smoothing, int64_t M, int64_t V,
                   int threads) {
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t m = 0; m < M; m++) {
        T* row = logits + m * V;
        if (targets[m] < 0) {
            for (int64_t j = 0; j < V; j++) put(row[j], 0);
            continue;
        }
        const float even = smoothing / float(V), sum = normaliser[m];
        const float scale = weights ? all * weights[m] : all;
        const float target = exp_(wide(row[targets[m]]) - sum) - even - (1 - smoothing);
#pragma omp simd
        for (int64_t j = 0; j < V; j++) put(row[j], scale * (exp_(wide(row[j]) - sum) - even));
        put(row[targets[m]], scale * target);
    }
}

// Dropout: a value stays, scaled, if its byte of randomness is at least `dropped`. Eight bytes are the
// seed and the place by SplitMix64 (Steele et al., "Fast splittable pseudorandom number generators",
// 2014), so the way back, with the same seed, needs nothing else.
void drop(const T* x, T* out, int64_t seed, int64_t count, int64_t dropped, float scale,
          int threads) {
    constexpr int64_t BLOCK = 64;
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t from = 0; from < count; from += BLOCK) {
        uint64_t numbers[BLOCK / 8];
        for (int64_t j = 0; j < BLOCK / 8; j++) {
            uint64_t z = uint64_t(seed) + uint64_t(from / 8 + j + 1) * 0x9e3779b97f4a7c15u;
            z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
            z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
            numbers[j] = z ^ (z >> 31);
        }
        uint8_t bytes[BLOCK];
        std::memcpy(bytes, numbers, BLOCK);
        const int64_t width = count - from < BLOCK ? count - from : BLOCK;
#pragma omp simd
        for (int64_t j = 0; j < width; j++) {
            put(out[from + j], bytes[j] >= dropped ? wide(x[from + j]) * scale : 0.0f);
        }
    }
}

// Log-probabilities (R, V) of logits; the words of a list are left out of the distribution.
void log_probabilities(const float* logits, const int64_t* left_out, float* scores, int64_t R,
                       int64_t V, int64_t count, int threads) {
#pragma omp parallel for num_threads(threads) schedule(static) if (R * V > 65536)
    for (int64_t r = 0; r < R; r++) {
        float* row = scores + r * V;
        std::memcpy(row, logits + r * V, V * sizeof(float));
        for (int64_t i = 0; i < count; i++) row[left_out[i]] = -INFINITY;
        float most = -3e38f, sum = 0;
#pragma omp simd reduction(max : most)
        for (int64_t j = 0; j < V; j++) most = row[j] > most ? row[j] : most;
#pragma omp simd reduction(+ : sum)
        for (int64_t j = 0; j < V; j++) sum += exp_(row[j] - most);
        const float normaliser = most + std::log(sum);
#pragma omp simd
        for (int64_t j = 0; j < V; j++) row[j] -= normaliser;
    }
}

// The k greatest scores of each row (R, V), greatest first, of equal ones the first first.
void leading(const float* scores, float* values, int64_t* ids, int64_t R, int64_t V, int64_t k,
             int threads) {
#pragma omp parallel for num_threads(threads) schedule(static) if (R * V > 65536)
    for (int64_t r = 0; r < R; r++) {
        const float* row = scores + r * V;
        float* value = values + r * k;
        int64_t* id = ids + r * k;
        int64_t kept = 0;
        for (int64_t from = 0; from < V; from += 64) {
            const int64_t end = from + 64 < V ? from + 64 : V;
            float most = -INFINITY;
#pragma omp simd reduction(max : most)
            for (int64_t j = from; j < end; j++) most = row[j] > most ? row[j] : most;
            if (kept == k && !(most > value[k - 1])) continue;
            for (int64_t j = from; j < end; j++) {
                int64_t at = kept;
                if (kept < k) {
                    kept++;
                } else if (row[j] > value[k - 1]) {
                    at = k - 1;
                } else {
                    continue;
                }
                for (; at > 0 && row[j] > value[at - 1]; at--) {
                    value[at] = value[at - 1];
                    id[at] = id[at - 1];
                }
                value[at] = row[j];
                id[at] = j;
            }
        }
    }
}

#if defined(__AVX512BF16__)

// From float16, as the feature cache has it.
void from_half(const uint16_t* x, bfloat16* out, int64_t count, int threads) {
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t from = 0; from < count; from += 16) {
        const __mmask16 mask = lanes(count - from);
        const __m512 y = _mm512_cvtph_ps(_mm256_maskz_loadu_epi16(mask, x + from));
        _mm256_mask_storeu_epi16(out + from, mask, (__m256i)_mm512_cvtneps_pbh(y));
    }
}

#if defined(TILES)

// Whether the processor's matrix unit may be used.
void lent(int64_t* answer, int) { *answer = matrix_unit(); }

// The columns of a product, see tile, from a matrix (width, 2 pairs) of which each row is one.
void pack(const bfloat16* rows, bfloat16* packed, int64_t pairs, int64_t width, int threads) {
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t column = 0; column < width; column++) {
        const bfloat16* row = rows + column * pairs * 2;
        bfloat16* to = packed + column / 64 * pairs * 128 + column % 64 * 2;
        for (int64_t p = 0; p < pairs; p++) std::memcpy(to + p * 128, row + p * 2, 4);
    }
}

// The same from a matrix (2 pairs, width) that has them as its columns.
void pack_turned(const bfloat16* rows, bfloat16* packed, int64_t pairs, int64_t width,
                 int threads) {
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t column = 0; column < width; column += 64) {
        const int64_t columns = width - column < 64 ? width - column : 64;
        bfloat16* to = packed + column * pairs * 2;
        const bfloat16* row = rows + column;
        for (int64_t p = 0; p < pairs; p++, to += 128, row += 2 * width) {
            for (int64_t j = 0; j < columns; j++) {
                to[j * 2] = row[j];
                to[j * 2 + 1] = row[width + j];
            }
        }
    }
}

// out (M, width), rounded: x (M, 2 pairs) by packed columns, on the matrix unit.
void times(const bfloat16* x, int64_t stride, const bfloat16* packed, bfloat16* out,
           int64_t out_stride, int64_t M, int64_t pairs, int64_t width, int threads) {
#pragma omp parallel num_threads(threads)
    {
        int now = 0;
#pragma omp for schedule(static)
        for (int64_t column = 0; column < width; column += 64) {
            const int64_t columns = width - column < 64 ? width - column : 64;
            for (int64_t m = 0; m < M; m += HIGH) {
                const int rows = M - m < HIGH ? int(M - m) : HIGH;
                if (rows != now) set_up(now = rows);
                float sums[HIGH * 64];
                high_tile(x + m * stride, stride, packed + column * pairs * 2, nullptr, sums, rows,
                          pairs, 64, columns);
                for (int r = 0; r < rows; r++) {
                    bfloat16* to = out + (m + r) * out_stride + column;
#pragma omp simd
                    for (int64_t j = 0; j < columns; j++) put(to[j], sums[r * 64 + j]);
                }
            }
        }
        if (now) _tile_release();
    }
}

// --- attention of heads.py: one head of one row at a time ---------------------------------------

void attend(const bfloat16* q, int64_t q_stride, const bfloat16* k, const bfloat16* v,
            int64_t kv_stride, bfloat16* found, bfloat16* weights, int64_t rows, int64_t heads,
            int64_t Q, int64_t L, int64_t W, int64_t causal, float scale, int threads) {
    const int64_t wide = up(L, 64), deep = up(L, 32), N = heads * W;
#pragma omp parallel num_threads(threads)
    {
        std::vector<bfloat16> keys(wide * W), values(deep * 64), p(HIGH * deep);
        std::vector<float> s(HIGH * wide);
        float o[HIGH * 64];
        int now = 0;
#pragma omp for schedule(static)
        for (int64_t i = 0; i < rows * heads; i++) {
            const int64_t row = i / heads, at = i % heads * W;
            const bfloat16* query = q + row * Q * q_stride + at;
            as_columns(k + row * L * kv_stride + at, kv_stride, keys.data(), L, W);
            as_rows(v + row * L * kv_stride + at, kv_stride, values.data(), L, W);
            for (int64_t m = 0; m < Q; m += HIGH) {
                const int some = Q - m < HIGH ? int(Q - m) : HIGH;
                if (some != now) set_up(now = some);
                for (int64_t j = 0; j < wide; j += 64) {
                    high_tile(query + m * q_stride, q_stride, keys.data() + j * W, nullptr,
                              s.data() + j, some, W / 2, wide, 64);
                }
                for (int r = 0; r < some; r++) {
                    const int64_t asked = causal && m + r + 1 < L ? m + r + 1 : L;
                    float *e = s.data() + r * wide, most = -3e38f, sum = 0;
#pragma omp simd reduction(max : most)
                    for (int64_t j = 0; j < asked; j++) most = e[j] > most ? e[j] : most;
#pragma omp simd reduction(+ : sum)
                    for (int64_t j = 0; j < asked; j++) sum += e[j] = exp_(scale * (e[j] - most));
                    const float part = 1 / sum;
                    bfloat16 *to = p.data() + r * deep, *kept = weights + (i * Q + m + r) * L;
#pragma omp simd
                    for (int64_t j = 0; j < asked; j++) put(to[j], e[j] * part);
                    for (int64_t j = asked; j < deep; j++) put(to[j], 0);
                    std::memcpy(kept, to, L * sizeof(bfloat16));
                }
                high_tile(p.data(), deep, values.data(), nullptr, o, some, deep / 2, 64, 64);
                put_rows(o, found + (row * Q + m) * N + at, N, some, W);
            }
        }
        if (now) _tile_release();
    }
}

void attend_back(const bfloat16* q, int64_t q_stride, const bfloat16* k, const bfloat16* v,
                 int64_t kv_stride, const bfloat16* weights, const bfloat16* d_found,
                 const bfloat16* d_weights, bfloat16* d_q, bfloat16* d_k, bfloat16* d_v,
                 int64_t rows, int64_t heads, int64_t Q, int64_t L, int64_t W, float scale,
                 int threads) {
    const int64_t wide = up(L, 64), deep = up(L, 32), tall = up(Q, 32), N = heads * W;
#pragma omp parallel num_threads(threads)
    {
        std::vector<bfloat16> values(wide * W), keys(deep * 64), queries(tall * 64);
        std::vector<bfloat16> by_found(tall * 64), p(tall * deep), d_s(tall * deep);
        std::vector<bfloat16> p_turned(L * tall), d_s_turned(L * tall), room(tall * deep);
        std::vector<float> d_p(HIGH * wide);
        float o[HIGH * 64];
        int now = 0;
#pragma omp for schedule(static)
        for (int64_t i = 0; i < rows * heads; i++) {
            const int64_t row = i / heads, at = i % heads * W;
            const bfloat16* query = q + row * Q * q_stride + at;
            const bfloat16* d_o = d_found + row * Q * N + at;
            const int64_t known = row * L * kv_stride + at;
            as_columns(v + known, kv_stride, values.data(), L, W);
            as_rows(k + known, kv_stride, keys.data(), L, W);
            as_rows(query, q_stride, queries.data(), Q, W);
            as_rows(d_o, N, by_found.data(), Q, W);
            for (int64_t m = 0; m < Q; m += HIGH) {
                const int some = Q - m < HIGH ? int(Q - m) : HIGH;
                if (some != now) set_up(now = some);
                for (int64_t j = 0; j < wide; j += 64) {
                    high_tile(d_o + m * N, N, values.data() + j * W, nullptr, d_p.data() + j, some,
                              W / 2, wide, 64);
                }
                for (int r = 0; r < some; r++) {  // beyond the last query all stays zero
                    const int64_t place = (i * Q + m + r) * L;
                    bfloat16 *is = p.data() + (m + r) * deep, *to = d_s.data() + (m + r) * deep;
                    std::memcpy(is, weights + place, L * sizeof(bfloat16));
                    float *d = d_p.data() + r * wide, mean = 0;
                    if (d_weights) {
                        for (int64_t j = 0; j < L; j++) d[j] += ::wide(d_weights[place + j]);
                    }
#pragma omp simd reduction(+ : mean)
                    for (int64_t j = 0; j < L; j++) mean += ::wide(is[j]) * d[j];
#pragma omp simd
                    for (int64_t j = 0; j < L; j++) {
                        put(to[j], ::wide(is[j]) * (d[j] - mean) * scale);
                    }
                }
                high_tile(d_s.data() + m * deep, deep, keys.data(), nullptr, o, some, deep / 2, 64,
                          64);
                put_rows(o, d_q + (row * Q + m) * q_stride + at, q_stride, some, W);
            }
            turn(p.data(), p_turned.data(), room.data(), tall, deep, L);
            turn(d_s.data(), d_s_turned.data(), room.data(), tall, deep, L);
            for (int64_t j = 0; j < L; j += HIGH) {
                const int some = L - j < HIGH ? int(L - j) : HIGH;
                if (some != now) set_up(now = some);
                high_tile(d_s_turned.data() + j * tall, tall, queries.data(), nullptr, o, some,
                          tall / 2, 64, 64);
                put_rows(o, d_k + known + j * kv_stride, kv_stride, some, W);
                high_tile(p_turned.data() + j * tall, tall, by_found.data(), nullptr, o, some,
                          tall / 2, 64, 64);
                put_rows(o, d_v + known + j * kv_stride, kv_stride, some, W);
            }
        }
        if (now) _tile_release();
    }
}

#endif

// See product.
void multiply(const bfloat16* x, const bfloat16* packed, const float* bias, float* out, int64_t M,
              int64_t pairs, int64_t width, int threads) {
#pragma omp parallel num_threads(threads)
    product(x, packed, bias, out, M, pairs, width);
}

// One word of the LSTM for R rows, each of a photo of its own or another's: what step() of lstm.py
// is, in one team of threads. past is the gates, the query and, where there is a gate, its
// argument; P values a row. N, A and D are even.
void say(const float* h, const float* c, const int64_t* tokens, const int64_t* photo,
         const bfloat16* keys, const float* regions, const float* score, const bfloat16* of_past,
         const float* past_bias, const bfloat16* of_context, const float* words,
         const bfloat16* of_score, const float* score_bias, float* after_h, float* after_c,
         float* alpha, float* logits, float* room, int64_t R, int64_t L, int64_t D, int64_t A,
         int64_t N, int64_t P, int64_t V, int threads) {
    float *past = room, *context = past + R * P, *gates = context + R * 4 * N;
    auto* small = reinterpret_cast<bfloat16*>(gates + R * 4 * N);  // R * max(N, D)
    const bool gated = P > 4 * N + A;
#pragma omp parallel num_threads(threads)
    {
        narrow(h, small, R * N);
        product(small, of_past, past_bias, past, R, N / 2, P);
#pragma omp for schedule(static)
        for (int64_t r = 0; r < R; r++) {
            bfloat16 query[A];
            for (int64_t a = 0; a < A; a++) put(query[a], past[r * P + 4 * N + a]);
            look_rows<1>(keys + photo[r] * L * A, query, A, score, alpha + r * L, L, A);
        }
#pragma omp for schedule(static) collapse(2)
        for (int64_t r = 0; r < R; r++) {
            for (int64_t from = 0; from < D; from += PART) {
                const int64_t width = D - from < PART ? D - from : PART;
                float sum[PART];
                gather_part(alpha + r * L, regions + photo[r] * L * D + from, sum, width, L, D);
                const float* opening = past + r * P + 4 * N + A + from;
                if (gated) {
#pragma omp simd
                    for (int64_t d = 0; d < width; d++) sum[d] *= sigmoid(opening[d]);
                }
                for (int64_t d = 0; d < width; d++) put(small[r * D + from + d], sum[d]);
            }
        }
        product(small, of_context, nullptr, context, R, D / 2, 4 * N);
#pragma omp for schedule(static)
        for (int64_t r = 0; r < R; r++) {
            cell_one(past + r * P, context + r * 4 * N, words + tokens[r] * 4 * N, c + r * N,
                     gates + r * 4 * N, after_c + r * N, after_h + r * N, N);
        }
        narrow(after_h, small, R * N);
        product(small, of_score, score_bias, logits, R, N / 2, V);
    }
}

#endif

}  // extern "C"
