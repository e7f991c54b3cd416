// Products of one row of data, shaped by its axes, with an orthonormal basis that is a product of small ones:
//
//     Q = Q_1 (x) ... (x) Q_A,     Q v: one small matrix product an axis, Q^T v the same with the transposes
//
// The row lies in the first-level cache as lines along its last axis, each padded with zeros to whole vectors. Along the
// last axis the lines are the left factor of a product, along any other the basis is. A sum runs over one axis in the order
// of its points whatever tile it falls in, so a row's bits do not depend on the batch or on threads.
#pragma once

#include "kernels.h"
#include "storage.h"

namespace ansn {
namespace ANSN_ISA {
namespace {
namespace axes {

inline int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }
inline int64_t most(int64_t a, int64_t b) { return a > b ? a : b; }

template <class T>
struct Lanes {
  static constexpr int kCount = ANSN_VECTOR_BYTES / (int)sizeof(T);
  static constexpr int kRows = ANSN_VECTOR_BYTES == 64 ? 12 : 6;  // times two vectors of sums: as the registers allow
  typedef T Vector __attribute__((vector_size(ANSN_VECTOR_BYTES)));
};

template <class T>
inline int64_t padded(int64_t n) {
  constexpr int64_t count = Lanes<T>::kCount;
  return (n + count - 1) / count * count;
}

// C[i, :] = sum_k A[i, k] B[k, :], kV vectors of kR rows. B and C are aligned.
template <class T, int kR, int kV>
void tile(const T* A, int64_t ld_a, const T* B, int64_t ld_b, int64_t depth, T* C, int64_t ld_c) {
  using Vector = typename Lanes<T>::Vector;
  constexpr int kLanes = Lanes<T>::kCount;
  Vector sum[kR][kV] = {};
  for (int64_t k = 0; k < depth; ++k, B += ld_b) {
    Vector b[kV];
#pragma GCC unroll 2
    for (int v = 0; v < kV; ++v) b[v] = *(const Vector*)(B + v * kLanes);
#pragma GCC unroll 12
    for (int i = 0; i < kR; ++i) {
      const T a = A[i * ld_a + k];
#pragma GCC unroll 2
      for (int v = 0; v < kV; ++v) sum[i][v] += a * b[v];
    }
  }
#pragma GCC unroll 12
  for (int i = 0; i < kR; ++i) {
#pragma GCC unroll 2
    for (int v = 0; v < kV; ++v) *(Vector*)(C + i * ld_c + v * kLanes) = sum[i][v];
  }
}

template <class T, int kV, int kR = Lanes<T>::kRows>
void tile_of(int64_t rows, const T* A, int64_t ld_a, const T* B, int64_t ld_b, int64_t depth, T* C, int64_t ld_c) {
  if constexpr (kR > 1) {
    if (rows < kR) return tile_of<T, kV, kR - 1>(rows, A, ld_a, B, ld_b, depth, C, ld_c);
  }
  tile<T, kR, kV>(A, ld_a, B, ld_b, depth, C, ld_c);
}

// C = A B, A [rows, depth], B [depth, cols], cols whole vectors.
template <class T>
void product(const T* A, int64_t ld_a, const T* B, int64_t ld_b, T* C, int64_t ld_c, int64_t rows, int64_t cols,
             int64_t depth) {
  constexpr int64_t kLanes = Lanes<T>::kCount;
  const int64_t tiles = (rows + Lanes<T>::kRows - 1) / Lanes<T>::kRows;
  for (int64_t j = 0; j < cols; j += 2 * kLanes) {
    for (int64_t t = 0; t < tiles; ++t) {
      const int64_t i = rows * t / tiles, count = rows * (t + 1) / tiles - i;
      if (j + kLanes < cols) {
        tile_of<T, 2>(count, A + i * ld_a, ld_a, B + j, ld_b, depth, C + i * ld_c + j, ld_c);
      } else {
        tile_of<T, 1>(count, A + i * ld_a, ld_a, B + j, ld_b, depth, C + i * ld_c + j, ld_c);
      }
    }
  }
}

// Sizes of a unit: `rows` rows of data side by side, as lines of the last axis.
template <class T>
struct Unit {
  int64_t rows, lines, last, width;  // width: of a line with its padding
  explicit Unit(const cpu::Axes& q, int64_t rows_of_unit) : rows(rows_of_unit), lines(rows_of_unit) {
    for (int a = 0; a + 1 < q.count; ++a) lines *= q.size[a];
    last = q.size[q.count - 1];
    width = padded<T>(last);
  }
  int64_t numbers() const { return lines * width; }
};

// Rows of data in a unit: short rows of one axis would leave the tiles empty.
template <class T>
int64_t unit_rows(const cpu::Axes& q, int64_t rows) {
  const int64_t lines = Unit<T>(q, 1).lines, wanted = (Lanes<T>::kRows + lines - 1) / lines;
  const bool one = q.region == nullptr;
  return !one || rows < 1 ? 1 : wanted < rows ? wanted : rows;
}

// The bases of the regions in use, as they are and transposed, in T, rows padded to whole vectors.
template <class T>
struct Packed {
  int64_t start[cpu::kMostAxes], size = 0;  // of one region, numbers
  T* memory;
  const int64_t* slot;  // of a region, or null where there is one
  Packed(const cpu::Axes& q, void* to) : memory((T*)to), slot(q.slot) {
    for (int a = 0; a < q.count; ++a) {
      start[a] = size;
      if (q.basis[a]) size += 2 * q.size[a] * padded<T>(q.size[a]);
    }
  }
  int64_t numbers(const cpu::Axes& q) const { return size * q.used; }

