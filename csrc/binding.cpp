// The operators' kernels for torch, on its stable ABI only: one library serves every torch from 2.11 on, with CUDA or
// without. Schemas, shape functions, autograd and autocast are Python's part (focus_lab/ops/compiled.py).
#ifndef TORCH_TARGET_VERSION
#define TORCH_TARGET_VERSION 0x020b000000000000  // 2.11
#endif

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>

#include <cstdint>
#include <tuple>
#include <vector>

#include "checks.h"
#include "cpu/kernels.h"
#include "deformable_attention.h"

#ifdef FOCUS_LAB_WITH_CUDA
#include <dlfcn.h>

#include "cuda/launch.h"
#endif

// Given by the build.
#ifndef FOCUS_LAB_SOURCE_HASH
#define FOCUS_LAB_SOURCE_HASH "unknown"
#endif
#ifndef FOCUS_LAB_TORCH_VERSION
#define FOCUS_LAB_TORCH_VERSION "unknown"
#endif
#ifndef FOCUS_LAB_CUDA_VERSION
#define FOCUS_LAB_CUDA_VERSION "none"
#endif
#ifndef FOCUS_LAB_CUDA_ARCHITECTURES
#define FOCUS_LAB_CUDA_ARCHITECTURES ""
#endif

namespace focus_lab {
namespace {

// --- CPU -------------------------------------------------------------------------------------------------------------

// Multiply-adds below which another thread costs more than it saves.
constexpr int64_t kWorthAThread = 1 << 17;

template <typename Work>
void in_parallel(int64_t count, int64_t cost, const Work& work) {
  if (count == 0) return;
  const int64_t grain = cost >= kWorthAThread ? 1 : kWorthAThread / (cost > 0 ? cost : 1);
  bool enough_memory = true;
  const auto range = [&](int64_t begin, int64_t end) {
    // Only ever set to false, by whichever thread: an exception must not leave it.
    if (!work(begin, end)) __atomic_store_n(&enough_memory, false, __ATOMIC_RELAXED);
  };
  torch::stable::parallel_for(0, count, grain, range);
  if (!enough_memory) refuse("there is no memory left for scratch");
}

// The tensors of a call, each as the kernels can read it.
struct Read {
  Tensor value, locations, weights;  // or offsets and logits
  Tensor reference_points;           // undefined where locations and weights are given

