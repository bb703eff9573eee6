#include "kernels.hpp"

namespace deeplight {
namespace {

// Longest run of HR pixels handled at once; its scratch stays in the L1 cache.
constexpr std::int64_t RUN = 512;
// Sum of weights from which a pixel is valid: one half, less the rounding of four float32 weights.
constexpr float HALF = 0.499999f;

struct Taps {
    alignas(64) float fr[RUN], fc[RUN];       // fractions
    alignas(64) std::int32_t quad[RUN];       // index of the 2x2 neighbourhood
    alignas(64) std::int32_t base[RUN];       // index of its upper-left pixel
    alignas(64) std::int32_t at[4][RUN];      // index per tap, of a valid pixel
    alignas(64) float weight[4][RUN];
    alignas(64) std::uint8_t bits[RUN];       // which of the four are valid
    alignas(64) std::uint8_t ok[RUN];
};

struct Line {
    double row, row_step;    // source row of the run's cell at its left node, and the difference to its right node
    double col, col_step;
    double inverse;          // 1 / mesh step
    std::int64_t phase;      // first pixel's distance from the left node
};

// Linear along the cell. Points outside the source get weight 1 on a neighbour that does not exist.
DEEPLIGHT_CLONES
void locate(const Resampling& job, const Line& line, std::int64_t n, std::int32_t* DEEPLIGHT_RESTRICT quad,
            std::int32_t* DEEPLIGHT_RESTRICT base, float* DEEPLIGHT_RESTRICT fr, float* DEEPLIGHT_RESTRICT fc) {
    const double row_low = static_cast<double>(job.row - 1), row_high = static_cast<double>(job.row + job.height);
    const double col_low = static_cast<double>(job.col - 1), col_high = static_cast<double>(job.col + job.width);
    const std::int32_t width = static_cast<std::int32_t>(job.width);
    const std::int32_t row0 = static_cast<std::int32_t>(job.row), col0 = static_cast<std::int32_t>(job.col);
    const std::int32_t phase = static_cast<std::int32_t>(line.phase), count = static_cast<std::int32_t>(n);
    for (std::int32_t j = 0; j < count; ++j) {
        const double t = static_cast<double>(phase + j) * line.inverse;
        double r = line.row + t * line.row_step;
        double c = line.col + t * line.col_step;
        const bool inside = (r >= row_low) & (r < row_high) & (c >= col_low) & (c < col_high);
        r = inside ? r : row_low;
        c = inside ? c : col_low;
        // floor() for r ≥ -1, without the library call that baseline x86-64 needs for it.
        const std::int32_t ir = static_cast<std::int32_t>(r + 1.0) - 1;
        const std::int32_t ic = static_cast<std::int32_t>(c + 1.0) - 1;
        fr[j] = static_cast<float>(r - static_cast<double>(ir));
        fc[j] = static_cast<float>(c - static_cast<double>(ic));
        quad[j] = (ir - row0 + 1) * (width + 1) + (ic - col0 + 1);
        base[j] = (ir - row0) * width + (ic - col0);
    }
}

DEEPLIGHT_CLONES
void weigh(std::int64_t n, const float* DEEPLIGHT_RESTRICT fr, const float* DEEPLIGHT_RESTRICT fc,
           float* DEEPLIGHT_RESTRICT w0, float* DEEPLIGHT_RESTRICT w1, float* DEEPLIGHT_RESTRICT w2,
           float* DEEPLIGHT_RESTRICT w3) {
    for (std::int64_t j = 0; j < n; ++j) {
        const float r = fr[j], c = fc[j], top = 1.0f - r, left = 1.0f - c;
        w0[j] = top * left;
        w1[j] = top * c;
        w2[j] = r * left;
        w3[j] = r * c;
    }
}

void blend_whole(std::int64_t n, const float* DEEPLIGHT_RESTRICT v, std::int64_t width,
                 const std::int32_t* DEEPLIGHT_RESTRICT base, const float* DEEPLIGHT_RESTRICT w0,
                 const float* DEEPLIGHT_RESTRICT w1, const float* DEEPLIGHT_RESTRICT w2,
                 const float* DEEPLIGHT_RESTRICT w3, float* DEEPLIGHT_RESTRICT out) {
    const float* below = v + width;
    for (std::int64_t j = 0; j < n; ++j) {
        const std::int32_t k = base[j];
        out[j] = ((w0[j] * v[k] + w1[j] * v[k + 1]) + w2[j] * below[k]) + w3[j] * below[k + 1];
    }
}

// As blend_whole, with an index per tap: a masked tap has weight 0 and the index of a valid neighbour, so that whatever
// lies under the mask is never read.
void blend_masked(std::int64_t n, const float* DEEPLIGHT_RESTRICT v, const Taps& taps, float* DEEPLIGHT_RESTRICT out) {
    for (std::int64_t j = 0; j < n; ++j) {
        const float sum = ((taps.weight[0][j] * v[taps.at[0][j]] + taps.weight[1][j] * v[taps.at[1][j]]) +
                           taps.weight[2][j] * v[taps.at[2][j]]) +
                          taps.weight[3][j] * v[taps.at[3][j]];
        out[j] = taps.ok[j] ? sum : 0.0f;
    }
}

void exclude_masked(Taps& taps, std::int64_t n, std::int64_t width) {
    const std::int32_t step[4] = {0, 1, static_cast<std::int32_t>(width), static_cast<std::int32_t>(width) + 1};
    for (std::int64_t j = 0; j < n; ++j) {
        const unsigned bits = taps.bits[j];
        float total = 0.0f;
        std::int32_t known = 0;
        for (int k = 0; k < 4; ++k) {
            const bool valid = bits >> k & 1u;
            taps.at[k][j] = taps.base[j] + step[k];
            if (valid) known = taps.at[k][j];
            taps.weight[k][j] = valid ? taps.weight[k][j] : 0.0f;
            total += taps.weight[k][j];
        }
        taps.ok[j] = bits == 15u || total >= HALF;
        if (bits == 15u) continue;
        for (int k = 0; k < 4; ++k) {
            taps.weight[k][j] = taps.ok[j] ? taps.weight[k][j] / total : 0.0f;
            if (!(bits >> k & 1u)) taps.at[k][j] = known;
        }
    }
}

// Bit k of element (r, c): whether tap k of the neighbourhood with upper-left pixel (r - 1, c - 1) is valid.
std::vector<std::uint8_t> neighbourhoods(const Resampling& job) {
    const std::int64_t h = job.height, w = job.width;
    std::vector<std::uint8_t> bits(static_cast<std::size_t>((h + 1) * (w + 1)), std::uint8_t{0});
    for (std::int64_t r = 0; r < h; ++r) {
        const std::uint8_t* m = job.mask + r * w;
        std::uint8_t* upper = bits.data() + r * (w + 1);
        std::uint8_t* lower = upper + (w + 1);
        for (std::int64_t c = 0; c < w; ++c) upper[c] = static_cast<std::uint8_t>(upper[c] | (m[c] ? 8 : 0));
        for (std::int64_t c = 0; c < w; ++c) upper[c + 1] = static_cast<std::uint8_t>(upper[c + 1] | (m[c] ? 4 : 0));
        for (std::int64_t c = 0; c < w; ++c) lower[c] = static_cast<std::uint8_t>(lower[c] | (m[c] ? 2 : 0));
        for (std::int64_t c = 0; c < w; ++c) lower[c + 1] = static_cast<std::uint8_t>(lower[c + 1] | (m[c] ? 1 : 0));
    }
    return bits;
}

// Weights and validity of n HR pixels whose coordinates are in taps already. Returns whether all taps are valid.
bool prepare(const std::uint8_t* bits, Taps& taps, std::int64_t n, std::int64_t width) {
    unsigned every = 15u;
    for (std::int64_t j = 0; j < n; ++j) {
        taps.bits[j] = bits[taps.quad[j]];
        every &= taps.bits[j];
    }
    weigh(n, taps.fr, taps.fc, taps.weight[0], taps.weight[1], taps.weight[2], taps.weight[3]);
    if (every != 15u) exclude_masked(taps, n, width);
    return every == 15u;
}

// Coordinates along one HR row of a mesh.
class Row {
   public:
    Row(const Mesh& mesh, std::int64_t row)
        : mesh_(mesh),
          inverse_(1.0 / static_cast<double>(mesh.step)),
          ty_(static_cast<double>((row - mesh.row) % mesh.step) * inverse_),
          nodes_(mesh.nodes + (row - mesh.row) / mesh.step * mesh.side) {}

