// The forward kernel; see warp.cuh for how a warp shares its work.
#pragma once

#include "warp.cuh"

namespace focus_lab {

template <typename V>
struct ForwardArguments {
  using A = typename Arithmetic<V>::Type;
  Shape shape;
  const V* value;
  const A* locations;
  const A* weights;
  V* output;
  int64_t first_image;
  Deal deal;
};

// A sample's set-up in shared memory: what its four pixels weigh and where their rows are.
template <typename A>
struct ForwardPlace {
  A weight[4];
  int32_t quad[4];
};

// A sample that reads nothing still takes part in the loop of its warp: with weight zero, at a pixel that another
// sample of its query reads, so that zero times NaN can only reach a query which has read that NaN. A query of whose
// slab nothing is inside is marked by a row of -1, and left out.
template <typename A>
FOCUS_LAB_DEVICE void set_up_forward(const SlabCursor& cursor, const Shape& shape, int slab, int round,
                                     const SampleInput<A>& input, unsigned char* places) {
  const Level level = cursor.level(shape, slab, round);
  const Place<A> place = locate(input.x, input.y, level.height, level.width);
  A weight[4];
  corner_weights(place, input.attention, weight);
  int32_t quad[4];
  corner_tokens(place, level.start, level.width, quad);
  for (int corner = 0; corner < 4; ++corner) quad[corner] *= shape.token_quads;

  const int length = 1 << slab_log2(cursor.deal);
  const int first_lane = cursor.lane & ~(length - 1);
  const unsigned inside = (__ballot_sync(kAllLanes, place.inside) >> first_lane) & (kAllLanes >> (kWarp - length));
  const int source = inside != 0 ? first_lane + __ffs(static_cast<int>(inside)) - 1 : cursor.lane;
  const int32_t elsewhere = __shfl_sync(kAllLanes, quad[0], source);
  if (!place.inside) {
    const int32_t shared = inside != 0 ? elsewhere : -1;
    for (int corner = 0; corner < 4; ++corner) quad[corner] = shared;
  }
  ForwardPlace<A>& to = place_at<ForwardPlace<A>>(places, cursor.place(round, sizeof(ForwardPlace<A>)));
  write_four(to.weight, weight);
  write_four(to.quad, quad);
}

template <typename V, int kChunk, int kLanesLog2>
FOCUS_LAB_DEVICE void forward_warp(const ForwardArguments<V>& arguments, unsigned char* shared) {
  using A = typename Arithmetic<V>::Type;
  const Shape& shape = arguments.shape;
  Deal deal = arguments.deal;
  if (kLanesLog2 != kAnyLanes) deal.lanes_log2 = kLanesLog2;
  constexpr int kRounds = kLanesLog2 != kAnyLanes ? rounds(kLanesLog2) : rounds(0);
  const int rounds_used = rounds(deal.lanes_log2);

  const WarpPosition position = warp_position(deal, arguments.first_image);
  if (position.first_query >= shape.queries) return;  // the whole warp
  const SlabCursor cursor = {position.sample(shape), position.queries(shape), deal, position.lane};
  unsigned char* const places = shared + position.warp * warp_bytes(deal, sizeof(ForwardPlace<A>));

  // This lane's chunk, and its place in the query's row of set-ups.
  const int lanes = 1 << deal.lanes_log2, split = 1 << deal.split_log2;
  const int group = position.lane >> deal.lanes_log2;
  const int query = group >> deal.split_log2;
  const int chunks = shape.channels / kChunk;
  const int chunk = position.lane & (lanes - 1);
  const bool busy = kLanesLog2 != kAnyLanes || chunk < chunks;
  const int safe_chunk = busy ? chunk : chunks - 1;  // idle lanes read what another reads
  const V* const value = arguments.value + position.image * shape.tokens * (int64_t(shape.token_quads) * 4) +
                         position.head * shape.channels + safe_chunk * kChunk;
  unsigned char* const row = places + query * row_bytes(deal, sizeof(ForwardPlace<A>));

  A sum[kChunk];
#pragma unroll
  for (int i = 0; i < kChunk; ++i) sum[i] = A(0);

  // The next slab's inputs are read before this one's samples: their latency is hidden.
  const int slab_length = 1 << slab_log2(deal);
  SampleInput<A> input[kRounds];
#pragma unroll
  for (int round = 0; round < kRounds; ++round) {
    if (round < rounds_used) input[round] = cursor.read(shape, arguments.locations, arguments.weights, 0, round);
  }
  for (int slab = 0; slab * slab_length < shape.samples; ++slab) {
#pragma unroll
    for (int round = 0; round < kRounds; ++round) {
      if (round < rounds_used) set_up_forward(cursor, shape, slab, round, input[round], places);
    }
    __syncwarp();
#pragma unroll
    for (int round = 0; round < kRounds; ++round) {
      if (round < rounds_used) {
        input[round] = cursor.read(shape, arguments.locations, arguments.weights, slab + 1, round);
      }
    }

    // Each group takes a run of the slab's samples, a multiple of 4; what is beyond the last has weight 0.
    const int left = shape.samples - slab * slab_length;
    const int count = left < slab_length ? left : slab_length;
    const int run = (((count + split - 1) >> deal.split_log2) + 3) & ~3;
    const int first = (group & (split - 1)) * run;
    const ForwardPlace<A>* from = &place_at<ForwardPlace<A>>(row, first * sizeof(ForwardPlace<A>));
    if (from->quad[0] >= 0) {
      for (const ForwardPlace<A>* const end = from + run; from != end; from += 4) {
#pragma unroll
        for (int ahead = 0; ahead < 4; ++ahead) {
          A weight[4];
          int32_t quad[4];
          read_four(from[ahead].weight, weight);
          read_four(from[ahead].quad, quad);
          Chunk<V, kChunk> rows[4];
#pragma unroll
          for (int corner = 0; corner < 4; ++corner) rows[corner].read(at_quad(value, quad[corner]));
#pragma unroll
          for (int corner = 0; corner < 4; ++corner) {
            A x[kChunk];
            rows[corner].get(x);
#pragma unroll
            for (int i = 0; i < kChunk; ++i) sum[i] = std::fma(weight[corner], x[i], sum[i]);
          }
        }
      }
    }
    __syncwarp();  // before the next slab overwrites this one
  }

  for (int distance = lanes; distance < lanes * split; distance *= 2) {
#pragma unroll
    for (int i = 0; i < kChunk; ++i) sum[i] += __shfl_xor_sync(kAllLanes, sum[i], distance);
  }
  if (query < cursor.queries && (group & (split - 1)) == 0 && busy) {
    write_chunk(arguments.output + position.row(shape, query) + chunk * kChunk, sum);
  }
}

}  // namespace focus_lab
