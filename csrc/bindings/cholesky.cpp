// Many small Cholesky factors.
#include "bindings.h"
#include "common.h"

namespace ansn {
namespace bindings {
namespace {

void check_order(int64_t count, int64_t d, int threads) {
  require(count >= 0, "count must be at least 0, got " + std::to_string(count));
  require(d >= 0 && d <= cpu::kMostCholesky,
          "d must be 0 .. " + std::to_string(cpu::kMostCholesky) + ", got " + std::to_string(d));
  require(threads >= 1, "threads must be at least 1, got " + std::to_string(threads));
}

void cholesky(const std::string& dtype, uintptr_t matrix, uintptr_t factor, uintptr_t info, int64_t count, int64_t d,
              int threads, const std::string& isa) {
  static thread_local Scratch scratch;
  check_order(count, d, threads);
  require(dtype == "f32" || dtype == "f64", "dtype must be 'f32' or 'f64', got '" + dtype + "'");
  if (count == 0 || d == 0) return;
  require(matrix != 0, "matrix must be an address, got 0");
  require(factor != 0, "factor must be an address, got 0");
  require(info != 0, "info must be an address, got 0");
  cpu::Cholesky p;
  p.is_f64 = dtype == "f64";
  p.matrix = at<const void>(matrix);
  p.factor = at<void>(factor);
  p.info = at<int32_t>(info);
  p.count = count;
  p.d = d;
  p.threads = threads;
  const cpu::KernelTable& table = cpu::kernels(isa);
  p.scratch = scratch.reserve(threads * table.cholesky_scratch_bytes(p.is_f64, d));
  {
    py::gil_scoped_release unlocked;
    table.cholesky(p);
  }
  scratch.trim();
}

}  // namespace

void bind_cholesky(py::module_& m) {
  m.attr("most_cholesky") = cpu::kMostCholesky;
  m.def("cholesky", &cholesky, py::arg("dtype"), py::arg("matrix"), py::arg("factor"), py::arg("info"), py::arg("count"),
        py::arg("d"), py::arg("threads"), py::arg("isa") = "",
        R"(Lower factors of matrices [count, d, d], contiguous, d <= 128; of each the lower triangle is read.

dtype: 'f32' or 'f64'. factor: [count, d, d], zero above the diagonal. info: int32 [count], 0 or the order of the first
minor that is not positive, and then that factor is meaningless. Raises ValueError.)");
}

}  // namespace bindings
}  // namespace ansn
