// The CPU walk: the launches of a step, as plain C functions over the tables.
//
// Threads are torch's own: the caller hands over the address of torch's
// parallel_for, so no torch header and no second thread pool is needed.
#include <cmath>
#include <cstring>
#include <type_traits>
#include <vector>

#include "../describe.h"
#include "../host/facts.h"
#include "../host/tensors.h"
#include "../tables.h"
#include "../update_rules.h"
#include "../walk.h"
#include "factored.h"
#include "half.h"
#include "storage.h"

namespace spectramind {
namespace {

using Range = void (*)(int64_t begin, int64_t end, void* context);
using ParallelFor = int32_t (*)(int64_t begin, int64_t end, int64_t grain, Range, void* context);

// The hardware's prefetchers stop at a page's end, and start anew with every block.
template <class S>
inline void prefetch_lines(const S* from, int64_t n) {
  for (int64_t i = 0; i < n; i += 64 / int64_t(sizeof(S))) __builtin_prefetch(from + i);
}
constexpr int64_t kAhead = 1024;

// A fixed number of lanes: the order of the sum is the same for every width of vector. In
// float64, where squares of float32 neither overflow nor round.
struct Squares {
  static constexpr int kLanes = 32;
  double sums[kLanes];
  int32_t nonfinite[kLanes];
};

template <class S>
SPECTRAMIND_CLONES void add_squares(const S* g, int64_t n, Squares& to) {
  constexpr int kLanes = Squares::kLanes;
  Squares local = to;  // nothing the loop reads can alias it
  const auto add = [&](int64_t i, int lane) {
    const auto value = widen(g[i]);
    local.sums[lane] += double(value) * double(value);
    local.nonfinite[lane] |= !(std::fabs(value) < decltype(value)(INFINITY));
  };
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) {
    prefetch_lines(g + i + kAhead, kLanes);
    for (int j = 0; j < kLanes; ++j) add(i + j, j);
  }
  for (int j = 0; i + j < n; ++j) add(i + j, j);
  to = local;
}

template <class S>
void add_squares_of(const S* g, int64_t n, Squares& to) {
  add_squares(g, n, to);
}
inline void add_squares_of(const float16* g, int64_t n, Squares& to) {
  float wide[kBlock];
  for (int64_t at = 0; at < n; at += kBlock) {
    const int64_t count = n - at < kBlock ? n - at : kBlock;
    widen_block(g + at, wide, count);
    add_squares(wide, count, to);
  }
}

// The chunks of the tensors that take part, so that threads share the work of a step evenly.
class Present {
 public:
  explicit Present(const Tables& t) : tables(t), count_(t.chunks) {
    bool all = true;
    for (int64_t i = 0; i < t.tensors; ++i) all &= takes_part(t, i);
    if (all) return;
    for (int64_t i = 0; i < t.chunks; ++i)
      if (takes_part(t, t.chunk_table[2 * i])) listed_.push_back(i);
    count_ = int64_t(listed_.size());
    some_ = true;
  }
  int64_t count() const { return count_; }
  Chunk operator[](int64_t i) const { return chunk_at(tables, some_ ? listed_[i] : i); }

  const Tables& tables;

