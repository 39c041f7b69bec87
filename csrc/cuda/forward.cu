// Launches the forward kernel.
#include "forward.cuh"

#include "launcher.cuh"

namespace focus_lab {
namespace {

// Four blocks of 256 threads leave each thread 64 registers, room for the loads of four samples at once.
template <typename V, int kChunk, int kLanesLog2>
__global__ void __launch_bounds__(kMaxThreads, sizeof(V) == 8 ? 2 : 4)
    forward_kernel(FOCUS_LAB_PARAMETER ForwardArguments<V> arguments) {
  FOCUS_LAB_SHARED(shared);
  forward_warp<V, kChunk, kLanesLog2>(arguments, shared);
}

template <typename V>
const char* forward(const Problem& problem, const void* value, const void* locations, const void* weights,
                    void* output, int split, void* stream) {
  using A = typename Arithmetic<V>::Type;
  const RowPlan row = row_plan(problem.dtype, problem.channels);
  ForwardArguments<V> arguments = {};
  const char* const error = deal_of(problem, row, split, arguments.deal);
  if (error != nullptr) return error;
  arguments.shape = shape_of(problem);
  arguments.value = static_cast<const V*>(value);
  arguments.locations = static_cast<const A*>(locations);
  arguments.weights = static_cast<const A*>(weights);
  arguments.output = static_cast<V*>(output);
  const Launch plan = launch_plan(problem, arguments.deal, sizeof(ForwardPlace<A>));
  return with_row<V>(row, [&](auto chunk, auto lanes_log2) {
    return launch_images(forward_kernel<V, decltype(chunk)::value, decltype(lanes_log2)::value>, problem, plan, stream,
                         arguments, "the forward kernel");
  });
}

}  // namespace
}  // namespace focus_lab

using namespace focus_lab;

const char* focus_lab_cuda_forward_variant(const Problem* problem, const void* value, const void* locations,
                                           const void* weights, void* output, int split, void* stream) {
  if (refused(*problem, sentence())) return sentence();
  if (problem->batch == 0 || problem->queries == 0) return nullptr;
  if (!aligned(value) || !aligned(locations) || !aligned(weights) || !aligned(output)) {
    return say("the CUDA kernels need arrays that are aligned to 16 bytes");
  }
  return for_dtype(problem->dtype, [&](auto type) {
    return forward<decltype(type)>(*problem, value, locations, weights, output, split, stream);
  });
}

const char* focus_lab_cuda_forward(const Problem* problem, const void* value, const void* locations,
                                   const void* weights, void* output, void* stream) {
  return focus_lab_cuda_forward_variant(problem, value, locations, weights, output, 0, stream);
}
