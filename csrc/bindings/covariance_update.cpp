// The running covariance.
#include "bindings.h"
#include "moments_arguments.h"

namespace ansn {
namespace bindings {
namespace {

int64_t covariance_update(const std::string& dtype, uintptr_t weight, uintptr_t weight2, uintptr_t mean,
                          uintptr_t scatter, uintptr_t x, const std::string& x_dtype, int64_t rows, int64_t cols,
                          int64_t ld_x, uintptr_t region, int64_t regions, double decay, bool diagonal, int threads,
                          const std::string& isa) {
  static thread_local Scratch scratch;
  cpu::CovarianceUpdate p;
  const MomentsOf moments(p, dtype, weight, weight2, mean, scatter, x, x_dtype, rows, cols, ld_x, region, regions, decay,
                          diagonal, threads);
  const cpu::KernelTable& table = cpu::kernels(isa);
  p.scratch = nullptr;
  p.scratch = scratch.reserve(table.covariance_scratch_bytes(p));
  int64_t bad;
  {
    py::gil_scoped_release unlocked;
    bad = table.row_not_finite(p);
    if (bad < 0) table.covariance_update(p);
  }
  scratch.trim();
  return bad;
}

}  // namespace

void bind_covariance_update(py::module_& m) {
  m.def("covariance_update", &covariance_update, py::arg("dtype"), py::arg("weight"), py::arg("weight2"),
        py::arg("mean"), py::arg("scatter"), py::arg("x"), py::arg("x_dtype"), py::arg("rows"), py::arg("cols"),
        py::arg("ld_x"), py::arg("region"), py::arg("regions"), py::arg("decay"), py::arg("diagonal"),
        py::arg("threads"), py::arg("isa") = "",
        R"(Scales (weight, weight2, mean, scatter) by the forgetting and merges the rows of x into it, in place.

dtype: 'f32' or 'f64', of mean [regions, cols] and scatter: [regions, cols, cols], of which only the lower triangles are
read or written, or [regions, cols] when diagonal. weight, weight2: float64 [regions]. x_dtype: 'f32', 'f64', 'bf16' or
'f16'. region: address of int64 [rows], or 0 when there is one. decay: in (0, 1].
Returns -1, or the first row of x that holds a value that is not finite; the state is then as it was. Raises ValueError.)");
}

}  // namespace bindings
}  // namespace ansn
