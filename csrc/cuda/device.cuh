// What the kernels need of the machine: types of 16 bits, vector loads and stores, additions to memory. The tests
// compile the kernels for the host too, where they bring their own threads.
#pragma once

#include <cuda_runtime.h>

#include "plan.h"

#if defined(__CUDACC__)
#define FOCUS_LAB_DEVICE __device__ __forceinline__
// Memory of the block, as much as the launch asks for.
#define FOCUS_LAB_SHARED(name) extern __shared__ __align__(16) unsigned char name[]
#define FOCUS_LAB_PARAMETER const __grid_constant__
#endif

namespace focus_lab {

constexpr unsigned kAllLanes = 0xffffffffu;

// --- Types -----------------------------------------------------------------------------------------------------------

// The 16-bit types by their bits: CUDA's headers for them take longer to compile than these kernels.
struct BFloat16 {
  uint16_t bits;
};
struct Float16 {
  uint16_t bits;
};

template <typename V>
struct Arithmetic {
  using Type = float;
};
template <>
struct Arithmetic<double> {
  using Type = double;
};

// A pair of floats from a word of two 16-bit values, the first in the lower half, and back.
FOCUS_LAB_DEVICE void unpack(uint32_t word, float& first, float& second, BFloat16) {
  // A bfloat16 is the upper half of a float.
  first = __uint_as_float(word << 16);
  second = __uint_as_float(word & 0xffff0000u);
}

FOCUS_LAB_DEVICE void unpack(uint32_t word, float& first, float& second, Float16) {
#if defined(__CUDACC__)
  asm("{\n .reg .b16 low, high;\n mov.b32 {low, high}, %2;\n cvt.f32.f16 %0, low;\n cvt.f32.f16 %1, high;\n}"
      : "=f"(first), "=f"(second)
      : "r"(word));
#else
  first = float_from_half(static_cast<uint16_t>(word));
  second = float_from_half(static_cast<uint16_t>(word >> 16));
#endif
}

FOCUS_LAB_DEVICE uint32_t pack(float first, float second, BFloat16) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
  uint32_t word;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(word) : "f"(second), "f"(first));
  return word;
#else
  // To nearest, ties to even; a NaN must not be rounded to infinity.
  const auto rounded = [](float x) {
    const uint32_t bits = __float_as_uint(x);
    return x != x ? 0x7fffu : (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
  };
  return rounded(first) | (rounded(second) << 16);
#endif
}

FOCUS_LAB_DEVICE uint32_t pack(float first, float second, Float16) {
#if defined(__CUDACC__)
  uint32_t word;
  asm("{\n .reg .b16 low, high;\n cvt.rn.f16.f32 low, %1;\n cvt.rn.f16.f32 high, %2;\n mov.b32 %0, {low, high};\n}"
      : "=r"(word)
      : "f"(first), "f"(second));
  return word;
#else
  return half_from_float(first) | (static_cast<uint32_t>(half_from_float(second)) << 16);
#endif
}

// --- Chunks ----------------------------------------------------------------------------------------------------------

// What a lane reads of a row at once: 16 bytes; 8 of 16-bit rows that 16 do not divide; two times 16 of doubles, whose
// rows would otherwise have more chunks than a warp has lanes. Kept as read, since converting at once would take the
// registers of the loads that are still under way.
template <typename V, int kChunk>
struct Chunk;

template <>
struct Chunk<float, 4> {
  float4 data;
  FOCUS_LAB_DEVICE void read(const float* from) { data = __ldg(reinterpret_cast<const float4*>(from)); }
  FOCUS_LAB_DEVICE void get(float (&x)[4]) const {
    x[0] = data.x;
    x[1] = data.y;
    x[2] = data.z;
    x[3] = data.w;
  }
};

