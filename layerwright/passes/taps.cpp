// Convolutions over the tokens of a row: of each channel with its own taps, and of each head with weights of each token's own.

#include "numbers.h"

namespace {

// Sixteen channels at once, and four times as many, whose sums stay in registers; fewer are padded with zeros.
using Lanes = float __attribute__((vector_size(64)));
constexpr int64_t LANES = 16, RUN = 4, MOST = 8;  // a run has so many lanes; a head whose lanes are held at once so many

inline void load(const float* from, Lanes& to) { std::memcpy(&to, from, sizeof to); }
inline void load(const bf16* from, Lanes& to) {
    uint16_t __attribute__((vector_size(32))) half;
    std::memcpy(&half, from, sizeof half);
    to = (Lanes)(__builtin_convertvector(half, uint32_t __attribute__((vector_size(64)))) << 16);
}
inline void store(float* to, const Lanes& x) { std::memcpy(to, &x, sizeof x); }
inline void store(bf16* to, const Lanes& x) {
    for (int64_t i = 0; i < LANES; ++i) store(to[i], x[i]);
}

inline float total(const Lanes& lanes) {
    float numbers[LANES], sum = 0;
    std::memcpy(numbers, &lanes, sizeof numbers);
#pragma omp simd reduction(+ : sum)
    for (int64_t i = 0; i < LANES; ++i) sum += numbers[i];
    return sum;
}

// Call `pass` for runs of channels, with how many lanes a run has, known when it is compiled; the last ones by the one lane.
template <class Pass>
void runs(int64_t size, Pass pass) {
    int64_t at = 0;
    for (; at + RUN * LANES <= size; at += RUN * LANES) pass(at, std::integral_constant<int64_t, RUN>{});
    for (; at + LANES <= size; at += LANES) pass(at, std::integral_constant<int64_t, 1>{});
    for (; at < size; ++at) pass(at, std::integral_constant<int64_t, 0>{});
}

// What one run adds up: lanes, or a single number.
template <int64_t count>
struct Sum {
    Lanes lanes[count] = {};
    template <class A>
    void add(const A* a, float factor) {
        for (int64_t i = 0; i < count; ++i) {
            Lanes x;
            load(a + i * LANES, x);
            lanes[i] += x * factor;
        }
    }
    template <class A, class B>
    void add(const A* a, const B* b) {
        for (int64_t i = 0; i < count; ++i) {
            Lanes x, y;
            load(a + i * LANES, x);
            load(b + i * LANES, y);
            lanes[i] += x * y;
        }
    }
    template <class T>
    void put(T* to) const {
        for (int64_t i = 0; i < count; ++i) store(to + i * LANES, lanes[i]);
    }
};
template <>
struct Sum<0> {
    float one = 0;
    template <class A>
    void add(const A* a, float factor) {
        one += load(*a) * factor;
    }
    template <class A, class B>
    void add(const A* a, const B* b) {
        one += load(*a) * load(*b);
    }
    template <class T>
    void put(T* to) const {
        store(*to, one);
    }
};

// The taps that lie inside a row, of a token at `here`.
inline int64_t first(int64_t here, int64_t kernel) { return std::max<int64_t>(0, kernel / 2 - here); }
inline int64_t last(int64_t here, int64_t length, int64_t kernel) { return std::min(kernel, length - here + kernel / 2); }

// y[b, l, d] = sum over k of taps[k, d] x[b, l + k - K / 2, d]; with `flip`, the taps backwards: the gradient of x.
template <class T>
void depthwise(const T* __restrict x, const float* __restrict taps, T* __restrict y, int64_t rows, int64_t length, int64_t width,
               int64_t kernel, int64_t flip) {
#pragma omp parallel for schedule(static)
    for (int64_t token = 0; token < rows * length; ++token) {
        const int64_t here = token % length, from = first(here, kernel), to = last(here, length, kernel);
        runs(width, [=](int64_t at, auto count) {
            Sum<count> sum;
            for (int64_t k = from; k < to; ++k)
                sum.add(x + (token + k - kernel / 2) * width + at, taps + (flip ? kernel - 1 - k : k) * width + at);
            sum.put(y + token * width + at);
        });
    }
}

// The gradient of the taps: [K, D].
template <class T>
void depthwise_taps(const T* __restrict x, const T* __restrict grad, float* __restrict dtaps, int64_t rows, int64_t length,
                    int64_t width, int64_t kernel) {
    const int64_t tokens = rows * length, count = blocks(tokens);
    std::vector<float> parts(count * kernel * width);
    float* all = parts.data();
#pragma omp parallel for schedule(static)
    for (int64_t block = 0; block < count; ++block)
        runs(width, [=](int64_t at, auto count) {
            for (int64_t k = 0; k < kernel; ++k) {
                Sum<count> sum;
                int64_t there = block * ROWS % length + k - kernel / 2;
                for (int64_t token = block * ROWS; token < std::min(tokens, (block + 1) * ROWS); ++token, ++there) {
                    if (there == length + k - kernel / 2) there -= length;  // the next row begins
                    if (there < 0 || there >= length) continue;
                    sum.add(x + (token + k - kernel / 2) * width + at, grad + token * width + at);
                }
                sum.put(all + (block * kernel + k) * width + at);
            }
        });
    gather(parts, count, kernel * width, dtaps);
}

// The softmax over the taps of each head of each token, [B, L, H, K].
template <class T>
void softmax_of_taps(const T* __restrict logits, float* __restrict weights, int64_t rows, int64_t kernel) {
#pragma omp parallel for schedule(static)
    for (int64_t row = 0; row < rows; ++row) {
        const T* from = logits + row * kernel;
        float *to = weights + row * kernel, most = -INFINITY, sum = 0;
        for (int64_t k = 0; k < kernel; ++k) most = std::max(most, load(from[k]));
#pragma omp simd reduction(+ : sum)
        for (int64_t k = 0; k < kernel; ++k) sum += to[k] = exponential(load(from[k]) - most);
        for (int64_t k = 0; k < kernel; ++k) to[k] /= sum;
    }
}

// Dynamic convolution: y[b, l, h] = sum over k of weights[b, l, h, k] x[b, l + k - K / 2, h], where `near` says that a neighbour
// counts (or is null); with `flip` each token gives instead of takes: the gradient of x.  A token of x lies `step` numbers
// from the one before it, and one of y `width`.
template <class T>
void convolve(const T* __restrict x, const float* __restrict weights, const uint8_t* __restrict near, T* __restrict y,
              int64_t rows, int64_t length, int64_t heads, int64_t size, int64_t kernel, int64_t step, int64_t flip) {
    const int64_t width = heads * size;
#pragma omp parallel for schedule(static)
    for (int64_t token = 0; token < rows * length; ++token) {
        const int64_t here = token % length, from = first(here, kernel), to = last(here, length, kernel);
        for (int64_t head = 0; head < heads; ++head)
            runs(size, [=](int64_t at, auto count) {
                Sum<count> sum;
                for (int64_t k = from; k < to; ++k) {
                    const int64_t there = token + k - kernel / 2, giver = flip ? there : token, tap = flip ? kernel - 1 - k : k;
                    if (near && !near[giver * kernel + tap]) continue;
                    const float weight = weights[(giver * heads + head) * kernel + tap];
                    sum.add(x + there * step + head * size + at, weight);
                }
                sum.put(y + token * width + head * size + at);
            });
    }
}

// The gradient of the logits behind the weights.
template <class T>
void convolve_logits(const T* __restrict grad, const T* __restrict x, const float* __restrict weights,
                     const uint8_t* __restrict near, T* __restrict dlogits, int64_t rows, int64_t length, int64_t heads,
                     int64_t size, int64_t kernel, int64_t step) {
    const int64_t width = heads * size;
#pragma omp parallel
    {
        std::vector<float> slopes(kernel);
        float* slope = slopes.data();
#pragma omp for schedule(static)
        for (int64_t token = 0; token < rows * length; ++token) {
            const int64_t here = token % length, from = first(here, kernel), to = last(here, length, kernel);
            for (int64_t head = 0; head < heads; ++head) {
                const T* g = grad + token * width + head * size;
                const float* own = weights + (token * heads + head) * kernel;
                const int64_t whole = std::min(size / LANES, MOST);
                Lanes wide[MOST];
                for (int64_t i = 0; i < whole; ++i) load(g + i * LANES, wide[i]);
                float mean = 0;
                std::fill(slope, slope + kernel, 0.0f);
                for (int64_t k = from; k < to; ++k) {
                    if (near && !near[token * kernel + k]) continue;
                    const T* mixed = x + (token + k - kernel / 2) * step + head * size;
                    Lanes sum = {};
                    for (int64_t i = 0; i < whole; ++i) {
                        Lanes x;
                        load(mixed + i * LANES, x);
                        sum += x * wide[i];
                    }
                    Sum<0> rest;
                    for (int64_t i = whole * LANES; i < size; ++i) rest.add(mixed + i, g + i);
                    const float product = total(sum) + rest.one;
                    slope[k] = product;
                    mean += product * own[k];
                }
                for (int64_t k = 0; k < kernel; ++k) store(dlogits[(token * heads + head) * kernel + k], (slope[k] - mean) * own[k]);
            }
        }
    }
}

}  // namespace

extern "C" {
BOTH(depthwise)
BOTH(depthwise_taps)
BOTH(softmax_of_taps)
BOTH(convolve)
BOTH(convolve_logits)
}
