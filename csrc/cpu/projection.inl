// Locations and weights of samples: read where they are given, or made from reference points, offsets and logits, and
// their gradients taken back to those. A query and head at a time, so that what is made never leaves the cache.
#include "kernels.h"
#include "samples.inl"

extern "C" {
void* memset(void*, int, size_t);
}

namespace focus_lab {
namespace {

constexpr int64_t kCacheLine = 64;

// Asks for memory that is needed soon; any address will do, read or not.
FOCUS_LAB_INLINE void prefetch(const void* from, int64_t bytes) {
  for (int64_t at = 0; at < bytes; at += kCacheLine) __builtin_prefetch(static_cast<const char*>(from) + at);
}

// A vector of numbers of any type, in order; beyond `left` of them zeros, or nothing is stored.
template <typename A, typename E>
FOCUS_LAB_INLINE Vector<A, kWidth<A>> load_some(const E* from, int left) {
  constexpr int kLanes = kWidth<A>;
  Vector<A, kLanes> vector;
  if (left >= kLanes) {
    load_row<kLanes>(from, &vector);
  } else {
    E staged[kLanes] = {};
    for (int i = 0; i < left; ++i) staged[i] = from[i];
    load_row<kLanes>(staged, &vector);
  }
  return vector;
}

template <typename A, typename E>
FOCUS_LAB_INLINE void store_some(E* to, Vector<A, kWidth<A>> vector, int left) {
  constexpr int kLanes = kWidth<A>;
  if (left >= kLanes) {
    store_row<kLanes>(to, &vector);
  } else {
    E staged[kLanes];
    store_row<kLanes>(staged, &vector);
    for (int i = 0; i < left; ++i) to[i] = staged[i];
  }
}

// What is made for one query and head: all its samples, padded to whole vectors.
template <typename A>
struct Made {
  A* locations;
  A* weights;

  static size_t bytes(int padded) { return Scratch::bytes<A>(2 * padded) + Scratch::bytes<A>(padded); }

  void prepare(Scratch& scratch, int padded) {
    locations = scratch.take<A>(2 * padded);
    weights = scratch.take<A>(padded);
  }
};

template <typename A>
class Projection {
 public:
  static constexpr int kLanes = kWidth<A>;
  using V = Vector<A, kLanes>;

  static size_t bytes(int samples) {
    const size_t pairs = size_t(2) * Pyramid<A>::pad(samples);
    return Scratch::bytes<int32_t>(pairs) + Scratch::bytes<A>(pairs);
  }

  void prepare(Scratch& scratch, const Problem& problem, const Inputs& inputs) {
    used = problem.reference_size > 0;
    locations_ = inputs.locations;
    weights_ = inputs.weights;
    type_ = problem.projected;
    samples_ = problem.levels * problem.points;
    if (!used) return;
    const int padded = Pyramid<A>::pad(samples_);
    boxes_ = problem.reference_size == 4;
    reference_points_ = static_cast<const A*>(inputs.reference_points);
    batch_stride_ = problem.reference_batch_stride;
    query_stride_ = int64_t(problem.reference_levels) * problem.reference_size;
    anchor_ = scratch.take<int32_t>(2 * padded);
    step_ = scratch.take<A>(2 * padded);
    for (int i = 0; i < 2 * padded; ++i) {
      const int wanted = i / 2 / problem.points;
      const int number = wanted < problem.levels ? wanted : problem.levels - 1;
      const Level& level = problem.level[number];
      anchor_[i] = (problem.reference_levels == 1 ? 0 : number) * problem.reference_size + i % 2;
      step_[i] = boxes_ ? A(0.5) / A(problem.points) : A(1) / A(i % 2 == 0 ? level.width : level.height);
    }
  }

  // Asks for a query's inputs, sample `at` of all and those behind it.
  FOCUS_LAB_INLINE void ask_for(int64_t at, int count) const {
    const int64_t size = !used || type_ == Dtype::kFloat64 || type_ == Dtype::kFloat32 ? sizeof(A) : 2;
    prefetch(static_cast<const char*>(locations_) + 2 * at * size, 2 * count * size);
    prefetch(static_cast<const char*>(weights_) + at * size, count * size);
  }

  // Locations and weights of a query and head, whose samples are [at, at + samples) of all.
  FOCUS_LAB_INLINE Made<A> read(int64_t image, int64_t query, int64_t at, const Made<A>& room) const {
    if (!used) return {const_cast<A*>(static_cast<const A*>(locations_) + 2 * at),
                       const_cast<A*>(static_cast<const A*>(weights_) + at)};
    with_type([&](auto type) __attribute__((always_inline)) {
      using E = decltype(type);
      make_weights(static_cast<const E*>(weights_) + at, room.weights);
      make_locations(static_cast<const E*>(locations_) + 2 * at, reference_of(image, query), room.locations);
    });
    return room;
  }

