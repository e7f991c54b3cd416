// out_r = x_r + b_r L_k z_r while the factors of a group are in the cache (cholesky.h), many matrices with few rows each.
//
// Rows are taken in batches of as many as a vector has lanes: either the next row of every matrix of the group, lane by
// lane as the factors lie, or, where a matrix has many rows, so many rows of that one, its elements broadcast. What needs
// fewer batches is taken. z is made straight into lanes, a lane one row.
#pragma once

#include "cholesky.h"

namespace ansn {
namespace ANSN_ISA {
namespace {

constexpr int kBatch = Group<float>::kLanes;

struct Batch {
  int64_t row[kBatch];  // -1: none
};

// z[j][lane] of the batch's rows, columns in whole quads.
void batch_normals(const cpu::CholeskyDraw& p, const Batch& batch, int64_t quads, float* z) {
  constexpr int64_t kQuads = kTileLanes / kBatch;
  Lanes at;
  TileWords w;
  for (int64_t q0 = 0; q0 < quads; q0 += kQuads) {
    const int64_t run = quads - q0 < kQuads ? quads - q0 : kQuads;
    const int64_t computed = whole_groups(run * kBatch) / kBatch;  // beyond the run: with its group of lanes, never used
    for (int64_t q = 0; q < computed; ++q)
      for (int m = 0; m < kBatch; ++m) {
        at.quad[q * kBatch + m] = (uint32_t)(q0 + q);
        at.row[q * kBatch + m] = p.row0 + (uint32_t)batch.row[m];
      }
    lane_words(p.seed, at, p.step, p.stream, run * kBatch, w);
    for (int64_t q = 0; q < run; ++q) {
      float* __restrict__ to = z + (q0 + q) * 4 * kBatch;
      for (int m = 0; m < kBatch; ++m) {
        const int64_t l = q * kBatch + m;
        const Normals n = normals_from_words({w.w0[l], w.w1[l], w.w2[l], w.w3[l]});
        to[m] = n.z0;
        to[kBatch + m] = n.z1;
        to[2 * kBatch + m] = n.z2;
        to[3 * kBatch + m] = n.z3;
      }
    }
  }
}

// y = L z; one matrix a lane, or all rows by matrix `lane`.
template <bool kOneMatrix>
void color(GroupMemory<float>& g, int lane) {
  using Vector = Group<float>::Vector;
  for (int64_t I = 0; I < g.panels; ++I) {
    const Vector* L = g.L + panel_start(I);
    const auto element = [&](int64_t k, int r) {
      return kOneMatrix ? Vector{} + ((const float*)(L + kPanel * k + r))[lane] : L[kPanel * k + r];
    };
    Vector sum[kPanel] = {}, odd[kPanel] = {};
    for (int64_t k = 0; k < kPanel * I; k += 2) {
#pragma GCC unroll 4
      for (int r = 0; r < kPanel; ++r) {
        sum[r] += element(k, r) * g.z[k];
        odd[r] += element(k + 1, r) * g.z[k + 1];
      }
    }
#pragma GCC unroll 4
    for (int r = 0; r < kPanel; ++r) {
      sum[r] += odd[r];
#pragma GCC unroll 4
      for (int c = 0; c <= r; ++c) sum[r] += element(kPanel * I + c, r) * g.z[kPanel * I + c];
      g.y[kPanel * I + r] = sum[r];
    }
  }
}

template <class S>
void combine_row(const cpu::CholeskyDraw& p, int64_t r, bool failed, const float* y) {
  const typename S::Memory* __restrict__ x = (const typename S::Memory*)p.x + r * p.d;
  typename S::Memory* __restrict__ out = (typename S::Memory*)p.out + r * p.d;
  const float b = failed ? __builtin_nanf("") : ((const float*)p.b)[r * p.b_stride];
  for (int64_t j = 0; j < p.d; ++j) out[j] = S::store(S::load(x[j]) + b * y[j]);
}

// Draws a batch; lane < 0: row m by matrix m of the group.
template <class S>
void draw_batch(const cpu::CholeskyDraw& p, GroupMemory<float>& g, const Batch& batch, int lane) {
  using G = Group<float>;
  batch_normals(p, batch, g.panels, (float*)g.z);
  lane < 0 ? color<false>(g, 0) : color<true>(g, lane);
  alignas(64) float rows[kBatch][cpu::kMostCholesky];
  for (int64_t j = 0; j < p.d; j += kBatch) {
    G::Vector v[kBatch];
#pragma GCC unroll 16
    for (int m = 0; m < kBatch; ++m) v[m] = g.y[j + m];
    G::transpose(v);
#pragma GCC unroll 16
    for (int m = 0; m < kBatch; ++m) *(G::Vector*)(rows[m] + j) = v[m];
  }
  for (int m = 0; m < kBatch; ++m)
    if (batch.row[m] >= 0) combine_row<S>(p, batch.row[m], g.info[lane < 0 ? m : lane] != 0, rows[m]);
}

template <class S>
void draw_group(const cpu::CholeskyDraw& p, GroupMemory<float>& g, int64_t first, int used) {
  // Rows of matrix k: order[start[k]] .. order[start[k + 1] - 1]; without a list row k, its own.
  const auto start = [&](int64_t k) { return p.start ? p.start[k] : k; };
  const auto row = [&](int64_t at) { return p.order ? p.order[at] : at; };
  int64_t longest = 0, alone = 0;  // batches across the group, and matrix by matrix
  for (int m = 0; m < used; ++m) {
    const int64_t rows = start(first + m + 1) - start(first + m);
    longest = rows > longest ? rows : longest;
    alone += (rows + kBatch - 1) / kBatch;
  }
  Batch batch;
  if (longest <= alone) {
    for (int64_t t = 0; t < longest; ++t) {
      for (int m = 0; m < kBatch; ++m) {
        const int64_t at = m < used ? start(first + m) + t : 0;
        batch.row[m] = m < used && at < start(first + m + 1) ? row(at) : -1;
      }
      draw_batch<S>(p, g, batch, -1);
    }
    return;
  }
  for (int m = 0; m < used; ++m) {
    const int64_t end = start(first + m + 1);
    for (int64_t at = start(first + m); at < end; at += kBatch) {
      for (int l = 0; l < kBatch; ++l) batch.row[l] = at + l < end ? row(at + l) : -1;
      draw_batch<S>(p, g, batch, m);
    }
  }
}

template <class S>
void cholesky_draw_in(const cpu::CholeskyDraw& p) {
  each_group<float>(p.count, p.d, p.scratch, GroupMemory<float>::bytes(p.d), p.threads,
                    [&](int64_t index, GroupMemory<float>& g) {
                      const int used = load_and_factor<float>(p.matrix, p.count, index, g);
                      draw_group<S>(p, g, index * kBatch, used);
                      store_results<float>(g, index, used, p.factor, p.info);
                    });
}

void cholesky_draw(const cpu::CholeskyDraw& p) {
  if (p.count <= 0 || p.d <= 0) return;
  switch (p.storage) {
    case cpu::Storage::f32: return cholesky_draw_in<F32>(p);
    case cpu::Storage::bf16: return cholesky_draw_in<BF16>(p);
    case cpu::Storage::f16: return cholesky_draw_in<F16>(p);
    case cpu::Storage::f64: return;  // the binding refuses it
  }
}

}  // namespace
}  // namespace ANSN_ISA
}  // namespace ansn
