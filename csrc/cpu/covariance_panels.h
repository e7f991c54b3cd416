// The rank-b update of one region, b large: scatter <- decay scatter + A^T A, lower triangle only.
//
//     bm = mean(X),  Xc = X - bm,  delta = bm - mean,  A = [Xc ; sqrt(n b / (n + b)) delta]
//
// The correction is one more row of the product, not a separate addition, which keeps float32 states accurate over millions
// of batches. Batch means are sums in float64. scatter is row-major and only its lower triangle (with the diagonal) is read
// or written: half the arithmetic and half the traffic of a full product.
//
// A is packed into panels of kWidth columns, row after row, zero beyond the last column. The same panel serves as the left
// factor (elements broadcast) and as the right one (whole vectors). A task is a pair of panels (I, J <= I), a block of
// scatter, and sums its products in a fixed order, whatever the number of threads. Tasks cost the same and are split
// statically: a thread meets the same blocks in every update, in its own cache (a fifth faster than handing them out).
#pragma once

#include "kernels.h"
#include "noise.h"
#include "storage.h"

namespace ansn {
namespace ANSN_ISA {
namespace {

// The rows of one region and its state, as both kernels take them.
struct Region {
  double count;          // sum of the weights before the batch, after the decay
  int64_t rows;          // of the batch, in this region
  const int64_t* index;  // which rows of x, or null: the first `rows`
  void* mean;            // [cols]
  void* scatter;         // [cols, cols] or, diagonal, [cols]
};

template <class T>
struct Panel {
  typedef T Vector __attribute__((vector_size(ANSN_VECTOR_BYTES)));
  typedef T Unaligned __attribute__((vector_size(ANSN_VECTOR_BYTES), aligned(alignof(T)), may_alias));
  typedef decltype(Vector{} < Vector{}) Lane;  // as many integers of the size of T
  static constexpr int kLanes = ANSN_VECTOR_BYTES / sizeof(T);
  static constexpr int kVectors = 3;
  static constexpr int kWidth = kVectors * kLanes;
  // rows of the register block: 3 kRows accumulators + 3 + 1 must fit the registers (32 with AVX-512, else 16), and kRows
  // must divide kWidth
  static constexpr int kRows = ANSN_VECTOR_BYTES == 64 ? 8 : (kWidth % 4 == 0 ? 4 : 3);
};

constexpr int64_t kDepth = 192;  // rows of A packed at a time: a panel then stays in the first-level cache
// Below this many products (tens of microseconds) a second thread costs more than it saves.
constexpr int64_t kSerialProducts = 1 << 21;

inline int64_t ceil_divide(int64_t a, int64_t b) { return (a + b - 1) / b; }

template <class T>
struct Plan {
  int64_t panels, chunks, depth, columns;  // columns: cols padded to whole panels
  double *batch_mean, *correction;         // [columns]; correction = sqrt(n b / (n + b)) delta
  T* packed;                               // [panels, depth, kWidth]

