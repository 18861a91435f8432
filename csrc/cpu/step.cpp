// The CPU walk: the two launches of a step, as plain C functions over the tables.
//
// Threads are torch's own: the caller hands over the address of torch's
// parallel_for, so no torch header and no second thread pool is needed.
#include <cstring>

#include "../tables.h"
#include "../update_rules.h"
#include "storage.h"

namespace spectramind {
namespace {

constexpr int64_t kBlock = 1024;  // six slots of fp32 fill half of a 48 KiB cache

using Range = void (*)(int64_t begin, int64_t end, void* context);
using ParallelFor = int32_t (*)(int64_t begin, int64_t end, int64_t grain, Range, void* context);

template <class Rule>
constexpr int64_t hyperparameter_columns() {
  return int64_t(COMMON_HYPERPARAMETERS) + int64_t(Rule::HYPERPARAMETERS);
}
template <class Rule>
constexpr int64_t scalar_columns() {
  return int64_t(COMMON_SCALARS) + int64_t(Rule::SCALARS);
}

// advance: one more step for every tensor, and what follows from it.
template <class Rule, class T>
void advance(const Tables& t) {
  const int64_t* steps = t.pointers + STEP * t.tensors;
  for (int64_t i = 0; i < t.tensors; ++i) {
    const double* h = t.hyperparameters + t.groups[i] * hyperparameter_columns<Rule>();
    T* out = static_cast<T*>(t.scalars) + i * scalar_columns<Rule>();
    float* counter = reinterpret_cast<float*>(steps[i]);
    const int64_t step = int64_t(*counter += 1.0f);

    const int64_t k = int64_t(h[LOOKAHEAD_K]);
    out[GRAD_FACTOR] = h[MAXIMIZE] != 0 ? T(-1) : T(1);
    out[SYNC] = T(k > 0 && step % k == 0);
    out[SYNC_ALPHA] = T(h[LOOKAHEAD_ALPHA]);

    double values[Rule::SCALARS];
    Rule::template scalars<T>(h + COMMON_HYPERPARAMETERS, step, values);
    for (int64_t j = 0; j < Rule::SCALARS; ++j) out[COMMON_SCALARS + j] = T(values[j]);
  }
}

template <class Rule, int States, class T>
SPECTRAMIND_CLONES void update_block(T* p, const T* g, T* const* states, const T* scalars,
                                     int64_t n) {
  T c[Rule::SCALARS];  // local copies: nothing the loop writes can alias them
  for (int j = 0; j < Rule::SCALARS; ++j) c[j] = scalars[COMMON_SCALARS + j];
  const T grad_factor = scalars[GRAD_FACTOR];
  T* state[States + 1];
  for (int j = 0; j < States; ++j) state[j] = states[j];
#pragma GCC ivdep
  for (int64_t i = 0; i < n; ++i) {
    T values[States + 1];
    for (int j = 0; j < States; ++j) values[j] = state[j][i];
    Rule::template update<States>(p[i], g[i] * grad_factor, values, c);
    for (int j = 0; j < States; ++j) state[j][i] = values[j];
  }
}

template <class T>
SPECTRAMIND_CLONES void sync_block(T* fast, T* slow, T alpha, int64_t n) {
#pragma GCC ivdep
  for (int64_t i = 0; i < n; ++i) lookahead_sync(fast[i], slow[i], alpha);
}

// update: a range of chunks, one read and one write of everything a chunk holds.
template <class Rule, int States, class T>
void update_chunks(int64_t begin, int64_t end, void* context) {
  const Tables& t = *static_cast<const Tables*>(context);
  const int slow_slot = FIRST_STATE + States;
  T buffers[3 + States][kBlock];

  for (int64_t chunk = begin; chunk < end; ++chunk) {
    const int64_t tensor = t.chunk_table[2 * chunk];
    const int64_t first = t.chunk_table[2 * chunk + 1];
    const int64_t left = t.sizes[tensor] - first;
    const int64_t last = first + (left < t.chunk_elements ? left : t.chunk_elements);
    const T* scalars = static_cast<const T*>(t.scalars) + tensor * scalar_columns<Rule>();
    const auto storage = [&](int slot) {
      return Storage<T>{reinterpret_cast<char*>(t.pointers[slot * t.tensors + tensor]),
                        Dtype(t.dtypes[slot])};
    };
    const Storage<T> param = storage(PARAM), grad = storage(GRAD);

    for (int64_t at = first; at < last; at += kBlock) {
      const int64_t n = last - at < kBlock ? last - at : kBlock;
      T* p = param.load(at, n, buffers[0]);
      const T* g = grad.load(at, n, buffers[1]);
      T* states[States + 1];
      for (int j = 0; j < States; ++j)
        states[j] = storage(FIRST_STATE + j).load(at, n, buffers[3 + j]);

      update_block<Rule, States, T>(p, g, states, scalars, n);

      if (t.lookahead && scalars[SYNC] != T(0)) {
        const Storage<T> weights = storage(slow_slot);
        T* slow = weights.load(at, n, buffers[2]);
        sync_block(p, slow, scalars[SYNC_ALPHA], n);
        weights.store(at, n, slow);
      }
      param.store(at, n, p);
      for (int j = 0; j < States; ++j) storage(FIRST_STATE + j).store(at, n, states[j]);
    }
  }
}

struct Kernels {
  const char* rule;
  int32_t states;
  int32_t dtype;  // the compute type: float, or double for fp64 parameters
  int64_t scalar_columns;
  void (*advance)(const Tables&);
  Range update;
};

template <class Rule, int States, class T>
constexpr Kernels kernels() {
  return {Rule::name,
          States,
          NativeDtype<T>::value,
          scalar_columns<Rule>(),
          &advance<Rule, T>,
          &update_chunks<Rule, States, T>};
}

// Every rule with every number of states it may hold.
constexpr Kernels kRegistry[] = {
    kernels<Adam, 2, float>(), kernels<Adam, 2, double>(),  //
    kernels<Adam, 3, float>(), kernels<Adam, 3, double>(),  // AMSGrad
    kernels<SGD, 0, float>(),  kernels<SGD, 0, double>(),   //
    kernels<SGD, 1, float>(),  kernels<SGD, 1, double>(),   // momentum
};

}  // namespace
}  // namespace spectramind

using namespace spectramind;

extern "C" {

// The kernels of a rule, or null where it was not built.
const void* spectramind_find(const char* rule, int32_t states, int32_t dtype) {
  for (const Kernels& k : kRegistry)
    if (!std::strcmp(k.rule, rule) && k.states == states && k.dtype == dtype) return &k;
  return nullptr;
}

// Columns of the scalar table of a rule.
int64_t spectramind_scalar_columns(const void* kernels) {
  return static_cast<const Kernels*>(kernels)->scalar_columns;
}

void spectramind_advance(const void* kernels, const Tables* tables) {
  static_cast<const Kernels*>(kernels)->advance(*tables);
}

// Returns what torch's parallel_for returns: 0, or an error.
int32_t spectramind_update(const void* kernels, const Tables* tables, ParallelFor parallel_for) {
  return parallel_for(0, tables->chunks, tables->grain,
                      static_cast<const Kernels*>(kernels)->update, const_cast<Tables*>(tables));
}
}
