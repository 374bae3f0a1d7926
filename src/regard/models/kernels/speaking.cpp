// What an LSTM needs to speak, and training too. See common.h.

#include "speaking.h"

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

// Channels whose sums stay in registers.
#if defined(__AVX512F__)
constexpr int64_t PART = 128;
#else
constexpr int64_t PART = 64;
#endif

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

#endif

// One row, in the quickest way.
inline void look_alone(const T* key, const T* query, const float* score, float* alpha, int64_t L,
                       int64_t A) {
#if defined(NARROW)
    look_rows<1>(key, query, A, score, alpha, L, A);
#else
    look_one(key, query, score, alpha, L, A);
#endif
}

#if defined(SPEAKS)

// What an LSTM knows while it speaks. past is the gates and the query, P values a row. With a gate
// on the context its argument follows in past. Without one there is no of_context: the regions are
// their part of the gates already, and D is 4N. N, A and D are even.
struct Lstm {
    const T* keys;
    const float *regions, *score;
    const T* of_past;
    const float* past_bias;
    const T* of_context;
    const float* words;
    const T* of_score;
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
        auto* small = reinterpret_cast<T*>(gates + R * 4 * N);  // R * max(N, D)
        narrow(h, small, R * N);
        product(small, of_past, past_bias, past, R, N / DEPTH, P);
#pragma omp for schedule(static)
        for (int64_t r = 0; r < R; r++) {
            T query[A];
            for (int64_t a = 0; a < A; a++) put(query[a], past[r * P + 4 * N + a]);
            look_alone(keys + photo[r] * L * A, query, score, alpha + r * L, L, A);
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
#pragma omp simd
                for (int64_t d = 0; d < width; d++) sum[d] *= sigmoid(opening[d]);
                for (int64_t d = 0; d < width; d++) put(small[r * D + from + d], sum[d]);
            }
        }
        if (of_context) product(small, of_context, nullptr, context, R, D / DEPTH, 4 * N);
#pragma omp for schedule(static)
        for (int64_t r = 0; r < R; r++) {
            cell_one(past + r * P, context + r * 4 * N, words + tokens[r] * 4 * N, c + r * N,
                     gates + r * 4 * N, after_c + r * N, after_h + r * N, N);
        }
        narrow(after_h, small, R * N);
        product(small, of_score, score_bias, logits, R, N / DEPTH, V);
    }
};

// The LSTM in a beam search: the states of its rows, and those of the rows that come next.
class LstmSpeaker {
  public:
    LstmSpeaker(const Lstm& lstm, const float* h, const float* c, int64_t most)
        : lstm_(lstm),
          most_(most),
          h_(h),
          c_(c),
          states_(new float[4 * most * lstm.N]),
          room_(new float[lstm.room(most)]) {}

    // Both to be called by all threads of a team.
    void say(const int64_t* tokens, const int64_t* photo, float* alpha, float* logits, int64_t R,
             int64_t t) {
        lstm_.say(t ? state(2) : h_, t ? state(3) : c_, tokens, photo, state(0), state(1), alpha,
                  logits, room_.get(), R);
    }

    void follow(const int64_t* before, int64_t R, int64_t) {
        const int64_t N = lstm_.N;
#pragma omp for schedule(static)
        for (int64_t r = 0; r < R; r++) {
            std::copy_n(state(0) + before[r] * N, N, state(2) + r * N);
            std::copy_n(state(1) + before[r] * N, N, state(3) + r * N);
        }
    }

  private:
    float* state(int64_t i) const { return states_.get() + i * most_ * lstm_.N; }

    const Lstm& lstm_;
    const int64_t most_;
    const float *h_, *c_;
    const std::unique_ptr<float[]> states_, room_;
};

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
#endif
        for (; row < end; row++) {
            look_alone(key, queries + row * stride, score, alpha + row * L, L, A);
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

#if defined(TILES)

// Whether the processor's matrix unit may be used.
void lent(int64_t* answer, int) { *answer = matrix_unit(); }

#endif

#if defined(SPEAKS)

// COLUMNS and DEPTH, see product.
void packing(int64_t* answer, int) {
    answer[0] = COLUMNS;
    answer[1] = DEPTH;
}

// See product.
void multiply(const T* x, const T* packed, const float* bias, float* out, int64_t M, int64_t pairs,
              int64_t width, int threads) {
#pragma omp parallel num_threads(threads)
    product(x, packed, bias, out, M, pairs, width);
}

// One word of the LSTM for R rows: what step() of lstm.py is, in one team of threads.
void say(const float* h, const float* c, const int64_t* tokens, const int64_t* photo,
         const T* keys, const float* regions, const float* score, const T* of_past,
         const float* past_bias, const T* of_context, const float* words,
         const T* of_score, const float* score_bias, float* after_h, float* after_c,
         float* alpha, float* logits, int64_t R, int64_t L, int64_t D, int64_t A, int64_t N,
         int64_t P, int64_t V, int threads) {
    const Lstm lstm{keys,     regions,    score, of_past, past_bias, of_context, words,
                    of_score, score_bias, L,     D,       A,         N,          P,     V};
    const std::unique_ptr<float[]> room(new float[lstm.room(R)]);
#pragma omp parallel num_threads(threads)
    lstm.say(h, c, tokens, photo, after_h, after_c, alpha, logits, room.get(), R);
}

// A whole beam search of the LSTM, see Beams, from the states h and c (B, N).
void speak(const float* h, const float* c, const T* keys, const float* regions,
           const float* score, const T* of_past, const float* past_bias,
           const T* of_context, const float* words, const T* of_score,
           const float* score_bias, const Beams* beams, int64_t L, int64_t D, int64_t A, int64_t N,
           int64_t P, int64_t V, int threads) {
    const Lstm lstm{keys,     regions,    score, of_past, past_bias, of_context, words,
                    of_score, score_bias, L,     D,       A,         N,          P,     V};
    LstmSpeaker speaker(lstm, h, c, beams->B * beams->W);
    beams->search(speaker, L, V, threads);
}

#endif

}  // extern "C"
