#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/vector.h>

#include <limits>
#include <stdexcept>

#include "kernels.hpp"

namespace nb = nanobind;
using namespace nb::literals;

namespace {

template <class T, int Dimensions>
using Array = nb::ndarray<T, nb::ndim<Dimensions>, nb::c_contig, nb::device::cpu>;
// Rows that follow each other, of planes that may lie apart.
using Planes = nb::ndarray<float, nb::ndim<3>, nb::device::cpu>;
using Raw = nb::ndarray<nb::ro, nb::ndim<3>, nb::c_contig, nb::device::cpu>;

void require(bool condition, const char* message) {
    if (!condition) throw std::invalid_argument(message);
}

template <class A>
std::int64_t dim(const A& array, std::size_t axis) {
    return static_cast<std::int64_t>(array.shape(axis));
}

void to_physical(const Raw& raw, const Array<const double, 1>& scale, const Array<const double, 1>& offset,
                 const Array<const double, 1>& nodata, const Array<const std::uint8_t, 2>& mask,
                 const Array<float, 3>& values, const Array<std::uint8_t, 2>& valid, double low, double high,
                 int threads) {
    const std::int64_t bands = dim(raw, 0), height = dim(raw, 1), width = dim(raw, 2);
    require(dim(scale, 0) == bands && dim(offset, 0) == bands && dim(nodata, 0) == bands,
            "scale, offset and nodata need one element per band");
    require(dim(values, 0) == bands && dim(values, 1) == height && dim(values, 2) == width, "values: wrong shape");
    require(dim(valid, 0) == height && dim(valid, 1) == width, "valid: wrong shape");
    require(!mask.is_valid() || (dim(mask, 0) == height && dim(mask, 1) == width), "mask: wrong shape");
    constexpr double LARGEST = std::numeric_limits<float>::max();
    const deeplight::Conversion job{bands,         height * width, scale.data(), offset.data(),
                                    nodata.data(), mask.is_valid() ? mask.data() : nullptr,
                                    values.data(), valid.data(),
                                    static_cast<float>(std::max(low, -LARGEST)),
                                    static_cast<float>(std::min(high, LARGEST))};
    const auto dtype = raw.dtype();
    const auto run = [&](auto tag) {
        using T = decltype(tag);
        if (dtype != nb::dtype<T>()) return false;
        nb::gil_scoped_release release;
        deeplight::to_physical(static_cast<const T*>(raw.data()), job, threads);
        return true;
    };
    const bool known = run(std::uint8_t{}) || run(std::int8_t{}) || run(std::uint16_t{}) || run(std::int16_t{}) ||
                       run(std::uint32_t{}) || run(std::int32_t{}) || run(float{}) || run(double{});
    if (!known) throw nb::type_error("raw: dtype must be an integer of up to 32 bits, float32 or float64");
}

void resample(const Array<const float, 3>& values, const Array<const std::uint8_t, 2>& mask, std::int64_t row,
              std::int64_t col, const std::vector<Array<const double, 3>>& nodes,
              const std::vector<std::vector<std::int64_t>>& places, std::int64_t out_row, std::int64_t out_col,
              const Planes& out, const Array<std::uint8_t, 2>& out_mask, int threads) {
    require(dim(mask, 0) == dim(values, 1) && dim(mask, 1) == dim(values, 2), "mask: wrong shape");
    require(dim(out, 0) == dim(values, 0), "out: wrong number of channels");
    require(out.stride(2) == 1 && out.stride(1) == dim(out, 2), "out: rows must follow each other");
    require(dim(out_mask, 0) == dim(out, 1) && dim(out_mask, 1) == dim(out, 2), "out_mask: wrong shape");
    constexpr std::int64_t LARGEST = std::numeric_limits<std::int32_t>::max();
    require(row >= 0 && col >= 0 && row + dim(values, 1) < LARGEST && col + dim(values, 2) < LARGEST &&
                (dim(values, 1) + 1) * (dim(values, 2) + 1) < LARGEST,
            "values: more than 2^31 pixels");
    require(nodes.size() == places.size(), "one place per mesh");
    std::vector<deeplight::Mesh> meshes;
    std::int64_t covered = 0;
    for (std::size_t k = 0; k < nodes.size(); ++k) {
        require(places[k].size() == 3 && places[k][2] >= 1, "places: (row, col, step) each");
        const std::int64_t side = dim(nodes[k], 1), extent = places[k][2] * (side - 1);
        require(dim(nodes[k], 0) == 2 && dim(nodes[k], 2) == side && side >= 2, "nodes: shape (2, n, n) each");
        meshes.push_back({places[k][0], places[k][1], places[k][2], side, nodes[k].data()});
        const auto overlap = [&](std::int64_t first, std::int64_t from, std::int64_t length) {
            return std::max<std::int64_t>(0, std::min(first + extent, from + length) - std::max(first, from));
        };
        covered += overlap(places[k][0], out_row, dim(out, 1)) * overlap(places[k][1], out_col, dim(out, 2));
    }
    require(covered == dim(out, 1) * dim(out, 2), "the meshes must cover the window once");
    const deeplight::Resampling job{dim(values, 0), dim(values, 1), dim(values, 2), row,
                                    col,            values.data(),  mask.data(),    out_row,
                                    out_col,        dim(out, 1),    dim(out, 2),    out.data(),
                                    out.stride(0),  out_mask.data()};
    nb::gil_scoped_release release;
    deeplight::resample(job, meshes, threads);
}

void area_mean(const Array<const float, 3>& values, const Array<const std::uint8_t, 2>& mask, std::int64_t fy,
               std::int64_t fx, const Array<float, 3>& out, const Array<std::uint8_t, 2>& out_mask, int threads) {
    require(fy >= 1 && fx >= 1, "block sizes must be at least 1");
    const std::int64_t height = (dim(values, 1) + fy - 1) / fy, width = (dim(values, 2) + fx - 1) / fx;
    require(dim(mask, 0) == dim(values, 1) && dim(mask, 1) == dim(values, 2), "mask: wrong shape");
    require(dim(out, 0) == dim(values, 0) && dim(out, 1) == height && dim(out, 2) == width, "out: wrong shape");
    require(dim(out_mask, 0) == height && dim(out_mask, 1) == width, "out_mask: wrong shape");
    const deeplight::Area job{dim(values, 0), dim(values, 1), dim(values, 2), fy,             fx,
                              values.data(),  mask.data(),    out.data(),     out_mask.data()};
    nb::gil_scoped_release release;
    deeplight::area_mean(job, threads);
}

void align(const Array<const float, 3>& values, const Array<const float, 3>& offset, const Array<float, 3>& out,
           int threads) {
    const std::int64_t height = dim(values, 1), width = dim(values, 2);
    require(height >= 8 && width >= 8 && height % 8 == 0 && width % 8 == 0, "values: sides must be multiples of 8");
    require(height * width < std::numeric_limits<std::int32_t>::max(), "values: more than 2^31 pixels");
    require(dim(offset, 0) == 2 && dim(offset, 1) == height / 8 && dim(offset, 2) == width / 8,
            "offset: shape (2, height / 8, width / 8)");
    require(dim(out, 0) == dim(values, 0) && dim(out, 1) == height && dim(out, 2) == width, "out: wrong shape");
    const deeplight::Alignment job{dim(values, 0), height, width, values.data(), offset.data(), out.data()};
    nb::gil_scoped_release release;
    deeplight::align(job, threads);
}

}  // namespace

NB_MODULE(_native, m) {
    m.doc() = "Pixel loops of deeplight.engine; called through engine.raster.";
    m.def("to_physical", &to_physical, nb::arg("raw").noconvert(), nb::arg("scale").noconvert(),
          nb::arg("offset").noconvert(), nb::arg("nodata").noconvert(), nb::arg("mask").noconvert().none(),
          nb::arg("values").noconvert(), nb::arg("valid").noconvert(), "low"_a, "high"_a, "threads"_a = 1);
    m.def("resample", &resample, nb::arg("values").noconvert(), nb::arg("mask").noconvert(), "row"_a, "col"_a,
          nb::arg("nodes"), nb::arg("places"), "out_row"_a, "out_col"_a, nb::arg("out").noconvert(),
          nb::arg("out_mask").noconvert(), "threads"_a = 1);
    m.def("area_mean", &area_mean, nb::arg("values").noconvert(), nb::arg("mask").noconvert(), "fy"_a, "fx"_a,
          nb::arg("out").noconvert(), nb::arg("out_mask").noconvert(), "threads"_a = 1);
    m.def("align", &align, nb::arg("values").noconvert(), nb::arg("offset").noconvert(),
          nb::arg("out").noconvert(), "threads"_a = 1);
}
