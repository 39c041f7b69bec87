// The backward kernels.
//
// backward_warp   the gradients of locations and weights, and (variant "direct") one vector addition to grad_value for
//                 each corner of each sample; in deterministic mode additions of 64-bit integers.
// scatter_block   (variant "sorted") grad_value alone: the contributions of a block of queries are sorted by pixel, so
//                 that memory sees one vector addition for each pixel that they touch, not one for each contribution.
#pragma once

#include "warp.cuh"

namespace focus_lab {

// --- Gradients of locations and weights ------------------------------------------------------------------------------

enum class Scatter : int { kNone, kAdd, kFixed };

// In deterministic mode: the largest magnitudes, as the bits of numbers that are not negative, which order as they do.
struct Largest {
  unsigned long long gradient;
  unsigned long long weight;
};

template <typename V>
struct BackwardArguments {
  using A = typename Arithmetic<V>::Type;
  Shape shape;
  const V* grad_output;
  const V* value;
  const A* locations;
  const A* weights;
  A* grad_locations;
  A* grad_weights;
  void* accumulator;  // of grad_value: A, or 64-bit integers with Scatter::kFixed
  const Largest* largest;
  int64_t first_image;
  Deal deal;
  int32_t samples_log2;
  Scatter scatter;
};

// A sample's set-up in shared memory, and the products of the output's gradient with its four rows.
template <typename A>
struct BackwardPlace {
  A weight[4];
  int32_t quad[4];
  A product[4];
};

// Unlike forward, a sample that reads nothing may read anything: no product of it is used and nothing is added for it.
template <typename A>
FOCUS_LAB_DEVICE void set_up_backward(const SlabCursor& cursor, const Shape& shape, int slab, int round,
                                      const SampleInput<A>& input, unsigned char* places) {
  const Level level = cursor.level(shape, slab, round);
  const Place<A> place = locate(input.x, input.y, level.height, level.width);
  A weight[4];
  corner_weights(place, input.attention, weight);
  int32_t quad[4];
  corner_tokens(place, level.start, level.width, quad);
  for (int corner = 0; corner < 4; ++corner) quad[corner] = place.inside ? quad[corner] * shape.token_quads : 0;
  BackwardPlace<A>& to = place_at<BackwardPlace<A>>(places, cursor.place(round, sizeof(BackwardPlace<A>)));
  write_four(to.weight, weight);
  write_four(to.quad, quad);
}

template <typename V>
FOCUS_LAB_DEVICE void finish_sample(const SlabCursor& cursor, const BackwardArguments<V>& arguments, int slab,
                                    int round, unsigned char* places) {
  using A = typename Arithmetic<V>::Type;
  const Shape& shape = arguments.shape;
  if (!cursor.exists(shape, slab, round)) return;
  const SampleInput<A> input = cursor.read(shape, arguments.locations, arguments.weights, slab, round);
  const Level level = cursor.level(shape, slab, round);
  const Place<A> place = locate(input.x, input.y, level.height, level.width);
  A product[4];
  read_four(place_at<BackwardPlace<A>>(places, cursor.place(round, sizeof(BackwardPlace<A>))).product, product);
  const SampleGradients<A> gradients = sample_gradients(place, level.height, level.width, input.attention, product);
  const int64_t at = cursor.number(shape, slab, round);
  write_pair(arguments.grad_locations + 2 * at, gradients.x, gradients.y);
  arguments.grad_weights[at] = gradients.attention;
}

// Sums each of four numbers over the lanes of a query. Lanes halve the numbers while they exchange them: 4 shuffles for
// 8 lanes, where summing each number in all lanes takes 12.
template <int kLanesLog2>
struct LaneSum {
  int lanes;
  bool second, odd;  // which half of the numbers this lane keeps, and which of that half
  int place;         // of the first held one; negative where another lane holds the same

  FOCUS_LAB_DEVICE LaneSum(int lane, int lanes_of_query) : lanes(lanes_of_query) {
    second = (lane & 1) != 0;
    odd = (lane & 2) != 0;
    if (kLanesLog2 == kAnyLanes) {
      place = lane == 0 ? 0 : -1;
    } else if (kLanesLog2 == 1) {
      place = 2 * (lane & 1);
    } else {
      place = lane < 4 ? 2 * (lane & 1) + (lane >> 1) : -1;
    }
    place = forgotten(place);
  }

