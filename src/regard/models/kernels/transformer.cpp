// What a Transformer needs to speak: a step of transformer.py for R rows in one team of threads. See
// speaking.h.

#include "speaking.h"

namespace {

#if defined(SPEAKS)

struct Norm {
    const float *scale, *shift;
};

struct Linear {
    const T* packed;
    const float* bias;
};

// A layer of words, in the order in which its parts come.
struct Layer {
    Norm before_said;
    Linear of_said, from_said;
    Norm before_seen;
    Linear query, from_seen;
    Norm before_wide;
    Linear widen, narrow;
};

// x (N) plus what a part has added to it, if any; its normalised values as products take them.
inline void add_and_normalise(float* x, const float* added, Norm norm, T* out, int64_t N) {
    constexpr float LEAST = 1e-5f;  // added to the variance
    float sum = 0, squares = 0;
    if (added) {
#pragma omp simd
        for (int64_t j = 0; j < N; j++) x[j] += added[j];
    }
#pragma omp simd reduction(+ : sum)
    for (int64_t j = 0; j < N; j++) sum += x[j];
    const float mean = sum / N;
#pragma omp simd reduction(+ : squares)
    for (int64_t j = 0; j < N; j++) squares += (x[j] - mean) * (x[j] - mean);
    const float rate = 1.0f / std::sqrt(squares / N + LEAST);
#pragma omp simd
    for (int64_t j = 0; j < N; j++) {
        put(out[j], (x[j] - mean) * rate * norm.scale[j] + norm.shift[j]);
    }
}

// GELU, x times the normal distribution's share below x, with the error function of Abramowitz and
// Stegun (1964), 7.1.26, which is 1.5e-7 from the true one.
inline float gelu(float x) {
    const float y = std::fabs(x) * 0.70710678f, t = 1.0f / (1.0f + 0.3275911f * y);
    float p = 1.061405429f;
    p = p * t - 1.453152027f;
    p = p * t + 1.421413741f;
    p = p * t - 0.284496736f;
    p = p * t + 0.254829592f;
    const float above = p * t * exp_(-y * y);  // 1 - erf(y)
    return x >= 0 ? x - 0.5f * x * above : 0.5f * x * above;
}

// x . y of `width` values, a multiple of 32.
inline float times(const T* x, const T* y, int64_t width) {
#if defined(NARROW)
    __m512 sum = _mm512_setzero_ps();
    for (int64_t d = 0; d < width; d += 32) {
        sum = _mm512_dpbf16_ps(sum, (__m512bh)_mm512_loadu_si512(x + d),
                               (__m512bh)_mm512_loadu_si512(y + d));
    }
    return _mm512_reduce_add_ps(sum);
#else
    float sum = 0;
#pragma omp simd reduction(+ : sum)
    for (int64_t d = 0; d < width; d++) sum += x[d] * y[d];
    return sum;
#endif
}

// 32 of the values, each `weight` times, added to sums.
struct Weighted {
#if defined(NARROW)
    __m512 low = _mm512_setzero_ps(), high = _mm512_setzero_ps();

    void add(float weight, const bfloat16* value) {
        const __m512 a = _mm512_set1_ps(weight);
        low = _mm512_fmadd_ps(a, wide16(value, 0xffff), low);
        high = _mm512_fmadd_ps(a, wide16(value + 16, 0xffff), high);
    }

    void store(float* sums) const {
        _mm512_storeu_ps(sums, low);
        _mm512_storeu_ps(sums + 16, high);
    }
#else
    Vector sum[32 / LANES] = {};

    void add(float weight, const float* value) {
#pragma GCC unroll 8
        for (int i = 0; i < 32 / LANES; i++) {
            Vector v;
            std::memcpy(&v, value + i * LANES, sizeof v);
            sum[i] += weight * v;
        }
    }

