// Convolutions over the tokens of a row: of each channel with its own taps, and of each head with weights of each token's own.

#include "numbers.h"

namespace {

// Channels that are worked on together.
constexpr int64_t RUN = 4, CHANNELS = RUN * LANES;

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

// Some channels of a block of tokens of a row of [B, L, groups * width], all of one group; blocks count over all rows.
struct Piece {
    int64_t block, first_token, from, to, group, at, size;
};

// Call `pass` for all pieces, of at most so many channels.
template <class Pass>
void pieces(int64_t rows, int64_t length, int64_t groups, int64_t width, int64_t most, Pass pass) {
    const int64_t count = blocks(length), parts = (width + most - 1) / most, wide = groups * parts;
#pragma omp parallel for schedule(static)
    for (int64_t piece = 0; piece < rows * count * wide; ++piece) {
        const int64_t block = piece / wide, group = piece % wide / parts, at = piece % parts * most, from = block % count * ROWS;
        const int64_t to = std::min(length, from + ROWS), size = std::min(most, width - at);
        pass(Piece{block, block / count * length, from, to, group, group * width + at, size});
    }
}

// Copy a piece of x in float32, with what a kernel reaches beside it in its row, to where zeros are and a token has so much room.
template <class T>
void widen(const T* x, int64_t step, Piece piece, int64_t length, int64_t kernel, float* wide, int64_t room = CHANNELS) {
    const int64_t from = piece.from - kernel / 2, to = piece.to - kernel / 2 + kernel - 1;
    for (int64_t token = std::max<int64_t>(from, 0); token < std::min(to, length); ++token)
        across(piece.size, [=](int64_t at, auto count) {
            const T* here = x + (piece.first_token + token) * step + piece.at + at;
            __builtin_prefetch(here + piece.size, 0, 2);  // the next piece's, for tokens are not read in order
            put(wide + (token - from) * room + at, lanes(here, count));
        });
}

// Fetch where a piece of y will be written.
template <class T>
void claim(T* y, int64_t step, Piece piece) {
    for (int64_t token = piece.from; token < piece.to; ++token)
        claim(y + (piece.first_token + token) * step + piece.at, piece.size);
}

// y[b, l, d] = sum over k of taps[k, d] x[b, l + k - K / 2, d], where `near` [B, L, K] says that a neighbour counts (or is
// null); with `flip` each token gives instead of takes: the gradient of x.
template <class T>
void depthwise(const T* x, const float* taps, const uint8_t* near, T* y, int64_t rows, int64_t length, int64_t width,
               int64_t kernel, int64_t flip) {
    pieces(rows, length, 1, width, CHANNELS, [=](Piece piece) {
        const int64_t row = piece.first_token * width + piece.at, from = piece.from;
        Room<float> room((ROWS + kernel) * CHANNELS);
        float* wide = room;
        claim(y, width, piece);
        widen(x, width, piece, length, kernel, wide);
        const auto tap = [=](int64_t k, int64_t at, auto count) {
            return lanes(taps + (flip ? kernel - 1 - k : k) * width + piece.at + at, count);
        };
        const auto counts = [=](int64_t token, int64_t k) {
            const int64_t there = token + k - kernel / 2, giver = piece.first_token + (flip ? there : token);
            return there >= 0 && there < length && near[giver * kernel + (flip ? kernel - 1 - k : k)];
        };
        sized(near ? 0 : kernel, [=](auto known) {
            across(piece.size, [=](int64_t at, auto count) {
                Lanes held[known + 1];
                for (int64_t k = 0; k < known; ++k) held[k] = tap(k, at, count);
                for (int64_t token = from; token < piece.to; ++token) {
                    const float* here = wide + (token - from) * CHANNELS + at;
                    Lanes sum{};
                    if constexpr (known)
                        for (int64_t k = 0; k < known; ++k) sum += lanes(here + k * CHANNELS) * held[k];
                    else
                        for (int64_t k = 0; k < kernel; ++k)
                            if (!near || counts(token, k)) sum += lanes(here + k * CHANNELS) * tap(k, at, count);
                    put(y + row + token * width + at, sum, count);
                }
            });
        });
    });
}

// The gradient of the taps: [K, D].
template <class T>
void depthwise_taps(const T* x, const T* grad, const uint8_t* near, float* dtaps, int64_t rows, int64_t length, int64_t width,
                    int64_t kernel) {
    const int64_t count = rows * blocks(length);
    std::vector<float> parts(count * kernel * width);
    float* all = parts.data();
    pieces(rows, length, 1, width, CHANNELS, [=](Piece piece) {
        const int64_t row = piece.first_token * width + piece.at, from = piece.from;
        Room<float> room((ROWS + kernel) * CHANNELS);
        float *wide = room, *own = all + piece.block * kernel * width + piece.at;
        widen(x, width, piece, length, kernel, wide);
        const T* slopes = grad + row + from * width;
        sized(near ? 0 : kernel, [=](auto known) {
            across(piece.size, [=](int64_t at, auto some) {
                if constexpr (known) {
                    Lanes sums[known] = {};
                    for (int64_t token = 0; token < piece.to - from; ++token) {
                        const Lanes slope = lanes(slopes + token * width + at, some);
                        for (int64_t k = 0; k < known; ++k) sums[k] += lanes(wide + (token + k) * CHANNELS + at) * slope;
                    }
                    for (int64_t k = 0; k < known; ++k) put(own + k * width + at, sums[k], some);
                } else
                    for (int64_t k = 0; k < kernel; ++k) {
                        Lanes sum{};
                        for (int64_t token = 0; token < piece.to - from; ++token)
                            if (!near || near[(piece.first_token + from + token) * kernel + k])
                                sum += lanes(wide + (token + k) * CHANNELS + at) * lanes(slopes + token * width + at, some);
                        put(own + k * width + at, sum, some);
                    }
            });
        });
    });
    gather(parts, count, kernel * width, dtaps);
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
            put(to, shares / total(shares), kernel);
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
    pieces(rows, length, heads, size, CHANNELS, [=](Piece piece) {
        Room<float> wide((ROWS + kernel) * CHANNELS);
        claim(y, to_step, piece);
        widen(x, step, piece, length, kernel, wide);
        for (int64_t token = piece.from; token < piece.to; ++token) {
            const int64_t giver = piece.first_token + token;
            const float *here = wide + (token - piece.from) * CHANNELS, *own = weights + (giver * heads + piece.group) * kernel;
            Lanes sums[RUN] = {};
            for (int64_t k = 0; k < kernel; ++k)
                if (!near || near[giver * kernel + k])
                    for (int64_t i = 0; i < RUN; ++i) sums[i] += lanes(here + k * CHANNELS + i * LANES) * own[k];
            T* there = y + giver * to_step + piece.at;
            across(piece.size, [&](int64_t at, auto count) { put(there + at, sums[at / LANES], count); });
        }
    });
}

// The gradients of x, and of the logits behind the weights.
template <class T>
void convolve_backward(const T* grad, const T* x, const float* weights, const uint8_t* near, T* dx, T* dlogits, int64_t rows,
                       int64_t length, int64_t heads, int64_t size, int64_t kernel, int64_t grad_step, int64_t step,
                       int64_t to_step) {
    const int64_t room = (size + CHANNELS - 1) / CHANNELS * CHANNELS;
    pieces(rows, length, heads, size, size, [=](Piece piece) {
        Room<float> wide((ROWS + kernel) * room), grads((ROWS + kernel) * room), slopes(ROWS * kernel + LANES);
        widen(x, step, piece, length, kernel, wide, room);
        widen(grad, grad_step, piece, length, kernel, grads, room);
        const auto place = [=](int64_t token) { return ((piece.first_token + token) * heads + piece.group) * kernel; };
        // Sixteen sums at a time have their lanes added up, whichever token and tap they are of.
        Lanes sums[LANES] = {};
        int64_t found = 0;
        for (int64_t token = 0; token < piece.to - piece.from; ++token)
            for (int64_t k = 0; k < kernel; ++k) {
                const float *here = wide + (token + k) * room, *own = grads + (token + kernel / 2) * room;
                Lanes sum{};
                for (int64_t at = 0; at < room; at += CHANNELS)
                    for (int64_t i = 0; i < RUN; ++i) sum += lanes(here + at + i * LANES) * lanes(own + at + i * LANES);
                sums[found % LANES] = sum;
                if (++found % LANES == 0) put(slopes + found - LANES, totals(sums));
            }
        put(slopes + found / LANES * LANES, totals(sums));
        for (int64_t token = piece.from; token < piece.to; ++token) {
            const uint8_t* counts = near ? near + (piece.first_token + token) * kernel : nullptr;
            const float* share = weights + place(token);
            float* slope = slopes + (token - piece.from) * kernel;
            for (int64_t k = 0; counts && k < kernel; ++k) slope[k] = counts[k] ? slope[k] : 0.0f;
            Lanes shared{};
            across(kernel, [&](int64_t k, auto some) { shared += lanes(slope + k, some) * lanes(share + k, some); });
            const float mean = total(shared);
            T* to = dlogits + place(token);
            across(kernel,
                   [=](int64_t k, auto some) { put(to + k, (lanes(slope + k, some) - mean) * lanes(share + k, some), some); });
        }
        claim(dx, to_step, piece);
        // Each token gives back to those it took from.
        for (int64_t token = piece.from; token < piece.to; ++token) {
            const int64_t from = first(token, kernel), to = last(token, length, kernel);
            T* there = dx + (piece.first_token + token) * to_step + piece.at;
            for (int64_t start = 0; start < size; start += CHANNELS) {
                const float* here = grads + (token - piece.from) * room + start;
                Lanes sums[RUN] = {};
                for (int64_t k = from; k < to; ++k) {
                    const int64_t taker = token + k - kernel / 2, tap = kernel - 1 - k;
                    if (near && !near[(piece.first_token + taker) * kernel + tap]) continue;
                    const float weight = weights[place(taker) + tap];
                    for (int64_t i = 0; i < RUN; ++i) sums[i] += lanes(here + k * room + i * LANES) * weight;
                }
                across(std::min(CHANNELS, size - start),
                       [&](int64_t at, auto count) { put(there + start + at, sums[at / LANES], count); });
            }
        }
    });
}

}  // namespace

extern "C" {
BOTH(depthwise)
BOTH(depthwise_taps)
BOTH(softmax_of_taps)
BOTH(convolve)
BOTH(convolve_backward)
}
