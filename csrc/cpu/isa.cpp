// All CPU kernels for one instruction set. CMake compiles this file once for each, with ANSN_ISA (the namespace and name)
// and ANSN_VECTOR_BYTES defined. Everything but the table has internal linkage, and no C++ library header is included: a
// template or inline function of the library compiled here with AVX-512 could otherwise be linked into portable code.
#include "kernels.h"

#include "cholesky.h"
#include "colored_step.h"
#include "covariance_update.h"
#include "dense_step.h"
#include "dsm_loss.h"
#include "mixture.h"
#include "noise.h"
#include "separable.h"
#include "separable_update.h"

#define ANSN_STRING_(x) #x
#define ANSN_STRING(x) ANSN_STRING_(x)

namespace ansn {
namespace ANSN_ISA {

extern const cpu::KernelTable kernel_table;
const cpu::KernelTable kernel_table = {
    ANSN_STRING(ANSN_ISA), colored_step,  dense_scratch_bytes, dense_step,   covariance_scratch_bytes,
    covariance_update,     row_not_finite, philox_words,       normals,      normals_of_words,
    cholesky_scratch_bytes, cholesky,     dsm_loss,           separable_apply_scratch_bytes,
    separable_apply,       separable_step_scratch_bytes,      separable_step, separable_update_scratch_bytes,
    separable_update,      mixture_scratch_bytes,             mixture};

}  // namespace ANSN_ISA
}  // namespace ansn