  // Whole warps must call this.
  template <typename A>
  FOCUS_LAB_DEVICE void store(A (&x)[4], A* to) const {
    if constexpr (kLanesLog2 == kAnyLanes) {
      for (int distance = 1; distance < lanes; distance *= 2) {
#pragma unroll
        for (int i = 0; i < 4; ++i) x[i] += __shfl_xor_sync(kAllLanes, x[i], distance);
      }
      if (place >= 0) write_four(to, x);
    } else {
      A kept = second ? x[2] : x[0], other = second ? x[3] : x[1];
      kept += __shfl_xor_sync(kAllLanes, second ? x[0] : x[2], 1);
      other += __shfl_xor_sync(kAllLanes, second ? x[1] : x[3], 1);
      if constexpr (kLanesLog2 == 1) {
        to[place] = kept;
        to[place + 1] = other;
      } else {
        const A sent = odd ? kept : other;
        kept = odd ? other : kept;
        kept += __shfl_xor_sync(kAllLanes, sent, 2);
#pragma unroll
        for (int distance = 4; distance < (1 << kLanesLog2); distance *= 2) {
          kept += __shfl_xor_sync(kAllLanes, kept, distance);
        }
        if (place >= 0) to[place] = kept;
      }
    }
  }
};

template <typename A, int kChunk>
FOCUS_LAB_DEVICE void add_row(A* to, A weight, const A (&gradient)[kChunk]) {
#pragma unroll
  for (int i = 0; i < kChunk; i += 4) {
    add_four(to + i, weight * gradient[i], weight * gradient[i + 1], weight * gradient[i + 2],
             weight * gradient[i + 3]);
  }
}

// Adds to the four rows of a sample those contributions that are not zero.
template <typename A, int kChunk>
FOCUS_LAB_DEVICE void add_rows(A* image, const int32_t (&quad)[4], const A (&weight)[4], const A (&gradient)[kChunk]) {
  // Opposite corners have weight: so have all four, unless too little to matter. One branch instead of four.
  if (weight[0] * weight[3] != A(0)) {
#pragma unroll
    for (int corner = 0; corner < 4; ++corner) add_row(at_quad(image, quad[corner]), weight[corner], gradient);
  } else {
#pragma unroll
    for (int corner = 0; corner < 4; ++corner) {
      if (weight[corner] != A(0)) add_row(at_quad(image, quad[corner]), weight[corner], gradient);
    }
  }
}

template <typename A, int kChunk>
FOCUS_LAB_DEVICE void add_fixed_rows(unsigned long long* image, const int32_t (&quad)[4], const A (&weight)[4],
                                     const A (&gradient)[kChunk], const FixedPoint<A>& format) {
#pragma unroll
  for (int corner = 0; corner < 4; ++corner) {
    if (weight[corner] == A(0)) continue;
#pragma unroll
    for (int i = 0; i < kChunk; ++i) {
      add_fixed(at_quad(image, quad[corner]) + i, weight[corner] * gradient[i], format);
    }
  }
}

FOCUS_LAB_DEVICE float number_from_bits(unsigned long long bits, float) {
  return __uint_as_float(static_cast<unsigned>(bits));
}
FOCUS_LAB_DEVICE double number_from_bits(unsigned long long bits, double) {
  return __longlong_as_double(static_cast<long long>(bits));
}

// kLanesLog2 == 0 has no exchange to halve numbers in: such rows take the general kernel.
template <typename V, int kChunk, int kLanesLog2>
FOCUS_LAB_DEVICE void backward_warp(const BackwardArguments<V>& arguments, unsigned char* shared) {
  using A = typename Arithmetic<V>::Type;
  static_assert(kLanesLog2 != 0, "one lane has nobody to exchange with");
  const Shape& shape = arguments.shape;
  Deal deal = arguments.deal;
  if (kLanesLog2 != kAnyLanes) deal.lanes_log2 = kLanesLog2;
  constexpr int kRounds = kLanesLog2 != kAnyLanes ? rounds(kLanesLog2) : rounds(0);
  const int rounds_used = rounds(deal.lanes_log2);

  const WarpPosition position = warp_position(deal, arguments.first_image);
  if (position.first_query >= shape.queries) return;  // the whole warp
  const SlabCursor cursor = {position.sample(shape), position.queries(shape), deal, position.lane};
  unsigned char* const places = shared + position.warp * warp_bytes(deal, sizeof(BackwardPlace<A>));

  const int lanes = 1 << deal.lanes_log2, split = 1 << deal.split_log2;
  const int group = position.lane >> deal.lanes_log2;
  const int query = group >> deal.split_log2;
  const int chunk = position.lane & (lanes - 1);
  const bool busy = kLanesLog2 != kAnyLanes || chunk < shape.channels / kChunk;
  const int64_t channel = position.image * shape.tokens * (int64_t(shape.token_quads) * 4) +
                          position.head * shape.channels + (busy ? chunk : 0) * kChunk;
  const V* const value = arguments.value + channel;
  A* const sums = static_cast<A*>(arguments.accumulator) + channel;
  unsigned long long* const fixed_sums = static_cast<unsigned long long*>(arguments.accumulator) + channel;
  unsigned char* const row = places + query * row_bytes(deal, sizeof(BackwardPlace<A>));

  // Deterministic mode lives in the general kernel alone.
  Scatter scatter = arguments.scatter;
  FixedPoint<A> format = {};
  if (kLanesLog2 == kAnyLanes && scatter == Scatter::kFixed) {
    format = fixed_point(number_from_bits(arguments.largest->gradient, A()),
                         number_from_bits(arguments.largest->weight, A()), arguments.samples_log2);
    if (!format.finite) scatter = Scatter::kNone;
  }

  A gradient[kChunk];
#pragma unroll
  for (int i = 0; i < kChunk; ++i) gradient[i] = A(0);
  if (busy && query < cursor.queries) {
    Chunk<V, kChunk> read;
    read.read(arguments.grad_output + position.row(shape, query) + chunk * kChunk);
    read.get(gradient);
  }

  const LaneSum<kLanesLog2> lane_sum(chunk, lanes);
  const int slab_length = 1 << slab_log2(deal);
  for (int slab = 0; slab * slab_length < shape.samples; ++slab) {
    {
      SampleInput<A> input[kRounds];
#pragma unroll
      for (int round = 0; round < kRounds; ++round) {
        if (round < rounds_used) {
          input[round] = cursor.read(shape, arguments.locations, arguments.weights, slab, round);
        }
      }
#pragma unroll
      for (int round = 0; round < kRounds; ++round) {
        if (round < rounds_used) set_up_backward(cursor, shape, slab, round, input[round], places);
      }
    }
    __syncwarp();

    // Each group takes a run of the slab's samples; whatever is beyond the last adds nothing.
    const int left = shape.samples - slab * slab_length;
    const int count = left < slab_length ? left : slab_length;
    const int run = (count + split - 1) >> deal.split_log2;
    BackwardPlace<A>* at = &place_at<BackwardPlace<A>>(row, (group & (split - 1)) * run * sizeof(BackwardPlace<A>));
#pragma unroll 1
    for (BackwardPlace<A>* const end = at + run; at != end; ++at) {
      A weight[4];
      int32_t quad[4];
      read_four(at->weight, weight);
      read_four(at->quad, quad);
      Chunk<V, kChunk> rows[4];
#pragma unroll
      for (int corner = 0; corner < 4; ++corner) rows[corner].read(at_quad(value, quad[corner]));
      if (scatter == Scatter::kAdd && busy) add_rows(sums, quad, weight, gradient);
      if (kLanesLog2 == kAnyLanes && scatter == Scatter::kFixed && busy) {
        add_fixed_rows(fixed_sums, quad, weight, gradient, format);
      }
      A product[4];
#pragma unroll
      for (int corner = 0; corner < 4; ++corner) {
        A x[kChunk];
        rows[corner].get(x);
        product[corner] = gradient[0] * x[0];
#pragma unroll
        for (int i = 1; i < kChunk; ++i) product[corner] = std::fma(gradient[i], x[i], product[corner]);
        if (!busy) product[corner] = A(0);  // nothing times NaN would be NaN
      }
      lane_sum.store(product, at->product);
    }
    __syncwarp();
    // The inputs are read again, from a cache: registers are scarcer.
    SlabCursor again = cursor;
    again.lane = forgotten(cursor.lane);
#pragma unroll
    for (int round = 0; round < kRounds; ++round) {
      if (round < rounds_used) finish_sample(again, arguments, slab, round, places);
    }
    // No barrier: the next set-up of a place is done by the lane that has just read its products.
  }
}

// --- grad_value, sorted ----------------------------------------------------------------------------------------------

struct ScatterArguments {
  Shape shape;
  const void* grad_output;  // in `dtype`
  const float* locations;
  const float* weights;
  float* sums;
  int64_t first_image;
  int32_t queries_log2;     // of a block
  int32_t pass_log2;        // points of a level in a pass
  Dtype dtype;
};

template <typename V>
FOCUS_LAB_DEVICE void load_gradients(const V* grad_output, const Shape& shape, int quads, int rows, float* tile) {
  for (int i = static_cast<int>(threadIdx.x); i < rows * quads; i += kScatterThreads) {
    const int row = i / quads, quad = i - row * quads;
    Chunk<V, 4> chunk;
    chunk.read(grad_output + int64_t(row) * shape.token_quads * 4 + 4 * quad);
    float x[4];
    chunk.get(x);
    write_four(tile + 4 * i, x);
  }
}

// Counts the sample's contributions; the ranks that they get in their buckets, two in a word.
FOCUS_LAB_DEVICE void count_contributions(const SampleInput<float>& input, const Level& level, uint32_t* counters,
                                          uint32_t (&ranks)[2]) {
  const Place<float> place = locate(input.x, input.y, level.height, level.width);
  float weight[4];
  corner_weights(place, input.attention, weight);
  uint32_t rank[4] = {0, 0, 0, 0};
#pragma unroll
  for (int corner = 0; corner < 4; ++corner) {
    if (weight[corner] != 0.0f) {
      const uint32_t bucket = bucket_of(place.top + (corner >> 1), place.left + (corner & 1), level.width);
      rank[corner] = counter_in(atomicAdd(counters + (bucket >> 1), 1u << counter_shift(bucket)), bucket);
    }
  }
  ranks[0] = rank[0] | (rank[1] << 16);
  ranks[1] = rank[2] | (rank[3] << 16);
}

// Puts the sample's contributions in their places.
FOCUS_LAB_DEVICE void file_contributions(const SampleInput<float>& input, int query, const Level& level,
                                         const uint32_t* positions, const uint32_t (&ranks)[2],
                                         Contribution* contributions) {
  const Place<float> place = locate(input.x, input.y, level.height, level.width);
  float weight[4];
  corner_weights(place, input.attention, weight);
#pragma unroll
  for (int corner = 0; corner < 4; ++corner) {
    if (weight[corner] != 0.0f) {
      const int row = place.top + (corner >> 1), column = place.left + (corner & 1);
      const uint32_t bucket = bucket_of(row, column, level.width);
      const uint32_t rank = (ranks[corner >> 1] >> (16 * (corner & 1))) & 0xffffu;
      const uint32_t at = counter_in(positions[bucket >> 1], bucket) + rank;
      contributions[at] = {contribution_key(level.start + row * level.width + column, query), weight[corner]};
    }
  }
}

// Turns the buckets' counts into the positions of their first contributions; returns how many there are in all. The
// whole block must call this.
FOCUS_LAB_DEVICE int counts_to_positions_of_block(uint32_t* counters, uint32_t* warp_sums) {
  constexpr int kWords = kCounterWords / kScatterThreads;
  static_assert(kWords % 4 == 0, "a thread's words are read as vectors");
  const int thread = static_cast<int>(threadIdx.x), lane = thread % kWarp, warp = thread / kWarp;
  uint32_t* const mine = counters + thread * kWords;
  uint32_t words[kWords];
  read_words(mine, words);
  uint32_t count = 0;
#pragma unroll
  for (int i = 0; i < kWords; ++i) count += counters_of(words[i]);
  uint32_t up_to = count;  // this lane's and those before
#pragma unroll
  for (int distance = 1; distance < kWarp; distance *= 2) {
    const uint32_t before = __shfl_up_sync(kAllLanes, up_to, distance);
    if (lane >= distance) up_to += before;
  }
  if (lane == kWarp - 1) warp_sums[warp] = up_to;
  __syncthreads();
  uint32_t position = up_to - count, total = 0;
#pragma unroll
  for (int other = 0; other < kScatterWarps; ++other) {
    const uint32_t sum = warp_sums[other];
    if (other < warp) position += sum;
    total += sum;
  }
#pragma unroll
  for (int i = 0; i < kWords; ++i) words[i] = counts_to_positions(words[i], position);
  write_words(mine, words);
  __syncthreads();
  return static_cast<int>(total);
}

// Sums the sorted contributions. Each group of lanes takes an equal share, whatever pixels are in it, and adds to
// memory whenever the pixel changes: no pixel with many contributions keeps the block waiting, and one that two groups
// share is added to twice.
template <int kChannels>
FOCUS_LAB_DEVICE void sum_contributions(const Contribution* contributions, int total, const float* tile, int channels,
                                        int token_quads, float* sums) {
  // Half a row's quads have a lane, which takes two quads.
  const int quads = kChannels != 0 ? kChannels / 4 : channels / 4;
  int width_log2 = 0;
  while ((2 << width_log2) < quads) ++width_log2;
  const int thread = static_cast<int>(threadIdx.x);
  const int group = thread >> width_log2, groups = kScatterThreads >> width_log2;
  const int lane = thread & ((1 << width_log2) - 1);
  // Neighbouring groups read the halves of their rows in opposite order: the same banks otherwise.
  const int first = lane + ((group & 1) << width_log2), second = lane + (((group & 1) ^ 1) << width_log2);
  const bool has_first = kChannels != 0 || first < quads, has_second = kChannels != 0 || second < quads;
  const float* const first_column = tile + (has_first ? 4 * first : 0);
  const float* const second_column = tile + (has_second ? 4 * second : 0);
  float* const first_sums = sums + 4 * first;
  float* const second_sums = sums + 4 * second;

  // An odd share keeps the groups of a warp in different banks.
  const int share = ((total + groups - 1) / groups) | 1;
  const Contribution* from = contributions + group * share;
  const int left = total - group * share;
  const Contribution* const end = from + (left < share ? left : share);
  if (left <= 0) return;

  float sum[8] = {0, 0, 0, 0, 0, 0, 0, 0};
  Contribution current = *from;
  while (from < end) {
    const int row = static_cast<int>(current.key & 255u) * (kChannels != 0 ? kChannels : channels);
    float x[4], y[4];
    read_four(first_column + row, x);
    read_four(second_column + row, y);
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      sum[i] = std::fma(current.weight, x[i], sum[i]);
      sum[4 + i] = std::fma(current.weight, y[i], sum[4 + i]);
    }
    ++from;
    Contribution next = {kNoContribution, 0.0f};
    if (from < end) next = *from;
    if (((next.key ^ current.key) >> 8) != 0) {
      const int quad = static_cast<int>(current.key >> 8) * token_quads;
      if (has_first) add_four(at_quad(first_sums, quad), sum[0], sum[1], sum[2], sum[3]);
      if (has_second) add_four(at_quad(second_sums, quad), sum[4], sum[5], sum[6], sum[7]);
#pragma unroll
      for (int i = 0; i < 8; ++i) sum[i] = 0.0f;
    }
    current = next;
  }
}

