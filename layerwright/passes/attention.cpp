// Scaled dot-product attention, head by head within the cache: of what lies between its products nothing reaches memory but a
// number a token.  The backward pass finds the weights again from that (Dao et al. 2022, algorithm 4).

#include "products.h"

namespace {

// Where the numbers of a head lie: [B, L, H, E], a token `step` from the one before it.
struct Heads {
    int64_t rows, length, heads, size, tall = filled(length), wide = filled(size);
    float scale = 1.0f / std::sqrt(float(size));

    int64_t count() const { return rows * heads; }
    int64_t place(int64_t head, int64_t token, int64_t step) const {
        return (head / heads * length + token) * step + head % heads * size;
    }
    // Fetch what a token has in the next head, since tokens are too far apart for the processor to foresee it.
    template <class T>
    void fetch(const T* all, int64_t step, int64_t head, int64_t token) const {
        if (head + 1 == count() || size * int64_t(sizeof(T)) < LINE) return;
        ::fetch(all + place(head + 1, token, step), size);
    }
    // And where this head's numbers of a token will be written.
    template <class T>
    void claim(T* all, int64_t step, int64_t head, int64_t token) const {
        ::claim(all + place(head, token, step), size);
    }
    // What some tokens have, from one on: where it lies, if that is whole tiles of these numbers and pairs begin where words do;
    // else copied, and zeros beyond.
    template <class T, class Number>
    Apart<Number> take(const T* all, int64_t step, int64_t head, int64_t token, int64_t count, Room<Number>& to) const {
        const T* from = all + place(head, token, step);
        if constexpr (std::is_same_v<T, Number>)
            if (size == wide && count == filled(count) && step % 2 == 0 && uintptr_t(from) % sizeof(uint32_t) == 0)
                return {from, step};
        for (int64_t i = 0; i < count; ++i)
            if constexpr (std::is_same_v<T, Number>)
                std::copy_n(from + i * step, size, to + i * wide);
            else
                put(to + i * wide, from + i * step, size);
        std::fill(to + count * wide, to + filled(count) * wide, Number{});
        return {to, wide};
    }
    // And put it where it belongs.
    template <class T>
    void give(const float* from, T* all, int64_t step, int64_t head, int64_t token, int64_t count) const {
        for (int64_t i = 0; i < count; ++i) put(all + place(head, token + i, step), from + i * wide, size);
    }
};

// Which keys a query of a head sees; null where all.
struct Sight {
    const uint8_t* visible;
    int64_t row_step, step;

    const uint8_t* of(const Heads& heads, int64_t head, int64_t query, int64_t key = 0) const {
        return visible ? visible + head / heads.heads * row_step + query * step + key : nullptr;
    }

