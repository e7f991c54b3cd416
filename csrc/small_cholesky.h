// Cholesky factor of one small matrix (d <= 128, float32 or float64).
//
// A team of lanes works on one matrix in shared memory. The work is a sequence of phases: within a phase each lane reads
// what earlier phases wrote and writes words that no other lane touches; team.sync() ends every phase. On a GPU the lanes
// are threads (csrc/cuda/cholesky.cu); on the CPU a loop visits them one after the other, in any order, with the same
// result bit for bit. So the tests of that loop check the text that the device runs, its races included.
//
// Shared memory holds the lower triangle as panels of four columns: panel q is columns 4q .. 4q+3 of rows 4q .. n-1, each
// row of it one word of four numbers, and one word of padding, with which eight neighbouring panels of a row lie in eight different
// groups of banks. n is d rounded up to a multiple of 4; the rows and columns added are those of the identity.
// The factorisation is left-looking by panels: a lane holds its row of the panel in registers and subtracts the products
// with all finished panels (a finished word of the diagonal rows is read by all lanes at once: a broadcast). Then every
// lane factors the 4 x 4 corner for itself and solves its own row. Two syncs for four columns, no row exchanged. A team
// has a lane for each row: regions are tens, not thousands, and what counts is how long one matrix takes.
#pragma once

#include "small_cholesky_work.h"

#if defined(__CUDACC__)  // a team is made of threads there, and no host copy of its work is wanted
#define ANSN_TEAM static __device__ __forceinline__
#define ANSN_BOTH static __host__ __device__ __forceinline__
#else
#define ANSN_TEAM static inline __attribute__((always_inline, unused))
#define ANSN_BOTH ANSN_TEAM
#endif
#if defined(__CUDACC__) || defined(__clang__)
#define ANSN_UNROLL _Pragma("unroll")
#else
#define ANSN_UNROLL _Pragma("GCC unroll 16")
#endif

// One phase: the statement runs once for each lane, on a GPU for the thread's own.
#define ANSN_EACH_LANE(team, lane) \
  for (int turn_ = (team).first(), lane = (team).lane(turn_); turn_ < (team).last(); lane = (team).lane(++turn_))

