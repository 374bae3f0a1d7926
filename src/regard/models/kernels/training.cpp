// What only training needs. See common.h.

#include "common.h"

namespace {

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

// Products of ROWS rows with each of the regions (L, D) of their photo, (ROWS, L).
template <int ROWS>
inline void compare(const T* rows, const T* region, T* out, int64_t L, int64_t D) {
    for (int64_t i = 0; i < L; i++, region += D) {
        float sum[ROWS] = {};
        int64_t d = 0;
#if defined(NARROW)
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
#endif
        for (int r = 0; r < ROWS; r++) {
            float rest = 0;
#pragma omp simd reduction(+ : rest)
            for (int64_t e = d; e < D; e++) rest += wide(rows[r * D + e]) * wide(region[e]);
            put(out[r * L + i], sum[r] + rest);
        }
    }
}

#if defined(NARROW)

// The way back of look for ROWS rows of one photo whose keys and queries are bf16, with the quicker
// tanh and without the factor v: see look_back. d_q (ROWS, A) and d_e (ROWS, L) are float.
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

#endif

#if defined(TILES)

// Some values (W) as column j of a product over them, see high_tile.
inline void as_column(const bfloat16* x, bfloat16* packed, int64_t j, int64_t W) {
    bfloat16* to = packed + j / 64 * 64 * W + j % 64 * 2;
    for (int64_t p = 0; p < W / 2; p++) std::memcpy(to + p * 128, x + p * 2, 4);
}

// Rows (count, W) as the columns; what is missing is zero.
void as_columns(const bfloat16* x, int64_t stride, bfloat16* packed, int64_t count, int64_t W) {
    if (count % 64) std::memset((void*)packed, 0, up(count, 64) * W * sizeof(bfloat16));
    for (int64_t j = 0; j < count; j++) as_column(x + j * stride, packed, j, W);
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

// Rows (count, W), W at most 64, as the rows of a product over them; what is missing is zero.
void as_rows(const bfloat16* x, int64_t stride, bfloat16* packed, int64_t count, int64_t W) {
    for (int64_t j = 0; j < up(count, 32); j += 2, x += 2 * stride, packed += 128) {
        for (int64_t w = 0; w < 64; w += 32) {
            const int64_t left = W - w;
            const __mmask32 all = left >= 32 ? ~0u : left > 0 ? (1u << left) - 1 : 0;
            as_pairs(_mm512_maskz_loadu_epi16(j < count ? all : 0, x + w),
                     _mm512_maskz_loadu_epi16(j + 1 < count ? all : 0, x + stride + w),
                     packed + w * 2);
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

}  // namespace

extern "C" {

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
#if defined(NARROW)
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

// The gradient takes the place of the logits: scale * weight * (p - target), where the target is
// `said` for the word and `smoothing` spread over all; the weight of each word is 1 where there are
// none.
void surprise_back(T* logits, const int64_t* targets, const float* normaliser,
                   const float* weights, float all, float smoothing, float said, int64_t M,
                   int64_t V, int threads) {
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t m = 0; m < M; m++) {
        T* row = logits + m * V;
        if (targets[m] < 0) {
            for (int64_t j = 0; j < V; j++) put(row[j], 0);
            continue;
        }
        const float even = smoothing / float(V), sum = normaliser[m];
        const float scale = weights ? all * weights[m] : all;
        const float target = exp_(wide(row[targets[m]]) - sum) - even - said;
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

#if defined(NARROW)

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

// The columns of a product from a matrix (width, 2 pairs) of which each row is one.
void pack(const bfloat16* rows, bfloat16* packed, int64_t pairs, int64_t width, int threads) {
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t j = 0; j < width; j++) as_column(rows + j * pairs * 2, packed, j, pairs * 2);
}

// The same from a matrix (2 pairs, width) that has them as its columns; pairs a multiple of 16.
void pack_turned(const bfloat16* rows, bfloat16* packed, int64_t pairs, int64_t width,
                 int threads) {
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t column = 0; column < width; column += 64) {
        const int64_t columns = width - column < 64 ? width - column : 64;
        as_rows(rows + column, width, packed + column * pairs * 2, pairs * 2, columns);
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
                const int rows = next_rows(M - m, now);
                float sums[HIGH * 64];
                high_tile(x + m * stride, stride, packed + column * pairs * 2, nullptr, sums, rows,
                          pairs, 64, columns);
                put_rows(sums, out + m * out_stride + column, out_stride, rows, columns);
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
                const int some = next_rows(Q - m, now);
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
                const int some = next_rows(Q - m, now);
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
                const int some = next_rows(L - j, now);
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

#endif

}  // extern "C"
