// Running moments in a separable basis, in one pass over the batch: with the rows A of a region less their mean, and one
// more row for the change of the mean,
//
//     axis a:       S_a <- decay S_a + n_a / d sum_r unfold_a(A_r) unfold_a(A_r)^T
//     coordinates:  V   <- decay V   + sum_r (Q^T A_r)^2
//
// Rows are cut into chunks that do not depend on the threads; each chunk sums into memory of its own, and the chunks of a
// region are added in order. Arithmetic is the state's.
#pragma once

#include "covariance_update.h"
#include "separable.h"

namespace ansn {
namespace ANSN_ISA {
namespace {
namespace axes {

constexpr int64_t kMostChunks = 16;  // of one region: enough for the threads, few enough to add up

// C += A^T A of `lines` rows of A, [lines, n]: kR rows of C [n, width], a vector wide.
template <class T, int kR>
void scatter_tile(const T* left, const T* right, int64_t n, int64_t width, int64_t lines, T* C) {
  using Vector = typename Lanes<T>::Vector;
  Vector sum[kR] = {};
  for (int64_t l = 0; l < lines; ++l, left += n, right += n) {
    const Vector b = *(const typename Lanes<T>::Unaligned*)right;
#pragma GCC unroll 8
    for (int i = 0; i < kR; ++i) sum[i] += left[i] * b;
  }
#pragma GCC unroll 8
  for (int i = 0; i < kR; ++i) *(Vector*)(C + i * width) += sum[i];
}

template <class T, int kR = 8>
void scatter_tile_of(int64_t rows, const T* left, const T* right, int64_t n, int64_t width, int64_t lines, T* C) {
  if constexpr (kR > 1) {
    if (rows < kR) return scatter_tile_of<T, kR - 1>(rows, left, right, n, width, lines, C);
  }
  scatter_tile<T, kR>(left, right, n, width, lines, C);
}

// As far as the diagonal, and a little beyond it; what C holds beyond its n columns is not defined.
template <class T>
void scatter_lines(const T* A, int64_t n, int64_t width, int64_t lines, T* C) {
  const int64_t tiles = (n + 7) / 8;
  for (int64_t t = 0; t < tiles; ++t) {
    const int64_t i = n * t / tiles, end = n * (t + 1) / tiles;
    for (int64_t j = 0; j < end; j += Lanes<T>::kCount)
      scatter_tile_of<T>(end - i, A + i, A + j, n, width, lines, C + i * width + j);
  }
}

template <class T>
inline T sum_of(typename Lanes<T>::Vector v) {
  T sum = 0;
  for (int l = 0; l < Lanes<T>::kCount; ++l) sum += v[l];
  return sum;
}

// C[i, j] += sum_t A[i, t] A[j, t] over `outer` blocks [n, after], j <= i.
template <class T>
void scatter_dots(const T* A, int64_t n, int64_t after, int64_t outer, int64_t width, T* C) {
  using Vector = typename Lanes<T>::Vector;
  constexpr int kI = 3, kJ = 4, kLanes = Lanes<T>::kCount;
  for (int64_t i0 = 0; i0 < n; i0 += kI) {
    for (int64_t j0 = 0; j0 < least(i0 + kI, n); j0 += kJ) {
      Vector sum[kI][kJ] = {};
      for (int64_t o = 0; o < outer; ++o) {
        const T* block = A + o * n * after;
        const T *left[kI], *right[kJ];
        for (int i = 0; i < kI; ++i) left[i] = block + least(i0 + i, n - 1) * after;
        for (int j = 0; j < kJ; ++j) right[j] = block + least(j0 + j, n - 1) * after;
        const int64_t whole = after / kLanes * kLanes;
        for (int64_t t = whole; t < after; ++t)
          for (int i = 0; i < kI; ++i)
            for (int j = 0; j < kJ; ++j) sum[i][j][0] += left[i][t] * right[j][t];
        for (int64_t t = 0; t < whole; t += kLanes) {
          Vector l[kI];
#pragma GCC unroll 3
          for (int i = 0; i < kI; ++i) l[i] = *(const typename Lanes<T>::Unaligned*)(left[i] + t);
#pragma GCC unroll 4
          for (int j = 0; j < kJ; ++j) {
            const Vector r = *(const typename Lanes<T>::Unaligned*)(right[j] + t);
#pragma GCC unroll 3
            for (int i = 0; i < kI; ++i) sum[i][j] += l[i] * r;
          }
        }
      }
      for (int i = 0; i < kI && i0 + i < n; ++i)
        for (int j = 0; j < kJ && j0 + j <= i0 + i; ++j) C[(i0 + i) * width + j0 + j] += sum_of<T>(sum[i][j]);
    }
  }
}

struct Chunk {
  int64_t region, first, last;  // rows of A: those of the batch, then, at `rows`, the mean's
};

template <class T>
struct UpdatePlan {
  const cpu::SeparableUpdate& p;
  Unit unit;
  Packed<T> packed;
  int64_t most_chunks = 0, part, buffer, axis[cpu::kMostAxes];  // part: numbers of a chunk's sums
  T *parts, *buffers;
  double *mean, *correction;  // [K, d]
  Chunk* chunks;
  int64_t bytes;
  int threads;
  explicit UpdatePlan(const cpu::SeparableUpdate& update)
      : p(update), unit(p.axes, 1), packed(p.axes, true, false, p.rows.scratch) {
    const auto& r = p.rows;
    for (int64_t k = 0; k < r.regions; ++k) most_chunks += chunks_of(r.starts[k + 1] - r.starts[k] + 1);
    part = padded<T>(r.cols);
    for (int a = 0; a < p.axes.count; ++a) {
      axis[a] = part;
      if (p.scatter[a]) part += p.axes.size[a] * padded<T>(p.axes.size[a]);
    }
    int64_t work = 0;
    for (int a = 0; a < p.axes.count; ++a) work += (r.rows + 1) * r.cols * p.axes.size[a];
    threads = work < kSerialProducts ? 1 : r.threads;
    buffer = padded<T>(unit.numbers() + kSlack);
    char* at = (char*)r.scratch;
    const auto take = [&](int64_t size) {
      char* const here = at;
      at += whole_lines(size);
      return here;
    };
    take(packed.numbers() * (int64_t)sizeof(T));
    parts = (T*)take(most_chunks * part * (int64_t)sizeof(T));
    buffers = (T*)take(2 * threads * buffer * (int64_t)sizeof(T));
    mean = (double*)take(r.regions * r.cols * (int64_t)sizeof(double));
    correction = (double*)take(r.regions * r.cols * (int64_t)sizeof(double));
    chunks = (Chunk*)take(most_chunks * (int64_t)sizeof(Chunk));
    bytes = at - (char*)r.scratch;
  }
  static int64_t chunk_rows(int64_t rows) { return most(8, (rows + kMostChunks - 1) / kMostChunks); }
  static int64_t chunks_of(int64_t rows) { return rows <= 1 ? 0 : (rows + chunk_rows(rows) - 1) / chunk_rows(rows); }
};

// Columns [first, last) of every region's batch mean, its correction row, and the new mean.
template <class T, class X>
void move_means(const UpdatePlan<T>& plan, int64_t first, int64_t last) {
  const cpu::CovarianceUpdate& p = plan.p.rows;
  for (int64_t k = 0; k < p.regions; ++k) {
    const int64_t rows = p.starts[k + 1] - p.starts[k];
    if (!rows) continue;
    const Region g = {p.weight[k] * p.decay, rows, p.order ? p.order + p.starts[k] : nullptr, (T*)p.mean + k * p.cols, nullptr};
    const double n = g.count, b = (double)rows, root = __builtin_sqrt(n * b / (n + b)), share = b / (n + b);
    double *sum = plan.mean + k * p.cols, *correction = plan.correction + k * p.cols;
    for (int64_t j = first; j < last; ++j) sum[j] = 0;
    for (int64_t r = 0; r < rows; ++r) {
      const typename X::Memory* __restrict__ x = row_of<X>(p, g, r);
      for (int64_t j = first; j < last; ++j) sum[j] += (double)X::load(x[j]);
    }
    T* mean = (T*)g.mean;
    for (int64_t j = first; j < last; ++j) {
      sum[j] /= b;
      const double delta = sum[j] - (double)mean[j];
      correction[j] = root * delta;
      mean[j] = (T)((double)mean[j] + share * delta);
    }
  }
}

template <class T, class X>
void sum_chunk(const UpdatePlan<T>& plan, const Chunk& chunk, T* part, T* buffers) {
  const cpu::SeparableUpdate& p = plan.p;
  const cpu::CovarianceUpdate& r = p.rows;
  const int64_t k = chunk.region, rows = r.starts[k + 1] - r.starts[k], cols = r.cols;
  const Region g = {0, rows, r.order ? r.order + r.starts[k] : nullptr, nullptr, nullptr};
  const double *mean = plan.mean + k * cols, *correction = plan.correction + k * cols;
  for (int64_t i = 0; i < plan.part; ++i) part[i] = 0;
  for (int64_t i = 0; i < 2 * plan.buffer; ++i) buffers[i] = 0;
  for (int64_t row = chunk.first; row < chunk.last; ++row) {
    T *const from = buffers, *const other = buffers + plan.buffer;
    if (row < rows) {
      const typename X::Memory* __restrict__ x = row_of<X>(r, g, row);
      for (int64_t j = 0; j < cols; ++j) from[j] = (T)((double)X::load(x[j]) - mean[j]);
    } else {
      for (int64_t j = 0; j < cols; ++j) from[j] = (T)correction[j];
    }
    int64_t after = 1;
    for (int a = p.axes.count - 1; a >= 0; --a) {
      const int64_t n = p.axes.size[a];
      T* C = part + plan.axis[a];
      if (p.scatter[a] && a == p.axes.count - 1) scatter_lines(from, n, padded<T>(n), cols / n, C);
      if (p.scatter[a] && a < p.axes.count - 1) scatter_dots(from, n, after, cols / (n * after), padded<T>(n), C);
      after *= n;
    }
    const T* turned = turn<T>(plan.packed, k, plan.unit, true, from, from, other);
    for (int64_t j = 0; j < cols; ++j) part[j] += turned[j] * turned[j];
  }
}

// The sums of region k's chunks, added to its state.
template <class T>
void add_chunks(const UpdatePlan<T>& plan, int64_t k, int64_t first, int64_t last) {
  const cpu::SeparableUpdate& p = plan.p;
  const int64_t cols = p.rows.cols;
  const T decay = (T)p.rows.decay;
  T* V = (T*)p.rows.scatter + k * cols;
  T* total = plan.parts + first * plan.part;
  for (int64_t c = first + 1; c < last; ++c)
    for (int64_t i = 0; i < plan.part; ++i) total[i] += plan.parts[c * plan.part + i];
  for (int64_t j = 0; j < cols; ++j) V[j] = V[j] * decay + (last > first ? total[j] : 0);
  for (int a = 0; a < p.axes.count; ++a) {
    if (!p.scatter[a]) continue;
    const int64_t n = p.axes.size[a], width = padded<T>(n);
    T* S = (T*)p.scatter[a] + k * n * n;
    const T share = (T)((double)n / (double)cols);
    for (int64_t i = 0; i < n; ++i) {
      for (int64_t j = 0; j <= i; ++j) {
        const T more = last > first ? share * total[plan.axis[a] + i * width + j] : 0;
        S[i * n + j] = S[i * n + j] * decay + more;
        S[j * n + i] = S[i * n + j];
      }
    }
  }
}

template <class T, class X>
void update_of(const cpu::SeparableUpdate& p) {
  constexpr int64_t kColumns = 256;
  const UpdatePlan<T> plan(p);
  const cpu::CovarianceUpdate& r = p.rows;
  int64_t count = 0;
  for (int64_t k = 0; k < r.regions; ++k) {
    // With nothing in the region before, the mean's row is zero.
    const int64_t rows = r.starts[k + 1] - r.starts[k], step = UpdatePlan<T>::chunk_rows(rows + 1);
    const int64_t all = rows == 0 ? 0 : rows + (r.weight[k] > 0);
    for (int64_t first = 0; first < all; first += step) plan.chunks[count++] = {k, first, least(first + step, all)};
  }
#pragma omp parallel num_threads(plan.threads) if (plan.threads > 1)
  {
    int thread = 0;
#if defined(_OPENMP)
    thread = omp_get_thread_num();
#endif
#pragma omp for schedule(static)
    for (int64_t k = 0; k < p.axes.used; ++k) plan.packed.fill(k);
#pragma omp for schedule(static)
    for (int64_t j = 0; j < r.cols; j += kColumns) move_means<T, X>(plan, j, least(j + kColumns, r.cols));
#pragma omp for schedule(dynamic)
    for (int64_t c = 0; c < count; ++c)
      sum_chunk<T, X>(plan, plan.chunks[c], plan.parts + c * plan.part, plan.buffers + 2 * thread * plan.buffer);
#pragma omp for schedule(static)
    for (int64_t k = 0; k < r.regions; ++k) {
      int64_t first = 0;
      while (first < count && plan.chunks[first].region != k) ++first;
      int64_t last = first;
      while (last < count && plan.chunks[last].region == k) ++last;
      if (last > first || r.decay != 1.0) add_chunks(plan, k, first, last);
    }
  }
  for (int64_t k = 0; k < r.regions; ++k) {
    const double b = (double)(r.starts[k + 1] - r.starts[k]);
    r.weight[k] = r.weight[k] * r.decay + b;
    r.weight2[k] = r.weight2[k] * r.decay * r.decay + b;
  }
}

template <class T>
void update_in(const cpu::SeparableUpdate& p) {
  switch (p.rows.x_storage) {
    case cpu::Storage::f32: return update_of<T, F32>(p);
    case cpu::Storage::f64: return update_of<T, F64>(p);
    case cpu::Storage::bf16: return update_of<T, BF16>(p);
    case cpu::Storage::f16: return update_of<T, F16>(p);
  }
}

}  // namespace axes

int64_t separable_update_scratch_bytes(const cpu::SeparableUpdate& p) {
  if (p.rows.state_is_f64) return axes::UpdatePlan<double>(p).bytes;
  return axes::UpdatePlan<float>(p).bytes;
}

void separable_update(const cpu::SeparableUpdate& p) {
  if (p.rows.state_is_f64) return axes::update_in<double>(p);
  axes::update_in<float>(p);
}

}  // namespace
}  // namespace ANSN_ISA
}  // namespace ansn
