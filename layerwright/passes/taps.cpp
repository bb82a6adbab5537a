// Convolutions over the tokens of a row: of each channel with its own taps, and of each head with weights of each token's own.

#include "numbers.h"

namespace {

// As many lanes of channels as have their sums in registers, and as many of a head as are held at once.
constexpr int64_t RUN = 4, CHANNELS = RUN * LANES, MOST = 8;

// Call `pass` for runs of channels, with how many lanes a run has, known when it is compiled; the last ones by the one lane.
template <class Pass>
void runs(int64_t size, Pass pass) {
    int64_t at = 0;
    for (; at + CHANNELS <= size; at += CHANNELS) pass(at, std::integral_constant<int64_t, RUN>{});
    for (; at + LANES <= size; at += LANES) pass(at, std::integral_constant<int64_t, 1>{});
    for (; at < size; ++at) pass(at, std::integral_constant<int64_t, 0>{});
}

// What one run adds up: lanes, or a single number.
template <int64_t count>
struct Sum {
    Lanes held[count] = {};
    template <class A>
    void add(const A* a, float factor) {
        for (int64_t i = 0; i < count; ++i) held[i] += lanes(a + i * LANES) * factor;
    }
    template <class T>
    void put(T* to) const {
        for (int64_t i = 0; i < count; ++i) ::put(to + i * LANES, held[i]);
    }
};
template <>
struct Sum<0> {
    float one = 0;
    template <class A>
    void add(const A* a, float factor) {
        one += load(*a) * factor;
    }
    template <class T>
    void put(T* to) const {
        store(*to, one);
    }
};

// Lane l of the result is the sum of the lanes of the l-th of sixteen: halves are added until one of each is left.
template <int stride>
inline Lanes folded(const Lanes& a, const Lanes& b) {
    using Places = int32_t __attribute__((vector_size(64)));
    Places near, far;
    for (int l = 0; l < LANES; ++l) {
        near[l] = l & stride ? l + LANES : l;
        far[l] = near[l] ^ stride;
    }
    return __builtin_shuffle(a, b, near) + __builtin_shuffle(a, b, far);
}
inline Lanes totals(Lanes* sums) {
    for (int i = 0; i < 8; ++i) sums[i] = folded<8>(sums[i], sums[i + 8]);
    for (int i = 0; i < 4; ++i) sums[i] = folded<4>(sums[i], sums[i + 4]);
    for (int i = 0; i < 2; ++i) sums[i] = folded<2>(sums[i], sums[i + 2]);
    return folded<1>(sums[0], sums[1]);
}

// The taps that lie inside a row, of a token at `here`.
inline int64_t first(int64_t here, int64_t kernel) { return std::max<int64_t>(0, kernel / 2 - here); }
inline int64_t last(int64_t here, int64_t length, int64_t kernel) { return std::min(kernel, length - here + kernel / 2); }

// Copy some channels of the tokens `from` to `to` of a row, in float32, for as many lanes as a run has; zeros outside the row.
template <class T>
void widen(const T* row, int64_t from, int64_t to, int64_t length, int64_t width, int64_t size, float* wide) {
    std::fill(wide, wide + (to - from) * CHANNELS, 0.0f);
    for (int64_t token = std::max<int64_t>(from, 0); token < std::min(to, length); ++token)
#pragma omp simd
        for (int64_t i = 0; i < size; ++i) wide[(token - from) * CHANNELS + i] = load(row[token * width + i]);
}

// Call `pass` for all parts of [B, L, D]: a row, the tokens of a block and a run of channels.
template <class Pass>
void pieces(int64_t rows, int64_t length, int64_t width, Pass pass) {
    const int64_t count = blocks(length), across = (width + CHANNELS - 1) / CHANNELS;
#pragma omp parallel for schedule(static)
    for (int64_t piece = 0; piece < rows * count * across; ++piece) {
        const int64_t at = piece % across * CHANNELS, block = piece / across, from = block % count * ROWS;
        pass(block, from, std::min(length, from + ROWS), at, std::min(CHANNELS, width - at));
    }
}

// y[b, l, d] = sum over k of taps[k, d] x[b, l + k - K / 2, d], where `near` [B, L, K] says that a neighbour counts (or is
// null); with `flip` each token gives instead of takes: the gradient of x.
template <class T>
void depthwise(const T* __restrict x, const float* __restrict taps, const uint8_t* __restrict near, T* __restrict y, int64_t rows,
               int64_t length, int64_t width, int64_t kernel, int64_t flip) {
    pieces(rows, length, width, [=](int64_t block, int64_t from, int64_t to, int64_t at, int64_t size) {
        const int64_t first_token = block / blocks(length) * length, row = first_token * width + at;
        std::vector<Lanes> room((ROWS + 2 * kernel) * RUN);  // where lanes lie is not split between two lines of the cache
        float *wide = (float*)room.data(), *own = wide + (ROWS + kernel) * CHANNELS;
        widen(x + row, from - kernel / 2, to - kernel / 2 + kernel - 1, length, width, size, wide);
        for (int64_t k = 0; k < kernel; ++k)
            std::copy_n(taps + (flip ? kernel - 1 - k : k) * width + at, size, own + k * CHANNELS);
        for (int64_t token = from; token < to; ++token) {
            Lanes sums[RUN] = {};
            for (int64_t k = 0; k < kernel; ++k) {
                const int64_t there = token + k - kernel / 2;
                if (near && (there < 0 || there >= length || !near[(first_token + (flip ? there : token)) * kernel + (flip ? kernel - 1 - k : k)]))
                    continue;
                for (int64_t i = 0; i < RUN; ++i)
                    sums[i] += lanes(wide + (token - from + k) * CHANNELS + i * LANES) * lanes(own + k * CHANNELS + i * LANES);
            }
            put(y + row + token * width, (const float*)sums, size);
        }
    });
}

// The gradient of the taps: [K, D].
template <class T>
void depthwise_taps(const T* __restrict x, const T* __restrict grad, const uint8_t* __restrict near, float* __restrict dtaps,
                    int64_t rows, int64_t length, int64_t width, int64_t kernel) {
    const int64_t count = rows * blocks(length);
    std::vector<float> parts(count * kernel * width);
    float* all = parts.data();
    pieces(rows, length, width, [=](int64_t block, int64_t from, int64_t to, int64_t at, int64_t size) {
        const int64_t first_token = block / blocks(length) * length, row = first_token * width + at;
        std::vector<Lanes> room((2 * ROWS + kernel) * RUN);
        float *wide = (float*)room.data(), *slopes = wide + (ROWS + kernel) * CHANNELS;
        widen(x + row, from - kernel / 2, to - kernel / 2 + kernel - 1, length, width, size, wide);
        widen(grad + row, from, to, length, width, size, slopes);
        for (int64_t k = 0; k < kernel; ++k) {
            Lanes sums[RUN] = {};
            for (int64_t token = 0; token < to - from; ++token) {
                if (near && !near[(first_token + from + token) * kernel + k]) continue;
                for (int64_t i = 0; i < RUN; ++i)
                    sums[i] += lanes(wide + (token + k) * CHANNELS + i * LANES) * lanes(slopes + token * CHANNELS + i * LANES);
            }
            std::copy_n((const float*)sums, size, all + (block * kernel + k) * width + at);
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
        sum = 1.0f / sum;
        for (int64_t k = 0; k < kernel; ++k) to[k] *= sum;
    }
}

// Dynamic convolution: y[b, l, h] = sum over k of weights[b, l, h, k] x[b, l + k - K / 2, h], where `near` says that a neighbour
// counts (or is null); with `flip` each token gives instead of takes: the gradient of x.  A token of x lies `step` numbers
// from the one before it, and one of y `to_step`.
template <class T>
void convolve(const T* __restrict x, const float* __restrict weights, const uint8_t* __restrict near, T* __restrict y,
              int64_t rows, int64_t length, int64_t heads, int64_t size, int64_t kernel, int64_t step, int64_t to_step, int64_t flip) {
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
                sum.put(y + token * to_step + head * size + at);
            });
    }
}

