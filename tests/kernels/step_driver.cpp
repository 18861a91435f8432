// One update (or norm) of one tensor through the built library, for callgrind to count.
// usage: step_driver LIBRARY RULE STATES DTYPE ELEMENTS EPILOGUES
// EPILOGUES is 0, or 1: a sync of the slow weights, an average and zeroed gradients.
#include <dlfcn.h>

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <vector>

#include "../../csrc/tables.h"

using namespace spectramind;
using Range = void (*)(int64_t, int64_t, void*);
using ParallelFor = int32_t (*)(int64_t, int64_t, int64_t, Range, void*);

static int32_t serial(int64_t begin, int64_t end, int64_t, Range f, void* context) {
  f(begin, end, context);
  return 0;
}

template <class F>
static F symbol(void* library, const char* name) {
  F found = reinterpret_cast<F>(dlsym(library, name));
  if (!found) std::exit((std::fprintf(stderr, "%s\n", dlerror()), 1));
  return found;
}

int main(int argc, char** argv) {
  if (argc != 7) return 2;
  void* library = dlopen(argv[1], RTLD_NOW);
  if (!library) return (std::fprintf(stderr, "%s\n", dlerror()), 1);
  const auto find =
      symbol<const void* (*)(const char*, int32_t, int32_t)>(library, "spectramind_find");
  const auto norm = symbol<int32_t (*)(const Tables*, ParallelFor)>(library, "spectramind_norm");
  const auto update =
      symbol<int32_t (*)(const void*, const Tables*, ParallelFor)>(library, "spectramind_update");

  const int32_t states = std::atoi(argv[3]), dtype = std::atoi(argv[4]);
  const int64_t elements = std::atoll(argv[5]), epilogues = std::atoll(argv[6]);
  const bool only_norm = !std::strcmp(argv[2], "norm");
  const int64_t chunk = only_norm ? kPiece : 2 * kPiece;
  const void* kernels = find(only_norm ? "adam" : argv[2], states, FLOAT32);
  if (!kernels) return 3;

  const int slots = FIRST_STATE + states + 2 * int(epilogues);
  std::vector<std::vector<char>> memory(slots, std::vector<char>(4 * elements + 64));
  std::vector<int64_t> pointers, chunks;
  for (auto& m : memory) pointers.push_back((reinterpret_cast<int64_t>(m.data()) + 63) & ~63);
  for (int64_t at = 0; at < elements; at += chunk) chunks.insert(chunks.end(), {0, at});
  std::vector<int32_t> dtypes(slots, dtype);
  if (epilogues) dtypes.back() = FLOAT32;
  std::vector<float> scalars(32, 0.5f);  // more columns than any rule has
  scalars[SKIP] = 0;
  std::vector<double> partials(chunks.size());
  const int32_t group = 0;
  const int64_t first_row = 0;
  const int64_t place[PLACE_COLUMNS] = {0, 0, elements, 0, 0};

  Tables t{};
  t.tensors = 1;
  t.chunks = int64_t(chunks.size()) / 2;
  t.chunk_elements = chunk;
  t.grain = 1;
  t.lookahead = t.ema = t.zero_grads = epilogues;
  t.pointers = pointers.data();
  t.sizes = &elements;
  t.partial_rows = &first_row;
  t.groups = &group;
  t.places = place;
  t.chunk_table = chunks.data();
  t.scalars = scalars.data();
  t.stored = dtypes.data();
  t.partials = partials.data();
  return only_norm ? norm(&t, serial) : update(kernels, &t, serial);
}
