// Numbers as they are stored and as they are computed with, chance, and sums: what all passes share.
//
// Arithmetic is in float32 whatever is stored.  Chance is a hash of a seed and the number of the element, so that nothing is
// kept of it between a forward and a backward pass.  Sums over rows are added up in an order that does not depend on how many
// threads there are.

#pragma once

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <type_traits>
#include <vector>

#if defined(__AVX512BW__) || defined(__AMX_BF16__)
#include <immintrin.h>
#endif

namespace {

struct bf16 {
    uint16_t bits;
};

constexpr int64_t LINE = 64;  // bytes of the cache that are fetched together

// Sixteen numbers at once.  What runs over a row is written with these and not left to the compiler: it would take lanes for the
// narrowest number in a loop, and add up what they hold one after the other.
constexpr int64_t LANES = 16;
using Lanes = float __attribute__((vector_size(64)));
using Words = uint32_t __attribute__((vector_size(64)));
using Halves = uint16_t __attribute__((vector_size(32)));
constexpr Words PLACES{0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};

// Room for so many numbers, zeros at first, where no lanes are split between two lines of the cache.
template <class T>
class Room {
    std::vector<Lanes> lines;

   public:
    explicit Room(int64_t count) : lines((count * sizeof(T) + sizeof(Lanes) - 1) / sizeof(Lanes)) {}
    operator T*() { return (T*)lines.data(); }
};

// As many as there are lanes, known when it is compiled.
using Full = std::integral_constant<int64_t, LANES>;

// Call `pass` for the numbers of a row, from where and how many: Full, and in the end perhaps fewer.
template <class Pass>
inline void across(int64_t width, Pass pass) {
    int64_t at = 0;
    for (; at + LANES <= width; at += LANES) pass(at, Full{});
    if (at < width) pass(at, width - at);
}

inline Lanes lanes(const float* from, Full = {}) {
    Lanes x;
    std::memcpy(&x, from, sizeof x);
    return x;
}
inline Lanes lanes(const bf16* from, Full = {}) {
    Halves half;
    std::memcpy(&half, from, sizeof half);
    return (Lanes)(__builtin_convertvector(half, Words) << 16);
}
// Fewer, and zeros beyond.
#ifdef __AVX512BW__
inline __mmask16 first_of(int64_t count) { return __mmask16((1u << count) - 1); }
inline Lanes lanes(const float* from, int64_t count) { return (Lanes)_mm512_maskz_loadu_ps(first_of(count), from); }
inline Lanes lanes(const bf16* from, int64_t count) {
    return (Lanes)_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(first_of(count), from)), 16);
}
#else
template <class T>
inline Lanes lanes(const T* from, int64_t count) {
    T some[LANES] = {};
    std::copy_n(from, count, some);
    return lanes(some);
}
#endif

// To the nearest, ties to even.
inline Halves rounded(Lanes x) {
#ifdef __AVX512BF16__
    return (Halves)_mm512_cvtneps_pbh((__m512)x);
#else
    const Words bits = (Words)x, half = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
    return __builtin_convertvector(x == x ? half : half * 0 + 0x7fc0, Halves);
#endif
}
inline void put(float* to, Lanes x, Full = {}) { std::memcpy(to, &x, sizeof x); }
inline void put(bf16* to, Lanes x, Full = {}) {
    const Halves half = rounded(x);
    std::memcpy(to, &half, sizeof half);
}
#ifdef __AVX512BW__
inline void put(float* to, Lanes x, int64_t count) { _mm512_mask_storeu_ps(to, first_of(count), (__m512)x); }
inline void put(bf16* to, Lanes x, int64_t count) { _mm256_mask_storeu_epi16(to, first_of(count), (__m256i)rounded(x)); }
#else
template <class T>
inline void put(T* to, Lanes x, int64_t count) {
    T some[LANES];
    put(some, x);
    std::copy_n(some, count, to);
}
#endif
// A row.
template <class T, class Number>
inline void put(T* to, const Number* from, int64_t width) {
    across(width, [=](int64_t at, auto count) { put(to + at, lanes(from + at, count), count); });
}