  Inputs inputs() const {
    return {value.const_data_ptr(), reference_points.defined() ? reference_points.const_data_ptr() : nullptr,
            locations.const_data_ptr(), weights.const_data_ptr()};
  }
};

void forward_on_cpu(const Problem& problem, const Read& read, const Tensor& output) {
  const CpuKernels& kernels = cpu_kernels();
  const Inputs inputs = read.inputs();
  void* to = output.mutable_data_ptr();
  const int64_t cost = int64_t(problem.levels) * problem.points * problem.channels * 4;
  in_parallel(problem.batch * problem.heads * problem.queries, cost, [&](int64_t begin, int64_t end) {
    return kernels.forward(problem, inputs, to, begin, end);
  });
}

// A task owns one head of one image. With few of them for the threads, its levels are dealt out as well, until each
// thread has as many tasks or many: the last to finish is waited for.
int32_t parts_of(const Problem& problem) {
  const int64_t pairs = problem.batch * problem.heads, threads = torch::stable::get_num_threads();
  int32_t parts = 1;
  while (parts < problem.levels && pairs * parts < 4 * threads && pairs * parts % threads != 0) ++parts;
  return parts;
}

void backward_on_cpu(const Problem& problem, const Tensor& grad_output, const Read& read, const Gradients& gradients,
                     bool unfinished, int32_t parts) {
  const CpuKernels& kernels = cpu_kernels();
  const void* upstream = grad_output.const_data_ptr();
  const Inputs inputs = read.inputs();
  const int64_t cost = (problem.queries * 8 * problem.levels * problem.points + problem.tokens) * problem.channels;
  in_parallel(problem.batch * problem.heads * parts, cost / parts, [&](int64_t begin, int64_t end) {
    return kernels.backward(problem, upstream, inputs, gradients, unfinished, parts, begin, end);
  });
}

// `images`: that have reference points of their own.
void finish_on_cpu(const Problem& problem, const Read& read, const Gradients& raw, const Gradients& gradients,
                   void* grad_reference_points, int64_t images) {
  const CpuKernels& kernels = cpu_kernels();
  const Inputs inputs = read.inputs();
  const int64_t cost = problem.heads * problem.levels * problem.points * 16;
  in_parallel(images * problem.queries, cost * (problem.batch / images), [&](int64_t begin, int64_t end) {
    return kernels.finish(problem, inputs, raw.locations, raw.weights, gradients, grad_reference_points, begin, end);
  });
}

// --- CUDA ------------------------------------------------------------------------------------------------------------

#ifdef FOCUS_LAB_WITH_CUDA

// torch's current stream. The function that tells it lives in libtorch_cuda, which a CPU-only torch does not have: a
// link-time reference would make this library unloadable there. RTLD_DEFAULT does not see it, as torch loads its
// libraries with local visibility.
void* current_stream(int32_t device) {
  using GetStream = AOTITorchError (*)(int32_t, void**);
  static const GetStream get_stream = [] {
    void* library = dlopen("libtorch_cuda.so", RTLD_LAZY | RTLD_NOLOAD);
    return library == nullptr ? nullptr
                              : reinterpret_cast<GetStream>(dlsym(library, "aoti_torch_get_current_cuda_stream"));
  }();
  if (get_stream == nullptr) {
    refuse("torch's current CUDA stream cannot be found, got a CUDA tensor without libtorch_cuda.so; install a torch "
           "built for CUDA, 2.11 or newer");
  }
  void* stream = nullptr;
  if (get_stream(device, &stream) != AOTI_TORCH_SUCCESS) {
    refuse("torch does not tell the current stream, got an error for cuda:", device);
  }
  return stream;
}

void check_launch(const char* error) {
  if (error != nullptr) refuse(error);
}

void forward_on_cuda(const Problem& problem, const Read& read, const Tensor& output) {
  const int32_t device = read.value.get_device_index();
  const torch::stable::accelerator::DeviceGuard guard(device);
  check_launch(focus_lab_cuda_forward(&problem, read.value.const_data_ptr(), read.locations.const_data_ptr(),
                                      read.weights.const_data_ptr(), output.mutable_data_ptr(),
                                      current_stream(device)));
}

void backward_on_cuda(const Problem& problem, const Tensor& grad_output, const Read& read, const Gradients& gradients,
                      bool deterministic) {
  const int32_t device = read.value.get_device_index();
  const torch::stable::accelerator::DeviceGuard guard(device);
  const int64_t bytes = focus_lab_cuda_backward_workspace(&problem, deterministic);
  const Tensor workspace = torch::stable::new_empty(read.value, {bytes}, ScalarType::Byte);
  check_launch(focus_lab_cuda_backward(&problem, grad_output.const_data_ptr(), read.value.const_data_ptr(),
                                       read.locations.const_data_ptr(), read.weights.const_data_ptr(), gradients.value,
                                       gradients.locations, gradients.weights, workspace.mutable_data_ptr(),
                                       deterministic, current_stream(device)));
}

// The call with locations and weights in place of offsets and logits. A kernel of its own makes them: the kernels that
// sample are short of registers, and backward reads them several times.
Read made_on_cuda(const Problem& problem, const Read& read) {
  const int32_t device = read.value.get_device_index();
  const torch::stable::accelerator::DeviceGuard guard(device);
  const Tensor locations = torch::stable::new_empty(read.reference_points, read.locations.sizes());
  const Tensor weights = torch::stable::new_empty(read.reference_points, read.weights.sizes());
  check_launch(focus_lab_cuda_make(&problem, read.reference_points.const_data_ptr(), read.locations.const_data_ptr(),
                                   read.weights.const_data_ptr(), locations.mutable_data_ptr(),
                                   weights.mutable_data_ptr(), current_stream(device)));
  return {read.value, locations, weights, {}};
}

void finish_on_cuda(const Problem& problem, const Read& read, const Read& made, const Gradients& raw,
                    const Gradients& gradients, void* grad_reference_points) {
  const int32_t device = read.value.get_device_index();
  const torch::stable::accelerator::DeviceGuard guard(device);
  check_launch(focus_lab_cuda_finish(&problem, read.reference_points.const_data_ptr(), read.locations.const_data_ptr(),
                                     made.weights.const_data_ptr(), raw.locations, raw.weights, grad_reference_points,
                                     gradients.locations, gradients.weights, current_stream(device)));
}

#endif  // FOCUS_LAB_WITH_CUDA

// --- Operators -------------------------------------------------------------------------------------------------------

Tensor new_output(const Tensor& value, const Problem& problem) {
  return torch::stable::new_empty(value, {problem.batch, problem.queries, problem.heads * problem.channels});
}

Tensor new_grad_value(const Tensor& value, const Problem& problem) {
  return torch::stable::new_empty(value, {problem.batch, problem.tokens, problem.heads, problem.channels});
}

Tensor forward(Tensor value, std::vector<int64_t> spatial_shapes, Tensor locations, Tensor weights) {
  Problem problem = checked(value, spatial_shapes, locations, weights);
  const Tensor output = new_output(value, problem);
  if (output.numel() == 0) return output;
  const Read read = {readable_value(value, problem), readable(locations), readable(weights), {}};
#ifdef FOCUS_LAB_WITH_CUDA
  if (value.is_cuda()) {
    forward_on_cuda(problem, read, output);
    return output;
  }
#endif
  forward_on_cpu(problem, read, output);
  return output;
}

std::tuple<Tensor, Tensor, Tensor> backward(Tensor grad_output, Tensor value, std::vector<int64_t> spatial_shapes,
                                            Tensor locations, Tensor weights, bool deterministic) {
  Problem problem = checked(value, spatial_shapes, locations, weights);
  check_grad_output(grad_output, value, problem);
  const Tensor grad_value = new_grad_value(value, problem);
  const Tensor grad_locations = torch::stable::new_empty(locations, locations.sizes());
  const Tensor grad_weights = torch::stable::new_empty(weights, weights.sizes());
  if (problem.batch == 0) return {grad_value, grad_locations, grad_weights};
  const Tensor upstream = readable(grad_output);
  const Read read = {readable_value(value, problem), readable(locations), readable(weights), {}};
  const Gradients gradients = {grad_value.mutable_data_ptr(), grad_locations.mutable_data_ptr(),
                               grad_weights.mutable_data_ptr()};
#ifdef FOCUS_LAB_WITH_CUDA
  if (value.is_cuda()) {
    backward_on_cuda(problem, upstream, read, gradients, deterministic);
    return {grad_value, grad_locations, grad_weights};
  }
#endif
  (void)deterministic;  // the CPU kernels always are
  backward_on_cpu(problem, upstream, read, gradients, false, parts_of(problem));
  return {grad_value, grad_locations, grad_weights};
}

Tensor projected_forward(Tensor value, std::vector<int64_t> spatial_shapes, Tensor reference_points, Tensor offsets,
                         Tensor logits) {
  Problem problem = checked_projection(value, spatial_shapes, reference_points, offsets, logits);
  const Tensor output = new_output(value, problem);
  if (output.numel() == 0) return output;
  const Read read = {readable_value(value, problem), readable(offsets), readable(logits), readable(reference_points)};
#ifdef FOCUS_LAB_WITH_CUDA
  if (value.is_cuda()) {
    forward_on_cuda(problem, made_on_cuda(problem, read), output);
    return output;
  }
#endif
  forward_on_cpu(problem, read, output);
  return output;
}

// `of_reference_points`: whether their gradient is wanted; else it has no elements.
std::tuple<Tensor, Tensor, Tensor, Tensor> projected_backward(Tensor grad_output, Tensor value,
                                                              std::vector<int64_t> spatial_shapes,
                                                              Tensor reference_points, Tensor offsets, Tensor logits,
                                                              bool of_reference_points, bool deterministic) {
  Problem problem = checked_projection(value, spatial_shapes, reference_points, offsets, logits);
  check_grad_output(grad_output, value, problem);
  const Tensor grad_value = new_grad_value(value, problem);
  const Tensor grad_offsets = torch::stable::new_empty(offsets, offsets.sizes());
  const Tensor grad_logits = torch::stable::new_empty(logits, logits.sizes());
  Tensor grad_reference_points =
      of_reference_points ? torch::stable::new_empty(reference_points, reference_points.sizes())
                          : torch::stable::new_empty(reference_points, {0});
  if (problem.batch == 0) {
    // One image's reference points are there even without images.
    if (of_reference_points) torch::stable::zero_(grad_reference_points);
    return {grad_value, grad_reference_points, grad_offsets, grad_logits};
  }
  const Tensor upstream = readable(grad_output);
  const Read read = {readable_value(value, problem), readable(offsets), readable(logits), readable(reference_points)};
  const Gradients gradients = {grad_value.mutable_data_ptr(), grad_offsets.mutable_data_ptr(),
                               grad_logits.mutable_data_ptr()};
  const int32_t parts = value.is_cpu() ? parts_of(problem) : 1;
  if (value.is_cpu() && parts == 1 && !of_reference_points) {
    backward_on_cpu(problem, upstream, read, gradients, false, parts);
    return {grad_value, grad_reference_points, grad_offsets, grad_logits};
  }

  // Gradients of locations and weights first.
  const Tensor of_locations = torch::stable::new_empty(reference_points, offsets.sizes());
  const Tensor of_weights = torch::stable::new_empty(reference_points, logits.sizes());
  const Gradients raw = {gradients.value, of_locations.mutable_data_ptr(), of_weights.mutable_data_ptr()};
  void* to = of_reference_points ? grad_reference_points.mutable_data_ptr() : nullptr;
#ifdef FOCUS_LAB_WITH_CUDA
  if (value.is_cuda()) {
    const Read made = made_on_cuda(problem, read);
    backward_on_cuda(problem, upstream, made, raw, deterministic);
    finish_on_cuda(problem, read, made, raw, gradients, to);
    return {grad_value, grad_reference_points, grad_offsets, grad_logits};
  }
#endif
  (void)deterministic;  // the CPU kernels always are
  backward_on_cpu(problem, upstream, read, raw, true, parts);
  finish_on_cpu(problem, read, raw, gradients, to, reference_points.size(0));
  return {grad_value, grad_reference_points, grad_offsets, grad_logits};
}

STABLE_TORCH_LIBRARY_IMPL(focus_lab, CPU, library) {
  library.impl("deformable_attention", TORCH_BOX(&forward));
  library.impl("deformable_attention_backward", TORCH_BOX(&backward));
  library.impl("projected_deformable_attention", TORCH_BOX(&projected_forward));
  library.impl("projected_deformable_attention_backward", TORCH_BOX(&projected_backward));
}

#ifdef FOCUS_LAB_WITH_CUDA
STABLE_TORCH_LIBRARY_IMPL(focus_lab, CUDA, library) {
  library.impl("deformable_attention", TORCH_BOX(&forward));
  library.impl("deformable_attention_backward", TORCH_BOX(&backward));
  library.impl("projected_deformable_attention", TORCH_BOX(&projected_forward));
  library.impl("projected_deformable_attention_backward", TORCH_BOX(&projected_backward));
}
#endif

// The facts of this build. Python reads them in the file, behind the mark, without loading it: a library that is out of
// date must not get as far as registering its kernels. `interface` counts changes of what Python expects of a library.
const char kBuild[] =
    "focus_lab_ops_build="
    "{\"interface\": 2, "
    "\"source_hash\": \"" FOCUS_LAB_SOURCE_HASH "\", "
    "\"torch\": \"" FOCUS_LAB_TORCH_VERSION "\", "
    "\"cuda\": \"" FOCUS_LAB_CUDA_VERSION "\", "
    "\"architectures\": \"" FOCUS_LAB_CUDA_ARCHITECTURES "\"}";

}  // namespace
}  // namespace focus_lab

extern "C" __attribute__((visibility("default"))) const char* focus_lab_ops_build() {
  return focus_lab::kBuild + sizeof("focus_lab_ops_build=") - 1;
}

extern "C" __attribute__((visibility("default"))) const char* focus_lab_ops_cpu_level() {
  return focus_lab::cpu_kernels().level;
}
