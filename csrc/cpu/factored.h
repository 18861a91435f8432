// The CPU walk of tensors whose mean squares are factored, and of steps that are measured first.
#pragma once

#include <cmath>
#include <cstring>
#include <type_traits>

#include "../factored.h"
#include "../tables.h"
#include "../walk.h"
#include "storage.h"

namespace spectramind {
namespace {

// A tensor's tile, and where its sums go.
template <class T>
struct Tile {
  int64_t first, last, outer, last_outer, inner, last_inner, within, last_within;
  int64_t outers, betweens, inners, withins;  // of the tensor
  Sum<T>* outer_sums;
  Sum<T>* inner_sums;

  Tile(const Tables& t, const Factoring& f, const int64_t* row) {
    const int64_t tensor = row[TILE_TENSOR], size = t.sizes[tensor];
    const int64_t* layout = layout_of(f, tensor);
    const auto part = [&](int column, bool of_outer) {
      const int64_t of_part = size_of_vector(layout, size, of_outer);
      const int64_t at = row[of_outer ? TILE_OUTER_PART : TILE_INNER_PART];
      return memory_at<Sum<T>>(layout[column + PARTS]) + at * of_part;
    };
    first = row[TILE_FIRST], last = row[TILE_LAST];
    outer = row[TILE_OUTER], last_outer = row[TILE_LAST_OUTER];
    inner = row[TILE_INNER], last_inner = row[TILE_LAST_INNER];
    within = row[TILE_WITHIN], last_within = row[TILE_LAST_WITHIN];
    outers = layout[OUTER], betweens = layout[BETWEEN];
    inners = layout[INNER], withins = layout[WITHIN];
    outer_sums = part(OUTER_VECTOR, true);
    inner_sums = part(INNER_VECTOR, false);
  }