// kChannels: 0 for a number that is only known at run time.
template <int kChannels>
FOCUS_LAB_DEVICE void scatter_block(const ScatterArguments& arguments, unsigned char* shared) {
  const Shape& shape = arguments.shape;
  const int thread = static_cast<int>(threadIdx.x);
  const int channels = kChannels != 0 ? kChannels : shape.channels;
  const int64_t image = arguments.first_image + blockIdx.z;
  const int head = static_cast<int>(blockIdx.y);
  const int64_t first_query = int64_t(blockIdx.x) << arguments.queries_log2;
  const int64_t left = shape.queries - first_query;
  const int block_queries = 1 << arguments.queries_log2;
  const int queries = left < block_queries ? static_cast<int>(left) : block_queries;
  const int64_t first_row = (image * shape.queries + first_query) * shape.heads + head;
  float* const sums =
      arguments.sums + image * shape.tokens * (int64_t(shape.token_quads) * 4) + head * channels;

  float* const tile = reinterpret_cast<float*>(shared);
  Contribution* const contributions = reinterpret_cast<Contribution*>(tile + (channels << arguments.queries_log2));
  uint32_t* const counters = reinterpret_cast<uint32_t*>(
      contributions + scatter_contributions(arguments.queries_log2, arguments.pass_log2));
  uint32_t* const warp_sums = counters + kCounterWords;

  switch (arguments.dtype) {
    case Dtype::kBFloat16:
      load_gradients(static_cast<const BFloat16*>(arguments.grad_output) + first_row * channels, shape, channels / 4,
                     queries, tile);
      break;
    case Dtype::kFloat16:
      load_gradients(static_cast<const Float16*>(arguments.grad_output) + first_row * channels, shape, channels / 4,
                     queries, tile);
      break;
    default:
      load_gradients(static_cast<const float*>(arguments.grad_output) + first_row * channels, shape, channels / 4,
                     queries, tile);
  }
  for (int i = thread; i < kCounterWords; i += kScatterThreads) counters[i] = 0;
  __syncthreads();

  const int pass_points = 1 << arguments.pass_log2;
  const int slots = block_queries << arguments.pass_log2;
  for (int number = 0; number < shape.levels; ++number) {
    const Level level = shape.level[number];
    for (int first_point = 0; first_point < shape.points; first_point += pass_points) {
      SampleInput<float> input[kScatterRounds];
      uint32_t ranks[kScatterRounds][2];
#pragma unroll
      for (int round = 0; round < kScatterRounds; ++round) {
        const int slot = thread + kScatterThreads * round;
        const int query = slot >> arguments.pass_log2, point = first_point + (slot & (pass_points - 1));
        input[round] = {-2.0f, -2.0f, 0.0f};  // far outside
        if (slot < slots && query < queries && point < shape.points) {
          const int64_t at =
              (first_row + query * shape.heads) * shape.samples + number * shape.points + point;
          read_pair(arguments.locations + 2 * at, input[round].x, input[round].y);
          input[round].attention = __ldg(arguments.weights + at);
        }
      }
#pragma unroll
      for (int round = 0; round < kScatterRounds; ++round) {
        count_contributions(input[round], level, counters, ranks[round]);
      }
      __syncthreads();
      const int total = counts_to_positions_of_block(counters, warp_sums);
#pragma unroll
      for (int round = 0; round < kScatterRounds; ++round) {
        const int query = (thread + kScatterThreads * round) >> arguments.pass_log2;
        input[round].x = forgotten(input[round].x);
        input[round].y = forgotten(input[round].y);
        file_contributions(input[round], query, level, counters, ranks[round], contributions);
      }
      __syncthreads();
      sum_contributions<kChannels>(contributions, total, tile, channels, shape.token_quads, sums);
      for (int i = thread; i < kCounterWords; i += kScatterThreads) counters[i] = 0;
      __syncthreads();
    }
  }
}

