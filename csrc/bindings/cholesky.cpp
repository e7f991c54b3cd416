// Many small Cholesky factors, alone and with the draw.
#include "bindings.h"
#include "common.h"

#include <optional>

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

void cholesky_draw(const std::string& dtype, uintptr_t matrix, uintptr_t factor, uintptr_t info, int64_t count, int64_t d,
                   uintptr_t x, uintptr_t out, int64_t rows, uintptr_t b, int64_t b_stride, uintptr_t region,
                   py::int_ seed, py::int_ row0, py::int_ step, py::int_ stream, int threads, const std::string& isa) {
  static thread_local Scratch scratch;
  check_sizes(rows, d, threads);
  check_order(count, d, threads);
  cpu::CholeskyDraw p;
  p.storage = storage_of(dtype, "dtype");
  require(p.storage != Storage::f64, "dtype must be 'f32', 'bf16' or 'f16', got 'f64'");
  if (count == 0 || d == 0) return;
  require(matrix != 0, "matrix must be an address, got 0");
  require(info != 0, "info must be an address, got 0");
  require(rows == 0 || (x != 0 && out != 0 && b != 0), "x, out and b must be addresses, got 0");
  require(region != 0 || rows == count || count == 1 || rows == 0,
          "rows must be count or count 1 without region, got " + std::to_string(rows) + " rows of " + std::to_string(count));
  p.matrix = at<const void>(matrix);
  p.factor = at<void>(factor);
  p.info = at<int32_t>(info);
  p.count = count;
  p.d = d;
  p.x = at<const void>(x);
  p.out = at<void>(out);
  p.b = at<const void>(b);
  p.b_stride = checked_stride(b_stride, "b_stride");
  p.seed = wrapped(seed);
  p.row0 = static_cast<uint32_t>(wrapped(row0));
  p.step = static_cast<uint32_t>(wrapped(step));
  p.stream = static_cast<uint32_t>(wrapped(stream));
  p.threads = threads;
  std::optional<RowsByRegion> grouped;  // none: row r takes matrix r
  if (region != 0 || rows != count) grouped.emplace(at<const int64_t>(region), rows, count);
  p.start = grouped ? grouped->starts.data() : nullptr;
  p.order = grouped ? grouped->order_or_null() : nullptr;
  const cpu::KernelTable& table = cpu::kernels(isa);
  p.scratch = scratch.reserve(threads * table.cholesky_scratch_bytes(false, d));
  {
    py::gil_scoped_release unlocked;
    table.cholesky_draw(p);
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
  m.def("cholesky_draw", &cholesky_draw, py::arg("dtype"), py::arg("matrix"), py::arg("factor"), py::arg("info"),
        py::arg("count"), py::arg("d"), py::arg("x"), py::arg("out"), py::arg("rows"), py::arg("b"), py::arg("b_stride"),
        py::arg("region"), py::arg("seed"), py::arg("row0"), py::arg("step"), py::arg("stream"), py::arg("threads"),
        py::arg("isa") = "",
        R"(out_r = x_r + b_r L_k z_r, L_k the factor of float32 matrix k of [count, d, d], d <= 128; NaN where it has none.

dtype: 'f32', 'bf16' or 'f16' of x and out [rows, d], contiguous; out is not x. b: float32, b_stride 0 for one or 1 for
one a row. region: address of int64 [rows], or 0: row r takes matrix r, or all the only one.
factor: address of [count, d, d], or 0: factors are not written. info: as for cholesky. Raises ValueError.)");
}

}  // namespace bindings
}  // namespace ansn
