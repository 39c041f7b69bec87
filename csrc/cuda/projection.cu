// Launches the kernels before and after those of samples that are given.
#include "projection.cuh"

#include "launcher.cuh"

namespace focus_lab {
namespace {

constexpr unsigned kRowThreads = kArrayThreads;

template <typename A, typename E>
__global__ void __launch_bounds__(kRowThreads) make_kernel(FOCUS_LAB_PARAMETER ProjectionArguments<A, E> arguments) {
  make_samples(arguments);
}

template <typename A, typename E>
__global__ void __launch_bounds__(kRowThreads) finish_kernel(FOCUS_LAB_PARAMETER ProjectionArguments<A, E> arguments) {
  finish_samples(arguments);
}

template <typename A, typename E>
__global__ void __launch_bounds__(kRowThreads)
    reference_kernel(FOCUS_LAB_PARAMETER ProjectionArguments<A, E> arguments) {
  sum_references(arguments);
}

// What both calls need. Lanes: as many as samples, so that a row's neighbours are read together.
template <typename A, typename E>
ProjectionArguments<A, E> arguments_of(const Problem& problem, const void* reference_points, const void* offsets) {
  ProjectionArguments<A, E> arguments = {};
  arguments.shape = shape_of(problem);
  arguments.reference_points = static_cast<const A*>(reference_points);
  arguments.offsets = static_cast<const E*>(offsets);
  arguments.rows = static_cast<uint32_t>(problem.batch * problem.queries * problem.heads);
  arguments.batch = static_cast<uint32_t>(problem.batch);
  arguments.lanes_log2 = log2_up(arguments.shape.samples < kWarp ? arguments.shape.samples : kWarp);
  arguments.reference_size = problem.reference_size;
  arguments.reference_levels = problem.reference_levels;
  arguments.shared = problem.reference_batch_stride == 0;
  return arguments;
}

// Whether the kernels can number all rows and reference points; they have 32 bits, with room for a step of the grid.
bool too_many(const Problem& problem) {
  const int64_t references = int64_t(problem.reference_levels) * problem.reference_size;
  const int64_t of_query = problem.heads > references ? problem.heads : references;
  return problem.batch > INT32_MAX / of_query ||
         (problem.batch > 0 && problem.queries > INT32_MAX / of_query / problem.batch);
}

const char* const kTooMany = "the CUDA kernels cannot take this call: batch * queries * heads must be less than 2^31";

// Calls `with` with values of the types of locations and of offsets.
template <typename With>
const char* for_types(const Problem& problem, const With& with) {
  if (problem.dtype == Dtype::kFloat64) return with(double(), double());
  if (problem.projected == Dtype::kBFloat16) return with(float(), BFloat16());
  if (problem.projected == Dtype::kFloat16) return with(float(), Float16());
  return with(float(), float());
}

}  // namespace
}  // namespace focus_lab

using namespace focus_lab;

const char* focus_lab_cuda_make(const Problem* problem, const void* reference_points, const void* offsets,
                                const void* logits, void* locations, void* weights, void* stream) {
  if (refused(*problem, sentence())) return sentence();
  if (too_many(*problem)) return say(kTooMany);
  return for_types(*problem, [&](auto number, auto projected) -> const char* {
    using A = decltype(number);
    using E = decltype(projected);
    ProjectionArguments<A, E> arguments = arguments_of<A, E>(*problem, reference_points, offsets);
    if (arguments.rows == 0) return nullptr;
    arguments.logits = static_cast<const E*>(logits);
    arguments.locations = static_cast<A*>(locations);
    arguments.weights = static_cast<A*>(weights);
    return launch(make_kernel<A, E>, array_grid(int64_t(arguments.rows) << arguments.lanes_log2), kRowThreads, 0, stream,
                  arguments, "the kernel of locations and weights");
  });
}

const char* focus_lab_cuda_finish(const Problem* problem, const void* reference_points, const void* offsets,
                                  const void* weights, const void* of_locations, const void* of_weights,
                                  void* grad_reference_points, void* grad_offsets, void* grad_logits, void* stream) {
  if (refused(*problem, sentence())) return sentence();
  if (too_many(*problem)) return say(kTooMany);
  return for_types(*problem, [&](auto number, auto projected) -> const char* {
    using A = decltype(number);
    using E = decltype(projected);
    ProjectionArguments<A, E> arguments = arguments_of<A, E>(*problem, reference_points, offsets);
    if (arguments.rows == 0) return nullptr;
    arguments.weights = static_cast<A*>(const_cast<void*>(weights));
    arguments.of_locations = static_cast<const A*>(of_locations);
    arguments.of_weights = static_cast<const A*>(of_weights);
    arguments.of_reference_points = static_cast<A*>(grad_reference_points);
    arguments.of_offsets = static_cast<E*>(grad_offsets);
    arguments.of_logits = static_cast<E*>(grad_logits);
    const char* const error = launch(finish_kernel<A, E>, array_grid(int64_t(arguments.rows) << arguments.lanes_log2),
                                     kRowThreads, 0, stream, arguments, "the kernel of offsets and logits");
    if (error != nullptr || grad_reference_points == nullptr) return error;
    const int64_t queries = problem->queries * (arguments.shared ? 1 : problem->batch);
    const int64_t numbers = queries * problem->reference_levels * problem->reference_size;
    return launch(reference_kernel<A, E>, array_grid(numbers), kRowThreads, 0, stream, arguments,
                  "the kernel of reference points");
  });
}
