// Running covariance: merges the rows X of one batch into (weight, mean, scatter) of their regions, exactly (Pebay; Chan,
// Golub, LeVeque), after scaling weight and scatter by the forgetting factor. A region of few rows takes the rank-1 path,
// all of them together (rank_one.h); one of many rows the blocked product (covariance_panels.h); a diagonal scatter is sums
// of squares, below.
#pragma once

#include "covariance_panels.h"
#include "rank_one.h"

namespace ansn {
namespace ANSN_ISA {
namespace {

// Columns [first, last) of one region, at most kColumns: sums of squares of the columns of A, in float64 over the batch.
template <class T, class X>
void diagonal_columns(const cpu::CovarianceUpdate& p, const Region& g, int64_t first, int64_t last) {
  constexpr int64_t kColumns = 64;
  double batch_mean[kColumns], squares[kColumns];
  const int64_t count = last - first;
  T* mean = (T*)g.mean + first;
  T* scatter = (T*)g.scatter + first;
  if (g.rows == 0) {
    for (int64_t j = 0; j < count; ++j) scatter[j] *= (T)p.decay;
    return;
  }
  const double n = g.count, b = (double)g.rows, share = b / (n + b);
  for (int64_t j = 0; j < count; ++j) batch_mean[j] = 0.0;
  for (int64_t r = 0; r < g.rows; ++r) {
    const typename X::Memory* __restrict__ x = row_of<X>(p, g, r) + first;
    for (int64_t j = 0; j < count; ++j) batch_mean[j] += (double)X::load(x[j]);
  }
  for (int64_t j = 0; j < count; ++j) {
    batch_mean[j] /= b;
    const double delta = batch_mean[j] - (double)mean[j];
    squares[j] = n * share * delta * delta;
    mean[j] = (T)((double)mean[j] + share * delta);
  }
  for (int64_t r = 0; r < g.rows; ++r) {
    const typename X::Memory* __restrict__ x = row_of<X>(p, g, r) + first;
    for (int64_t j = 0; j < count; ++j) {
      const double centred = (double)X::load(x[j]) - batch_mean[j];
      squares[j] += centred * centred;
    }
  }
  for (int64_t j = 0; j < count; ++j) scatter[j] = (T)((double)scatter[j] * (double)(T)p.decay + squares[j]);
}

template <class T, class X>
void update_diagonals(const cpu::CovarianceUpdate& p, const Region* list, int64_t regions) {
  constexpr int64_t kColumns = 64;
  const int64_t groups = ceil_divide(p.cols, kColumns);
  const int threads = p.cols * (p.rows + regions) < kSerialTriangle ? 1 : p.threads;
#pragma omp parallel for schedule(static) num_threads(threads) if (threads > 1)
  for (int64_t t = 0; t < regions * groups; ++t) {
    const int64_t first = t % groups * kColumns, last = first + kColumns < p.cols ? first + kColumns : p.cols;
    diagonal_columns<T, X>(p, list[t / groups], first, last);
  }
}

// What lies in the scratch memory: the regions that the batch touches, those of few rows first; their rows of A; the plan
// of a region of many, as large as the largest plan: more rows can be packed in shallower parts.
struct Memory {
  Region* list;     // [regions]
  int64_t* offset;  // [regions]
  char* rows;       // [.., padded_row]: a row of A for each row of x in the regions of few, or kFewRows for each thread
  char* plan;
  int64_t bytes;
};

template <class T>
Memory memory_of(const cpu::CovarianceUpdate& p) {
  int64_t few = 0, plan = 0;
  for (int64_t k = 0; k < p.regions && !p.diagonal; ++k) {
    const int64_t b = p.starts[k + 1] - p.starts[k];
    few += b <= kFewRows ? b : 0;
    const int64_t bytes = b > kFewRows ? Plan<T>(p.cols, b, nullptr).bytes() : 0;
    plan = bytes > plan ? bytes : plan;
  }
  const auto round = [](int64_t bytes) { return ceil_divide(bytes, 64) * 64; };
  Memory m;
  char* const start = (char*)p.scratch;
  m.list = (Region*)start;
  int64_t at = round(p.regions * (int64_t)sizeof(Region));
  m.offset = (int64_t*)(start + at);
  at += round(p.regions * (int64_t)sizeof(int64_t));
  m.rows = start + at;
  if (!p.diagonal && few < kFewRows * p.threads) few = kFewRows * p.threads;
  at += few * padded_row<T>(p.cols) * (int64_t)sizeof(T);
  m.plan = start + at;
  at += plan;
  m.bytes = at;
  return m;
}

template <class T, class X>
void covariance_update_of(cpu::CovarianceUpdate p) {
  const Memory memory = memory_of<T>(p);
  p.scratch = memory.plan;
  const int64_t entries = p.diagonal ? p.cols : p.cols * p.cols;
  const auto region = [&](int64_t k) {
    const int64_t rows = p.starts[k + 1] - p.starts[k];
    return Region{p.weight[k] * p.decay, rows, p.order ? p.order + p.starts[k] : nullptr, (T*)p.mean + k * p.cols,
                  (T*)p.scatter + k * entries};
  };
  int64_t listed = 0, taken = 0;
  for (int64_t k = 0; k < p.regions; ++k) {
    const Region g = region(k);
    if ((g.rows > kFewRows && !p.diagonal) || (g.rows == 0 && p.decay == 1.0)) continue;
    memory.list[listed] = g;
    memory.offset[listed++] = taken;
    taken += g.rows;
  }
  if (p.cols > 0 && p.diagonal) {
    update_diagonals<T, X>(p, memory.list, listed);
  } else if (p.cols > 0) {
    if (listed > 0) update_few<T, X>(p, memory.list, memory.offset, listed, (T*)memory.rows);
    for (int64_t k = 0; k < p.regions; ++k)
      if (p.starts[k + 1] - p.starts[k] > kFewRows) update_lower_triangle<T, X>(p, region(k));
  }
  for (int64_t k = 0; k < p.regions; ++k) {
    const double rows = (double)(p.starts[k + 1] - p.starts[k]);
    p.weight[k] = p.weight[k] * p.decay + rows;
    p.weight2[k] = p.weight2[k] * (p.decay * p.decay) + rows;
  }
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
  if (p.state_is_f64) return covariance_update_in<double>(p);
  covariance_update_in<float>(p);
}

int64_t covariance_scratch_bytes(const cpu::CovarianceUpdate& p) {
  return p.state_is_f64 ? memory_of<double>(p).bytes : memory_of<float>(p).bytes;
}

typedef uint16_t Bits16 __attribute__((may_alias));
typedef uint32_t Bits32 __attribute__((may_alias));
typedef uint64_t Bits64 __attribute__((may_alias));

// Whether any of n numbers is infinite or NaN: all bits of its exponent are set.
template <class Bits>
bool any_not_finite(const Bits* x, int64_t n, Bits exponent) {
  Bits found = 0;
  for (int64_t j = 0; j < n; ++j) found |= (Bits)((x[j] & exponent) == exponent);
  return found != 0;
}

template <class Bits>
int64_t first_row_not_finite(const cpu::CovarianceUpdate& p, Bits exponent) {
  const Bits* x = (const Bits*)p.x;
  const int threads = p.rows * p.cols < 4 * kSerialTriangle ? 1 : p.threads;
  int64_t first = p.rows;
#pragma omp parallel for schedule(static) num_threads(threads) if (threads > 1) reduction(min : first)
  for (int64_t r = 0; r < p.rows; ++r)
    if (r < first && any_not_finite<Bits>(x + r * p.ld_x, p.cols, exponent)) first = r;
  return first < p.rows ? first : -1;
}

// The first row of x that holds an infinity or a NaN, or -1.
int64_t row_not_finite(const cpu::CovarianceUpdate& p) {
  switch (p.x_storage) {
    case cpu::Storage::f32: return first_row_not_finite<Bits32>(p, 0x7F800000u);
    case cpu::Storage::f64: return first_row_not_finite<Bits64>(p, 0x7FF0000000000000u);
    case cpu::Storage::bf16: return first_row_not_finite<Bits16>(p, 0x7F80u);
    case cpu::Storage::f16: return first_row_not_finite<Bits16>(p, 0x7C00u);
  }
  return -1;
}

}  // namespace
}  // namespace ANSN_ISA
}  // namespace ansn
