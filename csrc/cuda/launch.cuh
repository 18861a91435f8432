// What a launch is given beside the tables.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

#include "../tables.h"

namespace spectramind {

constexpr int kThreads = 128;
constexpr int kWarps = kThreads / 32;

// A launch's share of the tensors. The addresses of their gradients are arguments, so nothing is
// uploaded for a step: up to 32,764 bytes since CUDA 12.1, 4 KB before.
template <int Capacity>
struct Share {
  int64_t first_tensor;
  int64_t first_chunk;
  int32_t stored[kMaxSlots];
  int64_t gradients[Capacity];
};
constexpr int kHead =  // of the kernels that take most
    sizeof(Tables) + sizeof(Factoring) + sizeof(Share<1>) - sizeof(int64_t);
constexpr int kMany = ((CUDART_VERSION >= 12010 ? 32764 : 4096) - kHead) / int(sizeof(int64_t));
constexpr int kFew = (4096 - kHead) / int(sizeof(int64_t));

// Which of a launch's tensors take part: a bit for each.
constexpr int kTensorsAtOnce = (4096 - int(sizeof(Tables)) - 16) / 4 * 32;
struct Present {
  int64_t first_tensor;
  uint32_t bits[kTensorsAtOnce / 32];
};

}  // namespace spectramind
