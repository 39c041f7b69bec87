// The CPU kernels' source, included by each instruction set's unit.
#include "projection.inl"

extern "C" {
void* memcpy(void*, const void*, size_t);
}

namespace focus_lab {
namespace {

// A number known to the compiler, as an argument.
template <int kNumber>
struct Constant {
  static constexpr int value = kNumber;
};

// Calls visit(Constant<width>, first channel) for blocks that make up the channels of a head. kChannels = 0: any
// number, in blocks of few sizes; otherwise it is one block.
template <int kChannels, typename Visitor>
FOCUS_LAB_INLINE void for_each_block(int64_t channels, const Visitor& visit) {
  if constexpr (kChannels != 0) {
    visit(Constant<kChannels>(), int64_t(0));
  } else {
    int64_t first = 0;
    for (; channels - first >= 64; first += 64) visit(Constant<64>(), first);
    for (; channels - first >= 32; first += 32) visit(Constant<32>(), first);
    for (; channels - first >= 16; first += 16) visit(Constant<16>(), first);
    for (; channels - first >= 8; first += 8) visit(Constant<8>(), first);
    for (; channels - first >= 4; first += 4) visit(Constant<4>(), first);
    for (; channels - first >= 1; first += 1) visit(Constant<1>(), first);
  }
}

// Queries between asking for locations and weights and reading them: one head's are so far apart that the processor
// does not foresee them.
constexpr int64_t kQueriesAhead = 8;

// Asks for the rows of value or its gradient at all corners of samples.
template <typename E>
FOCUS_LAB_INLINE void prefetch_rows(const E* rows, int32_t* const* offset, int count, int64_t channels) {
  for (int i = 0; i < count; ++i) {
    for (int k = 0; k < 4; ++k) prefetch(rows + offset[k][i], channels * int64_t(sizeof(E)));
  }
}

// Rows of one head lie a power of two apart, as a rule, and so share a few lines of each cache. Where a row is read
// often enough, in `reads` of all of them, the head's rows are copied together first.
FOCUS_LAB_INLINE bool worth_packing(const Problem& problem, int64_t reads, int64_t rows) {
  constexpr int64_t kReadsOfARow = 8;
  return problem.value_token_stride != problem.channels && reads >= kReadsOfARow * rows;
}

// The level from which on all are worth it, with so many queries of a head in a row.
FOCUS_LAB_INLINE int first_worth_packing(const Problem& problem, int64_t queries) {
  int level = problem.levels;
  for (; level > 0; --level) {
    const Level& next = problem.level[level - 1];
    if (!worth_packing(problem, queries * 4 * problem.points, int64_t(next.height) * next.width)) break;
  }
  return level;
}

// Copies rows of `channels` numbers, `from_step` and `to_step` numbers apart.
template <int kChannels, typename T>
FOCUS_LAB_INLINE void copy_rows(const T* from, int64_t from_step, T* to, int64_t to_step, int64_t rows,
                                int64_t channels) {
  constexpr int64_t kRowsAhead = 16;
  for (int64_t row = 0; row < rows; ++row, from += from_step, to += to_step) {
    prefetch(from + kRowsAhead * from_step, channels * int64_t(sizeof(T)));
    if constexpr (kChannels != 0) {
      __builtin_memcpy(to, from, kChannels * sizeof(T));
    } else {
      memcpy(to, from, size_t(channels) * sizeof(T));
    }
  }
}

// --- Forward ---------------------------------------------------------------------------------------------------------

// output = sum over samples and corners of weight * row; rows of the first samples lie in `value`, others in `packed`.
template <typename T, int kChannels>
FOCUS_LAB_INLINE void gather(const T* value, const T* packed, const Samples<Arithmetic<T>>& samples, T* output) {
  using R = Row<T, kChannels>;
  using V = typename R::V;
  // Independent sums hide the latency of their additions; half the registers are left for rows and weights.
  constexpr int kFit = FOCUS_LAB_VECTOR_REGISTERS / 2 / R::kVectors;
  constexpr int kSums = kFit >= 4 ? 4 : (kFit >= 2 ? 2 : 1);
  V sum[kSums][R::kVectors] = {};
  const auto add = [&](const T* rows, int first, int last) __attribute__((always_inline)) {
    for (int i = first; i < last; ++i) {
#pragma GCC unroll 4
      for (int k = 0; k < 4; ++k) {
        V row[R::kVectors];
        load_row<kChannels>(rows + samples.offset[k][i], row);
        for (int j = 0; j < R::kVectors; ++j) sum[k % kSums][j] += samples.weight[k][i] * row[j];
      }
    }
  };
  add(value, 0, samples.direct);
  add(packed, samples.direct, samples.count);
  for (int half = kSums / 2; half >= 1; half /= 2) {
    for (int k = 0; k < half; ++k) {
      for (int j = 0; j < R::kVectors; ++j) sum[k][j] += sum[k + half][j];
    }
  }
  store_row<kChannels>(output, sum[0]);
}

template <typename T, int kChannels>
bool forward_range(const Problem& problem, const Inputs& inputs, T* output, int64_t begin, int64_t end) {
  using A = Arithmetic<T>;
  const T* const value = static_cast<const T*>(inputs.value);
  const int all = problem.levels * problem.points;
  const int padded = Pyramid<A>::pad(all);
  const int64_t channels = kChannels != 0 ? kChannels : problem.channels;
  const int64_t pairs = (end - 1) / problem.queries - begin / problem.queries + 1;
  const int pack_from = first_worth_packing(problem, (end - begin) / pairs);
  const int64_t direct = pack_from < problem.levels ? problem.level[pack_from].start : problem.tokens;  // tokens
  const size_t copied = size_t((problem.tokens - direct) * channels);
  Scratch scratch(Pyramid<A>::bytes(all) + 2 * Samples<A>::template bytes<false>(padded) + Scratch::bytes<T>(copied) +
                  Projection<A>::bytes(all) + Made<A>::bytes(padded));
  if (scratch.empty()) return false;
  T* packed = scratch.take<T>(copied);
  Pyramid<A> pyramid;
  pyramid.prepare(scratch, problem, problem.levels, {0, pack_from, problem.value_token_stride, channels});
  // One for the query at hand, one for the next, whose rows are on their way from memory meanwhile.
  Samples<A> both[2];
  both[0].template prepare<false>(scratch, padded);
  both[1].template prepare<false>(scratch, padded);
  Projection<A> projection;
  projection.prepare(scratch, problem, inputs);
  Made<A> room;
  room.prepare(scratch, padded);

  for (int64_t item = begin; item < end;) {
    const int64_t pair = item / problem.queries;  // image and head
    const int64_t image = pair / problem.heads, head = pair % problem.heads;
    const int64_t first = item - pair * problem.queries;
    const int64_t left = end - pair * problem.queries;
    const int64_t last = left < problem.queries ? left : problem.queries;  // queries [first, last) of this head
    const T* rows = value + image * problem.value_batch_stride + head * channels;
    copy_rows<kChannels>(rows + direct * problem.value_token_stride, problem.value_token_stride, packed, channels,
                         problem.tokens - direct, channels);
    const int64_t before = image * problem.queries * problem.heads + head;

    const auto start = [&](int64_t query, Samples<A>& samples) __attribute__((always_inline)) {
      const int64_t at = (before + query * problem.heads) * all;
      projection.ask_for(at + kQueriesAhead * problem.heads * all, all);
      const Made<A> from = projection.read(image, query, at, room);
      set_up<false>(pyramid, from.locations, from.weights, samples);
      prefetch_rows(rows, samples.offset, samples.direct, channels);  // what was copied is near already
    };
    start(first, both[0]);
    for (int64_t query = first; query < last; ++query) {
      const Samples<A>& samples = both[(query - first) & 1];
      if (query + 1 < last) start(query + 1, both[(query - first + 1) & 1]);
      T* to = output + (before + query * problem.heads) * channels;
      for_each_block<kChannels>(channels, [&](auto width, int64_t channel) __attribute__((always_inline)) {
        gather<T, decltype(width)::value>(rows + channel, packed + channel, samples, to + channel);
      });
    }
    item += last - first;
  }
  return true;
}

// --- Backward --------------------------------------------------------------------------------------------------------

// For each sample and corner: adds weight * row of grad_output to a row of grad_value, and puts the product of the rows
// of grad_output and value into dots [sample, corner].
template <typename T, int kChannels>
FOCUS_LAB_INLINE void scatter(const T* value, Arithmetic<T>* grad_value, const T* grad_output,
                              const Samples<Arithmetic<T>>& samples, Arithmetic<T>* dots, bool add) {
  using R = Row<T, kChannels>;
  using A = Arithmetic<T>;
  using V = typename R::V;
  // As many samples at once as give a vector of dots.
  constexpr int kGroup = R::kLanes >= 4 ? R::kLanes / 4 : 1;
  constexpr int kTrees = 4 * kGroup / R::kLanes;
  V upstream[R::kVectors];
  load_row<kChannels>(grad_output, upstream);

  const auto corner = [&](int i, int k) __attribute__((always_inline)) {
    V row[R::kVectors];
    load_row<kChannels>(value + samples.offset[k][i], row);
    V product = upstream[0] * row[0];
    for (int j = 1; j < R::kVectors; ++j) product += upstream[j] * row[j];
    A* sum = grad_value + samples.grad_offset[k][i];
    const A weight = samples.weight[k][i];
    load_row<kChannels>(sum, row);
    for (int j = 0; j < R::kVectors; ++j) row[j] += weight * upstream[j];
    store_row<kChannels>(sum, row);
    return product;
  };
  const auto finish = [&](int i, const V* products) __attribute__((always_inline)) {
    for (int tree = 0; tree < kTrees; ++tree) {
      A* to = dots + 4 * i + tree * R::kLanes;
      V sums = sums_of_lanes<R::kLanes>(products + tree * R::kLanes);
      if (add) sums += load<V>(to);
      store(to, sums);
    }
  };

  int i = 0;
  for (; i + kGroup <= samples.count; i += kGroup) {
    V products[4 * kGroup];
#pragma GCC unroll 4
    for (int n = 0; n < kGroup; ++n) {
#pragma GCC unroll 4
      for (int k = 0; k < 4; ++k) products[4 * n + k] = corner(i + n, k);
    }
    finish(i, products);
  }
  if (i < samples.count) {
    V products[4 * kGroup] = {};
    for (int n = 0; i + n < samples.count; ++n) {
      for (int k = 0; k < 4; ++k) products[4 * n + k] = corner(i + n, k);
    }
    finish(i, products);
  }
}

// Gradients of locations and weights of one query and head, from the dots of all its samples' corners.
template <typename A>
FOCUS_LAB_INLINE void finish_samples(const Pyramid<A>& pyramid, const Samples<A>& samples, const A* dots,
                                     A* grad_locations, A* grad_weights) {
  constexpr int kLanes = kWidth<A>;
  using V = Vector<A, kLanes>;
  const bool complete = samples.count == pyramid.count;
  if (!complete) {
    memset(grad_locations, 0, size_t(pyramid.count) * 2 * sizeof(A));
    memset(grad_weights, 0, size_t(pyramid.count) * sizeof(A));
  }
  for (int first = 0; first < samples.count; first += kLanes) {
    // dots [sample, corner] -> a vector for each corner.
    V quarter[4], half[4], dot[4];
    for (int i = 0; i < 4; ++i) quarter[i] = load<V>(dots + 4 * first + i * kLanes);
    split_pairs(quarter[0], quarter[1], half[0], half[1], UpTo<kLanes>());
    split_pairs(quarter[2], quarter[3], half[2], half[3], UpTo<kLanes>());
    split_pairs(half[0], half[2], dot[0], dot[2], UpTo<kLanes>());
    split_pairs(half[1], half[3], dot[1], dot[3], UpTo<kLanes>());

    const V left = load<V>(samples.share_x[0] + first), right = load<V>(samples.share_x[1] + first);
    const V upper = load<V>(samples.share_y[0] + first), lower = load<V>(samples.share_y[1] + first);
    const V weight_gradient =
        upper * (left * dot[0] + right * dot[1]) + lower * (left * dot[2] + right * dot[3]);
    const V x_gradient = load<V>(samples.slope_x[1] + first) * (upper * dot[1] + lower * dot[3]) -
                         load<V>(samples.slope_x[0] + first) * (upper * dot[0] + lower * dot[2]);
    const V y_gradient = load<V>(samples.slope_y[1] + first) * (left * dot[2] + right * dot[3]) -
                         load<V>(samples.slope_y[0] + first) * (left * dot[0] + right * dot[1]);
    V pairs[2];
    join_pairs(x_gradient, y_gradient, pairs[0], pairs[1], UpTo<kLanes>());
    if (complete && first + kLanes <= samples.count) {
      store(grad_weights + first, weight_gradient);
      store(grad_locations + 2 * first, pairs[0]);
      store(grad_locations + 2 * first + kLanes, pairs[1]);
    } else {
      A staged_weights[kLanes], staged_pairs[2 * kLanes];
      store(staged_weights, weight_gradient);
      store(staged_pairs, pairs[0]);
      store(staged_pairs + kLanes, pairs[1]);
      for (int i = 0; i < kLanes && first + i < samples.count; ++i) {
        const int at = samples.index[first + i];
        grad_weights[at] = staged_weights[i];
        grad_locations[2 * at] = staged_pairs[2 * i];
        grad_locations[2 * at + 1] = staged_pairs[2 * i + 1];
      }
    }
  }
}

// Fills rows of `width` numbers, `step` apart, with zeros.
template <typename T>
FOCUS_LAB_INLINE void clear_rows(T* rows, int64_t step, int64_t count, int64_t width) {
  if (width == step) {
    memset(rows, 0, size_t(count * width) * sizeof(T));
    return;
  }
  for (int64_t row = 0; row < count; ++row) memset(rows + row * step, 0, size_t(width) * sizeof(T));
}

template <typename A, typename B>
constexpr bool kSame = false;
template <typename A>
constexpr bool kSame<A, A> = true;

template <typename T, int kChannels>
bool backward_range(const Problem& problem, const T* grad_output, const Inputs& inputs, const Gradients& gradients,
                    bool unfinished, int32_t parts, int64_t begin, int64_t end) {
  using A = Arithmetic<T>;
  const T* const value = static_cast<const T*>(inputs.value);
  T* const grad_value = static_cast<T*>(gradients.value);
  const int all = problem.levels * problem.points;
  const int padded = Pyramid<A>::pad(all);
  const int64_t channels = kChannels != 0 ? kChannels : problem.channels;
  const int64_t token = problem.heads * channels;

  int64_t widest = 0;  // tokens of the largest part
  for (int part = 0; part < parts; ++part) {
    int64_t tokens = 0;
    for (int level = part * problem.levels / parts; level < (part + 1) * problem.levels / parts; ++level) {
      tokens += int64_t(problem.level[level].height) * problem.level[level].width;
    }
    widest = tokens > widest ? tokens : widest;
  }
  const size_t room = size_t(4) * size_t(Samples<A>::room(padded));
  // All levels alike: beside the copy there are the sums, which are worth it everywhere.
  const bool pack = worth_packing(problem, problem.queries * 4 * all, problem.tokens);
  // 16-bit gradients are always summed in float32 beside, and rounded once.
  const bool direct = kSame<T, A> && !pack;
  const size_t copied = pack ? size_t(widest * channels) : 0;
  const size_t summed = direct ? 0 : size_t(widest * channels);
  Scratch scratch(Pyramid<A>::bytes(all) + 2 * Samples<A>::template bytes<true>(padded) + Scratch::bytes<A>(room) +
                  Scratch::bytes<T>(copied) + Scratch::bytes<A>(summed) + Projection<A>::bytes(all) +
                  3 * Made<A>::bytes(padded));
  if (scratch.empty()) return false;

  if (direct && parts == 1) {
    // All heads of an image at once: longer runs of memory.
    for (int64_t pair = begin; pair < end;) {
      const int64_t image = pair / problem.heads, head = pair % problem.heads;
      const int64_t heads = end - pair < problem.heads - head ? end - pair : problem.heads - head;
      clear_rows(grad_value + image * problem.tokens * token + head * channels, token, problem.tokens,
                 heads * channels);
      pair += heads;
    }
  }

  for (int64_t task = begin; task < end; ++task) {
    const int64_t pair = task / parts;
    const int part = int(task % parts);
    const int64_t image = pair / problem.heads, head = pair % problem.heads;
    const int first_level = part * problem.levels / parts, last_level = (part + 1) * problem.levels / parts;
    const int64_t first_token = problem.level[first_level].start;
    int64_t tokens = 0;
    for (int level = first_level; level < last_level; ++level) {
      tokens += int64_t(problem.level[level].height) * problem.level[level].width;
    }

    scratch.rewind();
    T* packed = scratch.take<T>(copied);
    A* sums = scratch.take<A>(summed);
    Pyramid<A> pyramid;
    const int64_t value_step = pack ? channels : problem.value_token_stride;
    pyramid.prepare(scratch, problem, last_level, {first_level, problem.levels, value_step, 0});
    pyramid.grad.prepare(scratch, problem, pyramid.padded, {first_level, problem.levels, direct ? token : channels, 0});
    Samples<A> both[2];
    both[0].template prepare<true>(scratch, padded);
    both[1].template prepare<true>(scratch, padded);
    A* dots = scratch.take<A>(room);
    Projection<A> projection;
    projection.prepare(scratch, problem, inputs);
    const bool finished = projection.used && !unfinished;
    Made<A> made[2], gradient;  // of the query at hand and the next
    made[0].prepare(scratch, padded);
    made[1].prepare(scratch, padded);
    gradient.prepare(scratch, padded);

    const T* rows =
        value + image * problem.value_batch_stride + first_token * problem.value_token_stride + head * channels;
    T* owned = grad_value + (image * problem.tokens + first_token) * token + head * channels;
    if (pack) {
      copy_rows<kChannels>(rows, problem.value_token_stride, packed, channels, tokens, channels);
      rows = packed;
    }
    A* grad_rows = sums;
    if constexpr (kSame<T, A>) {
      if (direct) {
        grad_rows = owned;
        if (parts > 1) clear_rows(owned, token, tokens, channels);
      }
    }
    if (!direct) memset(sums, 0, size_t(tokens * channels) * sizeof(A));

    const int64_t before = image * problem.queries * problem.heads + head;
    const int skipped = first_level * problem.points;  // samples of levels before
    const auto start = [&](int64_t query, Samples<A>& samples) __attribute__((always_inline)) {
      const int64_t at = (before + query * problem.heads) * all;
      projection.ask_for(at + kQueriesAhead * problem.heads * all + skipped, pyramid.count);
      prefetch(grad_output + (before + (query + kQueriesAhead) * problem.heads) * channels,
               channels * int64_t(sizeof(T)));
      const Made<A> from = projection.read(image, query, at, made[query & 1]);
      set_up<true>(pyramid, from.locations + 2 * skipped, from.weights + skipped, samples);
    };
    if (problem.queries > 0) start(0, both[0]);
    for (int64_t query = 0; query < problem.queries; ++query) {
      const Samples<A>& samples = both[query & 1];
      if (query + 1 < problem.queries) start(query + 1, both[(query + 1) & 1]);
      const int64_t item = before + query * problem.heads;
      const T* upstream = grad_output + item * channels;
      for_each_block<kChannels>(channels, [&](auto width, int64_t channel) __attribute__((always_inline)) {
        scatter<T, decltype(width)::value>(rows + channel, grad_rows + channel, upstream + channel, samples, dots,
                                           channel != 0);
      });
      const int64_t at = item * all;
      if (finished) {
        finish_samples(pyramid, samples, dots, gradient.locations, gradient.weights);
        projection.finish(image, query, at, made[query & 1].weights, gradient.locations, gradient.weights, gradients);
      } else {
        finish_samples(pyramid, samples, dots, static_cast<A*>(gradients.locations) + 2 * (at + skipped),
                       static_cast<A*>(gradients.weights) + at + skipped);
      }
    }

    if (!direct) {
      for (int64_t at = 0; at < tokens; ++at) {
        for_each_block<kChannels>(channels, [&](auto width, int64_t channel) __attribute__((always_inline)) {
          constexpr int kBlock = decltype(width)::value;
          typename Row<A, kBlock>::V row[Row<A, kBlock>::kVectors];
          load_row<kBlock>(sums + at * channels + channel, row);
          store_row<kBlock>(owned + at * token + channel, row);
        });
      }
    }
  }
  return true;
}

// See CpuKernels::finish.
template <typename A>
bool finish_range(const Problem& problem, const Inputs& inputs, const A* of_locations, const A* of_weights,
                  const Gradients& gradients, A* grad_reference_points, int64_t begin, int64_t end) {
  const int all = problem.levels * problem.points;
  const int padded = Pyramid<A>::pad(all);
  Scratch scratch(Projection<A>::bytes(all) + Made<A>::bytes(padded));
  if (scratch.empty()) return false;
  Projection<A> projection;
  projection.prepare(scratch, problem, inputs);
  Made<A> room;
  room.prepare(scratch, padded);
  // Reference points that all images share are visited once.
  const int64_t images = problem.reference_batch_stride == 0 ? problem.batch : 1;
  for (int64_t item = begin; item < end; ++item) {
    const int64_t query = item % problem.queries, first_image = item / problem.queries;
    A* const sums = grad_reference_points == nullptr ? nullptr : grad_reference_points + item * projection.references();
    if (sums != nullptr) memset(sums, 0, size_t(projection.references()) * sizeof(A));
    for (int64_t image = first_image; image < first_image + images; ++image) {
      for (int64_t head = 0; head < problem.heads; ++head) {
        const int64_t at = ((image * problem.queries + query) * problem.heads + head) * all;
        const Made<A> made = projection.read(image, query, at, room);
        projection.finish(image, query, at, made.weights, of_locations + 2 * at, of_weights + at, gradients);
        if (sums != nullptr) projection.add_reference(at, of_locations + 2 * at, sums);
      }
    }
  }
  return true;
}

// --- Entries ---------------------------------------------------------------------------------------------------------

// Calls visit(value type, Constant<channels>).
template <typename T, typename Visitor>
FOCUS_LAB_INLINE bool choose_channels(const Problem& problem, const Visitor& visit) {
  if constexpr (sizeof(T) <= 4) {
    if (problem.channels == 16) return visit(T(), Constant<16>());
    if (problem.channels == 32) return visit(T(), Constant<32>());
    if (problem.channels == 64) return visit(T(), Constant<64>());
  }
  return visit(T(), Constant<0>());
}

template <typename Visitor>
FOCUS_LAB_INLINE bool choose(const Problem& problem, const Visitor& visit) {
  switch (problem.dtype) {
    case Dtype::kFloat64:
      return choose_channels<double>(problem, visit);
    case Dtype::kFloat32:
      return choose_channels<float>(problem, visit);
    case Dtype::kBFloat16:
      return choose_channels<BFloat16>(problem, visit);
    case Dtype::kFloat16:
      return choose_channels<Half>(problem, visit);
  }
  return false;
}

bool forward(const Problem& problem, const Inputs& inputs, void* output, int64_t begin, int64_t end) {
  return choose(problem, [&](auto type, auto channels) {
    using T = decltype(type);
    return forward_range<T, decltype(channels)::value>(problem, inputs, static_cast<T*>(output), begin, end);
  });
}

bool backward(const Problem& problem, const void* grad_output, const Inputs& inputs, const Gradients& gradients,
              bool unfinished, int32_t parts, int64_t begin, int64_t end) {
  return choose(problem, [&](auto type, auto channels) {
    using T = decltype(type);
    return backward_range<T, decltype(channels)::value>(problem, static_cast<const T*>(grad_output), inputs, gradients,
                                                        unfinished, parts, begin, end);
  });
}

bool finish(const Problem& problem, const Inputs& inputs, const void* of_locations, const void* of_weights,
            const Gradients& gradients, void* grad_reference_points, int64_t begin, int64_t end) {
  const auto with = [&](auto number) {
    using A = decltype(number);
    return finish_range(problem, inputs, static_cast<const A*>(of_locations), static_cast<const A*>(of_weights),
                        gradients, static_cast<A*>(grad_reference_points), begin, end);
  };
  return problem.dtype == Dtype::kFloat64 ? with(double()) : with(float());
}

}  // namespace
}  // namespace focus_lab
