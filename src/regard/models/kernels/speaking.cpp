// What a captioner needs to speak, and training too. See common.h.

#include "common.h"

namespace {

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

// Log-probabilities of V logits; the words of a list are left out of the distribution.
inline void log_probabilities_one(const float* logits, const int64_t* left_out, float* scores,
                                  int64_t V, int64_t count) {
    std::memcpy(scores, logits, V * sizeof(float));
    for (int64_t i = 0; i < count; i++) scores[left_out[i]] = -INFINITY;
    float most = -3e38f, sum = 0;
#pragma omp simd reduction(max : most)
    for (int64_t j = 0; j < V; j++) most = scores[j] > most ? scores[j] : most;
#pragma omp simd reduction(+ : sum)
    for (int64_t j = 0; j < V; j++) sum += exp_(scores[j] - most);
    const float normaliser = most + std::log(sum);
#pragma omp simd
    for (int64_t j = 0; j < V; j++) scores[j] -= normaliser;
}

// The greatest of V scores, greatest first, of equal ones the first first.
struct Leading {
    std::vector<float> value;
    std::vector<int64_t> id;

    explicit Leading(int64_t count) : value(count), id(count) {}

    void find(const float* scores, int64_t V) {
        const auto k = static_cast<int64_t>(value.size());
        int64_t kept = 0;
        for (int64_t from = 0; from < V; from += 64) {
            const int64_t end = from + 64 < V ? from + 64 : V;
            float most = -INFINITY;
#pragma omp simd reduction(max : most)
            for (int64_t j = from; j < end; j++) most = scores[j] > most ? scores[j] : most;
            if (kept == k && !(most > value[k - 1])) continue;
            for (int64_t j = from; j < end; j++) {
                int64_t at = kept;
                if (kept < k) {
                    kept++;
                } else if (scores[j] > value[k - 1]) {
                    at = k - 1;
                } else {
                    continue;
                }
                for (; at > 0 && scores[j] > value[at - 1]; at--) {
                    value[at] = value[at - 1];
                    id[at] = id[at - 1];
                }
                value[at] = scores[j];
                id[at] = j;
            }
        }
    }
};

// What a beam of W beginnings goes on with: the `most` continuations with the greatest sums of a
// beginning's total and one of the leading scores (R, V) of its row, which is -1 where there is
// none. Greatest first, of equal ones that of the first beginning.
inline void go_on_one(const float* scores, const int64_t* row, const float* totals, float* sums,
                      int64_t* parents, int64_t* ids, float* words, int64_t W, int64_t V,
                      int64_t most, Leading& leading) {
    for (int64_t i = 0; i < most; i++) {
        sums[i] = words[i] = -INFINITY;
        parents[i] = ids[i] = 0;
    }
    for (int64_t w = 0; w < W; w++) {
        if (row[w] < 0) continue;
        leading.find(scores + row[w] * V, V);
        for (size_t i = 0; i < leading.id.size(); i++) {
            const float total = totals[w] + leading.value[i];
            int64_t at = most;
            while (at > 0 && total > sums[at - 1]) at--;
            if (at == most) break;
            for (int64_t to = most - 1; to > at; to--) {
                sums[to] = sums[to - 1];
                parents[to] = parents[to - 1];
                ids[to] = ids[to - 1];
                words[to] = words[to - 1];
            }
            sums[at] = total;
            parents[at] = w;
            ids[at] = leading.id[i];
            words[at] = leading.value[i];
        }
    }
}

#if defined(NARROW)

// look_one for ROWS rows of one photo whose keys and queries are bf16, with the quicker tanh.
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
        const __mmask16 mask = lanes(left);
        const __m512 b = bias ? _mm512_maskz_loadu_ps(mask, bias + v * LANES) : _mm512_setzero_ps();
#pragma GCC unroll 6
        for (int r = 0; r < ROWS; r++) {
            _mm512_mask_storeu_ps(out + r * width + v * LANES, mask, _mm512_add_ps(sum[r][v], b));
        }
    }
}

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
                const int rows = next_rows(M - m, now);
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

