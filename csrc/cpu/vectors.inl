// Vectors of the compiler's own kind, rows of channels in them, and conversions of 16-bit numbers.
//
// Everything here is in an anonymous namespace and included once by each instruction set's unit. No standard C++
// header: an inline function of one might be emitted with this unit's instructions and then be shared with the whole
// program.
//
// FOCUS_LAB_VECTOR_BYTES stands for the instruction set: 16 any, 32 AVX2 with FMA and F16C, 64 AVX-512 as well. The
// compiler's own macros (__AVX512F__) do not follow a pragma in C++.
#include <stddef.h>
#include <stdint.h>

#define FOCUS_LAB_INLINE inline __attribute__((always_inline))

namespace focus_lab {
namespace {

struct BFloat16 {
  uint16_t bits;
};
struct Half {
  uint16_t bits;
};

// Arithmetic of a value type: float for everything narrower than double.
template <typename T>
struct ArithmeticOf {
  using type = float;
};
template <>
struct ArithmeticOf<double> {
  using type = double;
};
template <typename T>
using Arithmetic = typename ArithmeticOf<T>::type;

template <typename A>
struct IntegerOf {
  using type = int32_t;
};
template <>
struct IntegerOf<double> {
  using type = int64_t;
};
// Integers as wide as A, so that vectors of both have as many lanes.
template <typename A>
using Integer = typename IntegerOf<A>::type;

template <typename E, int kLanes>
struct VectorOf {
  typedef E type __attribute__((vector_size(kLanes * sizeof(E))));
};
template <typename E, int kLanes>
using Vector = typename VectorOf<E, kLanes>::type;

// Lanes of the widest vector of A.
template <typename A>
constexpr int kWidth = FOCUS_LAB_VECTOR_BYTES / int(sizeof(A));

#if FOCUS_LAB_VECTOR_BYTES >= 64
// Intrinsics without a mask start from an undefined vector, of which the compiler warns.
constexpr __mmask16 kEveryLane = 0xffff;
#endif

template <int... kIndex>
struct Indices {};
template <int kCount, int... kIndex>
struct CountTo : CountTo<kCount - 1, kCount - 1, kIndex...> {};
template <int... kIndex>
struct CountTo<0, kIndex...> {
  using type = Indices<kIndex...>;
};
template <int kCount>
using UpTo = typename CountTo<kCount>::type;

template <typename V, typename E>
FOCUS_LAB_INLINE V load(const E* from) {
  V vector;
  __builtin_memcpy(&vector, from, sizeof(V));
  return vector;
}

template <typename V, typename E>
FOCUS_LAB_INLINE void store(E* to, V vector) {
  __builtin_memcpy(to, &vector, sizeof(V));
}

template <typename To, typename From>
FOCUS_LAB_INLINE To bits_as(From from) {
  static_assert(sizeof(To) == sizeof(From), "same bits");
  To to;
  __builtin_memcpy(&to, &from, sizeof(To));
  return to;
}

// Lanes of two vectors, chosen by number; those of b follow those of a.
template <int... kLane, typename V>
FOCUS_LAB_INLINE V shuffle(V a, V b) {
#if defined(__clang__) || __GNUC__ >= 12
  return __builtin_shufflevector(a, b, kLane...);
#else
  return __builtin_shuffle(a, b, decltype(a == b){kLane...});
#endif
}

// [a0 b0 a1 b1 ...], cut in the middle, -> a, b.
template <typename V, int... kIndex>
FOCUS_LAB_INLINE void split_pairs(V first, V second, V& a, V& b, Indices<kIndex...>) {
  a = shuffle<(2 * kIndex)...>(first, second);
  b = shuffle<(2 * kIndex + 1)...>(first, second);
}

// a, b -> [a0 b0 a1 b1 ...], cut in the middle.
template <typename V, int... kIndex>
FOCUS_LAB_INLINE void join_pairs(V a, V b, V& first, V& second, Indices<kIndex...>) {
  constexpr int kLanes = sizeof...(kIndex);
  first = shuffle<(kIndex / 2 + kIndex % 2 * kLanes)...>(a, b);
  second = shuffle<(kLanes / 2 + kIndex / 2 + kIndex % 2 * kLanes)...>(a, b);
}

// Half of a sum across lanes, of two vectors at once: lanes with the bit kBit get b's sums, the others a's.
template <int kBit, typename V, int... kIndex>
FOCUS_LAB_INLINE V fold(V a, V b, Indices<kIndex...>) {
  constexpr int kLanes = sizeof...(kIndex);
  const V straight = shuffle<(kIndex & kBit ? kLanes + kIndex : kIndex)...>(a, b);
  const V crossed = shuffle<(kIndex & kBit ? kLanes + (kIndex ^ kBit) : kIndex ^ kBit)...>(a, b);
  return straight + crossed;
}

// Lane j of the result = sum over the lanes of vectors[j], for as many vectors as there are lanes. Sums are formed in
// the same order whatever j is, so a sum does not depend on its place.
template <int kLanes, int kBit = 1, typename V>
FOCUS_LAB_INLINE V sums_of_lanes(const V* vectors) {
  if constexpr (kBit == kLanes) {
    return vectors[0];
  } else {
    constexpr int kLeft = kLanes / (2 * kBit);  // vectors after this step
    V folded[kLeft];
#pragma GCC unroll 16
    for (int i = 0; i < kLeft; ++i) folded[i] = fold<kBit>(vectors[2 * i], vectors[2 * i + 1], UpTo<kLanes>());
    return sums_of_lanes<kLanes, 2 * kBit>(folded);
  }
}

// One bit a lane of a vector of comparisons.
template <int kLanes, typename I>
FOCUS_LAB_INLINE uint32_t bits_of(I comparison) {
#if FOCUS_LAB_VECTOR_BYTES >= 64
  if constexpr (sizeof(I) == 64 && kLanes == 16) return _mm512_movepi32_mask(bits_as<__m512i>(comparison));
  if constexpr (sizeof(I) == 64 && kLanes == 8) return _mm512_movepi64_mask(bits_as<__m512i>(comparison));
#elif FOCUS_LAB_VECTOR_BYTES >= 32
  if constexpr (kLanes == 8) return uint32_t(_mm256_movemask_ps(bits_as<__m256>(comparison)));
  if constexpr (kLanes == 4) return uint32_t(_mm256_movemask_pd(bits_as<__m256d>(comparison)));
#endif
  uint32_t bits = 0;
  for (int lane = 0; lane < kLanes; ++lane) bits |= uint32_t(comparison[lane] & 1) << lane;
  return bits;
}

// Stores the lanes whose bit is set, one behind the other; what stands behind them, up to a whole vector, is lost.
template <int kLanes, typename E>
FOCUS_LAB_INLINE void store_chosen(E* to, Vector<E, kLanes> vector, uint32_t bits) {
#if FOCUS_LAB_VECTOR_BYTES >= 64
  if constexpr (kLanes == 16 && sizeof(E) == 4) {
    _mm512_storeu_si512(to, _mm512_maskz_compress_epi32(__mmask16(bits), bits_as<__m512i>(vector)));
    return;
  }
#endif
  for (; bits != 0; bits &= bits - 1) *to++ = vector[__builtin_ctz(bits)];
}

template <typename A, int kLanes>
FOCUS_LAB_INLINE Vector<A, kLanes> round_down(Vector<A, kLanes> x) {
#if FOCUS_LAB_VECTOR_BYTES >= 64
  if constexpr (sizeof(x) == 64 && sizeof(A) == 4) {
    constexpr int kDown = _MM_FROUND_TO_NEG_INF | _MM_FROUND_NO_EXC;
    return bits_as<Vector<A, kLanes>>(_mm512_maskz_roundscale_ps(kEveryLane, bits_as<__m512>(x), kDown));
  }
#elif FOCUS_LAB_VECTOR_BYTES >= 32
  if constexpr (sizeof(x) == 32 && sizeof(A) == 4) {
    return bits_as<Vector<A, kLanes>>(_mm256_floor_ps(bits_as<__m256>(x)));
  }
#endif
  using V = Vector<A, kLanes>;
  const V truncated = __builtin_convertvector(__builtin_convertvector(x, Vector<Integer<A>, kLanes>), V);
  return truncated > x ? truncated - A(1) : truncated;
}

// Lane j is next to lane j ^ kBit: what a vector looks like from there.
template <int kBit, typename V, int... kIndex>
FOCUS_LAB_INLINE V crossed(V x, Indices<kIndex...>) {
  return shuffle<(kIndex ^ kBit)...>(x, x);
}

// The sum over all lanes, in all lanes; sum() of two vectors is what is done to lanes.
template <int kLanes, int kBit = 1, typename V, typename Sum>
FOCUS_LAB_INLINE V over_lanes(V x, const Sum& sum) {
  if constexpr (kBit == kLanes) {
    return x;
  } else {
    return over_lanes<kLanes, 2 * kBit>(sum(x, crossed<kBit>(x, UpTo<kLanes>())), sum);
  }
}

// from[index], lane by lane.
template <typename A, int kLanes>
FOCUS_LAB_INLINE Vector<A, kLanes> gather_lanes(const A* from, const int32_t* index) {
#if FOCUS_LAB_VECTOR_BYTES >= 64
  if constexpr (kLanes == 16 && sizeof(A) == 4) {
    return bits_as<Vector<A, kLanes>>(
        _mm512_mask_i32gather_ps(_mm512_setzero_ps(), kEveryLane, _mm512_loadu_si512(index), from, 4));
  }
#endif
  Vector<A, kLanes> gathered;
  for (int lane = 0; lane < kLanes; ++lane) gathered[lane] = from[index[lane]];
  return gathered;
}

// --- The exponential function ----------------------------------------------------------------------------------------

// ln 2 in two parts, the first so short that its multiples are exact; the smallest argument whose result is normal; the
// degree at which the series is exact between -ln 2 / 2 and ln 2 / 2.
template <typename A>
struct Exponential;
template <>
struct Exponential<float> {
  static constexpr float kLn2High = 0x1.63p-1f, kLn2Low = -0x1.bd0106p-13f, kLowest = -87.33654f;
  static constexpr int kDegree = 7, kMantissa = 23, kBias = 127;
};
template <>
struct Exponential<double> {
  static constexpr double kLn2High = 0x1.62e42feep-1, kLn2Low = 0x1.a39ef35793c76p-33, kLowest = -708.396418532264;
  static constexpr int kDegree = 13, kMantissa = 52, kBias = 1023;
};

// 1 / i!
template <typename A, int kDegree>
struct Series {
  A term[kDegree + 1];
  constexpr Series() : term{1} {
    for (int i = 1; i <= kDegree; ++i) term[i] = term[i - 1] / A(i);
  }
};

// exp(x) for x <= 0: what would be subnormal is zero. NaN for NaN; anything for x > 0.
template <typename A, int kLanes>
FOCUS_LAB_INLINE Vector<A, kLanes> exp_of(Vector<A, kLanes> x) {
  using E = Exponential<A>;
  using V = Vector<A, kLanes>;
  using I = Vector<Integer<A>, kLanes>;
  const V zero = {};
  const I normal = (x >= E::kLowest) & (x <= zero);
  const V safe = normal ? x : zero;
  const V halvings = round_down<A, kLanes>(safe * A(1.4426950408889634) + A(0.5));
  const V rest = (safe - halvings * E::kLn2High) - halvings * E::kLn2Low;
  constexpr Series<A, E::kDegree> series;
  V sum = zero + series.term[E::kDegree];
#pragma GCC unroll 16
  for (int i = E::kDegree - 1; i >= 0; --i) sum = sum * rest + series.term[i];
  const I exponent = (__builtin_convertvector(halvings, I) + E::kBias) << E::kMantissa;
  return normal ? sum * bits_as<V>(exponent) : (x < zero ? zero : x);
}

// --- 16-bit numbers --------------------------------------------------------------------------------------------------

// To the nearest, ties to even; the result is the upper half of each lane.
template <int kLanes>
FOCUS_LAB_INLINE Vector<uint32_t, kLanes> rounded_to_bfloat16(Vector<float, kLanes> x) {
  using U = Vector<uint32_t, kLanes>;
  const U bits = bits_as<U>(x);
  const U rounded = bits + (0x7fffu + (bits >> 16 & 1u));
  return x == x ? rounded : (bits | 0x400000u);  // rounding would turn some NaN into infinity
}

template <int kLanes>
FOCUS_LAB_INLINE Vector<float, kLanes> from_half(const Half* from) {
  using V = Vector<float, kLanes>;
#if FOCUS_LAB_VECTOR_BYTES >= 64
  if constexpr (kLanes == 16) {
    return bits_as<V>(_mm512_maskz_cvtph_ps(kEveryLane, _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from))));
  }
#endif
#if FOCUS_LAB_VECTOR_BYTES >= 32
  if constexpr (kLanes == 8) {
    return bits_as<V>(_mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from))));
  }
  if constexpr (kLanes == 4) {
    return bits_as<V>(_mm_cvtph_ps(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(from))));
  }