  // Gradients of a query's and head's offsets and logits, from those of its locations and weights.
  FOCUS_LAB_INLINE void finish(int64_t image, int64_t query, int64_t at, const A* weights, const A* of_locations,
                               const A* of_weights, const Gradients& gradients) const {
    with_type([&](auto type) __attribute__((always_inline)) {
      using E = decltype(type);
      E* const to_logits = static_cast<E*>(gradients.weights) + at;
      E* const to_offsets = static_cast<E*>(gradients.locations) + 2 * at;
      V common = {};
      for (int first = 0; first < samples_; first += kLanes) {
        common += load<V>(weights + first) * load_some<A>(of_weights + first, samples_ - first);
      }
      common = over_lanes<kLanes>(common, Sum());
      for (int first = 0; first < samples_; first += kLanes) {
        const V own = load_some<A>(of_weights + first, samples_ - first);
        store_some<A>(to_logits + first, load<V>(weights + first) * (own - common), samples_ - first);
      }
      const A* const reference = reference_of(image, query);
      for (int first = 0; first < 2 * samples_; first += kLanes) {
        const V gradient = load_some<A>(of_locations + first, 2 * samples_ - first);
        store_some<A>(to_offsets + first, gradient * step(reference, first), 2 * samples_ - first);
      }
    });
  }

  // Adds the gradient of a query's reference points that one head has.
  FOCUS_LAB_INLINE void add_reference(int64_t at, const A* of_locations, A* sums) const {
    with_type([&](auto type) __attribute__((always_inline)) {
      using E = decltype(type);
      const E* const offsets = static_cast<const E*>(locations_) + 2 * at;
      for (int first = 0; first < 2 * samples_; first += kLanes) {
        A gradient[kLanes], offset[kLanes];
        const int left = 2 * samples_ - first;
        store(gradient, load_some<A>(of_locations + first, left));
        store(offset, load_some<A>(offsets + first, left));
        for (int i = 0; i < kLanes && i < left; ++i) {
          sums[anchor_[first + i]] += gradient[i];
          if (boxes_) sums[anchor_[first + i] + 2] += gradient[i] * (offset[i] * step_[first + i]);
        }
      }
    });
  }

  // Numbers of a query's reference points.
  int64_t references() const { return query_stride_; }

  bool used = false;

 private:
  struct Sum {
    FOCUS_LAB_INLINE V operator()(V a, V b) const { return a + b; }
  };
  struct Larger {
    FOCUS_LAB_INLINE V operator()(V a, V b) const { return a > b ? a : b; }
  };

  template <typename Visitor>
  FOCUS_LAB_INLINE void with_type(const Visitor& visit) const {
    if constexpr (sizeof(A) == 4) {
      if (type_ == Dtype::kBFloat16) return visit(BFloat16());
      if (type_ == Dtype::kFloat16) return visit(Half());
    }
    visit(A());
  }

  FOCUS_LAB_INLINE const A* reference_of(int64_t image, int64_t query) const {
    return reference_points_ + image * batch_stride_ + query * query_stride_;
  }

  // What an offset of one is, of pairs (x, y) from `first` on.
  FOCUS_LAB_INLINE V step(const A* reference, int first) const {
    const V factor = load<V>(step_ + first);
    return boxes_ ? gather_lanes<A, kLanes>(reference + 2, anchor_ + first) * factor : factor;
  }

  template <typename E>
  FOCUS_LAB_INLINE void make_locations(const E* offsets, const A* reference, A* locations) const {
    for (int first = 0; first < 2 * samples_; first += kLanes) {
      const V offset = load_some<A>(offsets + first, 2 * samples_ - first);
      store(locations + first, gather_lanes<A, kLanes>(reference, anchor_ + first) + offset * step(reference, first));
    }
  }

  // The softmax; what pads it weighs nothing.
  template <typename E>
  FOCUS_LAB_INLINE void make_weights(const E* logits, A* weights) const {
    V largest = V{} - A(__builtin_inf());
    for (int first = 0; first < samples_; first += kLanes) {
      V logit = load_some<A>(logits + first, samples_ - first);
      for (int i = samples_ - first; i < kLanes; ++i) logit[i] = -A(__builtin_inf());
      largest = Larger()(logit, largest);
      store(weights + first, logit);
    }
    largest = over_lanes<kLanes>(largest, Larger());
    V sum = {};
    for (int first = 0; first < samples_; first += kLanes) {
      const V power = exp_of<A, kLanes>(load<V>(weights + first) - largest);
      sum += power;
      store(weights + first, power);
    }
    const V share = A(1) / over_lanes<kLanes>(sum, Sum());
    for (int first = 0; first < samples_; first += kLanes) {
      store(weights + first, load<V>(weights + first) * share);
    }
  }

  const void* locations_ = nullptr;
  const void* weights_ = nullptr;
  const A* reference_points_ = nullptr;
  int64_t batch_stride_ = 0, query_stride_ = 0;
  int32_t* anchor_ = nullptr;  // of each number of a query's locations, its reference point's among the query's
  A* step_ = nullptr;          // of an offset: 1 / (width, height), or half a box by the number of points
  int samples_ = 0;
  Dtype type_ = Dtype::kFloat32;
  bool boxes_ = false;
};

}  // namespace
}  // namespace focus_lab
