// Chooses the instruction set whose kernels run: the best that this CPU supports, or the one named.
#pragma once

#include <string>
#include <vector>

#include "kernels.h"

namespace ansn {
namespace cpu {

// Names of the built instruction sets that this CPU can run, narrowest first.
std::vector<std::string> supported_isas();

// Names of all that were built, narrowest first.
std::vector<std::string> built_isas();

// The kernels of `isa`; when it is empty those of the environment variable ANSN_CPU_ISA, and when that is unset or empty
// too the widest supported. Throws std::invalid_argument, naming what the CPU supports, for any other name.
const KernelTable& kernels(const std::string& isa = "");

}  // namespace cpu
}  // namespace ansn