template <>
struct Chunk<double, 4> {
  double2 low, high;
  FOCUS_LAB_DEVICE void read(const double* from) {
    low = __ldg(reinterpret_cast<const double2*>(from));
    high = __ldg(reinterpret_cast<const double2*>(from) + 1);
  }
  FOCUS_LAB_DEVICE void get(double (&x)[4]) const {
    x[0] = low.x;
    x[1] = low.y;
    x[2] = high.x;
    x[3] = high.y;
  }
};

template <typename V>
struct Chunk<V, 8> {
  uint4 data;
  FOCUS_LAB_DEVICE void read(const V* from) { data = __ldg(reinterpret_cast<const uint4*>(from)); }
  FOCUS_LAB_DEVICE void get(float (&x)[8]) const {
    unpack(data.x, x[0], x[1], V());
    unpack(data.y, x[2], x[3], V());
    unpack(data.z, x[4], x[5], V());
    unpack(data.w, x[6], x[7], V());
  }
};

template <typename V>
struct Chunk<V, 4> {
  uint2 data;
  FOCUS_LAB_DEVICE void read(const V* from) { data = __ldg(reinterpret_cast<const uint2*>(from)); }
  FOCUS_LAB_DEVICE void get(float (&x)[4]) const {
    unpack(data.x, x[0], x[1], V());
    unpack(data.y, x[2], x[3], V());
  }
};

FOCUS_LAB_DEVICE void write_chunk(float* to, const float (&x)[4]) {
  *reinterpret_cast<float4*>(to) = make_float4(x[0], x[1], x[2], x[3]);
}
FOCUS_LAB_DEVICE void write_chunk(double* to, const double (&x)[4]) {
  reinterpret_cast<double2*>(to)[0] = make_double2(x[0], x[1]);
  reinterpret_cast<double2*>(to)[1] = make_double2(x[2], x[3]);
}
template <typename V>
FOCUS_LAB_DEVICE void write_chunk(V* to, const float (&x)[8]) {
  *reinterpret_cast<uint4*>(to) =
      make_uint4(pack(x[0], x[1], V()), pack(x[2], x[3], V()), pack(x[4], x[5], V()), pack(x[6], x[7], V()));
}
template <typename V>
FOCUS_LAB_DEVICE void write_chunk(V* to, const float (&x)[4]) {
  *reinterpret_cast<uint2*>(to) = make_uint2(pack(x[0], x[1], V()), pack(x[2], x[3], V()));
}

// Four neighbours in shared memory, read or written as vectors.
FOCUS_LAB_DEVICE void read_four(const float* from, float (&x)[4]) {
  const float4 data = *reinterpret_cast<const float4*>(from);
  x[0] = data.x;
  x[1] = data.y;
  x[2] = data.z;
  x[3] = data.w;
}
FOCUS_LAB_DEVICE void read_four(const double* from, double (&x)[4]) {
  const double2 low = reinterpret_cast<const double2*>(from)[0], high = reinterpret_cast<const double2*>(from)[1];
  x[0] = low.x;
  x[1] = low.y;
  x[2] = high.x;
  x[3] = high.y;
}
FOCUS_LAB_DEVICE void read_four(const int32_t* from, int32_t (&x)[4]) {
  const int4 data = *reinterpret_cast<const int4*>(from);
  x[0] = data.x;
  x[1] = data.y;
  x[2] = data.z;
  x[3] = data.w;
}
FOCUS_LAB_DEVICE void write_four(float* to, const float (&x)[4]) { write_chunk(to, x); }
FOCUS_LAB_DEVICE void write_four(double* to, const double (&x)[4]) { write_chunk(to, x); }
FOCUS_LAB_DEVICE void write_four(int32_t* to, const int32_t (&x)[4]) {
  *reinterpret_cast<int4*>(to) = make_int4(x[0], x[1], x[2], x[3]);
}

