#include "kernels.hpp"

namespace deeplight {
namespace {

void block_row(const Area& job, std::int64_t br, std::int64_t out_width, std::vector<double>& sums,
               std::vector<std::int64_t>& counts) {
    const std::int64_t out_height = (job.height + job.fy - 1) / job.fy;
    const std::int64_t top = br * job.fy, bottom = std::min(job.height, top + job.fy);
    std::uint8_t* ok = job.out_mask + br * out_width;
    for (std::int64_t channel = 0; channel < job.channels; ++channel) {
        std::fill(sums.begin(), sums.end(), 0.0);
        std::fill(counts.begin(), counts.end(), std::int64_t{0});
        for (std::int64_t r = top; r < bottom; ++r) {
            const float* v = job.values + (channel * job.height + r) * job.width;
            const std::uint8_t* m = job.mask + r * job.width;
            for (std::int64_t bc = 0; bc < out_width; ++bc) {
                const std::int64_t right = std::min(job.width, (bc + 1) * job.fx);
                double sum = sums[bc];
                std::int64_t count = counts[bc];
                for (std::int64_t c = bc * job.fx; c < right; ++c) {
                    sum += m[c] ? static_cast<double>(v[c]) : 0.0;
                    count += m[c] != 0;
                }
                sums[bc] = sum;
                counts[bc] = count;
            }
        }
        float* out = job.out + (channel * out_height + br) * out_width;
        for (std::int64_t bc = 0; bc < out_width; ++bc) {
            ok[bc] = 2 * counts[bc] >= job.fy * job.fx;
            out[bc] = ok[bc] ? static_cast<float>(sums[bc] / static_cast<double>(counts[bc])) : 0.0f;
        }
    }
}

}  // namespace

void area_mean(const Area& job, int threads) {
    const std::int64_t out_height = (job.height + job.fy - 1) / job.fy;
    const std::int64_t out_width = (job.width + job.fx - 1) / job.fx;
    parallel(out_height, threads, [&](std::int64_t begin, std::int64_t end) {
        std::vector<double> sums(static_cast<std::size_t>(out_width));
        std::vector<std::int64_t> counts(static_cast<std::size_t>(out_width));
        for (std::int64_t br = begin; br < end; ++br) block_row(job, br, out_width, sums, counts);
    });
}

}  // namespace deeplight
