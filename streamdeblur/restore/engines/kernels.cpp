// Convolutions with zeros around, channels last, in float32; and in bfloat16 where the processor multiplies that
// (AVX512-BF16, and AMX where the system lets it): images and what is multiplied are bfloat16, transforms, sums, bias and
// gradients of weights float32.
//
// Those of 3x3 and stride 1 by Winograd's F(4x4, 3x3): 36 products where the definition has 144. Lavin and Gray, "Fast
// Algorithms for Convolutional Neural Networks", CVPR 2016, Sec. 4.3. Work is cut into runs of tiles of 4x4 results, line
// after line and image after image, small enough that what a run needs stays in the cache of a core: its tiles are
// transformed, neighbours in a line together, as they share pixels; multiplied with the transformed weights (36 matrix
// products); and transformed back with bias, sum and ReLU: all of a run, or, where channels are few, of four tiles at a time. A
// result does not depend on how the work was cut, nor on threads. The gradient of the weights is the other way round: the
// tiles of the input and of the results' gradient are transformed, and their 36 products summed over all tiles.
//
// Others by their definition (Direct).
//
// The vectors are GCC's and Clang's (__attribute__((vector_size))): as wide as what this is compiled for.

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <type_traits>
#if defined(__AVX512BF16__)
#include <immintrin.h>
#endif

// AMX: registers of 16 lines of 64 bytes. Emulated, the same program runs where there is none, for tests.
#if defined(__AVX512BF16__) && (defined(STREAMDEBLUR_EMULATED_TILES) || (defined(__linux__) && defined(__AMX_TILE__) && defined(__AMX_BF16__)))
#define STREAMDEBLUR_TILES
#if !defined(STREAMDEBLUR_EMULATED_TILES)
#include <sys/syscall.h>
#include <unistd.h>
#endif
#endif

namespace {

// Values in a vector, and rows of a matrix product that are held in registers at a time: of tiles, and of channels (a
// divisor of WIDTH).
#if defined(__AVX512F__)
constexpr int WIDTH = 16, ROWS = 12, CHANNELS = 8;
#elif defined(__AVX__)
constexpr int WIDTH = 8, ROWS = 6, CHANNELS = 4;
#else
constexpr int WIDTH = 4, ROWS = 6, CHANNELS = 4;
#endif

// Blocks of ROWS results that one panel of weights serves before the next does.
constexpr int AT_ONCE = 8;

// Bytes between the 36 matrices, so that their rows don't all fall into the same lines of the cache.
constexpr int APART = 64;

// Tiles that are transformed at a time.
constexpr int TOGETHER = 4;

// Whether registers hold 6 sums of each of them, and what is multiplied: Convolution::close.
constexpr bool CLOSE = WIDTH == 16;

typedef float Vector __attribute__((vector_size(WIDTH * 4), aligned(4), may_alias));

inline Vector load(const float* from) { return *reinterpret_cast<const Vector*>(from); }
inline void store(float* to, Vector value) { *reinterpret_cast<Vector*>(to) = value; }

// G w: three values to six.
inline void transform(const Vector* w, Vector* t) {
    const Vector near = w[0] + w[2], far = w[0] + 4.0f * w[2], twice = 2.0f * w[1];
    t[0] = w[0] * (1.0f / 4);
    t[1] = (near + w[1]) * (-1.0f / 6);
    t[2] = (w[1] - near) * (1.0f / 6);
    t[3] = (far + twice) * (1.0f / 24);
    t[4] = (far - twice) * (1.0f / 24);
    t[5] = w[2];
}

// G^T s: six values to three.
inline void turn_back(const Vector* s, Vector* w) {
    const Vector near = (s[1] + s[2]) * (1.0f / 6), far = s[3] + s[4];
    w[0] = s[0] * (1.0f / 4) - near + far * (1.0f / 24);
    w[1] = (s[2] - s[1]) * (1.0f / 6) + (s[3] - s[4]) * (1.0f / 12);
    w[2] = far * (1.0f / 6) - near + s[5];
}

// What images, and the matrices that are multiplied, are made of. Factor: what one lane of a product takes of a matrix,
// PAIR values that are neighbours along the sum.
struct Single {
    typedef float Value;
    typedef float Factor;
    static constexpr int PAIR = 1, ROWS = ::ROWS;
    static constexpr bool CLOSE = ::CLOSE;

    static Vector factors(const Factor* from) { return load(from); }
    static Vector multiply(Vector sum, Factor a, Vector b) { return sum + a * b; }
    // What a thread does before its first product of factors `depth` values long, and after its last.
    static void begin(int) {}
    static void end() {}
    static void interleave(Factor* to, Vector first, Vector) { store(to, first); }
};

#if defined(__AVX512BF16__)
typedef uint16_t Half;
typedef Half Halves __attribute__((vector_size(WIDTH * 2), aligned(2), may_alias));
typedef uint32_t Words __attribute__((vector_size(WIDTH * 4), aligned(4), may_alias));

inline Words words(Halves halves) { return __builtin_convertvector(halves, Words); }
inline Halves rounded(Vector value) { return reinterpret_cast<Halves>(_mm512_cvtneps_pbh(reinterpret_cast<__m512>(value))); }
inline Vector load(const Half* from) { return reinterpret_cast<Vector>(words(*reinterpret_cast<const Halves*>(from)) << 16); }
inline void store(Half* to, Vector value) { *reinterpret_cast<Halves*>(to) = rounded(value); }

struct Double {
    typedef Half Value;
    typedef uint32_t Factor __attribute__((aligned(4), may_alias));
    static constexpr int PAIR = 2, ROWS = ::ROWS;
    static constexpr bool CLOSE = ::CLOSE;

    static void begin(int) {}
    static void end() {}
    static Vector factors(const Factor* from) { return *reinterpret_cast<const Vector*>(from); }
    static Vector multiply(Vector sum, Factor a, Vector b) {
        const __m512bh both = reinterpret_cast<__m512bh>(Words{} + a);
        return reinterpret_cast<Vector>(_mm512_dpbf16_ps(reinterpret_cast<__m512>(sum), both, reinterpret_cast<__m512bh>(b)));
    }
    static void interleave(Factor* to, Vector first, Vector second) {
        const __m512i order = _mm512_set_epi16(31, 15, 30, 14, 29, 13, 28, 12, 27, 11, 26, 10, 25, 9, 24, 8, 23, 7, 22, 6, 21, 5, 20, 4, 19, 3, 18, 2, 17, 1, 16, 0);
        const __m512bh both = _mm512_cvtne2ps_pbh(reinterpret_cast<__m512>(second), reinterpret_cast<__m512>(first));
        *reinterpret_cast<Words*>(to) = reinterpret_cast<Words>(_mm512_permutexvar_epi16(order, reinterpret_cast<__m512i>(both)));
    }
};
#endif

#if defined(STREAMDEBLUR_TILES)
// How the eight registers are cut (Intel's manual, LDTILECFG): 0 to 3 are 16x16 sums in float32, 4 and 5 lines of 16
// rows, 6 and 7 of a panel of weights, pairs of values that are neighbours along the sum side by side.
struct alignas(64) Cut {
    uint8_t palette = 1, start = 0, reserved[14] = {};
    uint16_t bytes[16] = {};
    uint8_t lines[16] = {};

