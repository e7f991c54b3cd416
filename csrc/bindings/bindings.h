// One function for each group of bindings; module.cpp calls them all.
#pragma once

#include <pybind11/pybind11.h>

namespace ansn {
namespace bindings {

void bind_cholesky(pybind11::module_& m);
void bind_colored_step(pybind11::module_& m);
void bind_dense_step(pybind11::module_& m);
void bind_covariance_update(pybind11::module_& m);
void bind_dsm_loss(pybind11::module_& m);
void bind_random(pybind11::module_& m);
void bind_separable(pybind11::module_& m);
void bind_small_cholesky(pybind11::module_& m);

}  // namespace bindings
}  // namespace ansn
