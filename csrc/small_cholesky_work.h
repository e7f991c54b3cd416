// What the small Cholesky kernel takes: plain, so that bindings and device code share it.
#pragma once

#include <stdint.h>

#include "cpu/kernels.h"

namespace ansn {
namespace small_cholesky {

constexpr int kMaximum = 128;  // largest d

// What one launch does. Addresses of contiguous arrays; null where absent.
struct Work {
  const float* matrix;     // [matrices, d, d], the lower triangle is read
  int64_t matrices;
  int d;
  float* factor;           // [matrices, d, d], zero above the diagonal, or null: not asked for
  int32_t* info;           // [matrices]: 0, or the order of the first leading minor that is not positive
  cpu::Storage storage;    // of x and out: f32, bf16 or f16
  const void* x;           // [rows, d]
  void* out;
  int64_t rows;            // 0: no draw
  const float* b;          // [1] or [rows]
  int64_t b_stride;        // 0 or 1
  const int64_t* order;    // [rows], the rows sorted by matrix; null: row r takes matrix r (or all take the only one)
  const int64_t* offsets;  // [matrices + 1], the part of order that each matrix has
  uint64_t seed;
  uint32_t row0, step, stream;
};

}  // namespace small_cholesky
}  // namespace ansn
