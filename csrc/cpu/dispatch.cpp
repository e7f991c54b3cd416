#include "dispatch.h"

#include <cstdlib>
#include <stdexcept>

namespace ansn {

#define ANSN_DECLARE(isa)                      \
  namespace isa {                              \
  extern const cpu::KernelTable kernel_table;  \
  }
#if defined(ANSN_X86)
ANSN_DECLARE(v2)
ANSN_DECLARE(v3)
ANSN_DECLARE(v4)
#else
ANSN_DECLARE(generic)
#endif
#undef ANSN_DECLARE

namespace cpu {
namespace {

struct Candidate {
  const KernelTable* table;
  bool supported;
};

// Feature by feature: the names "x86-64-v3" came to __builtin_cpu_supports only with GCC 12 and Clang 17.
std::vector<Candidate> candidates() {
#if defined(ANSN_X86)
  __builtin_cpu_init();
  const bool v2 = __builtin_cpu_supports("sse4.2") && __builtin_cpu_supports("ssse3") && __builtin_cpu_supports("popcnt");
  const bool v3 = v2 && __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
                  __builtin_cpu_supports("bmi") && __builtin_cpu_supports("bmi2");
  const bool v4 = v3 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                  __builtin_cpu_supports("avx512cd") && __builtin_cpu_supports("avx512dq") &&
                  __builtin_cpu_supports("avx512vl");
  return {{&v2::kernel_table, v2}, {&v3::kernel_table, v3}, {&v4::kernel_table, v4}};
#else
  return {{&generic::kernel_table, true}};
#endif
}

std::string joined(const std::vector<std::string>& names) {
  std::string text;
  for (const std::string& name : names) text += (text.empty() ? "" : ", ") + name;
  return text.empty() ? "none" : text;
}

}  // namespace

std::vector<std::string> supported_isas() {
  std::vector<std::string> names;
  for (const Candidate& c : candidates())
    if (c.supported) names.emplace_back(c.table->isa);
  return names;
}

std::vector<std::string> built_isas() {
  std::vector<std::string> names;
  for (const Candidate& c : candidates()) names.emplace_back(c.table->isa);
  return names;
}

const KernelTable& kernels(const std::string& isa) {
  static const std::vector<Candidate> all = candidates();
  std::string wanted = isa, source = "isa";
  if (wanted.empty()) {
    const char* variable = std::getenv("ANSN_CPU_ISA");
    wanted = variable ? variable : "";
    source = "ANSN_CPU_ISA";
  }
  const KernelTable* best = nullptr;
  for (const Candidate& c : all) {
    if (!c.supported) continue;
    if (wanted == c.table->isa) return *c.table;
    best = c.table;
  }
  if (!wanted.empty())
    throw std::invalid_argument(source + "='" + wanted + "' cannot be used: this CPU supports " + joined(supported_isas()) +
                                " (built: " + joined(built_isas()) + ")");
  if (!best) throw std::invalid_argument("this CPU supports none of the built instruction sets (" + joined(built_isas()) + ")");
  return *best;
}

}  // namespace cpu
}  // namespace ansn