    explicit Cut(int values) {
        for (int i = 0; i < 8; ++i) {
            bytes[i] = static_cast<uint16_t>(i == 4 || i == 5 ? 2 * values : 64);
            lines[i] = static_cast<uint8_t>(i > 5 ? values / 2 : 16);
        }
    }
};

#if defined(STREAMDEBLUR_EMULATED_TILES)
struct Emulated {
    Cut cut{32};
    char lines[8][16][64];
};
inline thread_local Emulated emulated;

inline bool tiles_allowed() { return true; }
inline void tiles_cut(const Cut& cut) { emulated.cut = cut; }
inline void tiles_release() { std::memset(&emulated, 0, sizeof(emulated)); }
inline void tile_zero(int t) { std::memset(emulated.lines[t], 0, sizeof(emulated.lines[t])); }
inline void tile_load(int t, const void* from, ptrdiff_t apart) {
    for (int i = 0; i < emulated.cut.lines[t]; ++i) std::memcpy(emulated.lines[t][i], static_cast<const char*>(from) + i * apart, emulated.cut.bytes[t]);
}
inline void tile_store(int t, void* to, ptrdiff_t apart) {
    for (int i = 0; i < emulated.cut.lines[t]; ++i) std::memcpy(static_cast<char*>(to) + i * apart, emulated.lines[t][i], emulated.cut.bytes[t]);
}
inline void tile_product(int c, int a, int b) {
    const auto value = [](const char* from) {
        uint16_t half;
        std::memcpy(&half, from, 2);
        const uint32_t word = static_cast<uint32_t>(half) << 16;
        float result;
        std::memcpy(&result, &word, 4);
        return result;
    };
    for (int i = 0; i < emulated.cut.lines[c]; ++i)
        for (int j = 0; j < emulated.cut.bytes[c] / 4; ++j) {
            float sum;
            std::memcpy(&sum, emulated.lines[c][i] + 4 * j, 4);
            for (int k = 0; k < emulated.cut.bytes[a] / 4; ++k)
                for (int half = 0; half < 4; half += 2) sum += value(emulated.lines[a][i] + 4 * k + half) * value(emulated.lines[b][k] + 4 * j + half);
            std::memcpy(emulated.lines[c][i] + 4 * j, &sum, 4);
        }
}
#else
// Linux lends these registers on request: arch_prctl(ARCH_REQ_XCOMP_PERM, XTILEDATA).
bool tiles_allowed() {
    static const bool allowed = syscall(SYS_arch_prctl, 0x1023, 18) == 0;
    return allowed;
}
// GCC's own intrinsics don't say that they read memory.
inline void tiles_cut(const Cut& cut) { __asm__ volatile("ldtilecfg (%0)" ::"r"(&cut) : "memory"); }
inline void tiles_release() { __asm__ volatile("tilerelease" ::: "memory"); }
#define tile_zero(t) __asm__ volatile("tilezero %%tmm" #t ::: "memory")
#define tile_load(t, from, apart) __asm__ volatile("tileloadd (%0,%1,1), %%tmm" #t ::"r"(from), "r"(static_cast<ptrdiff_t>(apart)) : "memory")
#define tile_store(t, to, apart) __asm__ volatile("tilestored %%tmm" #t ", (%0,%1,1)" ::"r"(to), "r"(static_cast<ptrdiff_t>(apart)) : "memory")
#define tile_product(c, a, b) __asm__ volatile("tdpbf16ps %%tmm" #b ", %%tmm" #a ", %%tmm" #c ::: "memory")
#endif

// As Double, products by AMX: of inputs that are a multiple of 16.
struct Tiled : Double {
    static constexpr int ROWS = 16;
    static constexpr bool CLOSE = false;  // sums are not in those registers

    // Values along the sum that one product takes.
    static int step(int depth) { return depth % 32 == 0 ? 32 : 16; }
    static void begin(int depth) { tiles_cut(Cut(step(depth))); }
    static void end() { tiles_release(); }
};
#endif

// B^T d: six values to six.
inline void forward(const Vector* d, Vector* t) {
    const Vector even = d[4] - 4.0f * d[2], odd = d[3] - 4.0f * d[1];
    const Vector near = d[4] - d[2], far = 2.0f * (d[3] - d[1]);
    t[0] = 4.0f * d[0] - 5.0f * d[2] + d[4];
    t[1] = even + odd;
    t[2] = even - odd;
    t[3] = near + far;
    t[4] = near - far;
    t[5] = 4.0f * d[1] - 5.0f * d[3] + d[5];
}

// A^T m: six values to four, `step` apart.
inline void backward(const Vector* m, Vector* y, int step) {
    const Vector sum1 = m[1] + m[2], difference1 = m[1] - m[2], sum2 = m[3] + m[4], difference2 = m[3] - m[4];
    y[0] = m[0] + sum1 + sum2;
    y[step] = difference1 + 2.0f * difference2;
    y[2 * step] = sum1 + 4.0f * sum2;
    y[3 * step] = difference1 + 8.0f * difference2 + m[5];
}

// A g: four values to six, `step` apart.
inline void spread(const Vector* g, Vector* t, int step) {
    const Vector even = g[0] + g[2], odd = g[1] + g[3];
    const Vector even2 = g[0] + 4.0f * g[2], odd2 = 2.0f * g[1] + 8.0f * g[3];
    t[0] = g[0];
    t[step] = even + odd;
    t[2 * step] = even - odd;
    t[3 * step] = even2 + odd2;
    t[4 * step] = even2 - odd2;
    t[5 * step] = g[3];
}

// ROWS rows of a (rows x depth) times a panel b (depth x VECTORS vectors), to c. Depth and a's rows in factors.
template <class Kind, int VECTORS>
inline void multiply(const typename Kind::Factor* a, ptrdiff_t a_row, const typename Kind::Factor* b, float* c, ptrdiff_t c_row, int depth) {
    Vector sum[ROWS][VECTORS];
    for (int r = 0; r < ROWS; ++r)
        for (int v = 0; v < VECTORS; ++v) sum[r][v] = Vector{};
    for (int k = 0; k < depth; ++k) {
        Vector weight[VECTORS];
        for (int v = 0; v < VECTORS; ++v) weight[v] = Kind::factors(b + (static_cast<ptrdiff_t>(k) * VECTORS + v) * WIDTH);
        for (int r = 0; r < ROWS; ++r)
            for (int v = 0; v < VECTORS; ++v) sum[r][v] = Kind::multiply(sum[r][v], a[r * a_row + k], weight[v]);
    }
    for (int r = 0; r < ROWS; ++r)
        for (int v = 0; v < VECTORS; ++v) store(c + r * c_row + v * WIDTH, sum[r][v]);
}

// To CHANNELS rows of c: that many columns of a (depth x WIDTH), turned, times VECTORS matrices b (depth x WIDTH), `apart`
// factors from one to the next. Depth in factors.
template <class Kind, int VECTORS>
inline void accumulate(const typename Kind::Factor* a, const typename Kind::Factor* b, ptrdiff_t apart, float* c, ptrdiff_t c_row, int depth) {
    Vector sum[CHANNELS][VECTORS];
    for (int r = 0; r < CHANNELS; ++r)
        for (int v = 0; v < VECTORS; ++v) sum[r][v] = load(c + r * c_row + v * WIDTH);
    for (int k = 0; k < depth; ++k, a += WIDTH, b += WIDTH) {
        Vector value[VECTORS];
        for (int v = 0; v < VECTORS; ++v) value[v] = Kind::factors(b + v * apart);
        for (int r = 0; r < CHANNELS; ++r)
            for (int v = 0; v < VECTORS; ++v) sum[r][v] = Kind::multiply(sum[r][v], a[r], value[v]);
    }
    for (int r = 0; r < CHANNELS; ++r)
        for (int v = 0; v < VECTORS; ++v) store(c + r * c_row + v * WIDTH, sum[r][v]);
}

// Memory of this thread, kept until it ends; nullptr where there is none.
char* scratch(size_t bytes) {
    struct Held {
        char* memory = nullptr;
        size_t bytes = 0;
        ~Held() { std::free(memory); }
    };
    static thread_local Held held;
    if (bytes > held.bytes) {
        bytes = (bytes + 63) / 64 * 64;
        std::free(held.memory);
        held.memory = static_cast<char*>(std::aligned_alloc(64, bytes));
        held.bytes = held.memory ? bytes : 0;
        if (held.memory) std::memset(held.memory, 0, bytes);  // rows of no tile are multiplied too, and nobody reads that
    }
    return held.memory;
}

// Where a tile lies: of image n, from (top, left).
struct Place {
    ptrdiff_t n;
    int top, left;
};

// The tiles of a batch, line after line and image after image.
struct Tiles {
    int height, width;

