// The Python face of the native kernels: the module ansn._native. It takes addresses, sizes and strides as integers and
// links no libtorch, so one build serves every torch. What can be checked without knowing the tensors is checked here;
// shapes, dtypes and devices are the business of ansn.ops.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <memory>
#include <stdexcept>
#include <string>

#include "cpu/dispatch.h"
#include "cpu/kernels.h"

namespace py = pybind11;
using ansn::cpu::Storage;

namespace {

// Integers modulo 2^64: the random number contract takes seed, row, step and stream that way, negative ones included.
uint64_t wrapped(const py::int_& value) {
  const unsigned long long bits = PyLong_AsUnsignedLongLongMask(value.ptr());
  if (bits == ~0ULL && PyErr_Occurred()) throw py::error_already_set();
  return bits;
}

template <class T>
T* at(uintptr_t address) {
  return reinterpret_cast<T*>(address);
}

Storage storage_of(const std::string& name, const char* argument) {
  if (name == "f32") return Storage::f32;
  if (name == "f64") return Storage::f64;
  if (name == "bf16") return Storage::bf16;
  if (name == "f16") return Storage::f16;
  throw std::invalid_argument(std::string(argument) + " must be 'f32', 'f64', 'bf16' or 'f16', got '" + name + "'");
}

void require(bool condition, const std::string& message) {
  if (!condition) throw std::invalid_argument(message);
}

void check_sizes(int64_t rows, int64_t cols, int threads) {
  require(rows >= 0, "rows must be at least 0, got " + std::to_string(rows));
  require(cols >= 0, "cols must be at least 0, got " + std::to_string(cols));
  require(threads >= 1, "threads must be at least 1, got " + std::to_string(threads));
}

int64_t checked_stride(int64_t stride, const char* argument) {
  require(stride == 0 || stride == 1, std::string(argument) + " must be 0 (one for all rows) or 1 (one for each row), got " +
                                          std::to_string(stride));
  return stride;
}

void colored_step(const std::string& dtype, uintptr_t out, uintptr_t x, uintptr_t D, uintptr_t f, int64_t rows, int64_t cols,
                  int64_t ld_out, int64_t ld_x, int64_t ld_D, int64_t ld_f, uintptr_t c, uintptr_t a, uintptr_t b,
                  int64_t c_stride, int64_t a_stride, int64_t b_stride, uintptr_t diag, uintptr_t region, py::int_ seed,
                  py::int_ row0, py::int_ step, py::int_ stream, int threads, const std::string& isa) {
  check_sizes(rows, cols, threads);
  ansn::cpu::ColoredStep p;
  p.storage = storage_of(dtype, "dtype");
  if (rows == 0 || cols == 0) return;
  require(out != 0, "out must be an address, got 0");
  require(x != 0, "x must be an address, got 0");
  p.out = at<void>(out);
  p.x = at<const void>(x);
  p.D = at<const void>(D);
  p.f = at<const void>(f);
  p.rows = rows;
  p.cols = cols;
  p.ld_out = ld_out;
  p.ld_x = ld_x;
  p.ld_D = ld_D;
  p.ld_f = ld_f;
  p.c = at<const void>(c);
  p.a = at<const void>(a);
  p.b = at<const void>(b);
  p.c_stride = checked_stride(c_stride, "c_stride");
  p.a_stride = checked_stride(a_stride, "a_stride");
  p.b_stride = checked_stride(b_stride, "b_stride");
  p.diag = at<const void>(diag);
  p.region = at<const int64_t>(region);
  p.seed = wrapped(seed);
  p.row0 = static_cast<uint32_t>(wrapped(row0));
  p.step = static_cast<uint32_t>(wrapped(step));
  p.stream = static_cast<uint32_t>(wrapped(stream));
  p.threads = threads;
  const ansn::cpu::KernelTable& table = ansn::cpu::kernels(isa);
  py::gil_scoped_release unlocked;
  table.colored_step(p);
}

// One buffer for each calling thread, kept between calls: fresh pages cost a page fault each, a tenth of an update.
class Scratch {
 public:
  void* reserve(int64_t bytes) {
    if (bytes > size_) {
      memory_.reset();
      size_ = 0;
      const size_t rounded = (static_cast<size_t>(bytes) + 4095) / 4096 * 4096;
      memory_.reset(std::aligned_alloc(64, rounded));
      if (!memory_) throw std::bad_alloc();
      size_ = static_cast<int64_t>(rounded);
    }
    return memory_.get();
  }
  void trim() {  // what a very wide state needed is not held forever
    if (size_ <= kKept) return;
    memory_.reset();
    size_ = 0;
  }

