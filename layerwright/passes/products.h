// Products of bf16 matrices that fit the cache, by the tiles that some processors have (AMX).  Sums are in float32.
//
// A tile takes the first matrix row by row, and of the second two rows at a time, the numbers of one above those of the other
// side by side: "paired".  All sides are multiples of SIDE; what is smaller is filled up with zeros.

#pragma once

#include "numbers.h"

#ifdef __AMX_BF16__
#include <sys/syscall.h>
#include <unistd.h>

namespace {

// Sixteen pairs of numbers.
using Pairs = Words;
constexpr int64_t PAIRS = LANES, SIDE = 2 * PAIRS;

inline int64_t filled(int64_t size) { return (size + SIDE - 1) / SIDE * SIDE; }

inline Pairs pairs(const bf16* x) {
    Pairs both;
    std::memcpy(&both, x, sizeof both);
    return both;
}
// Of sixteen columns the numbers of two rows.
inline Pairs pairs(const bf16* above, const bf16* below) {
    Halves a, b;
    std::memcpy(&a, above, sizeof a);
    std::memcpy(&b, below, sizeof b);
    return __builtin_convertvector(a, Pairs) | __builtin_convertvector(b, Pairs) << 16;
}

// Row i of sixteen becomes column i: blocks of 8, 4, 2 and 1 change places.
template <int size>
inline void exchange(Pairs* x) {
    Pairs near, far;
    for (int l = 0; l < PAIRS; ++l) {
        near[l] = l & size ? l - size + PAIRS : l;
        far[l] = l & size ? l + PAIRS : l + size;
    }
    for (int i = 0; i < PAIRS; ++i)
        if (!(i & size)) {
            const Pairs a = x[i], b = x[i + size];
            x[i] = __builtin_shuffle(a, b, near);
            x[i + size] = __builtin_shuffle(a, b, far);
        }
}
inline void turn(Pairs* x) {
    exchange<8>(x);
    exchange<4>(x);
    exchange<2>(x);
    exchange<1>(x);
}

// A matrix [rows, columns], paired.
inline void pair(const bf16* x, int64_t rows, int64_t columns, Pairs* to) {
    for (int64_t row = 0; row < rows; row += 2)
        for (int64_t at = 0; at < columns; at += PAIRS) *to++ = pairs(x + row * columns + at, x + (row + 1) * columns + at);
}

// The transpose of a matrix [rows, columns], paired.
inline void pair_transpose(const bf16* x, int64_t rows, int64_t columns, Pairs* to) {
    Pairs block[PAIRS];
    for (int64_t row = 0; row < rows; row += PAIRS)
        for (int64_t at = 0; at < columns; at += 2 * PAIRS) {
            for (int64_t i = 0; i < PAIRS; ++i) block[i] = pairs(x + (row + i) * columns + at);
            turn(block);
            for (int64_t i = 0; i < PAIRS; ++i) to[((at / 2 + i) * rows + row) / PAIRS] = block[i];
        }
}

// The transpose of a matrix [rows, columns].
inline void transpose(const bf16* x, int64_t rows, int64_t columns, bf16* to) {
    Pairs block[PAIRS];
    for (int64_t row = 0; row < rows; row += 2 * PAIRS)
        for (int64_t at = 0; at < columns; at += PAIRS) {
            for (int64_t i = 0; i < PAIRS; ++i)
                block[i] = pairs(x + (row + 2 * i) * columns + at, x + (row + 2 * i + 1) * columns + at);
            turn(block);
            for (int64_t i = 0; i < PAIRS; ++i) std::memcpy(to + (at + i) * rows + row, &block[i], sizeof block[i]);
        }
}

// Whether the system lends this process the registers of tiles, which it does to those who ask (Linux, x86/xstate).
inline bool lent() {
    constexpr long request = 0x1023, tiles = 18;
    static const bool granted = syscall(SYS_arch_prctl, request, tiles) == 0;
    return granted;
}

// As long as one lives, its thread has eight tiles of sixteen rows of 64 bytes.
struct Tiles {
    Tiles() {
        struct {
            uint8_t palette = 1, first_row = 0, unused[14] = {};
            uint16_t bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
            uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
        } shapes;
        _tile_loadconfig(&shapes);
    }
    ~Tiles() { _tile_release(); }
};

// c [rows, columns] = a [rows, inner] times b, paired [inner / 2, columns], of rows of `wide` vectors; or that much more.  The
// thread has Tiles.
template <bool more>
void multiply(const bf16* a, const Pairs* b, int64_t wide, float* c, int64_t rows, int64_t columns, int64_t inner) {
    const int64_t a_step = inner * 2, b_step = wide * 64, step = columns * 4;  // in bytes
    for (int64_t row = 0; row < rows; row += SIDE)
        for (int64_t at = 0; at < columns; at += SIDE) {
            float *here = c + row * columns + at, *below = here + PAIRS * columns;
            if constexpr (more) {
                _tile_loadd(0, here, step);
                _tile_loadd(1, here + PAIRS, step);
                _tile_loadd(2, below, step);
                _tile_loadd(3, below + PAIRS, step);
            } else {
                _tile_zero(0);
                _tile_zero(1);
                _tile_zero(2);
                _tile_zero(3);
            }
            for (int64_t k = 0; k < inner; k += SIDE) {
                const Pairs* second = b + k / 2 * wide + at / PAIRS;
                _tile_loadd(4, a + row * inner + k, a_step);
                _tile_loadd(6, second, b_step);
                _tile_dpbf16ps(0, 4, 6);
                _tile_loadd(7, second + 1, b_step);
                _tile_dpbf16ps(1, 4, 7);
                _tile_loadd(5, a + (row + PAIRS) * inner + k, a_step);
                _tile_dpbf16ps(2, 5, 6);
                _tile_dpbf16ps(3, 5, 7);
            }
            _tile_stored(0, here, step);
            _tile_stored(1, here + PAIRS, step);
            _tile_stored(2, below, step);
            _tile_stored(3, below + PAIRS, step);
        }
}

}  // namespace
#endif
