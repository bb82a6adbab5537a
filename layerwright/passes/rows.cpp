// Passes over the rows of a matrix: residual, dropout and norm; GELU; softmax; sums of columns.

#include "numbers.h"

namespace {

// GELU, x times the normal distribution function, and its slope.  erf by Abramowitz and Stegun 7.1.26, within 1.5e-7.
inline void gelu_at(float, float x, float& value, float& slope) {
    const float z = std::abs(x) * 0.70710678f, bell = exponential(-z * z), t = 1.0f / (1.0f + 0.3275911f * z);
    float p = 1.061405429f;
    p = p * t - 1.453152027f;
    p = p * t + 1.421413741f;
    p = p * t - 0.284496736f;
    p = p * t + 0.254829592f;
    const float tail = 0.5f * p * t * bell, below = x < 0 ? tail : 1.0f - tail;
    value = x * below;
    slope = below + x * bell * 0.39894228f;
}

// For numbers of 8 bits polynomials do, without a power or a quotient: within 6e-5 and 3e-4, exact beyond 4.25.
inline void gelu_at(bf16, float x, float& value, float& slope) {
    const float z = std::min(std::max(x, -4.25f), 4.25f), u = z * z;
    float p = 4.99992564e-11f, q = 3.74581926e-11f;
    p = p * u - 4.87227178e-9f;
    p = p * u + 2.10422696e-7f;
    p = p * u - 5.36023551e-6f;
    p = p * u + 9.07527475e-5f;
    p = p * u - 1.09345138e-3f;
    p = p * u + 9.77081366e-3f;
    p = p * u - 6.62849273e-2f;
    p = p * u + 3.98881199e-1f;
    q = q * u - 2.65680914e-9f;
    q = q * u + 6.26692520e-8f;
    q = q * u - 6.79961114e-8f;
    q = q * u - 2.61983261e-5f;
    q = q * u + 6.17553869e-4f;
    q = q * u - 7.45656290e-3f;
    q = q * u + 5.55165758e-2f;
    q = q * u - 2.61736419e-1f;
    q = q * u + 7.96665756e-1f;
    value = x * (0.5f + z * p);
    slope = 0.5f + z * q;
}

// The norm of x + dropout(y), and, unless that is null, the sum.
template <class T>
void add_norm(const T* __restrict x, const T* __restrict y, const float* __restrict weight, const float* __restrict bias,
              T* __restrict out, T* __restrict total, float* __restrict mean, float* __restrict scale, int64_t rows, int64_t width, double eps, int64_t level, int64_t seed) {
    const Dropout drop(level, seed);
#pragma omp parallel
    {
        std::vector<float> sum(width);
#pragma omp for schedule(static)
        for (int64_t row = 0; row < rows; ++row) {
            const int64_t at = row * width;
            float first = 0, second = 0, *t = sum.data();
            with(drop, [=](auto drops, Dropout drop) {
#pragma omp simd
                for (int64_t i = 0; i < width; ++i) t[i] = load(x[at + i]) + load(y[at + i]) * (drops ? drop(at + i) : 1.0f);
            });
            if (total) put(total + at, t, width);
#pragma omp simd reduction(+ : first)
            for (int64_t i = 0; i < width; ++i) first += t[i];
            first /= float(width);
#pragma omp simd reduction(+ : second)
            for (int64_t i = 0; i < width; ++i) second += (t[i] - first) * (t[i] - first);
            second = 1.0f / std::sqrt(second / float(width) + float(eps));
#pragma omp simd
            for (int64_t i = 0; i < width; ++i) t[i] = (t[i] - first) * second * weight[i] + bias[i];
            put(out + at, t, width);
            mean[row] = first;
            scale[row] = second;
        }
    }
}

// From what was kept: the sum, or, where `bias` is given, the result, of which the sum's norm is found again.
template <class T>
void add_norm_backward(const T* __restrict grad, const T* __restrict kept, const float* __restrict weight,
                       const float* __restrict bias, const float* __restrict mean, const float* __restrict scale, T* __restrict dx,
                       T* __restrict dy, float* __restrict dweight, float* __restrict dbias, int64_t rows, int64_t width,
                       int64_t level, int64_t seed) {
    const Dropout drop(level, seed);
    const int64_t count = blocks(rows);
    std::vector<float> parts(count * 2 * width), sums(2 * width), undo(2 * width);
    for (int64_t i = 0; i < width; ++i) {
        undo[i] = bias ? bias[i] : 0.0f;
        undo[width + i] = bias ? 1.0f / weight[i] : 1.0f;
    }
#pragma omp parallel
    {
        const float *__restrict shift = undo.data(), *__restrict unit = shift + width;
        std::vector<float> own(4 * width);
        float* __restrict first = own.data();
        float* __restrict second = first + width;
        float* __restrict normed = second + width;
        float* __restrict slope = normed + width;
#pragma omp for schedule(static)
        for (int64_t block = 0; block < count; ++block) {
            std::fill(first, first + 2 * width, 0.0f);
            for (int64_t row = block * ROWS; row < std::min(rows, (block + 1) * ROWS); ++row) {
                const int64_t at = row * width;
                const float size = scale[row], middle = bias ? 0.0f : mean[row], step = bias ? 1.0f : size;
                float a = 0, b = 0;
#pragma omp simd reduction(+ : a, b)
                for (int64_t i = 0; i < width; ++i) {
                    const float g = load(grad[at + i]), n = (load(kept[at + i]) - middle - shift[i]) * step * unit[i];
                    first[i] += g * n;
                    second[i] += g;
                    normed[i] = n;
                    slope[i] = g * weight[i];
                    a += slope[i];
                    b += slope[i] * n;
                }
                a /= float(width);
                b /= float(width);
#pragma omp simd
                for (int64_t i = 0; i < width; ++i) slope[i] = (slope[i] - a - normed[i] * b) * size;
                put(dx + at, slope, width);
                with(drop, [=](auto drops, Dropout drop) {
                    if constexpr (drops) {
#pragma omp simd
                        for (int64_t i = 0; i < width; ++i) slope[i] *= drop(at + i);
                        put(dy + at, slope, width);
                    }
                });
            }
            std::copy(first, first + 2 * width, &parts[block * 2 * width]);
        }
    }
    gather(parts, count, 2 * width, sums.data());
    std::copy(sums.begin(), sums.begin() + width, dweight);
    std::copy(sums.begin() + width, sums.end(), dbias);
}

// a = gelu(h + bias)
template <class T>
void gelu(const T* __restrict h, const float* __restrict bias, T* __restrict a, int64_t rows, int64_t width) {
#pragma omp parallel
    {
        std::vector<float> row_values(width);
        float* __restrict values = row_values.data();
#pragma omp for schedule(static)
        for (int64_t row = 0; row < rows; ++row) {
            const int64_t at = row * width;
#pragma omp simd
            for (int64_t i = 0; i < width; ++i) {
                float slope;
                gelu_at(T{}, load(h[at + i]) + bias[i], values[i], slope);
            }
            put(a + at, values, width);
        }
    }
}

// a as above once more, and in place of its gradient that of h; dbias sums that over rows.
template <class T>
void gelu_backward(const T* __restrict h, const float* __restrict bias, T* __restrict grad, T* __restrict a, float* __restrict dbias, int64_t rows, int64_t width) {
    const int64_t count = blocks(rows);
    std::vector<float> parts(count * width);
#pragma omp parallel
    {
        std::vector<float> row_values(2 * width);
        float *__restrict values = row_values.data(), *__restrict slopes = values + width;
#pragma omp for schedule(static)
        for (int64_t block = 0; block < count; ++block) {
            float* __restrict sums = &parts[block * width];
            for (int64_t row = block * ROWS; row < std::min(rows, (block + 1) * ROWS); ++row) {
                const int64_t at = row * width;
#pragma omp simd
                for (int64_t i = 0; i < width; ++i) {
                    float slope;
                    gelu_at(T{}, load(h[at + i]) + bias[i], values[i], slope);
                    slopes[i] = load(grad[at + i]) * slope;
                    sums[i] += slopes[i];
                }
                put(a + at, values, width);
                put(grad + at, slopes, width);
            }
        }
    }
    gather(parts, count, width, dbias);
}

template <class T>
void column_sums(const T* __restrict x, float* __restrict sums, int64_t rows, int64_t width) {
    const int64_t count = blocks(rows);
    std::vector<float> parts(count * width);
#pragma omp parallel for schedule(static)
    for (int64_t block = 0; block < count; ++block)
        for (int64_t row = block * ROWS; row < std::min(rows, (block + 1) * ROWS); ++row)
#pragma omp simd
            for (int64_t i = 0; i < width; ++i) parts[block * width + i] += load(x[row * width + i]);
    gather(parts, count, width, sums);
}

// Softmax of each row of scores [B, H, L, width], in place, and the same after dropout.  visible: which columns count, at
// b * batch_step + l * step; or null.
template <class T>
void softmax(T* __restrict scores, T* __restrict dropped, const uint8_t* __restrict visible, int64_t rows, int64_t width, int64_t heads,
             int64_t length, int64_t batch_step, int64_t step, int64_t level, int64_t seed) {
    const Dropout drop(level, seed);
#pragma omp parallel
    {
        std::vector<float> row_values(width);
        float* e = row_values.data();
#pragma omp for schedule(static)
        for (int64_t row = 0; row < rows; ++row) {
            const int64_t at = row * width;
            const uint8_t* seen = visible ? visible + row / (heads * length) * batch_step + row % length * step : nullptr;
            float most = -INFINITY, sum = 0;
#pragma omp simd
            for (int64_t i = 0; i < width; ++i) e[i] = load(scores[at + i]);
            if (seen)
                for (int64_t i = 0; i < width; ++i) e[i] = seen[i] ? e[i] : -INFINITY;
#pragma omp simd reduction(max : most)
            for (int64_t i = 0; i < width; ++i) most = e[i] > most ? e[i] : most;
            if (most == -INFINITY) most = 0;  // nothing is seen: zeros
#pragma omp simd reduction(+ : sum)
            for (int64_t i = 0; i < width; ++i) {
                e[i] = e[i] == -INFINITY ? 0.0f : exponential(e[i] - most);
                sum += e[i];
            }
            const float share = sum > 0 ? 1.0f / sum : (sum == sum ? 0.0f : sum);
#pragma omp simd
            for (int64_t i = 0; i < width; ++i) e[i] *= share;
            put(scores + at, e, width);
            with(drop, [=](auto drops, Dropout drop) {
                if constexpr (drops) {
#pragma omp simd
                    for (int64_t i = 0; i < width; ++i) e[i] *= drop(at + i);
                    put(dropped + at, e, width);
                }
            });
        }
    }
}

// In place of the gradient of the dropped weights that of the scores; and the dropped weights once more.
template <class T>
void softmax_backward(T* __restrict grad, const T* __restrict weights, T* __restrict dropped, int64_t rows, int64_t width, int64_t level, int64_t seed) {
    const Dropout drop(level, seed);
#pragma omp parallel
    {
        std::vector<float> row_values(2 * width);
        float *__restrict d = row_values.data(), *__restrict kept = d + width;
#pragma omp for schedule(static)
        for (int64_t row = 0; row < rows; ++row) {
            const int64_t at = row * width;
            float sum = 0;
            with(drop, [=](auto drops, Dropout drop) {
#pragma omp simd
                for (int64_t i = 0; i < width; ++i) {
                    const float factor = drops ? drop(at + i) : 1.0f;
                    d[i] = load(grad[at + i]) * factor;
                    kept[i] = load(weights[at + i]) * factor;
                }
                if constexpr (drops) put(dropped + at, kept, width);
            });
#pragma omp simd reduction(+ : sum)
            for (int64_t i = 0; i < width; ++i) sum += d[i] * load(weights[at + i]);
#pragma omp simd
            for (int64_t i = 0; i < width; ++i) d[i] = (d[i] - sum) * load(weights[at + i]);
            put(grad + at, d, width);
        }
    }
}

// Copy [B, L, H, E] with numbers of a head side by side, from where a row, a token and a head lie so far apart to where they do.
template <class T>
void rearrange(const T* __restrict from, T* __restrict to, int64_t rows, int64_t length, int64_t heads, int64_t size, int64_t row_step,
               int64_t step, int64_t head_step, int64_t to_row_step, int64_t to_step, int64_t to_head_step) {
#pragma omp parallel for schedule(static)
    for (int64_t place = 0; place < rows * length; ++place) {
        const int64_t row = place / length, token = place % length;
        const T* here = from + row * row_step + token * step;
        T* there = to + row * to_row_step + token * to_step;
        for (int64_t head = 0; head < heads; ++head) std::memcpy(there + head * to_head_step, here + head * head_step, size * sizeof(T));
    }
}

// Whether each bias is small beside its weight.
void small(const float* weight, const float* bias, int64_t* answer, int64_t width) {
    *answer = 1;
    for (int64_t i = 0; i < width; ++i) *answer &= std::abs(bias[i]) < 4 * std::abs(weight[i]);
}

// For each row of logits [N, width], its nats at the target and a token: where the sum of the chances passes a uniform number,
// or the likeliest where there is none.  With `slopes`, in place of the logits the chances less one at the target.
template <class T>
void surprise(T* __restrict logits, const float* __restrict bias, const int64_t* __restrict targets,
              const float* __restrict uniform, float* __restrict nats, int64_t* __restrict tokens, int64_t rows, int64_t width,
              int64_t slopes) {
    constexpr int64_t BLOCK = 256;
#pragma omp parallel
    {
        std::vector<float> row_values(width), block_sums(width / BLOCK + 1);
        float *e = row_values.data(), *sums = block_sums.data();
#pragma omp for schedule(static)
        for (int64_t row = 0; row < rows; ++row) {
            T* __restrict own = logits + row * width;
            float most = -INFINITY;
#pragma omp simd
            for (int64_t i = 0; i < width; ++i) e[i] = load(own[i]) + bias[i];
#pragma omp simd reduction(max : most)
            for (int64_t i = 0; i < width; ++i) most = e[i] > most ? e[i] : most;
            const float wanted = e[targets[row]];
            if (!uniform) tokens[row] = std::find(e, e + width, most) - e;
            double whole = 0;
            for (int64_t at = 0; at < width; at += BLOCK) {
                float sum = 0;
#pragma omp simd reduction(+ : sum)
                for (int64_t i = at; i < std::min(width, at + BLOCK); ++i) sum += e[i] = exponential(e[i] - most);
                whole += sums[at / BLOCK] = sum;
            }
            nats[row] = most + float(std::log(whole)) - wanted;
            if (uniform) {
                double left = uniform[row] * whole;
                int64_t at = 0;
                for (; at + BLOCK < width && sums[at / BLOCK] <= left; at += BLOCK) left -= sums[at / BLOCK];
                for (; at + 1 < width && e[at] <= left; ++at) left -= e[at];
                tokens[row] = at;
            }
            if (slopes) {
                const float share = float(1 / whole);
#pragma omp simd
                for (int64_t i = 0; i < width; ++i) e[i] *= share;
                e[targets[row]] -= 1.0f;
                put(own, e, width);
            }
        }
    }
}

}  // namespace

extern "C" {
BOTH(add_norm)
BOTH(add_norm_backward)
BOTH(gelu)
BOTH(gelu_backward)
BOTH(column_sums)
BOTH(softmax)
BOTH(softmax_backward)
BOTH(rearrange)
BOTH(surprise)
void* small_float32 = (void*)&small;
}