  // Calls f with the first element of each stretch of `within`, and where its sums are.
  template <class F>
  void for_each_stretch(F f) const {
    for (int64_t a = first; a < last; ++a)
      for (int64_t b = outer; b < last_outer; ++b)
        for (int64_t c = 0; c < betweens; ++c) {
          const int64_t to_outer = ((a * outers + b) * betweens + c) * withins + within;
          const int64_t line = ((a * outers + b) * betweens + c) * inners;
          const int64_t to_inner = (a * betweens + c) * inners;
          for (int64_t d = inner; d < last_inner; ++d)
            f((line + d) * withins + within, to_outer, (to_inner + d) * withins + within);
        }
  }
};

// The sums of squares of a tile's rows and columns: one read of it, 4 bytes per fp32 parameter, and
// one write of the sums. `nonfinite` counts what is not finite.
template <class T, class S>
SPECTRAMIND_CLONES void add_tile(const Tile<T>& of_caller, const S* g, int64_t& nonfinite) {
  const Tile<T> tile = of_caller;  // nothing that is written can alias it
  const int64_t n = tile.last_within - tile.within;
  const int64_t columns = tile.last_inner - tile.inner;
  int64_t bad = 0;
  for (int64_t a = tile.first; a < tile.last; ++a)
    for (int64_t c = 0; c < tile.betweens; ++c)
      for (int64_t d = tile.inner; d < tile.last_inner; d += tile.withins > 1 ? 1 : columns) {
        const int64_t inner = ((a * tile.betweens + c) * tile.inners + d) * tile.withins;
        const int64_t count = tile.withins > 1 ? n : columns;
        std::memset(static_cast<void*>(tile.inner_sums + inner + tile.within), 0,
                    size_t(count) * sizeof(Sum<T>));
      }
  const auto is_bad = [](auto value) {
    return !(std::fabs(value) < decltype(value)(INFINITY));
  };
  if (tile.withins > 1) {
    for (int64_t a = tile.first; a < tile.last; ++a)
      for (int64_t line = a * tile.outers + tile.outer; line < a * tile.outers + tile.last_outer;
           ++line)
        for (int64_t c = 0; c < tile.betweens; ++c)
          std::memset(
              static_cast<void*>(tile.outer_sums + (line * tile.betweens + c) * tile.withins +
                                 tile.within),
              0, size_t(n) * sizeof(Sum<T>));
    tile.for_each_stretch([&](int64_t at, int64_t outer, int64_t inner) {
      const S* from = g + at;
      Sum<T>* of_outer = tile.outer_sums + outer;
      Sum<T>* of_inner = tile.inner_sums + inner;
      int32_t found = 0;
#pragma GCC ivdep
      for (int64_t i = 0; i < n; ++i) {
        const auto value = widen(from[i]);
        of_outer[i].add_square(value);
        of_inner[i].add_square(value);
        found |= is_bad(value);
      }
      bad += found;
    });
  } else {  // stretches of one element: along `inner` they follow each other
    constexpr int kLanes = 16;
    const int64_t whole = columns / kLanes * kLanes;
    for (int64_t a = tile.first; a < tile.last; ++a)
      for (int64_t b = tile.outer; b < tile.last_outer; ++b)
        for (int64_t c = 0; c < tile.betweens; ++c) {
          const int64_t line = (a * tile.outers + b) * tile.betweens + c;
          const S* from = g + line * tile.inners + tile.inner;
          Sum<T>* of_inner =
              tile.inner_sums + (a * tile.betweens + c) * tile.inners + tile.inner;
          Sum<T> lanes[kLanes] = {}, rest = {};
          int32_t found = 0;
          for (int64_t i = 0; i < whole; i += kLanes) {
#pragma GCC ivdep
            for (int j = 0; j < kLanes; ++j) {
              const auto value = widen(from[i + j]);
              lanes[j].add_square(value);
              of_inner[i + j].add_square(value);
              found |= is_bad(value);
            }
          }
          for (int64_t i = whole; i < columns; ++i) {
            const auto value = widen(from[i]);
            rest.add_square(value);
            of_inner[i].add_square(value);
            found |= is_bad(value);
          }
          if (whole)
            for (int j = 0; j < kLanes; ++j) rest.add(lanes[j]);
          tile.outer_sums[line] = rest;
          bad += found;
        }
  }
  nonfinite = bad;
}

// The sum of what a tile has found, for the norm.
template <class T>
double squares_of_tile(const Tile<T>& tile) {
  Sum<T> sum{};
  for (int64_t a = tile.first; a < tile.last; ++a)
    for (int64_t b = tile.outer; b < tile.last_outer; ++b)
      for (int64_t c = 0; c < tile.betweens; ++c) {
        const int64_t line = ((a * tile.outers + b) * tile.betweens + c) * tile.withins;
        for (int64_t i = tile.within; i < tile.last_within; ++i)
          sum.add(tile.outer_sums[line + i]);
      }
  return sum.total();
}

struct Factored {
  const Tables& tables;
  const Factoring& factoring;
};

template <class T>
void square_tiles(int64_t begin, int64_t end, void* context) {
  const auto& [t, f] = *static_cast<const Factored*>(context);
  with_plain(Stored(t.stored[GRAD]), [&](auto* stored) {
    for (int64_t i = begin; i < end; ++i) {
      const int64_t* row = f.tile_table + TILE_COLUMNS * i;
      const int64_t tensor = row[TILE_TENSOR];
      const int64_t address = t.pointers[GRAD * t.tensors + tensor];
      if (!address) continue;
      const Tile<T> tile(t, f, row);
      int64_t nonfinite = 0;
      add_tile<T>(tile, memory_at<std::remove_pointer_t<decltype(stored)>>(address), nonfinite);
      double* const partial = t.partials + 2 * (t.partial_rows[tensor] + row[TILE_NUMBER]);
      partial[0] = squares_of_tile(tile);
      partial[1] = double(nonfinite);
    }
  });
}

// Vectors: the partial sums are added up, and the mean squares move on. Nothing per parameter.
template <class Rule, class T>
void move_pieces(int64_t begin, int64_t end, void* context) {
  const auto& [t, f] = *static_cast<const Factored*>(context);
  with_plain(Stored(f.vector_stored), [&](auto* stored) {
    for (int64_t i = begin; i < end; ++i) {
      const int64_t* piece = f.piece_table + PIECE_COLUMNS * i;
      const int64_t tensor = piece[PIECE_TENSOR];
      if (rests<Rule, T>(t, tensor)) continue;
      const T* scalars = scalars_of<Rule, T>(t, tensor);
      const int64_t* layout = layout_of(f, tensor);
      const bool outer = piece[PIECE_VECTOR] == OUTER_VECTOR;
      const int64_t* vector = layout + piece[PIECE_VECTOR];
      const int64_t size = size_of_vector(layout, t.sizes[tensor], outer);
      const int64_t count = layout[outer ? INNER : OUTER];
      auto* held = memory_at<std::remove_pointer_t<decltype(stored)>>(vector[HELD]);
      T* factor = memory_at<T>(vector[FACTOR]);
      for (int64_t j = piece[PIECE_FIRST]; j < piece[PIECE_LAST]; ++j) {
        const double squares = squares_of<T>(vector, size, j);
        factor[j] = next_of_vector(T(widen(held[j])), squares, count, scalars[GRAD_FACTOR],
                                   scalars[COMMON_SCALARS + Rule::C::WEIGHT]);
        if constexpr (sizeof(*held) == 2 && sizeof(T) == 8)
          narrow(float(factor[j]), held[j]);
        else
          narrow(factor[j], held[j]);
      }
    }
  });
}

// Matrices: the rows of each are divided by their mean.
template <class Rule, class T>
void divide_batches(int64_t begin, int64_t end, void* context) {
  const auto& [t, f] = *static_cast<const Factored*>(context);
  for (int64_t i = begin; i < end; ++i) {
    const int64_t* batch = f.batch_table + BATCH_COLUMNS * i;
    const int64_t tensor = batch[BATCH_TENSOR];
    if (rests<Rule, T>(t, tensor)) continue;
    const T eps1 = scalars_of<Rule, T>(t, tensor)[COMMON_SCALARS + Rule::C::EPS1];
    const Rows rows = rows_of(layout_of(f, tensor));
    for (int64_t matrix = batch[BATCH_FIRST]; matrix < batch[BATCH_LAST]; ++matrix) {
      T* factor = memory_at<T>(rows.factor) + first_row(rows, matrix);
      Sum<T> sum{};
      for (int64_t j = 0; j < rows.count; ++j) sum.add(double(factor[j * rows.stride]));
      const T divisor = divisor_of(sum.total(), rows.count, eps1);
      for (int64_t j = 0; j < rows.count; ++j) factor[j * rows.stride] /= divisor;
    }
  }
}

// What a block adds to the sums of its chunk: in lanes, so in the same order for every width of
// vector.
template <class T>
struct Measure {
  static constexpr int kLanes = 16;
  Sum<T> directions[kLanes], params[kLanes];
};

template <class Rule, class T>
SPECTRAMIND_CLONES void measure_block(const T* p, const T* g, const T* second, const T* scalars,
                                      int64_t n, Measure<T>& to) {
  constexpr int kLanes = Measure<T>::kLanes;
  T c[Rule::C::COLUMNS];
  for (int j = 0; j < Rule::C::COLUMNS; ++j) c[j] = scalars[COMMON_SCALARS + j];
  const T grad_factor = scalars[GRAD_FACTOR];
  T directions[kBlock];
#pragma GCC ivdep
  for (int64_t i = 0; i < n; ++i) {
    T held = second[i];
    directions[i] = Rule::direction(T(g[i] * grad_factor), held, c);
  }
  Measure<T> local = to;
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) {
#pragma GCC ivdep
    for (int j = 0; j < kLanes; ++j) {
      local.directions[j].add_square(directions[i + j]);
      local.params[j].add_square(p[i + j]);
    }
  }
  for (int j = 0; i + j < n; ++j) {
    local.directions[j].add_square(directions[i + j]);
    local.params[j].add_square(p[i + j]);
  }
  to = local;
}

template <class Sum>
void store_sum(const Sum* lanes, int count, double* to) {
  Sum sum = lanes[0];
  for (int j = 1; j < count; ++j) sum.add(lanes[j]);
  std::memcpy(to, &sum, sizeof sum);
}

}  // namespace
}  // namespace spectramind
