// What a mixture of Gaussians, one a region with a separable basis, says of a row x under isotropic noise:
//
//     ln w_k N(x; m_k, S_k + sigma^2 I)    and    x - sum_k p_k Q_k (sigma^2 / (lambda_k + sigma^2)) Q_k^T (x - m_k)
//
// A unit of rows is read once. The coordinates in all K bases stay in the cache; after the softmax, a share below kNothing
// counts as 0, and regions without shares are left out of the way back, which at low noise leaves about one.
#pragma once

#include "separable.h"

namespace ansn {
namespace ANSN_ISA {
namespace {
namespace axes {

constexpr double kNothing = 1e-12;
constexpr int kAbreastLogs = 16;  // lanes of sums that every instruction set has, so that all give the same bits

// sum_j c_j^2 / t_j and sum_j ln t_j, t_j = l_j + s; c_j becomes s / t_j c_j. The logarithm is taken of products of
// mantissas, their exponents apart.
inline void misfit(float* __restrict__ c, const float* __restrict__ l, float s, int64_t cols, double& squares, double& logs) {
  constexpr int64_t kBlock = 64 * kAbreastLogs;  // as many mantissas below 2 as a float's range can take, each lane 64
  squares = logs = 0;
  int64_t exponents = 0;
  for (int64_t first = 0; first < cols; first += kBlock) {
    const int64_t count = least(kBlock, cols - first), whole = count / kAbreastLogs * kAbreastLogs;
    float sum[kAbreastLogs] = {}, product[kAbreastLogs];
    int32_t exponent[kAbreastLogs] = {};
    for (int i = 0; i < kAbreastLogs; ++i) product[i] = 1;
    const auto take = [&](int64_t j, int i) {
      const float t = l[j] + s > 1.17549435e-38f ? l[j] + s : 1.17549435e-38f;  // never 0
      const float part = c[j] / t;
      sum[i] += part * c[j];
      c[j] = s * part;
      const uint32_t bits = float_bits(t);
      exponent[i] += (int32_t)(bits >> 23) - 127;
      product[i] *= bits_float((bits & 0x007FFFFFu) | 0x3F800000u);
    };
    for (int64_t j = first; j < first + whole; j += kAbreastLogs)
      for (int i = 0; i < kAbreastLogs; ++i) take(j + i, i);
    for (int64_t j = first + whole; j < first + count; ++j) take(j, (int)(j - first - whole));
    double of_half[2] = {1, 1};  // below 2^512 each
    for (int i = 0; i < kAbreastLogs; ++i) {
      squares += (double)sum[i];
      of_half[i / (kAbreastLogs / 2)] *= (double)product[i];
      exponents += exponent[i];
    }
    logs += __builtin_log(of_half[0]) + __builtin_log(of_half[1]);
  }
  logs += (double)exponents * 0.69314718055994530942;
}

// Beside what every plan has, a row's sum, its coordinates in all bases, and its shares.
inline Plan<float> plan_of(const cpu::Mixture& p) {
  const int64_t floats = (1 + p.regions) * p.cols;  // twice rounded up to whole cache lines
  const int64_t further = 128 + floats * (int64_t)sizeof(float) + p.regions * (int64_t)sizeof(double);
  return Plan<float>(p.axes, true, p.out != nullptr, p.rows, further, 2 * p.regions, p.threads, p.scratch);
}

template <class S>
void mixture_unit(const cpu::Mixture& p, const Plan<float>& plan, char* memory, int64_t first, int64_t rows) {
  using M = typename S::Memory;
  const Unit unit(p.axes, rows);
  const int64_t K = p.regions, cols = p.cols, numbers = unit.numbers();
  float *const buffer = (float*)memory, *const other = (float*)(memory + plan.buffer);
  float* __restrict__ sum = (float*)(memory + 2 * plan.buffer);
  float* const coordinates = (float*)(memory + 2 * plan.buffer + whole_lines(numbers * (int64_t)sizeof(float)));  // [K, rows, cols]
  double* shares = (double*)((char*)coordinates + whole_lines(K * numbers * (int64_t)sizeof(float)));  // [K, rows]
  const M* x = (const M*)p.x + first * cols;
  for (int64_t k = 0; k < K; ++k) {
    const float* center = p.center + k * cols;
    for (int64_t r = 0; r < rows; ++r)
      for (int64_t j = 0; j < cols; ++j) buffer[r * cols + j] = S::load(x[r * cols + j]) - center[j];
    float* c = coordinates + k * numbers;
    const float* turned = turn<float>(plan.packed, k, unit, true, buffer, buffer, other);
    __builtin_memcpy(c, turned, numbers * sizeof(float));
    for (int64_t r = 0; r < rows; ++r) {
      double squares, logs;
      misfit(c + r * cols, p.variances + k * cols, p.sigma2[(first + r) * p.sigma2_stride], cols, squares, logs);
      shares[k * rows + r] = p.logs[k * p.rows + first + r] = p.log_weights[k] - 0.5 * (squares + logs);
    }
  }
  if (!p.out) return;
  for (int64_t r = 0; r < rows; ++r) {
    double top = -__builtin_inf(), total = 0;
    for (int64_t k = 0; k < K; ++k) top = shares[k * rows + r] > top ? shares[k * rows + r] : top;
    for (int64_t k = 0; k < K; ++k) total += shares[k * rows + r] = __builtin_exp(shares[k * rows + r] - top);
    for (int64_t k = 0; k < K; ++k) {
      const double share = shares[k * rows + r] / total;
      shares[k * rows + r] = share < kNothing ? 0 : share;
    }
  }
  for (int64_t i = 0; i < numbers; ++i) sum[i] = 0;
  for (int64_t k = 0; k < K; ++k) {
    bool any = false;
    for (int64_t r = 0; r < rows; ++r) any = any || shares[k * rows + r] != 0;
    if (!any) continue;
    const float* c = coordinates + k * numbers;
    for (int64_t r = 0; r < rows; ++r) {
      const float share = (float)shares[k * rows + r];
      for (int64_t j = 0; j < cols; ++j) buffer[r * cols + j] = share * c[r * cols + j];
    }
    const float* turned = turn<float>(plan.packed, k, unit, false, buffer, buffer, other);
    for (int64_t i = 0; i < numbers; ++i) sum[i] += turned[i];
  }
  M* __restrict__ out = (M*)p.out + first * cols;
  for (int64_t i = 0; i < numbers; ++i) out[i] = S::store(S::load(x[i]) - sum[i]);
}

}  // namespace axes

int64_t mixture_scratch_bytes(const cpu::Mixture& p) { return axes::plan_of(p).bytes; }

void mixture(const cpu::Mixture& p) {
  const axes::Plan<float> plan = axes::plan_of(p);
  axes::for_units(p.axes, plan, p.rows, [&](char* memory, int64_t first, int64_t rows) {
    switch (p.storage) {
      case cpu::Storage::f32: return axes::mixture_unit<F32>(p, plan, memory, first, rows);
      case cpu::Storage::bf16: return axes::mixture_unit<BF16>(p, plan, memory, first, rows);
      case cpu::Storage::f16: return axes::mixture_unit<F16>(p, plan, memory, first, rows);
      case cpu::Storage::f64: return;  // the binding refuses it
    }
  });
}

}  // namespace
}  // namespace ANSN_ISA
}  // namespace ansn
