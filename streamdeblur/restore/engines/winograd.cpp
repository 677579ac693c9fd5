// Convolutions of 3x3, stride 1, zeros around, float32, channels last, by Winograd's F(4x4, 3x3): 36 products where the
// definition has 144. Lavin and Gray, "Fast Algorithms for Convolutional Neural Networks", CVPR 2016, Sec. 4.3.
//
// Work is cut into runs of tiles of 4x4 results, line after line and image after image, small enough that what a run needs
// stays in the cache of a core: its tiles are transformed, multiplied with the transformed weights (36 matrix products), and
// transformed back with bias, sum and ReLU. A result does not depend on how the work was cut, nor on threads.
//
// The gradient of the weights is the other way round: the tiles of the input and of the results' gradient are
// transformed, and their 36 products summed over all tiles.
//
// The vectors are GCC's and Clang's (__attribute__((vector_size))): as wide as what this is compiled for.

#include <algorithm>
#include <cstddef>
#include <cstdlib>
#include <cstring>

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

// Values between the 36 matrices, so that their rows don't all fall into the same lines of the cache.
constexpr int APART = 16;

typedef float Vector __attribute__((vector_size(WIDTH * 4), aligned(4), may_alias));

inline Vector load(const float* from) { return *reinterpret_cast<const Vector*>(from); }
inline void store(float* to, Vector value) { *reinterpret_cast<Vector*>(to) = value; }