    // From HR column `col` to the end of its cell.
    Line line(std::int64_t col) const {
        const std::int64_t cell = (col - mesh_.col) / mesh_.step;
        const double* rows = nodes_ + cell;
        const double* cols = rows + mesh_.side * mesh_.side;
        const double r = down(rows), c = down(cols);
        return {r, down(rows + 1) - r, c, down(cols + 1) - c, inverse_, col - mesh_.col - cell * mesh_.step};
    }

   private:
    double down(const double* node) const { return node[0] + ty_ * (node[mesh_.side] - node[0]); }

    const Mesh& mesh_;
    double inverse_, ty_;
    const double* nodes_;
};

// HR row `row`, columns [first, last) of one mesh.
void mesh_row(const Resampling& job, const Mesh& mesh, const std::uint8_t* bits, Taps& taps, std::int64_t row,
              std::int64_t first, std::int64_t last) {
    const Row coordinates(mesh, row);
    const std::int64_t source = job.height * job.width, target = job.out_plane;
    for (std::int64_t start = first; start < last; start += RUN) {
        const std::int64_t stop = std::min(last, start + RUN), n = stop - start;
        for (std::int64_t col = start; col < stop;) {
            const Line line = coordinates.line(col);
            const std::int64_t end = std::min(stop, col - line.phase + mesh.step), k = col - start;
            locate(job, line, end - col, taps.quad + k, taps.base + k, taps.fr + k, taps.fc + k);
            col = end;
        }
        const bool whole = prepare(bits, taps, n, job.width);
        const std::int64_t at = (row - job.out_row) * job.out_width + (start - job.out_col);
        if (whole)
            std::fill_n(job.out_mask + at, n, std::uint8_t{1});
        else
            std::copy_n(taps.ok, n, job.out_mask + at);
        for (std::int64_t c = 0; c < job.channels; ++c) {
            const float* v = job.values + c * source;
            if (whole)
                blend_whole(n, v, job.width, taps.base, taps.weight[0], taps.weight[1], taps.weight[2],
                            taps.weight[3], job.out + c * target + at);
            else
                blend_masked(n, v, taps, job.out + c * target + at);
        }
    }
}

}  // namespace

void resample(const Resampling& job, const std::vector<Mesh>& meshes, int threads) {
    const std::vector<std::uint8_t> bits = neighbourhoods(job);
    parallel(job.out_height, threads, [&](std::int64_t begin, std::int64_t end) {
        Taps taps;
        for (const Mesh& mesh : meshes) {
            const std::int64_t extent = mesh.step * (mesh.side - 1);
            const std::int64_t top = std::max(job.out_row + begin, mesh.row);
            const std::int64_t bottom = std::min(job.out_row + end, mesh.row + extent);
            const std::int64_t left = std::max(job.out_col, mesh.col);
            const std::int64_t right = std::min(job.out_col + job.out_width, mesh.col + extent);
            for (std::int64_t row = top; row < bottom; ++row)
                mesh_row(job, mesh, bits.data(), taps, row, left, right);
        }
    });
}

}  // namespace deeplight