#endif
  using U = Vector<uint32_t, kLanes>;
  const U bits = __builtin_convertvector(load<Vector<uint16_t, kLanes>>(from), U);
  // The exponent's bias is moved by a product, which is right for subnormal numbers too.
  const U magnitude = (bits & 0x7fffu) << 13;
  const U scaled = bits_as<U>(bits_as<V>(magnitude) * 0x1p112f);
  const U special = (bits & 0x7c00u) == 0x7c00u ? scaled | 0x7f800000u : scaled;  // infinity and NaN
  return bits_as<V>(special | (bits & 0x8000u) << 16);
}

FOCUS_LAB_INLINE uint16_t half_bits(float x) {
  const uint32_t bits = bits_as<uint32_t>(x);
  const uint32_t sign = bits >> 16 & 0x8000u;
  uint32_t magnitude = bits & 0x7fffffffu;
  if (magnitude > 0x7f800000u) return uint16_t(sign | 0x7e00u);   // NaN
  if (magnitude >= 0x477ff000u) return uint16_t(sign | 0x7c00u);  // 65520 and above round to infinity
  if (magnitude < 0x38800000u) {
    // Subnormal: adding one half puts the last bit of a half in the last bit of a float, and rounds.
    return uint16_t(sign | (bits_as<uint32_t>(bits_as<float>(magnitude) + 0.5f) - 0x3f000000u));
  }
  magnitude += 0xc8000fffu + (magnitude >> 13 & 1u);  // 127 - 15 less in the exponent, and rounding
  return uint16_t(sign | magnitude >> 13);
}