    // All keys that some queries see lie among these, which are few where a row holds several documents: from which on, how many,
    // and how many in whole tiles.
    struct Reach {
        int64_t from, count, wide;
    };
    Reach reach(const Heads& heads, int64_t head, int64_t query, int64_t count) const {
        if (!visible) return {0, heads.length, heads.tall};
        int64_t from = heads.length - 1, to = 1;
        for (int64_t i = 0; i < (step ? count : 1); ++i) {
            const uint8_t* seen = of(heads, head, query + i);
            if (const void* first = std::memchr(seen, 1, from)) from = (const uint8_t*)first - seen;
            if (const void* last = memrchr(seen + to, 1, heads.length - to)) to = (const uint8_t*)last - seen + 1;
        }
        from = std::min(from, to - 1) / SIDE * SIDE;
        return {from, to - from, filled(to - from)};
    }
};

// What is not seen gets no weight.
inline void hide(float* scores, const uint8_t* seen, int64_t count) {
    for (int64_t k = 0; seen && k < count; ++k) scores[k] = seen[k] ? scores[k] : -INFINITY;
}

template <class Products, class T>
void attend(const T* query, const T* key, const T* value, T* to, float* nats, const uint8_t* visible, int64_t rows,
            int64_t length, int64_t heads, int64_t size, int64_t query_step, int64_t key_step, int64_t value_step,
            int64_t to_step, int64_t row_step, int64_t step, int64_t level, int64_t seed) {
    using Number = typename Products::Number;
    using Vector = typename Products::Vector;
    constexpr int64_t HELD = Products::HELD;
    const Heads all{rows, length, heads, size};
    const Sight sight{visible, row_step, step};
    const Dropout drop(level, seed, length);
#pragma omp parallel
    {
        const Products products;
        const int64_t room = all.tall * all.wide;
        Room<Number> own(room), some(SIDE * all.wide), weights(SIDE * all.tall);
        Room<Vector> keys(room / HELD), values(room / HELD);
        Room<float> scores(SIDE * all.tall), mixed(SIDE * all.wide), shares(SIDE);
        Room<uint32_t> drawn(drop.room());
#pragma omp for schedule(static)
        for (int64_t head = 0; head < all.count(); ++head) {
            products.second_transposed(all.take(key, key_step, head, 0, length, own), all.tall, all.wide, keys);
            products.second(all.take(value, value_step, head, 0, length, own), all.tall, all.wide, values);
            for (int64_t at = 0; at < length; at += SIDE) {
                const int64_t count = std::min(SIDE, length - at);
                const auto queries = all.take(query, query_step, head, at, count, some);
                const auto near = sight.reach(all, head, at, count);
                products.multiply(queries, keys + near.from / LANES, all.tall / LANES, scores, SIDE, near.wide, all.wide, false);
                for (int64_t i = 0; i < count; ++i) {
                    float* row = scores + i * near.wide;
                    Number* kept = weights + i * near.wide;
                    const int64_t token = head * length + at + i;
                    all.fetch(query, query_step, head, at + i);
                    all.fetch(key, key_step, head, at + i);
                    all.fetch(value, value_step, head, at + i);
                    all.claim(to, to_step, head, at + i);
                    hide(row, sight.of(all, head, at + i, near.from), near.count);
                    const uint32_t* chances = drop.draw(token, near.from, near.count, drawn);
                    with(drop, [&](auto drops, Dropout drop) {
                        const auto found = softmax_of<T>(row, near.count, all.scale, [=](int64_t k, Lanes x, auto some) {
                            if constexpr (drops) x = drop(x, chances + k);
                            put(kept + k, x, some);
                        });
                        nats[token] = found.nats;
                        shares[i] = found.share;
                    });
                    std::fill(kept + near.count, kept + near.wide, Number{});
                }
                products.multiply({weights, near.wide}, values + near.from * all.wide / HELD, all.wide / LANES, mixed, SIDE,
                                  all.wide, near.wide, false);
                for (int64_t i = 0; i < count; ++i)
                    across(size, [&](int64_t k, auto some) {
                        put(to + all.place(head, at + i, to_step) + k, lanes(mixed + i * all.wide + k, some) * shares[i], some);
                    });
            }
        }
    }
}

// The slopes of query, key and value, each where a token lies `to_step` from the one before it.
template <class Products, class T>
void attend_backward(const T* grad, const T* query, const T* key, const T* value, const T* out, const float* nats, T* dquery,
                     T* dkey, T* dvalue, const uint8_t* visible, int64_t rows, int64_t length, int64_t heads, int64_t size,
                     int64_t grad_step, int64_t query_step, int64_t key_step, int64_t value_step, int64_t out_step,
                     int64_t to_step, int64_t row_step, int64_t step, int64_t level, int64_t seed) {
    using Number = typename Products::Number;
    using Vector = typename Products::Vector;
    constexpr int64_t HELD = Products::HELD;
    const Heads all{rows, length, heads, size};
    const Sight sight{visible, row_step, step};
    const Dropout drop(level, seed, length);
    const int64_t block =
        std::min<int64_t>(4 * SIDE, all.tall);  // queries at a time: enough that sums over them are seldom stored
#pragma omp parallel
    {
        const Products products;
        const int64_t room = all.tall * all.wide, part = block * all.wide, square = block * all.tall;
        Room<Number> own(room), asking(part), giving(part), weights(square), slopes(square), turned(square);
        Room<Vector> keys(room / HELD), values(room / HELD), found(room / HELD), some(part / HELD);
        Room<float> scores(square), dweights(square), dq(part), dk(room), dv(room), sums(block);
        Room<uint32_t> drawn(drop.room());
#pragma omp for schedule(static)
        for (int64_t head = 0; head < all.count(); ++head) {
            products.second_transposed(all.take(value, value_step, head, 0, length, own), all.tall, all.wide, values);
            const auto every = all.take(key, key_step, head, 0, length, own);
            products.second_transposed(every, all.tall, all.wide, keys);
            products.second(every, all.tall, all.wide, found);
            std::fill_n((float*)dk, room, 0.0f);
            std::fill_n((float*)dv, room, 0.0f);
            for (int64_t at = 0; at < length; at += block) {
                const int64_t count = std::min(block, length - at), deep = filled(count);
                const auto queries = all.take(query, query_step, head, at, count, asking);
                const auto grads = all.take(grad, grad_step, head, at, count, giving);
                const auto near = sight.reach(all, head, at, count);
                const int64_t from = near.from / LANES, across_all = all.tall / LANES;
                // What the weights of a row and their slopes come to is what comes out and its slope do.  Added up here, where
                // nothing else waits for what comes out to be read.
                for (int64_t i = 0; i < count; ++i) {
                    const T* given = out + all.place(head, at + i, out_step);
                    const Number* own = grads.row(i);
                    Lanes sum{};
                    across(size, [&](int64_t k, auto some) { sum += lanes(given + k, some) * lanes(own + k, some); });
                    sums[i] = total(sum) * all.scale;
                }
                products.multiply(queries, keys + from, across_all, scores, deep, near.wide, all.wide, false);
                products.multiply(grads, values + from, across_all, dweights, deep, near.wide, all.wide, false);
                for (int64_t i = 0; i < count; ++i) {
                    float *score = scores + i * near.wide, *dweight = dweights + i * near.wide;
                    Number *kept = weights + i * near.wide, *slope = slopes + i * near.wide;
                    const int64_t token = head * length + at + i;
                    const float scale = all.scale, whole = nats[token] == -INFINITY ? 0.0f : nats[token] / scale;
                    const float sum = sums[i];
                    all.fetch(grad, grad_step, head, at + i);
                    all.fetch(query, query_step, head, at + i);
                    all.fetch(key, key_step, head, at + i);
                    all.fetch(value, value_step, head, at + i);
                    all.fetch(out, out_step, head, at + i);
                    all.claim(dquery, to_step, head, at + i);
                    all.claim(dkey, to_step, head, at + i);
                    all.claim(dvalue, to_step, head, at + i);
                    hide(score, sight.of(all, head, at + i, near.from), near.count);
                    const uint32_t* chances = drop.draw(token, near.from, near.count, drawn);
                    with(drop, [&](auto drops, Dropout drop) {
                        across(near.count, [=](int64_t k, auto some) {
                            const Lanes weight = weight_of(T{}, lanes(score + k, some), whole, scale);
                            Lanes left = weight, more = lanes(dweight + k, some) * scale;
                            if constexpr (drops) left = drop(left, chances + k), more = drop(more, chances + k);
                            put(kept + k, left, some);
                            put(slope + k, weight * (more - sum), some);
                        });
                    });
                    std::fill(kept + near.count, kept + near.wide, Number{});
                    std::fill(slope + near.count, slope + near.wide, Number{});
                }
                std::fill(weights + count * near.wide, weights + deep * near.wide, Number{});
                std::fill(slopes + count * near.wide, slopes + deep * near.wide, Number{});
                const int64_t vectors = all.wide / LANES, shift = near.from * all.wide;
                products.multiply({slopes, near.wide}, found + shift / HELD, vectors, dq, deep, all.wide, near.wide, false);
                all.give(dq, dquery, to_step, head, at, count);
                products.transpose({slopes, near.wide}, deep, near.wide, turned);
                products.second(queries, deep, all.wide, some);
                products.multiply({turned, deep}, some, vectors, dk + shift, near.wide, all.wide, deep, true);
                products.transpose({weights, near.wide}, deep, near.wide, turned);
                products.second(grads, deep, all.wide, some);
                products.multiply({turned, deep}, some, vectors, dv + shift, near.wide, all.wide, deep, true);
            }
            all.give(dk, dkey, to_step, head, 0, length);
            all.give(dv, dvalue, to_step, head, 0, length);
        }
    }
}

#ifdef __AMX_BF16__
const bool tiles = lent();
#else
constexpr bool tiles = false;
using Tiles = Vectors;
#endif
#if defined(__AVX512BF16__) && !defined(__AMX_BF16__)
using Otherwise = Pairs;  // where there are tiles, what dot products of pairs take is no less than in float32
#else
using Otherwise = Vectors;
#endif

}  // namespace

extern "C" {
void* attend_float32 = (void*)&attend<Vectors, float>;
void* attend_backward_float32 = (void*)&attend_backward<Vectors, float>;
void* attend_bfloat16 = tiles ? (void*)&attend<Tiles, bf16> : (void*)&attend<Otherwise, bf16>;
void* attend_backward_bfloat16 = tiles ? (void*)&attend_backward<Tiles, bf16> : (void*)&attend_backward<Otherwise, bf16>;
void* tiles_bfloat16 = tiles ? attend_bfloat16 : nullptr;
}
