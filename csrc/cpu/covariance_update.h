// Running covariance: merges the rows X of one batch into (n, mean, scatter), exactly (Pebay; Chan, Golub, LeVeque):
//
//     bm = mean(X),  Xc = X - bm,  delta = bm - mean,  A = [Xc ; sqrt(n b / (n + b)) delta]
//     scatter += A^T A,   mean += b / (n + b) delta
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

template <class T>
struct Panel {
  typedef T Vector __attribute__((vector_size(ANSN_VECTOR_BYTES)));
  typedef T Unaligned __attribute__((vector_size(ANSN_VECTOR_BYTES), aligned(alignof(T)), may_alias));
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

  explicit Plan(const cpu::CovarianceUpdate& p) {
    panels = ceil_divide(p.cols, Panel<T>::kWidth);
    columns = panels * Panel<T>::kWidth;
    chunks = ceil_divide(p.rows + 1, kDepth);
    depth = ceil_divide(p.rows + 1, chunks);
    batch_mean = (double*)p.scratch;
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
inline const typename X::Memory* row_of(const cpu::CovarianceUpdate& p, int64_t r) {
  return (const typename X::Memory*)p.x + (p.row_index ? p.row_index[r] : r) * p.ld_x;
}

// Batch mean, correction row and new mean of columns [first, last).
template <class T, class X>
void merge_means(const cpu::CovarianceUpdate& p, const Plan<T>& plan, int64_t first, int64_t last) {
  const double n = p.count, b = (double)p.rows;
  const double root = __builtin_sqrt(n * b / (n + b)), share = b / (n + b);
  double* __restrict__ sum = plan.batch_mean;
  for (int64_t j = first; j < last; ++j) sum[j] = 0.0;
  for (int64_t r = 0; r < p.rows; ++r) {
    const typename X::Memory* __restrict__ x = row_of<X>(p, r);
    ANSN_INDEPENDENT
    for (int64_t j = first; j < last; ++j) sum[j] += (double)X::load(x[j]);
  }
  T* mean = (T*)p.mean;
  for (int64_t j = first; j < last; ++j) {
    const double batch_mean = sum[j] / b, delta = batch_mean - (double)mean[j];
    sum[j] = batch_mean;
    plan.correction[j] = root * delta;
    mean[j] = (T)((double)mean[j] + share * delta);
  }
}

// Rows [first, last) of A, columns of one panel.
template <class T, class X>
void pack(const cpu::CovarianceUpdate& p, const Plan<T>& plan, int64_t panel, int64_t first, int64_t last) {
  constexpr int kWidth = Panel<T>::kWidth;
  const int64_t j0 = panel * kWidth;
  const int64_t width = p.cols - j0 < kWidth ? p.cols - j0 : kWidth;
  const double* __restrict__ mean = plan.batch_mean + j0;
  T* __restrict__ to = plan.packed + panel * plan.depth * kWidth;
  for (int64_t k = first; k < last; ++k, to += kWidth) {
    if (k < p.rows) {
      const typename X::Memory* __restrict__ x = row_of<X>(p, k) + j0;
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

// kRows rows of the block, kVectors vectors wide: C[i, :] += sum_k left[k, i] right[k, :]. `limit` masks what is stored:
// row i takes columns below limit + i, and rows beyond `rows` none; a whole block (limit < 0) is stored straight.
template <class T, int kUsed>
void block(const T* left, const T* right, int64_t depth, T* C, int64_t ld, int64_t rows, int64_t limit) {
  using P = Panel<T>;
  using Vector = typename P::Vector;
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
      for (int v = 0; v < kUsed; ++v) *(typename P::Unaligned*)(C + i * ld + v * P::kLanes) += sum[i][v];
    }
    return;
  }
  T spill[P::kRows][kUsed * P::kLanes];
  __builtin_memcpy(spill, sum, sizeof(spill));
  for (int64_t i = 0; i < rows && i < P::kRows; ++i)
    for (int64_t j = 0; j < limit + i && j < kUsed * P::kLanes; ++j) C[i * ld + j] += spill[i][j];
}

// The block of scatter at panels (I, J), J <= I.
template <class T>
void panel_pair(const cpu::CovarianceUpdate& p, const Plan<T>& plan, int64_t I, int64_t J, int64_t depth) {
  using P = Panel<T>;
  const T* left = plan.packed + I * plan.depth * P::kWidth;
  const T* right = plan.packed + J * plan.depth * P::kWidth;
  const int64_t i0 = I * P::kWidth, j0 = J * P::kWidth;
  for (int64_t o = 0; o < P::kWidth && i0 + o < p.cols; o += P::kRows) {
    T* C = (T*)p.scatter + (i0 + o) * p.cols + j0;
    const int64_t rows = p.cols - (i0 + o);
    if (I != J) {
      block<T, 3>(left + o, right, depth, C, p.cols, rows, rows < P::kRows ? (int64_t)P::kWidth : -1);
    } else if (o + P::kRows <= P::kLanes) {
      block<T, 1>(left + o, right, depth, C, p.cols, rows, o + 1);
    } else if (o + P::kRows <= 2 * P::kLanes) {
      block<T, 2>(left + o, right, depth, C, p.cols, rows, o + 1);
    } else {
      block<T, 3>(left + o, right, depth, C, p.cols, rows, o + 1);
    }
  }
}

template <class T, class X>
void update_lower_triangle(const cpu::CovarianceUpdate& p) {
  const Plan<T> plan(p);
  const int64_t depth_total = p.rows + (p.count > 0 ? 1 : 0);  // with n = 0 the correction row is zero
  const int64_t pairs = plan.panels * (plan.panels + 1) / 2;
  const int threads = p.cols * p.cols * (p.rows + 1) < kSerialProducts ? 1 : p.threads;
#pragma omp parallel num_threads(threads) if (threads > 1)
  {
#pragma omp for schedule(static)
    for (int64_t panel = 0; panel < plan.panels; ++panel) {
      const int64_t first = panel * Panel<T>::kWidth, last = first + Panel<T>::kWidth;
      merge_means<T, X>(p, plan, first, last < p.cols ? last : p.cols);
      pack<T, X>(p, plan, panel, 0, plan.depth < depth_total ? plan.depth : depth_total);
    }
    for (int64_t first = 0; first < depth_total; first += plan.depth) {
      const int64_t last = first + plan.depth < depth_total ? first + plan.depth : depth_total;
      if (first > 0) {
#pragma omp for schedule(static)
        for (int64_t panel = 0; panel < plan.panels; ++panel) pack<T, X>(p, plan, panel, first, last);
      }
#pragma omp for schedule(static)
      for (int64_t t = 0; t < pairs; ++t) {
        int64_t I = 0, J = t;
        while (J > I) J -= ++I;
        panel_pair<T>(p, plan, I, J, last - first);
      }
    }
  }
}

// scatter is [cols]: sums of squares of each column of A, in float64 over the batch.
template <class T, class X>
void update_diagonal(const cpu::CovarianceUpdate& p) {
  constexpr int64_t kColumns = 64;
  const Plan<T> plan(p);
  const int64_t groups = ceil_divide(p.cols, kColumns);
  const int threads = p.cols * p.rows < kSerialProducts / 16 ? 1 : p.threads;
#pragma omp parallel for schedule(static) num_threads(threads) if (threads > 1)
  for (int64_t g = 0; g < groups; ++g) {
    const int64_t first = g * kColumns, last = first + kColumns < p.cols ? first + kColumns : p.cols;
    merge_means<T, X>(p, plan, first, last);
    double squares[kColumns];
    for (int64_t j = first; j < last; ++j) squares[j - first] = plan.correction[j] * plan.correction[j];
    const double* __restrict__ mean = plan.batch_mean;
    for (int64_t r = 0; r < p.rows; ++r) {
      const typename X::Memory* __restrict__ x = row_of<X>(p, r);
      for (int64_t j = first; j < last; ++j) {
        const double centred = (double)X::load(x[j]) - mean[j];
        squares[j - first] += centred * centred;
      }
    }
    T* scatter = (T*)p.scatter;
    for (int64_t j = first; j < last; ++j) scatter[j] = (T)((double)scatter[j] + squares[j - first]);
  }
}

template <class T, class X>
void covariance_update_of(const cpu::CovarianceUpdate& p) {
  if (p.diagonal) return update_diagonal<T, X>(p);
  update_lower_triangle<T, X>(p);
}

template <class T>
void covariance_update_in(const cpu::CovarianceUpdate& p) {
  switch (p.x_storage) {
    case cpu::Storage::f32: return covariance_update_of<T, F32>(p);
    case cpu::Storage::f64: return covariance_update_of<T, F64>(p);
    case cpu::Storage::bf16: return covariance_update_of<T, BF16>(p);
    case cpu::Storage::f16: return covariance_update_of<T, F16>(p);
  }
}

void covariance_update(const cpu::CovarianceUpdate& p) {
  if (p.rows <= 0 || p.cols <= 0) return;
  if (p.state_is_f64) return covariance_update_in<double>(p);
  covariance_update_in<float>(p);
}

int64_t covariance_scratch_bytes(const cpu::CovarianceUpdate& p) {
  if (p.diagonal) return p.state_is_f64 ? Plan<double>(p).head_bytes() : Plan<float>(p).head_bytes();
  return p.state_is_f64 ? Plan<double>(p).bytes() : Plan<float>(p).bytes();
}

}  // namespace
}  // namespace ANSN_ISA
}  // namespace ansn
