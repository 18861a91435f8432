// Factored tensors, and steps that are measured first, on NVIDIA GPUs: `squares` over tiles, `move`
// over pieces of vectors, `divide` over matrices, `measure` over chunks, `scale` over tensors.
#pragma once

#include <cmath>
#include <cstdint>
#include <type_traits>

#include "../factored.h"
#include "../tables.h"
#include "../walk.h"
#include "kernels.cuh"
#include "launch.cuh"
#include "norm.cuh"
#include "storage.cuh"

namespace spectramind {

constexpr int kRowsAtOnce = 16;         // of a tile: their sums lie in shared memory
constexpr int kColumns = 4 * kThreads;  // of a tile, at once
static_assert(kColumns == kWidest);
constexpr int kMostRowsOfWide = int(kTile / kWidest);  // of a tile of more columns

// A tile, as its row of the table has it.
struct CudaTile {
  int64_t tensor, number, first, last, outer, last_outer, inner, last_inner, within, last_within;
  int64_t outers, betweens, inners, withins;  // of the tensor
  double* outer_sums;
  double* inner_sums;
};

__device__ inline CudaTile tile_at(const Tables& t, const Factoring& f, int64_t at) {
  const int64_t* row = f.tile_table + TILE_COLUMNS * at;
  const int64_t tensor = row[TILE_TENSOR], size = t.sizes[tensor];
  const int64_t* layout = layout_of(f, tensor);
  const auto part = [&](int vector, int64_t number, bool outer) {
    return memory_at<double>(layout[vector + PARTS]) + number * size_of_vector(layout, size, outer);
  };
  return {tensor,
          row[TILE_NUMBER],
          row[TILE_FIRST],
          row[TILE_LAST],
          row[TILE_OUTER],
          row[TILE_LAST_OUTER],
          row[TILE_INNER],
          row[TILE_LAST_INNER],
          row[TILE_WITHIN],
          row[TILE_LAST_WITHIN],
          layout[OUTER],
          layout[BETWEEN],
          layout[INNER],
          layout[WITHIN],
          part(OUTER_VECTOR, row[TILE_OUTER_PART], true),
          part(INNER_VECTOR, row[TILE_INNER_PART], false)};
}

__device__ inline double square(float value) { return double(value) * double(value); }
__device__ inline int is_bad(float value) { return !(std::fabs(value) < INFINITY); }

// The sums of some rows, of which each thread has written its part to `parts`: eight threads add up
// one row, each of them 16 parts; then they add up what they have.
__device__ inline double sum_of_row(const double (*parts)[kThreads]) {
  static_assert(kThreads / kRowsAtOnce == 8);
  const int row = int(threadIdx.x) / 8, from = int(threadIdx.x) % 8;
  double sum = 0;
#pragma unroll
  for (int i = 0; i < kThreads / 8; ++i) sum += parts[row][8 * i + from];
#pragma unroll
  for (int other = 4; other > 0; other /= 2) sum += __shfl_xor_sync(0xffffffff, sum, other);
  return sum;
}

// The sums of a part of one matrix whose rows follow each other: one read, for all columns at once
// where these are at most kColumns.
template <class S>
__device__ inline void square_matrix(const CudaTile& tile, int64_t address, int64_t matrix,
                                     double& squares, int& nonfinite) {
  __shared__ double parts[kRowsAtOnce][kThreads];
  __shared__ double of_rows[kMostRowsOfWide];
  const int64_t rows = tile.last_outer - tile.outer;
  const int64_t base = (matrix * tile.outers + tile.outer) * tile.inners;
  double* const outer_sums = tile.outer_sums + matrix * tile.outers + tile.outer;
  double* const inner_sums = tile.inner_sums + matrix * tile.inners;
  const bool wide = tile.last_inner - tile.inner > kColumns;
  const bool aligned = address % 16 == 0 && tile.inners % 4 == 0;

  for (int64_t first = tile.inner; first < tile.last_inner; first += kColumns) {
    const int64_t column = first + 4 * int64_t(threadIdx.x);
    const auto from = Storage<S>::of(address, base + column);
    double of_columns[4] = {};
    for (int64_t top = 0; top < rows; top += kRowsAtOnce) {
      const int count = int(rows - top < kRowsAtOnce ? rows - top : kRowsAtOnce);
#pragma unroll 4
      for (int row = 0; row < count; ++row) {
        float g[4] = {};
        const int64_t at = (top + row) * tile.inners;
        const Storage<S> here{from.base + at * int64_t(sizeof(S))};
        if (aligned && column + 4 <= tile.last_inner) {
          here.template load<4>(0, g);
        } else {
#pragma unroll
          for (int i = 0; i < 4; ++i)
            if (column + i < tile.last_inner) here.template load<1>(i, g + i);
        }
        double part = 0;
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          of_columns[i] += square(g[i]);
          part += square(g[i]);
          nonfinite += is_bad(g[i]);
        }
        parts[row][threadIdx.x] = part;
      }
      __syncthreads();
      const double sum = sum_of_row(parts);
      const int row = int(threadIdx.x) / 8;
      if (threadIdx.x % 8 == 0 && row < count) {
        if (!wide)
          outer_sums[top + row] = sum;
        else
          of_rows[top + row] = first == tile.inner ? sum : of_rows[top + row] + sum;
      }
      __syncthreads();
    }
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      if (column + i < tile.last_inner) inner_sums[column + i] = of_columns[i];
      squares += of_columns[i];
    }
  }
  if (wide) {
    for (int64_t row = threadIdx.x; row < rows; row += kThreads) outer_sums[row] = of_rows[row];
    __syncthreads();
  }
}

