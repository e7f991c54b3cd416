// The product of dense_step.h for one to kFewRows rows, where a vector of rows would be mostly empty: a vector holds columns
// of out, and elements of y are broadcast. Every element is summed in the same order as there, to the same bits.
#pragma once

#include "kernels.h"
#include "storage.h"
#include "transpose.h"

namespace ansn {
namespace ANSN_ISA {
namespace {
namespace dense {

typedef float Unaligned __attribute__((vector_size(ANSN_VECTOR_BYTES), aligned(4), may_alias));

constexpr int64_t kFewRows = ANSN_VECTOR_BYTES == 64 ? 4 : 2;
constexpr int kStripVectors = 4;
constexpr int64_t kStrip = kStripVectors * (ANSN_VECTOR_BYTES / 4);  // columns of out at a time: 64, 32 or 16

// acc[r, :] += sum_k turned[k, :] y[k, r], with turned[k, :] kStrip columns of row k of A^T.
template <int kCount>
void multiply_strip(const float* turned, int64_t ld, const float* y, int64_t ld_y, int64_t depth, float* acc) {
  Vector sum[kCount][kStripVectors];
#pragma GCC unroll 4
  for (int r = 0; r < kCount; ++r) {
#pragma GCC unroll 4
    for (int v = 0; v < kStripVectors; ++v) sum[r][v] = *(const Vector*)(acc + r * kStrip + v * kLanes);
  }
  for (int64_t k = 0; k < depth; ++k, turned += ld, y += ld_y) {
#pragma GCC unroll 4
    for (int v = 0; v < kStripVectors; ++v) {
      const Vector a = *(const Unaligned*)(turned + v * kLanes);
#pragma GCC unroll 4
      for (int r = 0; r < kCount; ++r) sum[r][v] += a * y[r];
    }
  }
#pragma GCC unroll 4
  for (int r = 0; r < kCount; ++r) {
#pragma GCC unroll 4
    for (int v = 0; v < kStripVectors; ++v) *(Vector*)(acc + r * kStrip + v * kLanes) = sum[r][v];
  }
}

inline void multiply_few(int64_t count, const float* turned, int64_t ld, const float* y, int64_t ld_y, int64_t depth,
                         float* acc) {
  switch (count) {
    case 1: return multiply_strip<1>(turned, ld, y, ld_y, depth, acc);
    case 2: return multiply_strip<2>(turned, ld, y, ld_y, depth, acc);
    case 3: return multiply_strip<kFewRows < 3 ? 1 : 3>(turned, ld, y, ld_y, depth, acc);
    default: return multiply_strip<kFewRows < 4 ? 1 : 4>(turned, ld, y, ld_y, depth, acc);
  }
}

// A^T for kStrip columns of out from i0 on, rows [k0, k1) of it, in float32: zero beyond the last column and the diagonal.
template <class A>
void turn_strip(const cpu::DenseStep& p, const typename A::Memory* factor, int64_t i0, int64_t k0, int64_t k1, float* to) {
  const int64_t width = p.step.cols - i0 < kStrip ? p.step.cols - i0 : kStrip;
  const typename A::Memory* from = factor + i0 * p.row_stride + k0 * p.col_stride;
  if (p.row_stride == 1) {
    for (int64_t k = k0; k < k1; ++k) load_row<A>(from + (k - k0) * p.col_stride, width, to + (k - k0) * kStrip);
  } else {
    load_transposed<A>(from, p.row_stride, width, k1 - k0, to, kStrip);
  }
  for (int64_t k = k0; k < k1; ++k) {
    float* row = to + (k - k0) * kStrip;
    for (int64_t i = width; i < kStrip; ++i) row[i] = 0;
    if (p.triangle == cpu::Triangle::lower)
      for (int64_t i = 0; i < kStrip && i0 + i < k; ++i) row[i] = 0;
    if (p.triangle == cpu::Triangle::upper)
      for (int64_t i = k - i0 + 1 > 0 ? k - i0 + 1 : 0; i < kStrip; ++i) row[i] = 0;
  }
}

inline const float* in_place(const float* at) { return at; }
inline const float* in_place(const double*) { return nullptr; }

// sums[i, r] (+)= sum_k A[i, k] y[k, r] over columns [first, last) of A, kStrip rows of it from i0 on, `count` rows of y.
template <class A>
void multiply_few_rows(const cpu::DenseStep& p, const typename A::Memory* factor, int64_t i0, int64_t first, int64_t last,
                       const float* y, int64_t count, bool add, float* sums) {
  constexpr int64_t kPiece = 64;  // rows of A^T turned at a time: they stay in the first-level cache
  alignas(64) float acc[kFewRows * kStrip] = {}, turned[kPiece * kStrip];
  const bool whole = p.row_stride == 1 && i0 + kStrip <= p.step.cols;
  for (int64_t k0 = first; k0 < last; k0 += kPiece) {
    const int64_t k1 = k0 + kPiece < last ? k0 + kPiece : last;
    const bool inside = p.triangle == cpu::Triangle::none || (p.triangle == cpu::Triangle::lower ? k1 <= i0 + 1
                                                                                                 : k0 >= i0 + kStrip - 1);
    const float* direct = whole && inside ? in_place(factor + i0 + k0 * p.col_stride) : nullptr;
    if (!direct) turn_strip<A>(p, factor, i0, k0, k1, turned);
    multiply_few(count, direct ? direct : turned, direct ? p.col_stride : kStrip, y + (k0 - first) * kWidth, kWidth, k1 - k0,
                 acc);
  }
  for (int64_t i = 0; i < kStrip; ++i)
    for (int64_t r = 0; r < count; ++r)
      sums[i * kWidth + r] = add ? sums[i * kWidth + r] + acc[r * kStrip + i] : acc[r * kStrip + i];
}

}  // namespace dense
}  // namespace
}  // namespace ANSN_ISA
}  // namespace ansn
