// As kernels_avx2.cpp: the pragma chooses the instruction set, and only anonymous namespaces may emit code.
#if defined(__x86_64__) && !defined(__clang__)
#pragma GCC target("avx512f,avx512vl,avx512dq,avx512bw,avx2,fma,f16c")
#include <immintrin.h>

#define FOCUS_LAB_VECTOR_BYTES 64
#define FOCUS_LAB_VECTOR_REGISTERS 32
#include "kernels.inl"

namespace focus_lab {
extern const CpuKernels kAvx512Kernels = {"avx512", forward, backward, finish};
}  // namespace focus_lab
#else
#include "kernels.h"

namespace focus_lab {
extern const CpuKernels kAvx512Kernels = {"avx512", nullptr, nullptr, nullptr};  // never chosen
}  // namespace focus_lab
#endif
