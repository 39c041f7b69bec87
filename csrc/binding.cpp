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
#include <limits>
#include <sstream>
#include <stdexcept>
#include <string>
#include <tuple>
#include <vector>

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

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

// --- Sentences -------------------------------------------------------------------------------------------------------

template <typename... Parts>
[[noreturn]] void refuse(const Parts&... parts) {
  std::ostringstream sentence;
  sentence << "deformable_attention: ";
  (sentence << ... << parts);
  throw std::runtime_error(sentence.str());
}

std::string shape_of(const Tensor& tensor) {
  std::ostringstream text;
  text << "[";
  for (int64_t axis = 0; axis < tensor.dim(); ++axis) text << (axis == 0 ? "" : ", ") << tensor.size(axis);
  text << "]";
  return text.str();
}

std::string name_of(ScalarType type) {
  switch (type) {
    case ScalarType::Double:
      return "float64";
    case ScalarType::Float:
      return "float32";
    case ScalarType::BFloat16:
      return "bfloat16";
    case ScalarType::Half:
      return "float16";
    case ScalarType::Int:
      return "int32";
    case ScalarType::Long:
      return "int64";
    case ScalarType::Bool:
      return "bool";
    default:
      return "dtype number " + std::to_string(static_cast<int>(type));
  }
}

std::string device_of(const Tensor& tensor) {
  return tensor.is_cpu() ? "cpu" : "cuda:" + std::to_string(tensor.get_device_index());
}

// --- Checks ----------------------------------------------------------------------------------------------------------

Dtype dtype_of(const Tensor& value) {
  switch (value.scalar_type()) {
    case ScalarType::Double:
      return Dtype::kFloat64;
    case ScalarType::Float:
      return Dtype::kFloat32;
    case ScalarType::BFloat16:
      return Dtype::kBFloat16;
    case ScalarType::Half:
      return Dtype::kFloat16;
    default:
      refuse("value has a dtype that is not supported, got ", name_of(value.scalar_type()),
             "; float64, float32, bfloat16 or float16");
  }
}

void check_place(const char* name, const Tensor& tensor, const Tensor& value) {
  const bool same = tensor.is_cpu() == value.is_cpu() &&
                    (value.is_cpu() || tensor.get_device_index() == value.get_device_index());
  if (!same) {
    refuse(name, " is on another device than value, got ", device_of(tensor), " and ", device_of(value),
           "; all tensors on one device");
  }
}

// Whether the product of all factors is at most `limit`; none is negative.
bool product_fits(std::initializer_list<int64_t> factors, int64_t limit) {
  int64_t product = 1;
  for (const int64_t factor : factors) {
    if (factor == 0) return true;
  }
  for (const int64_t factor : factors) {
    if (product > limit / factor) return false;
    product *= factor;
  }
  return true;
}

