// The coloured step with a dense factor.
#include "bindings.h"
#include "step_arguments.h"

namespace ansn {
namespace bindings {
namespace {

cpu::Triangle triangle_of(const std::string& name) {
  if (name == "none") return cpu::Triangle::none;
  if (name == "lower") return cpu::Triangle::lower;
  if (name == "upper") return cpu::Triangle::upper;
  throw std::invalid_argument("triangle must be 'none', 'lower' or 'upper', got '" + name + "'");
}

void dense_step(const std::string& dtype, uintptr_t out, uintptr_t x, uintptr_t D, uintptr_t f, int64_t rows, int64_t cols,
                const Coefficient& c, const Coefficient& a, const Coefficient& b, int64_t c_stride, int64_t a_stride,
                int64_t b_stride, uintptr_t factor, const std::string& factor_dtype, int64_t row_stride, int64_t col_stride,
                int64_t region_stride, int64_t regions, const std::string& triangle, uintptr_t region,
                py::int_ seed, py::int_ row0, py::int_ step, py::int_ stream, int threads,
                const std::string& isa) {
  static thread_local Scratch scratch;
  check_sizes(rows, cols, threads);
  cpu::DenseStep p;
  const Storage storage = single_or_half(dtype);
  p.factor_storage = storage_of(factor_dtype, "factor_dtype");
  require(p.factor_storage == Storage::f32 || p.factor_storage == Storage::f64,
          "factor_dtype must be 'f32' or 'f64', got '" + factor_dtype + "'");
  p.triangle = triangle_of(triangle);
  require(regions >= 1, "regions must be at least 1, got " + std::to_string(regions));
  require(row_stride == 1 || col_stride == 1, "row_stride or col_stride must be 1, got " + std::to_string(row_stride) +
                                                  " and " + std::to_string(col_stride));
  if (rows == 0 || cols == 0) return;
  require(regions == 1 || region != 0, "region must be an address for " + std::to_string(regions) + " regions, got 0");
  require(factor != 0, "factor must be an address, got 0");
  require((f != 0 && a.values()) || b.values(), "f with a, or b, must be given: without them there is no product");
  p.step = step_of(storage, out, x, D, f, rows, cols, c, a, b, c_stride, a_stride, b_stride, seed, row0, step, stream,
                   threads);
  p.factor = at<const void>(factor);
  p.row_stride = row_stride;
  p.col_stride = col_stride;
  p.region_stride = region_stride;
  p.regions = regions;
  const RowsByRegion grouped(at<const int64_t>(region), rows, regions);
  p.order = grouped.order_or_null();
  p.region_first = regions == 1 ? nullptr : grouped.starts.data();
  const cpu::KernelTable& table = cpu::kernels(isa);
  p.scratch = scratch.reserve(table.dense_scratch_bytes(p));
  {
    py::gil_scoped_release unlocked;
    table.dense_step(p);
  }
  scratch.trim();
}

}  // namespace

void bind_dense_step(py::module_& m) {
  m.def("dense_step", &dense_step, py::arg("dtype"), py::arg("out"), py::arg("x"), py::arg("D"), py::arg("f"),
        py::arg("rows"), py::arg("cols"), py::arg("c"), py::arg("a"), py::arg("b"), py::arg("c_stride"),
        py::arg("a_stride"), py::arg("b_stride"), py::arg("factor"), py::arg("factor_dtype"), py::arg("row_stride"),
        py::arg("col_stride"), py::arg("region_stride"), py::arg("regions"), py::arg("triangle"), py::arg("region"),
        py::arg("seed"), py::arg("row0"), py::arg("step"), py::arg("stream"), py::arg("threads"),
        py::arg("isa") = "",
        R"(out[r, :] = x + c_r (D - x) + A (a_r f + b_r z), A dense; x = 0 (the address) leaves x, D and c out. out may be x.

As colored_step, but A[i, k] of region g is element g region_stride + i row_stride + k col_stride of factor ('f32' or
'f64'; one stride must be 1). triangle: 'none', or the half of A that is used.
region: address of int64 [rows], the region of each row; 0 when regions = 1. Noise depends on a row's own index. Raises
ValueError.)");
}

}  // namespace bindings
}  // namespace ansn
