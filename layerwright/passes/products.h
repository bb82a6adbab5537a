// Products of matrices that fit the cache, by vectors or by tiles.  Sums are in float32.
//
// Either way a second factor is held as vectors of sixteen columns: of one row, or of two where pairs are multiplied, the numbers
// of one beside those of the other.  All sides are multiples of SIDE; what is smaller is filled up with zeros.  Rows of what is
// no second factor may lie further apart than they are long.

#pragma once

#include "numbers.h"

#ifdef __AMX_BF16__
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace {

constexpr int64_t SIDE = 2 * LANES;

inline int64_t filled(int64_t size) { return (size + SIDE - 1) / SIDE * SIDE; }

// A matrix whose rows lie `step` numbers apart.
template <class Number>
struct Apart {
    const Number* first;
    int64_t step;

    const Number* row(int64_t number) const { return first + number * step; }
};

// Row i of sixteen becomes column i: blocks of 8, 4, 2 and 1 change places.
template <int size>
inline void exchange(Words* x) {
    Words near, far;
    for (int l = 0; l < LANES; ++l) {
        near[l] = l & size ? l - size + LANES : l;
        far[l] = l & size ? l + LANES : l + size;
    }
    for (int i = 0; i < LANES; ++i)
        if (!(i & size)) {
            const Words a = x[i], b = x[i + size];
            x[i] = __builtin_shuffle(a, b, near);
            x[i + size] = __builtin_shuffle(a, b, far);
        }
}
inline void turn(Words* x) {
    exchange<8>(x);
    exchange<4>(x);
    exchange<2>(x);
    exchange<1>(x);
}

// c [rows, columns] = a [rows, inner] times b [inner, columns], of rows of `wide` vectors; or, if `more`, that much more.  add: a
// number of the first factor times a vector of the second to a sum.
template <class Number, class Vector, class Add>
void multiply_by(Apart<Number> a, const Vector* b, int64_t wide, float* c, int64_t rows, int64_t columns, int64_t inner,
                 bool more, Add add) {
    // As many sums as there are registers for.
#ifdef __AVX512F__
    constexpr int64_t high = 8, broad = 2;
#else
    constexpr int64_t high = 4, broad = 1;
#endif
    for (int64_t row = 0; row < rows; row += high)
        for (int64_t at = 0; at < columns; at += broad * LANES) {
            Lanes sums[high][broad];
            for (int64_t i = 0; i < high; ++i)
                for (int64_t j = 0; j < broad; ++j) sums[i][j] = more ? lanes(c + (row + i) * columns + at + j * LANES) : Lanes{};
            for (int64_t k = 0; k < inner; ++k)
#pragma GCC unroll 8
                for (int64_t i = 0; i < high; ++i)
#pragma GCC unroll 2
                    for (int64_t j = 0; j < broad; ++j)
                        sums[i][j] = add(sums[i][j], a.row(row + i)[k], b[k * wide + at / LANES + j]);
            for (int64_t i = 0; i < high; ++i)
                for (int64_t j = 0; j < broad; ++j) put(c + (row + i) * columns + at + j * LANES, sums[i][j]);
        }
}

// By vectors, in float32.
struct Vectors {
    using Number = float;
    using Vector = Lanes;
    static constexpr int64_t HELD = LANES;  // numbers in a vector

    // The transpose of a matrix [rows, columns].
    static void transpose(Apart<float> x, int64_t rows, int64_t columns, float* to) {
        Words block[LANES];
        for (int64_t row = 0; row < rows; row += LANES)
            for (int64_t at = 0; at < columns; at += LANES) {
                for (int64_t i = 0; i < LANES; ++i) block[i] = (Words)lanes(x.row(row + i) + at);
                turn(block);
                for (int64_t i = 0; i < LANES; ++i) put(to + (at + i) * rows + row, (Lanes)block[i]);
            }
    }

    // A matrix [rows, columns] as a second factor; and its transpose.
    static void second(Apart<float> x, int64_t rows, int64_t columns, Vector* to) {
        for (int64_t row = 0; row < rows; ++row) put((float*)to + row * columns, x.row(row), columns);
    }
    static void second_transposed(Apart<float> x, int64_t rows, int64_t columns, Vector* to) {
        transpose(x, rows, columns, (float*)to);
    }

    static void multiply(Apart<float> a, const Vector* b, int64_t wide, float* c, int64_t rows, int64_t columns, int64_t inner,
                         bool more) {
        multiply_by(a, b, wide, c, rows, columns, inner, more, [](Lanes sum, float one, Lanes x) { return sum + one * x; });
    }
};

// Of sixteen columns the numbers of two rows, and 32 numbers of one.
inline Words pairs(const bf16* above, const bf16* below) {
    Halves a, b;
    std::memcpy(&a, above, sizeof a);
    std::memcpy(&b, below, sizeof b);
    return __builtin_convertvector(a, Words) | __builtin_convertvector(b, Words) << 16;
}
inline Words pairs(const bf16* x) {
    Words both;
    std::memcpy(&both, x, sizeof both);
    return both;
}

// Two rows of bf16 in a vector, as instructions for them want it.
struct Paired {
    using Number = bf16;
    using Vector = Words;
    static constexpr int64_t HELD = 2 * LANES;

    static void transpose(Apart<bf16> x, int64_t rows, int64_t columns, bf16* to) {
        Words block[LANES];
        for (int64_t row = 0; row < rows; row += 2 * LANES)
            for (int64_t at = 0; at < columns; at += LANES) {
                for (int64_t i = 0; i < LANES; ++i) block[i] = pairs(x.row(row + 2 * i) + at, x.row(row + 2 * i + 1) + at);
                turn(block);
                for (int64_t i = 0; i < LANES; ++i) std::memcpy(to + (at + i) * rows + row, &block[i], sizeof block[i]);
            }
    }

    static void second(Apart<bf16> x, int64_t rows, int64_t columns, Vector* to) {
        for (int64_t row = 0; row < rows; row += 2)
            for (int64_t at = 0; at < columns; at += LANES) *to++ = pairs(x.row(row) + at, x.row(row + 1) + at);
    }
    static void second_transposed(Apart<bf16> x, int64_t rows, int64_t columns, Vector* to) {
        Words block[LANES];
        for (int64_t row = 0; row < rows; row += LANES)
            for (int64_t at = 0; at < columns; at += 2 * LANES) {
                for (int64_t i = 0; i < LANES; ++i) block[i] = pairs(x.row(row + i) + at);
                turn(block);
                for (int64_t i = 0; i < LANES; ++i) to[((at / 2 + i) * rows + row) / LANES] = block[i];
            }
    }
};

#ifdef __AVX512BF16__
// By dot products of pairs.
struct Pairs : Paired {
    static void multiply(Apart<bf16> a, const Vector* b, int64_t wide, float* c, int64_t rows, int64_t columns, int64_t inner,
                         bool more) {
        multiply_by(Apart<uint32_t>{(const uint32_t*)a.first, a.step / 2}, b, wide, c, rows, columns, inner / 2, more,
                    [](Lanes sum, uint32_t two, Words x) {
                        return (Lanes)_mm512_dpbf16_ps((__m512)sum, (__m512bh)(Words{} + two), (__m512bh)x);
                    });
    }
};
#endif

#ifdef __AMX_BF16__
// Whether the system lends this process the registers of tiles, which it does to those who ask (Linux, x86/xstate).
inline bool lent() {
    constexpr long request = 0x1023, tiles = 18;
    static const bool granted = syscall(SYS_arch_prctl, request, tiles) == 0;
    return granted;
}

// By the tiles that some processors have (AMX).  As long as one lives, its thread has eight of sixteen rows of 64 bytes.
struct Tiles : Paired {
    Tiles() {
        struct {
            uint8_t palette = 1, first_row = 0, unused[14] = {};
            uint16_t bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
            uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
        } shapes;
        _tile_loadconfig(&shapes);
    }
    ~Tiles() { _tile_release(); }

    static void multiply(Apart<bf16> a, const Vector* b, int64_t wide, float* c, int64_t rows, int64_t columns, int64_t inner,
                         bool more) {
        const int64_t a_step = a.step * 2, b_step = wide * 64, step = columns * 4;  // in bytes
        for (int64_t row = 0; row < rows; row += SIDE)
            for (int64_t at = 0; at < columns; at += SIDE) {
                float *here = c + row * columns + at, *below = here + LANES * columns;
                if (more) {
                    _tile_loadd(0, here, step);
                    _tile_loadd(1, here + LANES, step);
                    _tile_loadd(2, below, step);
                    _tile_loadd(3, below + LANES, step);
                } else {
                    _tile_zero(0);
                    _tile_zero(1);
                    _tile_zero(2);
                    _tile_zero(3);
                }
                for (int64_t k = 0; k < inner; k += SIDE) {
                    const Vector* here = b + k / 2 * wide + at / LANES;
                    _tile_loadd(4, a.row(row) + k, a_step);
                    _tile_loadd(6, here, b_step);
                    _tile_dpbf16ps(0, 4, 6);
                    _tile_loadd(7, here + 1, b_step);
                    _tile_dpbf16ps(1, 4, 7);
                    _tile_loadd(5, a.row(row + LANES) + k, a_step);
                    _tile_dpbf16ps(2, 5, 6);
                    _tile_dpbf16ps(3, 5, 7);
                }
                _tile_stored(0, here, step);
                _tile_stored(1, here + LANES, step);
                _tile_stored(2, below, step);
                _tile_stored(3, below + LANES, step);
            }
    }
};
#endif

}  // namespace