template <int kLanes>
FOCUS_LAB_INLINE void to_half(Half* to, Vector<float, kLanes> x) {
#if FOCUS_LAB_VECTOR_BYTES >= 64
  if constexpr (kLanes == 16) {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(to),
                        _mm512_maskz_cvtps_ph(kEveryLane, bits_as<__m512>(x), _MM_FROUND_TO_NEAREST_INT));
    return;
  }
#endif
#if FOCUS_LAB_VECTOR_BYTES >= 32
  if constexpr (kLanes == 8) {
    _mm_storeu_si128(reinterpret_cast<__m128i*>(to), _mm256_cvtps_ph(bits_as<__m256>(x), _MM_FROUND_TO_NEAREST_INT));
    return;
  }
#endif
  for (int lane = 0; lane < kLanes; ++lane) to[lane].bits = half_bits(x[lane]);
}

// --- Rows ------------------------------------------------------------------------------------------------------------

// kChannels channels of a row as vectors of arithmetic, in an order of our own: only load and store know it, and sums
// over queries or channels do not care.
template <typename T, int kChannels>
struct Row {
  using A = Arithmetic<T>;
  // A single channel is the first lane of a vector whose other lanes are zero.
  static constexpr int kLanes =
      kChannels == 1 ? 16 / int(sizeof(A)) : (kChannels < kWidth<A> ? kChannels : kWidth<A>);
  static constexpr int kVectors = kChannels == 1 ? 1 : kChannels / kLanes;
  using V = Vector<A, kLanes>;
  static_assert(kChannels == 1 || kVectors * kLanes == kChannels, "whole vectors");
};