Problem checked(const Tensor& value, const std::vector<int64_t>& spatial_shapes, const Tensor& locations,
                const Tensor& weights) {
  if (value.dim() != 4) refuse("value must be [batch, tokens, heads, channels], got ", shape_of(value));
  if (locations.dim() != 6 || locations.size(5) != 2) {
    refuse("locations must be [batch, queries, heads, levels, points, 2], got ", shape_of(locations));
  }
  if (weights.dim() != 5) refuse("weights must be [batch, queries, heads, levels, points], got ", shape_of(weights));
  check_place("locations", locations, value);
  check_place("weights", weights, value);

  Problem problem{};
  problem.dtype = dtype_of(value);
  const ScalarType arithmetic = problem.dtype == Dtype::kFloat64 ? ScalarType::Double : ScalarType::Float;
  if (locations.scalar_type() != arithmetic || weights.scalar_type() != arithmetic) {
    // Locations in 16 bits would be off by two thirds of a pixel on a wide level.
    refuse("locations and weights have the wrong dtype, got ", name_of(locations.scalar_type()), " and ",
           name_of(weights.scalar_type()), "; ", name_of(arithmetic), " with a value in ",
           name_of(value.scalar_type()));
  }

  problem.batch = value.size(0);
  problem.tokens = value.size(1);
  problem.heads = value.size(2);
  problem.channels = value.size(3);
  problem.queries = locations.size(1);
  const int64_t levels = locations.size(3), points = locations.size(4);
  if (locations.size(0) != problem.batch || locations.size(2) != problem.heads) {
    refuse("value and locations must have the same batch and heads, got value ", shape_of(value), " and locations ",
           shape_of(locations));
  }
  for (int64_t axis = 0; axis < 5; ++axis) {
    if (weights.size(axis) != locations.size(axis)) {
      refuse("weights must have the shape of locations without its last axis, got weights ", shape_of(weights),
             " and locations ", shape_of(locations));
    }
  }
  if (problem.heads < 1 || problem.channels < 1 || points < 1) {
    refuse("there must be heads, channels and points, got value ", shape_of(value), " and locations ",
           shape_of(locations));
  }
  if (levels < 1 || levels > kMaxLevels) {
    refuse("the number of levels is out of range, got ", levels, "; 1 to ", kMaxLevels);
  }
  if (static_cast<int64_t>(spatial_shapes.size()) != 2 * levels) {
    refuse("spatial_shapes must hold a height and a width for each level, got ", spatial_shapes.size(),
           " numbers for locations ", shape_of(locations), "; ", 2 * levels, " are needed");
  }

  constexpr int64_t kLargest = std::numeric_limits<int32_t>::max();
  constexpr int64_t kHuge = std::numeric_limits<int64_t>::max() / 16;  // bytes fit too
  int64_t tokens = 0;
  for (int64_t level = 0; level < levels; ++level) {
    const int64_t height = spatial_shapes[2 * level], width = spatial_shapes[2 * level + 1];
    if (height < 1 || width < 1 || !product_fits({height, width}, kLargest - tokens)) {
      refuse("a level's size is out of range, got height ", height, " and width ", width,
             "; at least 1 each, and less than 2^31 tokens in all");
    }
    problem.level[level] = {static_cast<int32_t>(height), static_cast<int32_t>(width), static_cast<int32_t>(tokens)};
    tokens += height * width;
  }
  if (tokens != problem.tokens) {
    std::ostringstream sizes;
    for (int64_t level = 0; level < levels; ++level) {
      sizes << (level == 0 ? "" : ", ") << spatial_shapes[2 * level] << "x" << spatial_shapes[2 * level + 1];
    }
    refuse("value must cover the levels ", sizes.str(), ", got value ", shape_of(value), "; ", tokens,
           " tokens are needed");
  }
  if (!product_fits({points, levels}, kLargest / 8)) refuse("there are too many points, got ", points);
  if (!product_fits({problem.tokens, problem.heads, problem.channels}, kLargest)) {
    refuse("one image has too many values, got ", shape_of(value), "; at most 2^31 - 1 in tokens * heads * channels");
  }
  if (!product_fits({problem.batch, problem.tokens, problem.heads, problem.channels}, kHuge) ||
      !product_fits({problem.batch, problem.queries, problem.heads, levels, points, 2}, kHuge) ||
      !product_fits({problem.batch, problem.queries, problem.heads, problem.channels}, kHuge)) {
    refuse("the tensors are too large to be numbered in 64 bits, got value ", shape_of(value), " and locations ",
           shape_of(locations));
  }
  problem.levels = static_cast<int32_t>(levels);
  problem.points = static_cast<int32_t>(points);
  problem.value_token_stride = problem.heads * problem.channels;
  problem.value_batch_stride = problem.tokens * problem.value_token_stride;
  return problem;
}

