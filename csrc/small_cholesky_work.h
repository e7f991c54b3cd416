// What the small Cholesky kernel takes: plain, so that bindings and device code share it.
#pragma once

#include <stdint.h>

namespace ansn {
namespace small_cholesky {

constexpr int kMaximum = 128;  // largest d

// What one launch does, T float or double. Addresses of contiguous arrays.
template <class T>
struct Work {
  const T* matrix;  // [matrices, d, d], the lower triangle is read
  int64_t matrices;
  int d;
  T* factor;        // [matrices, d, d], zero above the diagonal
  int32_t* info;    // [matrices]: 0, or the order of the first leading minor that is not positive
};

}  // namespace small_cholesky
}  // namespace ansn
