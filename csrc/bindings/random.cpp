// Levels of training, and the random numbers themselves for tests.
#include "bindings.h"
#include "step_arguments.h"

namespace ansn {
namespace bindings {
namespace {

template <class T>
py::array_t<T> quad_array(int64_t quads) {
  require(quads >= 0, "quads must be at least 0, got " + std::to_string(quads));
  return py::array_t<T>({static_cast<py::ssize_t>(quads), static_cast<py::ssize_t>(4)});
}

py::array_t<uint32_t> philox_words(py::int_ seed, py::int_ row, py::int_ step, py::int_ stream, int64_t quads,
                                   const std::string& isa, uint32_t quad0) {
  py::array_t<uint32_t> words = quad_array<uint32_t>(quads);
  cpu::kernels(isa).philox_words(wrapped(seed), static_cast<uint32_t>(wrapped(row)),
                                       static_cast<uint32_t>(wrapped(step)), static_cast<uint32_t>(wrapped(stream)), quad0, quads,
                                       words.mutable_data());
  return words;
}

py::array_t<float> normals(py::int_ seed, py::int_ row, py::int_ step, py::int_ stream, int64_t quads,
                           const std::string& isa) {
  py::array_t<float> z = quad_array<float>(quads);
  cpu::kernels(isa).normals(wrapped(seed), static_cast<uint32_t>(wrapped(row)), static_cast<uint32_t>(wrapped(step)),
                                  static_cast<uint32_t>(wrapped(stream)), quads, z.mutable_data());
  return z;
}

py::array_t<float> normals_from_words(const py::array_t<uint32_t, py::array::c_style | py::array::forcecast>& words,
                                      const std::string& isa) {
  require(words.ndim() == 2 && words.shape(1) == 4, "words must have shape [n, 4]");
  py::array_t<float> z = quad_array<float>(words.shape(0));
  cpu::kernels(isa).normals_from_words(words.data(), words.shape(0), z.mutable_data());
  return z;
}

void levels(uintptr_t out, int64_t rows, uintptr_t ladder, int64_t rungs, float mean, float deviation, float low, float high,
            py::int_ seed, py::int_ row0, py::int_ step, py::int_ stream, int threads, const std::string& isa) {
  check_sizes(rows, 1, threads);
  if (rows == 0) return;
  require(ladder == 0 || rungs > 0, "rungs must be at least 1, got " + std::to_string(rungs));
  float* tau = at<float>(out);
  const Coefficient one(1.0f);
  cpu::kernels(isa).colored_step(step_of(Storage::f32, out, 0, 0, 0, rows, 1, 0, 0, one, 0, 0, 0, seed, row0, step, stream,
                                         threads));
  for (int64_t r = 0; r < rows; ++r) {
    if (ladder == 0) {
      tau[r] = std::min(std::max(std::exp(mean + deviation * tau[r]), low), high);
    } else {
      const double uniform = 0.5 * std::erfc(-static_cast<double>(tau[r]) / std::sqrt(2.0));
      tau[r] = at<const float>(ladder)[std::min(static_cast<int64_t>(uniform * static_cast<double>(rungs)), rungs - 1)];
    }
  }
}

}  // namespace

void bind_random(py::module_& m) {
  m.def("philox_words", &philox_words, py::arg("seed"), py::arg("row"), py::arg("step"), py::arg("stream"), py::arg("quads"),
        py::arg("isa") = "", py::arg("quad0") = 0, "Philox4x32-10 words of columns 4 quad0 .. of one row: uint32 [quads, 4].");
  m.def("normals", &normals, py::arg("seed"), py::arg("row"), py::arg("step"), py::arg("stream"), py::arg("quads"),
        py::arg("isa") = "", "Standard normals of columns 0 .. 4 quads - 1 of one row: float32 [quads, 4].");
  m.def("normals_from_words", &normals_from_words, py::arg("words"), py::arg("isa") = "",
        "Box-Muller on given words: uint32 [n, 4] to float32 [n, 4].");
  m.def("levels", &levels, py::arg("out"), py::arg("rows"), py::arg("ladder"), py::arg("rungs"), py::arg("mean"),
        py::arg("deviation"), py::arg("low"), py::arg("high"), py::arg("seed"), py::arg("row0"), py::arg("step"),
        py::arg("stream"), py::arg("threads"), py::arg("isa") = "",
        R"(out[r] = exp(mean + deviation z_r) within low and high, or (ladder not 0) ladder[floor(Phi(z_r) rungs)]; float32.

z_r is the first normal of global row (row0 + r) mod 2^32. Raises ValueError.)");
}

}  // namespace bindings
}  // namespace ansn
