// Runs calls of the CUDA half on the host: reads them from standard input, writes what they leave to standard output.
//
// A call: 20 numbers of 64 bits (see Header), a height and a width for each level, then the arrays. Arrays are copied
// to memory of exactly their size; results start as NaN. The answer: 0 and the results, or the length of a sentence and
// the sentence.
#include <unistd.h>

#include "cuda_runtime.h"

#include "../../../csrc/cuda/launch.h"
#include "../../../csrc/cuda/plan.h"

namespace {

using namespace focus_lab;

struct Header {
  int64_t backward, dtype, batch, tokens, queries, heads, channels, levels, points;
  int64_t split, variant;  // of the ..._variant functions
  int64_t order, max_shared, multiprocessors;
  int64_t misalign;     // moves value by as many bytes
  int64_t has_kernels;  // 0: the library was built for other devices
  // From projections: numbers of a reference point (0: locations and weights are given), levels and images that have
  // their own, and the type of offsets and logits.
  int64_t reference_size, reference_levels, reference_batch, projected;
};

bool read_all(void* to, size_t bytes) { return std::fread(to, 1, bytes, stdin) == bytes; }

void write_all(const void* from, size_t bytes) {
  if (std::fwrite(from, 1, bytes, stdout) != bytes) cuda_on_host::fail("cannot write");
}

// Memory of exactly this size, aligned to 16 bytes.
struct Array {
  unsigned char* data;
  size_t bytes;
  explicit Array(size_t size) : bytes(size) {
    void* memory = nullptr;
    if (posix_memalign(&memory, 16, size > 0 ? size : 1) != 0) cuda_on_host::fail("no memory");
    data = static_cast<unsigned char*>(memory);
    std::memset(data, 0xff, size);  // NaN in every type
  }
  Array(const Array&) = delete;
  Array& operator=(const Array&) = delete;
  ~Array() { std::free(data); }
  void read() {
    if (!read_all(data, bytes)) cuda_on_host::fail("the call is cut off");
  }
};

void answer(const char* error, std::initializer_list<const Array*> results) {
  const int64_t length = error == nullptr ? 0 : static_cast<int64_t>(std::strlen(error));
  write_all(&length, sizeof(length));
  if (error != nullptr) {
    write_all(error, static_cast<size_t>(length));
    return;
  }
  for (const Array* result : results) write_all(result->data, result->bytes);
}

void run(const Header& header) {
  Problem problem = {};
  problem.batch = header.batch;
  problem.tokens = header.tokens;
  problem.queries = header.queries;
  problem.heads = header.heads;
  problem.channels = header.channels;
  problem.levels = static_cast<int32_t>(header.levels);
  problem.points = static_cast<int32_t>(header.points);
  problem.dtype = static_cast<Dtype>(header.dtype);
  problem.value_token_stride = header.heads * header.channels;
  problem.value_batch_stride = header.tokens * problem.value_token_stride;
  int32_t start = 0;
  for (int level = 0; level < problem.levels; ++level) {
    int32_t size[2];
    if (!read_all(size, sizeof(size))) cuda_on_host::fail("the call is cut off");
    problem.level[level] = {size[0], size[1], start};
    start += size[0] * size[1];
  }
  cuda_on_host::Machine& machine = cuda_on_host::machine();
  machine.order = static_cast<uint32_t>(header.order);
  machine.random.seed(machine.order);
  machine.max_shared = static_cast<int>(header.max_shared);
  machine.multiprocessors = static_cast<int>(header.multiprocessors);
  machine.has_kernels = header.has_kernels != 0;

  problem.reference_size = static_cast<int32_t>(header.reference_size);
  problem.reference_levels = static_cast<int32_t>(header.reference_levels);
  const size_t references = header.queries * header.reference_levels * header.reference_size;
  problem.reference_batch_stride = header.reference_batch == 1 ? 0 : references;
  problem.projected = static_cast<Dtype>(header.projected);

  const size_t element = bytes_of(problem.dtype), number = element == 8 ? 8 : 4;
  const size_t values = problem.batch * problem.tokens * problem.heads * problem.channels;
  const size_t outputs = problem.batch * problem.queries * problem.heads * problem.channels;
  const size_t samples = problem.batch * problem.queries * problem.heads * problem.levels * problem.points;
  Array value(values * element), locations(2 * samples * number), weights(samples * number);
  value.read();
  const bool made = header.reference_size > 0;
  const size_t narrow = bytes_of(problem.projected);
  Array reference_points(header.reference_batch * references * number), offsets(made ? 2 * samples * narrow : 0),
      logits(made ? samples * narrow : 0);
  if (made) {
    reference_points.read();
    offsets.read();
    logits.read();
    const char* error = focus_lab_cuda_make(&problem, reference_points.data, offsets.data, logits.data, locations.data,
                                            weights.data, nullptr);
    if (error != nullptr) return answer(error, {});
  } else {
    locations.read();
    weights.read();
  }
  const int split = static_cast<int>(header.split);
  if (header.backward == 0) {
    Array output(outputs * element);
    answer(focus_lab_cuda_forward_variant(&problem, value.data + header.misalign, locations.data, weights.data,
                                          output.data, split, nullptr),
           {&output});
    return;
  }
  Array grad_output(outputs * element);
  grad_output.read();
  Array grad_value(values * element), grad_locations(2 * samples * number), grad_weights(samples * number);
  const bool deterministic = header.variant == static_cast<int64_t>(BackwardVariant::kDeterministic);
  Array workspace(static_cast<size_t>(focus_lab_cuda_backward_workspace(&problem, deterministic)));
  const char* error = focus_lab_cuda_backward_variant(
      &problem, grad_output.data, value.data + header.misalign, locations.data, weights.data, grad_value.data,
      grad_locations.data, grad_weights.data, workspace.data, static_cast<int>(header.variant), split, nullptr);
  if (!made || error != nullptr) return answer(error, {&grad_value, &grad_locations, &grad_weights});
  Array grad_reference_points(reference_points.bytes), grad_offsets(offsets.bytes), grad_logits(logits.bytes);
  error = focus_lab_cuda_finish(&problem, reference_points.data, offsets.data, weights.data, grad_locations.data,
                                grad_weights.data, grad_reference_points.data, grad_offsets.data, grad_logits.data,
                                nullptr);
  answer(error, {&grad_value, &grad_reference_points, &grad_offsets, &grad_logits});
}

}  // namespace

int main() {
  Header header;
  while (read_all(&header, sizeof(header))) run(header);
  std::fflush(stdout);
  // Fibers that have not been unwound are nobody's: leave without looking for leaks.
  _exit(0);
}
