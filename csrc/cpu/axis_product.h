// Products of one row of data, shaped by its axes, with an orthonormal basis that is a product of small ones:
//
//     Q = Q_1 (x) ... (x) Q_A,     Q v: one small matrix product an axis, Q^T v the same with the transposes
//
// The row lies in the first-level cache as it does in memory. Along the last axis its lines are the left factor of a
// product, along any other the basis is. Vectors are stored whole: what one writes beyond the end of a line is the start of
// the next, which is written later; beyond the last line the memory has kSlack numbers to spare. A sum runs over one axis
// in the order of its points whatever tile it falls in, so a row's bits do not depend on the batch or on threads.
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
  typedef T Unaligned __attribute__((vector_size(ANSN_VECTOR_BYTES), aligned(sizeof(T)), may_alias));
};

constexpr int64_t kSlack = 16;  // of the widest vector

template <class T>
inline int64_t padded(int64_t n) {
  constexpr int64_t count = Lanes<T>::kCount;
  return (n + count - 1) / count * count;
}

// C[i, :] = sum_k A[i, k] B[k, :], kV vectors of kR rows.
template <class T, int kR, int kV>
void tile(const T* A, int64_t ld_a, const T* B, int64_t ld_b, int64_t depth, T* C, int64_t ld_c) {
  using Vector = typename Lanes<T>::Vector;
  constexpr int kLanes = Lanes<T>::kCount;
  Vector sum[kR][kV] = {};
  for (int64_t k = 0; k < depth; ++k, B += ld_b) {
    Vector b[kV];
#pragma GCC unroll 2
    for (int v = 0; v < kV; ++v) b[v] = *(const typename Lanes<T>::Unaligned*)(B + v * kLanes);
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
    for (int v = 0; v < kV; ++v) *(typename Lanes<T>::Unaligned*)(C + i * ld_c + v * kLanes) = sum[i][v];
  }
}

template <class T, int kV, int kR = Lanes<T>::kRows>
void tile_of(int64_t rows, const T* A, int64_t ld_a, const T* B, int64_t ld_b, int64_t depth, T* C, int64_t ld_c) {
  if constexpr (kR > 1) {
    if (rows < kR) return tile_of<T, kV, kR - 1>(rows, A, ld_a, B, ld_b, depth, C, ld_c);
  }
  tile<T, kR, kV>(A, ld_a, B, ld_b, depth, C, ld_c);
}

// C = A B, A [rows, depth], B [depth, cols]: columns from the last to the first, rows from the first to the last, so that
// what a vector writes too much is written again.
template <class T>
void product(const T* A, int64_t ld_a, const T* B, int64_t ld_b, T* C, int64_t ld_c, int64_t rows, int64_t cols,
             int64_t depth) {
  constexpr int64_t kLanes = Lanes<T>::kCount;
  const int64_t tiles = (rows + Lanes<T>::kRows - 1) / Lanes<T>::kRows, vectors = (cols + kLanes - 1) / kLanes;
  for (int64_t v = (vectors - 1) / 2 * 2; v >= 0; v -= 2) {
    const int64_t j = v * kLanes;
    for (int64_t t = 0; t < tiles; ++t) {
      const int64_t i = rows * t / tiles, count = rows * (t + 1) / tiles - i;
      if (v + 1 < vectors) {
        tile_of<T, 2>(count, A + i * ld_a, ld_a, B + j, ld_b, depth, C + i * ld_c + j, ld_c);
      } else {
        tile_of<T, 1>(count, A + i * ld_a, ld_a, B + j, ld_b, depth, C + i * ld_c + j, ld_c);
      }
    }
  }
}

// `rows` rows of data side by side.
struct Unit {
  int64_t rows, cols, last;  // last: of a line, along the last axis
  Unit(const cpu::Axes& q, int64_t rows_of_unit) : rows(rows_of_unit), cols(1), last(q.size[q.count - 1]) {
    for (int a = 0; a < q.count; ++a) cols *= q.size[a];
  }
  int64_t numbers() const { return rows * cols; }
};

// Rows of data in a unit: short rows of one axis would leave the tiles empty.
template <class T>
int64_t unit_rows(const cpu::Axes& q, int64_t rows) {
  const Unit one(q, 1);
  const int64_t lines = one.cols / one.last, wanted = (Lanes<T>::kRows + lines - 1) / lines;
  return q.region || rows < 1 ? 1 : wanted < rows ? wanted : rows;
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

// Q v, or Q^T v where `inverse`, of a unit in `from`, which is read only, or in one of the buffers; they have kSlack numbers
// beyond it. Returns the buffer that holds the result.
template <class T>
T* turn(const cpu::Axes& q, const Packed<T>& packed, int64_t region, const Unit& unit, bool inverse, const T* from,
        T* buffer, T* other) {
  int64_t after = 1;
  T* to = from == buffer ? other : buffer;
  bool moved = from == buffer || from == other;
  for (int a = q.count - 1; a >= 0; --a) {
    const int64_t n = q.size[a];
    if (q.basis[a]) {
      const int64_t width = padded<T>(n);
      if (a == q.count - 1) {
        product(from, n, packed.at(q, region, a, !inverse), width, to, n, unit.numbers() / n, n, n);
      } else {
        if (!moved) {  // a vector of the right factor may read beyond the last line
          __builtin_memcpy(to, from, unit.numbers() * sizeof(T));
          from = to;
          to = to == buffer ? other : buffer;
        }
        const T* A = packed.at(q, region, a, inverse);
        for (int64_t at = 0; at < unit.numbers(); at += n * after)
          product(A, width, from + at, after, to + at, after, n, after, n);
      }
      moved = true;
      from = to;
      to = to == buffer ? other : buffer;
    }
    after *= n;
  }
  if (!moved) {
    __builtin_memcpy(to, from, unit.numbers() * sizeof(T));
    from = to;
  }
  return from == buffer ? buffer : other;
}

}  // namespace axes
}  // namespace
}  // namespace ANSN_ISA
}  // namespace ansn