namespace ansn {
namespace small_cholesky {

template <class T>
struct alignas(16) Four {
  T v[4];
};

#if !defined(__CUDACC__)
// Lanes of a team on the CPU; a device team has the same members. `visit` in [0, lanes) picks the order of the visits;
// `unsynced` counts phases that began before the last one was ended.
template <int LANES>
struct SerialTeam {
  static constexpr int kLanes = LANES;
  template <class V>
  struct PerLane {  // what a lane keeps in registers from one phase to the next
    V values[LANES];
    V& of(int lane) { return values[lane]; }
    const V& any() const { return values[0]; }  // of a value that all lanes agree on
  };
  int visit;
  mutable int64_t unsynced = 0;
  mutable bool open = false;
  int first() const {
    unsynced += open;
    open = true;
    return 0;
  }
  int last() const { return LANES; }
  int lane(int turn) const { return (turn * (2 * visit + 1) + visit) & (LANES - 1); }
  void sync() const { open = false; }
  template <class T>
  void copy_quad(Four<T>* to, const T* from, bool) const {
    for (int c = 0; c < 4; ++c) to->v[c] = from[c];
  }
  template <class T>
  void copy_one(T* to, const T* from) const {
    *to = *from;
  }
  void wait_for_copies() const {}
  template <class T>
  void store_quad(T* to, const Four<T>& from, bool) const {
    for (int c = 0; c < 4; ++c) to[c] = from.v[c];
  }
};
#endif

ANSN_BOTH int panels(int d) { return (d + 3) / 4; }

// Where panel q begins, less its first row: the word of row i >= 4 q is at panel_base(q, n) + i.
ANSN_BOTH int panel_base(int q, int n) { return q * (n - 1 - 2 * q); }

ANSN_BOTH int triangle_words(int d) {
  const int m = panels(d);
  return m * (4 * m + 1) - 2 * m * (m - 1);
}

// Shared memory of one matrix in words of four numbers: triangle and corner; odd, against bank conflicts between the
// matrices of a block.
ANSN_BOTH int team_words(int d) { return (triangle_words(d) + 4) | 1; }

ANSN_TEAM float square_root(float x) {
#if defined(__CUDA_ARCH__)
  return sqrtf(x);
#else
  return __builtin_sqrtf(x);
#endif
}
ANSN_TEAM double square_root(double x) {
#if defined(__CUDA_ARCH__)
  return sqrt(x);
#else
  return __builtin_sqrt(x);
#endif
}

template <class T>
ANSN_TEAM T subtract_dot(T sum, Four<T> p, Four<T> q) {
  ANSN_UNROLL
  for (int c = 0; c < 4; ++c) sum -= p.v[c] * q.v[c];
  return sum;
}

// The lower triangle of matrix k from device memory, in words where its rows are aligned to them.
template <class T, class Team>
ANSN_TEAM void load(const Team& team, const Work<T>& w, int64_t k, Four<T>* triangle) {
  const T* matrix = w.matrix + k * w.d * w.d;
  const int m = panels(w.d), n = 4 * m;
  const bool aligned = w.d % 4 == 0 && ((uintptr_t)w.matrix & 15) == 0;
  ANSN_EACH_LANE(team, lane) {
    int i = lane / m, q = lane % m;  // neighbouring lanes read neighbouring words of a row
    const int rows_on = Team::kLanes / m, panels_on = Team::kLanes % m;
    while (i < n) {
      if (4 * q <= i) {
        Four<T>* word = triangle + panel_base(q, n) + i;
        const T* from = matrix + i * w.d + 4 * q;
        if (i < w.d && 4 * q + 3 < w.d) {
          team.copy_quad(word, from, aligned);
        } else {
          for (int c = 0; c < 4; ++c) {
            if (i < w.d && 4 * q + c < w.d)
              team.copy_one(&word->v[c], from + c);
            else
              word->v[c] = i == 4 * q + c ? T(1) : T(0);
          }
        }
      }
      i += rows_on;
      q += panels_on;
      if (q >= m) {
        q -= m;
        ++i;
      }
    }
    team.wait_for_copies();
  }
  team.sync();
}

// Row i of panel p less its products with the panels before it.
template <class T>
ANSN_TEAM Four<T> reduce(int i, int p, int n, const Four<T>* triangle) {
  Four<T> row = triangle[panel_base(p, n) + i];
  for (int q = 0; q < p; ++q) {
    const Four<T>* words = triangle + panel_base(q, n);
    const Four<T> own = words[i];
    ANSN_UNROLL
    for (int c = 0; c < 4; ++c) row.v[c] = subtract_dot(row.v[c], own, words[4 * p + c]);
  }
  return row;
}

// Factor of the 4 x 4 corner, the reciprocals of its diagonal, and 0 or the order of the minor that is not positive.
template <class T>
struct Corner {
  Four<T> g[4];
  T inverse[4];
  int bad;
};

template <class T>
ANSN_TEAM Corner<T> factor_corner(const Four<T>* a) {
  Corner<T> f;
  f.bad = 0;
  ANSN_UNROLL
  for (int r = 0; r < 4; ++r) f.g[r] = a[r];
  ANSN_UNROLL
  for (int c = 0; c < 4; ++c) {
    const T pivot = f.g[c].v[c];
    if (f.bad == 0 && !(pivot > T(0))) f.bad = c + 1;  // NaN is not positive
    const T root = square_root(pivot);
    f.g[c].v[c] = root;
    f.inverse[c] = T(1) / root;
    ANSN_UNROLL
    for (int r = c + 1; r < 4; ++r) {
      f.g[r].v[c] *= f.inverse[c];
      ANSN_UNROLL
      for (int s = c + 1; s <= r; ++s) f.g[r].v[s] -= f.g[r].v[c] * f.g[s].v[c];
    }
  }
  return f;
}

// A row of the panel times the corner's inverse transpose. `offset` is the row's place below the panel's first: the corner's
// own rows end at their diagonal.
template <class T>
ANSN_TEAM Four<T> solve_row(Four<T> y, const Corner<T>& f, int offset) {
  ANSN_UNROLL
  for (int c = 0; c < 4; ++c) {
    ANSN_UNROLL
    for (int s = 0; s < c; ++s) y.v[c] -= y.v[s] * f.g[c].v[s];
    y.v[c] = offset > c ? y.v[c] * f.inverse[c] : offset == c ? f.g[c].v[c] : T(0);
  }
  return y;
}

// Factors the triangle in place; returns info. After a failure the triangle is meaningless.
template <class T, class Team>
ANSN_TEAM int factor(const Team& team, int n, Four<T>* triangle, Four<T>* corner) {
  typename Team::template PerLane<Four<T>> held;
  typename Team::template PerLane<int> info;
  for (int p = 0; 4 * p < n; ++p) {
    ANSN_EACH_LANE(team, lane) {
      if (lane < 4 * p || lane >= n) continue;
      held.of(lane) = reduce(lane, p, n, triangle);
      if (lane < 4 * p + 4) corner[lane - 4 * p] = held.of(lane);
    }
    team.sync();
    ANSN_EACH_LANE(team, lane) {
      const Corner<T> f = factor_corner(corner);
      info.of(lane) = f.bad == 0 ? 0 : 4 * p + f.bad;
      if (lane >= 4 * p && lane < n) triangle[panel_base(p, n) + lane] = solve_row(held.of(lane), f, lane - 4 * p);
    }
    team.sync();
    if (info.any() != 0) return info.any();
  }
  return 0;
}

template <class T, class Team>
ANSN_TEAM void store_factor(const Team& team, const Work<T>& w, int64_t k, const Four<T>* triangle) {
  T* out = w.factor + k * w.d * w.d;
  const int m = panels(w.d), n = 4 * m;
  const bool aligned = w.d % 4 == 0 && ((uintptr_t)w.factor & 15) == 0;
  ANSN_EACH_LANE(team, lane) {
    for (int t = lane; t < w.d * m; t += Team::kLanes) {
      const int i = t / m, q = t % m;
      Four<T> word = {};
      if (4 * q <= i) word = triangle[panel_base(q, n) + i];
      T* to = out + i * w.d + 4 * q;
      if (4 * q + 3 < w.d) {
        team.store_quad(to, word, aligned);
      } else {
        ANSN_UNROLL
        for (int c = 0; c < 4; ++c)
          if (4 * q + c < w.d) to[c] = word.v[c];
      }
    }
  }
  team.sync();
}

// All of matrix k: factor and status. `memory` is team_words(d) words.
template <class T, class Team>
ANSN_TEAM void run(const Team& team, const Work<T>& w, int64_t k, Four<T>* memory) {
  Four<T>* const triangle = memory;
  Four<T>* const corner = triangle + triangle_words(w.d);
  load(team, w, k, triangle);
  const int info = factor(team, 4 * panels(w.d), triangle, corner);
  ANSN_EACH_LANE(team, lane) {
    if (lane == 0) w.info[k] = info;
  }
  team.sync();
  store_factor(team, w, k, triangle);
}

}  // namespace small_cholesky
}  // namespace ansn
