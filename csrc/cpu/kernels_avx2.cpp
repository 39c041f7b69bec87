// The pragma, not a compiler flag, chooses the instruction set, so that all files are compiled alike. It stands before
// every include: nothing outside an anonymous namespace may be emitted here, or the linker could give code of this unit
// to a processor that cannot run it. Clang does not know the pragma.
#if defined(__x86_64__) && !defined(__clang__)
#pragma GCC target("avx2,fma,f16c")
#include <immintrin.h>

#define FOCUS_LAB_VECTOR_BYTES 32
#define FOCUS_LAB_VECTOR_REGISTERS 16
#include "kernels.inl"

namespace focus_lab {
extern const CpuKernels kAvx2Kernels = {"avx2", forward, backward, finish};
}  // namespace focus_lab
#else
#include "kernels.h"

namespace focus_lab {
extern const CpuKernels kAvx2Kernels = {"avx2", nullptr, nullptr, nullptr};  // never chosen
}  // namespace focus_lab
#endif
