// The CPU kernels of one instruction set, as a table of functions: the same source compiled three times.
#pragma once

#include <cstdint>

#include "../deformable_attention.h"

namespace focus_lab {

// What is read. Either locations and weights are given, or they are made (Problem::reference_size): then `locations`
// are the offsets and `weights` the logits.
struct Inputs {
  const void* value;
  const void* reference_points;  // nullptr if given
  const void* locations;
  const void* weights;
};

// What backward writes: of offsets and logits where locations and weights are made.
struct Gradients {
  void* value;
  void* locations;
  void* weights;
};

struct CpuKernels {
  const char* level;  // "default", "avx2" or "avx512": the words of ATEN_CPU_CAPABILITY

  // Carries out items [begin, end) of batch * heads * queries, query fastest: one head of one image looks at a small
  // part of the value, so neighbours in this order find it in the cache. Items are independent of each other.
  // All functions return false when there is no memory for their scratch.
  bool (*forward)(const Problem& problem, const Inputs& inputs, void* output, int64_t begin, int64_t end);

  // Carries out tasks [begin, end) of batch * heads * parts, part fastest. A task owns the gradient of the value of one
  // head of one image, of a run of levels: it zero-fills it and adds to it in the order of queries, samples and
  // corners. So nothing is atomic, and neither `parts` nor the split into ranges changes a single bit.
  //
  // Gradients of offsets and logits need all levels of a query: with several parts, or where reference points have a
  // gradient, `unfinished` asks for those of the locations and weights that were made instead, in the type of
  // locations, and finish() does the rest.
  bool (*backward)(const Problem& problem, const void* grad_output, const Inputs& inputs, const Gradients& gradients,
                   bool unfinished, int32_t parts, int64_t begin, int64_t end);

  // Gradients of offsets, logits and (unless nullptr) reference points from those of locations and weights. Carries out
  // items [begin, end) of the queries, or of batch * queries if each image has reference points of its own.
  bool (*finish)(const Problem& problem, const Inputs& inputs, const void* of_locations, const void* of_weights,
                 const Gradients& gradients, void* grad_reference_points, int64_t begin, int64_t end);
};

extern const CpuKernels kPortableKernels;
extern const CpuKernels kAvx2Kernels;
extern const CpuKernels kAvx512Kernels;

// The best table that this processor can run; ATEN_CPU_CAPABILITY, torch's own variable, may ask for a lesser one.
// Chosen once.
const CpuKernels& cpu_kernels();

}  // namespace focus_lab
