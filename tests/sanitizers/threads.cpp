// In the place of torch's parallel_for: threads of its own, which ThreadSanitizer knows of.
#include <cstdint>
#include <thread>
#include <vector>

using Range = void (*)(int64_t begin, int64_t end, void* context);

namespace {

int32_t run(const std::vector<int64_t>& begins, int64_t each, int64_t end, Range f, void* context) {
  std::vector<std::thread> threads;
  for (const int64_t begin : begins)
    threads.emplace_back(f, begin, begin + each < end ? begin + each : end, context);
  for (std::thread& thread : threads) thread.join();
  return 0;
}

}  // namespace

extern "C" {

// Every chunk by a thread of its own, up to 64 of them: also chunks of one tensor.
int32_t threads_of_its_own(int64_t begin, int64_t end, int64_t, Range f, void* context) {
  const int64_t each = (end - begin + 63) / 64;
  std::vector<int64_t> begins;
  for (int64_t at = begin; at < end; at += each) begins.push_back(at);
  return run(begins, each, end, f, context);
}

// A planted race: each thread takes a chunk of the next one's, too.
int32_t threads_that_overlap(int64_t begin, int64_t end, int64_t, Range f, void* context) {
  const int64_t each = (end - begin + 1) / 2;
  return run({begin, begin + each}, each + 1, end, f, context);
}
}
