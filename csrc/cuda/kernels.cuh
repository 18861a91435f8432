// The launches of a step on NVIDIA GPUs: `advance` over tensors, `update` over chunks. (norm.cuh
// has what comes before them.)
//
// One block per chunk. Whole vectors of tensors at 16-byte addresses go by 128-bit accesses,
// everything else by single elements; each block decides from the addresses it has.
#pragma once

#include <cuda_runtime_api.h>

#include <cmath>
#include <cstdint>
#include <type_traits>

#include "../tables.h"
#include "../update_rules.h"
#include "../walk.h"
#include "launch.cuh"
#include "norm.cuh"
#include "storage.cuh"

namespace spectramind {

// On a multiprocessor: all variants of `update` find their registers.
constexpr int kMinBlocksPerMultiprocessor = 4;

// advance: one thread per tensor, some 200 bytes for each, nothing per parameter. Every block adds
// up the sums for itself: some thousands at most, where `reduce` has run before.
template <class Rule>
__global__ void __launch_bounds__(kThreads)
    advance(const __grid_constant__ Tables t, const __grid_constant__ Present present) {
  Sums sums{};
  if (t.sum_rows) sums = sum_of_rows(t.sums, 0, t.sum_rows);
  const Decision decision = decide(t, sums.squares, sums.nonfinite);
  const int64_t at = int64_t(blockIdx.x) * kThreads + threadIdx.x;
  const int64_t tensor = present.first_tensor + at;
  if (tensor == 0) report(t, decision);
  if (at >= kTensorsAtOnce || tensor >= t.tensors) return;
  if (present.bits[at / 32] >> (at % 32) & 1) advance_tensor<Rule, float>(t, decision, tensor);
}

// What a block needs to know of its chunk.
template <class Rule, int States, class S>
struct Work {
  Storage<typename SlotsOf<S>::Param> param;
  Storage<S> grad;
  Storage<StateOf<Rule, S>> states[States + 1];  // one to spare: no array has length 0
  Storage<typename SlotsOf<S>::Slow> slow;
  Storage<typename SlotsOf<S>::Average> average;
  bool skip, syncs, averages, zeroes;
  Context context;
  float scalars[kScalarColumns<Rule>];
};

// One read and one write of V elements of everything. Per fp32 parameter: 12 bytes (p, g in, p
// out) and 8 for each state; 8 more for the slow weights when they sync, 0 when they do not; 8 for
// the averaged weights; 4 to zero the gradient.
template <int V, class Rule, int States, class S>
__device__ inline void update_elements(Work<Rule, States, S>& work, int32_t at) {
  float other[V];
  if (!work.skip) {
    float p[V], g[V], loaded[States + 1][V];
    work.param.template load<V>(at, p, work.context);
    work.grad.template load<V>(at, g, work.context);
#pragma unroll
    for (int j = 0; j < States; ++j) work.states[j].template load<V>(at, loaded[j], work.context);
#pragma unroll
    for (int i = 0; i < V; ++i) {
      float state[States + 1];
#pragma unroll
      for (int j = 0; j < States; ++j) state[j] = loaded[j][i];
      Rule::template update<States>(p[i], g[i] * work.scalars[GRAD_FACTOR], state,
                                    work.scalars + COMMON_SCALARS);
#pragma unroll
      for (int j = 0; j < States; ++j) loaded[j][i] = state[j];
    }
#pragma unroll
    for (int j = 0; j < States; ++j)
      work.states[j].template store<V>(at, loaded[j], work.context, FIRST_STATE + j);
    if (work.syncs) {
      work.slow.template load<V>(at, other, work.context);
#pragma unroll
      for (int i = 0; i < V; ++i) lookahead_sync(p[i], other[i], work.scalars[SYNC_ALPHA]);
      work.slow.template store<V>(at, other, work.context, SLOW_STREAM);
    }
    work.param.template store<V>(at, p, work.context, PARAM);
    if (work.averages) {
      work.average.template load<V>(at, other, work.context);
#pragma unroll
      for (int i = 0; i < V; ++i) other[i] = lerp(other[i], p[i], work.scalars[EMA_WEIGHT]);
      work.average.template store<V>(at, other, work.context, AVERAGE_STREAM);
    }
  }
  if (work.zeroes) {
#pragma unroll
    for (int i = 0; i < V; ++i) other[i] = 0;
    work.grad.template store<V>(at, other, work.context, GRAD);
  }
}

// The sum over all threads of a block, which all of them get.
__device__ inline uint32_t sum_over_block(uint32_t value) {
  __shared__ uint32_t of_warps[kWarps];
  for (int distance = 16; distance > 0; distance /= 2)
    value += __shfl_xor_sync(0xffffffffu, value, distance);
  __syncthreads();  // nobody reads the last sum any more
  if (threadIdx.x % 32 == 0) of_warps[threadIdx.x / 32] = value;
  __syncthreads();
  uint32_t sum = 0;
#pragma unroll
  for (int i = 0; i < kWarps; ++i) sum += of_warps[i];
  return sum;
}

// The checksum of a piece of a split parameter, as it is now; the update reads it again from the
// cache.
__device__ inline uint32_t checksum_of(const Context& context, int64_t address) {
  uint32_t sum = 0;
  for (int32_t at = 4 * int32_t(threadIdx.x); at < context.count; at += 4 * kThreads) {
    uint16_t raw[4];
    load_raw<4>(context, address, at, raw);
#pragma unroll
    for (int i = 0; i < 4; ++i)
      if (at + i < context.count) sum += check_of(raw[i], context.first + at + i);
  }
  return sum_over_block(sum);
}

// update: one block per chunk. The epilogues are branches, not variants of the kernel: the scalars
// that `advance` wrote decide per tensor, so all threads of a block take the same branch.
template <class Rule, int States, class S, int Capacity>
__global__ void __launch_bounds__(kThreads, kMinBlocksPerMultiprocessor)
    update(const __grid_constant__ Tables t, const __grid_constant__ Share<Capacity> share) {
  const Chunk chunk = chunk_at(t, share.first_chunk + blockIdx.x);
  const int64_t gradient = share.gradients[chunk.tensor - share.first_tensor];
  if (!gradient) return;
  Work<Rule, States, S> work{};
  const float* scalars = static_cast<const float*>(t.scalars) + chunk.tensor * kScalarColumns<Rule>;
#pragma unroll
  for (int j = 0; j < int(kScalarColumns<Rule>); ++j) work.scalars[j] = scalars[j];
  work.skip = work.scalars[SKIP] != 0;
  work.syncs = t.lookahead && work.scalars[SYNC] != 0;
  work.averages = t.ema && work.scalars[EMA_WEIGHT] >= 0;
  work.zeroes = t.zero_grads;
  if (work.skip && !work.zeroes) return;

  int64_t addresses = 0;  // the low bits of all: is one unaligned?
  const auto place = [&](auto& slot, int row, int64_t address) {
    place_slot<S>(slot, t, share.stored, chunk, row, address, addresses);
  };
  const auto find = [&](auto& slot, int row) {
    place(slot, row, t.pointers[row * t.tensors + chunk.tensor]);
  };
  find(work.param, PARAM);
  place(work.grad, GRAD, gradient);
#pragma unroll
  for (int j = 0; j < States; ++j) find(work.states[j], FIRST_STATE + j);
  if (work.syncs) find(work.slow, FIRST_STATE + States);
  if (work.averages) find(work.average, FIRST_STATE + States + int(t.lookahead));

  constexpr int V = kElementsPerAccess<S>;
  const int32_t count = int32_t(chunk.last - chunk.first);
  const bool aligned = addresses % 16 == 0;
  if constexpr (!std::is_same_v<S, Any>) {
    const int32_t by_vectors = aligned ? count / V * V : 0;
    for (int32_t at = V * int32_t(threadIdx.x); at < by_vectors; at += V * kThreads)
      update_elements<V>(work, at);
    for (int32_t at = by_vectors + int32_t(threadIdx.x); at < count; at += kThreads)
      update_elements<1>(work, at);
  } else {
    Context& context = work.context;
    context.first = chunk.first;
    context.place = place_of(t, chunk.tensor);
    context.draw = draw_of(t, chunk.tensor, 0);
    context.in_eighths =
        context.place.offset % kElementsPerCall == 0 && context.place.run >= t.sizes[chunk.tensor];
    context.aligned = aligned;
    context.count = count;
    const bool splits = share.stored[PARAM] == SPLIT_BFLOAT16 && !work.skip;
    const int64_t row = splits ? t.pointers[(t.first_beside + 1) * t.tensors + chunk.tensor] : 0;
    uint32_t* const checksum = memory_at<uint32_t>(row) + chunk.first / kPiece;
    if (splits) context.trusted = checksum_of(context, work.param.own) == *checksum;
    // All threads of a warp take part in finding the scales of groups.
    constexpr int32_t of_warp = 32 * V;
    const int32_t turns = (count + of_warp - 1) / of_warp * of_warp;
    for (int32_t at = V * int32_t(threadIdx.x); at < turns; at += V * kThreads)
      update_elements<V>(work, at);
    if (!splits) return;
    const uint32_t sum = sum_over_block(context.sum);
    if (threadIdx.x == 0) *checksum = sum;
  }
}

}  // namespace spectramind