// The gradient of the logits behind the weights.
template <class T>
void convolve_logits(const T* __restrict grad, const T* __restrict x, const float* __restrict weights,
                     const uint8_t* __restrict near, T* __restrict dlogits, int64_t rows, int64_t length, int64_t heads,
                     int64_t size, int64_t kernel, int64_t grad_step, int64_t step) {
    const int64_t room = (kernel + LANES - 1) / LANES * LANES;
#pragma omp parallel
    {
        std::vector<float> slopes(room);
        float* slope = slopes.data();
#pragma omp for schedule(static)
        for (int64_t token = 0; token < rows * length; ++token) {
            const int64_t here = token % length, from = first(here, kernel), to = last(here, length, kernel);
            for (int64_t head = 0; head < heads; ++head) {
                const T* g = grad + token * grad_step + head * size;
                const T* mixed = x + (token - kernel / 2) * step + head * size;
                const float* own = weights + (token * heads + head) * kernel;
                const int64_t whole = std::min(size / LANES, MOST);
                Lanes wide[MOST];
                for (int64_t i = 0; i < whole; ++i) wide[i] = lanes(g + i * LANES);
                for (int64_t some = 0; some < kernel; some += LANES) {
                    Lanes sums[LANES] = {};
                    for (int64_t k = std::max(from, some); k < std::min(to, some + LANES); ++k)
                        for (int64_t i = 0; i < whole; ++i) sums[k - some] += lanes(mixed + k * step + i * LANES) * wide[i];
                    const Lanes found = totals(sums);
                    std::memcpy(slope + some, &found, sizeof found);
                }
                for (int64_t i = whole * LANES; i < size; ++i)
                    for (int64_t k = from; k < to; ++k) slope[k] += load(mixed[k * step + i]) * load(g[i]);
                float mean = 0;
                for (int64_t k = 0; near && k < kernel; ++k) slope[k] = near[token * kernel + k] ? slope[k] : 0.0f;
                for (int64_t k = 0; k < kernel; ++k) mean += slope[k] * own[k];
                for (int64_t k = 0; k < kernel; ++k) slope[k] = (slope[k] - mean) * own[k];
                put(dlogits + (token * heads + head) * kernel, slope, kernel);
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
