// The denoising score matching loss.
#include "bindings.h"
#include "common.h"

namespace ansn {
namespace bindings {
namespace {

void dsm_loss(const std::string& dtype, uintptr_t prediction, uintptr_t target, uintptr_t gradient, uintptr_t loss,
              int64_t rows, int64_t cols, const Coefficient& weight, int64_t weight_stride, py::int_ seed,
              py::int_ row0, py::int_ step, py::int_ stream, int threads, const std::string& isa) {
  check_sizes(rows, cols, threads);
  cpu::DsmLoss p;
  p.storage = single_or_half(dtype);
  if (rows == 0 || cols == 0) return;
  require(prediction != 0, "prediction must be an address, got 0");
  require(gradient != 0, "gradient must be an address, got 0");
  require(loss != 0, "loss must be an address, got 0");
  require(weight.values(), "weight must be an address, got 0");
  p.prediction = at<const void>(prediction);
  p.target = at<const void>(target);
  p.gradient = at<void>(gradient);
  p.loss = at<float>(loss);
  p.rows = rows;
  p.cols = cols;
  p.weight = weight.values();
  p.weight_stride = checked_stride(weight_stride, "weight_stride");
  p.seed = wrapped(seed);
  p.row0 = static_cast<uint32_t>(wrapped(row0));
  p.step = static_cast<uint32_t>(wrapped(step));
  p.stream = static_cast<uint32_t>(wrapped(stream));
  p.threads = threads;
  const cpu::KernelTable& table = cpu::kernels(isa);
  py::gil_scoped_release unlocked;
  table.dsm_loss(p);
}

}  // namespace

void bind_dsm_loss(py::module_& m) {
  m.def("dsm_loss", &dsm_loss, py::arg("dtype"), py::arg("prediction"), py::arg("target"), py::arg("gradient"),
        py::arg("loss"), py::arg("rows"), py::arg("cols"), py::arg("weight"), py::arg("weight_stride"), py::arg("seed"),
        py::arg("row0"), py::arg("step"), py::arg("stream"), py::arg("threads"), py::arg("isa") = "",
        R"(loss_r = w_r / cols sum_j (p - t)^2, float32, and gradient 2 w_r / cols (p - t), in one pass.

dtype: 'f32', 'bf16' or 'f16' of prediction, target and gradient [rows, cols], contiguous. target = 0 (the address): t = -z
of the counters. weight: float32 or a number, weight_stride 0 for one or 1 for one a row. Raises ValueError.)");
}

}  // namespace bindings
}  // namespace ansn
