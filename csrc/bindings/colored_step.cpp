// The coloured step with L the identity or a diagonal.
#include "bindings.h"
#include "step_arguments.h"

namespace ansn {
namespace bindings {
namespace {

void colored_step(const std::string& dtype, uintptr_t out, uintptr_t x, uintptr_t D, uintptr_t f, int64_t rows, int64_t cols,
                  const Coefficient& c, const Coefficient& a, const Coefficient& b, int64_t c_stride, int64_t a_stride,
                  int64_t b_stride, uintptr_t diag, uintptr_t region, int64_t regions, py::int_ seed, py::int_ row0,
                  py::int_ step, py::int_ stream, int threads, const std::string& isa) {
  check_sizes(rows, cols, threads);
  const Storage storage = single_or_half(dtype);
  if (rows == 0 || cols == 0) return;
  cpu::ColoredStep p = step_of(storage, out, x, D, f, rows, cols, c, a, b, c_stride, a_stride, b_stride, seed, row0, step,
                               stream, threads);
  p.diag = at<const float>(diag);
  p.region = at<const int64_t>(region);
  if (region != 0) check_regions(p.region, rows, regions);
  const cpu::KernelTable& table = cpu::kernels(isa);
  py::gil_scoped_release unlocked;
  table.colored_step(p);
}

}  // namespace

void bind_colored_step(py::module_& m) {
  m.def("colored_step", &colored_step, py::arg("dtype"), py::arg("out"), py::arg("x"), py::arg("D"), py::arg("f"),
        py::arg("rows"), py::arg("cols"), py::arg("c"), py::arg("a"), py::arg("b"), py::arg("c_stride"),
        py::arg("a_stride"), py::arg("b_stride"), py::arg("diag"), py::arg("region"), py::arg("regions"), py::arg("seed"),
        py::arg("row0"), py::arg("step"), py::arg("stream"), py::arg("threads"), py::arg("isa") = "",
        R"(out[r, j] = x + c_r (D - x) + L_j (a_r f + b_r z), L the identity or diagonal; out may be x, D or f; x = 0: no x.

dtype: 'f32', 'bf16' or 'f16' of out, x, D and f [rows, cols], contiguous; c, a, b and diag are float32, c, a and b also numbers.
Row r of the noise is global row (row0 + r) mod 2^32; b = 0 (the address) means no noise and no random numbers.
diag: address of [K, cols], or 0 for L = I; region: address of int64 [rows] that picks the row of diag, one of `regions`, or
0.
*_stride: 0 for one coefficient, 1 for one a row. Raises ValueError.)");
}

}  // namespace bindings
}  // namespace ansn