    int across() const { return (width + 3) / 4; }
    int down() const { return (height + 3) / 4; }
    long of(int batch) const { return static_cast<long>(batch) * down() * across(); }
    Place at(long tile) const {
        const long line = tile / across();
        return {line / down(), static_cast<int>(line % down()) * 4, static_cast<int>(tile % across()) * 4};
    }
    Place after(Place place) const {
        place.left += 4;
        if (place.left < width) return place;
        place.left = 0;
        place.top += 4;
        if (place.top < height) return place;
        place.top = 0;
        ++place.n;
        return place;
    }
    // `count` of them from `place` on, TOGETHER at most, to places; the one after them.
    Place take(Place place, int count, Place* places) const {
        for (int s = 0; s < count; ++s, place = after(place)) places[s] = place;
        return place;
    }
};

// Images (batch, height, width, channels), zeros around.
template <class Value>
struct Images {
    const Value* first;
    int height, width, channels;

    // B^T d of columns of six pixels, lines `row` values apart and columns `step`. Apart, so that edges get the same program:
    // compilers may round copies of it differently.
    static __attribute__((noinline)) void down(const Value* from, ptrdiff_t row, ptrdiff_t step, int wide, Vector* columns) {
        for (int j = 0; j < wide; ++j, from += step, columns += 6) {
            Vector line[6];
            for (int i = 0; i < 6; ++i) line[i] = load(from + i * row);
            forward(line, columns);
        }
    }

    // A vector of channels from c of the pixels of `count` tiles, TOGETHER at most, half transformed: B^T d of their columns.
    // Those of tile s are six values each from at[s] on, in `columns`, room for TOGETHER times 36. Neighbours share two.
    inline void down(const Place* places, int count, int c, Vector* columns, const Vector** at) const {
        const ptrdiff_t row = static_cast<ptrdiff_t>(width) * channels;
        for (int s = 0, n; s < count; s += n, columns += 36 * n) {
            n = 1;
            while (s + n < count && places[s + n].left) ++n;  // in one line
            const int top = places[s].top - 1, left = places[s].left - 1, wide = 4 * n + 2;
            const Value* const from = first + ((places[s].n * height + top) * width + left) * channels + c;
            if (top >= 0 && left >= 0 && top + 6 <= height && left + wide <= width) {
                down(from, row, channels, wide, columns);
            } else {
                Value border[6 * (4 * TOGETHER + 2) * WIDTH] = {};
                for (int i = std::max(0, -top); i < std::min(6, height - top); ++i)
                    for (int j = std::max(0, -left); j < std::min(wide, width - left); ++j)
                        std::memcpy(border + (i * wide + j) * WIDTH, from + i * row + static_cast<ptrdiff_t>(j) * channels, sizeof(Value) * WIDTH);
                down(border, wide * WIDTH, WIDTH, wide, columns);
            }
            for (int q = 0; q < n; ++q) at[s + q] = columns + 24 * q;
        }
    }
};

// The other half: line i of the 6x6 values of a tile whose columns are these.
inline void across(const Vector* columns, int i, Vector* values) {
    Vector line[6];
    for (int j = 0; j < 6; ++j) line[j] = columns[6 * j + i];
    forward(line, values);
}

// All lines, values `plane` apart.
template <class Value>
inline void across(const Vector* columns, Value* to, ptrdiff_t plane) {
    for (int i = 0; i < 6; ++i, to += 6 * plane) {
        Vector values[6];
        across(columns, i, values);
        for (int j = 0; j < 6; ++j) store(to + j * plane, values[j]);
    }
}

// Bytes of `count` values, and more, so that what follows begins at a line of the cache.
template <class T>
constexpr size_t room(ptrdiff_t count) {
    return (sizeof(T) * count + 63) / 64 * 64;
}

// Whether Convolution::close does it, with weights in the order in which it reads them: few channels, as many in as out. More
// weights fill the second cache.
template <class Kind>
constexpr bool is_close(int inputs, int outputs) {
    return Kind::CLOSE && inputs == outputs && (inputs == WIDTH || inputs == 2 * WIDTH || inputs == 4 * WIDTH);
}

template <class Kind>
struct Convolution {
    typedef typename Kind::Value Value;
    typedef typename Kind::Factor Factor;

    const Value* x;
    Value* y;
    const Value* weights;
    const float* bias;
    int height, width, inputs, outputs;
    bool add, relu;

    // Values from one of the 36 matrices to the next: of (tiles, inputs) before, of (tiles, outputs) after the products.
    ptrdiff_t plane_in(int tiles) const { return static_cast<ptrdiff_t>(tiles) * inputs + APART / sizeof(Value); }
    ptrdiff_t plane_out(int tiles) const { return static_cast<ptrdiff_t>(tiles) * outputs + APART / sizeof(float); }
    // Of a thread: columns, of the way there and of the way back; and the 36 matrices before and after.
    static constexpr size_t COLUMNS = sizeof(Vector) * 36 * TOGETHER;
    size_t memory(int tiles) const { return COLUMNS + room<Value>(36 * plane_in(tiles)) + room<float>(36 * plane_out(tiles)); }