// The squares of `count` elements, `stride` apart.
template <class S>
__device__ inline double add_along(int64_t address, int64_t at, int64_t stride, int64_t count,
                                   int& nonfinite) {
  double sum = 0;
  for (int64_t i = 0; i < count; ++i) {
    float g;
    Storage<S>::of(address, at + i * stride).template load<1>(0, &g);
    sum += square(g);
    nonfinite += is_bad(g);
  }
  return sum;
}

// The sums of small matrices, or of some rows of one, each by one thread. They are read twice, once
// from the cache.
template <class S>
__device__ inline void square_matrices(const CudaTile& tile, int64_t address, double& squares,
                                       int& nonfinite) {
  const int32_t wide = int32_t(tile.last_within - tile.within);
  const int32_t matrices = int32_t(tile.last - tile.first);
  const int32_t rows = int32_t((tile.last_outer - tile.outer) * tile.betweens);
  const int32_t outers = matrices * rows * wide;
  for (int32_t i = int32_t(threadIdx.x); i < outers; i += kThreads) {
    const int64_t above = (tile.first + i / wide / rows) * tile.outers + tile.outer;
    const int64_t line = above * tile.betweens + i / wide % rows;
    const int64_t place = tile.within + i % wide;
    const int64_t begin = line * tile.inners * tile.withins + place;
    const double sum = add_along<S>(address, begin, tile.withins, tile.inners, nonfinite);
    tile.outer_sums[line * tile.withins + place] = sum;
    squares += sum;
  }
  const int32_t line = int32_t(tile.betweens * tile.inners), inners = matrices * line * wide;
  int counted = 0;
  for (int32_t i = int32_t(threadIdx.x); i < inners; i += kThreads) {
    const int64_t matrix = tile.first + i / wide / line, across = i / wide % line;
    const int64_t place = tile.within + i % wide;
    const int64_t top = matrix * tile.outers + tile.outer;
    const int64_t begin = (top * line + across) * tile.withins + place;
    tile.inner_sums[(matrix * line + across) * tile.withins + place] =
        add_along<S>(address, begin, line * tile.withins, tile.last_outer - tile.outer, counted);
  }
}

// squares: one block per tile. 4 bytes per fp32 parameter, and 8 for each sum.
template <class S, int Capacity>
__global__ void __launch_bounds__(kThreads, kMinBlocksPerMultiprocessor)
    squares(const __grid_constant__ Tables t, const __grid_constant__ Factoring f,
            const __grid_constant__ Share<Capacity> share) {
  const CudaTile tile = tile_at(t, f, share.first_chunk + blockIdx.x);
  const int64_t address = share.gradients[tile.tensor - share.first_tensor];
  double found = 0;
  int nonfinite = 0;
  if (address) {
    if (tile.betweens * tile.withins == 1 && tile.inners >= kStraight) {
      for (int64_t matrix = tile.first; matrix < tile.last; ++matrix)
        square_matrix<S>(tile, address, matrix, found, nonfinite);
    } else {
      square_matrices<S>(tile, address, found, nonfinite);
    }
  }
  const Sums sums = block_sum({found, double(nonfinite)});
  if (threadIdx.x == 0) {
    double* const partial = t.partials + 2 * (t.partial_rows[tile.tensor] + tile.number);
    partial[0] = sums.squares;
    partial[1] = sums.nonfinite;
  }
}

