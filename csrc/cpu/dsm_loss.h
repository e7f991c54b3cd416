// Denoising score matching, loss and gradient in one pass over memory:
//
//     loss_r = w_r / d sum_j (p - t)^2,   gradient = 2 w_r / d (p - t),   t the target, or -z made from its counter.
//
// A task is one long row or several short ones, so that a row's sum is made by one thread in an order of its own: sixteen
// float32 sums within a tile of the row (at most 512 columns), tiles added in float64.
#pragma once

#include "colored_step.h"

namespace ansn {
namespace ANSN_ISA {
namespace {

constexpr int kSums = 16;  // whatever the instruction set

// `count` columns of one row: writes the gradient, returns the sum of squares. From: t, or z (then the residual is p + z).
template <class S, bool kNoise>
float residuals(const typename S::Memory* __restrict__ p, const void* from, typename S::Memory* __restrict__ gradient,
                float slope, int64_t count) {
  const float* __restrict__ z = (const float*)from;
  const typename S::Memory* __restrict__ t = (const typename S::Memory*)from;
  alignas(64) float sum[kSums] = {};
  int64_t j = 0;
  for (; j + kSums <= count; j += kSums) {
    ANSN_INDEPENDENT
    for (int l = 0; l < kSums; ++l) {
      const float residual = kNoise ? S::load(p[j + l]) + z[j + l] : S::load(p[j + l]) - S::load(t[j + l]);
      gradient[j + l] = S::store(slope * residual);
      sum[l] += residual * residual;
    }
  }
  for (int l = 0; j < count; ++j, ++l) {
    const float residual = kNoise ? S::load(p[j]) + z[j] : S::load(p[j]) - S::load(t[j]);
    gradient[j] = S::store(slope * residual);
    sum[l] += residual * residual;
  }
  for (int half = kSums / 2; half; half /= 2)
    for (int l = 0; l < half; ++l) sum[l] += sum[l + half];
  return sum[0];
}

template <class S, bool kNoise>
void loss_rows(const cpu::DsmLoss& p, int64_t first_row, int64_t last_row) {
  using M = typename S::Memory;
  const int64_t row_quads = (p.cols + 3) / 4, last = last_row * row_quads;
  cpu::ColoredStep counters = {};
  counters.seed = p.seed;
  counters.row0 = p.row0;
  counters.step = p.step;
  counters.stream = p.stream;
  alignas(64) float z[4 * kTileLanes];
  int64_t r = first_row, q = 0;
  double total = 0;
  for (int64_t at = first_row * row_quads; at < last; at += kTileLanes) {
    const int64_t lanes = last - at < kTileLanes ? last - at : kTileLanes;
    if (kNoise) quad_normals(counters, row_quads, at, at + lanes, z);
    for (int64_t lane = 0; lane < lanes;) {
      const int64_t run = row_quads - q < lanes - lane ? row_quads - q : lanes - lane;
      const int64_t j = 4 * q, end = j + 4 * run < p.cols ? j + 4 * run : p.cols;
      const int64_t offset = r * p.cols + j;
      const float weight = p.weight[r * p.weight_stride] / (float)p.cols;
      const void* from = kNoise ? (const void*)(z + 4 * lane) : (const void*)((const M*)p.target + offset);
      total += residuals<S, kNoise>((const M*)p.prediction + offset, from, (M*)p.gradient + offset, 2 * weight, end - j);
      lane += run;
      q += run;
      if (q == row_quads) {
        p.loss[r] = (float)((double)weight * total);
        total = 0;
        q = 0;
        ++r;
      }
    }
  }
}

template <class S>
void dsm_loss_in(const cpu::DsmLoss& p) {
  const int64_t row_quads = (p.cols + 3) / 4;
  const int64_t rows = row_quads < kTileLanes ? kTileLanes / row_quads : 1;  // of a task
  const int64_t tasks = (p.rows + rows - 1) / rows;
  const int threads = p.rows * p.cols < kSerialElements ? 1 : p.threads;
#pragma omp parallel for schedule(static) num_threads(threads) if (threads > 1)
  for (int64_t t = 0; t < tasks; ++t) {
    const int64_t first = t * rows, last = first + rows < p.rows ? first + rows : p.rows;
    p.target ? loss_rows<S, false>(p, first, last) : loss_rows<S, true>(p, first, last);
  }
}

void dsm_loss(const cpu::DsmLoss& p) {
  if (p.rows <= 0 || p.cols <= 0) return;
  switch (p.storage) {
    case cpu::Storage::f32: return dsm_loss_in<F32>(p);
    case cpu::Storage::bf16: return dsm_loss_in<BF16>(p);
    case cpu::Storage::f16: return dsm_loss_in<F16>(p);
    case cpu::Storage::f64: return;  // the binding refuses it
  }
}

}  // namespace
}  // namespace ANSN_ISA
}  // namespace ansn
