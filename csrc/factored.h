// Mean squares of rows and columns in the place of those of elements: what every walk does alike.
//
// How a tensor lies is told by its row of `layouts` (LayoutColumn in tables.h). The sums of squares
// are taken tile by tile, each into places of its own, and added up in a fixed order: so nobody's
// bits depend on who ran first.
#pragma once

#include <cmath>
#include <cstdint>

#include "tables.h"
#include "update_rules.h"
#include "walk.h"

namespace spectramind {

SPECTRAMIND_HD inline const int64_t* layout_of(const Factoring& f, int64_t tensor) {
  return f.layouts + LAYOUT_COLUMNS * tensor;
}

// Elements of a vector: all of its tensor's but along one dimension.
SPECTRAMIND_HD inline int64_t size_of_vector(const int64_t* layout, int64_t size, bool outer) {
  return size / layout[outer ? INNER : OUTER];
}

// A sum of squares of float32, in float64, where squares neither overflow nor round; and one of
// float64, in pairs.
struct WideSum {
  double high;

  SPECTRAMIND_HD void add_square(float value) { high += double(value) * double(value); }
  SPECTRAMIND_HD void add(const WideSum& other) { high += other.high; }
  SPECTRAMIND_HD void add(double value) { high += value; }
  SPECTRAMIND_HD double total() const { return high; }
};
struct PairSum {
  double high, low;

  SPECTRAMIND_HD void add_square(double value) {
    double low_of_square;
    const double square = exact_product(value, value, low_of_square);
    add(PairSum{square, low_of_square});
  }
  SPECTRAMIND_HD void add(const PairSum& other) {
    double lost;
    high = exact_sum(high, other.high, lost);
    low += other.low + lost;
  }
  SPECTRAMIND_HD void add(double value) { add(PairSum{value, 0}); }
  // Where the sum is infinite, what rounding lost is NaN.
  SPECTRAMIND_HD double total() const { return std::fabs(high) < INFINITY ? high + low : high; }
};
template <class T>
struct SumOf {
  using type = WideSum;
};
template <>
struct SumOf<double> {
  using type = PairSum;
};
template <class T>
using Sum = typename SumOf<T>::type;

// The scalars of a tensor.
template <class Rule, class T>
SPECTRAMIND_HD inline const T* scalars_of(const Tables& t, int64_t tensor) {
  return static_cast<const T*>(t.scalars) + tensor * kScalarColumns<Rule>;
}

// Whether nothing is to change in a tensor.
template <class Rule, class T>
SPECTRAMIND_HD inline bool rests(const Tables& t, int64_t tensor) {
  return !takes_part(t, tensor) || scalars_of<Rule, T>(t, tensor)[SKIP] != T(0);
}

// An element of a vector: the mean of squares moves on.
template <class T>
SPECTRAMIND_HD inline T next_of_vector(T held, double squares, int64_t count, T grad_factor,
                                       T weight) {
  const double factor = double(grad_factor);
  return lerp(held, T(squares * (factor * factor) / double(count)), weight);
}

// The partial sums of an element of a vector, added up.
template <class T>
SPECTRAMIND_HD inline double squares_of(const int64_t* vector, int64_t size, int64_t at) {
  const Sum<T>* parts = memory_at<const Sum<T>>(vector[PARTS]);
  Sum<T> sum = parts[at];
  for (int64_t part = 1; part < vector[PARTS_OF]; ++part) sum.add(parts[part * size + at]);
  return sum.total();
}

// The vector of rows, in which its elements of one matrix are `stride` apart, from `first` on.
struct Rows {
  int64_t factor;  // address
  int64_t count, stride;
};
SPECTRAMIND_HD inline Rows rows_of(const int64_t* layout) {
  const bool outer = layout[ROWS_ARE_OUTER];
  const int64_t inside = outer ? layout[BETWEEN] * layout[WITHIN] : layout[WITHIN];
  return {layout[(outer ? OUTER_VECTOR : INNER_VECTOR) + FACTOR], layout[outer ? OUTER : INNER],
          inside};
}
SPECTRAMIND_HD inline int64_t first_row(const Rows& rows, int64_t matrix) {
  return matrix / rows.stride * rows.count * rows.stride + matrix % rows.stride;
}

// By what the rows of a matrix are divided.
template <class T>
SPECTRAMIND_HD inline T divisor_of(double sum, int64_t count, T eps1) {
  const T mean = T(sum / double(count));
  return mean < eps1 ? eps1 : mean;
}

// How far a tensor goes, when the sums of all of its chunks are there.
template <class Rule, class T>
SPECTRAMIND_HD inline void scale_tensor(const Tables& t, int64_t tensor, double of_direction,
                                        double of_param) {
  constexpr int64_t columns = kHyperparameterColumns<Rule>;
  double h[columns];
  for (int64_t j = 0; j < columns; ++j) h[j] = hyperparameter(t, t.groups[tensor] * columns + j);
  const double size = double(t.sizes[tensor]);
  T* out = static_cast<T*>(t.scalars) + tensor * kScalarColumns<Rule> + COMMON_SCALARS;
  out[Rule::C::NEG_STEP] = T(Rule::neg_step(h + COMMON_HYPERPARAMETERS, count_of(t, tensor),
                                            of_direction / size, of_param / size));
}

}  // namespace spectramind
