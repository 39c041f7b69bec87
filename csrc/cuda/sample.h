// One sample of deformable attention: where it falls, which four pixels it reads with which weights, and its
// gradients. Plain C++ as well as CUDA, so that the maths of the kernels is tested without a GPU.
#pragma once

#include <cmath>
#include <cstdint>

#include "../deformable_attention.h"

#if defined(__CUDACC__)
#define FOCUS_LAB_HOST_DEVICE __host__ __device__ __forceinline__
#else
#define FOCUS_LAB_HOST_DEVICE inline
#endif

namespace focus_lab {

// --- Place and corners -----------------------------------------------------------------------------------------------

// Corners are numbered 0 top left, 1 top right, 2 bottom left, 3 bottom right.
template <typename A>
struct Place {
  int32_t left, top;         // the top left pixel; -1 on the outer edge
  A right_share, low_share;  // how far the sample lies towards the right and the bottom pixels, in [0, 1)
  bool inside;               // whether any of the four pixels exists
  bool has_left, has_right, has_top, has_bottom;
};

// (x, y) as in `locations`: 0 and 1 are the outer edges of the level. NaN, infinite and distant ones are not inside;
// whatever lies outside has an undefined but harmless rest.
template <typename A>
FOCUS_LAB_HOST_DEVICE Place<A> locate(A x, A y, int32_t height, int32_t width) {
  const A column = std::fma(x, A(width), A(-0.5));
  const A row = std::fma(y, A(height), A(-0.5));
  Place<A> place;
  // An "and" of true comparisons: NaN fails it. At exactly -1 and at exactly the size every weight would be zero.
  place.inside = column > A(-1) && row > A(-1) && column < A(width) && row < A(height);
  const A safe_column = place.inside ? column : A(0);  // a float that no int32 holds must not be converted
  const A safe_row = place.inside ? row : A(0);
  const A left = std::floor(safe_column);
  const A top = std::floor(safe_row);
  place.left = static_cast<int32_t>(left);
  place.top = static_cast<int32_t>(top);
  place.right_share = safe_column - left;
  place.low_share = safe_row - top;
  place.has_left = place.left >= 0;
  place.has_right = place.left < width - 1;
  place.has_top = place.top >= 0;
  place.has_bottom = place.top < height - 1;
  return place;
}

// The four bilinear weights times `attention`; zero for pixels that do not exist and for samples outside.
template <typename A>
FOCUS_LAB_HOST_DEVICE void corner_weights(const Place<A>& place, A attention, A (&weight)[4]) {
  const A left = place.has_left ? A(1) - place.right_share : A(0);
  const A right = place.has_right ? place.right_share : A(0);
  // A product with `attention` of zero could be NaN: what does not exist is chosen last.
  const A top = place.inside && place.has_top ? (A(1) - place.low_share) * attention : A(0);
  const A bottom = place.inside && place.has_bottom ? place.low_share * attention : A(0);
  weight[0] = place.has_left ? top * left : A(0);
  weight[1] = place.has_right ? top * right : A(0);
  weight[2] = place.has_left ? bottom * left : A(0);
  weight[3] = place.has_right ? bottom * right : A(0);
}

// The token of each pixel, within its image. A pixel that does not exist is replaced by one of the same sample that
// does, so that it can be read without a question: its weight is zero. Defined only inside.
template <typename A>
FOCUS_LAB_HOST_DEVICE void corner_tokens(const Place<A>& place, int32_t start, int32_t width, int32_t (&token)[4]) {
  const int32_t left = place.has_left ? place.left : 0;
  const int32_t right = place.has_right ? place.left + 1 : place.left;
  const int32_t top = place.has_top ? place.top : 0;
  const int32_t bottom = place.has_bottom ? place.top + 1 : place.top;
  const int32_t top_row = start + top * width;
  const int32_t bottom_row = start + bottom * width;
  token[0] = top_row + left;
  token[1] = top_row + right;
  token[2] = bottom_row + left;
  token[3] = bottom_row + right;
}

// --- Gradients -------------------------------------------------------------------------------------------------------

template <typename A>
struct SampleGradients {
  A x, y, attention;
};

// From the products of the output's gradient with the four rows that were read; all zero outside. Products of pixels
// that do not exist are ignored, whatever was read in their place.
template <typename A>
FOCUS_LAB_HOST_DEVICE SampleGradients<A> sample_gradients(const Place<A>& place, int32_t height, int32_t width,
                                                          A attention, const A (&product)[4]) {
  const A top_left = place.has_top && place.has_left ? product[0] : A(0);
  const A top_right = place.has_top && place.has_right ? product[1] : A(0);
  const A bottom_left = place.has_bottom && place.has_left ? product[2] : A(0);
  const A bottom_right = place.has_bottom && place.has_right ? product[3] : A(0);
  const A left_share = A(1) - place.right_share;
  const A top_share = A(1) - place.low_share;
  SampleGradients<A> gradients;
  gradients.x = attention * A(width) *
                (top_share * (top_right - top_left) + place.low_share * (bottom_right - bottom_left));
  gradients.y = attention * A(height) *
                (left_share * (bottom_left - top_left) + place.right_share * (bottom_right - top_right));
  gradients.attention = top_share * (left_share * top_left + place.right_share * top_right) +
                        place.low_share * (left_share * bottom_left + place.right_share * bottom_right);
  if (!place.inside) gradients = {A(0), A(0), A(0)};
  return gradients;
}

// --- Division by the number of points --------------------------------------------------------------------------------

// The level of a sample is its number divided by the points of a level. A device has no instruction for that; the
// upper half of a product is the quotient, exactly, for as many points as are allowed here.
constexpr int32_t kMaxPoints = 8192;

FOCUS_LAB_HOST_DEVICE uint32_t reciprocal(int32_t points) {  // unused for 1, where it would need a 33rd bit
  return points == 1 ? 0u : static_cast<uint32_t>(((uint64_t(1) << 32) + points - 1) / points);
}

FOCUS_LAB_HOST_DEVICE int32_t divide(int32_t sample, int32_t points, uint32_t reciprocal_of_points) {
#if defined(__CUDA_ARCH__)
  const uint32_t quotient = __umulhi(static_cast<uint32_t>(sample), reciprocal_of_points);
#else
  const uint64_t product = uint64_t(static_cast<uint32_t>(sample)) * reciprocal_of_points;
  const uint32_t quotient = static_cast<uint32_t>(product >> 32);
#endif
  return points == 1 ? sample : static_cast<int32_t>(quotient);
}

// --- Counting sort ---------------------------------------------------------------------------------------------------

// Contributions to grad_value are sorted by bucket, not by pixel: a level may have millions of pixels, a block's
// queries touch a small window of it. Two pixels of a window seldom share a bucket, since rows follow each other as in
// the level; an odd row length keeps apart the rows of levels whose width divides the number of buckets. A shared
// bucket costs a few more additions to memory, never a wrong sum.
constexpr int32_t kBuckets = 4096;

FOCUS_LAB_HOST_DEVICE uint32_t bucket_of(int32_t row, int32_t column, int32_t width) {
  return (static_cast<uint32_t>(row) * static_cast<uint32_t>(width | 1) + static_cast<uint32_t>(column)) &
         static_cast<uint32_t>(kBuckets - 1);
}

// Two counters of 16 bits share a word.
constexpr int32_t kCounterWords = kBuckets / 2;

FOCUS_LAB_HOST_DEVICE uint32_t counter_shift(uint32_t bucket) { return (bucket & 1u) * 16u; }

FOCUS_LAB_HOST_DEVICE uint32_t counter_in(uint32_t word, uint32_t bucket) {
  return (word >> counter_shift(bucket)) & 0xffffu;
}

FOCUS_LAB_HOST_DEVICE uint32_t counters_of(uint32_t word) { return (word & 0xffffu) + (word >> 16); }

// Turns a word's two counts into the positions of their first contributions, and moves `position` behind them.
FOCUS_LAB_HOST_DEVICE uint32_t counts_to_positions(uint32_t word, uint32_t& position) {
  const uint32_t first = position;
  const uint32_t second = position + (word & 0xffffu);
  position += counters_of(word);
  return first | (second << 16);
}

// A sorted contribution: which pixel, from which query of the block. A word holds both for images of up to 2^24 - 1
// tokens; the last number marks the end of a run.
constexpr int32_t kMaxSortedTokens = (1 << 24) - 1;
constexpr int32_t kMaxSortedQueries = 256;
constexpr uint32_t kNoContribution = 0xffffffffu;

FOCUS_LAB_HOST_DEVICE uint32_t contribution_key(int32_t token, int32_t query) {
  return (static_cast<uint32_t>(token) << 8) | static_cast<uint32_t>(query);
}

// --- Sums that do not depend on their order --------------------------------------------------------------------------

// Floating-point sums depend on the order of their terms, integer sums do not: in deterministic mode grad_value is
// summed in units of 2^-exponent, 64 bits wide. The unit is chosen so that the largest sum that is possible fits: a
// pixel receives at most one contribution from each sample, each at most the largest |weight| times the largest
// |gradient|. With 2^17 samples a level that leaves 2^-44 of the largest contribution as the unit.
template <typename A>
struct FixedPoint {
  A scale[2];     // 2^exponent as two factors, as one might not be a number
  int32_t exponent;
  bool finite;    // false: there is no such sum, all of grad_value becomes NaN
};

FOCUS_LAB_HOST_DEVICE int32_t exponent_of(float x) {  // x < 2^exponent
  int exponent = 0;
  std::frexp(x, &exponent);
  return exponent;
}
FOCUS_LAB_HOST_DEVICE int32_t exponent_of(double x) {
  int exponent = 0;
  std::frexp(x, &exponent);
  return exponent;
}

// samples_log2: at most 2^samples_log2 samples read a level.
template <typename A>
FOCUS_LAB_HOST_DEVICE FixedPoint<A> fixed_point(A largest_gradient, A largest_weight, int32_t samples_log2) {
  FixedPoint<A> format;
  format.finite = largest_gradient - largest_gradient == A(0) && largest_weight - largest_weight == A(0);
  format.exponent = 0;
  if (format.finite && largest_gradient > A(0) && largest_weight > A(0)) {
    format.exponent = 61 - samples_log2 - exponent_of(largest_gradient) - exponent_of(largest_weight);
    // Finer units than the smallest number are of no use, and their scale would overflow.
    const int32_t finest = sizeof(A) == 4 ? 240 : 2040;
    if (format.exponent > finest) format.exponent = finest;
  }
  const int32_t half = format.exponent / 2;
  format.scale[0] = std::ldexp(A(1), half);
  format.scale[1] = std::ldexp(A(1), format.exponent - half);
  return format;
}

}  // namespace focus_lab