// move: one block per piece of a vector. Nothing per parameter.
template <class Rule, class S, int Capacity>
__global__ void __launch_bounds__(kThreads)
    move(const __grid_constant__ Tables t, const __grid_constant__ Factoring f,
         const __grid_constant__ Share<Capacity> share) {
  const int64_t* piece = f.piece_table + PIECE_COLUMNS * (share.first_chunk + blockIdx.x);
  const int64_t tensor = piece[PIECE_TENSOR];
  const float* scalars = scalars_of<Rule, float>(t, tensor);
  if (!share.gradients[tensor - share.first_tensor] || scalars[SKIP] != 0) return;
  const int64_t* layout = layout_of(f, tensor);
  const bool outer = piece[PIECE_VECTOR] == OUTER_VECTOR;
  const int64_t* vector = layout + piece[PIECE_VECTOR];
  const int64_t size = size_of_vector(layout, t.sizes[tensor], outer);
  const int64_t count = layout[outer ? INNER : OUTER];
  const float grad_factor = scalars[GRAD_FACTOR];
  const float weight = scalars[COMMON_SCALARS + Rule::C::WEIGHT];
  for (int64_t i = piece[PIECE_FIRST] + threadIdx.x; i < piece[PIECE_LAST]; i += kThreads) {
    const auto held = Storage<S>::of(vector[HELD], i);
    float value;
    held.template load<1>(0, &value);
    value = next_of_vector(value, squares_of<float>(vector, size, i), count, grad_factor, weight);
    held.template store<1>(0, &value);
    memory_at<float>(vector[FACTOR])[i] = value;
  }
}

// divide: one block per batch of matrices, whose rows are divided by their mean: by a thread each
// where there are few rows.
template <class Rule, int Capacity>
__global__ void __launch_bounds__(kThreads)
    divide(const __grid_constant__ Tables t, const __grid_constant__ Factoring f,
           const __grid_constant__ Share<Capacity> share) {
  constexpr int64_t few = 64;
  const int64_t* batch = f.batch_table + BATCH_COLUMNS * (share.first_chunk + blockIdx.x);
  const int64_t tensor = batch[BATCH_TENSOR];
  const float* scalars = scalars_of<Rule, float>(t, tensor);
  if (!share.gradients[tensor - share.first_tensor] || scalars[SKIP] != 0) return;
  const float eps1 = scalars[COMMON_SCALARS + Rule::C::EPS1];
  const Rows rows = rows_of(layout_of(f, tensor));
  float* const factors = memory_at<float>(rows.factor);
  const bool alone = rows.count <= few;
  const int64_t step = alone ? kThreads : 1, begin = alone ? 0 : int64_t(threadIdx.x);
  const int64_t stride = alone ? 1 : kThreads;
  for (int64_t matrix = batch[BATCH_FIRST] + (alone ? int64_t(threadIdx.x) : 0);
       matrix < batch[BATCH_LAST]; matrix += step) {
    float* const row = factors + first_row(rows, matrix);
    double sum = 0;
    for (int64_t i = begin; i < rows.count; i += stride) sum += double(row[i * rows.stride]);
    if (!alone) {
      __syncthreads();  // nobody reads the last matrix's sums any more
      sum = block_sum({sum, 0}).squares;
    }
    const float divisor = divisor_of(sum, rows.count, eps1);
    for (int64_t i = begin; i < rows.count; i += stride) row[i * rows.stride] /= divisor;
  }
}

