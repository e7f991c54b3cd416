// What the CPU kernels take and how they are reached: plain structs of addresses, sizes and strides, and one table of
// functions for each instruction set. Included by the portable code and by every instruction set's own copy, so it holds
// no function body: a body here could be emitted with AVX-512 and then be picked by the linker for everyone.
#pragma once

#include <stdint.h>

namespace ansn {
namespace cpu {

enum class Storage { f32, f64, bf16, f16 };

// out[r, j] = x + c_r (D - x) + L_j (a_r f + b_r z).  D, f, diag, region: null when absent; c, a, b: null means zero.
struct ColoredStep {
  Storage storage;
  void* out;
  const void *x, *D, *f;
  int64_t rows, cols;
  int64_t ld_out, ld_x, ld_D, ld_f;            // row strides, in elements
  const void *c, *a, *b;                       // float32; float64 when storage is f64
  int64_t c_stride, a_stride, b_stride;        // 0: one for all rows, 1: one for each row
  const void* diag;                            // [K, cols], float32; float64 when storage is f64
  const int64_t* region;                       // [rows], the row of diag that each sample takes
  uint64_t seed;
  uint32_t row0, step, stream;
  int threads;
};

// Scales the state of every region by decay and merges the rows of x into it. Lower triangle only, or the diagonal alone.
struct CovarianceUpdate {
  bool state_is_f64;
  double *weight, *weight2;                    // [regions]
  void* mean;                                  // [regions, cols]
  void* scatter;                               // [regions, cols, cols], or [regions, cols] when diagonal
  const void* x;
  Storage x_storage;
  int64_t rows, cols, ld_x;
  int64_t regions;
  const int64_t* starts;                       // [regions + 1]: region k has the rows order[starts[k] .. starts[k + 1])
  const int64_t* order;                        // [rows], or null: 0, 1, 2, ...
  double decay;
  bool diagonal;
  int threads;
  void* scratch;                               // covariance_scratch_bytes() bytes, 64-byte aligned
};

struct KernelTable {
  const char* isa;
  void (*colored_step)(const ColoredStep&);
  int64_t (*covariance_scratch_bytes)(const CovarianceUpdate&);
  void (*covariance_update)(const CovarianceUpdate&);
  int64_t (*row_not_finite)(const CovarianceUpdate&);
  void (*philox_words)(uint64_t seed, uint32_t row, uint32_t step, uint32_t stream, int64_t quads, uint32_t* words);
  void (*normals)(uint64_t seed, uint32_t row, uint32_t step, uint32_t stream, int64_t quads, float* z);
  void (*normals_from_words)(const uint32_t* words, int64_t quads, float* z);
};

}  // namespace cpu
}  // namespace ansn