// B^T d: six values, `step` apart, to six.
inline void forward(const Vector* d, Vector* t, int step) {
    const Vector even = d[4] - 4.0f * d[2], odd = d[3] - 4.0f * d[1];
    const Vector near = d[4] - d[2], far = 2.0f * (d[3] - d[1]);
    t[0] = 4.0f * d[0] - 5.0f * d[2] + d[4];
    t[step] = even + odd;
    t[2 * step] = even - odd;
    t[3 * step] = near + far;
    t[4 * step] = near - far;
    t[5 * step] = 4.0f * d[1] - 5.0f * d[3] + d[5];
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

// ROWS rows of a (rows x depth) times a panel b (depth x VECTORS vectors), to c.
template <int VECTORS>
inline void multiply(const float* a, ptrdiff_t a_row, const float* b, float* c, ptrdiff_t c_row, int depth) {
    Vector sum[ROWS][VECTORS];
    for (int r = 0; r < ROWS; ++r)
        for (int v = 0; v < VECTORS; ++v) sum[r][v] = Vector{};
    for (int k = 0; k < depth; ++k) {
        Vector weight[VECTORS];
        for (int v = 0; v < VECTORS; ++v) weight[v] = load(b + (static_cast<ptrdiff_t>(k) * VECTORS + v) * WIDTH);
        for (int r = 0; r < ROWS; ++r)
            for (int v = 0; v < VECTORS; ++v) sum[r][v] += a[r * a_row + k] * weight[v];
    }
    for (int r = 0; r < ROWS; ++r)
        for (int v = 0; v < VECTORS; ++v) store(c + r * c_row + v * WIDTH, sum[r][v]);
}

// To CHANNELS rows of c: that many columns of a (depth x columns), turned, times VECTORS vectors of b (depth x columns).
template <int VECTORS>
inline void accumulate(const float* a, ptrdiff_t a_row, const float* b, ptrdiff_t b_row, float* c, ptrdiff_t c_row, int depth) {
    Vector sum[CHANNELS][VECTORS];
    for (int r = 0; r < CHANNELS; ++r)
        for (int v = 0; v < VECTORS; ++v) sum[r][v] = load(c + r * c_row + v * WIDTH);
    for (int k = 0; k < depth; ++k) {
        Vector value[VECTORS];
        for (int v = 0; v < VECTORS; ++v) value[v] = load(b + k * b_row + v * WIDTH);
        for (int r = 0; r < CHANNELS; ++r)
            for (int v = 0; v < VECTORS; ++v) sum[r][v] += a[k * a_row + r] * value[v];
    }
    for (int r = 0; r < CHANNELS; ++r)
        for (int v = 0; v < VECTORS; ++v) store(c + r * c_row + v * WIDTH, sum[r][v]);
}

// Memory of this thread, kept until it ends; nullptr where there is none. Its values are finite, or were a tile's.
float* scratch(size_t values) {
    struct Held {
        float* memory = nullptr;
        size_t values = 0;
        ~Held() { std::free(memory); }
    };
    static thread_local Held held;
    if (values > held.values) {
        const size_t bytes = (values * sizeof(float) + 63) / 64 * 64;
        std::free(held.memory);
        held.memory = static_cast<float*>(std::aligned_alloc(64, bytes));
        held.values = held.memory ? values : 0;
        if (held.memory) std::memset(held.memory, 0, bytes);
    }
    return held.memory;
}

// The 6x6 pixels from (top, left) of an image (height, width, inputs), transformed, to 36 matrices `plane` apart. border:
// room for 6x6 pixels.
void enter(const float* image, int height, int width, int inputs, int top, int left, float* to, ptrdiff_t plane, float* border) {
    ptrdiff_t row = static_cast<ptrdiff_t>(width) * inputs;
    const float* from = image + top * row + static_cast<ptrdiff_t>(left) * inputs;
    if (top < 0 || left < 0 || top + 6 > height || left + 6 > width) {
        std::memset(border, 0, sizeof(float) * 36 * inputs);
        const int begin = std::max(0, -left), end = std::min(6, width - left);
        for (int i = std::max(0, -top); i < std::min(6, height - top); ++i)
            std::memcpy(border + (i * 6 + begin) * inputs, from + i * row + static_cast<ptrdiff_t>(begin) * inputs, sizeof(float) * (end - begin) * inputs);
        from = border;
        row = 6 * inputs;
    }
    for (int c = 0; c < inputs; c += WIDTH) {
        Vector half[36], line[6];
        for (int j = 0; j < 6; ++j) {
            for (int i = 0; i < 6; ++i) line[i] = load(from + i * row + j * inputs + c);
            forward(line, half + j, 6);
        }
        for (int i = 0; i < 6; ++i) {
            forward(half + 6 * i, line, 1);
            for (int j = 0; j < 6; ++j) store(to + (6 * i + j) * plane + c, line[j]);
        }
    }
}

// Where the tiles of a batch lie: the tile of number `tile` is of image n and begins at (top, left).
struct Tiles {
    int across, down;

    Tiles(int height, int width) : across((width + 3) / 4), down((height + 3) / 4) {}
    long of(int batch) const { return static_cast<long>(batch) * down * across; }
    int left(long tile) const { return static_cast<int>(tile % across) * 4; }
    int top(long tile) const { return static_cast<int>(tile / across % down) * 4; }
    ptrdiff_t n(long tile) const { return tile / across / down; }
};

struct Convolution {
    const float* x;
    float* y;
    const float* weights;
    const float* bias;
    int height, width, inputs, outputs;
    bool add, relu;

    // The tiles first..first+count-1. transformed: 36 matrices of (tiles, inputs); products: 36 of (tiles, outputs);
    // border: 6x6 pixels.
    void run(const Tiles& tiles, long first, int count, ptrdiff_t plane_in, ptrdiff_t plane_out, float* transformed,
             float* products, float* border) const {
        const ptrdiff_t pixels = static_cast<ptrdiff_t>(height) * width;
        for (int t = 0; t < count; ++t)
            enter(x + tiles.n(first + t) * pixels * inputs, height, width, inputs, tiles.top(first + t) - 1, tiles.left(first + t) - 1,
                  transformed + static_cast<ptrdiff_t>(t) * inputs, plane_in, border);
        for (int k = 0; k < 36; ++k) {
            const float* from = transformed + k * plane_in;
            const float* weight = weights + static_cast<ptrdiff_t>(k) * inputs * outputs;
            float* to = products + k * plane_out;
            if (outputs % (2 * WIDTH) == 0)
                product<2>(from, weight, to, count);
            else
                product<1>(from, weight, to, count);
        }
        for (int t = 0; t < count; ++t)
            leave(products + static_cast<ptrdiff_t>(t) * outputs, plane_out, y + tiles.n(first + t) * pixels * outputs,
                  tiles.top(first + t), tiles.left(first + t));
    }

    template <int VECTORS>
    void product(const float* from, const float* weight, float* to, int count) const {
        for (int o = 0; o < outputs; o += VECTORS * WIDTH)
            for (int t = 0; t < count; t += ROWS)  // the last rows may be of no tile: nobody reads their products
                multiply<VECTORS>(from + static_cast<ptrdiff_t>(t) * inputs, inputs, weight + static_cast<ptrdiff_t>(o) * inputs,
                                  to + static_cast<ptrdiff_t>(t) * outputs + o, outputs, inputs);
    }

    // One tile's products, transformed back to what of its 4x4 pixels lies in the image.
    void leave(const float* from, ptrdiff_t plane, float* result, int top, int left) const {
        const int high = std::min(4, height - top), wide = std::min(4, width - left);
        for (int c = 0; c < outputs; c += WIDTH) {
            const Vector offset = bias ? load(bias + c) : Vector{};
            Vector half[24], line[6];
            for (int j = 0; j < 6; ++j) {
                for (int i = 0; i < 6; ++i) line[i] = load(from + (6 * i + j) * plane + c);
                backward(line, half + j, 6);
            }
            for (int i = 0; i < high; ++i) {
                backward(half + 6 * i, line, 1);
                float* to = result + (static_cast<ptrdiff_t>(top + i) * width + left) * outputs + c;
                for (int j = 0; j < wide; ++j) {
                    Vector value = line[j] + offset;
                    if (add) value += load(to + j * outputs);
                    if (relu) value = value < 0.0f ? Vector{} : value;  // NaN stays
                    store(to + j * outputs, value);
                }
            }
        }
    }
};

struct WeightGradient {
    const float* x;
    const float* g;
    int height, width, inputs, outputs;

    // As Convolution::run, to sums (36, inputs, outputs) and, unless that is nullptr, bias (outputs).
    void run(const Tiles& tiles, long first, int count, ptrdiff_t plane_in, ptrdiff_t plane_out, float* transformed,
             float* gradients, float* border, float* sums, float* bias) const {
        const ptrdiff_t pixels = static_cast<ptrdiff_t>(height) * width;
        for (int t = 0; t < count; ++t) {
            const ptrdiff_t n = tiles.n(first + t);
            const int top = tiles.top(first + t), left = tiles.left(first + t);
            enter(x + n * pixels * inputs, height, width, inputs, top - 1, left - 1, transformed + static_cast<ptrdiff_t>(t) * inputs, plane_in, border);
            widen(g + n * pixels * outputs, top, left, gradients + static_cast<ptrdiff_t>(t) * outputs, plane_out, bias);
        }
        for (int k = 0; k < 36; ++k)
            if (outputs % (2 * WIDTH) == 0)
                product<2>(transformed + k * plane_in, gradients + k * plane_out, sums + static_cast<ptrdiff_t>(k) * inputs * outputs, count);
            else
                product<1>(transformed + k * plane_in, gradients + k * plane_out, sums + static_cast<ptrdiff_t>(k) * inputs * outputs, count);
    }

    template <int VECTORS>
    void product(const float* from, const float* gradients, float* to, int count) const {
        for (int o = 0; o < outputs; o += VECTORS * WIDTH)
            for (int i = 0; i < inputs; i += CHANNELS)
                accumulate<VECTORS>(from + i, inputs, gradients + o, outputs, to + static_cast<ptrdiff_t>(i) * outputs + o, outputs, count);
    }

    // The 4x4 gradients of one tile, transformed; what lies outside of the image is 0.
    void widen(const float* gradient, int top, int left, float* to, ptrdiff_t plane, float* bias) const {
        const int high = std::min(4, height - top), wide = std::min(4, width - left);
        const float* from = gradient + (static_cast<ptrdiff_t>(top) * width + left) * outputs;
        for (int c = 0; c < outputs; c += WIDTH) {
            Vector half[24], line[6], sum = {};
            for (int j = 0; j < 4; ++j) {
                for (int i = 0; i < 4; ++i) {
                    line[i] = i < high && j < wide ? load(from + (static_cast<ptrdiff_t>(i) * width + j) * outputs + c) : Vector{};
                    sum += line[i];
                }
                spread(line, half + j, 4);
            }
            if (bias) store(bias + c, load(bias + c) + sum);
            for (int i = 0; i < 6; ++i) {
                spread(half + 4 * i, line, 1);
                for (int j = 0; j < 6; ++j) store(to + (6 * i + j) * plane + c, line[j]);
            }
        }
    }
};

}  // namespace

