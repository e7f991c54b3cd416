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

// The left factor of a product, element (i, k) at i row + k column.
template <class T>
struct Left {
  const T* at;
  int64_t row, column;
};

// C[i, :] = sum_k A[i, k] B[k, :], kV vectors of kR rows.
template <class T, int kR, int kV>
void tile(const Left<T>& left, const T* B, int64_t ld_b, int64_t depth, T* C, int64_t ld_c) {
  const T* A = left.at;
  using Vector = typename Lanes<T>::Vector;
  constexpr int kLanes = Lanes<T>::kCount;
  Vector sum[kR][kV] = {};
  for (int64_t k = 0; k < depth; ++k, A += left.column, B += ld_b) {
    Vector b[kV];
#pragma GCC unroll 2
    for (int v = 0; v < kV; ++v) b[v] = *(const typename Lanes<T>::Unaligned*)(B + v * kLanes);
#pragma GCC unroll 12
    for (int i = 0; i < kR; ++i) {
      const T a = A[i * left.row];
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
void tile_of(int64_t rows, const Left<T>& A, const T* B, int64_t ld_b, int64_t depth, T* C, int64_t ld_c) {
  if constexpr (kR > 1) {
    if (rows < kR) return tile_of<T, kV, kR - 1>(rows, A, B, ld_b, depth, C, ld_c);
  }
  tile<T, kR, kV>(A, B, ld_b, depth, C, ld_c);
}

// C = A B, A [rows, depth], B [depth, cols]: columns from the last to the first, rows from the first to the last, so that
// what a vector writes too much is written again.
template <class T>
void product(const Left<T>& A, const T* B, int64_t ld_b, T* C, int64_t ld_c, int64_t rows, int64_t cols, int64_t depth) {
  constexpr int64_t kLanes = Lanes<T>::kCount;
  const int64_t tiles = (rows + Lanes<T>::kRows - 1) / Lanes<T>::kRows, vectors = (cols + kLanes - 1) / kLanes;
  for (int64_t v = (vectors - 1) / 2 * 2; v >= 0; v -= 2) {
    const int64_t j = v * kLanes;
    for (int64_t t = 0; t < tiles; ++t) {
      const int64_t i = rows * t / tiles, count = rows * (t + 1) / tiles - i;
      const Left<T> from = {A.at + i * A.row, A.row, A.column};
      if (v + 1 < vectors) {
        tile_of<T, 2>(count, from, B + j, ld_b, depth, C + i * ld_c + j, ld_c);
      } else {
        tile_of<T, 1>(count, from, B + j, ld_b, depth, C + i * ld_c + j, ld_c);
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

// The bases as the products want them: in T, and along the last axis, where they are the right factor, with rows of whole
// vectors, for Q also transposed. What lies right is taken where it lies.
template <class T>
struct Packed {
  const cpu::Axes& q;
  bool as_it_is, inward, outward;
  int64_t start[cpu::kMostAxes], turned, size = 0;  // of one region, numbers; a start below 0: not packed
  T* memory;
  Packed(const cpu::Axes& axes, bool with_inward, bool with_outward, void* to)
      : q(axes), as_it_is(axes.basis_is_f64 == (sizeof(T) == 8)), inward(with_inward), outward(with_outward), memory((T*)to) {
    for (int a = 0; a < q.count; ++a) {
      const bool whole = !is_last(a) || !inward || width(a) == q.size[a];
      start[a] = !q.basis[a] || (as_it_is && whole) ? -1 : size;
      if (start[a] >= 0) size += q.size[a] * width(a);
    }
    turned = size;
    if (q.basis[q.count - 1] && outward) size += q.size[q.count - 1] * width(q.count - 1);
  }
  bool is_last(int a) const { return a == q.count - 1; }
  int64_t width(int a) const { return is_last(a) ? padded<T>(q.size[a]) : q.size[a]; }
  int64_t numbers() const { return size * q.used; }
  T* of(int64_t place) const { return memory + place * size; }
  int64_t place(int64_t region) const { return q.slot ? q.slot[region] : 0; }

  template <class S>
  void fill_in(int64_t k) const {
    for (int a = 0; a < q.count; ++a) {
      if (!q.basis[a]) continue;
      const int64_t n = q.size[a];
      const typename S::Memory* from = (const typename S::Memory*)q.basis[a] + q.listed[k] * q.stride[a];
      for (int64_t i = 0; i < n && start[a] >= 0; ++i) {
        T* row = of(k) + start[a] + i * width(a);
        for (int64_t j = 0; j < n; ++j) row[j] = (T)S::load(from[i * n + j]);
        for (int64_t j = n; j < width(a); ++j) row[j] = 0;
      }
      if (!is_last(a) || !outward) continue;
      constexpr int64_t kBlock = 16;  // rows of the source that stay in the cache
      for (int64_t i0 = 0; i0 < n; i0 += kBlock) {
        for (int64_t j = 0; j < n; ++j) {
          T* row = of(k) + turned + j * width(a);
          for (int64_t i = i0; i < least(i0 + kBlock, n); ++i) row[i] = (T)S::load(from[i * n + j]);
        }
      }
      for (int64_t j = 0; j < n; ++j)
        for (int64_t i = n; i < width(a); ++i) of(k)[turned + j * width(a) + i] = 0;
    }
  }
  void fill(int64_t k) const {
    if (q.basis_is_f64) {
      fill_in<F64>(k);
    } else {
      fill_in<F32>(k);
    }
  }
  // Q_a of a region, rows width(a) apart, or n where it is taken as it is, which is the same then.
  const T* straight(int64_t region, int a) const {
    return start[a] < 0 ? (const T*)q.basis[a] + region * q.stride[a] : of(place(region)) + start[a];
  }
  // The transpose of the last axis' one.
  const T* transposed(int64_t region) const { return of(place(region)) + turned; }
};

// Q v, or Q^T v where `inverse`, of a unit in `from`, which is read only, or in one of the buffers; they have kSlack numbers
// beyond it. Returns the buffer that holds the result.
template <class T>
T* turn(const Packed<T>& packed, int64_t region, const Unit& unit, bool inverse, const T* from, T* buffer, T* other) {
  const cpu::Axes& q = packed.q;
  int64_t after = 1;
  T* to = from == buffer ? other : buffer;
  bool moved = from == buffer || from == other;
  for (int a = q.count - 1; a >= 0; --a) {
    const int64_t n = q.size[a];
    if (q.basis[a]) {
      if (packed.is_last(a)) {
        const T* B = inverse ? packed.straight(region, a) : packed.transposed(region);
        product<T>({from, n, 1}, B, packed.width(a), to, n, unit.numbers() / n, n, n);
      } else {
        if (!moved) {  // a vector of the right factor may read beyond the last line
          __builtin_memcpy(to, from, unit.numbers() * sizeof(T));
          from = to;
          to = to == buffer ? other : buffer;
        }
        const T* A = packed.straight(region, a);
        const Left<T> left = {A, inverse ? 1 : n, inverse ? n : 1};
        for (int64_t at = 0; at < unit.numbers(); at += n * after)
          product(left, from + at, after, to + at, after, n, after, n);
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
