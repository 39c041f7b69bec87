// A GPU for tests: what the kernels and their launchers use of CUDA, on the host.
//
// The threads of a block are fibers of one host thread. One runs until it waits for others (a barrier, a shuffle, a
// ballot), then another one does, in an order that the test chooses: what is read without waiting for whoever writes it
// is read too early in one order or another. A block's memory has exactly the size that the launch asks for and holds
// garbage, so that an address sanitizer and a comparison of results find what goes astray. Threads that never meet a
// barrier, or leave others waiting at one, end the program.
#pragma once

#include <ucontext.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <random>
#include <vector>

#define __global__
#define __device__
#define __host__
#define __launch_bounds__(...)
#define FOCUS_LAB_DEVICE inline
#define FOCUS_LAB_PARAMETER const
#define FOCUS_LAB_SHARED(name) unsigned char* const name = cuda_on_host::block_memory()

// --- Types -----------------------------------------------------------------------------------------------------------

struct alignas(8) float2 {
  float x, y;
};
struct alignas(16) float4 {
  float x, y, z, w;
};
struct alignas(16) double2 {
  double x, y;
};
struct alignas(8) uint2 {
  uint32_t x, y;
};
struct alignas(16) uint4 {
  uint32_t x, y, z, w;
};
struct alignas(16) int4 {
  int32_t x, y, z, w;
};
struct dim3 {
  unsigned x, y, z;
  explicit dim3(unsigned x_ = 1, unsigned y_ = 1, unsigned z_ = 1) : x(x_), y(y_), z(z_) {}
};

inline float2 make_float2(float x, float y) { return {x, y}; }
inline float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }
inline double2 make_double2(double x, double y) { return {x, y}; }
inline uint2 make_uint2(uint32_t x, uint32_t y) { return {x, y}; }
inline uint4 make_uint4(uint32_t x, uint32_t y, uint32_t z, uint32_t w) { return {x, y, z, w}; }
inline int4 make_int4(int32_t x, int32_t y, int32_t z, int32_t w) { return {x, y, z, w}; }

// --- Numbers ---------------------------------------------------------------------------------------------------------

template <typename To, typename From>
To with_bits_of(From from) {
  static_assert(sizeof(To) == sizeof(From), "the same bits");
  To to;
  std::memcpy(&to, &from, sizeof(to));
  return to;
}
inline float __uint_as_float(uint32_t bits) { return with_bits_of<float>(bits); }
inline uint32_t __float_as_uint(float x) { return with_bits_of<uint32_t>(x); }
inline double __longlong_as_double(long long bits) { return with_bits_of<double>(bits); }
inline long long __double_as_longlong(double x) { return with_bits_of<long long>(x); }
inline int __ffs(int x) { return __builtin_ffs(x); }
inline long long __float2ll_rn(float x) { return std::llrint(x); }
inline long long __double2ll_rn(double x) { return std::llrint(x); }

inline float float_from_half(uint16_t half) {
  const uint32_t sign = (half & 0x8000u) << 16, exponent = (half >> 10) & 31u, fraction = half & 1023u;
  if (exponent == 31) return __uint_as_float(sign | 0x7f800000u | (fraction << 13));
  const float magnitude = exponent == 0 ? std::ldexp(static_cast<float>(fraction), -24)
                                        : std::ldexp(static_cast<float>(1024 + fraction), int(exponent) - 25);
  return sign != 0 ? -magnitude : magnitude;
}

inline uint16_t half_from_float(float x) {
  const uint16_t sign = static_cast<uint16_t>((__float_as_uint(x) >> 16) & 0x8000u);
  const float magnitude = std::fabs(x);
  if (std::isnan(x)) return 0x7fff;
  if (magnitude >= 65520.0f) return sign | 0x7c00;
  int exponent = -13;  // below lie zero and the subnormal numbers, in steps of 2^-24
  if (magnitude >= 0x1p-14f) std::frexp(magnitude, &exponent);
  const long steps = std::lrint(std::ldexp(magnitude, 11 - exponent));  // to nearest, ties to even
  // 1024 to 2048 steps of a normal number; 2048 of them carry into the exponent by themselves.
  return static_cast<uint16_t>(sign + ((exponent + 13) << 10) + steps);
}

// --- Threads ---------------------------------------------------------------------------------------------------------

