// The launches of a step on NVIDIA GPUs: `norm` over pieces, `advance` over tensors, `update`.
//
// One block per piece or chunk. Whole vectors of tensors at 16-byte addresses go by 128-bit
// accesses, everything else by single elements; each block decides from the addresses it has.
#pragma once

#include <cuda_runtime_api.h>

#include <cmath>
#include <cstdint>

#include "../tables.h"
#include "../update_rules.h"
#include "../walk.h"
#include "storage.cuh"

namespace spectramind {

constexpr int kThreads = 128;
constexpr int kWarps = kThreads / 32;
constexpr int kMinBlocksPerMultiprocessor =
    4;  // on a multiprocessor: all variants find their registers

// A launch's share of the tensors. The addresses of their gradients are arguments, so nothing is
// uploaded for a step: up to 32,764 bytes since CUDA 12.1, 4 KB before.
template <int Capacity>
struct Share {
  int64_t first_tensor;
  int64_t first_chunk;
  int32_t dtypes[kMaxSlots];
  int64_t gradients[Capacity];
};
constexpr int kHead = sizeof(Tables) + sizeof(Share<1>) - sizeof(int64_t);
constexpr int kMany = ((CUDART_VERSION >= 12010 ? 32764 : 4096) - kHead) / int(sizeof(int64_t));
constexpr int kFew = (4096 - kHead) / int(sizeof(int64_t));

struct Sums {
  double squares, nonfinite;
};

// Over the block, always in the same order; every thread gets the result.
__device__ inline Sums block_sum(Sums sums) {
  __shared__ Sums of_warp[kWarps];
#pragma unroll
  for (int other = 16; other > 0; other /= 2) {
    sums.squares += __shfl_xor_sync(0xffffffff, sums.squares, other);
    sums.nonfinite += __shfl_xor_sync(0xffffffff, sums.nonfinite, other);
  }
  if (threadIdx.x % 32 == 0) of_warp[threadIdx.x / 32] = sums;
  __syncthreads();
  Sums total = of_warp[0];
#pragma unroll
  for (int i = 1; i < kWarps; ++i) {
    total.squares += of_warp[i].squares;
    total.nonfinite += of_warp[i].nonfinite;
  }
  return total;
}

// norm: a piece's sum of squares, and how many of its values are not finite. In float64, where
// squares of float32 neither overflow nor round. 4 bytes per fp32 parameter.
//
// An element's thread depends on its index alone, so the last bits do not depend on alignment.
template <class S, int Capacity>
__global__ void __launch_bounds__(kThreads)
    norm(const __grid_constant__ Tables t, const __grid_constant__ Share<Capacity> share) {
  constexpr int V = 8;
  const int64_t piece = share.first_chunk + blockIdx.x;
  const Chunk chunk = chunk_at(t, piece);
  const int64_t address = share.gradients[chunk.tensor - share.first_tensor];
  const auto grad = Storage<S>::of(address, chunk.first);
  const int32_t count = int32_t(chunk.last - chunk.first);
  const bool aligned = address % 16 == 0;

  double squares = 0;
  int nonfinite = 0;
  const auto add = [&](float value) {
    squares = fma(double(value), double(value), squares);
    nonfinite += !(std::fabs(value) < INFINITY);
  };
  for (int32_t at = V * int32_t(threadIdx.x); at < count; at += V * kThreads) {
    float g[V];
    if (aligned && at + V <= count) {
      grad.template load<V>(at, g);
#pragma unroll
      for (int i = 0; i < V; ++i) add(g[i]);
    } else {
#pragma unroll 1
      for (int32_t i = at; i < at + V && i < count; ++i) {
        grad.template load<1>(i, g);
        add(g[0]);
      }
    }
  }
  const Sums sums = block_sum({squares, double(nonfinite)});
  if (threadIdx.x == 0) {
    t.partials[2 * piece] = sums.squares;
    t.partials[2 * piece + 1] = sums.nonfinite;
  }
}

// advance: one thread per tensor, some 200 bytes for each, nothing per parameter. Every block
// reduces the partial sums for itself: a kilobyte or two for a million parameters.
template <class Rule>
__global__ void __launch_bounds__(kThreads) advance(const __grid_constant__ Tables t) {
  Sums sums{};
  for (int64_t row = threadIdx.x; row < t.partial_rows; row += kThreads) {
    sums.squares += t.all_partials[2 * row];
    sums.nonfinite += t.all_partials[2 * row + 1];
  }
  if (t.partial_rows) sums = block_sum(sums);
  const Decision decision = decide(t, sums.squares, sums.nonfinite);
  const int64_t tensor = int64_t(blockIdx.x) * kThreads + threadIdx.x;
  if (tensor == 0) report(t, decision);
  if (tensor < t.tensors) advance_tensor<Rule, float>(t, decision, tensor);
}

// What a block needs to know of its chunk.
template <class Rule, int States, class S>
struct Work {
  Storage<S> param, grad, slow;
  Storage<S> states[States + 1];  // one to spare: an array cannot have length 0
  Storage<typename AverageOf<S>::type> average;
  bool skip, syncs, averages, zeroes;
  float scalars[kScalarColumns<Rule>];
};

// One read and one write of V elements of everything. Per fp32 parameter: 12 bytes (p, g in, p
// out) and 8 for each state; 8 more for the slow weights when they sync, 0 when they do not; 8 for
// the averaged weights; 4 to zero the gradient.
template <int V, class Rule, int States, class S>
__device__ inline void update_elements(const Work<Rule, States, S>& work, int32_t at) {
  float other[V];
  if (!work.skip) {
    float p[V], g[V], loaded[States + 1][V];
    work.param.template load<V>(at, p);
    work.grad.template load<V>(at, g);
#pragma unroll
    for (int j = 0; j < States; ++j) work.states[j].template load<V>(at, loaded[j]);
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
    for (int j = 0; j < States; ++j) work.states[j].template store<V>(at, loaded[j]);
    if (work.syncs) {
      work.slow.template load<V>(at, other);
#pragma unroll
      for (int i = 0; i < V; ++i) lookahead_sync(p[i], other[i], work.scalars[SYNC_ALPHA]);
      work.slow.template store<V>(at, other);
    }
    work.param.template store<V>(at, p);
    if (work.averages) {
      work.average.template load<V>(at, other);
#pragma unroll
      for (int i = 0; i < V; ++i) other[i] = lerp(other[i], p[i], work.scalars[EMA_WEIGHT]);
      work.average.template store<V>(at, other);
    }
  }
  if (work.zeroes) {
#pragma unroll
    for (int i = 0; i < V; ++i) other[i] = 0;
    work.grad.template store<V>(at, other);
  }
}

// update: one block per chunk. The epilogues are branches, not variants of the kernel: the scalars
// that `advance` wrote decide per tensor, so all threads of a block take the same branch.
template <class Rule, int States, class S, int Capacity>
__global__ void __launch_bounds__(kThreads, kMinBlocksPerMultiprocessor)
    update(const __grid_constant__ Tables t, const __grid_constant__ Share<Capacity> share) {
  const Chunk chunk = chunk_at(t, share.first_chunk + blockIdx.x);
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
    addresses |= address;
    slot = slot.of(address, chunk.first, share.dtypes[row]);
  };
  const auto find = [&](auto& slot, int row) {
    place(slot, row, t.pointers[row * t.tensors + chunk.tensor]);
  };
  find(work.param, PARAM);
  place(work.grad, GRAD, share.gradients[chunk.tensor - share.first_tensor]);
#pragma unroll
  for (int j = 0; j < States; ++j) find(work.states[j], FIRST_STATE + j);
  if (work.syncs) find(work.slow, FIRST_STATE + States);
  if (work.averages) find(work.average, FIRST_STATE + States + int(t.lookahead));

  constexpr int V = kElementsPerAccess<S>;
  const int32_t count = int32_t(chunk.last - chunk.first);
  const int32_t by_vectors = addresses % 16 == 0 ? count / V * V : 0;
  for (int32_t at = V * int32_t(threadIdx.x); at < by_vectors; at += V * kThreads)
    update_elements<V>(work, at);
  for (int32_t at = by_vectors + int32_t(threadIdx.x); at < count; at += kThreads)
    update_elements<1>(work, at);
}

}  // namespace spectramind
