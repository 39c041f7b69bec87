#include <cstdlib>
#include <cstring>

#include "kernels.h"

namespace focus_lab {
namespace {

const CpuKernels& choose() {
#if defined(__x86_64__) && !defined(__clang__)
  __builtin_cpu_init();
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");  // F16C came before
  const bool avx512 = avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512vl") &&
                      __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512bw");
  const char* wanted = std::getenv("ATEN_CPU_CAPABILITY");
  const bool at_most_default = wanted != nullptr && std::strcmp(wanted, "default") == 0;
  const bool at_most_avx2 = wanted != nullptr && std::strcmp(wanted, "avx2") == 0;
  if (avx512 && !at_most_default && !at_most_avx2) return kAvx512Kernels;
  if (avx2 && !at_most_default) return kAvx2Kernels;
#endif
  return kPortableKernels;
}

}  // namespace

const CpuKernels& cpu_kernels() {
  static const CpuKernels& chosen = choose();
  return chosen;
}

}  // namespace focus_lab