    void store(float* sums) const {
#pragma GCC unroll 8
        for (int i = 0; i < 32 / LANES; i++) {
            std::memcpy(sums + i * LANES, &sum[i], sizeof(Vector));
        }
    }
#endif
};

// Attention of one head of `width` values, a multiple of 32, to L keys: key(i) is where one is, and
// its value is `behind` values after it. weights (L) are what it gave them.
template <class Key>
inline void attend(const T* query, const Key& key, float* weights, T* found, int64_t L,
                   int64_t width, int64_t behind) {
    const float scale = 1.0f / std::sqrt(float(width));
    float most = -3e38f;
    for (int64_t i = 0; i < L; i++) {
        weights[i] = scale * times(query, key(i), width);
        most = weights[i] > most ? weights[i] : most;
    }
    softmax(weights, most, L);
    for (int64_t d = 0; d < width; d += 32) {
        Weighted sum;
        for (int64_t i = 0; i < L; i++) sum.add(weights[i], key(i) + behind + d);
        float sums[32];
        sum.store(sums);
#pragma omp simd
        for (int j = 0; j < 32; j++) put(found[d + j], sums[j]);
    }
}

// What a Transformer knows while it speaks. E is what scores words have: N, unless what leaves is
// brought to it. E and F are even, a head's part of N is a multiple of 32.
struct Transformer {
    const float* words;    // (V, N), as they enter
    const float* places;   // (T, N), what is added to those in each place
    const Layer* layers;   // (depth)
    const T* seen;         // (depth, B, L, 2 N): keys and values of the regions
    Norm norm;
    Linear leave, scorer;  // there may be nothing that leaves
    int64_t depth, B, L, N, heads, F, E, V;

    // Floats that a word of R rows with t words before it needs room for.
    int64_t room(int64_t R, int64_t t) const {
        return R * (N + std::max(3 * N, F) + heads * std::max(L, t + 1) + std::max({N, F, E}));
    }

    // One word of R rows. What each of the t steps before kept, (R, depth, 2 N) each, is said; which
    // row of it a row goes on from is where (R, stride). now is kept of this one. To be called by all
    // threads of a team.
    void say(const int64_t* tokens, const int64_t* photo, const T* const* said,
             const int64_t* where, int64_t stride, T* now, float* alpha, float* logits,
             float* room, int64_t R, int64_t t) const {
        const int64_t width = N / heads, longest = std::max(L, t + 1);
        float *x = room, *y = x + R * N, *weights = y + R * std::max(3 * N, F);
        auto* small = reinterpret_cast<T*>(weights + R * heads * longest);
#pragma omp for schedule(static)
        for (int64_t r = 0; r < R; r++) {
            const float *word = words + tokens[r] * N, *place = places + t * N;
#pragma omp simd
            for (int64_t j = 0; j < N; j++) x[r * N + j] = word[j] + place[j];
            add_and_normalise(x + r * N, nullptr, layers[0].before_said, small + r * N, N);
        }
        for (int64_t l = 0; l < depth; l++) {
            const Layer& layer = layers[l];
            product(small, layer.of_said.packed, layer.of_said.bias, y, R, N / DEPTH, 3 * N);
#pragma omp for schedule(static) collapse(2)
            for (int64_t r = 0; r < R; r++) {
                for (int64_t head = 0; head < heads; head++) {
                    const int64_t from = head * width;
                    const float* its = y + r * 3 * N + from;
                    T query[width], *own = now + (r * depth + l) * 2 * N + from;
                    for (int64_t d = 0; d < width; d++) {
                        put(query[d], its[d]);
                        put(own[d], its[N + d]);
                        put(own[N + d], its[2 * N + d]);
                    }
                    const auto key = [&](int64_t i) -> const T* {
                        if (i == t) return own;
                        return said[i] + (where[r * stride + i] * depth + l) * 2 * N + from;
                    };
                    attend(query, key, weights + (r * heads + head) * longest,
                           small + r * N + from, t + 1, width, N);
                }
            }
            product(small, layer.from_said.packed, layer.from_said.bias, y, R, N / DEPTH, N);
#pragma omp for schedule(static)
            for (int64_t r = 0; r < R; r++) {
                add_and_normalise(x + r * N, y + r * N, layer.before_seen, small + r * N, N);
            }
            product(small, layer.query.packed, layer.query.bias, y, R, N / DEPTH, N);
#pragma omp for schedule(static) collapse(2)
            for (int64_t r = 0; r < R; r++) {
                for (int64_t head = 0; head < heads; head++) {
                    const int64_t from = head * width;
                    T query[width];
                    for (int64_t d = 0; d < width; d++) put(query[d], y[r * N + from + d]);
                    const T* region = seen + (l * B + photo[r]) * L * 2 * N + from;
                    const auto key = [&](int64_t i) { return region + i * 2 * N; };
                    attend(query, key, weights + (r * heads + head) * longest,
                           small + r * N + from, L, width, N);
                }
            }
            product(small, layer.from_seen.packed, layer.from_seen.bias, y, R, N / DEPTH, N);
#pragma omp for schedule(static)
            for (int64_t r = 0; r < R; r++) {
                add_and_normalise(x + r * N, y + r * N, layer.before_wide, small + r * N, N);
                for (int64_t i = 0; i < L && l + 1 == depth; i++) {
                    float sum = 0;
                    for (int64_t head = 0; head < heads; head++) {
                        sum += weights[(r * heads + head) * longest + i];
                    }
                    alpha[r * L + i] = sum / heads;
                }
            }
            product(small, layer.widen.packed, layer.widen.bias, y, R, N / DEPTH, F);
#pragma omp for schedule(static) collapse(2)
            for (int64_t r = 0; r < R; r++) {
                for (int64_t from = 0; from < F; from += 256) {
                    const int64_t end = std::min(F, from + 256);
#pragma omp simd
                    for (int64_t j = from; j < end; j++) put(small[r * F + j], gelu(y[r * F + j]));
                }
            }
            product(small, layer.narrow.packed, layer.narrow.bias, y, R, F / DEPTH, N);
            const Norm& next = l + 1 == depth ? norm : layers[l + 1].before_said;
#pragma omp for schedule(static)
            for (int64_t r = 0; r < R; r++) {
                add_and_normalise(x + r * N, y + r * N, next, small + r * N, N);
            }
        }
        if (leave.packed) {
            product(small, leave.packed, leave.bias, y, R, N / DEPTH, E);
            narrow(y, small, R * E);
        }
        product(small, scorer.packed, scorer.bias, logits, R, E / DEPTH, V);
    }
};

// The Transformer in a beam search: what its steps kept, and which of it each row goes on from.
class TransformerSpeaker {
  public:
    TransformerSpeaker(const Transformer& transformer, int64_t most, int64_t longest)
        : transformer_(transformer),
          longest_(longest),
          room_(new float[transformer.room(most, longest)]),
          where_(most * longest),
          next_(most * longest) {
        const int64_t each = most * transformer.depth * 2 * transformer.N;
        kept_.reset(new T[each * (longest + 1)]);
        for (int64_t t = 0; t <= longest; t++) said_.push_back(kept_.get() + t * each);
    }

