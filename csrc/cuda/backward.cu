// Launches the backward kernels.
#include "backward.cuh"

#include "launcher.cuh"

namespace focus_lab {
namespace {

template <typename V, int kChunk, int kLanesLog2>
__global__ void __launch_bounds__(kMaxThreads, kLanesLog2 == kAnyLanes ? 2 : sizeof(V) == 2 ? 3 : 4)
    backward_kernel(FOCUS_LAB_PARAMETER BackwardArguments<V> arguments) {
  FOCUS_LAB_SHARED(shared);
  backward_warp<V, kChunk, kLanesLog2>(arguments, shared);
}

// Three blocks are what a multiprocessor's shared memory holds.
template <int kChannels>
__global__ void __launch_bounds__(kScatterThreads, 3) scatter_kernel(FOCUS_LAB_PARAMETER ScatterArguments arguments) {
  FOCUS_LAB_SHARED(shared);
  scatter_block<kChannels>(arguments, shared);
}

inline void (*scatter_kernel_of(int64_t channels))(const ScatterArguments) {
  switch (channels) {
    case 16:
      return scatter_kernel<16>;
    case 32:
      return scatter_kernel<32>;
    case 64:
      return scatter_kernel<64>;
    default:
      return scatter_kernel<0>;
  }
}

// --- Whole arrays ----------------------------------------------------------------------------------------------------

template <typename V>
struct CastArguments {
  const float* sums;
  V* to;
  int64_t quads;
};

template <typename V>
__global__ void __launch_bounds__(kArrayThreads) cast_kernel(FOCUS_LAB_PARAMETER CastArguments<V> arguments) {
  cast_quads(arguments.sums, arguments.to, arguments.quads);
}

template <typename V>
struct FixedArguments {
  const unsigned long long* sums;
  const Largest* largest;
  V* to;
  int64_t quads;
  int32_t samples_log2;
};

template <typename V>
__global__ void __launch_bounds__(kArrayThreads) fixed_kernel(FOCUS_LAB_PARAMETER FixedArguments<V> arguments) {
  fixed_quads(arguments.sums, *arguments.largest, arguments.samples_log2, arguments.to, arguments.quads);
}

template <typename V>
struct LargestArguments {
  const V* numbers;
  int64_t count;
  unsigned long long* largest;
};

template <typename V>
__global__ void __launch_bounds__(kArrayThreads) largest_kernel(FOCUS_LAB_PARAMETER LargestArguments<V> arguments) {
  find_largest(arguments.numbers, arguments.count, arguments.largest);
}

template <typename V>
const char* find_largest_of(const V* numbers, int64_t count, unsigned long long* largest, void* stream) {
  return launch(largest_kernel<V>, array_grid(count), kArrayThreads, 0, stream,
                LargestArguments<V>{numbers, count, largest}, "the search for the largest gradient");
}

// --- The call --------------------------------------------------------------------------------------------------------

struct Arrays {
  const void *grad_output, *value, *locations, *weights;
  void *grad_value, *grad_locations, *grad_weights, *workspace;
};

template <typename V>
const char* backward(const Problem& problem, const Arrays& arrays, BackwardVariant variant, int split, void* stream) {
  using A = typename Arithmetic<V>::Type;
  const bool deterministic = variant == BackwardVariant::kDeterministic;
  const bool narrow = sizeof(V) == 2;
  const int64_t values = problem.batch * problem.tokens * problem.heads * problem.channels;
  const int64_t samples = int64_t(problem.levels) * problem.points;
  const int64_t all_samples = problem.batch * problem.queries * problem.heads * samples;

  ScatterPlan scatter = {};
  if (variant == BackwardVariant::kAutomatic || variant == BackwardVariant::kSorted) {
    int multiprocessors = 0, block_shared = 0, all_shared = 0;
    const char* error = device_attribute(cudaDevAttrMultiProcessorCount, multiprocessors);
    if (error == nullptr) error = device_attribute(cudaDevAttrMaxSharedMemoryPerBlockOptin, block_shared);
    if (error == nullptr) error = device_attribute(cudaDevAttrMaxSharedMemoryPerMultiprocessor, all_shared);
    if (error != nullptr) return error;
    scatter = scatter_plan(problem, block_shared, all_shared);
    if (variant == BackwardVariant::kSorted && !scatter.possible) {
      return say("the sorted backward kernel needs float32 or 16-bit values and fewer than 2^24 tokens");
    }
    if (variant == BackwardVariant::kAutomatic) {
      variant = worth_sorting(problem, scatter, multiprocessors) ? BackwardVariant::kSorted : BackwardVariant::kDirect;
    }
  }

  // What grad_value is summed in starts at zero.
  unsigned char* const workspace = static_cast<unsigned char*>(arrays.workspace);
  void* const accumulator = deterministic ? workspace + kLargestBytes : narrow ? workspace : arrays.grad_value;
  Largest* const largest = reinterpret_cast<Largest*>(workspace);
  const cudaStream_t cuda_stream = static_cast<cudaStream_t>(stream);
  if (deterministic) {
    const size_t bytes = static_cast<size_t>(workspace_bytes(problem, true));
    FOCUS_LAB_TRY(cudaMemsetAsync(workspace, 0, bytes, cuda_stream), "clearing the workspace");
    const int64_t outputs = problem.batch * problem.queries * problem.heads * problem.channels;
    const char* error =
        find_largest_of(static_cast<const V*>(arrays.grad_output), outputs, &largest->gradient, stream);
    if (error == nullptr) {
      error = find_largest_of(static_cast<const A*>(arrays.weights), all_samples, &largest->weight, stream);
    }
    if (error != nullptr) return error;
  } else {
    const size_t bytes = static_cast<size_t>(values) * sizeof(A);
    FOCUS_LAB_TRY(cudaMemsetAsync(accumulator, 0, bytes, cuda_stream), "clearing grad_value");
  }

  // Deterministic mode lives in the general kernel, which takes every row.
  RowPlan row = row_plan(problem.dtype, problem.channels);
  if (deterministic) row.full = false;
  BackwardArguments<V> arguments = {};
  const char* error = deal_of(problem, row, split, arguments.deal);
  if (error != nullptr) return error;
  arguments.shape = shape_of(problem);
  arguments.grad_output = static_cast<const V*>(arrays.grad_output);
  arguments.value = static_cast<const V*>(arrays.value);
  arguments.locations = static_cast<const A*>(arrays.locations);
  arguments.weights = static_cast<const A*>(arrays.weights);
  arguments.grad_locations = static_cast<A*>(arrays.grad_locations);
  arguments.grad_weights = static_cast<A*>(arrays.grad_weights);
  arguments.accumulator = accumulator;
  arguments.largest = largest;
  arguments.samples_log2 = samples_log2(problem);
  arguments.scatter = deterministic                          ? Scatter::kFixed
                      : variant == BackwardVariant::kSorted ? Scatter::kNone
                                                             : Scatter::kAdd;
  const Launch plan = launch_plan(problem, arguments.deal, sizeof(BackwardPlace<A>));
  error = with_row<V>(row, [&](auto chunk, auto lanes_log2) {
    return launch_images(backward_kernel<V, decltype(chunk)::value, decltype(lanes_log2)::value>, problem, plan, stream,
                         arguments, "the backward kernel");
  });
  if (error != nullptr) return error;

  if constexpr (sizeof(V) != 8) {
    if (variant == BackwardVariant::kSorted) {
      ScatterArguments sorted = {};
      sorted.shape = arguments.shape;
      sorted.grad_output = arrays.grad_output;
      sorted.locations = arguments.locations;
      sorted.weights = arguments.weights;
      sorted.sums = static_cast<float*>(accumulator);
      sorted.queries_log2 = scatter.queries_log2;
      sorted.pass_log2 = scatter.pass_log2;
      sorted.dtype = problem.dtype;
      error = launch_images(scatter_kernel_of(problem.channels), problem, scatter.launch, stream, sorted,
                            "the sorted backward kernel");
      if (error != nullptr) return error;
    }
  }

  if (deterministic) {
    return launch(fixed_kernel<V>, array_grid(values / 4), kArrayThreads, 0, stream,
                  FixedArguments<V>{static_cast<const unsigned long long*>(accumulator), largest,
                                    static_cast<V*>(arrays.grad_value), values / 4, arguments.samples_log2},
                  "the conversion of grad_value");
  }
  if constexpr (sizeof(V) == 2) {
    return launch(cast_kernel<V>, array_grid(values / 4), kArrayThreads, 0, stream,
                  CastArguments<V>{static_cast<const float*>(accumulator), static_cast<V*>(arrays.grad_value),
                                   values / 4},
                  "the conversion of grad_value");
  }
  return nullptr;
}

}  // namespace
}  // namespace focus_lab

