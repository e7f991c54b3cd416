// The product of a dense factor A with packed right-hand sides, a block of it at a time:
//
//     sums[i, r] (+)= sum_k A[i, k] y[k, r],   y and sums rows of kWidth elements
//
// Two ways, to the same bits: for many right-hand sides r a vector holds kLanes of them and elements of A are broadcast; for
// one to kFewRows of them, where such vectors would be mostly empty, a vector holds rows i of A and elements of y are
// broadcast. Either way an element's products are summed one by one in the order of k.
#pragma once

#include "kernels.h"
#include "storage.h"
#include "transpose.h"

namespace ansn {
namespace ANSN_ISA {
namespace {
namespace dense {

typedef float Vector __attribute__((vector_size(ANSN_VECTOR_BYTES)));
typedef float Unaligned __attribute__((vector_size(ANSN_VECTOR_BYTES), aligned(4), may_alias));

constexpr int kLanes = ANSN_VECTOR_BYTES / 4;
constexpr int kVectors = 3;
constexpr int kWidth = kVectors * kLanes;  // rows of the batch in a panel: 48, 24 or 12
// kRows x kVectors sums, kVectors elements of y and one of A fit the registers (32 with AVX-512, else 16).
constexpr int kRows = ANSN_VECTOR_BYTES == 64 ? 8 : 4;
// Columns of A at a time: kRows rows of them, a slab, stay in the first-level cache and as many of y in the second.
constexpr int64_t kDepth = 384;
constexpr int64_t kSlabStride = kDepth + 16;  // no two rows of a slab 4096 bytes apart

inline int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }
inline int64_t most(int64_t a, int64_t b) { return a > b ? a : b; }
inline int64_t divide_up(int64_t a, int64_t b) { return (a + b - 1) / b; }

// Rows [i0, i0 + kRows), columns [k0, k1) of A, in float32; zero beyond the last row and across the diagonal.
template <class A>
void copy_slab(const cpu::DenseStep& p, const typename A::Memory* factor, int64_t i0, int64_t k0, int64_t k1, float* to) {
  const int64_t rows = least(p.step.cols - i0, kRows), count = k1 - k0;
  const typename A::Memory* from = factor + i0 * p.row_stride + k0 * p.col_stride;
  if (p.col_stride == 1) {
    for (int64_t i = 0; i < rows; ++i) load_row<A>(from + i * p.row_stride, count, to + i * kSlabStride);
  } else {
    load_transposed<A>(from, p.col_stride, count, rows, to, kSlabStride);
  }
  for (int64_t i = rows; i < kRows; ++i)
    for (int64_t k = 0; k < count; ++k) to[i * kSlabStride + k] = 0;
  for (int64_t i = 0; i < rows; ++i) {
    if (p.triangle == cpu::Triangle::lower)
      for (int64_t k = most(i0 + i + 1, k0); k < k1; ++k) to[i * kSlabStride + k - k0] = 0;
    if (p.triangle == cpu::Triangle::upper)
      for (int64_t k = k0; k < least(i0 + i, k1); ++k) to[i * kSlabStride + k - k0] = 0;
  }
}

// sums[i, :] (+)= sum_k slab[i, k] y[k, :] for kUsed vectors of rows.
template <int kUsed>
void multiply(const float* slab, const float* y, int64_t depth, bool add, float* sums) {
  Vector sum[kRows][kUsed] = {};
  for (int64_t k = 0; k < depth; ++k, ++slab, y += kWidth) {
    Vector right[kUsed];
#pragma GCC unroll 4
    for (int v = 0; v < kUsed; ++v) right[v] = *(const Vector*)(y + v * kLanes);
#pragma GCC unroll 8
    for (int i = 0; i < kRows; ++i) {
#pragma GCC unroll 4
      for (int v = 0; v < kUsed; ++v) sum[i][v] += slab[i * kSlabStride] * right[v];
    }
  }
#pragma GCC unroll 8
  for (int i = 0; i < kRows; ++i) {
#pragma GCC unroll 4
    for (int v = 0; v < kUsed; ++v) {
      Vector* to = (Vector*)(sums + i * kWidth + v * kLanes);
      *to = add ? *to + sum[i][v] : sum[i][v];
    }
  }
}

// ---- few right-hand sides

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
