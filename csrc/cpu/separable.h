// The separable basis at work, a row at a time from memory to memory:
//
//     apply:  out = y or v - y,  y = [Q] (w * [Q^T] (v - m)),  w given, or 1 / (l / tau^2 + 1) of given l
//     step:   out = x + c (D - x) + Q (s * (a f + b z))
//
// The row stays in the cache from its load to its store; z is made there.
#pragma once

#if defined(_OPENMP)
#include <omp.h>
#endif

#include "axis_product.h"
#include "noise.h"

namespace ansn {
namespace ANSN_ISA {
namespace {
namespace axes {

constexpr int64_t kSerialProducts = 1 << 18;  // below this, waking a second thread costs more than it saves
constexpr int64_t kProductsOfNumber = 4;      // what loading, weighting and storing a number counts as

inline int64_t whole_lines(int64_t bytes) { return (bytes + 63) / 64 * 64; }

// What lies in the scratch memory: the packed bases, then for each thread two units and what else a row needs.
template <class T>
struct Plan {
  Packed<T> packed;
  int64_t unit_rows, units, buffer, bytes_of_thread, bytes;
  char* memory;
  int threads;
  // further: bytes a row of the unit; turns: products with Q a row.
  Plan(const cpu::Axes& q, bool inward, bool outward, int64_t rows, int64_t further, int64_t turns, int wanted, void* scratch)
      : packed(q, inward, outward, scratch), unit_rows(axes::unit_rows<T>(q, rows)), units((rows + unit_rows - 1) / unit_rows) {
    const Unit unit(q, unit_rows);
    int64_t products = kProductsOfNumber * rows * unit.cols;
    for (int a = 0; a < q.count; ++a) products += q.basis[a] ? turns * rows * unit.cols * q.size[a] : 0;
    threads = products < kSerialProducts ? 1 : wanted;
    buffer = whole_lines((unit.numbers() + kSlack) * (int64_t)sizeof(T));
    bytes_of_thread = 2 * buffer + whole_lines(unit_rows * further);
    const int64_t head = whole_lines(packed.numbers() * (int64_t)sizeof(T));
    memory = (char*)scratch + head;
    bytes = head + threads * bytes_of_thread;
  }
};

// work(thread's memory, first row, rows) for every unit, once the bases are packed.
template <class T, class Work>
void for_units(const cpu::Axes& q, const Plan<T>& plan, int64_t rows, const Work& work) {
#pragma omp parallel num_threads(plan.threads) if (plan.threads > 1)
  {
    int thread = 0;
#if defined(_OPENMP)
    thread = omp_get_thread_num();
#endif
    char* const memory = plan.memory + thread * plan.bytes_of_thread;
    for (int64_t i = 0; i < 2 * plan.buffer / (int64_t)sizeof(T); ++i) ((T*)memory)[i] = 0;  // the slack is read, too
#pragma omp for schedule(static)
    for (int64_t k = 0; k < q.used; ++k) plan.packed.fill(k);
#pragma omp for schedule(static)
    for (int64_t u = 0; u < plan.units; ++u) {
      const int64_t first = u * plan.unit_rows, left = rows - first;
      work(memory, first, left < plan.unit_rows ? left : plan.unit_rows);
    }
  }
}

template <class T>
Plan<T> plan_of(const cpu::SeparableApply& p) {
  return Plan<T>(p.axes, p.inward, p.outward, p.rows, 0, (p.inward ? 1 : 0) + (p.outward ? 1 : 0), p.threads, p.scratch);
}

inline Plan<float> plan_of(const cpu::SeparableStep& p) {
  const int64_t noise = p.step.b ? (p.step.cols + 3) / 4 * 4 * (int64_t)sizeof(float) : 0;
  return Plan<float>(p.axes, false, true, p.step.rows, noise, 1, p.step.threads, p.scratch);
}

template <class S, class T>
void apply_unit(const cpu::SeparableApply& p, const Plan<T>& plan, char* memory, int64_t first, int64_t rows) {
  using M = typename S::Memory;
  const Unit unit(p.axes, rows);
  T *const buffer = (T*)memory, *const other = (T*)(memory + plan.buffer);
  const int64_t k = p.axes.region ? p.axes.region[first] : 0, cols = p.cols;
  const M* v = (const M*)p.v + first * cols;
  const T* from = nullptr;
  if constexpr (sizeof(T) == sizeof(M)) from = p.center ? nullptr : (const T*)v;  // the row as it lies in memory
  if (!from) {
    const T* center = p.center ? (const T*)p.center + k * p.center_stride : nullptr;
    for (int64_t r = 0; r < rows; ++r) {
      T* __restrict__ row = buffer + r * cols;
      const M* source = v + r * cols;
      if (center) {
        for (int64_t j = 0; j < cols; ++j) row[j] = S::load(source[j]) - center[j];
      } else {
        for (int64_t j = 0; j < cols; ++j) row[j] = S::load(source[j]);
      }
    }
    from = buffer;
  }
  if (p.inward) from = turn(plan.packed, k, unit, true, from, buffer, other);
  if (p.weights) {
    const T* weights = (const T*)p.weights + k * p.weight_stride;
    T* const to = from == other ? other : buffer;
    for (int64_t r = 0; r < rows; ++r) {
      T* row = to + r * cols;
      const T* source = from + r * cols;
      if (p.tau2) {
        const T over = 1 / ((const T*)p.tau2)[(first + r) * p.tau2_stride];
        ANSN_INDEPENDENT
        for (int64_t j = 0; j < cols; ++j) row[j] = source[j] / (weights[j] * over + 1);
      } else {
        ANSN_INDEPENDENT
        for (int64_t j = 0; j < cols; ++j) row[j] = source[j] * weights[j];
      }
    }
    from = to;
  }
  if (p.outward) from = turn(plan.packed, k, unit, false, from, buffer, other);
  M* __restrict__ out = (M*)p.out + first * cols;
  if (p.rest) {
    for (int64_t j = 0; j < unit.numbers(); ++j) out[j] = S::store(S::load(v[j]) - from[j]);
  } else {
    for (int64_t j = 0; j < unit.numbers(); ++j) out[j] = S::store(from[j]);
  }
}

template <class S, class T>
void apply_in(const cpu::SeparableApply& p) {
  const Plan<T> plan = plan_of<T>(p);
  for_units(p.axes, plan, p.rows,
            [&](char* memory, int64_t first, int64_t rows) { apply_unit<S, T>(p, plan, memory, first, rows); });
}

template <class S>
void step_unit(const cpu::SeparableStep& p, const Plan<float>& plan, char* memory, int64_t first, int64_t rows) {
  using M = typename S::Memory;
  const cpu::ColoredStep& s = p.step;
  const Unit unit(p.axes, rows);
  float *buffer = (float*)memory, *other = (float*)(memory + plan.buffer), *z = (float*)(memory + 2 * plan.buffer);
  const int64_t k = p.axes.region ? p.axes.region[first] : 0, cols = s.cols;
  const float* scale = s.diag + k * p.deviation_stride;
  for (int64_t r = 0; r < rows; ++r) {
    const int64_t row = first + r;
    const float a = s.a ? s.a[row * s.a_stride] : 0, b = s.b ? s.b[row * s.b_stride] : 0;
    const M* f = s.f && s.a ? (const M*)s.f + row * cols : nullptr;
    float* __restrict__ to = buffer + r * cols;
    if (s.b) normals(s.seed, s.row0 + (uint32_t)row, s.step, s.stream, (cols + 3) / 4, z);
    if (f && s.b) {
      for (int64_t j = 0; j < cols; ++j) to[j] = scale[j] * (a * S::load(f[j]) + b * z[j]);
    } else if (f) {
      for (int64_t j = 0; j < cols; ++j) to[j] = scale[j] * (a * S::load(f[j]));
    } else {
      for (int64_t j = 0; j < cols; ++j) to[j] = scale[j] * (b * z[j]);
    }
  }
  const float* push = turn<float>(plan.packed, k, unit, false, buffer, buffer, other);
  for (int64_t r = 0; r < rows; ++r, push += cols) {
    const int64_t row = first + r, at = row * cols;
    const M *x = (const M*)s.x + at, *D = (const M*)s.D + at;
    M* out = (M*)s.out + at;
    if (s.D && s.c) {
      const float c = s.c[row * s.c_stride];
      ANSN_INDEPENDENT
      for (int64_t j = 0; j < cols; ++j) {
        const float here = S::load(x[j]);
        out[j] = S::store(here + c * (S::load(D[j]) - here) + push[j]);
      }
    } else {
      ANSN_INDEPENDENT
      for (int64_t j = 0; j < cols; ++j) out[j] = S::store(S::load(x[j]) + push[j]);
    }
  }
}

template <class S>
void step_in(const cpu::SeparableStep& p) {
  const Plan<float> plan = plan_of(p);
  for_units(p.axes, plan, p.step.rows,
            [&](char* memory, int64_t first, int64_t rows) { step_unit<S>(p, plan, memory, first, rows); });
}

}  // namespace axes

int64_t separable_apply_scratch_bytes(const cpu::SeparableApply& p) {
  return p.storage == cpu::Storage::f64 ? axes::plan_of<double>(p).bytes : axes::plan_of<float>(p).bytes;
}

void separable_apply(const cpu::SeparableApply& p) {
  switch (p.storage) {
    case cpu::Storage::f32: return axes::apply_in<F32, float>(p);
    case cpu::Storage::f64: return axes::apply_in<F64, double>(p);
    case cpu::Storage::bf16: return axes::apply_in<BF16, float>(p);
    case cpu::Storage::f16: return axes::apply_in<F16, float>(p);
  }
}

int64_t separable_step_scratch_bytes(const cpu::SeparableStep& p) { return axes::plan_of(p).bytes; }

void separable_step(const cpu::SeparableStep& p) {
  switch (p.step.storage) {
    case cpu::Storage::f32: return axes::step_in<F32>(p);
    case cpu::Storage::bf16: return axes::step_in<BF16>(p);
    case cpu::Storage::f16: return axes::step_in<F16>(p);
    case cpu::Storage::f64: return;  // the binding refuses it
  }
}

}  // namespace
}  // namespace ANSN_ISA
}  // namespace ansn
