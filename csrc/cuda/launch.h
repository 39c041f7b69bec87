// The CUDA half of deformable attention, for callers that know neither CUDA nor torch.
//
// All pointers are of the current device, all arrays as in Problem, `stream` is a cudaStream_t. Nothing is allocated
// and nothing is waited for: every call can be captured in a CUDA graph. Each returns nullptr, or a sentence about what
// went wrong that stays valid until the thread's next call.
#pragma once

#include <cstdint>

#include "../deformable_attention.h"

namespace focus_lab {

// How grad_value is summed.
//   kAutomatic      kSorted where it is worth it (worth_sorting() in plan.h), else kDirect
//   kDirect         an addition to memory for each corner of each sample
//   kSorted         contributions of a block of queries sorted by pixel first; not for float64
//   kDeterministic  in 64-bit integers: the same bits whatever the order, also for permuted queries. The unit is 2^-61
//                   of the largest sum that is possible (fixed_point() in sample.h): for 22,000 queries with 4 points a
//                   level about 2^-44 of the largest contribution. A gradient or weight that is not finite makes all of
//                   grad_value NaN.
enum class BackwardVariant : int { kAutomatic, kDirect, kSorted, kDeterministic };

}  // namespace focus_lab

extern "C" {

const char* focus_lab_cuda_forward(const focus_lab::Problem* problem, const void* value, const void* locations,
                                   const void* weights, void* output, void* stream);

// Bytes that the backward pass needs besides its results; aligned like them.
int64_t focus_lab_cuda_backward_workspace(const focus_lab::Problem* problem, bool deterministic);

// Writes all of grad_value (in the type of value), grad_locations and grad_weights.
const char* focus_lab_cuda_backward(const focus_lab::Problem* problem, const void* grad_output, const void* value,
                                    const void* locations, const void* weights, void* grad_value,
                                    void* grad_locations, void* grad_weights, void* workspace, bool deterministic,
                                    void* stream);

// Locations and weights of the samples from a module's projections (Problem::reference_size), for the calls above.
const char* focus_lab_cuda_make(const focus_lab::Problem* problem, const void* reference_points, const void* offsets,
                                const void* logits, void* locations, void* weights, void* stream);

// Gradients of offsets, logits and, unless that is nullptr, reference points from those of the locations and weights
// that were made.
const char* focus_lab_cuda_finish(const focus_lab::Problem* problem, const void* reference_points, const void* offsets,
                                  const void* weights, const void* of_locations, const void* of_weights,
                                  void* grad_reference_points, void* grad_offsets, void* grad_logits, void* stream);

// Forward and backward with choices that are otherwise made by rule; for tests and benchmarks, hence visible outside the library.
// `split`: groups of lanes that share a query's samples, 1, 2 or 4 (fewer where a warp has no room), 0 for the rule.
// `variant`: a BackwardVariant; kDeterministic needs the larger workspace.
__attribute__((visibility("default"))) const char* focus_lab_cuda_forward_variant(
    const focus_lab::Problem* problem, const void* value, const void* locations, const void* weights, void* output,
    int split, void* stream);
__attribute__((visibility("default"))) const char* focus_lab_cuda_backward_variant(
    const focus_lab::Problem* problem, const void* grad_output, const void* value, const void* locations,
    const void* weights, void* grad_value, void* grad_locations, void* grad_weights, void* workspace, int variant,
    int split, void* stream);

}  // extern "C"
