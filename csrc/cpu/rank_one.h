// The batched rank-1 update: many regions, a row or a few for each. Row after row (Welford), with n and mean before it,
//
//     delta = x - mean,   a = sqrt(n / (n + 1)) delta,   mean += delta / (n + 1),   n += 1
//
// and then scatter <- decay scatter + sum_r a_r a_r^T in one pass over the lower triangle, which is all the time that it
// takes: the triangle is read and written once, whatever the number of rows (up to kFewRows) and with the forgetting. Each
// thread takes its share of the regions; where they are few, the triangles are one sequence of rows, cut into equal parts.
// Every element is computed alike wherever the cuts fall.
#pragma once

#include "covariance_panels.h"

namespace ansn {
namespace ANSN_ISA {
namespace {

constexpr int64_t kFewRows = 8;
// Below this many elements of scatter (tens of microseconds) a second thread costs more than it saves.
constexpr int64_t kSerialTriangle = 1 << 17;
constexpr int kAbreast = 4;                // rows of scatter that are walked at once
constexpr int64_t kPrefetchBytes = 32768;  // how far ahead of them scatter is fetched, into the second-level cache
constexpr int64_t kRowCost = 16;           // of a row, in elements, besides its elements

template <class T>
int64_t padded_row(int64_t cols) {
  return ceil_divide(cols, 64 / (int64_t)sizeof(T)) * (64 / (int64_t)sizeof(T));
}

// The rows a_r of one region, in float64 and then rounded, and its new mean.
template <class T, class X>
void welford_rows(const cpu::CovarianceUpdate& p, const Region& g, T* __restrict__ a) {
  const int64_t width = padded_row<T>(p.cols);
  T* __restrict__ mean = (T*)g.mean;
  if (g.rows == 1) {
    const typename X::Memory* __restrict__ x = row_of<X>(p, g, 0);
    const double share = 1.0 / (g.count + 1.0), root = __builtin_sqrt(g.count * share);
    ANSN_INDEPENDENT
    for (int64_t j = 0; j < p.cols; ++j) {
      const double m = (double)mean[j], delta = (double)X::load(x[j]) - m;
      a[j] = (T)(root * delta);
      mean[j] = (T)(m + share * delta);
    }
    for (int64_t j = p.cols; j < width; ++j) a[j] = 0;
    return;
  }
  // The mean stays in float64 between the rows: a few columns at a time.
  constexpr int kColumns = 32;
  for (int64_t first = 0; first < width; first += kColumns) {
    const int64_t here = p.cols - first < kColumns ? p.cols - first : kColumns;
    const int64_t pad = width - first < kColumns ? width - first : kColumns;
    double m[kColumns];
    for (int64_t j = 0; j < here; ++j) m[j] = (double)mean[first + j];
    double n = g.count;
    for (int64_t r = 0; r < g.rows; ++r, n += 1.0) {
      const typename X::Memory* __restrict__ x = row_of<X>(p, g, r) + first;
      T* __restrict__ to = a + r * width + first;
      const double share = 1.0 / (n + 1.0), root = __builtin_sqrt(n * share);
      ANSN_INDEPENDENT
      for (int64_t j = 0; j < here; ++j) {
        const double delta = (double)X::load(x[j]) - m[j];
        to[j] = (T)(root * delta);
        m[j] += share * delta;
      }
      for (int64_t j = here < 0 ? 0 : here; j < pad; ++j) to[j] = 0;
    }
    for (int64_t j = 0; j < here; ++j) mean[first + j] = (T)m[j];
  }
}

// Rows i .. i + rows - 1 of scatter, columns [0, i + 1): C <- decay C + sum_r a_r[i..] a_r^T. The rows are walked abreast,
// one vector of each: as many streams from memory as rows, and a_r is loaded once for all; with more of them their addresses
// leave the registers. What lies `ahead` elements on is fetched meanwhile, as many rows of `reach` columns each: prefetchers
// stop at every diagonal. i is a multiple of rows.
template <class T, int kRank, int kRows>
void rows_abreast(T* C, int64_t cols, const T* a, T decay, int64_t i, int64_t ahead, int64_t reach) {
  using P = Panel<T>;
  using Vector = typename P::Vector;
  using Unaligned = typename P::Unaligned;
  using Lane = typename P::Lane;
  constexpr int kLanes = P::kLanes;
  constexpr int kLine = 64 / sizeof(T);
  const int64_t width = padded_row<T>(cols);
  T left[kRank > 0 ? kRank : 1][kRows];
  for (int r = 0; r < kRank; ++r)
    for (int q = 0; q < kRows; ++q) left[r][q] = a[r * width + i + q];
  const auto updated = [&](Vector c, int q, const T* right) {
    c *= decay;
#pragma GCC unroll 8
    for (int r = 0; r < kRank; ++r) c += left[r][q] * *(const Unaligned*)(right + r * width);
    return c;
  };
  int64_t j = 0;
  for (; j + kLanes <= i + 1; j += kLanes) {
#pragma GCC unroll 8
    for (int q = 0; q < kRows; ++q) {
      Unaligned* c = (Unaligned*)(C + q * cols + j);
      if (j % kLine == 0) __builtin_prefetch((const T*)c + ahead, 0, 2);
      *c = updated(*c, q, a + j);
    }
  }
  for (int64_t f = ceil_divide(j, kLine) * kLine; f < reach; f += kLine) {
#pragma GCC unroll 8
    for (int q = 0; q < kRows; ++q) __builtin_prefetch(C + q * cols + f + ahead, 0, 2);
  }
  if (cols < kLanes) {
    for (int q = 0; q < kRows; ++q) {
      for (int64_t k = 0; k <= i + q; ++k) {
        T c = C[q * cols + k] * decay;
        for (int r = 0; r < kRank; ++r) c += left[r][q] * a[r * width + k];
        C[q * cols + k] = c;
      }
    }
    return;
  }
  // Up to the diagonal: whole vectors of the row, of which only the lanes [low, high) change.
  Lane lane;
  for (int l = 0; l < kLanes; ++l) lane[l] = l;
  const auto masked = [&](int q, int64_t start, Lane changes) {
    Unaligned* c = (Unaligned*)(C + q * cols + start);
    const Vector old = *c;
    *c = changes ? updated(old, q, a + start) : old;
  };
  for (; j < i + kRows && j + kLanes <= cols; j += kLanes) {
    const Lane from_diagonal = lane - (int)(i - j);
#pragma GCC unroll 8
    for (int q = 0; q < kRows; ++q) {
      if (kLanes < kRows && j > i + q) continue;  // beyond this row's diagonal
      masked(q, j, from_diagonal <= q);
    }
  }
  if (j < i + kRows) {  // the vector would leave the row: its last one, of which the lanes below j are done
    const int64_t start = cols - kLanes;
    for (int q = 0; q < kRows; ++q) masked(q, start, (lane >= (int)(j - start)) & (lane <= (int)(i + q - start)));
  }
}

// Rows [first, last) of scatter <- decay scatter + sum_r a_r a_r^T, each up to its diagonal.
template <class T, int kRank>
void triangle_rows(T* scatter, int64_t cols, const T* a, T decay, int64_t first, int64_t last) {
  const int64_t ahead = ceil_divide(ceil_divide(kPrefetchBytes, cols * (int64_t)sizeof(T)), kAbreast) * kAbreast;
  int64_t target = (first + ahead) % cols;  // past the last row it is one of the matrix which follows in memory
  int64_t i = first;
  for (; i + kAbreast <= last; i += kAbreast) {
    rows_abreast<T, kRank, kAbreast>(scatter + i * cols, cols, a, decay, i, ahead * cols, target + 1);
    target = target + kAbreast < cols ? target + kAbreast : target + kAbreast - cols;
  }
  for (; i < last; ++i) rows_abreast<T, kRank, 1>(scatter + i * cols, cols, a, decay, i, ahead * cols, 0);
}

template <class T>
void triangle_of_rank(int64_t rank, T* scatter, int64_t cols, const T* a, T decay, int64_t first, int64_t last) {
  switch (rank) {
    case 0: return triangle_rows<T, 0>(scatter, cols, a, decay, first, last);
    case 1: return triangle_rows<T, 1>(scatter, cols, a, decay, first, last);
    case 2: return triangle_rows<T, 2>(scatter, cols, a, decay, first, last);
    case 3: return triangle_rows<T, 3>(scatter, cols, a, decay, first, last);
    case 4: return triangle_rows<T, 4>(scatter, cols, a, decay, first, last);
    case 5: return triangle_rows<T, 5>(scatter, cols, a, decay, first, last);
    case 6: return triangle_rows<T, 6>(scatter, cols, a, decay, first, last);
    case 7: return triangle_rows<T, 7>(scatter, cols, a, decay, first, last);
    default: return triangle_rows<T, 8>(scatter, cols, a, decay, first, last);
  }
}

inline int64_t work_before(int64_t row) { return row * (row + 1) / 2 + kRowCost * row; }

// The first row with at least `work` before it, or the last multiple of kAbreast before that.
inline int64_t row_of_work(int64_t work, int64_t cols) {
  int64_t low = 0, high = cols;
  while (low < high) {
    const int64_t middle = low + (high - low) / 2;
    if (work_before(middle) < work) low = middle + 1;
    else high = middle;
  }
  return low / kAbreast * kAbreast;
}

// The mean and the first row of a region that comes soon: single lines, which the triangles have pushed out of the cache.
// Inline, because GCC takes a function that only fetches for one without effect and drops its calls.
template <class T, class X>
__attribute__((always_inline)) inline void fetch_region(const cpu::CovarianceUpdate& p, const Region& g) {
  if (g.rows == 0) return;
  const char* mean = (const char*)g.mean;
  const char* x = (const char*)row_of<X>(p, g, 0);
  for (int64_t at = 0; at < p.cols * (int64_t)sizeof(T); at += 64) __builtin_prefetch(mean + at, 1);
  for (int64_t at = 0; at < p.cols * (int64_t)sizeof(*row_of<X>(p, g, 0)); at += 64) __builtin_prefetch(x + at, 0);
}

// Regions [first, last) one after the other, the rows of A in a buffer that stays in the cache: [kFewRows, padded_row].
template <class T, class X>
void update_whole_regions(const cpu::CovarianceUpdate& p, const Region* list, int64_t first, int64_t last, T* a) {
  constexpr int64_t kSoon = 2;
  for (int64_t k = first; k < last; ++k) {
    if (k + kSoon < last) fetch_region<T, X>(p, list[k + kSoon]);
    if (list[k].rows > 0) welford_rows<T, X>(p, list[k], a);
    triangle_of_rank<T>(list[k].rows, (T*)list[k].scatter, p.cols, a, (T)p.decay, 0, p.cols);
  }
}

// The regions `list`, each of at most kFewRows rows. a: [most of count of rows and kFewRows threads, padded_row]; the rows
// of A of each region are from `offset` on.
template <class T, class X>
void update_few(const cpu::CovarianceUpdate& p, const Region* list, const int64_t* offset, int64_t regions, T* a) {
  const int64_t width = padded_row<T>(p.cols), each = work_before(p.cols), total = regions * each;
  const int pieces = regions * (p.cols * (p.cols + 1) / 2) < kSerialTriangle ? 1 : p.threads;
  if (pieces == 1 || regions >= 8 * pieces) {
#pragma omp parallel for schedule(static) num_threads(pieces) if (pieces > 1)
    for (int t = 0; t < pieces; ++t) {
      const int64_t first = regions * t / pieces, last = regions * (t + 1) / pieces;
      update_whole_regions<T, X>(p, list, first, last, a + t * kFewRows * width);
    }
    return;
  }
  // So few that whole ones would leave a thread waiting.
#pragma omp parallel num_threads(pieces)
  {
#pragma omp for schedule(static)
    for (int64_t k = 0; k < regions; ++k)
      if (list[k].rows > 0) welford_rows<T, X>(p, list[k], a + offset[k] * width);
#pragma omp for schedule(static)
    for (int t = 0; t < pieces; ++t) {
      const int64_t from = total / pieces * t, to = t + 1 == pieces ? total : total / pieces * (t + 1);
      for (int64_t k = from / each; k < regions && k * each < to; ++k) {
        const int64_t first = k * each < from ? row_of_work(from - k * each, p.cols) : 0;
        const int64_t last = (k + 1) * each > to ? row_of_work(to - k * each, p.cols) : p.cols;
        triangle_of_rank<T>(list[k].rows, (T*)list[k].scatter, p.cols, a + offset[k] * width, (T)p.decay, first, last);
      }
    }
  }
}

}  // namespace
}  // namespace ANSN_ISA
}  // namespace ansn