void check_grad_output(const Tensor& grad_output, const Tensor& value, const Problem& problem) {
  const int64_t width = problem.heads * problem.channels;
  const bool fits = grad_output.dim() == 3 && grad_output.size(0) == problem.batch &&
                    grad_output.size(1) == problem.queries && grad_output.size(2) == width;
  if (!fits) {
    refuse("grad_output must be [batch, queries, heads * channels], got ", shape_of(grad_output), "; [", problem.batch,
           ", ", problem.queries, ", ", width, "] is needed");
  }
  if (grad_output.scalar_type() != value.scalar_type()) {
    refuse("grad_output must have the dtype of value, got ", name_of(grad_output.scalar_type()), " and ",
           name_of(value.scalar_type()));
  }
  check_place("grad_output", grad_output, value);
}

// --- Memory ----------------------------------------------------------------------------------------------------------

// The tensor itself where the kernels can read it, else a copy. Going through torch costs microseconds: look first.
Tensor readable(const Tensor& tensor) {
  constexpr uintptr_t kAlignment = 16;  // of the vector loads of the GPU kernels
  if (!tensor.is_contiguous()) return torch::stable::contiguous(tensor);
  if (tensor.is_cpu() || reinterpret_cast<uintptr_t>(tensor.const_data_ptr()) % kAlignment == 0) return tensor;
  return torch::stable::clone(tensor);
}

// As readable(), for value: the CPU kernels take any strides of batch and tokens that int32 offsets can follow.
Tensor readable_value(const Tensor& value, Problem& problem) {
  if (value.is_cpu() && !value.is_contiguous()) {
    const int64_t batch = value.stride(0), token = value.stride(1);
    const bool rows = (problem.heads == 1 || value.stride(2) == problem.channels) &&
                      (problem.channels == 1 || value.stride(3) == 1);
    constexpr int64_t kLargest = std::numeric_limits<int32_t>::max();
    if (rows && batch >= 0 && token >= 0 && product_fits({problem.tokens, token}, kLargest - token)) {
      problem.value_batch_stride = batch;
      problem.value_token_stride = token;
      return value;
    }
  }
  return readable(value);
}

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

void run_forward_on_cpu(const Problem& problem, const Tensor& value, const Tensor& locations, const Tensor& weights,
                        const Tensor& output) {
  const CpuKernels& kernels = cpu_kernels();
  const void *from = value.const_data_ptr(), *where = locations.const_data_ptr(), *how = weights.const_data_ptr();
  void* to = output.mutable_data_ptr();
  const int64_t cost = int64_t(problem.levels) * problem.points * problem.channels * 4;
  in_parallel(problem.batch * problem.heads * problem.queries, cost, [&](int64_t begin, int64_t end) {
    return kernels.forward(problem, from, where, how, to, begin, end);
  });
}

