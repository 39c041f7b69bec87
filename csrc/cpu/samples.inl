// Set-up of samples: where their four corners lie and what they weigh, a vector of samples at a time.
#include "vectors.inl"

extern "C" {
void* malloc(size_t);
void free(void*);
}

namespace focus_lab {
namespace {

// Memory for one range of work, cut into arrays that start at cache lines.
class Scratch {
 public:
  explicit Scratch(size_t bytes) : memory_(static_cast<char*>(malloc(bytes + kLine))) { rewind(); }
  ~Scratch() { free(memory_); }
  Scratch(const Scratch&) = delete;
  Scratch& operator=(const Scratch&) = delete;

  bool empty() const { return memory_ == nullptr; }

  // Forgets what was taken.
  void rewind() {
    next_ = reinterpret_cast<char*>((reinterpret_cast<uintptr_t>(memory_) + kLine - 1) & ~uintptr_t(kLine - 1));
  }

  template <typename E>
  static size_t bytes(size_t count) {
    return (count * sizeof(E) + kLine - 1) / kLine * kLine;
  }
  template <typename E>
  E* take(size_t count) {
    E* array = reinterpret_cast<E*>(next_);
    next_ += bytes<E>(count);
    return array;
  }

 private:
  static constexpr size_t kLine = 64;
  char* memory_;
  char* next_;
};

// Where the pixels of the levels at hand lie: levels [first, packed) where they came from, the others in a copy.
struct Places {
  int first;
  int packed;
  int64_t step;         // from one pixel to the next, in elements
  int64_t packed_step;  // the same in the copy
};

// Where one pixel of each level lies in an array of pixels: pixel, row and level steps, in elements. One of each for
// every sample, padded to whole vectors.
template <typename A>
struct Steps {
  Integer<A>* pixel;  // from one pixel to the next
  Integer<A>* row;    // from one row of the level to the next
  Integer<A>* level;  // from the array's first pixel to the level's; the copy is another array

  static size_t bytes(int samples) { return 3 * Scratch::bytes<Integer<A>>(samples); }

  void prepare(Scratch& scratch, const Problem& problem, int count, const Places& places) {
    pixel = scratch.take<Integer<A>>(count);
    row = scratch.take<Integer<A>>(count);
    level = scratch.take<Integer<A>>(count);
    const int last = problem.levels - 1;
    for (int i = 0; i < count; ++i) {
      const int wanted = places.first + i / problem.points;
      const int number = wanted < last ? wanted : last;
      const bool packed = number >= places.packed;
      const int64_t step = packed ? places.packed_step : places.step;
      const Level& at = problem.level[number];
      const Level& origin = problem.level[packed ? places.packed : places.first];
      pixel[i] = Integer<A>(step);
      row[i] = Integer<A>(at.width * step);
      level[i] = Integer<A>((at.start - origin.start) * step);
    }
  }
};

// The levels that samples [0, count) of a query look at, repeated for each sample and padded to whole vectors.
template <typename A>
struct Pyramid {
  int count;   // samples
  int padded;  // count rounded up to whole vectors
  int direct;  // samples of levels that were not copied: the first ones
  A* width;
  A* height;
  Steps<A> value;  // offsets of corners into the value of one head of one image
  Steps<A> grad;   // and into its gradient

  static int pad(int count) { return (count + kWidth<A> - 1) / kWidth<A> * kWidth<A>; }
  static size_t bytes(int count) { return 2 * Scratch::bytes<A>(pad(count)) + 2 * Steps<A>::bytes(pad(count)); }

  // Levels [places.first, last_level) of the value.
  void prepare(Scratch& scratch, const Problem& problem, int last_level, const Places& places) {
    const int first_level = places.first;
    count = (last_level - first_level) * problem.points;
    padded = pad(count);
    direct = (places.packed - first_level) * problem.points;
    width = scratch.take<A>(padded);
    height = scratch.take<A>(padded);
    const int last = problem.levels - 1;
    for (int i = 0; i < padded; ++i) {
      const int number = first_level + i / problem.points;
      const Level& level = problem.level[number < last ? number : last];
      width[i] = A(level.width);
      height[i] = A(level.height);
    }
    value.prepare(scratch, problem, padded, places);
  }
};

// The samples of one query and head that touch their level, one behind the other; the others are left out, so that
// pixels which they do not touch cannot do harm. Corners: 0 = (y0, x0), 1 = (y0, x1), 2 = (y1, x0), 3 = (y1, x1). A
// corner outside the level weighs zero and points to a corner of the same sample that is inside.
template <typename A>
struct Samples {
  int count;
  int direct;          // the first of them: those in levels that were not copied
  A* weight[4];        // of the corner times the attention weight
  int32_t* offset[4];  // of the corner in the value, in elements

