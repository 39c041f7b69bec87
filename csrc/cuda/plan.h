// What is decided about a call before it is launched: which kernel, how a warp shares its work, how much memory a block
// gets. Plain C++.
#pragma once

#include <cstdio>

#include "launch.h"
#include "sample.h"

namespace focus_lab {

constexpr int kWarp = 32;

// --- The call as a kernel parameter ----------------------------------------------------------------------------------

struct Shape {
  int32_t tokens;
  int32_t token_quads;   // from one token of an image to the next: heads * channels / 4
  int32_t queries;
  int32_t heads;
  int32_t channels;
  int32_t samples;       // of a query and head: levels * points
  int32_t levels;
  int32_t points;
  uint32_t reciprocal_of_points;
  Level level[kMaxLevels];
};

// The description of a call that refused() finds nothing wrong with.
inline Shape shape_of(const Problem& problem) {
  Shape shape = {};
  shape.tokens = static_cast<int32_t>(problem.tokens);
  shape.token_quads = static_cast<int32_t>(problem.heads * problem.channels / 4);
  shape.queries = static_cast<int32_t>(problem.queries);
  shape.heads = static_cast<int32_t>(problem.heads);
  shape.channels = static_cast<int32_t>(problem.channels);
  shape.samples = problem.levels * problem.points;
  shape.levels = problem.levels;
  shape.points = problem.points;
  shape.reciprocal_of_points = reciprocal(problem.points);
  for (int level = 0; level < problem.levels; ++level) shape.level[level] = problem.level[level];
  return shape;
}

// --- What is refused -------------------------------------------------------------------------------------------------

// Why the kernels cannot take the call, as a sentence in `text`; nothing and false if they can.
template <size_t kLength>
bool refused(const Problem& problem, char (&text)[kLength]) {
  const auto say = [&](const char* what, long long got, const char* allowed) {
    std::snprintf(text, kLength, "the CUDA kernels cannot take this call: %s, got %lld; %s", what, got, allowed);
    return true;
  };
  constexpr int64_t kInt32 = INT32_MAX;
  if (problem.channels < 4 || problem.channels > 128 || problem.channels % 4 != 0) {
    return say("channels of a head", problem.channels, "a multiple of 4 up to 128");
  }
  if (problem.levels < 1 || problem.levels > kMaxLevels) return say("levels", problem.levels, "1 to 32");
  if (problem.points < 1 || problem.points > kMaxPoints) return say("points", problem.points, "1 to 8192");
  if (problem.heads < 1 || problem.heads > 65535) return say("heads", problem.heads, "1 to 65535");
  if (problem.batch < 0) return say("batch", problem.batch, "0 or more");
  if (problem.queries < 0 || problem.queries > kInt32) return say("queries", problem.queries, "less than 2^31");
  if (problem.tokens < 1 || problem.tokens > kInt32) return say("tokens", problem.tokens, "1 to 2^31 - 1");
  const int64_t samples = int64_t(problem.levels) * problem.points;
  if (problem.heads * samples > kInt32 / kWarp) {
    return say("samples of a query", problem.heads * samples, "at most 2^26 - 1 of all heads");
  }
  // Offsets within an image are 32 bits wide, whatever they count.
  if (problem.tokens > kInt32 / (problem.heads * problem.channels)) {
    return say("tokens of an image", problem.tokens, "tokens * heads * channels must be less than 2^31");
  }
  if (problem.value_token_stride != problem.heads * problem.channels ||
      problem.value_batch_stride != problem.tokens * problem.value_token_stride) {
    return say("value is not contiguous, step of a token", problem.value_token_stride, "heads * channels is needed");
  }
  // What the kernels read is safe only if each level lies within the image.
  for (int level = 0; level < problem.levels; ++level) {
    const Level& at = problem.level[level];
    const bool inside = at.height > 0 && at.width > 0 && at.start >= 0 &&
                        int64_t(at.height) * at.width <= problem.tokens - at.start;
    if (!inside) return say("a level outside the image, number", level, "levels must lie within the tokens");
  }
  return false;
}

// --- How a warp shares its work (see warp.cuh) -----------------------------------------------------------------------

// Of a kernel that learns the number of lanes at run time: for the numbers of channels that are rare.
constexpr int kAnyLanes = -1;

struct Deal {
  int lanes_log2;
  int split_log2;
};

// Samples that each group of lanes takes of a slab: as many as it has lanes, so that a slab is one sample for each lane
// of the warp, but enough to have four samples' loads under way at once and to make a slab worth its synchronisation.
FOCUS_LAB_HOST_DEVICE constexpr int run_log2(int lanes_log2) {
  return lanes_log2 < 2 ? 2 : lanes_log2 < 4 ? 3 : lanes_log2;
}

// Samples of a query in a slab; at most a warp's width, or a query's samples would not meet in one ballot.
FOCUS_LAB_HOST_DEVICE constexpr int slab_log2(Deal deal) { return run_log2(deal.lanes_log2) + deal.split_log2; }
FOCUS_LAB_HOST_DEVICE constexpr int queries_log2(Deal deal) { return 5 - deal.lanes_log2 - deal.split_log2; }
FOCUS_LAB_HOST_DEVICE constexpr int max_split_log2(int lanes_log2) {
  return 5 - lanes_log2 < 2 ? 5 - lanes_log2 : 2;
}

// Set-ups that each lane does for a slab.
FOCUS_LAB_HOST_DEVICE constexpr int rounds(int lanes_log2) { return 1 << (run_log2(lanes_log2) - lanes_log2); }

// Set-ups in shared memory, in bytes: those of a query stand in a row. 16 bytes between the rows keep those of a warp's
// queries in different banks, as a place is a multiple of 16 bytes and a row has an even number of them.
FOCUS_LAB_HOST_DEVICE constexpr int row_bytes(Deal deal, int place_bytes) {
  return (place_bytes << slab_log2(deal)) + 16;
}
FOCUS_LAB_HOST_DEVICE constexpr int warp_bytes(Deal deal, int place_bytes) {
  return row_bytes(deal, place_bytes) << queries_log2(deal);
}

// --- Rows ------------------------------------------------------------------------------------------------------------

constexpr int log2_up(int x) {
  int bits = 0;
  while ((1 << bits) < x) ++bits;
  return bits;
}

// How the row of a pixel is shared by lanes.
struct RowPlan {
  int chunk;       // channels of a lane
  int lanes_log2;
  bool full;       // every lane has a chunk
};

inline RowPlan row_plan(Dtype dtype, int64_t channels) {
  const bool narrow = dtype == Dtype::kBFloat16 || dtype == Dtype::kFloat16;
  RowPlan plan;
  plan.chunk = narrow && channels % 8 == 0 ? 8 : 4;
  const int chunks = static_cast<int>(channels) / plan.chunk;
  plan.lanes_log2 = log2_up(chunks);
  plan.full = chunks == 1 << plan.lanes_log2;
  return plan;
}

// Calls `visit` with the channels of a lane and the number of lanes, as constants: rows of 16, 32 and 64 channels have
// kernels of their own, all others share one that learns its lanes at run time.
template <int kValue>
struct Constant {
  static constexpr int value = kValue;
};

template <typename V, typename Visit>
auto with_row(const RowPlan& row, const Visit& visit) {
  if constexpr (sizeof(V) == 4) {
    if (row.full && row.lanes_log2 == 2) return visit(Constant<4>(), Constant<2>());
    if (row.full && row.lanes_log2 == 3) return visit(Constant<4>(), Constant<3>());
    if (row.full && row.lanes_log2 == 4) return visit(Constant<4>(), Constant<4>());
  }
  if constexpr (sizeof(V) == 2) {
    if (row.chunk == 8) {
      if (row.full && row.lanes_log2 == 1) return visit(Constant<8>(), Constant<1>());
      if (row.full && row.lanes_log2 == 2) return visit(Constant<8>(), Constant<2>());
      if (row.full && row.lanes_log2 == 3) return visit(Constant<8>(), Constant<3>());
      return visit(Constant<8>(), Constant<kAnyLanes>());
    }
  }
  return visit(Constant<4>(), Constant<kAnyLanes>());
}

// --- Grid ------------------------------------------------------------------------------------------------------------

constexpr int kMaxThreads = 256;
constexpr int kPlainShared = 48 * 1024;  // what a block may have without asking

struct Launch {
  unsigned tiles;  // blocks along the queries
  unsigned threads;
  size_t shared;
};

// With few queries, as in a decoder, the warps do not fill the GPU: groups of lanes then share the samples of a query
// while a multiprocessor has fewer than kEnoughWarps, and each group keeps at least four samples.
constexpr int64_t kEnoughWarps = 32;

inline int choose_split_log2(const Problem& problem, int lanes_log2, int multiprocessors) {
  const int64_t samples = int64_t(problem.levels) * problem.points;
  const int64_t pairs = problem.batch * problem.heads * problem.queries;
  int split_log2 = 0;
  while (split_log2 < max_split_log2(lanes_log2) && samples >> (split_log2 + 1) >= 4 &&
         (pairs >> (5 - lanes_log2 - split_log2)) < kEnoughWarps * multiprocessors) {
    ++split_log2;
  }
  return split_log2;
}

inline Launch launch_plan(const Problem& problem, Deal deal, int place_bytes) {
  Launch launch;
  const int bytes = warp_bytes(deal, place_bytes);
  int warps = kPlainShared / bytes;
  if (warps > kMaxThreads / kWarp) warps = kMaxThreads / kWarp;
  const int64_t queries_of_block = int64_t(warps) << queries_log2(deal);
  launch.tiles = static_cast<unsigned>((problem.queries + queries_of_block - 1) / queries_of_block);
  launch.threads = static_cast<unsigned>(warps * kWarp);
  launch.shared = static_cast<size_t>(warps) * bytes;
  return launch;
}

// --- grad_value ------------------------------------------------------------------------------------------------------

// A share of grad_value on its way: which pixel, from which query (see contribution_key), and its weight.
struct alignas(8) Contribution {
  uint32_t key;
  float weight;
};

constexpr int kScatterThreads = 256;
constexpr int kScatterWarps = kScatterThreads / kWarp;
constexpr int kPassPointsLog2 = 2;  // points of a level that are sorted together
// Samples that a thread counts and files in a pass.
constexpr int kScatterRounds = (kMaxSortedQueries << kPassPointsLog2) / kScatterThreads;

// A block's memory, in order: the gradients of its queries, the sorted contributions, the buckets' counters, the sums
// of the warps.
FOCUS_LAB_HOST_DEVICE constexpr int scatter_contributions(int queries_log2, int pass_log2) {
  return 4 << (queries_log2 + pass_log2);
}
FOCUS_LAB_HOST_DEVICE constexpr int scatter_bytes(int queries_log2, int pass_log2, int channels) {
  return (channels << queries_log2) * static_cast<int>(sizeof(float)) +
         scatter_contributions(queries_log2, pass_log2) * static_cast<int>(sizeof(Contribution)) +
         (kCounterWords + kScatterWarps) * static_cast<int>(sizeof(uint32_t));
}

// The sorted variant's block: as many queries as its memory allows, since more of them share more pixels.
struct ScatterPlan {
  bool possible;
  int queries_log2;
  int pass_log2;
  Launch launch;
};

// `most`: what a block may have, `of_multiprocessor`: what its multiprocessor has. One block alone would leave it
// waiting at every barrier, so that two must fit.
inline ScatterPlan scatter_plan(const Problem& problem, int most, int of_multiprocessor) {
  constexpr int kReserved = 1024;  // by the system, for each block
  const int half = of_multiprocessor / 2 - kReserved;
  const int max_shared = most < half ? most : half;
  ScatterPlan plan = {};
  const int points = problem.points;
  plan.pass_log2 = points >= 4 ? kPassPointsLog2 : log2_up(points);
  // Rows of 128 bytes and 256 queries are 72 KiB; longer rows get fewer queries, and multiprocessors more blocks.
  plan.queries_log2 = problem.channels <= 32 ? 8 : problem.channels <= 64 ? 7 : 6;
  const int channels = static_cast<int>(problem.channels);
  while (plan.queries_log2 > 5 && scatter_bytes(plan.queries_log2, plan.pass_log2, channels) > max_shared) {
    --plan.queries_log2;
  }
  plan.launch.shared = static_cast<size_t>(scatter_bytes(plan.queries_log2, plan.pass_log2, channels));
  const int64_t queries_of_block = int64_t(1) << plan.queries_log2;
  plan.launch.tiles = static_cast<unsigned>((problem.queries + queries_of_block - 1) / queries_of_block);
  plan.launch.threads = kScatterThreads;
  plan.possible = problem.dtype != Dtype::kFloat64 && problem.tokens <= kMaxSortedTokens &&
                  plan.launch.shared <= static_cast<size_t>(max_shared);
  return plan;
}

// Sorting pays where many queries of a block share pixels and memory would be busy with additions: when every
// multiprocessor gets at least a block of 256 queries. Fewer, as in a decoder, add directly: their additions are few,
// and spread over more warps.
constexpr int64_t kQueriesWorthSorting = 256;

inline bool worth_sorting(const Problem& problem, const ScatterPlan& plan, int multiprocessors) {
  return plan.possible && problem.queries >= kQueriesWorthSorting &&
         problem.batch * problem.heads * problem.queries >= kQueriesWorthSorting * multiprocessors;
}

// --- Workspace -------------------------------------------------------------------------------------------------------

constexpr int64_t kLargestBytes = 256;  // in front of the integers of deterministic mode, and as aligned as they

inline int64_t workspace_bytes(const Problem& problem, bool deterministic) {
  const int64_t values = problem.batch * problem.tokens * problem.heads * problem.channels;
  if (deterministic) return kLargestBytes + values * static_cast<int64_t>(sizeof(int64_t));
  const bool narrow = problem.dtype == Dtype::kBFloat16 || problem.dtype == Dtype::kFloat16;
  return narrow ? values * static_cast<int64_t>(sizeof(float)) : 0;
}

inline size_t bytes_of(Dtype dtype) { return dtype == Dtype::kFloat64 ? 8 : dtype == Dtype::kFloat32 ? 4 : 2; }

// 2^samples_log2 >= samples of a level.
inline int32_t samples_log2(const Problem& problem) {
  int32_t bits = 0;
  while ((int64_t(1) << bits) < problem.queries * problem.points) ++bits;
  return bits;
}

}  // namespace focus_lab
