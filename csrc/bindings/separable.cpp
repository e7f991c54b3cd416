// The operations in a separable basis: apply, step, update, and the mixture over K of them.
#include <tuple>

#include "bindings.h"
#include "moments_arguments.h"
#include "step_arguments.h"

namespace ansn {
namespace bindings {
namespace {

// (size, address of the basis or 0, elements from one region's basis to the next), for each axis of the data.
using AxisList = std::vector<std::tuple<int64_t, uintptr_t, int64_t>>;

// Axes, and the regions of rows that are in use.
class AxesOf {
 public:
  cpu::Axes axes;

  AxesOf(const AxisList& list, const std::string& basis_dtype, int64_t cols, const int64_t* region, int64_t rows,
         int64_t regions, bool all) {
    require(regions >= 1, "regions must be at least 1, got " + std::to_string(regions));
    require(!list.empty() && list.size() <= cpu::kMostAxes,
            "axes must be 1 to " + std::to_string(cpu::kMostAxes) + ", got " + std::to_string(list.size()));
    require(basis_dtype == "f32" || basis_dtype == "f64", "basis_dtype must be 'f32' or 'f64', got '" + basis_dtype + "'");
    axes.count = static_cast<int>(list.size());
    axes.basis_is_f64 = basis_dtype == "f64";
    int64_t product = 1;
    for (int a = 0; a < axes.count; ++a) {
      const auto& [size, basis, stride] = list[a];
      require(size >= 1 && (basis == 0 || size <= cpu::kLongestAxis),
              "an axis must be of 1 to " + std::to_string(cpu::kLongestAxis) + " points, got " + std::to_string(size));
      axes.size[a] = size;
      axes.basis[a] = at<const void>(basis);
      axes.stride[a] = stride;
      product *= size;
    }
    require(product == cols, "sizes of the axes must multiply to " + std::to_string(cols) + ", got " + std::to_string(product));
    axes.region = regions == 1 ? nullptr : region;
    require(regions == 1 || region != nullptr || all || rows == 0, "region must be an address for " + std::to_string(regions) +
                                                          " regions, got 0");
    if (regions == 1) {
      listed_ = {0};
    } else {
      slot_.assign(regions, all ? 0 : -1);
      for (int64_t r = 0; !all && r < rows; ++r) {
        require(region[r] >= 0 && region[r] < regions, "region: got value " + std::to_string(region[r]) + ", expected 0.." +
                                                           std::to_string(regions - 1));
        slot_[region[r]] = 0;
      }
      for (int64_t k = 0; k < regions; ++k) {
        if (slot_[k] < 0) continue;
        slot_[k] = static_cast<int64_t>(listed_.size());
        listed_.push_back(k);
      }
    }
    axes.used = static_cast<int64_t>(listed_.size());
    axes.listed = listed_.data();
    axes.slot = slot_.empty() ? nullptr : slot_.data();
  }

