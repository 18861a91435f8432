// What the memory gives to a loop with as many streams as AdamW's step has, and to one that reads;
// on torch's own threads, as the step: others would have to share the cores with these, which wait
// for work by spinning.
#include <cstdint>

namespace {

using Range = void (*)(int64_t first, int64_t last, void* context);
using ParallelFor = int32_t (*)(int64_t begin, int64_t end, int64_t grain, Range, void* context);

struct Arrays {
  float *p, *m, *v;
  const float* g;
};

// 28 bytes for each element: four arrays are read, three of them written.
void update_range(int64_t first, int64_t last, void* context) {
  const Arrays a = *static_cast<Arrays*>(context);
  for (int64_t i = first; i < last; ++i) {
    a.p[i] += a.g[i];
    a.m[i] -= a.g[i];
    a.v[i] += a.g[i];
  }
}

// 4 bytes for each element; what a range has added up goes to its beginning, so that it is needed.
void read_range(int64_t first, int64_t last, void* context) {
  const Arrays a = *static_cast<Arrays*>(context);
  float lanes[64] = {}, sum = 0;
  for (int64_t i = first; i + 64 <= last; i += 64)
    for (int64_t j = 0; j < 64; ++j) lanes[j] += a.g[i + j];
  for (float lane : lanes) sum += lane;
  a.p[first] = sum;
}

}  // namespace

extern "C" {

int32_t update(float* p, float* m, float* v, const float* g, int64_t elements, ParallelFor run) {
  Arrays arrays{p, m, v, g};
  return run(0, elements, 1 << 16, update_range, &arrays);
}

int32_t read(float* p, float* m, float* v, const float* g, int64_t elements, ParallelFor run) {
  Arrays arrays{p, m, v, g};
  return run(0, elements, 1 << 16, read_range, &arrays);
}

// In the place of a launch.
int32_t nothing() { return 0; }
}