 private:
  int64_t count_;
  bool some_ = false;
  std::vector<int64_t> listed_;
};

// norm: one read of a range of chunks of the gradients, 4 bytes per fp32 parameter.
void norm_chunks(int64_t begin, int64_t end, void* context) {
  const Present& present = *static_cast<const Present*>(context);
  const Tables& t = present.tables;
  with_plain(Stored(t.stored[GRAD]), [&](auto* stored) {
    for (int64_t i = begin; i < end; ++i) {
      const Chunk chunk = present[i];
      const auto* grad =
          reinterpret_cast<decltype(stored)>(t.pointers[GRAD * t.tensors + chunk.tensor]);
      Squares squares{};
      add_squares_of(grad + chunk.first, chunk.last - chunk.first, squares);
      double sum = 0, nonfinite = 0;
      for (int j = 0; j < Squares::kLanes; ++j) {
        sum += squares.sums[j];
        nonfinite += squares.nonfinite[j];
      }
      double* const partial = partial_of(t, chunk);
      partial[0] = sum;
      partial[1] = nonfinite;
    }
  });
}

// The norm pass finds nothing in tensors that take no part.
void clear_partials_of_others(const Tables& t) {
  for (int64_t i = 0; i < t.tensors; ++i) {
    const int64_t pieces = (t.sizes[i] + kPiece - 1) / kPiece;
    if (!takes_part(t, i))
      std::memset(t.partials + 2 * t.partial_rows[i], 0, size_t(pieces) * 2 * sizeof(double));
  }
}

// advance: the norm of all gradients, and one more step for every tensor.
template <class Rule, class T>
void advance(const Tables& t) {
  double squares = 0, nonfinite = 0;
  for (int64_t i = 0; i < t.sum_rows; ++i) {
    squares += t.sums[2 * i];
    nonfinite += t.sums[2 * i + 1];
  }
  const Decision decision = decide(t, squares, nonfinite);
  report(t, decision);
  for (int64_t i = 0; i < t.tensors; ++i)
    if (takes_part(t, i)) advance_tensor<Rule, T>(t, decision, i);
}

template <class Rule, int States, class T, class P, class S>
SPECTRAMIND_CLONES void update_block(P* p, const S* g, S* const* states, const T* scalars,
                                     int64_t n) {
  T c[Rule::C::COLUMNS];  // local copies: nothing the loop writes can alias them
  for (int j = 0; j < Rule::C::COLUMNS; ++j) c[j] = scalars[COMMON_SCALARS + j];
  const T grad_factor = scalars[GRAD_FACTOR];
  S* state[States + 1];
  for (int j = 0; j < States; ++j) state[j] = states[j];
#pragma GCC ivdep
  for (int64_t i = 0; i < n; ++i) {
    T param = widen(p[i]), values[States + 1];
    for (int j = 0; j < States; ++j) values[j] = widen(state[j][i]);
    Rule::template update<States>(param, widen(g[i]) * grad_factor, values, c);
    narrow(param, p[i]);
    for (int j = 0; j < States; ++j) narrow(values[j], state[j][i]);
  }
}

template <class T>
SPECTRAMIND_CLONES void sync_block(T* fast, T* slow, T alpha, int64_t n) {
#pragma GCC ivdep
  for (int64_t i = 0; i < n; ++i) lookahead_sync(fast[i], slow[i], alpha);
}

template <class T>
SPECTRAMIND_CLONES void average_block(T* average, const T* p, T weight, int64_t n) {
#pragma GCC ivdep
  for (int64_t i = 0; i < n; ++i) average[i] = lerp(average[i], p[i], weight);
}

// update: a range of chunks, one read and one write of everything a chunk holds. The loops run
// over S: the compute type T, or what the parameter, its gradient and its states are stored in.
template <class Rule, int States, class T, class S>
void update_chunks(int64_t begin, int64_t end, void* context) {
  const Present& present = *static_cast<const Present*>(context);
  const Tables& t = present.tables;
  const int slow_slot = FIRST_STATE + States;
  const int average_slot = slow_slot + int(t.lookahead);
  T wide[2][kBlock];
  S held[2 + States][kBlock];

  for (int64_t i = begin; i < end; ++i) {
    const Chunk chunk = present[i];
    const T* scalars = static_cast<const T*>(t.scalars) + chunk.tensor * kScalarColumns<Rule>;
    const bool skip = scalars[SKIP] != T(0);
    if (skip && !t.zero_grads) continue;
    const bool sync = t.lookahead && scalars[SYNC] != T(0);
    const bool average = t.ema && scalars[EMA_WEIGHT] >= T(0);
    Storage<S> grad(t, GRAD, chunk.tensor, 0), state_storages[States + 1];
    for (int j = 0; j < States; ++j)
      state_storages[j] = {t, FIRST_STATE + j, chunk.tensor, uint32_t(FIRST_STATE + j)};
    Storage<S> param(t, PARAM, chunk.tensor, PARAM);
    Storage<T> wide_param(t, PARAM, chunk.tensor, PARAM), slow_weights, averaged_weights;
    if (sync) slow_weights = {t, slow_slot, chunk.tensor, SLOW_STREAM};
    if (average) averaged_weights = {t, average_slot, chunk.tensor, AVERAGE_STREAM};

    for (int64_t at = chunk.first; at < chunk.last; at += kBlock) {
      const int64_t n = chunk.last - at < kBlock ? chunk.last - at : kBlock;
      const auto apply = [&](auto* p) {
        const S* g = grad.load(at, n, held[1]);
        S* states[States + 1];
        for (int j = 0; j < States; ++j) states[j] = state_storages[j].load(at, n, held[2 + j]);
        if constexpr (std::is_same_v<S, float16>) {
          const int64_t done = update_halves<Rule, States>(p, g, states, scalars, n);
          S* rest[States + 1];
          for (int j = 0; j < States; ++j) rest[j] = states[j] + done;
          update_block<Rule, States>(p + done, g + done, rest, scalars, n - done);
        } else {
          update_block<Rule, States>(p, g, states, scalars, n);
        }
        for (int j = 0; j < States; ++j) state_storages[j].store(at, n, states[j]);
      };
      if (!skip && !sync && !average) {
        S* p = param.load(at, n, held[0]);
        apply(p);
        param.store(at, n, p);
      } else if (!skip) {  // the slow and averaged weights follow a parameter not yet rounded
        T* p = wide_param.load(at, n, wide[0]);
        apply(p);
        if (sync) {
          T* slow = slow_weights.load(at, n, wide[1]);
          sync_block(p, slow, scalars[SYNC_ALPHA], n);
          slow_weights.store(at, n, slow);
        }
        wide_param.store(at, n, p);
        if (average) {
          T* averaged = averaged_weights.load(at, n, wide[1]);
          average_block(averaged, p, scalars[EMA_WEIGHT], n);
          averaged_weights.store(at, n, averaged);
        }
      }
      if (t.zero_grads) grad.zero(at, n);
    }
  }
}

// measure: one read of a range of chunks; per fp32 parameter 8 bytes, and 4 of a state that is one.
template <class Rule, class T>
void measure_chunks(int64_t begin, int64_t end, void* context) {
  const Present& present = *static_cast<const Present*>(context);
  const Tables& t = present.tables;
  T held[3][kBlock];
  for (int64_t i = begin; i < end; ++i) {
    const Chunk chunk = present[i];
    const T* scalars = scalars_of<Rule, T>(t, chunk.tensor);
    if (scalars[SKIP] != T(0)) continue;
    Storage<T> param(t, PARAM, chunk.tensor, 0), grad(t, GRAD, chunk.tensor, 0);
    Storage<T> second(t, FIRST_STATE, chunk.tensor, 0);
    Measure<T> sums{};
    for (int64_t at = chunk.first; at < chunk.last; at += kBlock) {
      const int64_t n = chunk.last - at < kBlock ? chunk.last - at : kBlock;
      measure_block<Rule>(param.load(at, n, held[0]), grad.load(at, n, held[1]),
                          second.load(at, n, held[2]), scalars, n, sums);
    }
    const int64_t number = t.first_chunks[chunk.tensor] + chunk.first / t.chunk_elements;
    double* const to = t.measures + MEASURE_COLUMNS * number;
    store_sum(sums.directions, Measure<T>::kLanes, to + OF_DIRECTION);
    store_sum(sums.params, Measure<T>::kLanes, to + OF_PARAM);
  }
}

// scale: how far each tensor goes.
template <class Rule, class T>
void scale(const Tables& t) {
  for (int64_t i = 0; i < t.tensors; ++i) {
    if (rests<Rule, T>(t, i)) continue;
    Sum<T> sums[2] = {};
    for (int64_t chunk = t.first_chunks[i]; chunk < t.first_chunks[i + 1]; ++chunk) {
      for (int j = 0; j < 2; ++j) {
        Sum<T> part;
        std::memcpy(&part, t.measures + MEASURE_COLUMNS * chunk + j * OF_PARAM, sizeof part);
        sums[j].add(part);
      }
    }
    scale_tensor<Rule, T>(t, i, sums[0].total(), sums[1].total());
  }
}

// Whether parameter, gradient and every state are stored in one plain type.
template <int States>
bool same_plain(const Tables& t) {
  bool same = t.stored[GRAD] == t.stored[PARAM];
  for (int j = 0; j < States; ++j) same &= t.stored[FIRST_STATE + j] == t.stored[PARAM];
  return same;
}

template <class Rule, int States, class T>
Range update_loop(const Tables& t) {
  if constexpr (sizeof(T) == sizeof(float)) {
    if (same_plain<States>(t) && t.stored[PARAM] == BFLOAT16)
      return update_chunks<Rule, States, T, bfloat16>;
    if (same_plain<States>(t) && t.stored[PARAM] == FLOAT16)
      return update_chunks<Rule, States, T, float16>;
  }
  return update_chunks<Rule, States, T, T>;
}

struct Kernels {
  const char* rule;
  int32_t states;
  int32_t dtype;  // the compute type: float, or double for fp64 parameters
  void (*advance)(const Tables&);
  Range (*update)(const Tables&);
  // Of a rule that measures a step before it is taken; null of the others.
  Range squares, move, divide, measure;
  void (*scale)(const Tables&);
};

template <class Rule, int States, class T>
constexpr Kernels kernels() {
  static_assert(FIRST_STATE + States + 2 <= kMaxSlots, "slow and averaged weights have a slot too");
  Kernels found{
      Rule::name, States,  PlainOf<T>::value, &advance<Rule, T>, &update_loop<Rule, States, T>,
      nullptr,    nullptr, nullptr,           nullptr,           nullptr};
  if constexpr (is_factored<Rule>) {
    found.squares = &square_tiles<T>;
    found.move = &move_pieces<Rule, T>;
    found.divide = &divide_batches<Rule, T>;
  }
  if constexpr (is_measured<Rule>) {
    found.measure = &measure_chunks<Rule, T>;
    found.scale = &scale<Rule, T>;
  }
  return found;
}

constexpr Kernels kRegistry[] = {
#define SPECTRAMIND_ROWS(Rule, States) \
  kernels<Rule, States, float>(), kernels<Rule, States, double>(),
    SPECTRAMIND_EVERY_RULE(SPECTRAMIND_ROWS)
#undef SPECTRAMIND_ROWS
};

// Runs over the pieces of all of the tensors; a thread gets as many elements as it does of chunks.
int32_t over_pieces(ParallelFor parallel_for, Range loop, int64_t pieces, const Tables& t,
                    const Factoring& f) {
  Factored factored{t, f};
  const int64_t grain = t.chunks ? t.grain * pieces / t.chunks : 1;
  return parallel_for(0, pieces, grain > 1 ? grain : 1, loop, &factored);
}

}  // namespace
}  // namespace spectramind

