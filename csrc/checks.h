// What the operators ask of their tensors, and the sentences about what does not fit.
#pragma once

#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>

#include <cstdint>
#include <limits>
#include <sstream>
#include <stdexcept>
#include <string>
#include <vector>

#include "deformable_attention.h"

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

// The type of locations.
ScalarType arithmetic_of(const Problem& problem) {
  return problem.dtype == Dtype::kFloat64 ? ScalarType::Double : ScalarType::Float;
}

// What both operators check. `locations`: offsets have the same shape, and are then called so.
Problem checked_levels(const Tensor& value, const std::vector<int64_t>& spatial_shapes, const Tensor& locations,
                       const char* name) {
  if (value.dim() != 4) refuse("value must be [batch, tokens, heads, channels], got ", shape_of(value));
  if (locations.dim() != 6 || locations.size(5) != 2) {
    refuse(name, " must be [batch, queries, heads, levels, points, 2], got ", shape_of(locations));
  }
  check_place(name, locations, value);

  Problem problem{};
  problem.dtype = dtype_of(value);
  problem.batch = value.size(0);
  problem.tokens = value.size(1);
  problem.heads = value.size(2);
  problem.channels = value.size(3);
  problem.queries = locations.size(1);
  const int64_t levels = locations.size(3), points = locations.size(4);
  if (locations.size(0) != problem.batch || locations.size(2) != problem.heads) {
    refuse("value and ", name, " must have the same batch and heads, got value ", shape_of(value), " and ", name, " ",
           shape_of(locations));
  }
  if (problem.heads < 1 || problem.channels < 1 || points < 1) {
    refuse("there must be heads, channels and points, got value ", shape_of(value), " and ", name, " ",
           shape_of(locations));
  }
  if (levels < 1 || levels > kMaxLevels) {
    refuse("the number of levels is out of range, got ", levels, "; 1 to ", kMaxLevels);
  }
  if (static_cast<int64_t>(spatial_shapes.size()) != 2 * levels) {
    refuse("spatial_shapes must hold a height and a width for each level, got ", spatial_shapes.size(),
           " numbers for ", name, " ", shape_of(locations), "; ", 2 * levels, " are needed");
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
    refuse("the tensors are too large to be numbered in 64 bits, got value ", shape_of(value), " and ", name,
           " ", shape_of(locations));
  }
  problem.levels = static_cast<int32_t>(levels);
  problem.points = static_cast<int32_t>(points);
  problem.value_token_stride = problem.heads * problem.channels;
  problem.value_batch_stride = problem.tokens * problem.value_token_stride;
  return problem;
}

Problem checked(const Tensor& value, const std::vector<int64_t>& spatial_shapes, const Tensor& locations,
                const Tensor& weights) {
  const Problem problem = checked_levels(value, spatial_shapes, locations, "locations");
  if (weights.dim() != 5) refuse("weights must be [batch, queries, heads, levels, points], got ", shape_of(weights));
  check_place("weights", weights, value);
  for (int64_t axis = 0; axis < 5; ++axis) {
    if (weights.size(axis) != locations.size(axis)) {
      refuse("weights must have the shape of locations without its last axis, got weights ", shape_of(weights),
             " and locations ", shape_of(locations));
    }
  }
  const ScalarType arithmetic = arithmetic_of(problem);
  if (locations.scalar_type() != arithmetic || weights.scalar_type() != arithmetic) {
    // Locations in 16 bits would be off by two thirds of a pixel on a wide level.
    refuse("locations and weights have the wrong dtype, got ", name_of(locations.scalar_type()), " and ",
           name_of(weights.scalar_type()), "; ", name_of(arithmetic), " with a value in ",
           name_of(value.scalar_type()));
  }
  return problem;
}

Problem checked_projection(const Tensor& value, const std::vector<int64_t>& spatial_shapes,
                           const Tensor& reference_points, const Tensor& offsets, const Tensor& logits) {
  Problem problem = checked_levels(value, spatial_shapes, offsets, "offsets");
  check_place("reference_points", reference_points, value);
  check_place("logits", logits, value);
  const int64_t samples = int64_t(problem.levels) * problem.points;
  if (logits.dim() != 4 || logits.size(0) != problem.batch || logits.size(1) != problem.queries ||
      logits.size(2) != problem.heads || logits.size(3) != samples) {
    refuse("logits must be [batch, queries, heads, levels * points], got logits ", shape_of(logits), " and offsets ",
           shape_of(offsets));
  }
  const bool fits = reference_points.dim() == 4 &&
                    (reference_points.size(0) == 1 || reference_points.size(0) == problem.batch) &&
                    reference_points.size(1) == problem.queries &&
                    (reference_points.size(2) == 1 || reference_points.size(2) == problem.levels) &&
                    (reference_points.size(3) == 2 || reference_points.size(3) == 4);
  if (!fits) {
    refuse("reference_points must be [batch or 1, queries, levels or 1, 2 or 4], got ", shape_of(reference_points),
           " and offsets ", shape_of(offsets));
  }
  const ScalarType arithmetic = arithmetic_of(problem), projected = offsets.scalar_type();
  if (reference_points.scalar_type() != arithmetic) {
    refuse("reference_points have the wrong dtype, got ", name_of(reference_points.scalar_type()), "; ",
           name_of(arithmetic), " with a value in ", name_of(value.scalar_type()));
  }
  // Offsets of 16 bits are exact to a part of a pixel, unlike locations, as they count pixels.
  const bool narrow = arithmetic == ScalarType::Float &&
                      (projected == ScalarType::BFloat16 || projected == ScalarType::Half);
  if (projected != logits.scalar_type() || (projected != arithmetic && !narrow)) {
    refuse("offsets and logits have the wrong dtype, got ", name_of(projected), " and ", name_of(logits.scalar_type()),
           "; both ", name_of(arithmetic), arithmetic == ScalarType::Float ? ", bfloat16 or float16" : "",
           " with a value in ", name_of(value.scalar_type()));
  }
  problem.reference_size = static_cast<int32_t>(reference_points.size(3));
  problem.reference_levels = static_cast<int32_t>(reference_points.size(2));
  // One image's reference points are those of all, even where there is but one image.
  problem.reference_batch_stride =
      reference_points.size(0) == 1
          ? 0
          : problem.queries * problem.reference_levels * problem.reference_size;
  problem.projected = dtype_of(offsets);
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

}  // namespace
}  // namespace focus_lab