    // Both to be called by all threads of a team.
    void say(const int64_t* tokens, const int64_t* photo, float* alpha, float* logits, int64_t R,
             int64_t t) {
        transformer_.say(tokens, photo, said_.data(), where_.data(), longest_, said_[t], alpha,
                         logits, room_.get(), R, t);
    }

    void follow(const int64_t* before, int64_t R, int64_t t) {
#pragma omp single
        {
            for (int64_t r = 0; r < R; r++) {
                std::copy_n(&where_[before[r] * longest_], t - 1, &next_[r * longest_]);
                next_[r * longest_ + t - 1] = before[r];
            }
            where_.swap(next_);
        }
    }

  private:
    const Transformer& transformer_;
    const int64_t longest_;
    const std::unique_ptr<float[]> room_;
    std::vector<int64_t> where_, next_;
    std::unique_ptr<T[]> kept_;
    std::vector<T*> said_;
};

#endif

}  // namespace

extern "C" {

#if defined(SPEAKS)

// One word of R rows, see Transformer::say.
void say_words(const Transformer* transformer, const int64_t* tokens, const int64_t* photo,
               const T* const* said, const int64_t* where, T* now, float* alpha,
               float* logits, int64_t R, int64_t t, int threads) {
    const std::unique_ptr<float[]> room(new float[transformer->room(R, t)]);
#pragma omp parallel num_threads(threads)
    transformer->say(tokens, photo, said, where, t, now, alpha, logits, room.get(), R, t);
}

// A whole beam search, see Beams.
void speak_words(const Transformer* transformer, const Beams* beams, int threads) {
    TransformerSpeaker speaker(*transformer, beams->B * beams->W, beams->longest);
    beams->search(speaker, transformer->L, transformer->V, threads);
}

#endif

}  // extern "C"