using namespace spectramind;

extern "C" {

// See describe.h.
const char* spectramind_describe() {
  static const std::string text = description() + described("host access", sizeof(Access)) +
                                  described("host given", sizeof(Given)) +
                                  described("host found", kEverythingFound);
  return text.c_str();
}

// The kernels of a rule, or null where it was not built.
const void* spectramind_find(const char* rule, int32_t states, int32_t dtype) {
  for (const Kernels& k : kRegistry)
    if (!std::strcmp(k.rule, rule) && k.states == states && k.dtype == dtype) return &k;
  return nullptr;
}

// The first tensor whose step counter is no number of steps, or -1: asked before anything moves.
int64_t spectramind_bad_counter(const Tables* tables) {
  for (int64_t i = 0; i < tables->tensors; ++i) {
    if (!takes_part(*tables, i)) continue;
    const double count = count_of(*tables, i);
    if (!(count >= 0 && count == std::floor(count))) return i;
  }
  return -1;
}

// norm and update return what torch's parallel_for returns: 0, or an error.
int32_t spectramind_norm(const Tables* tables, ParallelFor parallel_for) {
  clear_partials_of_others(*tables);
  Present present(*tables);
  return parallel_for(0, present.count(), tables->grain, norm_chunks, &present);
}

void spectramind_advance(const void* kernels, const Tables* tables) {
  static_cast<const Kernels*>(kernels)->advance(*tables);
}

// The sums of squares of rows and columns of factored tensors, and the norm's partial ones.
int32_t spectramind_squares(const void* kernels, const Tables* tables, const Factoring* factoring,
                            ParallelFor parallel_for) {
  clear_partials_of_others(*tables);
  const auto loop = static_cast<const Kernels*>(kernels)->squares;
  return over_pieces(parallel_for, loop, factoring->tiles, *tables, *factoring);
}

// The mean squares of rows and columns move on, and become factors.
int32_t spectramind_factor(const void* kernels, const Tables* tables, const Factoring* factoring,
                           ParallelFor parallel_for) {
  const Kernels& of = *static_cast<const Kernels*>(kernels);
  const Factoring& f = *factoring;
  const int32_t error = over_pieces(parallel_for, of.move, f.pieces, *tables, f);
  return error ? error : over_pieces(parallel_for, of.divide, f.batches, *tables, f);
}

int32_t spectramind_measure(const void* kernels, const Tables* tables, ParallelFor parallel_for) {
  const Kernels& of = *static_cast<const Kernels*>(kernels);
  Present present(*tables);
  const int32_t error = parallel_for(0, present.count(), tables->grain, of.measure, &present);
  if (!error) of.scale(*tables);
  return error;
}

int32_t spectramind_update(const void* kernels, const Tables* tables, ParallelFor parallel_for) {
  const Range loop = static_cast<const Kernels*>(kernels)->update(*tables);
  Present present(*tables);
  return parallel_for(0, present.count(), tables->grain, loop, &present);
}
}
