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

// Pixels [begin, end) of a row. beside: each is read one pixel further than the one before, and nothing is clamped.
struct Run {
    std::int32_t begin, end;
    bool beside;
};

constexpr std::int32_t SHORTEST = 8;    // pixels of a run from which the loop for it pays

// One row of HR pixels: the neighbour above left of where each is read, the steps to the others, and the shares.
struct Row {
    std::vector<std::int32_t> at, right, down;
    std::vector<float> x, y, across, along;
    std::vector<Run> runs;

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
inline std::int32_t split(float& offset) {
    float whole = std::floor(offset);
    offset -= whole;
    whole = whole > -FARTHEST ? whole : -FARTHEST;
    whole = whole < FARTHEST ? whole : FARTHEST;
    return static_cast<std::int32_t>(whole);
}

DEEPLIGHT_CLONES
void neighbours(std::int32_t r, std::int32_t height, std::int32_t width, float* DEEPLIGHT_RESTRICT x,
                float* DEEPLIGHT_RESTRICT y, std::int32_t* DEEPLIGHT_RESTRICT at,
                std::int32_t* DEEPLIGHT_RESTRICT right, std::int32_t* DEEPLIGHT_RESTRICT down) {
    const std::int32_t last = width - 1, bottom = height - 1;
    for (std::int32_t c = 0; c < width; ++c) {
        const std::int32_t left = c + split(x[c]), top = r + split(y[c]);
        const std::int32_t c0 = std::clamp(left, 0, last), c1 = std::clamp(left + 1, 0, last);
        const std::int32_t r0 = std::clamp(top, 0, bottom), r1 = std::clamp(top + 1, 0, bottom);
        at[c] = r0 * width + c0;
        right[c] = c1 - c0;
        down[c] = (r1 - r0) * width;
    }
}

void find_runs(Row& row) {
    const std::int32_t width = static_cast<std::int32_t>(row.at.size());
    row.runs.clear();
    for (std::int32_t begin = 0, end; begin < width; begin = end) {
        end = begin + 1;
        while (end < width && row.at[end] == row.at[end - 1] + 1 && row.right[end] == 1 &&
               row.down[end] == row.down[begin])
            ++end;
        const bool beside = row.right[begin] == 1 && end - begin >= SHORTEST;
        if (!beside && !row.runs.empty() && !row.runs.back().beside)
            row.runs.back().end = end;
        else
            row.runs.push_back({begin, end, beside});
    }
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
    neighbours(static_cast<std::int32_t>(r), static_cast<std::int32_t>(job.height),
               static_cast<std::int32_t>(job.width), row.x.data(), row.y.data(), row.at.data(), row.right.data(),
               row.down.data());
    find_runs(row);
}

// Runs have a dozen pixels or two, of which vectors of sixteen would leave most over.
DEEPLIGHT_CLONES_256
void take_beside(const float* DEEPLIGHT_RESTRICT upper, const float* DEEPLIGHT_RESTRICT lower,
                 const float* DEEPLIGHT_RESTRICT x, const float* DEEPLIGHT_RESTRICT y, std::int32_t n,
                 float* DEEPLIGHT_RESTRICT out) {
    for (std::int32_t c = 0; c < n; ++c) {
        const float above = upper[c] + (upper[c + 1] - upper[c]) * x[c];
        const float below = lower[c] + (lower[c + 1] - lower[c]) * x[c];
        out[c] = above + (below - above) * y[c];
    }
}

void take(const float* DEEPLIGHT_RESTRICT values, const Row& row, const Run& run, float* DEEPLIGHT_RESTRICT out) {
    for (std::int32_t c = run.begin; c < run.end; ++c) {
        const std::int32_t left = row.at[c], right = left + row.right[c], down = row.down[c];
        const float upper = values[left] + (values[right] - values[left]) * row.x[c];
        const float a = values[left + down], b = values[right + down];
        const float lower = a + (b - a) * row.x[c];
        out[c] = upper + (lower - upper) * row.y[c];
    }
}

void take_row(const float* values, const Row& row, float* out) {
    for (const Run& run : row.runs) {
        if (run.beside) {
            const float* upper = values + row.at[run.begin];
            take_beside(upper, upper + row.down[run.begin], row.x.data() + run.begin, row.y.data() + run.begin,
                        run.end - run.begin, out + run.begin);
        } else {
            take(values, row, run, out);
        }
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
                take_row(job.values + channel * plane, row, job.out + channel * plane + r * job.width);
        }
    });
}

}  // namespace deeplight