    // The tiles first..first+count-1, at most `tiles`, in `memory`.
    void run(const Tiles& where, long first, int count, int tiles, char* memory) const {
        if constexpr (Kind::CLOSE)
            if (is_close<Kind>(inputs, outputs)) {
                if (inputs == WIDTH) return close<WIDTH>(where, first, count, memory);
                if (inputs == 2 * WIDTH) return close<2 * WIDTH>(where, first, count, memory);
                return close<4 * WIDTH>(where, first, count, memory);
            }
        const ptrdiff_t plane = plane_in(tiles);
        const Images<Value> images{x, height, width, inputs};
        Vector* const columns = reinterpret_cast<Vector*>(memory);
        Value* const transformed = reinterpret_cast<Value*>(memory + COLUMNS);
        float* const products = reinterpret_cast<float*>(memory + COLUMNS + room<Value>(36 * plane));
        Place places[TOGETHER], next = where.at(first);
        for (int t = 0; t < count; t += TOGETHER) {
            const int there = std::min(TOGETHER, count - t);
            next = where.take(next, there, places);
            for (int c = 0; c < inputs; c += WIDTH) {
                const Vector* at[TOGETHER];
                images.down(places, there, c, columns, at);
                for (int s = 0; s < there; ++s) across(at[s], transformed + static_cast<ptrdiff_t>(t + s) * inputs + c, plane);
            }
        }
        for (int k = 0; k < 36; ++k) {
            const Factor* from = reinterpret_cast<const Factor*>(transformed + k * plane);
            const Factor* weight = reinterpret_cast<const Factor*>(weights + static_cast<ptrdiff_t>(k) * inputs * outputs);
            float* to = products + k * plane_out(tiles);
#if defined(STREAMDEBLUR_TILES)
            if constexpr (std::is_same_v<Kind, Tiled>)
                of_tiles(from, weight, to, count);
            else
#endif
            if (outputs % (2 * WIDTH) == 0)
                product<2>(from, weight, to, count);
            else
                product<1>(from, weight, to, count);
        }
        Place place = where.at(first);
        for (int t = 0; t < count; ++t, place = where.after(place)) leave(products + static_cast<ptrdiff_t>(t) * outputs, plane_out(tiles), place);
    }

    // As run, TOGETHER tiles at a time: products of a column of their 6x6 with one vector of channels stay in registers until
    // they are transformed back by half. So all but the weights stays in the fastest cache, and less is written and read
    // again.
    template <int MANY>
    void close(const Tiles& where, long first, int count, char* memory) const {
        constexpr int DEPTH = MANY / Kind::PAIR;
        const Images<Value> images{x, height, width, MANY};
        Vector* const columns = reinterpret_cast<Vector*>(memory);
        Value* const transformed = reinterpret_cast<Value*>(memory + COLUMNS);
        Place places[TOGETHER], next = where.at(first);
        for (int t = 0; t < count; t += TOGETHER) {
            const int there = std::min(TOGETHER, count - t);  // the last may be of no tile: nobody reads their products
            next = where.take(next, there, places);
            for (int c = 0; c < MANY; c += WIDTH) {
                const Vector* at[TOGETHER];
                images.down(places, there, c, columns, at);
                for (int s = 0; s < there; ++s) across(at[s], transformed + 36 * s * MANY + c, MANY);
            }
            for (int o = 0; o < MANY; o += WIDTH) {
                for (int j = 0; j < 6; ++j)
                    column<DEPTH>(reinterpret_cast<const Factor*>(transformed) + j * DEPTH,
                                  reinterpret_cast<const Factor*>(weights) + (o / WIDTH * 6 + j) * DEPTH * 6 * WIDTH, columns + j);
                for (int s = 0; s < there; ++s) put(columns + 24 * s, places[s], o, MANY);
            }
        }
    }

    // Of `close`, one column, transformed back by half. Apart, so that compilers have all registers for it: they spilled sums.
    template <int DEPTH>
    static __attribute__((noinline)) void column(const Factor* from, const Factor* weight, Vector* half) {
        Vector sum[TOGETHER][6];
        for (int s = 0; s < TOGETHER; ++s)
            for (int i = 0; i < 6; ++i) sum[s][i] = Vector{};
        for (int k = 0; k < DEPTH; ++k)
            for (int i = 0; i < 6; ++i) {
                const Vector own = Kind::factors(weight + (6 * k + i) * WIDTH);
                for (int s = 0; s < TOGETHER; ++s) sum[s][i] = Kind::multiply(sum[s][i], from[(36 * s + 6 * i) * DEPTH + k], own);
            }
        for (int s = 0; s < TOGETHER; ++s) backward(sum[s], half + 24 * s, 6);
    }

    template <int VECTORS>
    void product(const Factor* from, const Factor* weight, float* to, int count) const {
        const int depth = inputs / Kind::PAIR;
        for (int o = 0; o < outputs; o += VECTORS * WIDTH)
            for (int t = 0; t < count; t += ROWS)  // the last rows may be of no tile: nobody reads their products
                multiply<Kind, VECTORS>(from + static_cast<ptrdiff_t>(t) * depth, depth, weight + static_cast<ptrdiff_t>(o) * depth,
                                        to + static_cast<ptrdiff_t>(t) * outputs + o, outputs, depth);
    }

#if defined(STREAMDEBLUR_TILES)
    // As product, by AMX: two times 16 rows by two times 16 channels at once, where there are so many.
    void of_tiles(const Factor* from, const Factor* weight, float* to, int count) const {
        const int depth = inputs / 2, step = Kind::step(inputs) / 2, panel = outputs % 32 == 0 ? 32 : 16;
        const ptrdiff_t apart = static_cast<ptrdiff_t>(inputs) * 2, out = static_cast<ptrdiff_t>(outputs) * 4;
        for (int o = 0; o < outputs; o += panel)
            for (int t = 0; t < count; t += 32) {
                const bool rows = t + 16 < count, channels = panel == 32;
                const Factor* a = from + static_cast<ptrdiff_t>(t) * depth;
                const Factor* b = weight + static_cast<ptrdiff_t>(o) * depth;
                float* c = to + static_cast<ptrdiff_t>(t) * outputs + o;
                tile_zero(0);
                tile_zero(1);
                tile_zero(2);
                tile_zero(3);
                for (int k = 0; k < depth; k += step, a += step, b += step * panel) {
                    tile_load(4, a, apart);
                    tile_load(6, b, panel * 4);
                    tile_product(0, 4, 6);
                    if (channels) {
                        tile_load(7, b + 16, panel * 4);
                        tile_product(1, 4, 7);
                    }
                    if (rows) {
                        tile_load(5, a + 16 * static_cast<ptrdiff_t>(depth), apart);
                        tile_product(2, 5, 6);
                        if (channels) tile_product(3, 5, 7);
                    }
                }
                tile_store(0, c, out);
                if (channels) tile_store(1, c + 16, out);
                if (rows) tile_store(2, c + 16 * static_cast<ptrdiff_t>(outputs), out);
                if (rows && channels) tile_store(3, c + 16 * static_cast<ptrdiff_t>(outputs) + 16, out);
            }
    }
#endif

    // One tile's products, transformed back.
    void leave(const float* from, ptrdiff_t plane, const Place& place) const {
        for (int c = 0; c < outputs; c += WIDTH) {
            Vector half[24], line[6];
            for (int j = 0; j < 6; ++j) {
                for (int i = 0; i < 6; ++i) line[i] = load(from + (6 * i + j) * plane + c);
                backward(line, half + j, 6);
            }
            put(half, place, c, outputs);
        }
    }

    // The second half of the way back, of a vector of channels from c: to what of a tile's 4x4 pixels lies in the image.
    inline void put(const Vector* half, const Place& place, int c, int channels) const {
        const int high = std::min(4, height - place.top), wide = std::min(4, width - place.left);
        const Vector offset = bias ? load(bias + c) : Vector{};
        const ptrdiff_t row = static_cast<ptrdiff_t>(width) * channels;
        Value* const to = y + (place.n * height + place.top) * row + static_cast<ptrdiff_t>(place.left) * channels + c;
        if (high < 4 || wide < 4)
            write(half, to, row, channels, offset, add, relu, high, wide);
        else if (add)
            write(half, to, row, channels, offset, true, relu, 4, 4);
        else if (relu)
            write(half, to, row, channels, offset, false, true, 4, 4);
        else
            write(half, to, row, channels, offset, false, false, 4, 4);
    }