// Numbers of a long row of them, one after the other: those further on are fetched meanwhile, because a loop that computes much
// keeps the processor from seeing far enough ahead.
constexpr int64_t AHEAD = 1 << 12;  // bytes
template <class T, class Count>
inline Lanes lanes_ahead(const T* from, Count count) {
    __builtin_prefetch((const char*)from + AHEAD);
    return lanes(from, count);
}
template <class T, class Count>
inline void put_ahead(T* to, Lanes x, Count count) {
    __builtin_prefetch((char*)to + AHEAD, 1);
    put(to, x, count);
}

// Fetch where so many numbers lie, to be read from the second level of the cache.
template <class T>
inline void fetch(const T* from, int64_t size) {
    for (int64_t at = 0; at < size; at += LINE / int64_t(sizeof(T))) __builtin_prefetch(from + at, 0, 2);
}
// And where they will be written.
template <class T>
inline void claim(T* to, int64_t size) {
    for (int64_t at = 0; at < size; at += LINE / int64_t(sizeof(T))) __builtin_prefetch(to + at, 1);
}

// So many, and something else beyond.
inline Lanes only(Lanes x, Full, float = 0) { return x; }
inline Lanes only(Lanes x, int64_t count, float beyond = 0) { return PLACES < uint32_t(count) ? x : Lanes{} + beyond; }

inline Lanes square_root(Lanes x) {
    for (int64_t i = 0; i < LANES; ++i) x[i] = std::sqrt(x[i]);
    return x;
}

// What all lanes hold, halves upon halves.
template <class Join>
inline float joined(Lanes x, Join join) {
    x = join(x, __builtin_shuffle(x, Words{8, 9, 10, 11, 12, 13, 14, 15, 0, 1, 2, 3, 4, 5, 6, 7}));
    x = join(x, __builtin_shuffle(x, Words{4, 5, 6, 7, 0, 1, 2, 3, 12, 13, 14, 15, 8, 9, 10, 11}));
    x = join(x, __builtin_shuffle(x, Words{2, 3, 0, 1, 6, 7, 4, 5, 10, 11, 8, 9, 14, 15, 12, 13}));
    x = join(x, __builtin_shuffle(x, Words{1, 0, 3, 2, 5, 4, 7, 6, 9, 8, 11, 10, 13, 12, 15, 14}));
    return x[0];
}
inline float total(Lanes x) {
    return joined(x, [](Lanes a, Lanes b) { return a + b; });
}
inline float largest(Lanes x) {
    return joined(x, [](Lanes a, Lanes b) { return a < b ? b : a; });
}

// The finaliser of MurmurHash3 over a number, seeded twice.
inline Words chance(uint64_t seed, Words number) {
    Words h = number + uint32_t(seed);
    h = (h ^ (h >> 16)) * 0x85ebca6bu;
    h = (h ^ (h >> 13) ^ uint32_t(seed >> 32)) * 0xc2b2ae35u;
    return h ^ (h >> 16);
}

// Dropout of a matrix of so many columns.  A hash decides on four numbers of a row, by a byte for each: where that is below the
// level, of 256, the number becomes 0, and else what makes up for the zeros.
struct Dropout {
    static constexpr int64_t GROUP = 4 * LANES;  // columns that are decided on together
    uint32_t below;
    uint64_t seed;
    int64_t groups;
    float scale;
    Dropout(int64_t level, int64_t seed, int64_t columns)
        : below(uint32_t(level) << 24),
          seed(uint64_t(seed)),
          groups((columns + GROUP - 1) / GROUP),
          scale(256.0f / float(256 - level)) {}

    // How much room a row needs.
    int64_t room() const { return below ? groups * GROUP : 0; }
    // Draw for so many columns of a row, from one on, a multiple of the lanes; returned is where that one's chance lies, or null
    // where nothing is dropped.
    const uint32_t* draw(int64_t row, int64_t from, int64_t count, uint32_t* to) const {
        if (!below) return nullptr;
        uint32_t* next = to;
        for (int64_t group = from / GROUP; group * GROUP < from + count; ++group) {
            const Words some = chance(seed, PLACES + uint32_t((row * groups + group) * LANES));
            for (uint32_t shift = 0; shift < 32; shift += 8, next += LANES) {
                const Words shifted = some << shift;
                std::memcpy(next, &shifted, sizeof shifted);
            }
        }
        return to + from % GROUP;
    }
    Lanes operator()(Lanes x, const uint32_t* chances) const {
        Words some;
        std::memcpy(&some, chances, sizeof some);
        return some >= below ? x * scale : Lanes{};
    }
};

