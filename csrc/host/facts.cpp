// What a plan was built on, compared in one loop at every step: where tensors lie, and how.
//
// The tensors come in a Python list, and are read through functions whose addresses the caller
// hands over: some of CPython's, and the one of torch's DLPack exchange table that fills a DLTensor
// in. So nothing of Python or torch is included, and one binary serves every version. The caller
// holds the interpreter's lock.
#include <cstdint>

namespace {

// dlpack.h, version 1.
struct DLTensor {
  void* data;
  struct {
    int32_t type, id;
  } device;
  int32_t ndim;
  struct {
    uint8_t code, bits;
    uint16_t lanes;
  } dtype;
  const int64_t* shape;
  const int64_t* strides;
  uint64_t byte_offset;
};

struct Access {
  void* (*list_item)(void* list, intptr_t index);          // borrowed
  int32_t (*describe)(void* tensor, DLTensor* described);  // not 0: a Python error is set
  void* (*call)(void* callable, void* argument);           // a new reference
  void (*release)(void* object);
  void* is_neg;  // torch.Tensor.is_neg: DLPack tells how a negated view lies, not that it is one
  void* false_object;  // Python's False
  void* none;          // Python's None
};

constexpr int64_t kFailed = -1;
constexpr int64_t kDimensionsAt = 3;  // among the words of a tensor
constexpr int64_t kHead = 5;          // words of a tensor, before two for each dimension

// Hands the facts of every tensor to `put`, word by word, until it returns false. An address is
// one of them for the first `lasting` tensors. A stride that is never walked is written as 0.
// Behind the first `lasting`, None may stand in the place of a tensor: `pass` is told of it.
template <class Put, class Pass>
int64_t visit(const Access& access, void* list, int64_t tensors, int64_t lasting, Put put,
              Pass pass) {
  for (int64_t i = 0; i < tensors; ++i) {
    DLTensor t;
    void* tensor = access.list_item(list, intptr_t(i));
    if (!tensor) return kFailed;
    if (tensor == access.none && i >= lasting) {
      if (!pass()) return 0;
      continue;
    }
    if (access.describe(tensor, &t)) return kFailed;
    void* negated = access.call(access.is_neg, tensor);
    if (!negated) return kFailed;
    access.release(negated);  // only its identity is used below
    const int64_t address = i < lasting ? int64_t(t.data) + int64_t(t.byte_offset) : 0;
    const int64_t dtype = t.dtype.code | int64_t(t.dtype.bits) << 8 | int64_t(t.dtype.lanes) << 16;
    const int64_t device = int64_t(t.device.type) << 32 | uint32_t(t.device.id);
    bool goes_on = put(address) && put(dtype) && put(device) && put(t.ndim) &&
                   put(negated != access.false_object);
    for (int32_t j = 0; goes_on && j < t.ndim; ++j)
      goes_on = put(t.shape[j]) && put(t.shape[j] > 1 ? t.strides[j] : 0);
    if (!goes_on) return 0;
  }
  return 1;
}

}  // namespace

extern "C" {

// Writes the facts of a list of tensors, as far as there is room. Returns how many words they are,
// or -1 with a Python error.
int64_t spectramind_record_facts(const Access* access, void* list, int64_t tensors, int64_t lasting,
                                 int64_t* facts, int64_t room) {
  int64_t words = 0;
  const auto put = [&](int64_t word) {
    if (words < room) facts[words] = word;
    ++words;
    return true;
  };
  const int64_t went_on = visit(*access, list, tensors, lasting, put, [] { return false; });
  return went_on == kFailed ? kFailed : words;
}

// 1 where the facts are those that were recorded, 0 where not, -1 with a Python error. Of a tensor
// that is missing (None), behind the first `lasting`, nothing is asked.
int64_t spectramind_same_facts(const Access* access, void* list, int64_t tensors, int64_t lasting,
                               const int64_t* facts, int64_t words) {
  int64_t at = 0;
  const auto same = [&](int64_t word) { return at < words && facts[at++] == word; };
  const auto pass = [&] {
    if (at + kHead > words) return false;
    at += kHead + 2 * facts[at + kDimensionsAt];
    return true;
  };
  const int64_t went_on = visit(*access, list, tensors, lasting, same, pass);
  return went_on == 1 ? at == words : went_on;
}
}
