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

// Lines that are read together, so that sums of columns are loaded and stored once for them.
constexpr int kLines = 4;

// Some lines of a tile, `apart` from each other: each adds to the sums of columns, and has a sum of
// its own, in lanes, so in the same order for every width of vector.
template <int Lines, class S, class Sum>
SPECTRAMIND_CLONES int64_t add_lines(const S* g, int64_t apart, int64_t columns, Sum* of_columns,
                                     Sum* of_lines, int64_t stride) {
  constexpr int kLanes = 16;
  if (columns < kLanes) {  // too few for vectors
    bool found = false;
    for (int k = 0; k < Lines; ++k) {
      Sum sum{};
      for (int64_t i = 0; i < columns; ++i) {
        const auto value = widen(g[k * apart + i]);
        sum.add_square(value);
        of_columns[i].add_square(value);
        found |= !(std::fabs(value) < decltype(value)(INFINITY));
      }
      of_lines[k * stride] = sum;
    }
    return found;
  }
  Sum lanes[Lines][kLanes] = {};
  int32_t bad[kLanes] = {};
  const auto add = [&](int64_t i, int lane) {
    Sum column = of_columns[i];
    for (int k = 0; k < Lines; ++k) {
      const auto value = widen(g[k * apart + i]);
      lanes[k][lane].add_square(value);
      column.add_square(value);
      bad[lane] |= !(std::fabs(value) < decltype(value)(INFINITY));
    }
    of_columns[i] = column;
  };
  int64_t i = 0;
  for (; i + kLanes <= columns; i += kLanes) {
#pragma GCC ivdep
    for (int j = 0; j < kLanes; ++j) add(i + j, j);
  }
  for (int j = 0; i + j < columns; ++j) add(i + j, j);
  for (int k = 0; k < Lines; ++k) {
    Sum sum = lanes[k][0];
    for (int j = 1; j < kLanes; ++j) sum.add(lanes[k][j]);
    of_lines[k * stride] = sum;
  }
  int32_t any = 0;
  for (int j = 0; j < kLanes; ++j) any |= bad[j];
  return any;
}

// The sums of squares of a tile's rows and columns: one read of it, 4 bytes per fp32 parameter, and
// one write of the sums. `nonfinite` counts lines that are not finite.
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
  const auto is_bad = [](auto value) { return !(std::fabs(value) < decltype(value)(INFINITY)); };
  if (tile.withins > 1) {
    for (int64_t a = tile.first; a < tile.last; ++a)
      for (int64_t line = a * tile.outers + tile.outer; line < a * tile.outers + tile.last_outer;
           ++line)
        for (int64_t c = 0; c < tile.betweens; ++c)
          std::memset(static_cast<void*>(tile.outer_sums +
                                         (line * tile.betweens + c) * tile.withins + tile.within),
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
    for (int64_t a = tile.first; a < tile.last; ++a)
      for (int64_t c = 0; c < tile.betweens; ++c) {
        Sum<T>* of_inner = tile.inner_sums + (a * tile.betweens + c) * tile.inners + tile.inner;
        const int64_t first = a * tile.outers * tile.betweens + c;
        const auto line = [&](int64_t b) { return first + b * tile.betweens; };
        int64_t b = tile.outer;
        for (; b + kLines <= tile.last_outer; b += kLines) {
          const int64_t apart = tile.betweens * tile.inners;
          bad += add_lines<kLines>(g + line(b) * tile.inners + tile.inner, apart, columns, of_inner,
                                   tile.outer_sums + line(b), tile.betweens);
        }
        for (; b < tile.last_outer; ++b)
          bad += add_lines<1>(g + line(b) * tile.inners + tile.inner, 0, columns, of_inner,
                              tile.outer_sums + line(b), 1);
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
        for (int64_t i = tile.within; i < tile.last_within; ++i) sum.add(tile.outer_sums[line + i]);
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

// The partial sums of some elements of a vector are added up, and their mean squares move on.
template <class T>
SPECTRAMIND_CLONES void move_block(const Sum<T>* parts, int64_t size, int64_t parts_of,
                                   int64_t count, T grad_factor, T weight, T* values, int64_t n) {
  Sum<T> sums[kBlock];
  for (int64_t i = 0; i < n; ++i) sums[i] = parts[i];
  for (int64_t part = 1; part < parts_of; ++part) {
    const Sum<T>* more = parts + part * size;
#pragma GCC ivdep
    for (int64_t i = 0; i < n; ++i) sums[i].add(more[i]);
  }
#pragma GCC ivdep
  for (int64_t i = 0; i < n; ++i)
    values[i] = next_of_vector(values[i], sums[i].total(), count, grad_factor, weight);
}

// Vectors, piece by piece. Nothing per parameter.
template <class Rule, class T>
void move_pieces(int64_t begin, int64_t end, void* context) {
  const auto& [t, f] = *static_cast<const Factored*>(context);
  with_plain(Stored(f.vector_stored), [&](auto* stored) {
    using S = std::remove_pointer_t<decltype(stored)>;
    if constexpr (sizeof(T) == sizeof(float) || sizeof(S) == sizeof(T)) {  // as Python gives them
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
        for (int64_t at = piece[PIECE_FIRST]; at < piece[PIECE_LAST]; at += kBlock) {
          const int64_t left = piece[PIECE_LAST] - at, n = left < kBlock ? left : kBlock;
          S* held = memory_at<S>(vector[HELD]) + at;
          T* factor = memory_at<T>(vector[FACTOR]) + at;
          widen_block(held, factor, n);
          move_block(memory_at<const Sum<T>>(vector[PARTS]) + at, size, vector[PARTS_OF], count,
                     scalars[GRAD_FACTOR], scalars[COMMON_SCALARS + Rule::C::WEIGHT], factor, n);
          narrow_block(factor, held, n);
        }
      }
    }
  });
}

// The rows of matrices that have one row each.
template <class T>
SPECTRAMIND_CLONES void divide_single(T* factor, int64_t n, T eps1) {
#pragma GCC ivdep
  for (int64_t i = 0; i < n; ++i) factor[i] /= divisor_of(double(factor[i]), 1, eps1);
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
    if (rows.count == 1) {
      const int64_t first = batch[BATCH_FIRST];
      divide_single(memory_at<T>(rows.factor) + first, batch[BATCH_LAST] - first, eps1);
      continue;
    }
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
  Measure<T> local = to;
  const auto add = [&](int64_t i, int lane) {
    T held = second[i];
    local.directions[lane].add_square(Rule::direction(T(g[i] * grad_factor), held, c));
    local.params[lane].add_square(p[i]);
  };
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) {
#pragma GCC ivdep
    for (int j = 0; j < kLanes; ++j) add(i + j, j);
  }
  for (int j = 0; i + j < n; ++j) add(i + j, j);
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
