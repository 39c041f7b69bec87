// How a warp shares its work. A query (of one head of one image) has `lanes` lanes, each with one chunk of the
// channels; with few queries several such groups, its `split`, share the samples of a query. The set-up of a sample is
// the same for all channels: it is done once, by one lane, for a slab of samples at a time, and left in shared memory.
// Nothing here crosses a warp, so no warp waits for another.
#pragma once

#include "device.cuh"

namespace focus_lab {

template <typename A>
struct SampleInput {
  A x, y, attention;
};

// The samples that a lane sets up, and where it leaves them. Little is kept: what follows from it is computed where it
// is needed, once a slab, so that the registers are the inner loop's.
struct SlabCursor {
  int64_t first_sample;  // of the warp's first query
  int queries;           // that the warp has, at most a warp's width
  Deal deal;
  int lane;

  FOCUS_LAB_DEVICE int query(int round) const { return (lane + kWarp * round) >> slab_log2(deal); }
  FOCUS_LAB_DEVICE int sample(int slab, int round) const {
    const int length = 1 << slab_log2(deal);
    return slab * length + ((lane + kWarp * round) & (length - 1));
  }
  // The place of the set-up, in bytes from the warp's first.
  FOCUS_LAB_DEVICE int place(int round, int place_bytes) const {
    const int slot = (lane + kWarp * round) & ((1 << slab_log2(deal)) - 1);
    return query(round) * row_bytes(deal, place_bytes) + slot * place_bytes;
  }
  FOCUS_LAB_DEVICE bool exists(const Shape& shape, int slab, int round) const {
    return query(round) < queries && sample(slab, round) < shape.samples;
  }
  FOCUS_LAB_DEVICE int64_t number(const Shape& shape, int slab, int round) const {
    return first_sample + (query(round) * shape.heads * shape.samples + sample(slab, round));
  }

  template <typename A>
  FOCUS_LAB_DEVICE SampleInput<A> read(const Shape& shape, const A* locations, const A* weights, int slab,
                                       int round) const {
    SampleInput<A> input = {A(-2), A(-2), A(0)};  // far outside
    if (exists(shape, slab, round)) {
      const int64_t at = number(shape, slab, round);
      read_pair(locations + 2 * at, input.x, input.y);
      input.attention = __ldg(weights + at);
    }
    return input;
  }

  FOCUS_LAB_DEVICE Level level(const Shape& shape, int slab, int round) const {
    const int number = exists(shape, slab, round)
                           ? divide(sample(slab, round), shape.points, shape.reciprocal_of_points)
                           : 0;
    return shape.level[number];
  }
};

// Where a warp's work lies.
struct WarpPosition {
  int warp, lane;
  int64_t image;
  int head;
  int64_t first_query;

  // How many of the warp's queries there are.
  FOCUS_LAB_DEVICE int queries(const Shape& shape) const {
    const int64_t left = shape.queries - first_query;
    return left < kWarp ? static_cast<int>(left) : kWarp;
  }
  // The first sample of the first query.
  FOCUS_LAB_DEVICE int64_t sample(const Shape& shape) const {
    return ((image * shape.queries + first_query) * shape.heads + head) * shape.samples;
  }
  // The row of `output` of one of the warp's queries.
  FOCUS_LAB_DEVICE int64_t row(const Shape& shape, int query) const {
    return ((image * shape.queries + first_query + query) * shape.heads + head) * shape.channels;
  }
};

// Neighbouring queries read neighbouring pixels: they are the fastest axis, then heads, then images, so that what runs
// at the same time reads one image.
FOCUS_LAB_DEVICE WarpPosition warp_position(Deal deal, int64_t first_image) {
  WarpPosition position;
  position.warp = static_cast<int>(threadIdx.x) / kWarp;
  position.lane = static_cast<int>(threadIdx.x) % kWarp;
  const int64_t number = int64_t(blockIdx.x) * (blockDim.x / kWarp) + position.warp;
  position.first_query = number << queries_log2(deal);
  position.head = static_cast<int>(blockIdx.y);
  position.image = first_image + blockIdx.z;
  return position;
}

}  // namespace focus_lab
