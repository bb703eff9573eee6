// Pixel loops of deeplight.engine. Plain pointers, no Python. Every function is deterministic: a pixel's bits depend
// neither on the thread count nor on where a window starts.
#pragma once

#include <algorithm>
#include <cstdint>
#include <thread>
#include <vector>

// One copy per instruction set, chosen at load time, so that wheels stay portable. Only where it was measured to help:
// coordinates take two thirds of the time with it, while loops bound by memory or gathers gain nothing or lose.
// It needs ifunc, which glibc has and musl has not.
#if defined(__x86_64__) && defined(__GLIBC__) && defined(__GNUC__) && !defined(__clang__)
#define DEEPLIGHT_CLONES __attribute__((target_clones("avx512f", "avx2", "default")))
#define DEEPLIGHT_CLONES_256 __attribute__((target_clones("avx2", "default")))    // for short loops
#else
#define DEEPLIGHT_CLONES
#define DEEPLIGHT_CLONES_256
#endif

#if defined(__GNUC__)
#define DEEPLIGHT_RESTRICT __restrict__
#else
#define DEEPLIGHT_RESTRICT
#endif

namespace deeplight {

// Calls work(first, last) on equal shares of [0, count), one share per thread.
template <class Work>
void parallel(std::int64_t count, int threads, Work&& work) {
    const std::int64_t shares = std::max<std::int64_t>(1, std::min<std::int64_t>(threads, count));
    if (shares == 1) {
        work(std::int64_t{0}, count);
        return;
    }
    std::vector<std::thread> pool;
    pool.reserve(static_cast<std::size_t>(shares - 1));
    for (std::int64_t k = 1; k < shares; ++k)
        pool.emplace_back([&work, k, count, shares] { work(count * k / shares, count * (k + 1) / shares); });
    work(std::int64_t{0}, count / shares);
    for (auto& thread : pool) thread.join();
}

struct Conversion {
    std::int64_t bands;
    std::int64_t pixels;         // per band
    const double* scale;         // (bands)
    const double* offset;        // (bands)
    const double* nodata;        // (bands), NaN where there is none
    const std::uint8_t* mask;    // (pixels), nonzero = valid, or nullptr
    float* values;               // (bands, pixels)
    std::uint8_t* valid;         // (pixels)
    float low, high;             // values beyond them are invalid; within what float32 can hold, so that infinities are
};

// values = raw * scale + offset, in float32, or in float64 where T has more than 24 significant bits.
template <class T>
void to_physical(const T* raw, const Conversion& job, int threads);

// A coordinate mesh over `step * (nodes per axis - 1)` HR pixels per axis, nodes at pixel centres.
struct Mesh {
    std::int64_t row, col;       // HR pixel of node (0, 0)
    std::int64_t step;           // HR pixels between nodes, a power of two
    std::int64_t side;           // nodes per axis
    const double* nodes;         // (2, side, side): source row, column; k is the centre of pixel k; NaN = nowhere
};

struct Resampling {
    std::int64_t channels, height, width;    // of the source arrays
    std::int64_t row, col;                   // of the source arrays' corner in the source raster
    const float* values;                     // (channels, height, width)
    const std::uint8_t* mask;                // (height, width), nonzero = valid
    std::int64_t out_row, out_col, out_height, out_width;    // the window, in HR pixels
    float* out;                              // (channels, out_height, out_width), `out_plane` from channel to channel
    std::int64_t out_plane;
    std::uint8_t* out_mask;                  // (out_height, out_width)
};

// Masked bilinear: sum(w m v) / sum(w m) where sum(w m) >= 1/2, else 0 and invalid. Meshes must cover the window.
void resample(const Resampling& job, const std::vector<Mesh>& meshes, int threads);

struct Area {
    std::int64_t channels, height, width;    // of the source arrays
    std::int64_t fy, fx;                     // block size
    const float* values;
    const std::uint8_t* mask;
    float* out;                              // (channels, ceil(height / fy), ceil(width / fx))
    std::uint8_t* out_mask;
};

// Mean of each block's valid pixels, summed row by row in float64; valid where they are at least half of fy * fx.
void area_mean(const Area& job, int threads);

struct Alignment {
    std::int64_t channels, height, width;    // on the HR grid, sides multiples of 8
    const float* values;                     // (channels, height, width)
    const float* offset;                     // (2, height / 8, width / 8): x, y in LR pixels
    float* out;                              // (channels, height, width)
};

// Bilinear sample of the values at each pixel + 8 * offset, which is interpolated linearly; clamped to the array.
void align(const Alignment& job, int threads);

}  // namespace deeplight