template <int kChannels, typename T>
FOCUS_LAB_INLINE void load_plain_row(const T* from, typename Row<T, kChannels>::V* row) {
  using R = Row<T, kChannels>;
  if constexpr (kChannels == 1) {
    row[0] = typename R::V{from[0]};
  } else {
    for (int i = 0; i < R::kVectors; ++i) row[i] = load<typename R::V>(from + i * R::kLanes);
  }
}

template <int kChannels>
FOCUS_LAB_INLINE void load_row(const float* from, typename Row<float, kChannels>::V* row) {
  load_plain_row<kChannels>(from, row);
}

template <int kChannels>
FOCUS_LAB_INLINE void load_row(const double* from, typename Row<double, kChannels>::V* row) {
  load_plain_row<kChannels>(from, row);
}

template <int kChannels>
FOCUS_LAB_INLINE void load_row(const BFloat16* from, typename Row<BFloat16, kChannels>::V* row) {
  using R = Row<BFloat16, kChannels>;
  using V = typename R::V;
  using U = Vector<uint32_t, R::kLanes>;
  if constexpr (kChannels == 1) {
    row[0] = V{bits_as<float>(uint32_t(from[0].bits) << 16)};
  } else if constexpr (R::kVectors % 2 == 0) {
    // A bfloat16 is the upper half of a float: even and odd channels come apart without a shuffle.
    for (int i = 0; i < R::kVectors; i += 2) {
      const U pairs = load<U>(from + i * R::kLanes);
      row[i] = bits_as<V>(pairs << 16);
      row[i + 1] = bits_as<V>(pairs & 0xffff0000u);
    }
  } else {
    static_assert(R::kVectors == 1, "rows of one vector or of pairs of vectors");
    const auto bits = __builtin_convertvector(load<Vector<uint16_t, R::kLanes>>(from), U);
    row[0] = bits_as<V>(bits << 16);
  }
}

