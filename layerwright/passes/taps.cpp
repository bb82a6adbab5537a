// Convolutions over the tokens of a row: of each channel with its own taps, and of each head with weights of each token's own.

#include "numbers.h"

namespace {

constexpr int64_t RUN = 4, CHANNELS = RUN * LANES;  // that are worked on together
constexpr int64_t WIDEST = 256;                     // channels that stay in the cache,
constexpr int64_t TOKENS = 16;                      // of so many tokens

// Call `pass` with the size of a kernel where it is a usual one, known when it is compiled, so that what belongs to taps stays in
// registers; else with 0.
template <class Pass>
void sized(int64_t kernel, Pass pass) {
    if (kernel == 3)
        pass(std::integral_constant<int64_t, 3>{});
    else if (kernel == 5)
        pass(std::integral_constant<int64_t, 5>{});
    else if (kernel == 7)
        pass(std::integral_constant<int64_t, 7>{});
    else if (kernel == 9)
        pass(std::integral_constant<int64_t, 9>{});
    else
        pass(std::integral_constant<int64_t, 0>{});
}

// Lane l of the result is the sum of the lanes of the l-th of sixteen: halves are added until one of each is left.
template <int stride>
inline Lanes folded(const Lanes& a, const Lanes& b) {
    Words near, far;
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

// The tokens of a matrix, which lie so far apart. Those that will soon be read or written are fetched.
template <class T>
struct Matrix {
    T* first;
    int64_t step;

    template <class Count>
    Lanes operator()(int64_t token, int64_t at, Count count) const {
        const T* here = first + token * step + at;
        __builtin_prefetch(here + TOKENS * step, 0, 2);
        return lanes(here, count);
    }
    template <class Count>
    void give(int64_t token, int64_t at, Lanes x, Count count) const {
        T* here = first + token * step + at;
        __builtin_prefetch(here + TOKENS * step, 1);
        put(here, x, count);
    }
};

// Some tokens of a row of [B, L, groups * width], in a block that begins at `start`; blocks count over all rows. And all channels
// of some groups, or some of one group, from one on.
struct Piece {
    int64_t block, first_token, start, from, to, group, groups, at, size;
};

// Pieces of all rows in float32, of at most so many channels of a group, with what a kernel reaches beside them.
struct Pieces {
    int64_t rows, length, groups, width, kernel, most;
    int64_t size = std::min(width, most), together = std::min(groups, std::max<int64_t>(1, WIDEST / size));
    int64_t room = (size + CHANNELS - 1) / CHANNELS * CHANNELS;  // of the channels of a group
    int64_t step = together * room + LANES;                      // of a token: not a power of two, for the cache's sake
    int64_t whole = (TOKENS + kernel - 1) * step;                // of a piece

    // Call `pass` for each, those of a block one after the other, with the same room for so many numbers for all of a thread.
    template <class Pass>
    void each(int64_t numbers, Pass pass) const {
        const int64_t sides = (width + size - 1) / size, parts = (groups + together - 1) / together * sides,
                      count = blocks(length);
#pragma omp parallel
        {
            Room<float> found(numbers);
#pragma omp for schedule(static)
            for (int64_t number = 0; number < rows * count * parts; ++number) {
                const int64_t block = number / parts, start = block % count * ROWS, end = std::min(length, start + ROWS);
                const int64_t group = number % parts / sides * together, side = number % sides * size;
                const int64_t some = std::min(together, groups - group), broad = std::min(size, width - side);
                Piece piece{block, block / count * length, start, 0, 0, group, some, group * width + side, broad};
                for (piece.from = start; piece.from < end; piece.from = piece.to) {
                    piece.to = std::min(end, piece.from + TOKENS);
                    pass(piece, (float*)found);
                }
            }
        }
    }

    // Write the numbers of a piece where those of the one before it in its block are; zeros are where there are no tokens or
    // channels.
    template <class T>
    void read(Piece piece, Matrix<const T> x, float* to) const {
        int64_t row = 0;
        if (piece.from > piece.start) {
            std::memmove(to, to + TOKENS * step, (kernel - 1) * step * sizeof(float));
            row = kernel - 1;
        }
        for (; row < piece.to - piece.from + kernel - 1; ++row)
            for (int64_t group = 0; group < piece.groups; ++group) {
                const int64_t token = piece.from - kernel / 2 + row, used = token >= 0 && token < length ? piece.size : 0;
                float* here = to + row * step + group * room;
                across(used, [=](int64_t at, auto count) {
                    put(here + at, x(piece.first_token + token, piece.at + group * piece.size + at, count));
                });
                std::fill(here + (used + LANES - 1) / LANES * LANES, here + room, 0.0f);
            }
    }
};

// y[b, l, d] = sum over k of taps[k, d] x[b, l + k - K / 2, d], where `near` [B, L, K] says that a neighbour counts (or is null).
template <class T>
void depthwise(const T* x, const float* taps, const uint8_t* near, T* y, int64_t rows, int64_t length, int64_t width,
               int64_t kernel) {
    const Pieces pieces{rows, length, 1, width, kernel, WIDEST};
    const Matrix<T> to{y, width};
    pieces.each(pieces.whole, [=](Piece piece, float* wide) {
        const int64_t step = pieces.step;
        pieces.read(piece, Matrix{x, width}, wide);
        sized(near ? 0 : kernel, [=](auto known) {
            across(piece.size, [=](int64_t at, auto count) {
                const auto tap = [=](int64_t k) { return lanes(taps + k * width + piece.at + at, count); };
                Lanes held[known + 1];
                for (int64_t k = 0; k < known; ++k) held[k] = tap(k);
                const float* here = wide + at;
                for (int64_t token = piece.from; token < piece.to; ++token, here += step) {
                    const int64_t taker = piece.first_token + token;
                    Lanes sum{};
                    if constexpr (known)
                        for (int64_t k = 0; k < known; ++k) sum += lanes(here + k * step) * held[k];
                    else
                        for (int64_t k = 0; k < kernel; ++k)
                            if (!near || near[taker * kernel + k]) sum += lanes(here + k * step) * tap(k);
                    to.give(taker, piece.at + at, sum, count);
                }
            });
        });
    });
}

// The gradients of x, and of the taps: [K, D].
template <class T>
void depthwise_backward(const T* grad, const T* x, const float* taps, const uint8_t* near, T* dx, float* dtaps, int64_t rows,
                        int64_t length, int64_t width, int64_t kernel) {
    const Pieces pieces{rows, length, 1, width, kernel, WIDEST};
    const Matrix<T> to{dx, width};
    std::vector<float> parts(rows * blocks(length) * kernel * width);
    float* all = parts.data();
    pieces.each(2 * pieces.whole, [=](Piece piece, float* wide) {
        const int64_t step = pieces.step, half = kernel / 2, size = piece.to - piece.from;
        float* slopes = wide + pieces.whole;
        pieces.read(piece, Matrix{x, width}, wide);
        pieces.read(piece, Matrix{grad, width}, slopes);
        // Each token gives back to those it took from.
        const auto gave = [=](int64_t token, int64_t k) {
            const int64_t taker = piece.from + token + k - half;
            return taker >= 0 && taker < length && near[(piece.first_token + taker) * kernel + kernel - 1 - k];
        };
        sized(near ? 0 : kernel, [=](auto known) {
            across(piece.size, [=](int64_t at, auto count) {
                const auto tap = [=](int64_t k) { return lanes(taps + (kernel - 1 - k) * width + piece.at + at, count); };
                const auto place = [=](const float* from, int64_t row) { return lanes(from + row * step + at); };
                const int64_t first = piece.first_token + piece.from;
                float* own = all + piece.block * kernel * width + piece.at + at;
                if constexpr (known) {
                    Lanes held[known], sums[known];
                    for (int64_t k = 0; k < known; ++k) held[k] = tap(k);
                    for (int64_t k = 0; k < known; ++k) sums[k] = lanes(own + k * width, count);
                    for (int64_t token = 0; token < size; ++token) {
                        const Lanes slope = place(slopes, token + known / 2);
                        Lanes sum{};
                        for (int64_t k = 0; k < known; ++k) {
                            sum += place(slopes, token + k) * held[k];
                            sums[k] += place(wide, token + k) * slope;
                        }
                        to.give(first + token, piece.at + at, sum, count);
                    }
                    for (int64_t k = 0; k < known; ++k) put(own + k * width, sums[k], count);
                } else {
                    for (int64_t token = 0; token < size; ++token) {
                        Lanes sum{};
                        for (int64_t k = 0; k < kernel; ++k)
                            if (!near || gave(token, k)) sum += place(slopes, token + k) * tap(k);
                        to.give(first + token, piece.at + at, sum, count);
                    }
                    for (int64_t k = 0; k < kernel; ++k) {
                        Lanes sum = lanes(own + k * width, count);
                        for (int64_t token = 0; token < size; ++token)
                            if (!near || near[(first + token) * kernel + k])
                                sum += place(wide, token + k) * place(slopes, token + half);
                        put(own + k * width, sum, count);
                    }
                }
            });
        });
    });
    gather(parts, rows * blocks(length), kernel * width, dtaps);
}

// The softmax over the taps of each head of each token, [B, L, H, K].
template <class T>
void softmax_of_taps(const T* logits, float* weights, int64_t rows, int64_t kernel) {
#pragma omp parallel for schedule(static)
    for (int64_t row = 0; row < rows; ++row) {
        const T* from = logits + row * kernel;
        float* to = weights + row * kernel;
        if (kernel <= LANES) {
            const Lanes x = only(lanes(from, kernel), kernel, -INFINITY), shares = weight_of(T{}, x, largest(x), 1.0f);
            put(to, shares * (1.0f / total(shares)), kernel);
        } else {
            across(kernel, [=](int64_t at, auto count) { put(to + at, lanes(from + at, count), count); });
            const auto found = [=](int64_t at, Lanes x, auto count) { put(to + at, x, count); };
            const float share = softmax_of<T>(to, kernel, 1.0f, found).share;
            across(kernel, [=](int64_t at, auto count) { put(to + at, lanes(to + at, count) * share, count); });
        }
    }
}

// Dynamic convolution: y[b, l, h] = sum over k of weights[b, l, h, k] x[b, l + k - K / 2, h], where `near` says that a neighbour
// counts (or is null).  A token of x lies `step` numbers from the one before it, and one of y `to_step`.
template <class T>
void convolve(const T* x, const float* weights, const uint8_t* near, T* y, int64_t rows, int64_t length, int64_t heads,
              int64_t size, int64_t kernel, int64_t step, int64_t to_step) {
    const Pieces pieces{rows, length, heads, size, kernel, size};
    const Matrix<T> to{y, to_step};
    pieces.each(pieces.whole, [=](Piece piece, float* wide) {
        pieces.read(piece, Matrix{x, step}, wide);
        for (int64_t token = piece.from; token < piece.to; ++token)
            for (int64_t group = 0; group < piece.groups; ++group) {
                const int64_t giver = piece.first_token + token, channel = piece.at + group * size;
                const float* own = weights + (giver * heads + piece.group + group) * kernel;
                for (int64_t start = 0; start < size; start += CHANNELS) {
                    const float* here = wide + (token - piece.from) * pieces.step + group * pieces.room + start;
                    Lanes sums[RUN] = {};
                    for (int64_t k = 0; k < kernel; ++k, here += pieces.step)
                        if (!near || near[giver * kernel + k])
                            for (int64_t i = 0; i < RUN; ++i) sums[i] += lanes(here + i * LANES) * own[k];
                    across(std::min(CHANNELS, size - start),
                           [&](int64_t at, auto count) { to.give(giver, channel + start + at, sums[at / LANES], count); });
                }
            }
    });
}

// The gradients of x, and of the logits behind the weights.
template <class T>
void convolve_backward(const T* grad, const T* x, const float* weights, const uint8_t* near, T* dx, T* dlogits, int64_t rows,
                       int64_t length, int64_t heads, int64_t size, int64_t kernel, int64_t grad_step, int64_t step,
                       int64_t to_step) {
    const Pieces pieces{rows, length, heads, size, kernel, size};
    const Matrix<T> to{dx, to_step};
    pieces.each(2 * pieces.whole + TOKENS * pieces.together * kernel + LANES, [=](Piece piece, float* wide) {
        float *grads = wide + pieces.whole, *slopes = grads + pieces.whole;
        pieces.read(piece, Matrix{x, step}, wide);
        pieces.read(piece, Matrix{grad, grad_step}, grads);
        const auto place = [=](int64_t token, int64_t group) {
            return ((piece.first_token + token) * heads + piece.group + group) * kernel;
        };
        // Sixteen sums at a time have their lanes added up, whichever token, head and tap they are of.
        Lanes sums[LANES] = {};
        int64_t found = 0;
        for (int64_t token = 0; token < piece.to - piece.from; ++token)
            for (int64_t group = 0; group < piece.groups; ++group) {
                const float* here = wide + token * pieces.step + group * pieces.room;
                const float* own = grads + (token + kernel / 2) * pieces.step + group * pieces.room;
                Lanes slope[RUN];
                for (int64_t i = 0; i < RUN; ++i) slope[i] = lanes(own + i * LANES);
                for (int64_t k = 0; k < kernel; ++k, here += pieces.step) {
                    Lanes sum{};
                    for (int64_t i = 0; i < RUN; ++i) sum += lanes(here + i * LANES) * slope[i];
                    for (int64_t at = CHANNELS; at < pieces.room; at += LANES) sum += lanes(here + at) * lanes(own + at);
                    sums[found % LANES] = sum;
                    if (++found % LANES == 0) put(slopes + found - LANES, totals(sums));
                }
            }
        put(slopes + found / LANES * LANES, totals(sums));
        for (int64_t token = piece.from; token < piece.to; ++token)
            for (int64_t group = 0; group < piece.groups; ++group, slopes += kernel) {
                const uint8_t* counts = near ? near + (piece.first_token + token) * kernel : nullptr;
                const float *share = weights + place(token, group), *slope = slopes;
                for (int64_t k = 0; counts && k < kernel; ++k) slopes[k] = counts[k] ? slopes[k] : 0.0f;
                Lanes shared{};
                across(kernel, [&](int64_t k, auto some) { shared += lanes(slope + k, some) * lanes(share + k, some); });
                const float mean = total(shared);
                T* there = dlogits + place(token, group);
                across(kernel, [=](int64_t k, auto some) {
                    put(there + k, (lanes(slope + k, some) - mean) * lanes(share + k, some), some);
                });
            }
        // Each token gives back to those it took from.
        for (int64_t token = piece.from; token < piece.to; ++token)
            for (int64_t group = 0; group < piece.groups; ++group) {
                const int64_t from = first(token, kernel), end = last(token, length, kernel), channel = piece.at + group * size;
                for (int64_t start = 0; start < size; start += CHANNELS) {
                    const float* here = grads + (token - piece.from + from) * pieces.step + group * pieces.room + start;
                    // The first of them did so by its last tap, the next one by the one before, and so on.
                    const int64_t taker = token + from - kernel / 2, tap = kernel - 1 - from;
                    const uint8_t* counts = near ? near + (piece.first_token + taker) * kernel + tap : nullptr;
                    const float* weight = weights + place(taker, group) + tap;
                    Lanes sums[RUN] = {};
                    for (int64_t k = from; k < end; ++k, here += pieces.step, weight += heads * kernel - 1)
                        if (!counts || counts[(k - from) * (kernel - 1)])
                            for (int64_t i = 0; i < RUN; ++i) sums[i] += lanes(here + i * LANES) * *weight;
                    across(std::min(CHANNELS, size - start), [&](int64_t at, auto count) {
                        to.give(piece.first_token + token, channel + start + at, sums[at / LANES], count);
                    });
                }
            }
    });
}

}  // namespace

extern "C" {
BOTH(depthwise)
BOTH(depthwise_backward)
BOTH(softmax_of_taps)
BOTH(convolve)
BOTH(convolve_backward)
}