  // For gradients.
  int32_t* grad_offset[4];
  A* share_x[2];  // of the left and right corners, zero if outside
  A* share_y[2];  // of the upper and lower corners, zero if outside
  A* slope_x[2];  // derivative of the output by x through left and right corners: attention weight * width, or zero
  A* slope_y[2];
  int32_t* index;  // of the sample among all samples

  // Storing a vector at the last sample may write a vector beyond.
  static int room(int padded) { return padded + kWidth<A>; }
  template <bool kGradients>
  static size_t bytes(int padded) {
    const size_t number = Scratch::bytes<A>(room(padded)), offset = Scratch::bytes<int32_t>(room(padded));
    return 4 * number + 4 * offset + (kGradients ? 8 * number + 5 * offset : 0);
  }

  template <bool kGradients>
  void prepare(Scratch& scratch, int padded) {
    count = direct = 0;
    for (A*& array : weight) array = scratch.take<A>(room(padded));
    for (int32_t*& array : offset) array = scratch.take<int32_t>(room(padded));
    if constexpr (kGradients) {
      for (int32_t*& array : grad_offset) array = scratch.take<int32_t>(room(padded));
      for (A*& array : share_x) array = scratch.take<A>(room(padded));
      for (A*& array : share_y) array = scratch.take<A>(room(padded));
      for (A*& array : slope_x) array = scratch.take<A>(room(padded));
      for (A*& array : slope_y) array = scratch.take<A>(room(padded));
      index = scratch.take<int32_t>(room(padded));
    }
  }
};

// Appends a vector, or those of its lanes that are chosen.
template <int kLanes, bool kAll, typename E>
FOCUS_LAB_INLINE void append(E* to, Vector<E, kLanes> vector, uint32_t chosen) {
  if constexpr (kAll) {
    store(to, vector);
  } else {
    store_chosen<kLanes>(to, vector, chosen);
  }
}

// One vector of samples, all numbers of them.
template <typename A>
struct SampleVector {
  static constexpr int kLanes = kWidth<A>;
  using V = Vector<A, kLanes>;
  using I = Vector<Integer<A>, kLanes>;
  using Offsets = Vector<int32_t, kLanes>;

  V weight, share_x[2], share_y[2];
  V column[2], row[2];  // of the corners, clamped to the level
  I inside_x[2], inside_y[2];  // comparisons: whether left and right, upper and lower corners are inside
  V width, height;

  FOCUS_LAB_INLINE uint32_t locate(V x, V y, V attention, V level_width, V level_height) {
    const V zero = {};
    width = level_width;
    height = level_height;
    x = x * width - A(0.5);
    y = y * height - A(0.5);
    // An "and" of true comparisons: NaN is outside.
    const I inside = (x > A(-1)) & (x < width) & (y > A(-1)) & (y < height);
    x = inside ? x : zero;
    y = inside ? y : zero;
    weight = attention;
    const V left = round_down<A, kLanes>(x), top = round_down<A, kLanes>(y);
    const V last_column = width - A(1), last_row = height - A(1);
    const V right_share = x - left, low_share = y - top;
    inside_x[0] = left >= zero;
    inside_x[1] = left < last_column;
    inside_y[0] = top >= zero;
    inside_y[1] = top < last_row;
    share_x[0] = inside_x[0] ? A(1) - right_share : zero;
    share_x[1] = inside_x[1] ? right_share : zero;
    share_y[0] = inside_y[0] ? A(1) - low_share : zero;
    share_y[1] = inside_y[1] ? low_share : zero;
    column[0] = inside_x[0] ? left : zero;
    column[1] = inside_x[1] ? left + A(1) : last_column;
    row[0] = inside_y[0] ? top : zero;
    row[1] = inside_y[1] ? top + A(1) : last_row;
    return bits_of<kLanes>(inside);
  }

