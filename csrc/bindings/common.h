// What the bindings share: addresses, storage names, checks, and the scratch memory of a calling thread. The bindings take
// addresses, sizes and strides as integers and link no libtorch, so one build serves every torch. What can be checked
// without knowing the tensors is checked here; shapes, dtypes and devices are the business of ansn.ops.
#pragma once

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <memory>
#include <new>
#include <stdexcept>
#include <string>
#include <vector>

#include "cpu/dispatch.h"
#include "cpu/kernels.h"

namespace ansn {
namespace bindings {

namespace py = pybind11;
using cpu::Storage;

// Integers modulo 2^64: the random number contract takes seed, row, step and stream that way, negative ones included.
inline uint64_t wrapped(const py::int_& value) {
  const unsigned long long bits = PyLong_AsUnsignedLongLongMask(value.ptr());
  if (bits == ~0ULL && PyErr_Occurred()) throw py::error_already_set();
  return bits;
}

template <class T>
T* at(uintptr_t address) {
  return reinterpret_cast<T*>(address);
}

// A coefficient of the rows: a number for all of them, or the address of as many float32 as its stride says, 0: absent.
class Coefficient {
 public:
  Coefficient() = default;
  Coefficient(uintptr_t address) : address_(address) {}
  explicit Coefficient(float number) : is_number_(true), number_(number) {}
  // Of a number: an address within this.
  const float* values() const { return is_number_ ? &number_ : at<const float>(address_); }

 private:
  bool is_number_ = false;
  float number_ = 0;
  uintptr_t address_ = 0;
};

inline Storage storage_of(const std::string& name, const char* argument) {
  if (name == "f32") return Storage::f32;
  if (name == "f64") return Storage::f64;
  if (name == "bf16") return Storage::bf16;
  if (name == "f16") return Storage::f16;
  throw std::invalid_argument(std::string(argument) + " must be 'f32', 'f64', 'bf16' or 'f16', got '" + name + "'");
}

inline void require(bool condition, const std::string& message) {
  if (!condition) throw std::invalid_argument(message);
}

// Of what is computed in float32.
inline Storage single_or_half(const std::string& dtype) {
  require(dtype == "f32" || dtype == "bf16" || dtype == "f16",
          "dtype must be 'f32', 'bf16' or 'f16', got '" + dtype + "'");
  return storage_of(dtype, "dtype");
}

inline void check_sizes(int64_t rows, int64_t cols, int threads) {
  require(rows >= 0, "rows must be at least 0, got " + std::to_string(rows));
  require(cols >= 0, "cols must be at least 0, got " + std::to_string(cols));
  require(threads >= 1, "threads must be at least 1, got " + std::to_string(threads));
}

inline int64_t checked_stride(int64_t stride, const char* argument) {
  require(stride == 0 || stride == 1, std::string(argument) + " must be 0 (one for all rows) or 1 (one for each row), got " +
                                          std::to_string(stride));
  return stride;
}

inline void check_regions(const int64_t* region, int64_t rows, int64_t regions) {
  int64_t low = rows ? region[0] : 0, high = low;
  for (int64_t r = 0; r < rows; ++r) {
    low = std::min(low, region[r]);
    high = std::max(high, region[r]);
  }
  require(low >= 0 && high < regions, "region: got values " + std::to_string(low) + ".." + std::to_string(high) +
                                          ", expected 0.." + std::to_string(regions - 1));
}

// The rows of a batch by region, in the batch's order within each: a counting sort. Without region, all are of the first.
struct RowsByRegion {
  std::vector<int64_t> starts, order;  // order stays empty where it would be the batch's

  RowsByRegion(const int64_t* region, int64_t rows, int64_t regions) : starts(static_cast<size_t>(regions) + 1, 0) {
    if (!region) {
      std::fill(starts.begin() + 1, starts.end(), rows);
      return;
    }
    check_regions(region, rows, regions);
    for (int64_t r = 0; r < rows; ++r) ++starts[region[r] + 1];
    for (int64_t k = 0; k < regions; ++k) starts[k + 1] += starts[k];
    if (regions == 1) return;
    order.resize(rows);
    std::vector<int64_t> next(starts.begin(), starts.end() - 1);
    for (int64_t r = 0; r < rows; ++r) order[next[region[r]]++] = r;
  }

  const int64_t* order_or_null() const { return order.empty() ? nullptr : order.data(); }
};

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

}  // namespace bindings
}  // namespace ansn

namespace pybind11 {
namespace detail {

// A float is a number, an int an address, None absent.
template <>
struct type_caster<ansn::bindings::Coefficient> {
  PYBIND11_TYPE_CASTER(ansn::bindings::Coefficient, const_name("float | int | None"));
  bool load(handle from, bool) {
    if (PyFloat_Check(from.ptr())) {
      value = ansn::bindings::Coefficient(static_cast<float>(PyFloat_AS_DOUBLE(from.ptr())));
      return true;
    }
    if (from.is_none()) {
      value = ansn::bindings::Coefficient();
      return true;
    }
    if (!PyLong_Check(from.ptr())) return false;
    value = ansn::bindings::Coefficient(static_cast<uintptr_t>(PyLong_AsUnsignedLongLongMask(from.ptr())));
    return true;
  }
};

}  // namespace detail
}  // namespace pybind11
