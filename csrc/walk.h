// What every walk does alike: finding a chunk, and `advance` for one tensor.
#pragma once

#include <cmath>
#include <cstdint>

#include "random.h"
#include "tables.h"
#include "update_rules.h"

namespace spectramind {

template <class Rule>
constexpr int64_t kHyperparameterColumns =
    int64_t(COMMON_HYPERPARAMETERS) + int64_t(Rule::H::COLUMNS);
template <class Rule>
constexpr int64_t kScalarColumns = int64_t(COMMON_SCALARS) + int64_t(Rule::C::COLUMNS);

// A pointer from an address in the tables. The CUDA compiler must be told that it is global memory.
template <class T>
SPECTRAMIND_HD inline T* memory_at(int64_t address) {
#ifdef __CUDA_ARCH__
  return static_cast<T*>(__cvta_global_to_generic(size_t(address)));
#else
  return reinterpret_cast<T*>(address);
#endif
}

struct Chunk {
  int64_t tensor, first, last;
};

SPECTRAMIND_HD inline Chunk chunk_at(const Tables& t, int64_t chunk) {
  const int64_t tensor = t.chunk_table[2 * chunk];
  const int64_t first = t.chunk_table[2 * chunk + 1];
  const int64_t left = t.sizes[tensor] - first;
  return {tensor, first, first + (left < t.chunk_elements ? left : t.chunk_elements)};
}

// Whether a tensor takes part in this step, by the address of its gradient.
SPECTRAMIND_HD inline bool takes_part(const Tables& t, int64_t tensor) {
  return t.pointers[GRAD * t.tensors + tensor] != 0;
}

// Where the norm pass leaves what it found in a piece.
SPECTRAMIND_HD inline double* partial_of(const Tables& t, const Chunk& piece) {
  return t.partials + 2 * (t.partial_rows[piece.tensor] + int64_t(uint64_t(piece.first) / kPiece));
}

// A hyperparameter is in the table, or in a tensor of the user's.
SPECTRAMIND_HD inline double hyperparameter(const Tables& t, int64_t at) {
  const int64_t* source = t.sources + SOURCE_COLUMNS * at;
  const int64_t address = source[SOURCE_ADDRESS];
  if (!address) return t.hyperparameters[at];
  return source[SOURCE_DTYPE] == FLOAT64 ? *memory_at<double>(address) : *memory_at<float>(address);
}

// What becomes of the gradients of all tensors in this step.
struct Decision {
  double unscale;  // what each gradient is multiplied by before it is clipped
  double norm;     // of the unscaled gradients
  bool nonfinite;  // whether any gradient is not finite
  bool skip;       // whether nothing is to change
};

SPECTRAMIND_HD inline Decision decide(const Tables& t, double squares, double nonfinite) {
  const double unscale = t.grad_scale ? 1 / double(*t.grad_scale) : 1;
  const bool skip = (t.found_inf && *t.found_inf != 0) || (t.skip_nonfinite && nonfinite != 0);
  return {unscale, std::sqrt(squares) * unscale, nonfinite != 0, skip};
}

SPECTRAMIND_HD inline void report(const Tables& t, const Decision& decision) {
  if (!t.sum_rows) return;
  *t.norm = decision.norm;
  *t.nonfinite = decision.nonfinite;
}

// The step counter of a tensor: a float32 as torch makes it, or a float64, which counts on where a
// float32 stops, at 2^24.
SPECTRAMIND_HD inline double count_of(const Tables& t, int64_t tensor) {
  const int64_t address = t.pointers[STEP * t.tensors + tensor];
  return t.wide_steps ? *memory_at<double>(address) : double(*memory_at<float>(address));
}

SPECTRAMIND_HD inline double increment_count(const Tables& t, int64_t tensor) {
  const int64_t address = t.pointers[STEP * t.tensors + tensor];
  return t.wide_steps ? *memory_at<double>(address) += 1 : *memory_at<float>(address) += 1;
}

// What a rule keeps of a tensor beside its states, where it lies.
SPECTRAMIND_HD inline int64_t address_of_number(const Tables& t, int64_t number, int64_t tensor) {
  return t.pointers[(t.first_number + number) * t.tensors + tensor];
}

// (Returned as `{condition ? ...}`, CUDA 13.0's compiler never ends.)
SPECTRAMIND_HD inline Number number_of(const Tables& t, int64_t number, int64_t tensor) {
  const int64_t address = address_of_number(t, number, tensor);
  Number n;
  n.wide = t.wide_numbers != 0;
  n.value = n.wide ? *memory_at<double>(address) : double(*memory_at<float>(address));
  return n;
}

SPECTRAMIND_HD inline void store_number(const Tables& t, int64_t number, int64_t tensor,
                                        double value) {
  const int64_t address = address_of_number(t, number, tensor);
  if (t.wide_numbers)
    *memory_at<double>(address) = value;
  else
    *memory_at<float>(address) = float(value);
}

// The step count as the exponent of a beta, capped just below 2^31: that is as good as infinity,
// which a counter may hold. The cap is a float32 value: Triton before 3.9 rounds it to float32.
SPECTRAMIND_HD inline int64_t beta_exponent(double count) {
  constexpr double most = 2147483520;
  return int64_t(count < most ? count : most);
}

// Where the elements of a tensor are in its parameter.
SPECTRAMIND_HD inline Place place_of(const Tables& t, int64_t tensor) {
  const int64_t* row = t.places + PLACE_COLUMNS * tensor;
  return {row[OFFSET], row[RUN], row[STRIDE]};
}

// Whose random bits a slot of a tensor takes in this step.
SPECTRAMIND_HD inline Draw draw_of(const Tables& t, int64_t tensor, uint32_t stream) {
  const int64_t* row = t.places + PLACE_COLUMNS * tensor;
  const uint64_t seed = uint64_t(row[SEED]);
  return {{uint32_t(seed), uint32_t(seed >> 32)},
          uint32_t(beta_exponent(count_of(t, tensor))),
          uint32_t(row[PARAMETER]),
          stream};
}

// The first of the rows that a slot has beside its own. `stored`: of the slots, which a GPU finds
// elsewhere than in the tables.
SPECTRAMIND_HD inline int64_t row_beside(const Tables& t, const int32_t* stored, int slot) {
  int64_t row = t.first_beside;
  for (int i = 0; i < slot; ++i)
    if (i != STEP) row += rows_beside(stored[i]);
  return row;
}

// Whether a count is a multiple of k. An infinite one is none.
SPECTRAMIND_HD inline bool is_multiple(double count, double k) {
  return k >= 1 && k < 9e18 && count < 9e18 && int64_t(count) % int64_t(k) == 0;
}

// Counts one more step for a tensor and moves its numbers, unless the step is skipped, and writes
// its row of scalars.
// All of it is computed in float64 and rounded once, when it is stored.
template <class Rule, class T>
SPECTRAMIND_HD inline void advance_tensor(const Tables& t, const Decision& decision,
                                          int64_t tensor) {
  constexpr int64_t columns = kHyperparameterColumns<Rule>;
  double h[columns];
  for (int64_t j = 0; j < columns; ++j) h[j] = hyperparameter(t, t.groups[tensor] * columns + j);
  T* out = static_cast<T*>(t.scalars) + tensor * kScalarColumns<Rule>;
  const double count = decision.skip ? count_of(t, tensor) : increment_count(t, tensor);

  const double clip = t.sum_rows ? clip_coefficient(decision.norm, h[MAX_NORM]) : 1;
  out[GRAD_FACTOR] = T((h[MAXIMIZE] != 0 ? -1 : 1) * clip * decision.unscale);
  out[SKIP] = T(decision.skip);
  out[SYNC] = T(is_multiple(count, h[LOOKAHEAD_K]));
  out[SYNC_ALPHA] = T(h[LOOKAHEAD_ALPHA]);
  out[EMA_WEIGHT] = h[EMA_DECAY] < 0 ? T(-1) : T(1 - h[EMA_DECAY]);

  constexpr int64_t numbers = Rule::N::COLUMNS;
  Number n[numbers + 1];  // one to spare: an array cannot have length 0
  for (int64_t j = 0; j < numbers; ++j) n[j] = number_of(t, j, tensor);
  double values[Rule::C::COLUMNS];
  Rule::template scalars<T>(h + COMMON_HYPERPARAMETERS, beta_exponent(count), n, values);
  for (int64_t j = 0; j < numbers && !decision.skip; ++j) store_number(t, j, tensor, n[j].value);
  for (int64_t j = 0; j < Rule::C::COLUMNS; ++j) out[COMMON_SCALARS + j] = T(values[j]);
}

}  // namespace spectramind
