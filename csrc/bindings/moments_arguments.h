// The arguments that the updates of running moments have in common.
#pragma once

#include "common.h"

namespace ansn {
namespace bindings {

// Checks them and fills p, which may be used as long as this lives.
class MomentsOf {
 public:
  MomentsOf(cpu::CovarianceUpdate& p, const std::string& dtype, uintptr_t weight, uintptr_t weight2, uintptr_t mean,
            uintptr_t scatter, uintptr_t x, const std::string& x_dtype, int64_t rows, int64_t cols, int64_t ld_x,
            uintptr_t region, int64_t regions, double decay, bool diagonal, int threads) {
    check_sizes(rows, cols, threads);
    require(dtype == "f32" || dtype == "f64", "dtype of the state must be 'f32' or 'f64', got '" + dtype + "'");
    require(regions >= 1, "regions must be at least 1, got " + std::to_string(regions));
    require(decay > 0 && decay <= 1, "decay must be in (0, 1], got " + std::to_string(decay));
    require(weight != 0, "weight must be an address, got 0");
    require(weight2 != 0, "weight2 must be an address, got 0");
    require(mean != 0 || cols == 0, "mean must be an address, got 0");
    require(scatter != 0 || cols == 0, "scatter must be an address, got 0");
    require(x != 0 || rows == 0 || cols == 0, "x must be an address, got 0");
    p.x_storage = storage_of(x_dtype, "x_dtype");
    p.state_is_f64 = dtype == "f64";
    p.weight = at<double>(weight);
    p.weight2 = at<double>(weight2);
    for (int64_t k = 0; k < regions; ++k) {
      if (std::isfinite(p.weight[k]) && p.weight[k] >= 0) continue;
      throw std::invalid_argument("weight: region " + std::to_string(k) + " has " + std::to_string(p.weight[k]) +
                                  ", expected a finite number of at least 0");
    }
    require(region != 0 || regions == 1 || rows == 0,
            "region must be an address when there are " + std::to_string(regions) + " regions, got 0");
    grouped_ = RowsByRegion(at<const int64_t>(region), rows, regions);
    p.mean = at<void>(mean);
    p.scatter = at<void>(scatter);
    p.x = at<const void>(x);
    p.rows = rows;
    p.cols = cols;
    p.ld_x = ld_x;
    p.regions = regions;
    p.starts = grouped_.starts.data();
    p.order = grouped_.order_or_null();
    p.decay = decay;
    p.diagonal = diagonal;
    p.threads = threads;
  }

 private:
  RowsByRegion grouped_{nullptr, 0, 1};
};

}  // namespace bindings
}  // namespace ansn