    // To lines of `high` by `wide` pixels. Always inlined, for most tiles call it with constants (the copies round alike: all
    // factors are powers of two), and with values in place of members, which compilers read again after each store, as
    // vectors may alias them.
    static inline __attribute__((always_inline)) void write(const Vector* half, Value* to, ptrdiff_t row, ptrdiff_t channels, Vector offset, bool add, bool relu, int high, int wide) {
        for (int i = 0; i < high; ++i, to += row) {
            Vector line[4];
            backward(half + 6 * i, line, 1);
            for (int j = 0; j < wide; ++j) {
                Vector value = line[j] + offset;
                if (add) value += load(to + j * channels);
                if (relu) value = value < 0.0f ? Vector{} : value;  // NaN stays
                store(to + j * channels, value);
            }
        }
    }
};

// Other convolutions, by their definition: each result is a sum over taps, pixels at places relative to its own. A transposed
// convolution of stride 2 is four of them, phases: for even and odd lines and columns of the result.
template <class Kind>
struct Direct {
    typedef typename Kind::Value Value;
    typedef typename Kind::Factor Factor;
    static constexpr int ROWS = Kind::ROWS;

    const Value* x;
    Value* y;
    const Value* weights;
    const float* bias;
    const Value* enlarged;
    const int* taps;
    int phases, count, height, width, inputs, outputs, stride;
    bool add, relu;

    // Results of a phase in a column and in a line of it; how far apart they are in y.
    int high() const { return (height + stride - 1) / stride; }
    int wide() const { return (width + stride - 1) / stride; }
    int apart() const { return phases == 1 ? 1 : 2; }
    // Channels of pixels that were copied: whole factors.
    int channels() const { return (inputs + Kind::PAIR - 1) / Kind::PAIR * Kind::PAIR; }
    // Values of a window of pixels for ROWS results, of which taps reach 3 lines and columns at most; bytes of all at once.
    ptrdiff_t window() const { return static_cast<ptrdiff_t>(3) * ((ROWS - 1) * stride + 3) * channels(); }
    size_t memory() const { return room<Value>(AT_ONCE * window()); }

    // A line of results of a phase.
    void run(ptrdiff_t n, int line, int phase, Value* memory) const {
        const int* tap = taps + 2 * count * phase;
        int above = tap[0], below = tap[0], before = tap[1], after = tap[1];
        for (int t = 1; t < count; ++t) {
            above = std::min(above, tap[2 * t]), below = std::max(below, tap[2 * t]);
            before = std::min(before, tap[2 * t + 1]), after = std::max(after, tap[2 * t + 1]);
        }
        const ptrdiff_t size = static_cast<ptrdiff_t>(count) * channels() * outputs;
        const Value* const weight = weights + size * phase;
        const int top = line * stride + above, panel = outputs % (2 * WIDTH) == 0 ? 2 * WIDTH : WIDTH;
        const bool whole = top >= 0 && line * stride + below < height && inputs == channels();
        // Some blocks for one panel of weights, then for the next, so that both stay in the cache.
        for (int begin = 0; begin < wide(); begin += AT_ONCE * ROWS) {
            const Value* from[AT_ONCE];
            ptrdiff_t row[AT_ONCE];
            const int blocks = std::min(AT_ONCE, (wide() - begin + ROWS - 1) / ROWS);
            for (int i = 0; i < blocks; ++i) {
                const int first = begin + i * ROWS, left = first * stride + before, right = (first + ROWS - 1) * stride + after;
                from[i] = x + ((n * height + line * stride) * static_cast<ptrdiff_t>(width) + first * stride) * inputs;
                row[i] = static_cast<ptrdiff_t>(width) * inputs;
                if (whole && left >= 0 && right < width) continue;
                Value* const copied = memory + i * window();
                row[i] = static_cast<ptrdiff_t>(right - left + 1) * channels();
                copy(n, top, below - above + 1, left, right - left + 1, copied);
                from[i] = copied - above * row[i] - static_cast<ptrdiff_t>(before) * channels();
            }
            for (int o = 0; o < outputs; o += panel) {
                const Value* of_panel = weight + static_cast<ptrdiff_t>(o) * count * channels();
                for (int i = 0; i < blocks; ++i)
                    if (panel == 2 * WIDTH)
                        block<2>(from[i], row[i], tap, of_panel, n, line, phase, begin + i * ROWS, o);
                    else
                        block<1>(from[i], row[i], tap, of_panel, n, line, phase, begin + i * ROWS, o);
            }
        }
    }

    // Pixels from (top, left); zeros outside of the image, and in channels that it lacks.
    void copy(ptrdiff_t n, int top, int lines, int left, int columns, Value* to) const {
        std::memset(to, 0, sizeof(Value) * lines * columns * channels());
        const int begin = std::max(0, -left), end = std::min(columns, width - left);
        for (int i = std::max(0, -top); i < std::min(lines, height - top); ++i) {
            const Value* from = x + ((n * height + top + i) * static_cast<ptrdiff_t>(width) + left) * inputs;
            Value* line = to + static_cast<ptrdiff_t>(i) * columns * channels();
            if (inputs == channels()) {
                if (begin < end) std::memcpy(line + begin * inputs, from + begin * inputs, sizeof(Value) * (end - begin) * inputs);
            } else {
                int j = begin;
                if (sizeof(Value) == 2 && inputs == 3)  // of pictures: a pixel, and the first value of the next, at once
                    for (; j < end - 1; ++j) {
                        uint64_t pixel;
                        std::memcpy(&pixel, from + j * 3, sizeof(pixel));
                        pixel &= 0xffffffffffffull;
                        std::memcpy(line + j * 4, &pixel, sizeof(pixel));
                    }
                for (; j < end; ++j)
                    for (int c = 0; c < inputs; ++c) line[j * channels() + c] = from[j * inputs + c];
            }
        }
    }

    // ROWS results of a line from `first`, channels from o; `from` is the pixel of the first, lines `row` values apart.
    template <int VECTORS>
    void block(const Value* from, ptrdiff_t row, const int* tap, const Value* weight, ptrdiff_t n, int line, int phase, int first, int o) const {
        const int depth = channels() / Kind::PAIR;
        const Factor* b = reinterpret_cast<const Factor*>(weight);
        Vector sum[ROWS][VECTORS];
        const ptrdiff_t next = static_cast<ptrdiff_t>(stride) * depth;
#if defined(STREAMDEBLUR_TILES)
        if constexpr (std::is_same_v<Kind, Tiled>) {
            const int step = Kind::step(inputs) / 2;
            tile_zero(0);
            tile_zero(1);
            for (int t = 0; t < count; ++t) {
                const Factor* a = reinterpret_cast<const Factor*>(from + tap[2 * t] * row + static_cast<ptrdiff_t>(tap[2 * t + 1]) * channels());
                for (int k = 0; k < depth; k += step, b += step * VECTORS * WIDTH) {
                    tile_load(4, a + k, next * 4);
                    tile_load(6, b, VECTORS * 64);
                    tile_product(0, 4, 6);
                    if (VECTORS == 2) {
                        tile_load(7, b + WIDTH, VECTORS * 64);
                        tile_product(1, 4, 7);
                    }
                }
            }
            tile_store(0, &sum[0][0], VECTORS * 64);
            if (VECTORS == 2) tile_store(1, &sum[0][VECTORS - 1], VECTORS * 64);
            if (bias)
                for (int r = 0; r < ROWS; ++r)
                    for (int v = 0; v < VECTORS; ++v) sum[r][v] += load(bias + o + v * WIDTH);
            return leave<VECTORS>(sum, n, line, phase, first, o);
        }
#endif
        for (int v = 0; v < VECTORS; ++v) {
            const Vector offset = bias ? load(bias + o + v * WIDTH) : Vector{};
            for (int r = 0; r < ROWS; ++r) sum[r][v] = offset;
        }
        for (int t = 0; t < count; ++t) {
            const Factor* a = reinterpret_cast<const Factor*>(from + tap[2 * t] * row + static_cast<ptrdiff_t>(tap[2 * t + 1]) * channels());
            for (int k = 0; k < depth; ++k, b += VECTORS * WIDTH) {
                Vector factors[VECTORS];
                for (int v = 0; v < VECTORS; ++v) factors[v] = Kind::factors(b + v * WIDTH);
                for (int r = 0; r < ROWS; ++r)
                    for (int v = 0; v < VECTORS; ++v) sum[r][v] = Kind::multiply(sum[r][v], a[r * next + k], factors[v]);
            }
        }
        leave<VECTORS>(sum, n, line, phase, first, o);
    }