// --- Whole arrays ----------------------------------------------------------------------------------------------------

FOCUS_LAB_DEVICE int64_t first_of_grid() { return int64_t(blockIdx.x) * blockDim.x + threadIdx.x; }
FOCUS_LAB_DEVICE int64_t step_of_grid() { return int64_t(gridDim.x) * blockDim.x; }

template <typename V>
FOCUS_LAB_DEVICE void cast_quads(const float* sums, V* to, int64_t quads) {
  for (int64_t quad = first_of_grid(); quad < quads; quad += step_of_grid()) {
    float x[4];
    read_four(sums + 4 * quad, x);
    write_chunk(to + 4 * quad, x);
  }
}

FOCUS_LAB_DEVICE unsigned long long magnitude_bits(float x) {
  return __float_as_uint(x) & 0x7fffffffu;
}
FOCUS_LAB_DEVICE unsigned long long magnitude_bits(double x) {
  return static_cast<unsigned long long>(__double_as_longlong(x)) & 0x7fffffffffffffffull;
}
FOCUS_LAB_DEVICE unsigned long long magnitude_bits(BFloat16 x) { return (x.bits & 0x7fffull) << 16; }
FOCUS_LAB_DEVICE unsigned long long magnitude_bits(Float16 x) {
  float wide, unused;
  unpack(x.bits, wide, unused, x);
  return magnitude_bits(wide);
}