  template <class S>
  void fill_axis(const cpu::Axes& q, int64_t k, int a) const {
    const int64_t n = q.size[a], width = padded<T>(n);
    const typename S::Memory* from = (const typename S::Memory*)q.basis[a] + q.listed[k] * q.stride[a];
    T* straight = memory + k * size + start[a];
    T* turned = straight + n * width;
    for (int64_t i = 0; i < n; ++i) {
      for (int64_t j = 0; j < width; ++j) {
        straight[i * width + j] = j < n ? (T)S::load(from[i * n + j]) : 0;
        turned[i * width + j] = j < n ? (T)S::load(from[j * n + i]) : 0;
      }
    }
  }
  void fill(const cpu::Axes& q, int64_t k) const {
    for (int a = 0; a < q.count; ++a) {
      if (!q.basis[a]) continue;
      if (q.basis_is_f64) {
        fill_axis<F64>(q, k, a);
      } else {
        fill_axis<F32>(q, k, a);
      }
    }
  }
  // Q_a, or its transpose, of a region.
  const T* at(const cpu::Axes& q, int64_t region, int a, bool transposed) const {
    const T* straight = memory + (slot ? slot[region] : 0) * size + start[a];
    return transposed ? straight + q.size[a] * padded<T>(q.size[a]) : straight;
  }
};

// Q v, or Q^T v where `inverse`, of the unit in `from`; `other` is as large. Returns which of the two holds the result.
template <class T>
T* turn(const cpu::Axes& q, const Packed<T>& packed, int64_t region, const Unit<T>& unit, bool inverse, T* from, T* other) {
  int64_t after = unit.width;
  for (int a = q.count - 1; a >= 0; --a) {
    const int64_t n = q.size[a];
    if (q.basis[a]) {
      const int64_t width = padded<T>(n);
      if (a == q.count - 1) {
        const T* B = packed.at(q, region, a, !inverse);
        product(from, width, B, width, other, width, unit.lines, width, n);
      } else {
        const T* A = packed.at(q, region, a, inverse);
        for (int64_t at = 0; at < unit.numbers(); at += n * after)
          product(A, width, from + at, after, other + at, after, n, after, n);
      }
      T* const result = other;
      other = from;
      from = result;
    }
    if (a < q.count - 1) after *= n;
  }
  return from;
}

}  // namespace axes
}  // namespace
}  // namespace ANSN_ISA
}  // namespace ansn