    // Those of the sums that are results.
    template <int VECTORS>
    void leave(const Vector (&sum)[ROWS][VECTORS], ptrdiff_t n, int line, int phase, int first, int o) const {
        const int down = line * apart() + phase / 2, live = wide() - first;
        const ptrdiff_t lines = static_cast<ptrdiff_t>(high()) * apart(), columns = static_cast<ptrdiff_t>(wide()) * apart();
        for (int r = 0; r < ROWS; ++r)
            if (r < live) {
                const ptrdiff_t across = static_cast<ptrdiff_t>(first + r) * apart() + phase % 2;
                Value* to = y + ((n * lines + down) * columns + across) * outputs + o;
                const Value* small = enlarged + (enlarged ? ((n * (lines / 2) + down / 2) * (columns / 2) + across / 2) * outputs + o : 0);
                for (int v = 0; v < VECTORS; ++v) {
                    Vector value = sum[r][v];
                    if (add) value += load(to + v * WIDTH);
                    if (enlarged) value += load(small + v * WIDTH);
                    if (relu) value = value < 0.0f ? Vector{} : value;  // NaN stays
                    store(to + v * WIDTH, value);
                }
            }
    }
};

// As streamdeblur_direct.
template <class Kind>
int convolve(const Direct<Kind>& job, int batch, int threads) {
    if (batch < 1 || job.height < 1 || job.width < 1) return 0;
    const long lines = static_cast<long>(batch) * job.high() * job.phases;
    int failed = 0;
#pragma omp parallel num_threads(threads) if (threads > 1 && lines > 1)
    {
        typename Kind::Value* const memory = reinterpret_cast<typename Kind::Value*>(scratch(job.memory()));
        Kind::begin(job.inputs);
#pragma omp for schedule(dynamic, 4)
        for (long i = 0; i < lines; ++i) {
            if (!memory) {
#pragma omp atomic write
                failed = 1;
                continue;
            }
            // The phases of a line follow each other: they read the same pixels and write the same lines.
            job.run(i / job.phases / job.high(), static_cast<int>(i / job.phases % job.high()), static_cast<int>(i % job.phases), memory);
        }
        Kind::end();
    }
    return failed;
}

// The gradient of the weights of a Convolution, transformed: sums over all tiles.
template <class Kind>
struct WeightGradient {
    typedef typename Kind::Value Value;
    typedef typename Kind::Factor Factor;
    static constexpr int PAIR = Kind::PAIR;

    const Value* x;
    const Value* g;
    int height, width, inputs, outputs;

    // As Convolution's; `tiles` is a multiple of TOGETHER. Matrices are of (channels / WIDTH, tiles / PAIR, WIDTH) factors: with
    // lines of all channels, many lines of 64 and more would fall into few sets of the first cache.
    ptrdiff_t plane_in(int tiles) const { return static_cast<ptrdiff_t>(tiles) * inputs / PAIR + APART / sizeof(Factor); }
    ptrdiff_t plane_out(int tiles) const { return static_cast<ptrdiff_t>(tiles) * outputs / PAIR + APART / sizeof(Factor); }
    static constexpr size_t COLUMNS = sizeof(Vector) * 36 * TOGETHER;
    size_t memory(int tiles) const { return COLUMNS + room<Factor>(36 * plane_in(tiles)) + room<Factor>(36 * plane_out(tiles)); }

    // As Convolution::run, to sums (36, inputs, outputs) and, unless that is nullptr, bias (outputs).
    void run(const Tiles& where, long first, int count, int tiles, char* memory, float* sums, float* bias) const {
        Vector* const columns = reinterpret_cast<Vector*>(memory);
        Factor* const transformed = reinterpret_cast<Factor*>(memory + COLUMNS);
        Factor* const gradients = reinterpret_cast<Factor*>(memory + COLUMNS + room<Factor>(36 * plane_in(tiles)));
        const int depth = (count + PAIR - 1) / PAIR;
        const ptrdiff_t apart = static_cast<ptrdiff_t>(tiles) / PAIR * WIDTH;
        Place places[TOGETHER], next = where.at(first);
        for (int t = 0; t < count; t += TOGETHER) {
            const int there = std::min(TOGETHER, count - t);
            next = where.take(next, there, places);
            enter(places, there, transformed + t / PAIR * WIDTH, apart, plane_in(tiles), columns);
            for (int s = 0; s < there; s += PAIR) widen(places + s, there - s, gradients + (t + s) / PAIR * WIDTH, apart, plane_out(tiles), bias);
        }
        for (int k = 0; k < 36; ++k) {
            const Factor* from = transformed + k * plane_in(tiles);
            const Factor* gradient = gradients + k * plane_out(tiles);
            float* to = sums + static_cast<ptrdiff_t>(k) * inputs * outputs;
            if (outputs % (2 * WIDTH) == 0)
                product<2>(from, gradient, apart, to, depth);
            else
                product<1>(from, gradient, apart, to, depth);
        }
    }

    template <int VECTORS>
    void product(const Factor* from, const Factor* gradients, ptrdiff_t apart, float* to, int depth) const {
        for (int o = 0; o < outputs; o += VECTORS * WIDTH)
            for (int i = 0; i < inputs; i += CHANNELS)
                accumulate<Kind, VECTORS>(from + i / WIDTH * apart + i % WIDTH, gradients + o / WIDTH * apart, apart,
                                          to + static_cast<ptrdiff_t>(i) * outputs + o, outputs, depth);
    }

    // The input of `count` tiles, transformed: PAIR of them side by side, or one and zeros.
    void enter(const Place* places, int count, Factor* to, ptrdiff_t apart, ptrdiff_t plane, Vector* columns) const {
        const Images<Value> images{x, height, width, inputs};
        for (int c = 0; c < inputs; c += WIDTH, to += apart) {
            const Vector* at[TOGETHER];
            images.down(places, count, c, columns, at);
            for (int s = 0; s < count; s += PAIR) enter(at[s], s + 1 < count ? at[s + 1] : nullptr, to + s / PAIR * WIDTH, plane);
        }
    }