 private:
  static constexpr int64_t kKept = 64 << 20;
  struct Free {
    void operator()(void* memory) const { std::free(memory); }
  };
  std::unique_ptr<void, Free> memory_;
  int64_t size_ = 0;
};

void covariance_update(const std::string& dtype, double count, uintptr_t mean, uintptr_t scatter, uintptr_t x,
                       const std::string& x_dtype, int64_t rows, int64_t cols, int64_t ld_x, uintptr_t row_index,
                       bool diagonal, int threads, const std::string& isa) {
  static thread_local Scratch scratch;
  check_sizes(rows, cols, threads);
  require(dtype == "f32" || dtype == "f64", "dtype of the state must be 'f32' or 'f64', got '" + dtype + "'");
  require(std::isfinite(count) && count >= 0,
          "n_before must be a finite count of at least 0, got " + std::to_string(count));
  ansn::cpu::CovarianceUpdate p;
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
  const ansn::cpu::KernelTable& table = ansn::cpu::kernels(isa);
  p.scratch = scratch.reserve(table.covariance_scratch_bytes(p));
  {
    py::gil_scoped_release unlocked;
    table.covariance_update(p);
  }
  scratch.trim();
}

template <class T>
py::array_t<T> quad_array(int64_t quads) {
  require(quads >= 0, "quads must be at least 0, got " + std::to_string(quads));
  return py::array_t<T>({static_cast<py::ssize_t>(quads), static_cast<py::ssize_t>(4)});
}

py::array_t<uint32_t> philox_words(py::int_ seed, py::int_ row, py::int_ step, py::int_ stream, int64_t quads,
                                   const std::string& isa) {
  py::array_t<uint32_t> words = quad_array<uint32_t>(quads);
  ansn::cpu::kernels(isa).philox_words(wrapped(seed), static_cast<uint32_t>(wrapped(row)),
                                       static_cast<uint32_t>(wrapped(step)), static_cast<uint32_t>(wrapped(stream)), quads,
                                       words.mutable_data());
  return words;
}

py::array_t<float> normals(py::int_ seed, py::int_ row, py::int_ step, py::int_ stream, int64_t quads,
                           const std::string& isa) {
  py::array_t<float> z = quad_array<float>(quads);
  ansn::cpu::kernels(isa).normals(wrapped(seed), static_cast<uint32_t>(wrapped(row)), static_cast<uint32_t>(wrapped(step)),
                                  static_cast<uint32_t>(wrapped(stream)), quads, z.mutable_data());
  return z;
}

py::array_t<float> normals_from_words(const py::array_t<uint32_t, py::array::c_style | py::array::forcecast>& words,
                                      const std::string& isa) {
  require(words.ndim() == 2 && words.shape(1) == 4, "words must have shape [n, 4]");
  py::array_t<float> z = quad_array<float>(words.shape(0));
  ansn::cpu::kernels(isa).normals_from_words(words.data(), words.shape(0), z.mutable_data());
  return z;
}

py::dict build_info() {
  py::dict info;
  info["compiler"] = ANSN_COMPILER;
  info["isas"] = ansn::cpu::built_isas();
#if defined(ANSN_OPENMP)
  info["openmp"] = true;
#else
  info["openmp"] = false;
#endif
  info["cuda"] = false;
  return info;
}

}  // namespace

PYBIND11_MODULE(_native, m) {
  m.doc() = "Native CPU kernels of ansn. Addresses are integers (0: absent); use ansn.ops for checked tensors.";
  m.def("colored_step", &colored_step, py::arg("dtype"), py::arg("out"), py::arg("x"), py::arg("D"), py::arg("f"),
        py::arg("rows"), py::arg("cols"), py::arg("ld_out"), py::arg("ld_x"), py::arg("ld_D"), py::arg("ld_f"),
        py::arg("c"), py::arg("a"), py::arg("b"), py::arg("c_stride"), py::arg("a_stride"), py::arg("b_stride"),
        py::arg("diag"), py::arg("region"), py::arg("seed"), py::arg("row0"), py::arg("step"), py::arg("stream"),
        py::arg("threads"), py::arg("isa") = "",
        R"(out[r, j] = x + c_r (D - x) + L_j (a_r f + b_r z), L the identity or diagonal; out may be x.

dtype: 'f32', 'bf16', 'f16' (arithmetic in float32; c, a, b, diag are float32) or 'f64' (all float64).
Row r of the noise is global row (row0 + r) mod 2^32; b = 0 (the address) means no noise and no random numbers.
diag: address of [K, cols], or 0 for L = I; region: address of int64 [rows] that picks the row of diag, or 0.
ld_*: row strides in elements; *_stride: 0 for one coefficient, 1 for one a row. Raises ValueError.)");
  m.def("covariance_update", &covariance_update, py::arg("dtype"), py::arg("n_before"), py::arg("mean"),
        py::arg("scatter"), py::arg("x"), py::arg("x_dtype"), py::arg("rows"), py::arg("cols"), py::arg("ld_x"),
        py::arg("row_index"), py::arg("diagonal"), py::arg("threads"), py::arg("isa") = "",
        R"(Merges rows of x into (n, mean, scatter) in place; the caller adds rows to n.

dtype: 'f32' or 'f64', of mean [cols] and scatter: [cols, cols] row-major, of which only the lower triangle is read or
written, or [cols] when diagonal. x_dtype: 'f32', 'f64', 'bf16' or 'f16'.
row_index: address of int64 [rows], the rows of x to take, or 0 for the first `rows`. Raises ValueError.)");
  m.def("philox_words", &philox_words, py::arg("seed"), py::arg("row"), py::arg("step"), py::arg("stream"), py::arg("quads"),
        py::arg("isa") = "", "Philox4x32-10 words of columns 0 .. 4 quads - 1 of one row: uint32 [quads, 4].");
  m.def("normals", &normals, py::arg("seed"), py::arg("row"), py::arg("step"), py::arg("stream"), py::arg("quads"),
        py::arg("isa") = "", "Standard normals of columns 0 .. 4 quads - 1 of one row: float32 [quads, 4].");
  m.def("normals_from_words", &normals_from_words, py::arg("words"), py::arg("isa") = "",
        "Box-Muller on given words: uint32 [n, 4] to float32 [n, 4].");
  m.def("supported_isas", &ansn::cpu::supported_isas, "Built instruction sets that this CPU runs, narrowest first.");
  m.def("cpu_isa", [] { return std::string(ansn::cpu::kernels().isa); },
        "The instruction set in use; raises ValueError when ANSN_CPU_ISA names one that cannot be.");
  m.def("build_info", &build_info, "What was built: compiler, instruction sets, OpenMP, CUDA.");
}
