// Slopes of weights: products that add up over tokens, by tiles.

#include <omp.h>

#include "products.h"

#ifdef __AMX_BF16__

namespace {

constexpr int64_t TOKENS = 4 * SIDE;       // that are added up while they are in the cache
constexpr int64_t MOST = 144;              // blocks of SIDE x SIDE sums that stay there meanwhile
constexpr int64_t SQUARE = LANES * LANES;  // sums of a tile
constexpr int64_t BLOCK = 2 * LANES;       // vectors of SIDE tokens and SIDE columns: two tiles

// Which column of a block is the i-th of what `Tokens` reads: the first tile gets four, the second the next four, and so on.
inline int64_t column(int64_t i) { return i % LANES / 4 * 8 + i / LANES * 4 + i % 4; }
// And which of both tiles the first columns are.
constexpr Words ORDER{0, 1, 2, 3, 16, 17, 18, 19, 4, 5, 6, 7, 20, 21, 22, 23};

// A matrix of tokens, with zeros for what is not there.
struct Tokens {
    const bf16* first;
    int64_t rows, width;

    // So many blocks of SIDE tokens, each as two tiles of pairs of tokens.
    void read(int64_t token, int64_t block, int64_t count, Words* to) const {
        for (int64_t i = 0; i < LANES; ++i, ++to) {
            const int64_t row = token + 2 * i, whole = row + 1 < rows ? std::min(count, width / SIDE - block) : 0;
            const bf16 *here = first + row * width + block * SIDE, *below = here + width;
            for (int64_t at = 0; at < whole; ++at) {
                // The tokens after these: of wide matrices a thread reads some columns only.
                __builtin_prefetch(here + at * SIDE + SIDE * width, 0, 2);
                __builtin_prefetch(below + at * SIDE + SIDE * width, 0, 2);
                pair(_mm512_loadu_si512(here + at * SIDE), _mm512_loadu_si512(below + at * SIDE), to + at * BLOCK);
            }
            for (int64_t at = whole; at < count; ++at) pair(line(row, block + at), line(row + 1, block + at), to + at * BLOCK);
        }
    }
    __m512i line(int64_t row, int64_t block) const {
        const int64_t count = row < rows ? std::min(SIDE, width - block * SIDE) : 0;
        return _mm512_maskz_loadu_epi16(__mmask32((uint64_t(1) << count) - 1), first + row * width + block * SIDE);
    }
    static void pair(__m512i above, __m512i below, Words* to) {
        to[0] = (Words)_mm512_unpacklo_epi16(above, below);
        to[LANES] = (Words)_mm512_unpackhi_epi16(above, below);
    }
};

// Add to sixteen sums those of sixteen vectors of pairs, each pair times its shares.
inline void add_pairs(const Words* pairs, const uint32_t* shares, float* sums) {
    __m512 parts[4] = {(__m512)lanes(sums)};
    for (int64_t i = 0; i < LANES; ++i)
        parts[i % 4] = _mm512_dpbf16_ps(parts[i % 4], (__m512bh)pairs[i], (__m512bh)(Words{} + shares[i]));
    put(sums, (Lanes)((parts[0] + parts[1]) + (parts[2] + parts[3])));
}

// Add to the four tiles of a block of sums the products of so many blocks, which lie so far apart.
inline void add_products(const Words* a, int64_t a_step, const Words* b, int64_t b_step, int64_t count, float* sums) {
    constexpr int64_t row = sizeof(Words);
    _tile_loadd(0, sums, row);
    _tile_loadd(1, sums + SQUARE, row);
    _tile_loadd(2, sums + 2 * SQUARE, row);
    _tile_loadd(3, sums + 3 * SQUARE, row);
    for (int64_t i = 0; i < count; ++i, a += a_step, b += b_step) {
        _tile_loadd(4, a, row);
        _tile_loadd(6, b, row);
        _tile_dpbf16ps(0, 4, 6);
        _tile_loadd(7, b + LANES, row);
        _tile_dpbf16ps(1, 4, 7);
        _tile_loadd(5, a + LANES, row);
        _tile_dpbf16ps(2, 5, 6);
        _tile_dpbf16ps(3, 5, 7);
    }
    _tile_stored(0, sums, row);
    _tile_stored(1, sums + SQUARE, row);
    _tile_stored(2, sums + 2 * SQUARE, row);
    _tile_stored(3, sums + 3 * SQUARE, row);
}

// dweight [width, inner] = grad^T x, and, unless that is null, the sums of the columns of grad, whose rows count by `shares`, or,
// where that is null, one and all.
void slopes(const bf16* grad, const bf16* x, const bf16* shares, float* dweight, float* dbias, int64_t rows, int64_t width,
            int64_t inner) {
    const Tokens left{grad, rows, width}, right{x, rows, inner};
    const int64_t high = filled(width) / SIDE, broad = filled(inner) / SIDE;  // in blocks
    // Pieces of what is found: small enough for the cache, and one or more for each thread.
    const auto parts = [](int64_t all, int64_t size) { return (all + size - 1) / size; };
    int64_t tall = high, wide = broad;
    while (tall * wide > 1 && (tall * wide > MOST || parts(high, tall) * parts(broad, wide) < omp_get_max_threads())) {
        int64_t& longer = tall < wide ? wide : tall;
        longer = parts(longer, 2);
    }
    std::vector<uint32_t> counts(filled(rows) / 2, 0x3f803f80);  // pairs of ones
    if (shares) std::memcpy(counts.data(), shares, rows * sizeof(bf16));
    // Half a block more than there are, so that blocks of one column do not drive each other out of the cache.
    const int64_t beside = parts(broad, wide), left_step = tall * BLOCK + LANES, right_step = wide * BLOCK + LANES;
#pragma omp parallel
    {
        const Tiles tiles;
        Room<float> found(tall * wide * 4 * SQUARE), sums(tall * SIDE);
        Room<Words> turned(left_step * TOKENS / SIDE), pairs(right_step * TOKENS / SIDE);
#pragma omp for schedule(static)
        for (int64_t piece = 0; piece < parts(high, tall) * beside; ++piece) {
            const int64_t top = piece / beside * tall, side = piece % beside * wide;
            const int64_t down = std::min(tall, high - top), over = std::min(wide, broad - side);
            const bool adds = dbias && side == 0;
            std::fill_n((float*)found, down * over * 4 * SQUARE, 0.0f);
            std::fill_n((float*)sums, down * SIDE, 0.0f);
            for (int64_t token = 0; token < rows; token += TOKENS) {
                const int64_t deep = filled(std::min(TOKENS, rows - token)) / SIDE;
                for (int64_t k = 0; k < deep; ++k) {
                    Words* to = turned + k * left_step;
                    left.read(token + k * SIDE, top, down, to);
                    right.read(token + k * SIDE, side, over, pairs + k * right_step);
                    for (int64_t tile = 0; tile < 2 * down; ++tile) {
                        if (adds) add_pairs(to + tile * LANES, &counts[token / 2 + k * LANES], sums + tile * LANES);
                        turn(to + tile * LANES);
                    }
                }
                for (int64_t at = 0; at < over; ++at)
                    for (int64_t row = 0; row < down; ++row)
                        add_products(turned + row * BLOCK, left_step, pairs + at * BLOCK, right_step, deep,
                                     found + (row * over + at) * 4 * SQUARE);
            }
            for (int64_t i = 0; i < down * SIDE; ++i) {
                const int64_t row = (top + i / SIDE) * SIDE + column(i % SIDE);
                if (row >= width) continue;
                if (adds) dbias[row] = sums[i];
                for (int64_t at = 0; at < over; ++at) {
                    const float* from =
                        found + (i / SIDE * over + at) * 4 * SQUARE + i % SIDE * LANES + i % SIDE / LANES * SQUARE;
                    const Lanes a = lanes(from), b = lanes(from + SQUARE);
                    float ordered[SIDE];
                    put(ordered, __builtin_shuffle(a, b, ORDER));
                    put(ordered + LANES, __builtin_shuffle(a, b, ORDER + 8));
                    const int64_t to = (side + at) * SIDE;
                    put(dweight + row * inner + to, ordered, std::min(SIDE, inner - to));
                }
            }
        }
    }
}

}  // namespace

extern "C" {
void* slopes_bfloat16 = lent() ? (void*)&slopes : nullptr;
}

#endif