    static void enter(const Vector* first, const Vector* second, Factor* to, ptrdiff_t plane) {
        for (int i = 0; i < 6; ++i, to += 6 * plane) {
            Vector one[6], two[6] = {};
            across(first, i, one);
            if (PAIR > 1 && second) across(second, i, two);
            for (int j = 0; j < 6; ++j) Kind::interleave(to + j * plane, one[j], two[j]);
        }
    }

    // Of gradients likewise, of one pair: 4x4 pixels a tile, of which those outside of the image are 0.
    void widen(const Place* places, int count, Factor* to, ptrdiff_t apart, ptrdiff_t plane, float* bias) const {
        for (int c = 0; c < outputs; c += WIDTH, to += apart) {
            const bool both = PAIR > 1 && count > 1;
            Vector one[24], two[24], sum = {};
            down(places[0], c, one, sum);
            if (both) down(places[1], c, two, sum);
            if (bias) store(bias + c, load(bias + c) + sum);
            widen(one, both ? two : nullptr, to, plane);
        }
    }

    static void widen(const Vector* one, const Vector* two, Factor* to, ptrdiff_t plane) {
        for (int i = 0; i < 6; ++i, to += 6 * plane) {
            Vector first[6], second[6] = {};
            spread(one + 4 * i, first, 1);
            if (PAIR > 1 && two) spread(two + 4 * i, second, 1);
            for (int j = 0; j < 6; ++j) Kind::interleave(to + j * plane, first[j], second[j]);
        }
    }

    // The first half of the gradients of a tile, channels from c: six lines of four; what they are is added to `sum`.
    inline void down(const Place& place, int c, Vector* half, Vector& sum) const {
        const int high = std::min(4, height - place.top), wide = std::min(4, width - place.left);
        const ptrdiff_t row = static_cast<ptrdiff_t>(width) * outputs;
        const Value* const from = g + (place.n * height + place.top) * row + static_cast<ptrdiff_t>(place.left) * outputs + c;
        if (high < 4 || wide < 4)
            down(from, row, outputs, high, wide, half, sum);
        else
            down(from, row, outputs, 4, 4, half, sum);
    }

    static inline __attribute__((always_inline)) void down(const Value* from, ptrdiff_t row, ptrdiff_t step, int high, int wide, Vector* half, Vector& sum) {
        for (int j = 0; j < 4; ++j, from += step) {
            Vector line[4];
            for (int i = 0; i < 4; ++i) line[i] = i < high && j < wide ? load(from + i * row) : Vector{};
            sum += (line[0] + line[1]) + (line[2] + line[3]);
            spread(line, half + j, 4);
        }
    }
};

// As streamdeblur_winograd.
template <class Kind>
int convolve(const Convolution<Kind>& job, int batch, int tiles, int threads) {
    if (batch < 1 || job.height < 1 || job.width < 1) return 0;
    const Tiles where{job.height, job.width};
    const long all = where.of(batch);
    // In even parts for the threads, where there are few.
    tiles = static_cast<int>(std::min<long>(tiles, (all + std::max(threads, 1) - 1) / std::max(threads, 1)));
    tiles = (tiles + Kind::ROWS - 1) / Kind::ROWS * Kind::ROWS;
    const long runs = (all + tiles - 1) / tiles;
    int failed = 0;
#pragma omp parallel num_threads(threads) if (threads > 1 && runs > 1)
    {
        char* const memory = scratch(job.memory(tiles));
        Kind::begin(job.inputs);
#pragma omp for schedule(dynamic, 1)
        for (long i = 0; i < runs; ++i) {
            if (!memory) {
#pragma omp atomic write
                failed = 1;
                continue;
            }
            job.run(where, i * tiles, static_cast<int>(std::min<long>(tiles, all - i * tiles)), tiles, memory);
        }
        Kind::end();
    }
    return failed;
}

// Weights of 3x3 taps, with the strides of their dimensions in values.
template <class T>
struct Taps {
    T* first;
    int outputs, inputs;
    ptrdiff_t output, input, down, across;

    T& at(int o, int i, int h, int w) const { return first[o * output + i * input + h * down + w * across]; }
};

// As streamdeblur_winograd_pack.
template <class Kind>
void pack(const Taps<const float>& weights, typename Kind::Value* to) {
    const int panel = weights.outputs % (2 * WIDTH) == 0 ? 2 * WIDTH : WIDTH, depth = weights.inputs / Kind::PAIR;
    const ptrdiff_t plane = static_cast<ptrdiff_t>(depth) * weights.outputs;
    typename Kind::Factor* const out = reinterpret_cast<typename Kind::Factor*>(to);
    for (int o = 0; o < weights.outputs; o += WIDTH)
        for (int i = 0; i < depth; ++i) {
            Vector transformed[2][36];
            for (int p = 0; p < Kind::PAIR; ++p) {
                Vector half[18], line[6];
                for (int w = 0; w < 3; ++w) {
                    Vector taps[3];
                    for (int h = 0; h < 3; ++h)
                        for (int lane = 0; lane < WIDTH; ++lane) taps[h][lane] = weights.at(o + lane, i * Kind::PAIR + p, h, w);
                    transform(taps, line);
                    for (int h = 0; h < 6; ++h) half[3 * h + w] = line[h];
                }
                for (int h = 0; h < 6; ++h) transform(half + 3 * h, transformed[p] + 6 * h);
            }
            const ptrdiff_t place = (static_cast<ptrdiff_t>(o / panel) * depth + i) * panel + o % panel;
            for (int k = 0; k < 36; ++k) {
                const ptrdiff_t close = (((static_cast<ptrdiff_t>(o) / WIDTH * 6 + k % 6) * depth + i) * 6 + k / 6) * WIDTH;
                Kind::interleave(out + (is_close<Kind>(weights.inputs, weights.outputs) ? close : k * plane + place), transformed[0][k], transformed[Kind::PAIR - 1][k]);
            }
        }
}

// sums (36, inputs, outputs), gradients of transformed weights, to those of the weights.
void unpack(const float* sums, const Taps<float>& to) {
    const ptrdiff_t plane = static_cast<ptrdiff_t>(to.inputs) * to.outputs;
    for (int i = 0; i < to.inputs; ++i)
        for (int o = 0; o < to.outputs; o += WIDTH) {
            Vector half[18], line[6], taps[3];
            for (int w = 0; w < 6; ++w) {
                for (int h = 0; h < 6; ++h) line[h] = load(sums + (6 * h + w) * plane + static_cast<ptrdiff_t>(i) * to.outputs + o);
                turn_back(line, taps);
                for (int h = 0; h < 3; ++h) half[6 * h + w] = taps[h];
            }
            for (int h = 0; h < 3; ++h) {
                turn_back(half + 6 * h, taps);
                for (int w = 0; w < 3; ++w)
                    for (int lane = 0; lane < WIDTH; ++lane) to.at(o + lane, i, h, w) = taps[w][lane];
            }
        }
}

// As streamdeblur_winograd_gradient.
template <class Kind>
int differentiate(const WeightGradient<Kind>& job, const Taps<float>& weights, float* bias, float* memory, int batch, int tiles, int parts, int threads) {
    const int inputs = job.inputs, outputs = job.outputs;
    if (batch < 1 || job.height < 1 || job.width < 1) parts = 1;
    tiles = (tiles + TOGETHER - 1) / TOGETHER * TOGETHER;
    const Tiles where{job.height, job.width};
    const long count = where.of(batch), runs = (count + tiles - 1) / tiles;
    const ptrdiff_t all = static_cast<ptrdiff_t>(36) * inputs * outputs;
    int failed = 0;
#pragma omp parallel for schedule(dynamic, 1) num_threads(threads) if (threads > 1 && parts > 1)
    for (int part = 0; part < parts; ++part) {
        char* const own = scratch(job.memory(tiles));
        if (!own) {
#pragma omp atomic write
            failed = 1;
            continue;
        }
        float* const sum = memory + part * (all + outputs);
        std::memset(sum, 0, sizeof(float) * (all + outputs));
        for (long i = runs * part / parts; i < runs * (part + 1) / parts; ++i)
            job.run(where, i * tiles, static_cast<int>(std::min<long>(tiles, count - i * tiles)), tiles, own, sum, bias ? sum + all : nullptr);
    }
    if (failed) return failed;
    for (int part = 1; part < parts; ++part) {
        const float* sum = memory + part * (all + outputs);
        for (ptrdiff_t k = 0; k < all + outputs; ++k) memory[k] += sum[k];
    }
    unpack(memory, weights);
    if (bias) std::memcpy(bias, memory + all, sizeof(float) * outputs);
    return 0;
}

}  // namespace

