// Launching, and sentences about what went wrong.
#pragma once

#include <cuda_runtime.h>

#include <cstdio>

#include "plan.h"

namespace focus_lab {

// Given by the build: what nvcc compiles for, such as "75 80 90".
#ifndef FOCUS_LAB_CUDA_ARCHITECTURES
#define FOCUS_LAB_CUDA_ARCHITECTURES "unknown"
#endif

constexpr size_t kSentenceLength = 512;
inline char (&sentence())[kSentenceLength] {
  static thread_local char text[kSentenceLength];
  return text;
}

// What has gone wrong; nullptr for nothing.
inline const char* explain(cudaError_t error, const char* during) {
  if (error == cudaSuccess) return nullptr;
  cudaGetLastError();  // it has been reported: whoever asks next must not be told again
  const bool no_code = error == cudaErrorNoKernelImageForDevice || error == cudaErrorInvalidDeviceFunction ||
                       error == cudaErrorUnsupportedPtxVersion || error == cudaErrorInvalidPtx;
  if (no_code) {
    int device = 0, major = 0, minor = 0;
    cudaGetDevice(&device);
    cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device);
    cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, device);
    std::snprintf(sentence(), kSentenceLength,
                  "%s failed with %s (%s): built for architectures %s, got cuda:%d of architecture %d%d; build the "
                  "operators for it",
                  during, cudaGetErrorName(error), cudaGetErrorString(error), FOCUS_LAB_CUDA_ARCHITECTURES, device,
                  major, minor);
  } else {
    std::snprintf(sentence(), kSentenceLength, "%s failed with %s (%s)", during, cudaGetErrorName(error),
                  cudaGetErrorString(error));
  }
  return sentence();
}

#define FOCUS_LAB_TRY(call, during)                              \
  do {                                                           \
    const char* focus_lab_sentence = explain((call), (during));  \
    if (focus_lab_sentence != nullptr) return focus_lab_sentence; \
  } while (false)

// Launches without the <<<>>> syntax, which hides what the launch returns.
template <typename Arguments>
const char* launch(void (*kernel)(const Arguments), dim3 grid, unsigned threads, size_t shared, void* stream,
                   const Arguments& arguments, const char* during) {
  if (shared > kPlainShared) {
    FOCUS_LAB_TRY(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(shared)),
                  during);
  }
  void* parameters[] = {const_cast<Arguments*>(&arguments)};
  FOCUS_LAB_TRY(cudaLaunchKernel(kernel, grid, dim3(threads), parameters, shared, static_cast<cudaStream_t>(stream)),
                during);
  return nullptr;
}

// A grid's third axis takes 65535 images; more get several launches.
constexpr int64_t kMaxImages = 65535;

template <typename Arguments>
const char* launch_images(void (*kernel)(const Arguments), const Problem& problem, const Launch& plan, void* stream,
                          Arguments arguments, const char* during) {
  for (int64_t first = 0; first < problem.batch; first += kMaxImages) {
    const int64_t left = problem.batch - first;
    arguments.first_image = first;
    const dim3 grid(plan.tiles, static_cast<unsigned>(problem.heads),
                    static_cast<unsigned>(left < kMaxImages ? left : kMaxImages));
    const char* const error = launch(kernel, grid, plan.threads, plan.shared, stream, arguments, during);
    if (error != nullptr) return error;
  }
  return nullptr;
}

// The grid of a kernel of whole arrays.
constexpr unsigned kArrayThreads = 256;
// Enough for every GPU; each thread goes on from there in steps of the grid. The tests on the host have few.
#ifndef FOCUS_LAB_ARRAY_BLOCKS
#define FOCUS_LAB_ARRAY_BLOCKS (132 * 16)
#endif
constexpr int64_t kArrayBlocks = FOCUS_LAB_ARRAY_BLOCKS;

inline dim3 array_grid(int64_t count) {
  const int64_t blocks = (count + kArrayThreads - 1) / kArrayThreads;
  return dim3(static_cast<unsigned>(blocks < kArrayBlocks ? blocks : kArrayBlocks));
}

inline const char* device_attribute(cudaDeviceAttr attribute, int& value) {
  int device = 0;
  FOCUS_LAB_TRY(cudaGetDevice(&device), "finding the device");
  FOCUS_LAB_TRY(cudaDeviceGetAttribute(&value, attribute, device), "asking the device");
  return nullptr;
}

// The deal of a call: `split` as asked for (0: by rule), as far as a warp has room.
inline const char* deal_of(const Problem& problem, const RowPlan& row, int split, Deal& deal) {
  deal.lanes_log2 = row.lanes_log2;
  deal.split_log2 = 0;
  if (split > 0) {
    const int asked = log2_up(split), most = max_split_log2(row.lanes_log2);
    deal.split_log2 = asked < most ? asked : most;
    return nullptr;
  }
  int multiprocessors = 0;
  const char* const error = device_attribute(cudaDevAttrMultiProcessorCount, multiprocessors);
  if (error == nullptr) deal.split_log2 = choose_split_log2(problem, row.lanes_log2, multiprocessors);
  return error;
}

inline bool aligned(const void* pointer) { return reinterpret_cast<uintptr_t>(pointer) % 16 == 0; }

inline const char* say(const char* text) {
  std::snprintf(sentence(), kSentenceLength, "%s", text);
  return sentence();
}

// Calls `with` with a value of the values' type.
template <typename With>
const char* for_dtype(Dtype dtype, const With& with) {
  switch (dtype) {
    case Dtype::kFloat64:
      return with(double());
    case Dtype::kFloat32:
      return with(float());
    case Dtype::kBFloat16:
      return with(BFloat16());
    case Dtype::kFloat16:
      return with(Float16());
  }
  return say("the CUDA kernels know no such dtype");
}

}  // namespace focus_lab