// Rows of floats to bf16. To be called by all threads of a team.
void narrow(const float* x, bfloat16* out, int64_t count) {
#pragma omp for schedule(static)
    for (int64_t block = 0; block < count; block += 512) {
        const int64_t end = block + 512 < count ? block + 512 : count;
#pragma omp simd
        for (int64_t i = block; i < end; i++) put(out[i], x[i]);
    }
}

// What an LSTM knows while it speaks. past is the gates, the query and, where there is a gate, its
// argument; P values a row. N, A and D are even. Without of_context the regions are their part of
// the gates already, and D is 4N.
struct Lstm {
    const bfloat16* keys;
    const float *regions, *score;
    const bfloat16* of_past;
    const float* past_bias;
    const bfloat16* of_context;
    const float* words;
    const bfloat16* of_score;
    const float* score_bias;
    int64_t L, D, A, N, P, V;

    // Values that a word of R rows needs room for.
    int64_t room(int64_t R) const { return R * (P + 8 * N + (N > D ? N : D)); }

    // One word of R rows, each of a photo of its own or another's. To be called by all threads of a
    // team.
    void say(const float* h, const float* c, const int64_t* tokens, const int64_t* photo,
             float* after_h, float* after_c, float* alpha, float* logits, float* room,
             int64_t R) const {
        float *past = room, *context = past + R * P, *gates = context + R * 4 * N;
        auto* small = reinterpret_cast<bfloat16*>(gates + R * 4 * N);  // R * max(N, D)
        const bool gated = P > 4 * N + A;
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
                const float* region = regions + photo[r] * L * D + from;
                if (!of_context) {
                    gather_part(alpha + r * L, region, context + r * D + from, width, L, D);
                    continue;
                }
                float sum[PART];
                gather_part(alpha + r * L, region, sum, width, L, D);
                const float* opening = past + r * P + 4 * N + A + from;
                if (gated) {
#pragma omp simd
                    for (int64_t d = 0; d < width; d++) sum[d] *= sigmoid(opening[d]);
                }
                for (int64_t d = 0; d < width; d++) put(small[r * D + from + d], sum[d]);
            }
        }
        if (of_context) product(small, of_context, nullptr, context, R, D / 2, 4 * N);
#pragma omp for schedule(static)
        for (int64_t r = 0; r < R; r++) {
            cell_one(past + r * P, context + r * 4 * N, words + tokens[r] * 4 * N, c + r * N,
                     gates + r * 4 * N, after_c + r * N, after_h + r * N, N);
        }
        narrow(after_h, small, R * N);
        product(small, of_score, score_bias, logits, R, N / 2, V);
    }
};