extern "C" {

// What numbers of channels have to be multiples of.
int streamdeblur_width() { return WIDTH; }

// Whether one call uses several threads.
int streamdeblur_parallel() {
#ifdef _OPENMP
    return 1;
#else
    return 0;
#endif
}

// Whether bfloat16 is taken, `half` below.
int streamdeblur_half() {
#if defined(__AVX512BF16__)
    return 1;
#else
    return 0;
#endif
}

// Whether bfloat16 is multiplied by AMX. Asks the system for it.
int streamdeblur_tiles() {
#if defined(STREAMDEBLUR_TILES)
    return tiles_allowed();
#else
    return 0;
#endif
}

// y (batch, height, width, outputs) = convolution of x (batch, height, width, inputs), or y + it with `add`; then ReLU
// with `relu`. Both are float32, or bfloat16 with `half`. weights: of streamdeblur_winograd_pack. bias: may be nullptr.
// tiles: in a run, at most. threads: at work at most. Returns 0, or 1 where a thread had no memory.
int streamdeblur_winograd(const void* x, void* y, const void* weights, const float* bias, int batch, int height, int width,
                          int inputs, int outputs, int half, int add, int relu, int tiles, int threads) {
    const auto run = [&](auto kind) {
        typedef decltype(kind) Kind;
        typedef typename Kind::Value Value;
        return convolve(Convolution<Kind>{static_cast<const Value*>(x), static_cast<Value*>(y), static_cast<const Value*>(weights), bias,
                                          height, width, inputs, outputs, add != 0, relu != 0},
                        batch, tiles, threads);
    };
#if defined(STREAMDEBLUR_TILES)
    if (half && inputs % 16 == 0 && tiles_allowed()) return run(Tiled{});
#endif
#if defined(__AVX512BF16__)
    if (half) return run(Double{});
#endif
    return half ? 1 : run(Single{});
}

// Another convolution of x (batch, height, width, inputs), of as many taps a phase as `count`, over y, or added to it with
// `add`; then `enlarged`, if it is not nullptr, of half y's height and width, is added, each of its pixels to four; then
// ReLU with `relu`. One phase with `stride`: y (batch, ceil(height / stride), ceil(width / stride), outputs). Four: twice the
// height and width; for even lines and even columns, even and odd, odd and even, odd and odd. taps: (phases, count, 2),
// lines and columns from a result's own pixel, -1 to 1. weights: (phases, outputs / panel, count, inputs, panel), in
// bfloat16 (phases, outputs / panel, count, inputs rounded up / 2, panel, 2), panel as in streamdeblur_winograd_pack.
// bias, threads, half and what it returns as with streamdeblur_winograd.
int streamdeblur_direct(const void* x, void* y, const void* weights, const float* bias, const void* enlarged, const int* taps,
                        int phases, int count, int batch, int height, int width, int inputs, int outputs, int stride, int half,
                        int add, int relu, int threads) {
    const auto run = [&](auto kind) {
        typedef decltype(kind) Kind;
        typedef typename Kind::Value Value;
        return convolve(Direct<Kind>{static_cast<const Value*>(x), static_cast<Value*>(y), static_cast<const Value*>(weights), bias,
                                     static_cast<const Value*>(enlarged), taps, phases, count, height, width, inputs, outputs, stride,
                                     add != 0, relu != 0},
                        batch, threads);
    };
#if defined(STREAMDEBLUR_TILES)
    if (half && inputs % 16 == 0 && tiles_allowed()) return run(Tiled{});
#endif
#if defined(__AVX512BF16__)
    if (half) return run(Double{});
#endif
    return half ? 1 : run(Single{});
}

// Weights (outputs, inputs, 3, 3), with strides in values, to those of streamdeblur_winograd: 36 x inputs x outputs values
// of (36, outputs / panel, inputs, panel), in bfloat16 of (36, outputs / panel, inputs / 2, panel, 2); panel is 2 widths
// where that divides outputs, else one. Or, for Convolution::close, with the 36 as (6 lines, 6 columns), of (outputs /
// width, columns, inputs, lines, width), in bfloat16 of (outputs / width, columns, inputs / 2, lines, width, 2).
void streamdeblur_winograd_pack(const float* weights, void* packed, int outputs, int inputs, ptrdiff_t output, ptrdiff_t input,
                                ptrdiff_t down, ptrdiff_t across, int half) {
    const Taps<const float> taps{weights, outputs, inputs, output, input, down, across};
#if defined(STREAMDEBLUR_TILES)
    if (half && inputs % 16 == 0 && tiles_allowed()) return pack<Tiled>(taps, static_cast<Half*>(packed));
#endif
#if defined(__AVX512BF16__)
    if (half) return pack<Double>(taps, static_cast<Half*>(packed));
#endif
    if (!half) pack<Single>(taps, static_cast<float*>(packed));
}

// The gradient of weights (outputs, inputs, 3, 3), written with strides in values, and of the bias (outputs, or nullptr),
// for g (batch, height, width, outputs), the gradient of the results; x and g are float32, or bfloat16 with `half`.
// memory: parts x (36 x inputs + 1) x outputs values. The work is cut into so many parts, whose sums are added in their
// order: a result depends on parts and tiles, not on threads.
int streamdeblur_winograd_gradient(const void* x, const void* g, float* weights, float* bias, float* memory, int batch, int height,
                                   int width, int inputs, int outputs, ptrdiff_t output, ptrdiff_t input, ptrdiff_t down, ptrdiff_t across,
                                   int half, int tiles, int parts, int threads) {
    const auto run = [&](auto kind) {
        typedef decltype(kind) Kind;
        typedef typename Kind::Value Value;
        return differentiate(WeightGradient<Kind>{static_cast<const Value*>(x), static_cast<const Value*>(g), height, width, inputs, outputs},
                             Taps<float>{weights, outputs, inputs, output, input, down, across}, bias, memory, batch, tiles, parts, threads);
    };
#if defined(__AVX512BF16__)
    if (half) return run(Double{});
#endif
    return half ? 1 : run(Single{});
}

}  // extern "C"