 private:
  std::vector<int64_t> listed_, slot_;
};

// The kernel at work on p, in the scratch memory that it asks for.
template <class P>
void run(P& p, int64_t (*scratch_bytes)(const P&), void (*kernel)(const P&)) {
  static thread_local Scratch scratch;
  p.scratch = nullptr;
  p.scratch = scratch.reserve(scratch_bytes(p));
  {
    py::gil_scoped_release unlocked;
    kernel(p);
  }
  scratch.trim();
}

void separable_apply(const std::string& dtype, uintptr_t out, uintptr_t v, int64_t rows, int64_t cols, const AxisList& list,
                     const std::string& basis_dtype, uintptr_t region, int64_t regions, uintptr_t center,
                     int64_t center_stride, uintptr_t weights, int64_t weight_stride, const py::object& tau2, int64_t tau2_stride,
                     bool inward, bool outward, bool rest, int threads, const std::string& isa) {
  check_sizes(rows, cols, threads);
  cpu::SeparableApply p;
  p.storage = storage_of(dtype, "dtype");
  if (rows == 0 || cols == 0) return;
  require(out != 0 && v != 0 && out != v, "out and v must be two addresses");
  require(tau2.is_none() || weights != 0, "weights must be an address where there is a tau2, got 0");
  const AxesOf known(list, basis_dtype, cols, at<const int64_t>(region), rows, regions, false);
  p.axes = known.axes;
  p.out = at<void>(out);
  p.v = at<const void>(v);
  p.rows = rows;
  p.cols = cols;
  p.center = at<const void>(center);
  p.weights = at<const void>(weights);
  const bool number = PyFloat_Check(tau2.ptr());
  const double wide = number ? PyFloat_AS_DOUBLE(tau2.ptr()) : 0;
  const float single = static_cast<float>(wide);
  const void* of_number = p.storage == Storage::f64 ? static_cast<const void*>(&wide) : &single;
  p.tau2 = tau2.is_none() ? nullptr : number ? of_number : at<const void>(tau2.cast<uintptr_t>());
  p.center_stride = center_stride;
  p.weight_stride = weight_stride;
  p.tau2_stride = checked_stride(tau2_stride, "tau2_stride");
  p.inward = inward;
  p.outward = outward;
  p.rest = rest;
  p.threads = threads;
  const cpu::KernelTable& table = cpu::kernels(isa);
  run(p, table.separable_apply_scratch_bytes, table.separable_apply);
}

void separable_step(const std::string& dtype, uintptr_t out, uintptr_t x, uintptr_t D, uintptr_t f, int64_t rows,
                    int64_t cols, const Coefficient& c, const Coefficient& a, const Coefficient& b, int64_t c_stride,
                    int64_t a_stride, int64_t b_stride, uintptr_t deviation, int64_t deviation_stride, const AxisList& list,
                    const std::string& basis_dtype, uintptr_t region, int64_t regions, py::int_ seed, py::int_ row0,
                    py::int_ step, py::int_ stream, int threads, const std::string& isa) {
  check_sizes(rows, cols, threads);
  const Storage storage = single_or_half(dtype);
  if (rows == 0 || cols == 0) return;
  require(x != 0, "x must be an address, got 0");
  require(deviation != 0, "deviation must be an address, got 0");
  require((f != 0 && a.values()) || b.values(), "f with a, or b, must be given: without them there is no product");
  const AxesOf known(list, basis_dtype, cols, at<const int64_t>(region), rows, regions, false);
  cpu::SeparableStep p;
  p.axes = known.axes;
  p.step = step_of(storage, out, x, D, f, rows, cols, c, a, b, c_stride, a_stride, b_stride, seed, row0, step, stream,
                   threads);
  p.step.diag = at<const float>(deviation);
  p.deviation_stride = deviation_stride;
  const cpu::KernelTable& table = cpu::kernels(isa);
  run(p, table.separable_step_scratch_bytes, table.separable_step);
}

int64_t separable_update(const std::string& dtype, uintptr_t weight, uintptr_t weight2, uintptr_t mean, uintptr_t scatter,
                         const std::vector<uintptr_t>& axis_scatters, uintptr_t x, const std::string& x_dtype, int64_t rows,
                         int64_t cols, int64_t ld_x, const AxisList& list, const std::string& basis_dtype,
                         uintptr_t region, int64_t regions, double decay, int threads, const std::string& isa) {
  static thread_local Scratch scratch;
  cpu::SeparableUpdate p;
  const MomentsOf moments(p.rows, dtype, weight, weight2, mean, scatter, x, x_dtype, rows, cols, ld_x, region, regions, decay,
                          true, threads);
  const AxesOf known(list, basis_dtype, cols, at<const int64_t>(region), rows, regions, false);
  p.axes = known.axes;
  require(axis_scatters.size() == list.size(), "axis_scatters must be one address an axis");
  for (size_t a = 0; a < list.size(); ++a) p.scatter[a] = at<void>(axis_scatters[a]);
  const cpu::KernelTable& table = cpu::kernels(isa);
  p.rows.scratch = nullptr;
  p.rows.scratch = scratch.reserve(table.separable_update_scratch_bytes(p));
  int64_t bad;
  {
    py::gil_scoped_release unlocked;
    bad = table.row_not_finite(p.rows);
    if (bad < 0) table.separable_update(p);
  }
  scratch.trim();
  return bad;
}

void mixture(const std::string& dtype, uintptr_t out, uintptr_t logs, uintptr_t x, int64_t rows, int64_t cols,
             uintptr_t center, uintptr_t variances, uintptr_t log_weights, int64_t regions, uintptr_t sigma2,
             int64_t sigma2_stride, const AxisList& list, const std::string& basis_dtype, int threads,
             const std::string& isa) {
  check_sizes(rows, cols, threads);
  cpu::Mixture p;
  p.storage = single_or_half(dtype);
  if (rows == 0 || cols == 0) return;
  require(logs != 0 && x != 0 && center != 0 && variances != 0 && log_weights != 0 && sigma2 != 0,
          "logs, x, center, variances, log_weights and sigma2 must be addresses, got 0");
  const AxesOf known(list, basis_dtype, cols, nullptr, rows, regions, true);
  p.axes = known.axes;
  p.out = at<void>(out);
  p.x = at<const void>(x);
  p.rows = rows;
  p.cols = cols;
  p.regions = regions;
  p.center = at<const float>(center);
  p.variances = at<const float>(variances);
  p.log_weights = at<const double>(log_weights);
  p.sigma2 = at<const float>(sigma2);
  p.sigma2_stride = checked_stride(sigma2_stride, "sigma2_stride");
  p.logs = at<double>(logs);
  p.threads = threads;
  const cpu::KernelTable& table = cpu::kernels(isa);
  run(p, table.mixture_scratch_bytes, table.mixture);
}

}  // namespace

void bind_separable(py::module_& m) {
  m.attr("longest_axis") = cpu::kLongestAxis;
  m.attr("most_axes") = cpu::kMostAxes;
  m.def("separable_apply", &separable_apply, py::arg("dtype"), py::arg("out"), py::arg("v"), py::arg("rows"),
        py::arg("cols"), py::arg("axes"), py::arg("basis_dtype"), py::arg("region"), py::arg("regions"), py::arg("center"),
        py::arg("center_stride"), py::arg("weights"), py::arg("weight_stride"), py::arg("tau2"), py::arg("tau2_stride"),
        py::arg("inward"), py::arg("outward"), py::arg("rest"), py::arg("threads"), py::arg("isa") = "",
        R"(out = y, or v - y where `rest`; y = [Q] (w * [Q^T] (v - center)), Q the product of the axes' bases of a row's region.

dtype: of out and v [rows, cols], contiguous, two memories; arithmetic is float64 for 'f64', else float32, and center,
weights [regions or 1, cols] and tau2 are of its type. axes: (size, address of [regions or 1, size, size] or 0 for the
identity, elements to the next region's), an axis each. weights: address or 0; with tau2, w = 1 / (weights / tau2 + 1).
*_stride: elements to the next region's, 0 for one for all. tau2: None, a float, or an address of one (tau2_stride 0) or of
one a row (1). region: address of int64 [rows], or 0 when regions = 1. Raises ValueError.)");
  m.def("separable_step", &separable_step, py::arg("dtype"), py::arg("out"), py::arg("x"), py::arg("D"), py::arg("f"),
        py::arg("rows"), py::arg("cols"), py::arg("c"), py::arg("a"), py::arg("b"), py::arg("c_stride"),
        py::arg("a_stride"), py::arg("b_stride"), py::arg("deviation"), py::arg("deviation_stride"), py::arg("axes"),
        py::arg("basis_dtype"), py::arg("region"), py::arg("regions"), py::arg("seed"), py::arg("row0"), py::arg("step"),
        py::arg("stream"), py::arg("threads"), py::arg("isa") = "",
        R"(out = x + c_r (D - x) + Q (deviation * (a_r f + b_r z)); out may be x.

As colored_step and separable_apply; deviation: float32 [regions or 1, cols]. Raises ValueError.)");
  m.def("separable_update", &separable_update, py::arg("dtype"), py::arg("weight"), py::arg("weight2"), py::arg("mean"),
        py::arg("scatter"), py::arg("axis_scatters"), py::arg("x"), py::arg("x_dtype"), py::arg("rows"), py::arg("cols"),
        py::arg("ld_x"), py::arg("axes"), py::arg("basis_dtype"), py::arg("region"), py::arg("regions"), py::arg("decay"),
        py::arg("threads"), py::arg("isa") = "",
        R"(Merges the rows of x into moments in a separable basis, in place: covariance_update of the coordinates, diagonal.

axis_scatters: for each axis the address of [regions, size, size] in dtype, which gains size / cols times the second
moments along the axis, or 0. Returns -1, or the first row that is not finite; nothing is then changed. Raises ValueError.)");
  m.def("mixture", &mixture, py::arg("dtype"), py::arg("out"), py::arg("logs"), py::arg("x"), py::arg("rows"),
        py::arg("cols"), py::arg("center"), py::arg("variances"), py::arg("log_weights"), py::arg("regions"),
        py::arg("sigma2"), py::arg("sigma2_stride"), py::arg("axes"), py::arg("basis_dtype"), py::arg("threads"),
        py::arg("isa") = "",
        R"(logs[k, r] = log_weights[k] - (sum c^2 / (variances + sigma2) + sum ln (variances + sigma2)) / 2, c = Q_k^T (x - center_k);
out = x - sum_k p_k Q_k (sigma2 / (variances + sigma2) c), p the softmax of logs; out = 0 (the address) leaves it out.

dtype: 'f32', 'bf16' or 'f16' of out and x; center and variances float32 [regions, cols]; log_weights and logs float64;
sigma2: float32, sigma2_stride 0 or 1 (one a row). axes: as of separable_apply. Raises ValueError.)");
}

}  // namespace bindings
}  // namespace ansn
