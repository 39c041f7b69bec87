// Any x86-64 processor, and any other: vectors of 16 bytes.
#define FOCUS_LAB_VECTOR_BYTES 16
#define FOCUS_LAB_VECTOR_REGISTERS 16
#include "kernels.inl"

namespace focus_lab {
extern const CpuKernels kPortableKernels = {"default", forward, backward, finish};
}  // namespace focus_lab
