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

#ifdef __AVX512BF16__
#include <immintrin.h>
#endif

namespace {

struct bf16 {
    uint16_t bits;
};

inline float load(float x) { return x; }
inline float load(bf16 x) { return std::bit_cast<float>(uint32_t(x.bits) << 16); }

inline void store(float& to, float x) { to = x; }
inline void store(bf16& to, float x) {
    const uint32_t bits = std::bit_cast<uint32_t>(x);
    const uint32_t rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;  // to the nearest, ties to even
    to.bits = uint16_t(x == x ? rounded : 0x7fc0);
}

// Store many at once: processors that have it round sixteen in one instruction, for which loops leave what they found in a buffer.
inline void put(float* to, const float* from, int64_t count) { std::copy(from, from + count, to); }
inline void put(bf16* to, const float* from, int64_t count) {
    int64_t i = 0;
#ifdef __AVX512BF16__
    for (; i + 16 <= count; i += 16)
        _mm256_storeu_si256((__m256i*)(to + i), (__m256i)_mm512_cvtneps_pbh(_mm512_loadu_ps(from + i)));
#endif
#pragma omp simd
    for (int64_t j = i; j < count; ++j) store(to[j], from[j]);
}

// The finaliser of MurmurHash3 over the number of the element, seeded twice.
inline uint32_t chance(uint64_t seed, uint32_t element) {
    uint32_t h = element + uint32_t(seed);
    h = (h ^ (h >> 16)) * 0x85ebca6bu;
    h = (h ^ (h >> 13) ^ uint32_t(seed >> 32)) * 0xc2b2ae35u;
    return h ^ (h >> 16);
}

// The factor of dropout: 0, or what makes up for the zeros.  level: of 256.
struct Dropout {
    uint32_t below;
    uint64_t seed;
    float scale;
    Dropout(int64_t level, int64_t number)
        : below(uint32_t(level) << 24), seed(uint64_t(number)), scale(256.0f / float(256 - level)) {}
    float operator()(int64_t element) const { return chance(seed, uint32_t(element)) >= below ? scale : 0.0f; }
};

// Run a pass that knows when it is compiled whether anything is dropped.
template <class Pass>
void with(Dropout drop, Pass pass) {
    if (drop.below)
        pass(std::true_type{}, drop);
    else
        pass(std::false_type{}, drop);
}

// e^x within 2 units in the last place of float32, as a polynomial on [-ln 2 / 2, ln 2 / 2] times a power of two.
inline float exponential(float x) {
    x = std::min(std::max(x, -87.0f), 88.0f);
    const float whole = std::rint(x * 1.44269504f);
    const float rest = (x - whole * 0.693359375f) + whole * 2.12194440e-4f;
    float p = 1.9875691500e-4f;
    p = p * rest + 1.3981999507e-3f;
    p = p * rest + 8.3334519073e-3f;
    p = p * rest + 4.1665795894e-2f;
    p = p * rest + 1.6666665459e-1f;
    p = p * rest + 5.0000001201e-1f;
    p = p * rest * rest + rest + 1.0f;
    return p * std::bit_cast<float>(uint32_t(int32_t(whole) + 127) << 23);
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