FOCUS_LAB_DEVICE void read_pair(const float* from, float& x, float& y) {
  const float2 data = __ldg(reinterpret_cast<const float2*>(from));
  x = data.x;
  y = data.y;
}
FOCUS_LAB_DEVICE void read_pair(const double* from, double& x, double& y) {
  const double2 data = __ldg(reinterpret_cast<const double2*>(from));
  x = data.x;
  y = data.y;
}
FOCUS_LAB_DEVICE void write_pair(float* to, float x, float y) { *reinterpret_cast<float2*>(to) = make_float2(x, y); }
FOCUS_LAB_DEVICE void write_pair(double* to, double x, double y) {
  *reinterpret_cast<double2*>(to) = make_double2(x, y);
}

template <int kCount>
FOCUS_LAB_DEVICE void read_words(const uint32_t* from, uint32_t (&x)[kCount]) {
#pragma unroll
  for (int i = 0; i < kCount; i += 4) {
    const uint4 data = *reinterpret_cast<const uint4*>(from + i);
    x[i] = data.x;
    x[i + 1] = data.y;
    x[i + 2] = data.z;
    x[i + 3] = data.w;
  }
}
template <int kCount>
FOCUS_LAB_DEVICE void write_words(uint32_t* to, const uint32_t (&x)[kCount]) {
#pragma unroll
  for (int i = 0; i < kCount; i += 4) {
    *reinterpret_cast<uint4*>(to + i) = make_uint4(x[i], x[i + 1], x[i + 2], x[i + 3]);
  }
}

// The same number, of which the compiler knows nothing: what follows from it is computed anew where it is needed
// instead of being kept in registers from where it was needed before.
FOCUS_LAB_DEVICE int forgotten(int x) {
#if defined(__CUDACC__)
  asm volatile("" : "+r"(x));
#endif
  return x;
}
FOCUS_LAB_DEVICE float forgotten(float x) {
#if defined(__CUDACC__)
  asm volatile("" : "+f"(x));
#endif
  return x;
}

// Something in the block's memory.
template <typename T>
FOCUS_LAB_DEVICE T& place_at(unsigned char* memory, int bytes) {
  return *reinterpret_cast<T*>(memory + bytes);
}

// --- Additions to global memory that return nothing ------------------------------------------------------------------

// No "memory" clobber: the kernels never read what they add to.
FOCUS_LAB_DEVICE void add_four(float* to, float x, float y, float z, float w) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  asm volatile("red.relaxed.gpu.global.add.v4.f32 [%0], {%1, %2, %3, %4};" ::"l"(__cvta_generic_to_global(to)), "f"(x),
               "f"(y), "f"(z), "f"(w));
#else
  atomicAdd(to, x);
  atomicAdd(to + 1, y);
  atomicAdd(to + 2, z);
  atomicAdd(to + 3, w);
#endif
}

FOCUS_LAB_DEVICE void add_four(double* to, double x, double y, double z, double w) {
  atomicAdd(to, x);
  atomicAdd(to + 1, y);
  atomicAdd(to + 2, z);
  atomicAdd(to + 3, w);
}

// To nearest; the sum of two's complements is the same for signed and unsigned numbers.
FOCUS_LAB_DEVICE void add_fixed(unsigned long long* to, float x, const FixedPoint<float>& format) {
  atomicAdd(to, static_cast<unsigned long long>(__float2ll_rn(x * format.scale[0] * format.scale[1])));
}
FOCUS_LAB_DEVICE void add_fixed(unsigned long long* to, double x, const FixedPoint<double>& format) {
  atomicAdd(to, static_cast<unsigned long long>(__double2ll_rn(x * format.scale[0] * format.scale[1])));
}

// --- Rows ------------------------------------------------------------------------------------------------------------

// Rows are counted in quads, four channels each, from the image's first: the same number for arrays of every type, 32
// bits for images of up to 2^33 values, and a constant factor, which is part of the one instruction that makes an
// address of it (a factor known only at run time takes three).
template <typename V>
FOCUS_LAB_DEVICE V* at_quad(V* image, int32_t quad) {
  return reinterpret_cast<V(*)[4]>(image)[quad];
}

}  // namespace focus_lab