// Leave out of the scores what would have n words in a row of `said` (t) a second time.
inline void bar_repeats(float* scores, const int64_t* said, int64_t t, int64_t n) {
    const int64_t* last = said + t - (n - 1);
    for (int64_t from = 0; from + n <= t; from++) {
        if (std::equal(last, said + t, said + from)) scores[said[from + n - 1]] = -INFINITY;
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
#if defined(NARROW)
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

void cell(const T* past, int64_t stride, const T* context, const T* words, const float* before,
          float* gates, float* after, T* h, int64_t R, int64_t N, int threads) {
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t row = 0; row < R; row++) {
        cell_one(past + row * stride, context + row * 4 * N, words + row * 4 * N, before + row * N,
                 gates + row * 4 * N, after + row * N, h + row * N, N);
    }
}

// Log-probabilities (R, V) of logits; the words of a list are left out of the distribution.
void log_probabilities(const float* logits, const int64_t* left_out, float* scores, int64_t R,
                       int64_t V, int64_t count, int threads) {
#pragma omp parallel for num_threads(threads) schedule(static) if (R * V > 65536)
    for (int64_t r = 0; r < R; r++) {
        log_probabilities_one(logits + r * V, left_out, scores + r * V, V, count);
    }
}

// What P beams of W beginnings go on with, see go_on_one. Totals, beginnings, words and scores are
// (P, most).
void go_on(const float* scores, const int64_t* row, const float* totals, float* sums,
           int64_t* parents, int64_t* ids, float* words, int64_t P, int64_t W, int64_t V,
           int64_t each, int64_t most, int threads) {
#pragma omp parallel num_threads(threads) if (P * W * V > 65536)
    {
        Leading leading(each);
#pragma omp for schedule(static)
        for (int64_t p = 0; p < P; p++) {
            go_on_one(scores, row + p * W, totals + p * W, sums + p * most, parents + p * most,
                      ids + p * most, words + p * most, W, V, most, leading);
        }
    }
}

#if defined(NARROW)

#if defined(TILES)

// Whether the processor's matrix unit may be used.
void lent(int64_t* answer, int) { *answer = matrix_unit(); }

#endif

// See product.
void multiply(const bfloat16* x, const bfloat16* packed, const float* bias, float* out, int64_t M,
              int64_t pairs, int64_t width, int threads) {
#pragma omp parallel num_threads(threads)
    product(x, packed, bias, out, M, pairs, width);
}

// One word of the LSTM for R rows: what step() of lstm.py is, in one team of threads.
void say(const float* h, const float* c, const int64_t* tokens, const int64_t* photo,
         const bfloat16* keys, const float* regions, const float* score, const bfloat16* of_past,
         const float* past_bias, const bfloat16* of_context, const float* words,
         const bfloat16* of_score, const float* score_bias, float* after_h, float* after_c,
         float* alpha, float* logits, float* room, int64_t R, int64_t L, int64_t D, int64_t A,
         int64_t N, int64_t P, int64_t V, int threads) {
    const Lstm lstm{keys,     regions,    score, of_past, past_bias, of_context, words,
                    of_score, score_bias, L,     D,       A,         N,          P,     V};
#pragma omp parallel num_threads(threads)
    lstm.say(h, c, tokens, photo, after_h, after_c, alpha, logits, room, R);
}

// A whole beam search of the LSTM for B photos, W places each: what beam_search() of search.py is,
// in one team of threads. Every step before the `longest` fills a (B, W) of parents, ids, rows and
// words and an (R, L) of alpha, with room for B W. What has ended is written one after the other:
// photo, step, place and whether it was cut; its total and the end's log-probability. counts are
// the steps and those that have ended. left_out ends with the end, which is left out before the
// `fewest` words. No `repeats` words in a row are said twice, unless it is 0. W is at most V.
void speak(const float* h, const float* c, const bfloat16* keys, const float* regions,
           const float* score, const bfloat16* of_past, const float* past_bias,
           const bfloat16* of_context, const float* embedded, const bfloat16* of_score,
           const float* score_bias, const int64_t* left_out, int64_t* parents, int64_t* ids,
           int64_t* rows, float* words, float* alpha, int64_t* ended, double* ended_values,
           int64_t* counts, int64_t start, int64_t forbidden, int64_t fewest, int64_t longest,
           int64_t repeats, int64_t B, int64_t W, int64_t L, int64_t D, int64_t A, int64_t N,
           int64_t P, int64_t V, int threads) {
    const Lstm lstm{keys,     regions,    score, of_past, past_bias, of_context, embedded,
                    of_score, score_bias, L,     D,       A,         N,          P,        V};
    const int64_t places = B * W, end = left_out[forbidden];
    const auto floats = [](int64_t count) { return std::unique_ptr<float[]>(new float[count]); };
    const auto states = floats(4 * places * N), room = floats(lstm.room(places));
    const auto logits = floats(places * V), scores = floats(places * V), sums = floats(places);
    float *after_h = states.get(), *after_c = after_h + places * N;
    float *next_h = after_c + places * N, *next_c = next_h + places * N;

    std::vector<int64_t> tokens(places, start), photo(places), before(places), row(places, -1);
    std::vector<int64_t> left(B, W);  // places of a beam whose captions have not ended
    std::vector<float> totals(places, 0);
    for (int64_t b = 0; b < B; b++) photo[b] = row[b * W] = b;
    int64_t R = B, t = 0, over = 0;
    const auto end_one = [&](int64_t p, int64_t place, double total, double value, bool cut) {
        const int64_t found[] = {p, t, place, cut};
        std::copy_n(found, 4, ended + over * 4);
        ended_values[over * 2] = total;
        ended_values[over * 2 + 1] = value;
        over++;
    };
#pragma omp parallel num_threads(threads)
    {
        Leading leading(W);
        std::vector<int64_t> beginning(longest);
        while (R) {
            lstm.say(t ? next_h : h, t ? next_c : c, tokens.data(), photo.data(), after_h, after_c,
                     alpha + t * places * L, logits.get(), room.get(), R);
#pragma omp for schedule(static)
            for (int64_t r = 0; r < R; r++) {
                log_probabilities_one(logits.get() + r * V, left_out, scores.get() + r * V, V,
                                      forbidden + (t < fewest));
            }
            const int64_t at = t * places;
            if (t == longest) {
#pragma omp single
                for (int64_t i = 0; i < places; i++) {
                    if (row[i] < 0) continue;
                    const double value = scores[row[i] * V + end];
                    end_one(i / W, i % W, totals[i] + value, value, true);
                }
                break;
            }
#pragma omp for schedule(static)
            for (int64_t p = 0; p < B; p++) {
                for (int64_t w = 0; w < W && repeats && t >= repeats; w++) {
                    const int64_t r = row[p * W + w];
                    if (r < 0) continue;
                    for (int64_t s = t, place = w; s-- > 0;) {
                        const int64_t i = s * places + p * W + place;
                        beginning[s] = ids[i];
                        place = parents[i];
                    }
                    float* its = scores.get() + r * V;
                    bar_repeats(its, beginning.data(), t, repeats);
                    if (*std::max_element(its, its + V) > -INFINITY) continue;
                    log_probabilities_one(logits.get() + r * V, left_out, its, V, forbidden);
                    const float value = its[end];  // all that is left to say
                    std::fill_n(its, V, -INFINITY);
                    its[end] = value;
                }
                go_on_one(scores.get(), &row[p * W], &totals[p * W], sums.get() + p * W,
                          parents + at + p * W, ids + at + p * W, words + at + p * W, W, V, W,
                          leading);
            }
#pragma omp single
            {
                R = 0;
                std::vector<int64_t> now(places, -1);
                for (int64_t p = 0; p < B; p++) {
                    const int64_t open = left[p];
                    for (int64_t w = 0; w < W; w++) {
                        const int64_t i = p * W + w, parent = parents[at + i];
                        const int64_t from = rows[at + i] = row[p * W + parent];
                        totals[i] = sums[i];
                        if (!(sums[i] > -INFINITY) || w >= open) continue;
                        if (ids[at + i] == end) {
                            end_one(p, parent, sums[i], words[at + i], false);
                            left[p]--;
                            continue;
                        }
                        before[R] = from;
                        tokens[R] = ids[at + i];
                        photo[R] = p;
                        now[i] = R++;
                    }
                }
                row.swap(now);
                t++;
            }
#pragma omp for schedule(static)
            for (int64_t r = 0; r < R; r++) {
                std::copy_n(after_h + before[r] * N, N, next_h + r * N);
                std::copy_n(after_c + before[r] * N, N, next_c + r * N);
            }
        }
    }
    counts[0] = t;
    counts[1] = over;
}

#endif

}  // extern "C"
