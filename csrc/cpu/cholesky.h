// Cholesky factors of many small matrices.
//
// A vector holds one element of as many matrices as it has lanes (a group), so that the arithmetic is that of one scalar
// factorisation, with no lane idle, whatever the order d. Matrices are transposed to that layout on the way in and back on
// the way out; only the lower triangle is read. Rows are held in panels of four, column after column,
//
//     panel I:  [column k = 0 .. 4 I + 3][row 4 I + r],
//
// which lets a 4 x 4 block (I, J) be summed in registers over one contiguous stretch of each of its two panels:
// left-looking, each element is written once. Beyond d the matrix is continued by the identity. A lane whose pivot is
// not positive goes on with NaN, which never leaves its lane.
//
// At d = 64 on a Zen 4 core the factorisation proper runs at the rate of the multiplier; the two transpositions take the
// same time again. Prefetching the next group during it gained nothing.
#pragma once

#include "kernels.h"
#include "transpose.h"

namespace ansn {
namespace ANSN_ISA {
namespace {

template <int... I>
struct Indices {};
#if defined(__clang__)
template <class, int... I>
using IndicesOf = Indices<I...>;
template <int N>
using FirstIndices = __make_integer_seq<IndicesOf, int, N>;
#else
template <int N>
using FirstIndices = Indices<__integer_pack(N)...>;
#endif

template <class T>
struct IntegerOf;
template <>
struct IntegerOf<float> {
  using Type = int32_t;
};
template <>
struct IntegerOf<double> {
  using Type = int64_t;
};

template <class T>
struct Group {
  typedef T Vector __attribute__((vector_size(ANSN_VECTOR_BYTES)));
  typedef T Unaligned __attribute__((vector_size(ANSN_VECTOR_BYTES), aligned(alignof(T)), may_alias));
  typedef typename IntegerOf<T>::Type Integer;
  typedef Integer Mask __attribute__((vector_size(ANSN_VECTOR_BYTES)));
  static constexpr int kLanes = ANSN_VECTOR_BYTES / sizeof(T);
  // columns of a block summed at once: 16 sums need the 32 registers of AVX-512
  static constexpr int kColumns = ANSN_VECTOR_BYTES == 64 ? 4 : 2;

  static constexpr int kWidth = 16 / sizeof(T);         // elements of 16 bytes, within which shuffles are cheapest
  static constexpr int kQuarters = kLanes / kWidth;     // 1, 2 or 4

  // Where element i of a shuffle of a and b (its elements counted from kLanes on) comes from.
  template <int kRun, int kHalf>
  struct Interleave {  // within 16 bytes, runs of kRun elements: a0 b0 of the low (kHalf 0) or high halves
    static constexpr int at(int i) {
      return i / kWidth * kWidth + kHalf * (kWidth / 2) + i % kWidth / (2 * kRun) * kRun + i % kRun + i / kRun % 2 * kLanes;
    }
  };
  template <int kFirst, int kStep>
  struct Quarters {  // 16 bytes each: half of a's from kFirst on in steps of kStep, then b's
    static constexpr int at(int i) {
      constexpr int kHalf = kQuarters > 1 ? kQuarters / 2 : 1;
      const int q = i / kWidth;
      return (kFirst + q % kHalf * kStep) * kWidth + i % kWidth + q / kHalf * kLanes;
    }
  };
  template <class Pattern, int... I>
  static Vector shuffle_by(Vector a, Vector b, Indices<I...>) {
    return ANSN_SHUFFLE(Mask, a, b, Pattern::at(I)...);
  }
  template <class Pattern>
  static inline __attribute__((always_inline)) Vector shuffle(Vector a, Vector b) {
    return shuffle_by<Pattern>(a, b, FirstIndices<kLanes>());
  }