using namespace focus_lab;

int64_t focus_lab_cuda_backward_workspace(const Problem* problem, bool deterministic) {
  return workspace_bytes(*problem, deterministic);
}

const char* focus_lab_cuda_backward_variant(const Problem* problem, const void* grad_output, const void* value,
                                            const void* locations, const void* weights, void* grad_value,
                                            void* grad_locations, void* grad_weights, void* workspace, int variant,
                                            int split, void* stream) {
  if (refused(*problem, sentence())) return sentence();
  if (problem->batch == 0) return nullptr;
  if (problem->queries == 0) {
    const int64_t values = problem->batch * problem->tokens * problem->heads * problem->channels;
    const size_t bytes = static_cast<size_t>(values) * bytes_of(problem->dtype);
    return explain(cudaMemsetAsync(grad_value, 0, bytes, static_cast<cudaStream_t>(stream)), "clearing grad_value");
  }
  const Arrays arrays = {grad_output, value, locations, weights, grad_value, grad_locations, grad_weights, workspace};
  for (const void* array : {grad_output, value, locations, weights, static_cast<const void*>(grad_value),
                            static_cast<const void*>(grad_locations), static_cast<const void*>(grad_weights),
                            static_cast<const void*>(workspace)}) {
    if (!aligned(array)) return say("the CUDA kernels need arrays that are aligned to 16 bytes");
  }
  return for_dtype(problem->dtype, [&](auto type) {
    return backward<decltype(type)>(*problem, arrays, static_cast<BackwardVariant>(variant), split, stream);
  });
}

const char* focus_lab_cuda_backward(const Problem* problem, const void* grad_output, const void* value,
                                    const void* locations, const void* weights, void* grad_value,
                                    void* grad_locations, void* grad_weights, void* workspace, bool deterministic,
                                    void* stream) {
  const BackwardVariant variant = deterministic ? BackwardVariant::kDeterministic : BackwardVariant::kAutomatic;
  return focus_lab_cuda_backward_variant(problem, grad_output, value, locations, weights, grad_value, grad_locations,
                                         grad_weights, workspace, static_cast<int>(variant), 0, stream);
}
