// What the CPU kernels take and how they are reached: plain structs of addresses, sizes and strides, and one table of
// functions for each instruction set. Included by the portable code and by every instruction set's own copy, so it holds
// no function body: a body here could be emitted with AVX-512 and then be picked by the linker for everyone.
#pragma once

#include <stdint.h>

namespace ansn {
namespace cpu {

enum class Storage { f32, f64, bf16, f16 };

// out[r, j] = x + c_r (D - x) + L_j (a_r f + b_r z).  x, D, f, diag, region: null when absent; c, a, b: null means zero.
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

constexpr int kMostAxes = 4;
constexpr int64_t kLongestAxis = 256;          // whose basis the kernels below multiply with

// An orthonormal basis Q = Q_1 (x) ... (x) Q_A of rows shaped by their axes, of each region.
struct Axes {
  int count;                                   // at least 1
  int64_t size[kMostAxes];
  const void* basis[kMostAxes];                // [K, n, n] or [1, n, n], contiguous; null: the identity
  int64_t stride[kMostAxes];                   // from one region's to the next
  bool basis_is_f64;
  const int64_t* region;                       // [rows], or null: all are of region 0
  int64_t used;                                // regions in use,
  const int64_t *listed, *slot;                // their numbers [used], and the place of each in this list [K] or null
};

// out = y or v - y, y = [Q] (w [Q^T] (v - m)), w = weights, or 1 / (weights / tau2 + 1). Arithmetic is float64 for float64
// rows, else float32; center, weights and tau2 are of its type.
struct SeparableApply {
  Axes axes;
  Storage storage;
  void* out;
  const void* v;                               // not out
  int64_t rows, cols;                          // contiguous
  const void *center, *weights, *tau2;         // [K or 1, cols] each, [rows or 1]; null when absent
  int64_t center_stride, weight_stride;        // from one region's to the next
  int64_t tau2_stride;                         // 0 or 1
  bool inward, outward, rest;
  int threads;
  void* scratch;                               // separable_apply_scratch_bytes(), 64-byte aligned; so are the ones below
};

// out = x + c (D - x) + Q (s (a f + b z)); step.diag is s, [K or 1, cols], step.region is not read.
struct SeparableStep {
  Axes axes;
  ColoredStep step;
  int64_t deviation_stride;
  void* scratch;
};

// rows.mean, weight, weight2 as of CovarianceUpdate; rows.scatter [K, cols] of the coordinates Q^T (x - m), scatter
// [K, n, n] of the axes, null where there is none. The bases are of K regions, all listed.
struct SeparableUpdate {
  Axes axes;
  CovarianceUpdate rows;
  void* scatter[kMostAxes];
};

// ln(w_k N(x; m_k, S_k + sigma^2 I)) of each region and row, less the constant; and, unless out is null, the denoiser of
// the mixture, x - sum_k p_k Q_k (sigma^2 / (lambda_k + sigma^2)) Q_k^T (x - m_k).
struct Mixture {
  Axes axes;                                   // of K regions, all listed
  Storage storage;                             // not f64
  void* out;
  const void* x;
  int64_t rows, cols, regions;                 // contiguous
  const float *center, *variances;             // [K, cols]
  const double* log_weights;                   // [K]
  const float* sigma2;
  int64_t sigma2_stride;                       // 0 or 1
  double* logs;                                // [K, rows]
  int threads;
  void* scratch;
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
  int64_t (*separable_apply_scratch_bytes)(const SeparableApply&);
  void (*separable_apply)(const SeparableApply&);
  int64_t (*separable_step_scratch_bytes)(const SeparableStep&);
  void (*separable_step)(const SeparableStep&);
  int64_t (*separable_update_scratch_bytes)(const SeparableUpdate&);
  void (*separable_update)(const SeparableUpdate&);
  int64_t (*mixture_scratch_bytes)(const Mixture&);
  void (*mixture)(const Mixture&);
};

}  // namespace cpu
}  // namespace ansn
