// The Python face of the native kernels: the module ansn._native.
#include "bindings.h"
#include "common.h"
#if defined(ANSN_CUDA)
#include "cuda/cholesky.h"
#endif

namespace ansn {
namespace bindings {
namespace {

py::dict build_info() {
  py::dict info;
  info["compiler"] = ANSN_COMPILER;
  info["isas"] = cpu::built_isas();
#if defined(ANSN_OPENMP)
  info["openmp"] = true;
#else
  info["openmp"] = false;
#endif
#if defined(ANSN_CUDA)
  info["cuda"] = true;
  info["cuda_version"] = std::to_string(ansn::cuda::runtime_version() / 1000) + "." +
                         std::to_string(ansn::cuda::runtime_version() % 1000 / 10);
  info["cuda_architectures"] = py::cast(std::string(ANSN_CUDA)).attr("split")();
#else
  info["cuda"] = false;
#endif
  return info;
}

}  // namespace
}  // namespace bindings
}  // namespace ansn

PYBIND11_MODULE(_native, m) {
  using namespace ansn::bindings;
  m.doc() = "Native kernels of ansn. Addresses are integers (0: absent); use ansn.ops for checked tensors.";
  bind_cholesky(m);
  bind_colored_step(m);
  bind_dense_step(m);
  bind_covariance_update(m);
  bind_dsm_loss(m);
  bind_random(m);
  bind_separable(m);
  bind_small_cholesky(m);
  m.def("supported_isas", &ansn::cpu::supported_isas, "Built instruction sets that this CPU runs, narrowest first.");
  m.def("cpu_isa", [] { return std::string(ansn::cpu::kernels().isa); },
        "The instruction set in use; raises ValueError when ANSN_CPU_ISA names one that cannot be.");
  m.def("build_info", &build_info, "What was built: compiler, instruction sets, OpenMP, CUDA.");
}
