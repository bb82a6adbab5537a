// Passes over all weights of a model at once: the length of its gradient, and a step of Adam.

#include "numbers.h"

namespace {

constexpr int64_t PIECE = 1 << 15;  // weights that are worked on together

// Call `pass` for all pieces of several arrays: which array, from where, to where, and the number of the piece.
template <class Pass>
void pieces(const int64_t* sizes, int64_t count, Pass pass) {
    std::vector<int64_t> begins(count + 1);
    for (int64_t i = 0; i < count; ++i) begins[i + 1] = begins[i] + (sizes[i] + PIECE - 1) / PIECE;
#pragma omp parallel for schedule(dynamic)
    for (int64_t piece = 0; piece < begins[count]; ++piece) {
        const int64_t i = std::upper_bound(begins.begin(), begins.end(), piece) - begins.begin() - 1;
        const int64_t from = (piece - begins[i]) * PIECE;
        pass(i, from, std::min(sizes[i], from + PIECE), piece);
    }
}

// The sum of the squares of all numbers.
void squares(const float* const* arrays, const int64_t* sizes, double* sum, int64_t count) {
    int64_t all = 0;
    for (int64_t i = 0; i < count; ++i) all += (sizes[i] + PIECE - 1) / PIECE;
    std::vector<double> found(all);
    pieces(sizes, count, [&](int64_t i, int64_t from, int64_t to, int64_t piece) {
        const float* __restrict array = arrays[i];
        double total = 0;
        for (int64_t some = from; some < to; some += 1024) {  // few enough for float32
            const int64_t end = std::min(to, some + 1024);
            float part = 0;
#pragma omp simd reduction(+ : part)
            for (int64_t j = some; j < end; ++j) part += array[j] * array[j];
            total += part;
        }
        found[piece] = total;
    });
    *sum = 0;
    for (double part : found) *sum += part;
}

// A step of AdamW (Loshchilov and Hutter 2019, Algorithm 2) of all weights, with gradients times `factor`.
void adamw(float* const* weights, const float* const* grads, float* const* firsts, float* const* seconds, float* const* steps,
           const int64_t* sizes, int64_t count, double factor, double rate, double decay, double beta, double gamma,
           double epsilon) {
    for (int64_t i = 0; i < count; ++i) *steps[i] += 1;
    pieces(sizes, count, [&](int64_t i, int64_t from, int64_t to, int64_t) {
        float *weight = weights[i], *first = firsts[i], *second = seconds[i];
        const float* grad = grads[i];
        const double step = *steps[i], unbiased = 1 - std::pow(gamma, step);
        const float stride = float(rate / (1 - std::pow(beta, step))), root = float(1 / std::sqrt(unbiased));
        const float keep = float(1 - rate * decay), share = float(1 - beta), rest = float(1 - gamma), least = float(epsilon);
        const float scale = float(factor), stay = float(gamma);
        across(to - from, [=](int64_t at, auto count) {
            const int64_t j = from + at;
            const Lanes g = lanes_ahead(grad + j, count) * scale, before = lanes_ahead(first + j, count);
            const Lanes m = before + (g - before) * share, v = lanes_ahead(second + j, count) * stay + g * g * rest;
            put(first + j, m, count);
            put(second + j, v, count);
            put(weight + j, lanes_ahead(weight + j, count) * keep - stride * m / (square_root(v) * root + least), count);
        });
    });
}

}  // namespace

extern "C" {
void* squares_float32 = (void*)&squares;
void* adamw_float32 = (void*)&adamw;
}