namespace cuda_on_host {

[[noreturn]] inline void fail(const char* what) {
  std::fprintf(stderr, "cuda on host: %s\n", what);
  std::exit(3);
}

enum class State { kReady, kWaiting, kDone };

struct Fiber {
  ucontext_t context;
  std::unique_ptr<char[]> stack;
  State state = State::kReady;
  uint32_t generation = 0;  // of the warp's exchanges
};

struct Warp {
  unsigned arrived = 0;
  uint64_t value[2][32];  // of this exchange and the one before, which slow lanes may not have read yet
  char kind = 0;
};

struct Machine {
  uint32_t order = 0;  // 0 first thread first, 1 last thread first, others: a shuffle
  int max_shared = 227 * 1024;
  int multiprocessors = 132;
  bool has_kernels = true;  // for this device
  std::mt19937 random;
  std::vector<std::unique_ptr<Fiber>> fibers;  // kept from block to block: their stacks are large
  std::vector<Warp> warps;
  unsigned threads = 0, waiting_at_barrier = 0;
  unsigned running = 0;
  ucontext_t scheduler;
  unsigned char* memory = nullptr;
  void (*body)(void*) = nullptr;
  void* argument = nullptr;
  dim3 block_index, block_size, grid_size;
};

inline Machine& machine() {
  static Machine machine;
  return machine;
}

inline unsigned char* block_memory() { return machine().memory; }

inline void wait() {
  Machine& m = machine();
  Fiber& self = *m.fibers[m.running];
  self.state = State::kWaiting;
  swapcontext(&self.context, &m.scheduler);
}

inline void run_fiber() {
  Machine& m = machine();
  m.body(m.argument);
  m.fibers[m.running]->state = State::kDone;
  swapcontext(&m.fibers[m.running]->context, &m.scheduler);
}

inline void run_block(unsigned threads, size_t shared, void (*body)(void*), void* argument) {
  Machine& m = machine();
  // Exactly as much memory as asked for, at an address that is aligned to 16 bytes and no further.
  void* memory = nullptr;
  if (posix_memalign(&memory, 16, std::max<size_t>(shared, 1)) != 0) fail("no memory");
  m.memory = static_cast<unsigned char*>(memory);
  for (size_t i = 0; i < shared; ++i) m.memory[i] = static_cast<unsigned char>(0xf5 + i % 7);
  m.threads = threads;
  m.waiting_at_barrier = 0;
  m.warps.assign((threads + 31) / 32, Warp());
  m.body = body;
  m.argument = argument;
  constexpr size_t kStack = 256 * 1024;
  while (m.fibers.size() < threads) {
    m.fibers.push_back(std::make_unique<Fiber>());
    m.fibers.back()->stack = std::make_unique<char[]>(kStack);
  }
  for (unsigned i = 0; i < threads; ++i) {
    Fiber& fiber = *m.fibers[i];
    fiber.state = State::kReady;
    fiber.generation = 0;
    getcontext(&fiber.context);
    fiber.context.uc_stack.ss_sp = fiber.stack.get();
    fiber.context.uc_stack.ss_size = kStack;
    fiber.context.uc_link = nullptr;
    makecontext(&fiber.context, run_fiber, 0);
  }
  std::vector<unsigned> ready;
  for (;;) {
    ready.clear();
    bool all_done = true;
    for (unsigned i = 0; i < threads; ++i) {
      if (m.fibers[i]->state == State::kReady) ready.push_back(i);
      all_done = all_done && m.fibers[i]->state == State::kDone;
    }
    if (all_done) break;
    if (ready.empty()) fail("threads wait for others that have left or wait elsewhere");
    if (m.order == 1) std::reverse(ready.begin(), ready.end());
    if (m.order > 1) std::shuffle(ready.begin(), ready.end(), m.random);
    for (const unsigned next : ready) {
      if (m.fibers[next]->state != State::kReady) continue;
      m.running = next;
      swapcontext(&m.scheduler, &m.fibers[next]->context);
    }
  }
  std::free(memory);
  m.memory = nullptr;
}

// Every lane of the warp brings a value and gets that of lane `from`, which may be a number that is no lane's.
template <typename T>
T exchange(char kind, unsigned mask, T value, int from) {
  if (mask != 0xffffffffu) fail("the kernels only use whole warps");
  Machine& m = machine();
  const unsigned thread = m.running, lane = thread % 32;
  Warp& warp = m.warps[thread / 32];
  Fiber& self = *m.fibers[thread];
  const uint32_t slot = self.generation & 1;
  ++self.generation;
  if (warp.arrived == 0) warp.kind = kind;
  if (warp.kind != kind) fail("lanes of a warp wait at different places");
  std::memcpy(&warp.value[slot][lane], &value, sizeof(T));
  if (++warp.arrived == 32) {
    warp.arrived = 0;
    for (unsigned i = thread - lane; i < thread - lane + 32; ++i) m.fibers[i]->state = State::kReady;
  } else {
    wait();
  }
  T result;
  std::memcpy(&result, &warp.value[slot][from & 31], sizeof(T));
  return result;
}

}  // namespace cuda_on_host

struct ThreadIndex {
  struct Axis {
    operator unsigned() const { return cuda_on_host::machine().running; }
  } x;
};
inline ThreadIndex threadIdx;
#define blockIdx (cuda_on_host::machine().block_index)
#define blockDim (cuda_on_host::machine().block_size)
#define gridDim (cuda_on_host::machine().grid_size)

