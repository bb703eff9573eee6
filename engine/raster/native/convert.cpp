#include <cmath>
#include <limits>
#include <type_traits>

#include "kernels.hpp"

namespace deeplight {
namespace {

// Pixels per pass: all bands of a chunk stay in the L2 cache until their mask is known.
constexpr std::int64_t CHUNK = 2048;

template <class T>
using Arithmetic = std::conditional_t<(std::numeric_limits<T>::digits > 24), double, float>;

template <class T>
struct Sentinel {
    bool present;
    T value;
};

// A nodata value that T cannot hold marks no pixel.
template <class T>
Sentinel<T> sentinel(double nodata) {
    if (std::isnan(nodata)) return {false, T{}};
    if constexpr (std::is_integral_v<T>) {
        constexpr double LOWEST = std::numeric_limits<T>::min(), HIGHEST = std::numeric_limits<T>::max();
        const bool fits = nodata == std::floor(nodata) && nodata >= LOWEST && nodata <= HIGHEST;
        return fits ? Sentinel<T>{true, static_cast<T>(nodata)} : Sentinel<T>{false, T{}};
    } else {
        return {true, static_cast<T>(nodata)};
    }
}

bool all_set(const std::uint8_t* ok, std::int64_t n) {
    std::uint8_t every = 1;
    for (std::int64_t i = 0; i < n; ++i) every &= ok[i];
    return every != 0;
}

void clear_invalid(float* DEEPLIGHT_RESTRICT out, const std::uint8_t* DEEPLIGHT_RESTRICT ok, std::int64_t n) {
    for (std::int64_t i = 0; i < n; ++i) out[i] = ok[i] ? out[i] : 0.0f;
}

template <class T>
void convert_band(const T* DEEPLIGHT_RESTRICT raw, double scale, double offset, Sentinel<T> nodata, float low,
                  float high, std::int64_t n, float* DEEPLIGHT_RESTRICT out, std::uint8_t* DEEPLIGHT_RESTRICT ok) {
    using Real = Arithmetic<T>;
    const Real a = static_cast<Real>(scale), b = static_cast<Real>(offset);
    if (nodata.present) {
        for (std::int64_t i = 0; i < n; ++i) {
            const float v = static_cast<float>(static_cast<Real>(raw[i]) * a + b);
            out[i] = v;
            ok[i] &= static_cast<std::uint8_t>((v >= low) & (v <= high) & (raw[i] != nodata.value));
        }
    } else {
        for (std::int64_t i = 0; i < n; ++i) {
            const float v = static_cast<float>(static_cast<Real>(raw[i]) * a + b);
            out[i] = v;
            ok[i] &= static_cast<std::uint8_t>((v >= low) & (v <= high));
        }
    }
}

template <class T>
void convert_chunk(const T* raw, const Conversion& job, std::int64_t first, std::int64_t n) {
    std::uint8_t* ok = job.valid + first;
    if (job.mask)
        for (std::int64_t i = 0; i < n; ++i) ok[i] = job.mask[first + i] != 0;
    else
        std::fill_n(ok, n, std::uint8_t{1});
    for (std::int64_t c = 0; c < job.bands; ++c) {
        const std::int64_t at = c * job.pixels + first;
        convert_band(raw + at, job.scale[c], job.offset[c], sentinel<T>(job.nodata[c]), job.low, job.high, n,
                     job.values + at, ok);
    }
    if (all_set(ok, n)) return;
    for (std::int64_t c = 0; c < job.bands; ++c) clear_invalid(job.values + c * job.pixels + first, ok, n);
}

}  // namespace

template <class T>
void to_physical(const T* raw, const Conversion& job, int threads) {
    const std::int64_t chunks = (job.pixels + CHUNK - 1) / CHUNK;
    parallel(chunks, threads, [&](std::int64_t begin, std::int64_t end) {
        for (std::int64_t k = begin; k < end; ++k)
            convert_chunk(raw, job, k * CHUNK, std::min(CHUNK, job.pixels - k * CHUNK));
    });
}

template void to_physical(const std::uint8_t*, const Conversion&, int);
template void to_physical(const std::int8_t*, const Conversion&, int);
template void to_physical(const std::uint16_t*, const Conversion&, int);
template void to_physical(const std::int16_t*, const Conversion&, int);
template void to_physical(const std::uint32_t*, const Conversion&, int);
template void to_physical(const std::int32_t*, const Conversion&, int);
template void to_physical(const float*, const Conversion&, int);
template void to_physical(const double*, const Conversion&, int);

}  // namespace deeplight
