// The running covariance.
#include "bindings.h"
#include "common.h"

namespace ansn {
namespace bindings {
namespace {

void covariance_update(const std::string& dtype, double count, uintptr_t mean, uintptr_t scatter, uintptr_t x,
                       const std::string& x_dtype, int64_t rows, int64_t cols, int64_t ld_x, uintptr_t row_index,
                       bool diagonal, int threads, const std::string& isa) {
  static thread_local Scratch scratch;
  check_sizes(rows, cols, threads);
  require(dtype == "f32" || dtype == "f64", "dtype of the state must be 'f32' or 'f64', got '" + dtype + "'");
  require(std::isfinite(count) && count >= 0,
          "n_before must be a finite count of at least 0, got " + std::to_string(count));
  cpu::CovarianceUpdate p;
  p.x_storage = storage_of(x_dtype, "x_dtype");
  if (rows == 0 || cols == 0) return;
  require(mean != 0, "mean must be an address, got 0");
  require(scatter != 0, "scatter must be an address, got 0");
  require(x != 0, "x must be an address, got 0");
  p.state_is_f64 = dtype == "f64";
  p.count = count;
  p.mean = at<void>(mean);
  p.scatter = at<void>(scatter);
  p.x = at<const void>(x);
  p.rows = rows;
  p.cols = cols;
  p.ld_x = ld_x;
  p.row_index = at<const int64_t>(row_index);
  p.diagonal = diagonal;
  p.threads = threads;
  const cpu::KernelTable& table = cpu::kernels(isa);
  p.scratch = scratch.reserve(table.covariance_scratch_bytes(p));
  {
    py::gil_scoped_release unlocked;
    table.covariance_update(p);
  }
  scratch.trim();
}

}  // namespace

void bind_covariance_update(py::module_& m) {
  m.def("covariance_update", &covariance_update, py::arg("dtype"), py::arg("n_before"), py::arg("mean"),
        py::arg("scatter"), py::arg("x"), py::arg("x_dtype"), py::arg("rows"), py::arg("cols"), py::arg("ld_x"),
        py::arg("row_index"), py::arg("diagonal"), py::arg("threads"), py::arg("isa") = "",
        R"(Merges rows of x into (n, mean, scatter) in place; the caller adds rows to n.

dtype: 'f32' or 'f64', of mean [cols] and scatter: [cols, cols] row-major, of which only the lower triangle is read or
written, or [cols] when diagonal. x_dtype: 'f32', 'f64', 'bf16' or 'f16'.
row_index: address of int64 [rows], the rows of x to take, or 0 for the first `rows`. Raises ValueError.)");
}

}  // namespace bindings
}  // namespace ansn