  // kLanes x kLanes: blocks of kWidth x kWidth within 16 bytes, then the 16-byte quarters as elements of a matrix.
  static inline __attribute__((always_inline)) void transpose(Vector (&v)[kLanes]) {
    Vector w[kLanes];
#pragma GCC unroll 16
    for (int i = 0; i < kLanes; i += kWidth) {
      if constexpr (kWidth == 2) {
        w[i] = shuffle<Interleave<1, 0>>(v[i], v[i + 1]);
        w[i + 1] = shuffle<Interleave<1, 1>>(v[i], v[i + 1]);
      } else {
        const Vector a = shuffle<Interleave<1, 0>>(v[i], v[i + 1]), b = shuffle<Interleave<1, 1>>(v[i], v[i + 1]);
        const Vector c = shuffle<Interleave<1, 0>>(v[i + 2], v[i + 3]), e = shuffle<Interleave<1, 1>>(v[i + 2], v[i + 3]);
        w[i] = shuffle<Interleave<2, 0>>(a, c);
        w[i + 1] = shuffle<Interleave<2, 1>>(a, c);
        w[i + 2] = shuffle<Interleave<2, 0>>(b, e);
        w[i + 3] = shuffle<Interleave<2, 1>>(b, e);
      }
    }
#pragma GCC unroll 4
    for (int j = 0; j < kWidth; ++j) {
      if constexpr (kQuarters == 1) {
        v[j] = w[j];
      } else if constexpr (kQuarters == 2) {
        v[j] = shuffle<Quarters<0, 1>>(w[j], w[kWidth + j]);
        v[kWidth + j] = shuffle<Quarters<1, 1>>(w[j], w[kWidth + j]);
      } else {
        const Vector a = shuffle<Quarters<0, 1>>(w[j], w[kWidth + j]), b = shuffle<Quarters<2, 1>>(w[j], w[kWidth + j]);
        const Vector c = shuffle<Quarters<0, 1>>(w[2 * kWidth + j], w[3 * kWidth + j]);
        const Vector e = shuffle<Quarters<2, 1>>(w[2 * kWidth + j], w[3 * kWidth + j]);
        v[j] = shuffle<Quarters<0, 2>>(a, c);
        v[kWidth + j] = shuffle<Quarters<1, 2>>(a, c);
        v[2 * kWidth + j] = shuffle<Quarters<0, 2>>(b, e);
        v[3 * kWidth + j] = shuffle<Quarters<1, 2>>(b, e);
      }
    }
  }

  static Vector root(Vector v) {
    T each[kLanes];
    __builtin_memcpy(each, &v, sizeof(v));
    for (int l = 0; l < kLanes; ++l) each[l] = sizeof(T) == 4 ? (T)__builtin_sqrtf(each[l]) : (T)__builtin_sqrt(each[l]);
    __builtin_memcpy(&v, each, sizeof(v));
    return v;
  }
};

constexpr int kPanel = 4;

inline int64_t panel_start(int64_t I) { return 8 * I * (I + 1); }  // in vectors
inline int64_t element_at(int64_t i, int64_t k) { return panel_start(i / kPanel) + kPanel * k + i % kPanel; }

// What a thread works in: the group's factors and the reciprocals of their pivots.
template <class T>
struct GroupMemory {
  using Vector = typename Group<T>::Vector;
  using Mask = typename Group<T>::Mask;
  int64_t d, panels;
  Vector *L, *reciprocal;
  Mask info;