// The bits of a NaN order above those of infinity: neither gets lost.
template <typename V>
FOCUS_LAB_DEVICE void find_largest(const V* numbers, int64_t count, unsigned long long* largest) {
  unsigned long long most = 0;
  for (int64_t i = first_of_grid(); i < count; i += step_of_grid()) {
    const unsigned long long bits = magnitude_bits(numbers[i]);
    if (bits > most) most = bits;
  }
  for (int distance = kWarp / 2; distance > 0; distance /= 2) {
    const unsigned long long other = __shfl_xor_sync(kAllLanes, most, distance);
    if (other > most) most = other;
  }
  if (threadIdx.x % kWarp == 0) atomicMax(largest, most);
}

template <typename V>
FOCUS_LAB_DEVICE void fixed_quads(const unsigned long long* sums, const Largest& largest, int32_t samples_log2, V* to,
                                  int64_t quads) {
  using A = typename Arithmetic<V>::Type;
  const FixedPoint<A> format =
      fixed_point(number_from_bits(largest.gradient, A()), number_from_bits(largest.weight, A()), samples_log2);
  for (int64_t quad = first_of_grid(); quad < quads; quad += step_of_grid()) {
    A x[4];
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const double sum = static_cast<double>(static_cast<long long>(sums[4 * quad + i]));
      x[i] = format.finite ? static_cast<A>(std::ldexp(sum, -format.exponent)) : A(NAN);
    }
    write_chunk(to + 4 * quad, x);
  }
}

}  // namespace focus_lab
