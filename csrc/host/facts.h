// What Python hands over to be recorded, and what it is told of a comparison.
#pragma once

#include <cstdint>

namespace spectramind {

// What is recorded, as Python has it. The lists have an entry for each parameter, in the order of
// the groups.
struct Given {
  void* groups;  // lists of parameters
  void* state;   // of the optimizer
  void* grads;   // what a gradient is like; None of a parameter that has had none
  void* states;  // dicts, or None
  void* names;   // lists: the entries of the state that are stepped with
  void* splits;  // None of a plain parameter, else a list: placements of it and of its gradient
  const int64_t* rows;    // where the address of the gradient is to be written, or 0
  const int64_t* needed;  // bytes that the gradient must have; negative: they do not matter
};

// What `spectramind_compare` found.
enum Found : int64_t {
  kFits = 1,
  kMoved = 2,
  kMissing = 4,
  kOthers = 8,
  kLost = 16,
  kOverlap = 32
};
constexpr int64_t kEverythingFound = 2 * kOverlap - 1;

}  // namespace spectramind
