// Convolutions of 3x3, stride 1, zeros around, float32, channels last, by Winograd's F(4x4, 3x3): 36 products where the
// definition has 144. Lavin and Gray, "Fast Algorithms for Convolutional Neural Networks", CVPR 2016, Sec. 4.3.
//
// Work is cut into runs of tiles of 4x4 results along a line of the image, small enough that what a run needs stays in
// the cache of a core: its tiles are transformed, multiplied with the transformed weights (36 matrix products), and
// transformed back with bias, sum and ReLU. A result does not depend on how the work was cut, nor on threads.
//
// The vectors are GCC's and Clang's (__attribute__((vector_size))): as wide as what this is compiled for.

#include <algorithm>
#include <cstddef>
#include <cstdlib>
#include <cstring>

namespace {

// Values in a vector, and rows of a matrix product that are held in registers at a time.
#if defined(__AVX512F__)
constexpr int WIDTH = 16, ROWS = 12;
#elif defined(__AVX__)
constexpr int WIDTH = 8, ROWS = 6;
#else
constexpr int WIDTH = 4, ROWS = 6;
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

struct Convolution {
    const float* x;
    float* y;
    const float* weights;
    const float* bias;
    int height, width, inputs, outputs;
    bool add, relu;

    // The tiles first..first+count-1 of line `line` of tiles of image n. transformed: 36 matrices of (tiles, inputs);
    // products: 36 of (tiles, outputs); border: 6x6 pixels.
    void run(int n, int line, int first, int count, ptrdiff_t plane_in, ptrdiff_t plane_out, float* transformed,
             float* products, float* border) const {
        const float* image = x + static_cast<ptrdiff_t>(n) * height * width * inputs;
        for (int t = 0; t < count; ++t) enter(image, 4 * line - 1, 4 * (first + t) - 1, transformed + static_cast<ptrdiff_t>(t) * inputs, plane_in, border);
        for (int k = 0; k < 36; ++k) {
            const float* from = transformed + k * plane_in;
            const float* weight = weights + static_cast<ptrdiff_t>(k) * inputs * outputs;
            float* to = products + k * plane_out;
            if (outputs % (2 * WIDTH) == 0)
                product<2>(from, weight, to, count);
            else
                product<1>(from, weight, to, count);
        }
        float* result = y + static_cast<ptrdiff_t>(n) * height * width * outputs;
        for (int t = 0; t < count; ++t) leave(products + static_cast<ptrdiff_t>(t) * outputs, plane_out, result, 4 * line, 4 * (first + t));
    }

    template <int VECTORS>
    void product(const float* from, const float* weight, float* to, int count) const {
        for (int o = 0; o < outputs; o += VECTORS * WIDTH)
            for (int t = 0; t < count; t += ROWS)  // the last rows may be of no tile: nobody reads their products
                multiply<VECTORS>(from + static_cast<ptrdiff_t>(t) * inputs, inputs, weight + static_cast<ptrdiff_t>(o) * inputs,
                                  to + static_cast<ptrdiff_t>(t) * outputs + o, outputs, inputs);
    }

    // One tile's 6x6 pixels, transformed.
    void enter(const float* image, int top, int left, float* to, ptrdiff_t plane, float* border) const {
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

}  // namespace

extern "C" {

// What numbers of channels have to be multiples of.
int streamdeblur_winograd_width() { return WIDTH; }

// y (batch, height, width, outputs) = convolution of x (batch, height, width, inputs), or y + it with `add`; then ReLU
// with `relu`. weights: (36, outputs / panel, inputs, panel), transformed; panel is 2 widths where that divides
// outputs, else one. bias: may be nullptr. tiles: in a run, at most. threads: at work at most. Returns 0, or 1 where a
// thread had no memory.
int streamdeblur_winograd(const float* x, float* y, const float* weights, const float* bias, int batch, int height, int width,
                          int inputs, int outputs, int add, int relu, int tiles, int threads) {
    const Convolution job{x, y, weights, bias, height, width, inputs, outputs, add != 0, relu != 0};
    const int lines = (height + 3) / 4, across = (width + 3) / 4;
    tiles = (std::min(tiles, across) + ROWS - 1) / ROWS * ROWS;
    const int parts = (across + tiles - 1) / tiles;
    const long runs = static_cast<long>(batch) * lines * parts;
    const ptrdiff_t plane_in = static_cast<ptrdiff_t>(tiles) * inputs + APART, plane_out = static_cast<ptrdiff_t>(tiles) * outputs + APART;
    int failed = 0;
    (void)threads;
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
            const int first = static_cast<int>(i % parts) * tiles;
            job.run(static_cast<int>(i / parts / lines), static_cast<int>(i / parts % lines), first, std::min(tiles, across - first),
                    plane_in, plane_out, memory, memory + 36 * plane_in, memory + 36 * (plane_in + plane_out));
        }
    }
    return failed;
}

}  // extern "C"