  GroupMemory(int64_t dim, void* memory) : d(dim), panels((dim + kPanel - 1) / kPanel), info{} {
    L = (Vector*)memory;
    reciprocal = L + factor_vectors(panels);
  }
  // Whole chunks of kLanes columns are moved: those of the last rows end up to that far behind the last panel.
  static int64_t factor_vectors(int64_t panels) { return panel_start(panels) + kPanel * Group<T>::kLanes; }
  static int64_t bytes(int64_t d) {
    const int64_t panels = (d + kPanel - 1) / kPanel;
    return (factor_vectors(panels) + kPanel * panels) * (int64_t)sizeof(Vector);
  }
};

template <class T>
void load_group(GroupMemory<T>& g, const T* const* matrix) {
  using G = Group<T>;
  constexpr int N = G::kLanes;
  const int64_t d = g.d, size = d * d;
  if (size < N) {
    for (int64_t i = 0; i < d; ++i)
      for (int64_t k = 0; k <= i; ++k)
        for (int m = 0; m < N; ++m) ((T*)(g.L + element_at(i, k)))[m] = matrix[m][i * d + k];
  } else if (d < N) {  // a chunk of consecutive elements spans rows
    int64_t i = 0, k = 0;
    for (int64_t e = 0; e < size;) {
      const int64_t from = e + N <= size ? e : size - N;
      typename G::Vector v[N];
#pragma GCC unroll 16
      for (int m = 0; m < N; ++m) v[m] = *(const typename G::Unaligned*)(matrix[m] + from);
      G::transpose(v);
      for (; e < from + N; ++e) {
        if (k <= i) g.L[element_at(i, k)] = v[e - from];
        if (++k == d) k = 0, ++i;
      }
    }
  } else {
    for (int64_t i = 0; i < d; ++i) {
      typename G::Vector* to = g.L + element_at(i, 0);
      for (int64_t k = 0; k <= i; k += N) {
        const int64_t e = i * d + k, from = e + N <= size ? e : size - N;
        typename G::Vector v[N];
#pragma GCC unroll 16
        for (int m = 0; m < N; ++m) v[m] = *(const typename G::Unaligned*)(matrix[m] + from);
        G::transpose(v);
        if (from == e) {  // what falls behind the diagonal is overwritten by later rows, or never used
#pragma GCC unroll 16
          for (int j = 0; j < N; ++j) to[kPanel * (k + j)] = v[j];
        } else {
          for (int64_t j = e - from; j < N; ++j) to[kPanel * (k + from - e + j)] = v[j];
        }
      }
    }
  }
  for (int64_t i = d; i < kPanel * g.panels; ++i)
    for (int64_t k = 0; k <= i; ++k) g.L[element_at(i, k)] = typename G::Vector{} + (T)(k == i);
}

// The first `count` lanes, zero above the diagonal.
template <class T>
void store_group(const GroupMemory<T>& g, T* const* factor, int count) {
  using G = Group<T>;
  constexpr int N = G::kLanes;
  const int64_t d = g.d, size = d * d;
  if (size < N) {
    for (int m = 0; m < count; ++m)
      for (int64_t i = 0; i < d; ++i)
        for (int64_t k = 0; k < d; ++k) factor[m][i * d + k] = k <= i ? ((const T*)(g.L + element_at(i, k)))[m] : (T)0;
    return;
  }
  if (d < N) {
    int64_t i = 0, k = 0;
    for (int64_t e = 0; e < size;) {
      const int64_t from = e + N <= size ? e : size - N;
      if (from < e) i = from / d, k = from % d;
      typename G::Vector v[N];
      for (int j = 0; j < N; ++j) {
        v[j] = k <= i ? g.L[element_at(i, k)] : typename G::Vector{};
        if (++k == d) k = 0, ++i;
      }
      G::transpose(v);
      for (int m = 0; m < count; ++m) *(typename G::Unaligned*)(factor[m] + from) = v[m];
      e = from + N;
    }
    return;
  }
  typename G::Mask column;
  for (int j = 0; j < N; ++j) column[j] = j;
  for (int64_t i = 0; i < d; ++i) {
    const typename G::Vector* row = g.L + element_at(i, 0);
    for (int64_t k = 0; k < d; k += N) {
      // A chunk that ends in the next row puts zeros there, before that row is written.
      const int64_t e = i * d + k, from = e + N <= size ? e : size - N, first = k + from - e;
      if (first > i) {
        for (int m = 0; m < count; ++m) *(typename G::Unaligned*)(factor[m] + from) = typename G::Vector{};
        continue;
      }
      typename G::Vector v[N];
#pragma GCC unroll 16
      for (int j = 0; j < N; ++j) v[j] = row[kPanel * (first + j)];
      G::transpose(v);
      const typename G::Mask lower = column <= (typename G::Integer)(i - first);
#pragma GCC unroll 16
      for (int m = 0; m < N; ++m)
        if (m < count) *(typename G::Unaligned*)(factor[m] + from) = (typename G::Vector)((typename G::Mask)v[m] & lower);
    }
  }
}

// s[r][c] -= sum_{k < depth} left[k][r] right[k][c], columns first .. first + kColumns - 1.
template <class T>
inline __attribute__((always_inline)) void subtract_products(const typename Group<T>::Vector* left,
                                                             const typename Group<T>::Vector* right, int64_t depth,
                                                             int first, typename Group<T>::Vector (&s)[kPanel][kPanel]) {
  using Vector = typename Group<T>::Vector;
  constexpr int kColumns = Group<T>::kColumns;
  Vector sum[kPanel][kColumns];
#pragma GCC unroll 4
  for (int r = 0; r < kPanel; ++r) {
#pragma GCC unroll 4
    for (int c = 0; c < kColumns; ++c) sum[r][c] = s[r][first + c];
  }
  for (int64_t k = 0; k < depth; ++k, left += kPanel, right += kPanel) {
#pragma GCC unroll 4
    for (int c = 0; c < kColumns; ++c) {
#pragma GCC unroll 4
      for (int r = 0; r < kPanel; ++r) sum[r][c] -= left[r] * right[first + c];
    }
  }
#pragma GCC unroll 4
  for (int r = 0; r < kPanel; ++r) {
#pragma GCC unroll 4
    for (int c = 0; c < kColumns; ++c) s[r][first + c] = sum[r][c];
  }
}

// Block (I, J), J < I:  (A_IJ - sum_k L_Ik L_Jk^T) L_JJ^-T.
template <class T>
void off_diagonal(GroupMemory<T>& g, int64_t I, int64_t J) {
  using Vector = typename Group<T>::Vector;
  Vector* left = g.L + panel_start(I);
  const Vector* right = g.L + panel_start(J);
  const int64_t depth = kPanel * J;
  Vector* block = left + kPanel * depth;
  const Vector* corner = right + kPanel * depth;  // L_JJ
  const Vector* reciprocal = g.reciprocal + depth;
  Vector s[kPanel][kPanel];
#pragma GCC unroll 4
  for (int r = 0; r < kPanel; ++r) {
#pragma GCC unroll 4
    for (int c = 0; c < kPanel; ++c) s[r][c] = block[kPanel * c + r];
  }
#pragma GCC unroll 2
  for (int c = 0; c < kPanel; c += Group<T>::kColumns) subtract_products<T>(left, right, depth, c, s);
#pragma GCC unroll 4
  for (int c = 0; c < kPanel; ++c) {
#pragma GCC unroll 4
    for (int r = 0; r < kPanel; ++r) {
#pragma GCC unroll 4
      for (int e = 0; e < c; ++e) s[r][c] -= s[r][e] * corner[kPanel * e + c];
      s[r][c] *= reciprocal[c];
      block[kPanel * c + r] = s[r][c];
    }
  }
}

// Block (I, I): the factor of A_II - sum_k L_Ik L_Ik^T.
template <class T>
void diagonal(GroupMemory<T>& g, int64_t I) {
  using Vector = typename Group<T>::Vector;
  using Mask = typename Group<T>::Mask;
  const Vector* left = g.L + panel_start(I);
  const int64_t depth = kPanel * I;
  Vector* block = g.L + panel_start(I) + kPanel * depth;
  Vector s[kPanel][kPanel];
#pragma GCC unroll 4
  for (int r = 0; r < kPanel; ++r) {
#pragma GCC unroll 4
    for (int c = 0; c <= r; ++c) s[r][c] = block[kPanel * c + r];
  }
  for (; left != block; left += kPanel) {
#pragma GCC unroll 4
    for (int r = 0; r < kPanel; ++r) {
#pragma GCC unroll 4
      for (int c = 0; c <= r; ++c) s[r][c] -= left[r] * left[c];
    }
  }
#pragma GCC unroll 4
  for (int c = 0; c < kPanel; ++c) {
    const Mask bad = ~(Mask)(s[c][c] > 0);  // NaN too
    g.info |= bad & (g.info == 0) & (typename Group<T>::Integer)(depth + c + 1);
    s[c][c] = Group<T>::root((Vector)((Mask)s[c][c] | bad));
    const Vector reciprocal = (T)1 / s[c][c];
    g.reciprocal[depth + c] = reciprocal;
#pragma GCC unroll 4
    for (int r = c + 1; r < kPanel; ++r) s[r][c] *= reciprocal;
#pragma GCC unroll 4
    for (int r = c + 1; r < kPanel; ++r) {
#pragma GCC unroll 4
      for (int e = c + 1; e <= r; ++e) s[r][e] -= s[r][c] * s[e][c];
    }
#pragma GCC unroll 4
    for (int r = c; r < kPanel; ++r) block[kPanel * c + r] = s[r][c];
  }
}

template <class T>
void factor_group(GroupMemory<T>& g) {
  g.info = typename Group<T>::Mask{};
  for (int64_t I = 0; I < g.panels; ++I) {
    for (int64_t J = 0; J < I; ++J) off_diagonal<T>(g, I, J);
    diagonal<T>(g, I);
  }
}

// Lanes beyond the last matrix repeat it.
template <class T>
void factor_one_group(const cpu::Cholesky& p, int64_t index, GroupMemory<T>& g) {
  constexpr int N = Group<T>::kLanes;
  const int64_t first = index * N, left = p.count - first, size = p.d * p.d;
  const int used = left < N ? (int)left : N;
  const T* from[N];
  T* to[N];
  for (int m = 0; m < N; ++m) {
    from[m] = (const T*)p.matrix + (first + (m < used ? m : used - 1)) * size;
    to[m] = (T*)p.factor + (first + m) * size;
  }
  load_group<T>(g, from);
  factor_group<T>(g);
  for (int m = 0; m < used; ++m) p.info[first + m] = (int32_t)g.info[m];
  store_group<T>(g, to, used);
}

int64_t cholesky_scratch_bytes(bool is_f64, int64_t d) {
  return is_f64 ? GroupMemory<double>::bytes(d) : GroupMemory<float>::bytes(d);
}

// Groups in equal stretches, one for each thread with its own memory: the same matrices share a group whatever the threads.
template <class T>
void cholesky_in(const cpu::Cholesky& p) {
  const int64_t groups = (p.count + Group<T>::kLanes - 1) / Group<T>::kLanes, bytes = GroupMemory<T>::bytes(p.d);
  constexpr int64_t kSerialProducts = 1 << 19;  // tens of microseconds: below, a second thread costs more than it saves
  int64_t used = groups * p.d * p.d * (p.d / 6 + 4) * Group<T>::kLanes < kSerialProducts ? 1 : p.threads;
  used = used < groups ? used : groups;
#pragma omp parallel for schedule(static, 1) num_threads((int)used) if (used > 1)
  for (int64_t t = 0; t < used; ++t) {
    GroupMemory<T> g(p.d, (char*)p.scratch + t * bytes);
    for (int64_t index = groups * t / used; index < groups * (t + 1) / used; ++index) factor_one_group<T>(p, index, g);
  }
}

void cholesky(const cpu::Cholesky& p) {
  if (p.count <= 0 || p.d <= 0) return;
  if (p.is_f64) return cholesky_in<double>(p);
  cholesky_in<float>(p);
}

}  // namespace
}  // namespace ANSN_ISA
}  // namespace ansn
