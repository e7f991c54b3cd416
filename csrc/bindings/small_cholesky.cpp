// Small Cholesky factors with the draw: on a GPU where CUDA was built, and the same text on the CPU, lane after lane, for
// tests.
#include <vector>

#include "bindings.h"
#include "common.h"
#include "small_cholesky.h"
#if defined(ANSN_CUDA)
#include "cuda/cholesky.h"
#endif

namespace ansn {
namespace bindings {
namespace {

using small_cholesky::Work;

Work work_of(uintptr_t matrix, int64_t matrices, int64_t d, uintptr_t factor, uintptr_t info, const std::string& dtype,
             uintptr_t x, uintptr_t out, int64_t rows, uintptr_t b, int64_t b_stride, uintptr_t order, uintptr_t offsets,
             const py::int_& seed, const py::int_& row0, const py::int_& step, const py::int_& stream) {
  require(matrices >= 0, "matrices must be at least 0, got " + std::to_string(matrices));
  require(d >= 0 && d <= small_cholesky::kMaximum,
          "d must be 0 to " + std::to_string(small_cholesky::kMaximum) + ", got " + std::to_string(d));
  require(rows >= 0, "rows must be at least 0, got " + std::to_string(rows));
  Work w;
  w.storage = storage_of(dtype, "dtype");
  require(w.storage != Storage::f64, "dtype must be 'f32', 'bf16' or 'f16', got 'f64'");
  if (matrices > 0 && d > 0) {
    require(matrix != 0, "matrix must be an address, got 0");
    require(info != 0, "info must be an address, got 0");
    if (rows > 0) {
      require(x != 0, "x must be an address, got 0");
      require(out != 0, "out must be an address, got 0");
      require(b != 0, "b must be an address, got 0");
      require((order != 0) == (offsets != 0), "order and offsets must both be addresses or both 0");
      require(offsets != 0 || matrices == 1 || matrices == rows,
              "rows must be the number of matrices where there are no offsets, got " + std::to_string(rows));
    }
  }
  w.matrix = at<const float>(matrix);
  w.matrices = matrices;
  w.d = static_cast<int>(d);
  w.factor = at<float>(factor);
  w.info = at<int32_t>(info);
  w.x = at<const void>(x);
  w.out = at<void>(out);
  w.rows = rows;
  w.b = at<const float>(b);
  w.b_stride = checked_stride(b_stride, "b_stride");
  w.order = at<const int64_t>(order);
  w.offsets = at<const int64_t>(offsets);
  w.seed = wrapped(seed);
  w.row0 = static_cast<uint32_t>(wrapped(row0));
  w.step = static_cast<uint32_t>(wrapped(step));
  w.stream = static_cast<uint32_t>(wrapped(stream));
  return w;
}

template <int LANES, int ROWS>
void run_serially(const Work& w, int visit, int parts) {
  small_cholesky::SerialTeam<LANES> team;
  team.visit = visit & (LANES - 1);
  std::vector<small_cholesky::Four> memory(small_cholesky::team_words(w.d));
  for (int64_t k = 0; k < w.matrices; ++k) {
    for (int part = 0; part < parts; ++part) {
      for (auto& word : memory)  // what is read before it was written shows
        for (float& v : word.v) v = NAN;
      small_cholesky::run<ROWS>(team, w, k, part, parts, memory.data());
    }
  }
  if (team.unsynced) throw std::runtime_error(std::to_string(team.unsynced) + " phases began before the last was synced");
}

void small_cholesky_serial(uintptr_t matrix, int64_t matrices, int64_t d, uintptr_t factor, uintptr_t info,
                           const std::string& dtype, uintptr_t x, uintptr_t out, int64_t rows, uintptr_t b,
                           int64_t b_stride, uintptr_t order, uintptr_t offsets, py::int_ seed, py::int_ row0,
                           py::int_ step, py::int_ stream, int visit, int parts) {
  require(parts >= 1, "parts must be at least 1, got " + std::to_string(parts));
  const Work w = work_of(matrix, matrices, d, factor, info, dtype, x, out, rows, b, b_stride, order, offsets, seed, row0,
                         step, stream);
  if (d == 0) return;
  (d <= 16   ? run_serially<16, 1>
   : d <= 32 ? run_serially<32, 1>
   : d <= 64 ? run_serially<32, 2>
             : run_serially<64, 2>)(w, visit, parts);
}

#if defined(ANSN_CUDA)
void small_cholesky_cuda(uintptr_t matrix, int64_t matrices, int64_t d, uintptr_t factor, uintptr_t info,
                         const std::string& dtype, uintptr_t x, uintptr_t out, int64_t rows, uintptr_t b,
                         int64_t b_stride, uintptr_t order, uintptr_t offsets, py::int_ seed, py::int_ row0,
                         py::int_ step, py::int_ stream, int device, uintptr_t cuda_stream) {
  const Work w = work_of(matrix, matrices, d, factor, info, dtype, x, out, rows, b, b_stride, order, offsets, seed, row0,
                         step, stream);
  if (d == 0 || matrices == 0) return;
  const char* error = cuda::cholesky(w, device, cuda_stream);
  if (error) throw std::runtime_error(std::string("cholesky on cuda:") + std::to_string(device) + ": " + error);
}

py::object cuda_problem(int device) {
  const char* problem = cuda::problem(device);
  return problem ? py::object(py::str(problem)) : py::object(py::none());
}
#endif

}  // namespace

void bind_small_cholesky(py::module_& m) {
  m.def("small_cholesky_serial", &small_cholesky_serial, py::arg("matrix"), py::arg("matrices"), py::arg("d"),
        py::arg("factor"), py::arg("info"), py::arg("dtype"), py::arg("x"), py::arg("out"), py::arg("rows"), py::arg("b"),
        py::arg("b_stride"), py::arg("order"), py::arg("offsets"), py::arg("seed"), py::arg("row0"), py::arg("step"),
        py::arg("stream"), py::arg("visit") = 0, py::arg("parts") = 1,
        R"(The GPU's small Cholesky kernel on the CPU, one lane after the other: for tests, not for speed.

matrix: float32 [matrices, d, d], d <= 128, of which the lower triangle is read; factor: the same, or 0 if not wanted;
info: int32 [matrices]. dtype 'f32', 'bf16' or 'f16' of x and out [rows, d]: out_r = x_r + b_r L_k z_r; rows = 0: no draw.
order int64 [rows] and offsets int64 [matrices + 1]: the rows sorted by matrix and where each matrix's begin; both 0: row r
takes matrix r, or the only one. visit: which order the lanes are visited in; parts: blocks that share a matrix's rows.
Raises ValueError, and RuntimeError where a phase was not ended by a sync.)");
  m.def("small_cholesky_shared_bytes", [](int d) { return sizeof(small_cholesky::Four) * small_cholesky::team_words(d); },
        py::arg("d"), "Shared memory that the GPU's kernel uses for one matrix of d x d.");
#if defined(ANSN_CUDA)
  m.def("small_cholesky_cuda", &small_cholesky_cuda, py::arg("matrix"), py::arg("matrices"), py::arg("d"),
        py::arg("factor"), py::arg("info"), py::arg("dtype"), py::arg("x"), py::arg("out"), py::arg("rows"), py::arg("b"),
        py::arg("b_stride"), py::arg("order"), py::arg("offsets"), py::arg("seed"), py::arg("row0"), py::arg("step"),
        py::arg("stream"), py::arg("device"), py::arg("cuda_stream"),
        "small_cholesky_serial's work, queued on a stream of a GPU; addresses are the device's. Raises ValueError, and "
        "RuntimeError where it cannot be queued.");
  m.def("cuda_problem", &cuda_problem, py::arg("device"), "Why the CUDA kernels cannot run on this device, or None.");
#endif
}

}  // namespace bindings
}  // namespace ansn
