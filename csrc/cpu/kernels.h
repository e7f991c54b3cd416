// What the CPU kernels take and how they are reached: plain structs of addresses, sizes and strides, and one table of
// functions for each instruction set. Included by the portable code and by every instruction set's own copy, so it holds
// no function body: a body here could be emitted with AVX-512 and then be picked by the linker for everyone.
#pragma once

#include <stdint.h>

namespace ansn {
namespace cpu {

enum class Storage { f32, f64, bf16, f16 };

// out[r, j] = x + c_r (D - x) + L_j (a_r f + b_r z).  D, f, diag, region: null when absent; c, a, b: null means zero.
// Arithmetic in float32.
struct ColoredStep {
  Storage storage;                             // not f64
  void* out;
  const void *x, *D, *f;
  int64_t rows, cols;                          // contiguous
  const float *c, *a, *b;
  int64_t c_stride, a_stride, b_stride;        // 0: one for all rows, 1: one for each row
  const float* diag;                           // [K, cols]
  const int64_t* region;                       // [rows], the row of diag that each sample takes
  uint64_t seed;
  uint32_t row0, step, stream;
  int threads;
};

enum class Triangle { none, lower, upper };

// out[r, :] = x + c_r (D - x) + A y_r, y_r = a_r f + b_r z; A[i, k] = factor[region * region_stride + i * row_stride +
// k * col_stride], one of the last two strides being 1.
struct DenseStep {
  ColoredStep step;                            // diag and region unused; x null: no x, D or c
  const void* factor;
  Storage factor_storage;                      // f32 or f64
  int64_t row_stride, col_stride, region_stride, regions;
  Triangle triangle;                           // what lies beyond it is not used
  const int64_t* order;                        // [rows], rows sorted by region, or null: as they are
  const int64_t* region_first;                 // [regions + 1], where each region starts in order, or null: one region
  void* scratch;                               // dense_scratch_bytes() bytes, 64-byte aligned
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

constexpr int64_t kMostCholesky = 128;         // largest order of a matrix in Cholesky

// Lower factors of `count` matrices [d, d], and for each 0 or the order of its first minor that is not positive.
struct Cholesky {
  bool is_f64;
  const void* matrix;
  void* factor;
  int32_t* info;
  int64_t count, d;
  int threads;
  void* scratch;                               // threads * cholesky_scratch_bytes() bytes, 64-byte aligned
};

// loss_r = w_r / d sum_j (p - t)^2 and its gradient; target null: t = -z of the counters.
struct DsmLoss {
  Storage storage;
  const void *prediction, *target;
  void* gradient;
  float* loss;                                 // [rows]
  int64_t rows, cols;
  const float* weight;
  int64_t weight_stride;                       // 0: one for all rows, 1: one for each row
  uint64_t seed;
  uint32_t row0, step, stream;
  int threads;
};

struct KernelTable {
  const char* isa;
  void (*colored_step)(const ColoredStep&);
  int64_t (*dense_scratch_bytes)(const DenseStep&);
  void (*dense_step)(const DenseStep&);
  int64_t (*covariance_scratch_bytes)(const CovarianceUpdate&);
  void (*covariance_update)(const CovarianceUpdate&);
  int64_t (*row_not_finite)(const CovarianceUpdate&);
  void (*philox_words)(uint64_t seed, uint32_t row, uint32_t step, uint32_t stream, uint32_t quad0, int64_t quads,
                       uint32_t* words);
  void (*normals)(uint64_t seed, uint32_t row, uint32_t step, uint32_t stream, int64_t quads, float* z);
  void (*normals_from_words)(const uint32_t* words, int64_t quads, float* z);
  int64_t (*cholesky_scratch_bytes)(bool is_f64, int64_t d);
  void (*cholesky)(const Cholesky&);
  void (*dsm_loss)(const DsmLoss&);
};

}  // namespace cpu
}  // namespace ansn
