// The CPU kernels of one instruction set, as a table of functions: the same source compiled three times.
#pragma once

#include <cstdint>

#include "../deformable_attention.h"

namespace focus_lab {

struct CpuKernels {
  const char* level;  // "default", "avx2" or "avx512": the words of ATEN_CPU_CAPABILITY

  // Carries out items [begin, end) of batch * heads * queries, query fastest: one head of one image looks at a small
  // part of the value, so neighbours in this order find it in the cache. Items are independent of each other.
  // All functions return false when there is no memory for their scratch.
  bool (*forward)(const Problem& problem, const void* value, const void* locations, const void* weights, void* output,
                  int64_t begin, int64_t end);

  // Carries out tasks [begin, end) of batch * heads * parts, part fastest. A task owns the gradient of the value of one
  // head of one image, of a run of levels: it zero-fills it and adds to it in the order of queries, samples and
  // corners. So nothing is atomic, and neither `parts` nor the split into ranges changes a single bit.
  bool (*backward)(const Problem& problem, const void* grad_output, const void* value, const void* locations,
                   const void* weights, void* grad_value, void* grad_locations, void* grad_weights, int32_t parts,
                   int64_t begin, int64_t end);
};

extern const CpuKernels kPortableKernels;
extern const CpuKernels kAvx2Kernels;
extern const CpuKernels kAvx512Kernels;

// The best table that this processor can run; ATEN_CPU_CAPABILITY, torch's own variable, may ask for a lesser one.
// Chosen once.
const CpuKernels& cpu_kernels();

}  // namespace focus_lab
