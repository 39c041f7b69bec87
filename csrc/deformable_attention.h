// What the binding (torch's stable ABI) and the kernels (plain C++ and CUDA) agree on. No torch header here or in any
// kernel, so that kernels compile and can be tested without torch.
#pragma once

#include <cstdint>

namespace focus_lab {

// A pyramid halves its size from level to level: 32 of them exhaust every int32 image. Small enough to travel by value
// in a CUDA kernel's parameters.
constexpr int kMaxLevels = 32;

enum class Dtype : int { kFloat64, kFloat32, kBFloat16, kFloat16 };

struct Level {
  int32_t height;
  int32_t width;
  int32_t start;  // first token of the level within one image
};

// One call. Tensors are contiguous (but see the strides of `value`) and on a GPU 16-byte aligned:
//   value        [batch, tokens, heads, channels]                in `dtype`
//   locations    [batch, queries, heads, levels, points, 2]      float32 (float64 with kFloat64), (x, y)
//   weights      [batch, queries, heads, levels, points]         as locations
//   output       [batch, queries, heads * channels]              in `dtype`
//
// Locations and weights may instead be made from what a module projects its queries to (reference_size > 0):
//   reference_points [1 or batch, queries, reference_levels, reference_size]  as locations: x, y, of boxes width, height
//   offsets          [batch, queries, heads, levels, points, 2]               in `projected`
//   logits           [batch, queries, heads, levels * points]                 in `projected`
//   weights = softmax of logits over the samples of a query and head
//   locations = (x, y) + offsets / (width, height) of the level               around points
//   locations = (x, y) + offsets * (width, height) of the box * 0.5 / points  around boxes
struct Problem {
  int64_t batch;
  int64_t tokens;
  int64_t queries;
  int64_t heads;
  int64_t channels;
  int32_t levels;
  int32_t points;
  Dtype dtype;
  Level level[kMaxLevels];

  // Of `value`, in elements: a model that projects the values of several layers at once hands over slices of them, and
  // copying a slice would cost a decoder layer as much as its attention. The rows [heads, channels] of a token are
  // always contiguous. On a GPU, and for everything but `value`, strides are those of a contiguous tensor.
  int64_t value_batch_stride;
  int64_t value_token_stride;

  int32_t reference_size;          // 2: points, 4: boxes, 0: locations and weights are given
  int32_t reference_levels;        // `levels`, or 1: the same for all
  int64_t reference_batch_stride;  // in elements; 0: the same for all images
  Dtype projected;                 // of offsets and logits: as locations, or 16 bits with float32 locations
};

}  // namespace focus_lab
