// The random numbers themselves, for tests.
#include "bindings.h"
#include "common.h"

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

}  // namespace

void bind_random(py::module_& m) {
  m.def("philox_words", &philox_words, py::arg("seed"), py::arg("row"), py::arg("step"), py::arg("stream"), py::arg("quads"),
        py::arg("isa") = "", py::arg("quad0") = 0, "Philox4x32-10 words of columns 4 quad0 .. of one row: uint32 [quads, 4].");
  m.def("normals", &normals, py::arg("seed"), py::arg("row"), py::arg("step"), py::arg("stream"), py::arg("quads"),
        py::arg("isa") = "", "Standard normals of columns 0 .. 4 quads - 1 of one row: float32 [quads, 4].");
  m.def("normals_from_words", &normals_from_words, py::arg("words"), py::arg("isa") = "",
        "Box-Muller on given words: uint32 [n, 4] to float32 [n, 4].");
}

}  // namespace bindings
}  // namespace ansn