  FOCUS_LAB_INLINE void offsets(const Steps<A>& steps, int first, Offsets* corner) const {
    const I pixel_step = load<I>(steps.pixel + first), row_step = load<I>(steps.row + first);
    const I start = load<I>(steps.level + first);
    const I across[2] = {__builtin_convertvector(column[0], I) * pixel_step,
                         __builtin_convertvector(column[1], I) * pixel_step};
    const I down[2] = {__builtin_convertvector(row[0], I) * row_step + start,
                       __builtin_convertvector(row[1], I) * row_step + start};
    for (int k = 0; k < 4; ++k) corner[k] = __builtin_convertvector(down[k / 2] + across[k % 2], Offsets);
  }
};

template <typename A, bool kGradients, bool kAll>
FOCUS_LAB_INLINE void append(const Pyramid<A>& pyramid, const SampleVector<A>& vector, int first, uint32_t chosen,
                             Samples<A>& samples) {
  using S = SampleVector<A>;
  constexpr int kLanes = S::kLanes;
  const int at = samples.count;
  const typename S::V low[2] = {vector.weight * vector.share_y[0], vector.weight * vector.share_y[1]};
  typename S::Offsets corner[4];
  vector.offsets(pyramid.value, first, corner);
  for (int k = 0; k < 4; ++k) {
    append<kLanes, kAll>(samples.weight[k] + at, low[k / 2] * vector.share_x[k % 2], chosen);
    append<kLanes, kAll>(samples.offset[k] + at, corner[k], chosen);
  }
  if constexpr (kGradients) {
    vector.offsets(pyramid.grad, first, corner);
    for (int k = 0; k < 4; ++k) append<kLanes, kAll>(samples.grad_offset[k] + at, corner[k], chosen);
    const typename S::V zero = {};
    const typename S::V by_x = vector.weight * vector.width, by_y = vector.weight * vector.height;
    for (int k = 0; k < 2; ++k) {
      append<kLanes, kAll>(samples.share_x[k] + at, vector.share_x[k], chosen);
      append<kLanes, kAll>(samples.share_y[k] + at, vector.share_y[k], chosen);
      append<kLanes, kAll>(samples.slope_x[k] + at, vector.inside_x[k] ? by_x : zero, chosen);
      append<kLanes, kAll>(samples.slope_y[k] + at, vector.inside_y[k] ? by_y : zero, chosen);
    }
    typename S::Offsets number;
    for (int lane = 0; lane < kLanes; ++lane) number[lane] = lane + first;
    append<kLanes, kAll>(samples.index + at, number, chosen);
  }
  samples.count = at + (kAll ? kLanes : __builtin_popcount(chosen));
}

// Sets up all samples of one query and head. `locations` and `weights` point to its first sample.
template <bool kGradients, typename A>
FOCUS_LAB_INLINE void set_up(const Pyramid<A>& pyramid, const A* locations, const A* weights, Samples<A>& samples) {
  using S = SampleVector<A>;
  constexpr int kLanes = S::kLanes;
  constexpr uint32_t kEvery = (uint32_t(1) << kLanes) - 1;
  samples.count = samples.direct = 0;
  for (int first = 0; first < pyramid.count; first += kLanes) {
    const int left = pyramid.count - first;
    typename S::V pairs[2], attention, x, y;
    if (left >= kLanes) {
      pairs[0] = load<typename S::V>(locations + 2 * first);
      pairs[1] = load<typename S::V>(locations + 2 * first + kLanes);
      attention = load<typename S::V>(weights + first);
    } else {
      A padded_pairs[2 * kLanes], padded_weights[kLanes];
      for (int i = 0; i < kLanes; ++i) {
        padded_pairs[2 * i] = i < left ? locations[2 * (first + i)] : A(__builtin_nan(""));
        padded_pairs[2 * i + 1] = i < left ? locations[2 * (first + i) + 1] : A(0);
        padded_weights[i] = i < left ? weights[first + i] : A(0);
      }
      pairs[0] = load<typename S::V>(padded_pairs);
      pairs[1] = load<typename S::V>(padded_pairs + kLanes);
      attention = load<typename S::V>(padded_weights);
    }
    split_pairs(pairs[0], pairs[1], x, y, UpTo<kLanes>());
    S vector;
    const uint32_t inside = vector.locate(x, y, attention, load<typename S::V>(pyramid.width + first),
                                          load<typename S::V>(pyramid.height + first));
    const int direct = pyramid.direct - first;
    if (direct > 0) samples.direct += __builtin_popcount(direct < kLanes ? inside & ((1u << direct) - 1) : inside);
    if (inside == kEvery) {
      append<A, kGradients, true>(pyramid, vector, first, inside, samples);
    } else if (inside != 0) {
      append<A, kGradients, false>(pyramid, vector, first, inside, samples);
    }
  }
}

}  // namespace
}  // namespace focus_lab
