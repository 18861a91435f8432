// What a kernel is given: a few small arrays, the same for every backend.
// spectramind_fused/multi_tensor/tables.py builds them, in this layout.
#pragma once

#include <cstdint>

namespace spectramind {

enum Dtype : int32_t { FLOAT32, FLOAT64, BFLOAT16, FLOAT16 };

// Rows of `pointers`. The states of the rule follow, then, where any group
// looks ahead, the slow weights.
enum Slot { PARAM, GRAD, STEP, FIRST_STATE };

// Columns that come before the rule's own.
enum CommonHyperparameter { MAXIMIZE, LOOKAHEAD_K, LOOKAHEAD_ALPHA, COMMON_HYPERPARAMETERS };
enum CommonScalar { GRAD_FACTOR, SYNC, SYNC_ALPHA, COMMON_SCALARS };

struct Tables {
  int64_t tensors;
  int64_t chunks;
  int64_t chunk_elements;
  int64_t grain;                  // chunks that are worth a thread of their own
  int64_t lookahead;              // 1: the last slot holds slow weights
  const int64_t* pointers;        // [slots][tensors], addresses
  const int64_t* sizes;           // [tensors], elements
  const int32_t* groups;          // [tensors], the parameter group of each
  const int64_t* chunk_table;     // [chunks][2], tensor and first element
  const double* hyperparameters;  // [groups][common + the rule's]
  void* scalars;                  // [tensors][common + the rule's], in the compute type
  const int32_t* dtypes;          // [slots]
};

}  // namespace spectramind
