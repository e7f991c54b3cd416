// The running covariance.
#include "bindings.h"
#include "common.h"

namespace ansn {
namespace bindings {
namespace {

int64_t covariance_update(const std::string& dtype, uintptr_t weight, uintptr_t weight2, uintptr_t mean,
                          uintptr_t scatter, uintptr_t x, const std::string& x_dtype, int64_t rows, int64_t cols,
                          int64_t ld_x, uintptr_t region, int64_t regions, double decay, bool diagonal, int threads,
                          const std::string& isa) {
  static thread_local Scratch scratch;
  check_sizes(rows, cols, threads);
  require(dtype == "f32" || dtype == "f64", "dtype of the state must be 'f32' or 'f64', got '" + dtype + "'");
  require(regions >= 1, "regions must be at least 1, got " + std::to_string(regions));
  require(decay > 0 && decay <= 1, "decay must be in (0, 1], got " + std::to_string(decay));
  require(weight != 0, "weight must be an address, got 0");
  require(weight2 != 0, "weight2 must be an address, got 0");
  require(mean != 0 || cols == 0, "mean must be an address, got 0");
  require(scatter != 0 || cols == 0, "scatter must be an address, got 0");
  require(x != 0 || rows == 0 || cols == 0, "x must be an address, got 0");
  cpu::CovarianceUpdate p;
  p.x_storage = storage_of(x_dtype, "x_dtype");
  p.state_is_f64 = dtype == "f64";
  p.weight = at<double>(weight);
  p.weight2 = at<double>(weight2);
  for (int64_t k = 0; k < regions; ++k) {
    if (std::isfinite(p.weight[k]) && p.weight[k] >= 0) continue;
    throw std::invalid_argument("weight: region " + std::to_string(k) + " has " + std::to_string(p.weight[k]) +
                                ", expected a finite number of at least 0");
  }
  require(region != 0 || regions == 1 || rows == 0,
          "region must be an address when there are " + std::to_string(regions) + " regions, got 0");
  const RowsByRegion grouped(at<const int64_t>(region), rows, regions);
  p.mean = at<void>(mean);
  p.scatter = at<void>(scatter);
  p.x = at<const void>(x);
  p.rows = rows;
  p.cols = cols;
  p.ld_x = ld_x;
  p.regions = regions;
  p.starts = grouped.starts.data();
  p.order = grouped.order_or_null();
  p.decay = decay;
  p.diagonal = diagonal;
  p.threads = threads;
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
