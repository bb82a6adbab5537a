// Passes over the rows of a matrix: residual, dropout and norm; GELU; sums of columns.

#include "numbers.h"

namespace {

// GELU, x times the normal distribution function, and its slope.  erf by Abramowitz and Stegun 7.1.26, within 1.5e-7.
inline void gelu_at(float, Lanes x, Lanes& value, Lanes& slope) {
    const Lanes z = (x < 0 ? -x : x) * 0.70710678f, bell = exponential(-z * z), t = 1.0f / (1.0f + 0.3275911f * z);
    Lanes p = t * 1.061405429f - 1.453152027f;
    p = p * t + 1.421413741f;
    p = p * t - 0.284496736f;
    p = p * t + 0.254829592f;
    const Lanes tail = 0.5f * p * t * bell, below = x < 0 ? tail : 1.0f - tail;
    value = x * below;
    slope = below + x * bell * 0.39894228f;
}

// For numbers of 8 bits polynomials do, without a power or a quotient: within 6e-5 and 3e-4, exact beyond 4.25.
inline void gelu_at(bf16, Lanes x, Lanes& value, Lanes& slope) {
    const Lanes above = x < -4.25f ? Lanes{} - 4.25f : x, z = above > 4.25f ? Lanes{} + 4.25f : above, u = z * z;
    Lanes p = u * 4.99992564e-11f - 4.87227178e-9f, q = u * 3.74581926e-11f - 2.65680914e-9f;
    p = p * u + 2.10422696e-7f;
    p = p * u - 5.36023551e-6f;
    p = p * u + 9.07527475e-5f;
    p = p * u - 1.09345138e-3f;
    p = p * u + 9.77081366e-3f;
    p = p * u - 6.62849273e-2f;
    p = p * u + 3.98881199e-1f;
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
void add_norm(const T* x, const T* y, const float* weight, const float* bias, T* out, T* sum, float* mean, float* scale,
              int64_t rows, int64_t width, double eps, int64_t level, int64_t seed) {
    const Dropout drop(level, seed, width);
#pragma omp parallel
    {
        std::vector<float> row_values(width);
        Room<uint32_t> drawn(drop.room());
        float* t = row_values.data();
#pragma omp for schedule(static)
        for (int64_t row = 0; row < rows; ++row) {
            const int64_t start = row * width;
            Lanes sums{}, squares{};
            const uint32_t* chances = drop.draw(row, 0, width, drawn);
            with(drop, [&](auto drops, Dropout drop) {
                across(width, [&](int64_t at, auto count) {
                    Lanes more = lanes_ahead(y + start + at, count);
                    if constexpr (drops) more = drop(more, chances + at);
                    const Lanes both = lanes_ahead(x + start + at, count) + more;
                    put(t + at, both, count);
                    sums += both;
                });
            });
            if (sum) across(width, [=](int64_t at, auto count) { put_ahead(sum + start + at, lanes(t + at, count), count); });
            const float middle = total(sums) / float(width);
            across(width, [&](int64_t at, auto count) {
                const Lanes off = only(lanes(t + at, count) - middle, count);
                squares += off * off;
            });
            const float unit = 1.0f / std::sqrt(total(squares) / float(width) + float(eps));
            across(width, [=](int64_t at, auto count) {
                const Lanes normed = (lanes(t + at, count) - middle) * unit;
                put_ahead(out + start + at, normed * lanes(weight + at, count) + lanes(bias + at, count), count);
            });
            mean[row] = middle;
            scale[row] = unit;
        }
    }
}

// From what was kept: the sum, or, where `bias` is given, the result, of which the sum's norm is found again.
template <class T>
void add_norm_backward(const T* grad, const T* kept, const float* weight, const float* bias, const float* mean,
                       const float* scale, T* dx, T* dy, float* dweight, float* dbias, int64_t rows, int64_t width, int64_t level,
                       int64_t seed) {
    const Dropout drop(level, seed, width);
    const int64_t count = blocks(rows);
    std::vector<float> parts(count * 2 * width), sums(2 * width), undo(2 * width);
    for (int64_t i = 0; i < width; ++i) {
        undo[i] = bias ? bias[i] : 0.0f;
        undo[width + i] = bias ? 1.0f / weight[i] : 1.0f;
    }
#pragma omp parallel
    {
        const float *shift = undo.data(), *unit = shift + width;
        std::vector<float> own(2 * width);
        Room<uint32_t> drawn(drop.room());
        float *normed = own.data(), *slope = normed + width;
#pragma omp for schedule(static)
        for (int64_t block = 0; block < count; ++block) {
            float *first = &parts[block * 2 * width], *second = first + width;
            for (int64_t row = block * ROWS; row < std::min(rows, (block + 1) * ROWS); ++row) {
                const int64_t start = row * width;
                const float size = scale[row], middle = bias ? 0.0f : mean[row], step = bias ? 1.0f : size;
                Lanes flat{}, along{};
                across(width, [&](int64_t at, auto some) {
                    const Lanes g = lanes_ahead(grad + start + at, some),
                                off = lanes_ahead(kept + start + at, some) - middle - lanes(shift + at, some);
                    const Lanes n = only(off * step * lanes(unit + at, some), some), s = g * lanes(weight + at, some);
                    put(first + at, lanes(first + at, some) + g * n, some);
                    put(second + at, lanes(second + at, some) + g, some);
                    put(normed + at, n, some);
                    put(slope + at, s, some);
                    flat += s;
                    along += s * n;
                });
                const float a = total(flat) / float(width), b = total(along) / float(width);
                const uint32_t* chances = drop.draw(row, 0, width, drawn);
                with(drop, [=](auto drops, Dropout drop) {
                    across(width, [=](int64_t at, auto some) {
                        const Lanes s = (lanes(slope + at, some) - a - lanes(normed + at, some) * b) * size;
                        put_ahead(dx + start + at, s, some);
                        if constexpr (drops) put_ahead(dy + start + at, drop(s, chances + at), some);
                    });
                });
            }
        }
    }
    gather(parts, count, 2 * width, sums.data());
    std::copy(sums.begin(), sums.begin() + width, dweight);
    std::copy(sums.begin() + width, sums.end(), dbias);
}

// a = gelu(h + bias)
template <class T>
void gelu(const T* h, const float* bias, T* a, int64_t rows, int64_t width) {
#pragma omp parallel for schedule(static)
    for (int64_t row = 0; row < rows; ++row)
        across(width, [=](int64_t at, auto count) {
            Lanes value, slope;
            gelu_at(T{}, lanes_ahead(h + row * width + at, count) + lanes(bias + at, count), value, slope);
            put_ahead(a + row * width + at, value, count);
        });
}

// a as above once more, and in place of its gradient that of h; dbias sums that over rows.
template <class T>
void gelu_backward(const T* h, const float* bias, T* grad, T* a, float* dbias, int64_t rows, int64_t width) {
    const int64_t count = blocks(rows);
    std::vector<float> parts(count * width);
#pragma omp parallel for schedule(static)
    for (int64_t block = 0; block < count; ++block) {
        float* sums = &parts[block * width];
        for (int64_t row = block * ROWS; row < std::min(rows, (block + 1) * ROWS); ++row)
            across(width, [=](int64_t at, auto some) {
                const int64_t here = row * width + at;
                Lanes value, slope;
                gelu_at(T{}, lanes_ahead(h + here, some) + lanes(bias + at, some), value, slope);
                slope *= lanes_ahead(grad + here, some);
                put(sums + at, lanes(sums + at, some) + slope, some);
                put_ahead(a + here, value, some);
                put(grad + here, slope, some);
            });
    }
    gather(parts, count, width, dbias);
}

// u = value * sigmoid(gate) of rows [value, gate].
template <class T>
void gate(const T* both, T* u, int64_t rows, int64_t width) {
#pragma omp parallel for schedule(static)
    for (int64_t row = 0; row < rows; ++row)
        across(width, [=](int64_t at, auto count) {
            const T* value = both + 2 * row * width + at;
            put_ahead(u + row * width + at, lanes_ahead(value, count) / (1.0f + exponential(-lanes_ahead(value + width, count))),
                      count);
        });
}

// The slopes of value and gate, side by side, from two that add up to that of u.
template <class T>
void gate_backward(const T* both, const T* grad, const T* more, T* slopes, int64_t rows, int64_t width) {
#pragma omp parallel for schedule(static)
    for (int64_t row = 0; row < rows; ++row)
        across(width, [=](int64_t at, auto count) {
            const T* value = both + 2 * row * width + at;
            const Lanes slope = lanes_ahead(grad + row * width + at, count) + lanes_ahead(more + row * width + at, count);
            const Lanes open = 1.0f / (1.0f + exponential(-lanes_ahead(value + width, count)));
            T* to = slopes + 2 * row * width + at;
            put_ahead(to, slope * open, count);
            put_ahead(to + width, slope * open * (1.0f - open) * lanes_ahead(value, count), count);
        });
}

// y = a * b, where rows of a lie `step` apart.
template <class T>
void times(const T* a, const T* b, T* y, int64_t rows, int64_t width, int64_t step) {
#pragma omp parallel for schedule(static)
    for (int64_t row = 0; row < rows; ++row)
        across(width, [=](int64_t at, auto count) {
            put_ahead(y + row * width + at, lanes_ahead(a + row * step + at, count) * lanes_ahead(b + row * width + at, count),
                      count);
        });
}

// The slope of b, and that much more on the slope of a, which lies like a.
template <class T>
void times_backward(const T* grad, const T* a, const T* b, T* da, T* db, int64_t rows, int64_t width, int64_t step) {
#pragma omp parallel for schedule(static)
    for (int64_t row = 0; row < rows; ++row)
        across(width, [=](int64_t at, auto count) {
            const int64_t here = row * width + at, there = row * step + at;
            const Lanes slope = lanes_ahead(grad + here, count);
            put(da + there, lanes_ahead(da + there, count) + slope * lanes_ahead(b + here, count), count);
            put_ahead(db + here, slope * lanes_ahead(a + there, count), count);
        });
}

template <class T>
void column_sums(const T* x, float* sums, int64_t rows, int64_t width) {
    const int64_t count = blocks(rows);
    std::vector<float> parts(count * width);
#pragma omp parallel for schedule(static)
    for (int64_t block = 0; block < count; ++block) {
        float* own = &parts[block * width];
        for (int64_t row = block * ROWS; row < std::min(rows, (block + 1) * ROWS); ++row)
            across(width, [=](int64_t at, auto some) {
                put(own + at, lanes(own + at, some) + lanes_ahead(x + row * width + at, some), some);
            });
    }
    gather(parts, count, width, sums);
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
            T* own = logits + row * width;
            Lanes high = Lanes{} - INFINITY;
            across(width, [&](int64_t at, auto count) {
                const Lanes x = lanes_ahead(own + at, count) + lanes(bias + at, count), all = only(x, count, -INFINITY);
                put(e + at, x, count);
                high = high < all ? all : high;
            });
            const float most = largest(high), wanted = e[targets[row]];
            if (!uniform) tokens[row] = std::find(e, e + width, most) - e;
            double whole = 0;
            for (int64_t at = 0; at < width; at += BLOCK) {
                Lanes some{};
                across(std::min(BLOCK, width - at), [&](int64_t i, auto count) {
                    const Lanes x = only(weight_of(T{}, lanes(e + at + i, count), most, 1.0f), count);
                    put(e + at + i, x, count);
                    some += x;
                });
                whole += sums[at / BLOCK] = total(some);
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
                e[targets[row]] -= float(whole);
                across(width, [=](int64_t at, auto count) { put(own + at, lanes(e + at, count) * share, count); });
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
BOTH(gate)
BOTH(gate_backward)
BOTH(times)
BOTH(times_backward)
BOTH(column_sums)
BOTH(surprise)
void* small_float32 = (void*)&small;
}
