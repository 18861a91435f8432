// The norm of all gradients: `norm` over pieces, and, where these are many, `reduce`.
#pragma once

#include <cmath>
#include <cstdint>

#include "../tables.h"
#include "../update_rules.h"
#include "../walk.h"
#include "launch.cuh"
#include "storage.cuh"

namespace spectramind {

// Blocks of `norm` on a multiprocessor: 48 KB are on their way.
constexpr int kNormsPerMultiprocessor = 6;

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

// The sum of rows [first, last), always in the same order; every thread of the block gets it.
__device__ inline Sums sum_of_rows(const double* rows, int64_t first, int64_t last) {
  Sums sums{};
  for (int64_t row = first + threadIdx.x; row < last; row += kThreads) {
    sums.squares += rows[2 * row];
    sums.nonfinite += rows[2 * row + 1];
  }
  return block_sum(sums);
}

// reduce: one block per kRowsPerSum partial sums, which are 16 bytes for 8,192 parameters.
__global__ void __launch_bounds__(kThreads)
    reduce(const double* partials, int64_t rows, double* sums) {
  const int64_t first = kRowsPerSum * blockIdx.x, last = first + kRowsPerSum;
  const Sums sum = sum_of_rows(partials, first, last < rows ? last : rows);
  if (threadIdx.x == 0) {
    sums[2 * blockIdx.x] = sum.squares;
    sums[2 * blockIdx.x + 1] = sum.nonfinite;
  }
}

// A sum of squares in pairs of float32, for GPUs that compute little in float64: the squares as
// they are, and what rounding loses of them. Its relative error is near 2^-44. The values are
// scaled by a power of two that brings the largest of them near 1, so no square overflows.
template <int N>
__device__ inline double sum_of_squares_in_pairs(const float* values) {
  float largest = 0;
#pragma unroll
  for (int i = 0; i < N; ++i) largest = fmaxf(largest, std::fabs(values[i]));
  const int32_t exponent = int32_t(__float_as_uint(largest) >> 23);
  const int32_t field = max(1, min(254, 253 - exponent));
  const float scale = __uint_as_float(uint32_t(field) << 23);

  float high = 0, low = 0;
#pragma unroll
  for (int i = 0; i < N; ++i) {
    const float value = values[i] * scale, square = value * value;
    const float sum = high + square, taken = sum - high;
    low += ((high - (sum - taken)) + (square - taken)) + fma(value, value, -square);
    high = sum;
  }
  if (!(std::fabs(high) < INFINITY)) low = 0;  // it is NaN then
  const double unscale = __longlong_as_double(int64_t(1023 + 2 * (127 - field)) << 52);
  return (double(high) + double(low)) * unscale;
}

// What some values add to the sums of a thread.
template <bool Pairs, int N>
__device__ inline void add_squares(const float* values, double& squares, int& nonfinite) {
  if constexpr (Pairs) squares += sum_of_squares_in_pairs<N>(values);
#pragma unroll
  for (int i = 0; i < N; ++i) {
    if constexpr (!Pairs) squares = fma(double(values[i]), double(values[i]), squares);
    nonfinite += !(std::fabs(values[i]) < INFINITY);
  }
}

// norm: a piece's sum of squares, and how many of its values are not finite. In float64, where
// squares of float32 neither overflow nor round, or in pairs of float32. 4 bytes per fp32
// parameter.
//
// A thread takes 64 bytes in vectors of V values before it uses one of them. Which values it takes
// together depends on their index alone, so the last bits do not depend on alignment.
template <class S, bool Pairs, int Capacity>
__global__ void __launch_bounds__(kThreads, kNormsPerMultiprocessor)
    norm(const __grid_constant__ Tables t, const __grid_constant__ Share<Capacity> share) {
  constexpr int V = 8, N = 64 / int(sizeof(S)), stride = V * kThreads, step = N * kThreads;
  const Chunk piece = chunk_at(t, share.first_chunk + blockIdx.x);
  const int64_t address = share.gradients[piece.tensor - share.first_tensor];
  const auto grad = Storage<S>::of(address, piece.first);
  const int32_t count = address ? int32_t(piece.last - piece.first) : 0;

  double squares = 0;
  int nonfinite = 0;
  int32_t at = V * int32_t(threadIdx.x);
  const int32_t by_vectors = address % 16 == 0 ? count - (step - stride + V) : -1;
  for (; at <= by_vectors; at += step) {
    float g[N];
#pragma unroll
    for (int i = 0; i < N; i += V) grad.template load<V>(at + i / V * stride, g + i);
    add_squares<Pairs, N>(g, squares, nonfinite);
  }
  for (; at < count; at += step) {
    float g[N];
#pragma unroll
    for (int i = 0; i < N; ++i) {
      const int32_t place = at + i / V * stride + i % V;
      g[i] = 0;
      if (place < count) grad.template load<1>(place, g + i);
    }
    add_squares<Pairs, N>(g, squares, nonfinite);
  }
  const Sums sums = block_sum({squares, double(nonfinite)});
  if (threadIdx.x == 0) {
    double* const partial = partial_of(t, piece);
    partial[0] = sums.squares;
    partial[1] = sums.nonfinite;
  }
}

}  // namespace spectramind
