// The launches of a step, as plain C functions over the tables, on the caller's stream.
#include <cuda_runtime_api.h>

#include <cstring>
#include <type_traits>

#include "../describe.h"
#include "../tables.h"
#include "../update_rules.h"
#include "../walk.h"
#include "factored.cuh"
#include "kernels.cuh"

namespace spectramind {
namespace {

// What the parameters, gradients, states and slow weights of a bucket are stored in: one plain
// type, several, or anything.
enum Kind { ALL_FLOAT32, ALL_BFLOAT16, ALL_FLOAT16, MIXED, ANY, KINDS };

// A kernel for few gradients and one for many, which may be null: a launch copies all its
// arguments, used or not.
struct Pair {
  const void* few;
  const void* many;
};

struct Kernels {
  const char* rule;
  int32_t states;
  const void* advance;
  Pair update[KINDS];
  // Of a rule that measures a step before it is taken; null of the others.
  Pair measure[KINDS];
  Pair scale;
  Pair move[KINDS];  // of vectors in one plain type, of factored tensors alone
  Pair divide;
};

template <class S, bool Pairs>
Pair norm_of() {
  return {(const void*)&norm<S, Pairs, kFew>, (const void*)&norm<S, Pairs, kMany>};
}

// Kernels for many gradients are built for what is usual; anything else takes a few launches more.
template <class S>
constexpr bool kUsual = std::is_same_v<S, float> || std::is_same_v<S, bfloat16>;

// What is packed of a matrix is bfloat16, so nothing else is alike in the rules that read or write
// it.
template <class Rule, class S>
constexpr bool kOccurs = !(std::is_same_v<Rule, Muon> || std::is_same_v<Rule, MuonMomentum>) ||
                         !(std::is_same_v<S, float> || std::is_same_v<S, float16>);

template <class Rule, int States, class S>
Pair update_of() {
  Pair found{};
  if constexpr (kOccurs<Rule, S>) found.few = (const void*)&update<Rule, States, S, kFew>;
  if constexpr (kOccurs<Rule, S> && kUsual<S>)
    found.many = (const void*)&update<Rule, States, S, kMany>;
  return found;
}

template <class Rule, class S>
Pair measure_of() {
  Pair found{(const void*)&measure<Rule, S, kFew>, nullptr};
  if constexpr (kUsual<S>) found.many = (const void*)&measure<Rule, S, kMany>;
  return found;
}
template <class Rule, class S>
Pair move_of() {
  Pair found{(const void*)&move<Rule, S, kFew>, nullptr};
  if constexpr (kUsual<S>) found.many = (const void*)&move<Rule, S, kMany>;
  return found;
}
template <class S>
Pair squares_of_kind() {
  Pair found{(const void*)&squares<S, kFew>, nullptr};
  if constexpr (kUsual<S>) found.many = (const void*)&squares<S, kMany>;
  return found;
}

template <class Rule>
void add_measuring(Kernels& to) {
  if constexpr (is_measured<Rule>) {
    to.measure[ALL_FLOAT32] = measure_of<Rule, float>();
    to.measure[ALL_BFLOAT16] = measure_of<Rule, bfloat16>();
    to.measure[ALL_FLOAT16] = measure_of<Rule, float16>();
    to.measure[MIXED] = measure_of<Rule, Mixed>();
    to.measure[ANY] = measure_of<Rule, Any>();
    to.scale = {(const void*)&scale<Rule, kFew>, (const void*)&scale<Rule, kMany>};
  }
  if constexpr (is_factored<Rule>) {
    to.move[ALL_FLOAT32] = move_of<Rule, float>();
    to.move[ALL_BFLOAT16] = move_of<Rule, bfloat16>();
    to.move[ALL_FLOAT16] = move_of<Rule, float16>();
    to.divide = {(const void*)&divide<Rule, kFew>, (const void*)&divide<Rule, kMany>};
  }
}

template <class Rule, int States>
Kernels kernels() {
  static_assert(FIRST_STATE + States + 2 <= kMaxSlots, "slow and averaged weights have a slot too");
  Kernels found{Rule::name,
                States,
                (const void*)&advance<Rule>,
                {update_of<Rule, States, float>(), update_of<Rule, States, bfloat16>(),
                 update_of<Rule, States, float16>(), update_of<Rule, States, Mixed>(),
                 update_of<Rule, States, Any>()},
                {},
                {},
                {},
                {}};
  add_measuring<Rule>(found);
  return found;
}

const Kernels kRegistry[] = {
#define SPECTRAMIND_ROW(Rule, States) kernels<Rule, States>(),
    SPECTRAMIND_EVERY_RULE(SPECTRAMIND_ROW)
#undef SPECTRAMIND_ROW
};
const Pair kNorm[][2] = {{norm_of<float, false>(), norm_of<float, true>()},
                         {norm_of<bfloat16, false>(), norm_of<bfloat16, true>()},
                         {norm_of<float16, false>(), norm_of<float16, true>()}};
const Pair kSquares[] = {squares_of_kind<float>(), squares_of_kind<bfloat16>(),
                         squares_of_kind<float16>()};

Kind all_in(int32_t stored) {
  return stored == FLOAT32 ? ALL_FLOAT32 : stored == BFLOAT16 ? ALL_BFLOAT16 : ALL_FLOAT16;
}

int slots(const Kernels& kernels, const Tables& t) {
  return FIRST_STATE + kernels.states + int(t.lookahead) + int(t.ema);
}

Kind kind(const Kernels& kernels, const Tables& t) {
  const int last = slots(kernels, t) - int(t.ema);
  for (int slot = 0; slot < slots(kernels, t); ++slot)
    if (t.stored[slot] > FLOAT16 && t.stored[slot] != FACTORED) return ANY;
  for (int slot = 0; slot < last; ++slot)
    if (slot != STEP && t.stored[slot] != FACTORED && t.stored[slot] != t.stored[PARAM])
      return MIXED;
  if (t.ema && t.stored[last] != FLOAT32) return MIXED;
  return all_in(t.stored[PARAM]);
}

// Drivers before CUDA 12.1 take 4 KB of arguments.
bool takes_many() {
  int version = 0;
  return cudaDriverGetVersion(&version) == cudaSuccess && version >= 12010;
}

// Launches a block per chunk, so many tensors at a time as the arguments hold addresses.
template <int Capacity>
cudaError_t launch_shares(const void* kernel, const Tables& t, const Factoring* f, int slots,
                          const int64_t* gradients, const int64_t* chunk_starts,
                          cudaStream_t stream) {
  Share<Capacity> share;  // but for what is set below, nobody reads it
  for (int slot = 0; slot < slots; ++slot) share.stored[slot] = t.stored[slot];
  for (int64_t first = 0; first < t.tensors; first += Capacity) {
    const int64_t left = t.tensors - first, tensors = left < Capacity ? left : Capacity;
    const int64_t chunks = chunk_starts[first + tensors] - chunk_starts[first];
    if (!chunks) continue;
    share.first_tensor = first;
    share.first_chunk = chunk_starts[first];
    std::memcpy(share.gradients, gradients + first, tensors * sizeof(int64_t));
    void* plain[] = {const_cast<Tables*>(&t), &share};
    void* factored[] = {const_cast<Tables*>(&t), const_cast<Factoring*>(f), &share};
    const cudaError_t error = cudaLaunchKernel(kernel, dim3(unsigned(chunks)), dim3(kThreads),
                                               f ? factored : plain, 0, stream);
    if (error != cudaSuccess) return error;
  }
  return cudaSuccess;
}

// With a Factoring for those kernels that take one.
cudaError_t launch(const Pair& kernel, const Tables& t, int slots, const int64_t* gradients,
                   const int64_t* chunk_starts, void* stream, const Factoring* f = nullptr) {
  const auto on = static_cast<cudaStream_t>(stream);
  if (t.tensors > kFew && kernel.many && takes_many())
    return launch_shares<kMany>(kernel.many, t, f, slots, gradients, chunk_starts, on);
  return launch_shares<kFew>(kernel.few, t, f, slots, gradients, chunk_starts, on);
}

}  // namespace
}  // namespace spectramind

