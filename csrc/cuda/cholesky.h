// What the CUDA file offers to the bindings. It links cudart statically and asks for nothing until it is called: where
// there is no driver the module imports, and problem() says what is missing.
#pragma once

#include "../small_cholesky_work.h"

namespace ansn {
namespace cuda {

// Why nothing can run on this device (its driver, its architecture), or null.
const char* problem(int device);

// Queues the work on a stream of the device and returns; the text of the error, or null.
const char* cholesky(const small_cholesky::Work<float>& work, int device, uintptr_t stream);
const char* cholesky(const small_cholesky::Work<double>& work, int device, uintptr_t stream);

int runtime_version();  // 13000: the CUDA 13.0 that this was built with

}  // namespace cuda
}  // namespace ansn