extern "C" {

// What numbers of channels have to be multiples of.
int streamdeblur_winograd_width() { return WIDTH; }

// Whether one call uses several threads.
int streamdeblur_winograd_parallel() {
#ifdef _OPENMP
    return 1;
#else
    return 0;
#endif
}

// y (batch, height, width, outputs) = convolution of x (batch, height, width, inputs), or y + it with `add`; then ReLU
// with `relu`. weights: (36, outputs / panel, inputs, panel), transformed; panel is 2 widths where that divides
// outputs, else one. bias: may be nullptr. tiles: in a run, at most. threads: at work at most. Returns 0, or 1 where a
// thread had no memory.
int streamdeblur_winograd(const float* x, float* y, const float* weights, const float* bias, int batch, int height, int width,
                          int inputs, int outputs, int add, int relu, int tiles, int threads) {
    if (batch < 1 || height < 1 || width < 1) return 0;
    const Convolution job{x, y, weights, bias, height, width, inputs, outputs, add != 0, relu != 0};
    const Tiles where(height, width);
    const long all = where.of(batch);
    // In even parts for the threads, where there are few.
    tiles = static_cast<int>(std::min<long>(tiles, (all + std::max(threads, 1) - 1) / std::max(threads, 1)));
    tiles = (tiles + ROWS - 1) / ROWS * ROWS;
    const long runs = (all + tiles - 1) / tiles;
    const ptrdiff_t plane_in = static_cast<ptrdiff_t>(tiles) * inputs + APART, plane_out = static_cast<ptrdiff_t>(tiles) * outputs + APART;
    int failed = 0;
#pragma omp parallel num_threads(threads) if (threads > 1 && runs > 1)
    {
        float* const memory = scratch(36 * (plane_in + plane_out + inputs));
#pragma omp for schedule(dynamic, 1)
        for (long i = 0; i < runs; ++i) {
            if (!memory) {
#pragma omp atomic write
                failed = 1;
                continue;
            }
            job.run(where, i * tiles, static_cast<int>(std::min<long>(tiles, all - i * tiles)), plane_in, plane_out, memory,
                    memory + 36 * plane_in, memory + 36 * (plane_in + plane_out));
        }
    }
    return failed;
}

// The gradient of the transformed weights, sums (36, inputs, outputs), and of the bias (outputs, or nullptr), for g
// (batch, height, width, outputs), the gradient of the results. memory: parts x (36 x inputs + 1) x outputs values. The
// work is cut into so many parts, whose sums are added in their order: a result depends on parts, not on threads.
int streamdeblur_winograd_gradient(const float* x, const float* g, float* sums, float* bias, float* memory, int batch, int height,
                                   int width, int inputs, int outputs, int tiles, int parts, int threads) {
    if (batch < 1 || height < 1 || width < 1) {
        std::memset(sums, 0, sizeof(float) * 36 * inputs * outputs);
        if (bias) std::memset(bias, 0, sizeof(float) * outputs);
        return 0;
    }
    const WeightGradient job{x, g, height, width, inputs, outputs};
    const Tiles where(height, width);
    const long count = where.of(batch), runs = (count + tiles - 1) / tiles;
    const ptrdiff_t plane_in = static_cast<ptrdiff_t>(tiles) * inputs + APART, plane_out = static_cast<ptrdiff_t>(tiles) * outputs + APART;
    const ptrdiff_t all = static_cast<ptrdiff_t>(36) * inputs * outputs;
    int failed = 0;
#pragma omp parallel for schedule(dynamic, 1) num_threads(threads) if (threads > 1 && parts > 1)
    for (int part = 0; part < parts; ++part) {
        float* const room = scratch(36 * (plane_in + plane_out + inputs));
        if (!room) {
#pragma omp atomic write
            failed = 1;
            continue;
        }
        float* const own = memory + part * (all + outputs);
        std::memset(own, 0, sizeof(float) * (all + outputs));
        for (long i = runs * part / parts; i < runs * (part + 1) / parts; ++i) {
            job.run(where, i * tiles, static_cast<int>(std::min<long>(tiles, count - i * tiles)), plane_in, plane_out, room,
                    room + 36 * plane_in, room + 36 * (plane_in + plane_out), own, bias ? own + all : nullptr);
        }
    }
    if (failed) return failed;
    for (int part = 0; part < parts; ++part) {
        const float* own = memory + part * (all + outputs);
        for (ptrdiff_t k = 0; k < all; ++k) sums[k] = part ? sums[k] + own[k] : own[k];
        for (int o = 0; bias && o < outputs; ++o) bias[o] = part ? bias[o] + own[all + o] : own[all + o];
    }
    return 0;
}

}  // extern "C"