template <int kChannels>
FOCUS_LAB_INLINE void load_row(const Half* from, typename Row<Half, kChannels>::V* row) {
  using R = Row<Half, kChannels>;
  if constexpr (kChannels == 1) {
    const Half padded[4] = {from[0], {0}, {0}, {0}};
    row[0] = from_half<4>(padded);
  } else {
    for (int i = 0; i < R::kVectors; ++i) row[i] = from_half<R::kLanes>(from + i * R::kLanes);
  }
}

template <int kChannels, typename T>
FOCUS_LAB_INLINE void store_plain_row(T* to, const typename Row<T, kChannels>::V* row) {
  using R = Row<T, kChannels>;
  if constexpr (kChannels == 1) {
    to[0] = row[0][0];
  } else {
    for (int i = 0; i < R::kVectors; ++i) store(to + i * R::kLanes, row[i]);
  }
}

template <int kChannels>
FOCUS_LAB_INLINE void store_row(float* to, const typename Row<float, kChannels>::V* row) {
  store_plain_row<kChannels>(to, row);
}

template <int kChannels>
FOCUS_LAB_INLINE void store_row(double* to, const typename Row<double, kChannels>::V* row) {
  store_plain_row<kChannels>(to, row);
}

template <int kChannels>
FOCUS_LAB_INLINE void store_row(BFloat16* to, const typename Row<BFloat16, kChannels>::V* row) {
  using R = Row<BFloat16, kChannels>;
  using U = Vector<uint32_t, R::kLanes>;
  if constexpr (kChannels == 1) {
    to[0].bits = uint16_t(rounded_to_bfloat16<R::kLanes>(row[0])[0] >> 16);
  } else if constexpr (R::kVectors % 2 == 0) {
    for (int i = 0; i < R::kVectors; i += 2) {
      const U even = rounded_to_bfloat16<R::kLanes>(row[i]) >> 16;
      const U odd = rounded_to_bfloat16<R::kLanes>(row[i + 1]) & 0xffff0000u;
      store(to + i * R::kLanes, even | odd);
    }
  } else {
    const U bits = rounded_to_bfloat16<R::kLanes>(row[0]) >> 16;
    store(to, __builtin_convertvector(bits, Vector<uint16_t, R::kLanes>));
  }
}

template <int kChannels>
FOCUS_LAB_INLINE void store_row(Half* to, const typename Row<Half, kChannels>::V* row) {
  using R = Row<Half, kChannels>;
  if constexpr (kChannels == 1) {
    to[0].bits = half_bits(row[0][0]);
  } else {
    for (int i = 0; i < R::kVectors; ++i) to_half<R::kLanes>(to + i * R::kLanes, row[i]);
  }
}

}  // namespace
}  // namespace focus_lab
