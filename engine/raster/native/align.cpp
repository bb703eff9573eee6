#include "kernels.hpp"

#include <cmath>

namespace deeplight {
namespace {

constexpr std::int64_t SCALE = 8;        // HR pixels per LR pixel
constexpr float FARTHEST = 1048576.0f;   // HR pixels; keeps wholes of offsets within 32 bits, whatever a model gives

// Where an HR pixel's centre lies between LR pixels of an axis, clamped to it.
struct Between {
    std::int64_t first, second;
    float share;
};

Between between(std::int64_t at, std::int64_t length) {
    const float place = (static_cast<float>(at) + 0.5f) / SCALE - 0.5f;
    const float whole = std::floor(place);
    const std::int64_t k = static_cast<std::int64_t>(whole);
    return {std::max<std::int64_t>(k, 0), std::min<std::int64_t>(k + 1, length - 1), place - whole};
}

// One row of HR pixels: the neighbour above left of where each is read, the steps to the others, and the shares.
struct Row {
    std::vector<std::int32_t> at, right, down;
    std::vector<float> x, y, across, along;

    explicit Row(std::int64_t width)
        : at(width), right(width), down(width), x(width), y(width), across(width / SCALE), along(width / SCALE) {}
};

void spread(const std::vector<float>& coarse, const std::vector<Between>& columns, std::vector<float>& out) {
    for (std::size_t c = 0; c < out.size(); ++c) {
        const float a = coarse[columns[c].first], b = coarse[columns[c].second];
        out[c] = a + (b - a) * columns[c].share;
    }
}

// Splits a coordinate's offset into its whole and its fraction, which keeps the fraction's bits wherever a tile lies.
std::int32_t split(float& offset) {
    float whole = std::floor(offset);
    offset -= whole;
    whole = whole > -FARTHEST ? whole : -FARTHEST;
    whole = whole < FARTHEST ? whole : FARTHEST;
    return static_cast<std::int32_t>(whole);
}

void places(const Alignment& job, std::int64_t r, const std::vector<Between>& columns, Row& row) {
    const std::int64_t coarse = job.width / SCALE, plane = job.height / SCALE * coarse;
    const Between rows = between(r, job.height / SCALE);
    const float* first = job.offset + rows.first * coarse;
    const float* second = job.offset + rows.second * coarse;
    for (std::int64_t c = 0; c < coarse; ++c) {
        row.across[c] = 8.0f * (first[c] + (second[c] - first[c]) * rows.share);
        row.along[c] = 8.0f * (first[plane + c] + (second[plane + c] - first[plane + c]) * rows.share);
    }
    spread(row.across, columns, row.x);
    spread(row.along, columns, row.y);
    const std::int32_t width = static_cast<std::int32_t>(job.width), last = width - 1;
    const std::int32_t bottom = static_cast<std::int32_t>(job.height) - 1;
    for (std::int32_t c = 0; c < width; ++c) {
        const std::int32_t left = c + split(row.x[c]), top = static_cast<std::int32_t>(r) + split(row.y[c]);
        const std::int32_t c0 = std::clamp(left, 0, last), c1 = std::clamp(left + 1, 0, last);
        const std::int32_t r0 = std::clamp(top, 0, bottom), r1 = std::clamp(top + 1, 0, bottom);
        row.at[c] = r0 * width + c0;
        row.right[c] = c1 - c0;
        row.down[c] = (r1 - r0) * width;
    }
}

void take(const float* DEEPLIGHT_RESTRICT values, const Row& row, std::int64_t width, float* DEEPLIGHT_RESTRICT out) {
    for (std::int64_t c = 0; c < width; ++c) {
        const std::int32_t left = row.at[c], right = left + row.right[c], down = row.down[c];
        const float upper = values[left] + (values[right] - values[left]) * row.x[c];
        const float a = values[left + down], b = values[right + down];
        const float lower = a + (b - a) * row.x[c];
        out[c] = upper + (lower - upper) * row.y[c];
    }
}

}  // namespace

void align(const Alignment& job, int threads) {
    std::vector<Between> columns;
    for (std::int64_t c = 0; c < job.width; ++c) columns.push_back(between(c, job.width / SCALE));
    const std::int64_t plane = job.height * job.width;
    parallel(job.height, threads, [&](std::int64_t begin, std::int64_t end) {
        Row row(job.width);
        for (std::int64_t r = begin; r < end; ++r) {
            places(job, r, columns, row);
            for (std::int64_t channel = 0; channel < job.channels; ++channel)
                take(job.values + channel * plane, row, job.width, job.out + channel * plane + r * job.width);
        }
    });
}

}  // namespace deeplight
