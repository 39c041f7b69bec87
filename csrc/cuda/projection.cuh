// Locations and weights of samples from what a module projects its queries to (see Problem), and the gradients of that
// from theirs. A group of lanes takes the samples of a query and head, a row; rows follow each other in memory.
#pragma once

#include "device.cuh"

namespace focus_lab {

// A: of locations and weights. E: of offsets and logits.
template <typename A, typename E>
struct ProjectionArguments {
  Shape shape;
  const A* reference_points;
  const E* offsets;
  const E* logits;
  A* locations;  // made
  A* weights;
  const A* of_locations;
  const A* of_weights;
  E* of_offsets;
  E* of_logits;
  A* of_reference_points;
  // Of all images; 32 bits, since dividing by 64 is a function call on a device.
  uint32_t rows;
  uint32_t batch;
  int32_t lanes_log2;
  int32_t reference_size;
  int32_t reference_levels;
  bool shared;  // the reference points of one image are those of all
};

// --- Numbers of any type, one at a time ------------------------------------------------------------------------------

FOCUS_LAB_DEVICE float widened(float x) { return x; }
FOCUS_LAB_DEVICE double widened(double x) { return x; }
template <typename V>
FOCUS_LAB_DEVICE float widened(V x) {
  float wide, unused;
  unpack(x.bits, wide, unused, x);
  return wide;
}

FOCUS_LAB_DEVICE void write_number(float* to, float x) { *to = x; }
FOCUS_LAB_DEVICE void write_number(double* to, double x) { *to = x; }
template <typename V>
FOCUS_LAB_DEVICE void write_number(V* to, float x) {
  to->bits = static_cast<uint16_t>(pack(x, 0.0f, V()));
}

// --- Rows ------------------------------------------------------------------------------------------------------------

// Over the lanes of a row, in all of them; whole warps must call this.
template <typename A, typename Sum>
FOCUS_LAB_DEVICE A over_lanes(A x, int lanes, const Sum& sum) {
  for (int distance = 1; distance < lanes; distance *= 2) x = sum(x, __shfl_xor_sync(kAllLanes, x, distance));
  return x;
}

// Calls visit(row, first sample of the lane, whether the row is this group's own) for all rows of the thread: whole
// warps together, so that a group beyond the last row goes along with it.
template <typename A, typename E, typename Visit>
FOCUS_LAB_DEVICE void for_each_row(const ProjectionArguments<A, E>& arguments, const Visit& visit) {
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  const int group = lane >> arguments.lanes_log2;
  const uint32_t rows_of_warp = kWarp >> arguments.lanes_log2, warps = blockDim.x / kWarp;
  uint32_t first = (blockIdx.x * warps + threadIdx.x / kWarp) * rows_of_warp;
  for (; first < arguments.rows; first += gridDim.x * warps * rows_of_warp) {
    const uint32_t row = first + group;
    const bool own = row < arguments.rows;
    visit(own ? row : arguments.rows - 1, lane & ((1 << arguments.lanes_log2) - 1), own);
  }
}

// The reference points of a row's query.
template <typename A, typename E>
FOCUS_LAB_DEVICE const A* reference_of(const ProjectionArguments<A, E>& arguments, uint32_t row) {
  uint32_t query = row / static_cast<uint32_t>(arguments.shape.heads);  // of all images
  if (arguments.shared) query %= static_cast<uint32_t>(arguments.shape.queries);
  return arguments.reference_points + int64_t(query) * (arguments.reference_levels * arguments.reference_size);
}

// Where a sample's offset starts from, and what an offset of one is.
template <typename A>
struct Anchor {
  A x, y, step_x, step_y;
};

template <typename A, typename E>
FOCUS_LAB_DEVICE Anchor<A> anchor_of(const ProjectionArguments<A, E>& arguments, const A* reference, int sample) {
  const Shape& shape = arguments.shape;
  const int number = divide(sample, shape.points, shape.reciprocal_of_points);
  const A* const at = reference + (arguments.reference_levels == 1 ? 0 : number) * arguments.reference_size;
  if (arguments.reference_size == 2) {
    return {at[0], at[1], A(1) / A(shape.level[number].width), A(1) / A(shape.level[number].height)};
  }
  const A share = A(0.5) / A(shape.points);
  return {at[0], at[1], at[2] * share, at[3] * share};
}

template <typename A, typename E>
FOCUS_LAB_DEVICE void make_samples(const ProjectionArguments<A, E>& arguments) {
  const int lanes = 1 << arguments.lanes_log2, samples = arguments.shape.samples;
  for_each_row(arguments, [&](uint32_t row, int lane, bool own) {
    const int64_t at = int64_t(row) * samples;
    const A* const reference = reference_of(arguments, row);
    A largest = A(-INFINITY);
    for (int i = lane; i < samples; i += lanes) largest = std::fmax(largest, A(widened(arguments.logits[at + i])));
    largest = over_lanes(largest, lanes, [](A x, A y) { return std::fmax(x, y); });
    A sum = A(0);
    for (int i = lane; i < samples; i += lanes) sum += std::exp(widened(arguments.logits[at + i]) - largest);
    sum = over_lanes(sum, lanes, [](A x, A y) { return x + y; });
    if (!own) return;
    for (int i = lane; i < samples; i += lanes) {
      const Anchor<A> anchor = anchor_of(arguments, reference, i);
      const E* const offset = arguments.offsets + 2 * (at + i);
      arguments.weights[at + i] = std::exp(widened(arguments.logits[at + i]) - largest) / sum;
      write_pair(arguments.locations + 2 * (at + i), std::fma(widened(offset[0]), anchor.step_x, anchor.x),
                 std::fma(widened(offset[1]), anchor.step_y, anchor.y));
    }
  });
}

// Gradients of offsets and logits.
template <typename A, typename E>
FOCUS_LAB_DEVICE void finish_samples(const ProjectionArguments<A, E>& arguments) {
  const int lanes = 1 << arguments.lanes_log2, samples = arguments.shape.samples;
  for_each_row(arguments, [&](uint32_t row, int lane, bool own) {
    const int64_t at = int64_t(row) * samples;
    const A* const reference = reference_of(arguments, row);
    A common = A(0);
    for (int i = lane; i < samples; i += lanes) {
      common = std::fma(arguments.weights[at + i], arguments.of_weights[at + i], common);
    }
    common = over_lanes(common, lanes, [](A x, A y) { return x + y; });
    if (!own) return;
    for (int i = lane; i < samples; i += lanes) {
      const Anchor<A> anchor = anchor_of(arguments, reference, i);
      A x, y;
      read_pair(arguments.of_locations + 2 * (at + i), x, y);
      write_number(arguments.of_logits + at + i, arguments.weights[at + i] * (arguments.of_weights[at + i] - common));
      write_number(arguments.of_offsets + 2 * (at + i), x * anchor.step_x);
      write_number(arguments.of_offsets + 2 * (at + i) + 1, y * anchor.step_y);
    }
  });
}

// The gradient of each number of the reference points, summed in one order by one thread: it is seldom asked for, and
// then must not depend on who comes first.
template <typename A, typename E>
FOCUS_LAB_DEVICE void sum_references(const ProjectionArguments<A, E>& arguments) {
  const Shape& shape = arguments.shape;
  const uint32_t of_query = arguments.reference_levels * arguments.reference_size;
  const uint32_t images = arguments.shared ? arguments.batch : 1;
  const uint32_t heads = shape.heads, numbers = arguments.rows / heads / images * of_query;
  const int samples = arguments.reference_levels == 1 ? shape.samples : shape.points;
  for (uint32_t i = blockIdx.x * blockDim.x + threadIdx.x; i < numbers; i += gridDim.x * blockDim.x) {
    const uint32_t query = i / of_query;
    const int number = static_cast<int>(i - query * of_query);
    const int level = number / arguments.reference_size, what = number % arguments.reference_size;
    A sum = A(0);
    for (uint32_t image = 0; image < images; ++image) {
#pragma unroll 1
      for (uint32_t head = 0; head < heads; ++head) {
        const uint32_t row = (image * shape.queries + query) * heads + head;
        const int64_t first = int64_t(row) * shape.samples + level * shape.points;
#pragma unroll 1
        for (int sample = 0; sample < samples; ++sample) {
          const int64_t pair = 2 * (first + sample) + (what & 1);
          A gradient = arguments.of_locations[pair];
          if (what >= 2) gradient *= widened(arguments.offsets[pair]) * (A(0.5) / A(shape.points));
          sum += gradient;
        }
      }
    }
    arguments.of_reference_points[i] = sum;
  }
}

}  // namespace focus_lab
