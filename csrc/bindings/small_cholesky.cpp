// Small Cholesky factors: on a GPU where CUDA was built, and the same text on the CPU, lane after lane, for tests.
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

using small_cholesky::Four;
using small_cholesky::Work;

// Calls run(work) with the arrays of the dtype.
template <class Run>
void with_work(const std::string& dtype, uintptr_t matrix, int64_t matrices, int64_t d, uintptr_t factor, uintptr_t info,
               Run run) {
  require(dtype == "f32" || dtype == "f64", "dtype must be 'f32' or 'f64', got '" + dtype + "'");
  require(matrices >= 0, "matrices must be at least 0, got " + std::to_string(matrices));
  require(d >= 0 && d <= small_cholesky::kMaximum,
          "d must be 0 to " + std::to_string(small_cholesky::kMaximum) + ", got " + std::to_string(d));
  if (matrices == 0 || d == 0) return;
  require(matrix != 0, "matrix must be an address, got 0");
  require(factor != 0, "factor must be an address, got 0");
  require(info != 0, "info must be an address, got 0");
  const auto call = [&](auto number) {
    using T = decltype(number);
    run(Work<T>{at<const T>(matrix), matrices, static_cast<int>(d), at<T>(factor), at<int32_t>(info)});
  };
  if (dtype == "f32")
    call(0.0f);
  else
    call(0.0);
}

template <int LANES, class T>
void run_serially(const Work<T>& w, int visit) {
  small_cholesky::SerialTeam<LANES> team;
  team.visit = visit & (LANES - 1);
  std::vector<Four<T>> memory(small_cholesky::team_words(w.d));
  for (int64_t k = 0; k < w.matrices; ++k) {
    for (auto& word : memory)  // what is read before it was written shows
      for (T& v : word.v) v = NAN;
    small_cholesky::run(team, w, k, memory.data());
  }
  if (team.unsynced) throw std::runtime_error(std::to_string(team.unsynced) + " phases began before the last was synced");
}

void small_cholesky_serial(const std::string& dtype, uintptr_t matrix, int64_t matrices, int64_t d, uintptr_t factor,
                           uintptr_t info, int visit) {
  with_work(dtype, matrix, matrices, d, factor, info, [&](const auto& w) {
    d <= 16   ? run_serially<16>(w, visit)
    : d <= 32 ? run_serially<32>(w, visit)
    : d <= 64 ? run_serially<64>(w, visit)
              : run_serially<128>(w, visit);
  });
}

#if defined(ANSN_CUDA)
void small_cholesky_cuda(const std::string& dtype, uintptr_t matrix, int64_t matrices, int64_t d, uintptr_t factor,
                         uintptr_t info, int device, uintptr_t cuda_stream) {
  with_work(dtype, matrix, matrices, d, factor, info, [&](const auto& w) {
    const char* error = cuda::cholesky(w, device, cuda_stream);
    if (error) throw std::runtime_error(std::string("cholesky on cuda:") + std::to_string(device) + ": " + error);
  });
}

py::object cuda_problem(int device) {
  const char* problem = cuda::problem(device);
  return problem ? py::object(py::str(problem)) : py::object(py::none());
}
#endif

}  // namespace

void bind_small_cholesky(py::module_& m) {
  m.def("small_cholesky_serial", &small_cholesky_serial, py::arg("dtype"), py::arg("matrix"), py::arg("matrices"),
        py::arg("d"), py::arg("factor"), py::arg("info"), py::arg("visit") = 0,
        R"(The GPU's small Cholesky kernel on the CPU, one lane after the other: for tests, not for speed.

dtype: f32 or f64; matrix: [matrices, d, d], d <= 128, of which the lower triangle is read; factor: the same, zero above
the diagonal; info: int32 [matrices]. visit: which order the lanes are visited in. Raises ValueError, and RuntimeError where
a phase was not ended by a sync.)");
  m.def("small_cholesky_shared_bytes", [](int d, int size) { return 4 * size * small_cholesky::team_words(d); },
        py::arg("d"), py::arg("size"), "Shared memory of the GPU's kernel for one matrix of d x d numbers of so many bytes.");
#if defined(ANSN_CUDA)
  m.def("small_cholesky_cuda", &small_cholesky_cuda, py::arg("dtype"), py::arg("matrix"), py::arg("matrices"), py::arg("d"),
        py::arg("factor"), py::arg("info"), py::arg("device"), py::arg("cuda_stream"),
        "small_cholesky_serial's work, queued on a stream of a GPU; addresses are the device's. Raises ValueError, and "
        "RuntimeError where it cannot be queued.");
  m.def("cuda_problem", &cuda_problem, py::arg("device"), "Why the CUDA kernels cannot run on this device, or None.");
#endif
}

}  // namespace bindings
}  // namespace ansn