void run_backward_on_cpu(const Problem& problem, const Tensor& grad_output, const Tensor& value,
                         const Tensor& locations, const Tensor& weights, const Tensor& grad_value,
                         const Tensor& grad_locations, const Tensor& grad_weights) {
  const CpuKernels& kernels = cpu_kernels();
  const void *upstream = grad_output.const_data_ptr(), *from = value.const_data_ptr(),
             *where = locations.const_data_ptr(), *how = weights.const_data_ptr();
  void *to_value = grad_value.mutable_data_ptr(), *to_locations = grad_locations.mutable_data_ptr(),
       *to_weights = grad_weights.mutable_data_ptr();
  // A task owns one head of one image. With few of them for the threads, its levels are dealt out as well, until each
  // thread has as many tasks or many: the last to finish is waited for.
  const int64_t pairs = problem.batch * problem.heads, threads = torch::stable::get_num_threads();
  int32_t parts = 1;
  while (parts < problem.levels && pairs * parts < 4 * threads && pairs * parts % threads != 0) ++parts;
  const int64_t cost = (problem.queries * 8 * problem.levels * problem.points + problem.tokens) * problem.channels;
  in_parallel(pairs * parts, cost / parts, [&](int64_t begin, int64_t end) {
    return kernels.backward(problem, upstream, from, where, how, to_value, to_locations, to_weights, parts, begin, end);
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

#endif  // FOCUS_LAB_WITH_CUDA

// --- Operators -------------------------------------------------------------------------------------------------------

Tensor forward(Tensor value, std::vector<int64_t> spatial_shapes, Tensor locations, Tensor weights) {
  Problem problem = checked(value, spatial_shapes, locations, weights);
  const Tensor output =
      torch::stable::new_empty(value, {problem.batch, problem.queries, problem.heads * problem.channels});
  if (output.numel() == 0) return output;
  const Tensor rows = readable_value(value, problem), where = readable(locations), how = readable(weights);
#ifdef FOCUS_LAB_WITH_CUDA
  if (value.is_cuda()) {
    const int32_t device = value.get_device_index();
    const torch::stable::accelerator::DeviceGuard guard(device);
    check_launch(focus_lab_cuda_forward(&problem, rows.const_data_ptr(), where.const_data_ptr(), how.const_data_ptr(),
                                        output.mutable_data_ptr(), current_stream(device)));
    return output;
  }
#endif
  run_forward_on_cpu(problem, rows, where, how, output);
  return output;
}

std::tuple<Tensor, Tensor, Tensor> backward(Tensor grad_output, Tensor value, std::vector<int64_t> spatial_shapes,
                                            Tensor locations, Tensor weights, bool deterministic) {
  Problem problem = checked(value, spatial_shapes, locations, weights);
  check_grad_output(grad_output, value, problem);
  const Tensor grad_value =
      torch::stable::new_empty(value, {problem.batch, problem.tokens, problem.heads, problem.channels});
  const Tensor grad_locations = torch::stable::new_empty(locations, locations.sizes());
  const Tensor grad_weights = torch::stable::new_empty(weights, weights.sizes());
  if (problem.batch == 0) return {grad_value, grad_locations, grad_weights};
  const Tensor upstream = readable(grad_output), rows = readable_value(value, problem), where = readable(locations),
               how = readable(weights);
#ifdef FOCUS_LAB_WITH_CUDA
  if (value.is_cuda()) {
    const int32_t device = value.get_device_index();
    const torch::stable::accelerator::DeviceGuard guard(device);
    const int64_t bytes = focus_lab_cuda_backward_workspace(&problem, deterministic);
    const Tensor workspace = torch::stable::new_empty(value, {bytes}, ScalarType::Byte);
    check_launch(focus_lab_cuda_backward(&problem, upstream.const_data_ptr(), rows.const_data_ptr(),
                                         where.const_data_ptr(), how.const_data_ptr(), grad_value.mutable_data_ptr(),
                                         grad_locations.mutable_data_ptr(), grad_weights.mutable_data_ptr(),
                                         workspace.mutable_data_ptr(), deterministic, current_stream(device)));
    return {grad_value, grad_locations, grad_weights};
  }
#endif
  (void)deterministic;  // the CPU kernels always are
  run_backward_on_cpu(problem, upstream, rows, where, how, grad_value, grad_locations, grad_weights);
  return {grad_value, grad_locations, grad_weights};
}

STABLE_TORCH_LIBRARY_IMPL(focus_lab, CPU, library) {
  library.impl("deformable_attention", TORCH_BOX(&forward));
  library.impl("deformable_attention_backward", TORCH_BOX(&backward));
}

#ifdef FOCUS_LAB_WITH_CUDA
STABLE_TORCH_LIBRARY_IMPL(focus_lab, CUDA, library) {
  library.impl("deformable_attention", TORCH_BOX(&forward));
  library.impl("deformable_attention_backward", TORCH_BOX(&backward));
}
#endif

// The facts of this build. Python reads them in the file, behind the mark, without loading it: a library that is out of
// date must not get as far as registering its kernels. `interface` counts changes of what Python expects of a library.
const char kBuild[] =
    "focus_lab_ops_build="
    "{\"interface\": 1, "
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