inline void __syncthreads() {
  cuda_on_host::Machine& m = cuda_on_host::machine();
  if (++m.waiting_at_barrier == m.threads) {
    m.waiting_at_barrier = 0;
    for (unsigned i = 0; i < m.threads; ++i) m.fibers[i]->state = cuda_on_host::State::kReady;
  } else {
    cuda_on_host::wait();
  }
}
inline void __syncwarp(unsigned mask = 0xffffffffu) { cuda_on_host::exchange('w', mask, 0, 0); }
template <typename T>
T __shfl_sync(unsigned mask, T value, int from) {
  return cuda_on_host::exchange('i', mask, value, from);
}
template <typename T>
T __shfl_xor_sync(unsigned mask, T value, int distance) {
  return cuda_on_host::exchange('x', mask, value, static_cast<int>(threadIdx.x % 32) ^ distance);
}
template <typename T>
T __shfl_up_sync(unsigned mask, T value, int distance) {
  const int lane = static_cast<int>(threadIdx.x % 32);
  return cuda_on_host::exchange('u', mask, value, lane < distance ? lane : lane - distance);
}
inline unsigned __ballot_sync(unsigned mask, bool vote) {
  unsigned votes = 0;
  for (int lane = 0; lane < 32; ++lane) {
    votes |= static_cast<unsigned>(cuda_on_host::exchange('b', mask, static_cast<int>(vote), lane)) << lane;
  }
  return votes;
}

// --- Memory ----------------------------------------------------------------------------------------------------------

template <typename T>
T __ldg(const T* from) {
  if (reinterpret_cast<uintptr_t>(from) % alignof(T) != 0) cuda_on_host::fail("a vector load is not aligned");
  return *from;
}
template <typename T>
T atomicAdd(T* to, T value) {
  const T before = *to;
  *to = before + value;
  return before;
}
template <typename T>
T atomicMax(T* to, T value) {
  const T before = *to;
  *to = std::max(before, value);
  return before;
}

// --- Runtime ---------------------------------------------------------------------------------------------------------

using cudaStream_t = void*;
enum cudaError_t {
  cudaSuccess,
  cudaErrorInvalidValue,
  cudaErrorNoKernelImageForDevice,
  cudaErrorInvalidDeviceFunction,
  cudaErrorUnsupportedPtxVersion,
  cudaErrorInvalidPtx
};
enum cudaDeviceAttr {
  cudaDevAttrComputeCapabilityMajor,
  cudaDevAttrComputeCapabilityMinor,
  cudaDevAttrMultiProcessorCount,
  cudaDevAttrMaxSharedMemoryPerBlockOptin,
  cudaDevAttrMaxSharedMemoryPerMultiprocessor
};
enum cudaFuncAttribute { cudaFuncAttributeMaxDynamicSharedMemorySize };

inline const char* cudaGetErrorName(cudaError_t) { return "an error"; }
inline const char* cudaGetErrorString(cudaError_t) { return "of the host"; }
inline cudaError_t cudaGetLastError() { return cudaSuccess; }
inline cudaError_t cudaGetDevice(int* device) {
  *device = 0;
  return cudaSuccess;
}
inline cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int) {
  switch (attribute) {
    case cudaDevAttrMultiProcessorCount:
      *value = cuda_on_host::machine().multiprocessors;
      break;
    case cudaDevAttrMaxSharedMemoryPerBlockOptin:
      *value = cuda_on_host::machine().max_shared;
      break;
    case cudaDevAttrMaxSharedMemoryPerMultiprocessor:
      *value = 2 * (cuda_on_host::machine().max_shared + 1024);
      break;
    default:
      *value = 9;
  }
  return cudaSuccess;
}
inline cudaError_t cudaMemsetAsync(void* to, int value, size_t bytes, cudaStream_t) {
  std::memset(to, value, bytes);
  return cudaSuccess;
}
template <typename Function>
cudaError_t cudaFuncSetAttribute(Function*, cudaFuncAttribute, int bytes) {
  return bytes <= cuda_on_host::machine().max_shared ? cudaSuccess : cudaErrorInvalidValue;
}

template <typename Arguments>
cudaError_t cudaLaunchKernel(void (*kernel)(const Arguments), dim3 grid, dim3 block, void** parameters, size_t shared,
                             cudaStream_t) {
  cuda_on_host::Machine& m = cuda_on_host::machine();
  if (!m.has_kernels) return cudaErrorNoKernelImageForDevice;
  if (grid.x == 0 || grid.y == 0 || grid.z == 0 || grid.y > 65535 || grid.z > 65535 || block.x == 0 || block.x > 1024) {
    return cudaErrorInvalidValue;
  }
  struct Call {
    void (*kernel)(const Arguments);
    const Arguments* arguments;
  } call = {kernel, static_cast<const Arguments*>(parameters[0])};
  m.block_size = block;
  m.grid_size = grid;
  for (unsigned z = 0; z < grid.z; ++z) {
    for (unsigned y = 0; y < grid.y; ++y) {
      for (unsigned x = 0; x < grid.x; ++x) {
        m.block_index = dim3(x, y, z);
        cuda_on_host::run_block(
            block.x, shared,
            [](void* argument) {
              const Call& it = *static_cast<Call*>(argument);
              it.kernel(*it.arguments);
            },
            &call);
      }
    }
  }
  return cudaSuccess;
}