  Plan(int64_t cols, int64_t rows, void* scratch) {
    panels = ceil_divide(cols, Panel<T>::kWidth);
    columns = panels * Panel<T>::kWidth;
    chunks = ceil_divide(rows + 1, kDepth);
    depth = ceil_divide(rows + 1, chunks);
    batch_mean = (double*)scratch;
    correction = batch_mean + padded(columns);
    packed = (T*)(correction + padded(columns));
  }
  static int64_t padded(int64_t n) { return ceil_divide(n, 8) * 8; }
  int64_t head_bytes() const { return 2 * padded(columns) * (int64_t)sizeof(double); }
  int64_t bytes() const {
    return head_bytes() + panels * depth * Panel<T>::kWidth * (int64_t)sizeof(T);
  }
};

template <class X>
inline const typename X::Memory* row_of(const cpu::CovarianceUpdate& p, const Region& g, int64_t r) {
  return (const typename X::Memory*)p.x + (g.index ? g.index[r] : r) * p.ld_x;
}

// Batch mean, correction row and new mean of columns [first, last).
template <class T, class X>
void merge_means(const cpu::CovarianceUpdate& p, const Region& g, const Plan<T>& plan, int64_t first, int64_t last) {
  const double n = g.count, b = (double)g.rows;
  const double root = __builtin_sqrt(n * b / (n + b)), share = b / (n + b);
  double* __restrict__ sum = plan.batch_mean;
  for (int64_t j = first; j < last; ++j) sum[j] = 0.0;
  for (int64_t r = 0; r < g.rows; ++r) {
    const typename X::Memory* __restrict__ x = row_of<X>(p, g, r);
    ANSN_INDEPENDENT
    for (int64_t j = first; j < last; ++j) sum[j] += (double)X::load(x[j]);
  }
  T* mean = (T*)g.mean;
  for (int64_t j = first; j < last; ++j) {
    const double batch_mean = sum[j] / b, delta = batch_mean - (double)mean[j];
    sum[j] = batch_mean;
    plan.correction[j] = root * delta;
    mean[j] = (T)((double)mean[j] + share * delta);
  }
}

// Rows [first, last) of A, columns of one panel.
template <class T, class X>
void pack(const cpu::CovarianceUpdate& p, const Region& g, const Plan<T>& plan, int64_t panel, int64_t first,
          int64_t last) {
  constexpr int kWidth = Panel<T>::kWidth;
  const int64_t j0 = panel * kWidth;
  const int64_t width = p.cols - j0 < kWidth ? p.cols - j0 : kWidth;
  const double* __restrict__ mean = plan.batch_mean + j0;
  T* __restrict__ to = plan.packed + panel * plan.depth * kWidth;
  for (int64_t k = first; k < last; ++k, to += kWidth) {
    if (k < g.rows) {
      const typename X::Memory* __restrict__ x = row_of<X>(p, g, k) + j0;
      if (width == kWidth) {
        for (int j = 0; j < kWidth; ++j) to[j] = (T)((double)X::load(x[j]) - mean[j]);
        continue;
      }
      for (int64_t j = 0; j < width; ++j) to[j] = (T)((double)X::load(x[j]) - mean[j]);
    } else {
      for (int64_t j = 0; j < width; ++j) to[j] = (T)plan.correction[j0 + j];
    }
    for (int64_t j = width; j < kWidth; ++j) to[j] = 0;
  }
}

// kRows rows of the block, kUsed vectors wide: C[i, :] = scale C[i, :] + sum_k left[k, i] right[k, :]. `limit` masks what
// is stored: row i takes columns below limit + i, and rows beyond `rows` none; a whole block (limit < 0) is stored straight.
template <class T, int kUsed>
void block(const T* left, const T* right, int64_t depth, T scale, T* C, int64_t ld, int64_t rows, int64_t limit) {
  using P = Panel<T>;
  using Vector = typename P::Vector;
  // A block is a few lines out of each of kRows rows: no hardware prefetcher sees it coming; the products give it time.
  for (int64_t i = 0; i < rows && i < P::kRows; ++i)
    for (int v = 0; v < kUsed; ++v) __builtin_prefetch(C + i * ld + v * P::kLanes, 1);
  Vector sum[P::kRows][kUsed] = {};
  for (int64_t k = 0; k < depth; ++k, left += P::kWidth, right += P::kWidth) {
    Vector r[kUsed];
#pragma GCC unroll 4
    for (int v = 0; v < kUsed; ++v) r[v] = *(const Vector*)(right + v * P::kLanes);
#pragma GCC unroll 8
    for (int i = 0; i < P::kRows; ++i) {
#pragma GCC unroll 4
      for (int v = 0; v < kUsed; ++v) sum[i][v] += left[i] * r[v];
    }
  }
  if (limit < 0) {
#pragma GCC unroll 8
    for (int i = 0; i < P::kRows; ++i) {
#pragma GCC unroll 4
      for (int v = 0; v < kUsed; ++v) {
        typename P::Unaligned* c = (typename P::Unaligned*)(C + i * ld + v * P::kLanes);
        *c = *c * scale + sum[i][v];
      }
    }
    return;
  }
  T spill[P::kRows][kUsed * P::kLanes];
  __builtin_memcpy(spill, sum, sizeof(spill));
  for (int64_t i = 0; i < rows && i < P::kRows; ++i)
    for (int64_t j = 0; j < limit + i && j < kUsed * P::kLanes; ++j) C[i * ld + j] = C[i * ld + j] * scale + spill[i][j];
}

// The block of scatter at panels (I, J), J <= I.
template <class T>
void panel_pair(const cpu::CovarianceUpdate& p, const Region& g, const Plan<T>& plan, T scale, int64_t I, int64_t J,
                int64_t depth) {
  using P = Panel<T>;
  const T* left = plan.packed + I * plan.depth * P::kWidth;
  const T* right = plan.packed + J * plan.depth * P::kWidth;
  const int64_t i0 = I * P::kWidth, j0 = J * P::kWidth;
  for (int64_t o = 0; o < P::kWidth && i0 + o < p.cols; o += P::kRows) {
    T* C = (T*)g.scatter + (i0 + o) * p.cols + j0;
    const int64_t rows = p.cols - (i0 + o);
    if (I != J) {
      block<T, 3>(left + o, right, depth, scale, C, p.cols, rows, rows < P::kRows ? (int64_t)P::kWidth : -1);
    } else if (o + P::kRows <= P::kLanes) {
      block<T, 1>(left + o, right, depth, scale, C, p.cols, rows, o + 1);
    } else if (o + P::kRows <= 2 * P::kLanes) {
      block<T, 2>(left + o, right, depth, scale, C, p.cols, rows, o + 1);
    } else {
      block<T, 3>(left + o, right, depth, scale, C, p.cols, rows, o + 1);
    }
  }
}

template <class T, class X>
void update_lower_triangle(const cpu::CovarianceUpdate& p, const Region& g) {
  const Plan<T> plan(p.cols, g.rows, p.scratch);
  const int64_t depth_total = g.rows + (g.count > 0 ? 1 : 0);  // with n = 0 the correction row is zero
  const int64_t pairs = plan.panels * (plan.panels + 1) / 2;
  const int threads = p.cols * p.cols * (g.rows + 1) < kSerialProducts ? 1 : p.threads;
#pragma omp parallel num_threads(threads) if (threads > 1)
  {
#pragma omp for schedule(static)
    for (int64_t panel = 0; panel < plan.panels; ++panel) {
      const int64_t first = panel * Panel<T>::kWidth, last = first + Panel<T>::kWidth;
      merge_means<T, X>(p, g, plan, first, last < p.cols ? last : p.cols);
      pack<T, X>(p, g, plan, panel, 0, plan.depth < depth_total ? plan.depth : depth_total);
    }
    for (int64_t first = 0; first < depth_total; first += plan.depth) {
      const int64_t last = first + plan.depth < depth_total ? first + plan.depth : depth_total;
      if (first > 0) {
#pragma omp for schedule(static)
        for (int64_t panel = 0; panel < plan.panels; ++panel) pack<T, X>(p, g, plan, panel, first, last);
      }
#pragma omp for schedule(static)
      for (int64_t t = 0; t < pairs; ++t) {
        int64_t I = 0, J = t;
        while (J > I) J -= ++I;
        panel_pair<T>(p, g, plan, first == 0 ? (T)p.decay : (T)1, I, J, last - first);
      }
    }
  }
}

}  // namespace
}  // namespace ANSN_ISA
}  // namespace ansn