// measure: one block per chunk, as `update`. 8 bytes per fp32 parameter, and 4 of a state.
template <class Rule, class S, int Capacity>
__global__ void __launch_bounds__(kThreads, kMinBlocksPerMultiprocessor)
    measure(const __grid_constant__ Tables t, const __grid_constant__ Share<Capacity> share) {
  const Chunk chunk = chunk_at(t, share.first_chunk + blockIdx.x);
  const int64_t gradient = share.gradients[chunk.tensor - share.first_tensor];
  if (!gradient) return;
  const float* of_tensor = scalars_of<Rule, float>(t, chunk.tensor);
  if (of_tensor[SKIP] != 0) return;
  float scalars[kScalarColumns<Rule>];
#pragma unroll
  for (int j = 0; j < int(kScalarColumns<Rule>); ++j) scalars[j] = of_tensor[j];

  const int32_t count = int32_t(chunk.last - chunk.first);
  Context context{};
  int64_t addresses = 0;
  Storage<typename SlotsOf<S>::Param> param;
  Storage<S> grad;
  Storage<StateOf<Rule, S>> second;
  place_slot<S>(param, t, share.stored, chunk, PARAM, t.pointers[chunk.tensor], addresses);
  place_slot<S>(grad, t, share.stored, chunk, GRAD, gradient, addresses);
  place_slot<S>(second, t, share.stored, chunk, FIRST_STATE,
                t.pointers[FIRST_STATE * t.tensors + chunk.tensor], addresses);
  const bool aligned = addresses % 16 == 0;
  if constexpr (std::is_same_v<S, Any>) {
    context.first = chunk.first;
    context.aligned = aligned;
    context.count = count;
    if (share.stored[PARAM] == SPLIT_BFLOAT16) {
      const int64_t row = t.pointers[(t.first_beside + 1) * t.tensors + chunk.tensor];
      const uint32_t checksum = memory_at<uint32_t>(row)[chunk.first / kPiece];
      context.trusted = checksum_of(context, param.own) == checksum;
    }
  }

  double directions = 0, params = 0;
  const auto add = [&](auto elements, int32_t at) {
    constexpr int V = decltype(elements)::value;
    float p[V], g[V], state[V];
    param.template load<V>(at, p, context);
    grad.template load<V>(at, g, context);
    second.template load<V>(at, state, context);
#pragma unroll
    for (int i = 0; i < V; ++i) {
      if (at + i >= count) continue;
      directions +=
          square(Rule::direction(g[i] * scalars[GRAD_FACTOR], state[i], scalars + COMMON_SCALARS));
      params += square(p[i]);
    }
  };
  constexpr int V = kElementsPerAccess<S>;
  using Several = std::integral_constant<int, V>;
  if constexpr (std::is_same_v<S, Any>) {
    for (int32_t at = V * int32_t(threadIdx.x); at < count; at += V * kThreads) add(Several{}, at);
  } else {
    const int32_t by_vectors = aligned ? count / V * V : 0;
    for (int32_t at = V * int32_t(threadIdx.x); at < by_vectors; at += V * kThreads)
      add(Several{}, at);
    for (int32_t at = by_vectors + int32_t(threadIdx.x); at < count; at += kThreads)
      add(std::integral_constant<int, 1>{}, at);
  }
  const Sums sums = block_sum({directions, params});
  if (threadIdx.x == 0) {
    const int64_t number = t.first_chunks[chunk.tensor] + chunk.first / t.chunk_elements;
    t.measures[MEASURE_COLUMNS * number + OF_DIRECTION] = sums.squares;
    t.measures[MEASURE_COLUMNS * number + OF_PARAM] = sums.nonfinite;
  }
}

// scale: one block per tensor.
template <class Rule, int Capacity>
__global__ void __launch_bounds__(kThreads)
    scale(const __grid_constant__ Tables t, const __grid_constant__ Share<Capacity> share) {
  const int64_t tensor = share.first_chunk + blockIdx.x;
  if (!share.gradients[tensor - share.first_tensor]) return;
  if (scalars_of<Rule, float>(t, tensor)[SKIP] != 0) return;
  Sums sums{};
  for (int64_t chunk = t.first_chunks[tensor] + threadIdx.x; chunk < t.first_chunks[tensor + 1];
       chunk += kThreads) {
    sums.squares += t.measures[MEASURE_COLUMNS * chunk + OF_DIRECTION];
    sums.nonfinite += t.measures[MEASURE_COLUMNS * chunk + OF_PARAM];
  }
  sums = block_sum(sums);
  if (threadIdx.x == 0) scale_tensor<Rule, float>(t, tensor, sums.squares, sums.nonfinite);
}

}  // namespace spectramind