// Run a pass that knows when it is compiled whether anything is dropped.
template <class Pass>
void with(Dropout drop, Pass pass) {
    if (drop.below)
        pass(std::true_type{}, drop);
    else
        pass(std::false_type{}, drop);
}

// Beside so large a number no fraction has room, so that the sum is rounded; and a whole number is in its last bits.
constexpr float BESIDE = 12582912.0f;

// e^x within 2 units in the last place of float32, as a polynomial on [-ln 2 / 2, ln 2 / 2] times a power of two.
inline Lanes exponential(Lanes x) {
    x = x < -87.0f ? Lanes{} - 87.0f : x;
    x = x > 88.0f ? Lanes{} + 88.0f : x;
    const Lanes sum = x * 1.44269504f + BESIDE, whole = sum - BESIDE;
    const Lanes rest = (x - whole * 0.693359375f) + whole * 2.12194440e-4f;
    Lanes p = rest * 1.9875691500e-4f + 1.3981999507e-3f;
    p = p * rest + 8.3334519073e-3f;
    p = p * rest + 4.1665795894e-2f;
    p = p * rest + 1.6666665459e-1f;
    p = p * rest + 5.0000001201e-1f;
    p = p * rest * rest + rest + 1.0f;
    return p * (Lanes)(((Words)sum - std::bit_cast<uint32_t>(BESIDE) + 127) << 23);
}

// e^((x - from) * scale), and 0 at -infinity.
inline Lanes weight_of(float, Lanes x, float from, float scale) {
    return x == -INFINITY ? Lanes{} : exponential((x - from) * scale);
}

// For numbers of 8 bits, where it is hardly above 1: a power of two, within 1e-5 of it, and 0 below 2^-126.
inline Lanes weight_of(bf16, Lanes x, float from, float scale) {
    const Lanes power = (x - from) * (scale * 1.44269504f), sum = power + BESIDE, rest = power - (sum - BESIDE);
    Lanes p = rest * 9.58285324e-3f + 5.59064259e-2f;
    p = p * rest + 2.40240986e-1f;
    p = p * rest + 6.93124193e-1f;
    p = p * rest + 1.0f;
    return power < -126.0f ? Lanes{} : (Lanes)((Words)p + ((Words)sum << 23));
}

// What a softmax divides by: the logarithm of it, and its inverse, or 0 where all is -infinity.
struct Whole {
    float nats, share;
};

// The softmax of a row of scores times a scale, before it is divided by its sum: `give` gets the weights, from where on and how
// many.  What is -infinity weighs nothing.  T: what is stored.
template <class T, class Give>
Whole softmax_of(const float* scores, int64_t width, float scale, Give give) {
    Lanes high = Lanes{} - INFINITY, sums{};
    across(width, [&](int64_t at, auto count) {
        const Lanes x = only(lanes(scores + at, count), count, -INFINITY);
        high = high < x ? x : high;
    });
    float most = largest(high);
    if (most == -INFINITY) most = 0;
    across(width, [&](int64_t at, auto count) {
        const Lanes found = weight_of(T{}, lanes(scores + at, count), most, scale);
        sums += only(found, count);
        give(at, found, count);
    });
    const float sum = total(sums);
    return {most * scale + std::log(sum), sum > 0 ? 1.0f / sum : (sum == sum ? 0.0f : sum)};
}

constexpr int64_t ROWS = 64;  // rows whose sums are added up before those of others

inline int64_t blocks(int64_t rows) { return (rows + ROWS - 1) / ROWS; }

// Add up what each block of rows found, in their order.
void gather(const std::vector<float>& parts, int64_t count, int64_t width, float* sums) {
    std::fill(sums, sums + width, 0.0f);
    for (int64_t part = 0; part < count; ++part)
        for (int64_t i = 0; i < width; ++i) sums[i] += parts[part * width + i];
}

}  // namespace

// Where a function lies, by name and kind of number.
#define BOTH(name)                              \
    void* name##_bfloat16 = (void*)&name<bf16>; \
    void* name##_float32 = (void*)&name<float>;
