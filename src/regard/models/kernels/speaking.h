// What every decoder needs to speak: log-probabilities, what beams go on with, products of few rows
// and, with those, a whole beam search. See common.h.

#pragma once

#include "common.h"

namespace {

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

#if defined(SPEAKS)

// A product of few rows takes its columns in blocks of COLUMNS, and DEPTH of their N values at a time:
// a block is packed by as many, of each column in turn. What is called pairs counts those.

#if defined(NARROW)

constexpr int64_t COLUMNS = 64, DEPTH = 2;

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

#else

// As many sums as the processor has registers for.
#if defined(__AVX512F__)
constexpr int LANES = 16, VECTORS = 2, TALL = 12;
#elif defined(__AVX__)
constexpr int LANES = 8, VECTORS = 2, TALL = 6;
#else
constexpr int LANES = 4, VECTORS = 4, TALL = 6;
#endif
constexpr int64_t COLUMNS = LANES * VECTORS, DEPTH = 1;

typedef float Vector __attribute__((vector_size(LANES * sizeof(float))));

// A tile of a product: ROWS rows of x with COLUMNS columns of y. A row's sums are added up in the
// order of N whatever stands beside it.
template <int ROWS>
void tile(const float* x, const float* packed, const float* bias, float* out, int64_t N,
          int64_t width, int64_t columns) {
    Vector sum[ROWS][VECTORS] = {};
    for (int64_t n = 0; n < N; n++) {
        Vector y[VECTORS];
#pragma GCC unroll 4
        for (int v = 0; v < VECTORS; v++) {
            std::memcpy(&y[v], packed + n * COLUMNS + v * LANES, sizeof(Vector));
        }
#pragma GCC unroll 12
        for (int r = 0; r < ROWS; r++) {
            const Vector both = x[r * N + n] - Vector{};
#pragma GCC unroll 4
            for (int v = 0; v < VECTORS; v++) sum[r][v] += both * y[v];
        }
    }
    columns = columns < COLUMNS ? columns : COLUMNS;
#pragma GCC unroll 12
    for (int r = 0; r < ROWS; r++) {
        float sums[COLUMNS];
#pragma GCC unroll 4
        for (int v = 0; v < VECTORS; v++) std::memcpy(sums + v * LANES, &sum[r][v], sizeof(Vector));
#pragma omp simd
        for (int64_t j = 0; j < columns; j++) out[r * width + j] = sums[j] + (bias ? bias[j] : 0);
    }
}

// Of as many rows as there are, at most ROWS.
template <int ROWS>
void low_tile(const float* x, const float* packed, const float* bias, float* out, int64_t rows,
              int64_t N, int64_t width, int64_t columns) {
    if constexpr (ROWS > 1) {
        if (rows < ROWS) {
            return low_tile<ROWS - 1>(x, packed, bias, out, rows, N, width, columns);
        }
    }
    tile<ROWS>(x, packed, bias, out, N, width, columns);
}

// out (M, width): x (M, N) by packed columns and a bias. To be called by all threads of a team.
void product(const float* x, const float* packed, const float* bias, float* out, int64_t M,
             int64_t N, int64_t width) {
#pragma omp for schedule(static)
    for (int64_t column = 0; column < width; column += COLUMNS) {
        for (int64_t m = 0; m < M; m += TALL) {
            low_tile<TALL>(x + m * N, packed + column * N, bias ? bias + column : nullptr,
                           out + m * width + column, M - m < TALL ? M - m : TALL, N, width,
                           width - column);
        }
    }
}

#endif

// Rows of floats as products take them. To be called by all threads of a team.
void narrow(const float* x, T* out, int64_t count) {
#pragma omp for schedule(static)
    for (int64_t block = 0; block < count; block += 512) {
        const int64_t end = block + 512 < count ? block + 512 : count;
#pragma omp simd
        for (int64_t i = block; i < end; i++) put(out[i], x[i]);
    }
}

// Leave out of the scores what would have n words in a row of `said` (t) a second time.
inline void bar_repeats(float* scores, const int64_t* said, int64_t t, int64_t n) {
    const int64_t* last = said + t - (n - 1);
    for (int64_t from = 0; from + n <= t; from++) {
        if (std::equal(last, said + t, said + from)) scores[said[from + n - 1]] = -INFINITY;
    }
}

// A beam search for B photos, W places each: what beam_search() of search.py is. Every step before
// the `longest` fills a (B, W) of parents, ids, rows and words and an (R, L) of alpha, which has room
// for B W. What has ended is written one after the other: photo, step, place and whether it was cut;
// its total and the end's log-probability. counts are the steps and those that have ended. left_out
// ends with the end, which is left out before the `fewest` words. No `repeats` words in a row are
// said twice, unless it is 0. W is at most V. Python fills it, see models/beams.py.
struct Beams {
    const int64_t* left_out;
    int64_t *parents, *ids, *rows;
    float *words, *alpha;
    int64_t* ended;
    double* ended_values;
    int64_t *counts, start, forbidden, fewest, longest, repeats, B, W;

    // The speaker's say() gives rows their words and fills alpha (R, L) and logits (R, V); its
    // follow() is told from which rows of those the next ones go on. All in one team of threads.
    template <class Speaker>
    void search(Speaker& speaker, int64_t L, int64_t V, int threads) const {
        const int64_t places = B * W, end = left_out[forbidden];
        const auto floats = [](int64_t n) { return std::unique_ptr<float[]>(new float[n]); };
        const auto logits = floats(places * V), scores = floats(places * V), sums = floats(places);
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
                speaker.say(tokens.data(), photo.data(), alpha + t * places * L, logits.get(), R, t);
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
                speaker.follow(before.data(), R, t);
            }
        }
        counts[0] = t;
        counts[1] = over;
    }
};

#endif

}  // namespace