using namespace spectramind;

extern "C" {

// See describe.h.
const char* spectramind_describe() {
  static const std::string text = description();
  return text.c_str();
}

// The kernels of a rule, or null where it was not built.
const void* spectramind_find(const char* rule, int32_t states) {
  for (const Kernels& k : kRegistry)
    if (!std::strcmp(k.rule, rule) && k.states == states) return &k;
  return nullptr;
}

// Whether this library holds code for the current device: a cudaError_t, like all below.
int32_t spectramind_check() {
  cudaFuncAttributes attributes;
  return cudaFuncGetAttributes(&attributes, kNorm[0][0].few);
}

const char* spectramind_error(int32_t error) { return cudaGetErrorString(cudaError_t(error)); }

// `gradients` and `chunk_starts` (of each tensor its first chunk; behind the last, their number)
// are read before this returns. `in_pairs`: of float32, where float64 is slow.
int32_t spectramind_norm(const Tables* tables, const int64_t* gradients,
                         const int64_t* chunk_starts, int32_t in_pairs, void* stream) {
  const Pair& kernel = kNorm[all_in(tables->stored[GRAD])][in_pairs != 0];
  return launch(kernel, *tables, GRAD + 1, gradients, chunk_starts, stream);
}

// A sum of each kRowsPerSum partial ones.
int32_t spectramind_reduce(const double* partials, int64_t rows, double* sums, void* stream) {
  void* arguments[] = {&partials, &rows, &sums};
  const auto blocks = unsigned((rows + kRowsPerSum - 1) / kRowsPerSum);
  return cudaLaunchKernel((const void*)&reduce, dim3(blocks), dim3(kThreads), arguments, 0,
                          static_cast<cudaStream_t>(stream));
}

int32_t spectramind_advance(const void* kernels, const Tables* tables, const int64_t* gradients,
                            void* stream) {
  Present present;
  void* arguments[] = {const_cast<Tables*>(tables), &present};
  for (int64_t first = 0; first < tables->tensors; first += kTensorsAtOnce) {
    const int64_t left = tables->tensors - first;
    const int64_t tensors = left < kTensorsAtOnce ? left : kTensorsAtOnce;
    present.first_tensor = first;
    std::memset(present.bits, 0, size_t(tensors + 31) / 32 * sizeof(uint32_t));
    for (int64_t i = 0; i < tensors; ++i)
      present.bits[i / 32] |= uint32_t(gradients[first + i] != 0) << (i % 32);
    const auto blocks = unsigned((tensors + kThreads - 1) / kThreads);
    const cudaError_t error =
        cudaLaunchKernel(static_cast<const Kernels*>(kernels)->advance, dim3(blocks),
                         dim3(kThreads), arguments, 0, static_cast<cudaStream_t>(stream));
    if (error != cudaSuccess) return error;
  }
  return cudaSuccess;
}

// `tile_starts`, `piece_starts`, `batch_starts`, `tensor_starts`: as `chunk_starts`, of what each
// kernel has a block for.
int32_t spectramind_squares(const Tables* tables, const Factoring* factoring,
                            const int64_t* gradients, const int64_t* tile_starts, void* stream) {
  const Pair& kernel = kSquares[all_in(tables->stored[GRAD])];
  return launch(kernel, *tables, GRAD + 1, gradients, tile_starts, stream, factoring);
}

int32_t spectramind_factor(const void* kernels, const Tables* tables, const Factoring* factoring,
                           const int64_t* gradients, const int64_t* piece_starts,
                           const int64_t* batch_starts, void* stream) {
  const Kernels& of = *static_cast<const Kernels*>(kernels);
  const Pair& move = of.move[all_in(int32_t(factoring->vector_stored))];
  const cudaError_t error = launch(move, *tables, 0, gradients, piece_starts, stream, factoring);
  if (error != cudaSuccess) return error;
  return launch(of.divide, *tables, 0, gradients, batch_starts, stream, factoring);
}

int32_t spectramind_measure(const void* kernels, const Tables* tables, const int64_t* gradients,
                            const int64_t* chunk_starts, const int64_t* tensor_starts,
                            void* stream) {
  const Kernels& of = *static_cast<const Kernels*>(kernels);
  const Pair& kernel = of.measure[kind(of, *tables)];
  const cudaError_t error =
      launch(kernel, *tables, slots(of, *tables), gradients, chunk_starts, stream);
  if (error != cudaSuccess) return error;
  return launch(of.scale, *tables, 0, gradients, tensor_starts, stream);
}

int32_t spectramind_update(const void* kernels, const Tables* tables, const int64_t* gradients,
                           const int64_t* chunk_starts, void* stream) {
  const Kernels& of = *static_cast<const Kernels*>(kernels);
  const Pair& kernel = of.update[kind(of, *tables)];
  return launch(kernel, *tables, slots(of, *tables), gradients, chunk_starts, stream);
}
}
