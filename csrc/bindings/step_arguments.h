// The arguments that the elementwise and the dense coloured step have in common.
#pragma once

#include "common.h"

namespace ansn {
namespace bindings {

// x may be 0 only where the caller allows it; sizes are checked by then. c, a and b must live as long as what is returned.
inline cpu::ColoredStep step_of(Storage dtype, uintptr_t out, uintptr_t x, uintptr_t D, uintptr_t f, int64_t rows,
                                int64_t cols, const Coefficient& c, const Coefficient& a, const Coefficient& b,
                                int64_t c_stride, int64_t a_stride, int64_t b_stride, const py::int_& seed,
                                const py::int_& row0, const py::int_& step, const py::int_& stream, int threads) {
  require(out != 0, "out must be an address, got 0");
  cpu::ColoredStep p;
  p.storage = dtype;
  p.out = at<void>(out);
  p.x = at<const void>(x);
  p.D = at<const void>(D);
  p.f = at<const void>(f);
  p.rows = rows;
  p.cols = cols;
  p.c = c.values();
  p.a = a.values();
  p.b = b.values();
  p.c_stride = checked_stride(c_stride, "c_stride");
  p.a_stride = checked_stride(a_stride, "a_stride");
  p.b_stride = checked_stride(b_stride, "b_stride");
  p.diag = nullptr;
  p.region = nullptr;
  p.seed = wrapped(seed);
  p.row0 = static_cast<uint32_t>(wrapped(row0));
  p.step = static_cast<uint32_t>(wrapped(step));
  p.stream = static_cast<uint32_t>(wrapped(stream));
  p.threads = threads;
  return p;
}

}  // namespace bindings
}  // namespace ansn
