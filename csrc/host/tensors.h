// Python's objects and torch's tensors, read where they lie.
//
// They are read through functions whose addresses the caller hands over: some of CPython's, and the
// one of torch's DLPack exchange table that fills a DLTensor in. So nothing of Python or torch is
// included, and one binary serves every version. The caller holds the interpreter's lock.
#pragma once

#include <cstdint>
#include <cstring>

namespace spectramind {

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
  void* (*list_item)(void* list, intptr_t index);  // borrowed
  intptr_t (*list_size)(void* list);
  int32_t (*dict_next)(void* dict, intptr_t* position, void** key, void** value);  // borrowed
  intptr_t (*dict_size)(void* dict);
  void* (*dict_item)(void* dict, void* key);     // borrowed; none is no error
  void* (*attribute)(void* object, void* name);  // a new reference
  // A new reference; with a count of arguments and no names.
  void* (*call)(void* callable, void* const* arguments, intptr_t count, void* names);
  int32_t (*equal)(void* one, void* other, int32_t op);  // negative: an error
  int64_t (*integer)(void* object);                      // of a Python number
  void (*release)(void* object);
  int32_t (*describe)(void* tensor, DLTensor* described);  // not 0: a Python error is set
  // Methods of torch, for what DLPack does not tell: whether a tensor is negated only when it is
  // read, its storage, and how many bytes that has.
  void *is_neg, *storage, *bytes;
  void *none, *false_object;
  void *grad, *local_tensor, *spec, *placements;  // names of attributes
  void *plain, *parameter;                        // classes
  void* dtensor;                                  // the class, or null
  int64_t type_at;                                // where an object has its type
  int64_t local_at, spec_at;                      // where a DTensor has these attributes, or -1
  // Where torch has all this, as found by looking for what its methods say (see
  // kernels/tensor_layout.py); all -1: not known.
  int64_t tensor_at, keys_at, negated, storage_at, data_at, bytes_at, deleter_at, object_at,
      sizes_at, meta_at, grad_at, no_grad, version_at, count_at;
};

constexpr int64_t kFailed = -1;
constexpr int64_t kHead = 6;     // words of a tensor, before two for each dimension
constexpr int64_t kDtypeAt = 3;  // among them
constexpr int64_t kNdimAt = 5;
constexpr int32_t kEq = 2;  // Py_EQ

// Of one element, from the facts of a tensor.
inline int64_t dtype_bytes(const int64_t* facts) { return (facts[kDtypeAt] >> 8 & 0xff) / 8; }

inline int64_t word_at(const void* object, int64_t offset) {
  return *reinterpret_cast<const int64_t*>(static_cast<const char*>(object) + offset);
}

inline void* object(int64_t word) { return reinterpret_cast<void*>(intptr_t(word)); }
inline int64_t id(const void* object) { return int64_t(reinterpret_cast<intptr_t>(object)); }

// Three addresses that a look will come to. In a model of many small tensors nothing is left in the
// caches from the last step, and the loop would wait for one line of memory after the other: so it
// asks for them ahead. Nothing else is done with these addresses: what was there may be gone.
struct Hint {
  int64_t object, inside, behind;

  void follow() const {
    __builtin_prefetch(::spectramind::object(object));
    for (int64_t line = 0; line < 192; line += 64)
      __builtin_prefetch(::spectramind::object(inside + line));
    __builtin_prefetch(::spectramind::object(behind));
  }
};

// Torch's own tensor, of which Python's object is a handle.
using Own = const char*;

class Tensors {
 public:
  explicit Tensors(const Access& access) : access_(access) {}

  // Whether it is known where torch keeps things. All that takes an `Own` needs it.
  bool inside() const { return access_.tensor_at >= 0; }

  void* type(void* tensor) const { return object(word_at(tensor, access_.type_at)); }
  Own own(void* tensor) const {
    return static_cast<Own>(object(word_at(tensor, access_.tensor_at)));
  }
  // Python's object; null where there has been none.
  void* python(Own tensor) const { return object(word_at(tensor, access_.object_at)); }
  // Null of a tensor without one, such as a sparse one.
  const char* storage(Own tensor) const {
    return static_cast<const char*>(object(word_at(tensor, access_.storage_at)));
  }
  int64_t data(Own tensor) const { return word_at(storage(tensor), access_.data_at); }

  // Where the processor will find a tensor: itself, torch's own, its storage.
  Hint hint(void* tensor) const {
    if (!inside()) return {id(tensor), 0, 0};
    return {id(tensor), id(own(tensor)) + access_.storage_at, id(storage(own(tensor)))};
  }

  bool is_dtensor(void* tensor) const { return access_.dtensor && type(tensor) == access_.dtensor; }

  // A rank's part of a tensor that is split; else itself. Borrowed; null is an error.
  void* local(void* tensor) const {
    if (!is_dtensor(tensor)) return tensor;
    return held(tensor, access_.local_at, access_.local_tensor);
  }

  // 1 where a tensor that is split has these placements, 0 where not, -1 with a Python error.
  int32_t split_alike(void* tensor, void* placements) const {
    void* spec = held(tensor, access_.spec_at, access_.spec);
    void* split = spec ? access_.attribute(spec, access_.placements) : nullptr;
    if (!split) return -1;
    const int32_t same = split == placements ? 1 : access_.equal(split, placements, kEq);
    access_.release(split);
    return same;
  }

  // Whether torch's own gradient of a tensor can be read: that makes no object of Python's, which
  // takes longer than all else after a backward pass. A subclass may say that it has another.
  bool has_own_gradient(void* tensor) const {
    void* class_of = type(tensor);
    return inside() && (class_of == access_.plain || class_of == access_.parameter ||
                        class_of == access_.dtensor);
  }
  // Where that is; 0 of a tensor that autograd does not know.
  int64_t gradient_at(void* tensor) const {
    const int64_t meta = word_at(own(tensor), access_.meta_at);
    return meta ? meta + access_.grad_at : 0;
  }
  // Null where there is none.
  Own gradient(void* tensor) const {
    const int64_t at = gradient_at(tensor);
    const int64_t found = at ? *static_cast<int64_t*>(object(at)) : access_.no_grad;
    return found == access_.no_grad ? nullptr : static_cast<Own>(object(found));
  }

  // Counts one more write to a tensor, unless it counts none, as one of inference mode.
  void mark(Own tensor) const {
    const int64_t counter = word_at(tensor, access_.version_at);
    if (!counter) return;
    auto* count = static_cast<uint32_t*>(object(counter + access_.count_at));
    __atomic_fetch_add(count, 1, __ATOMIC_RELAXED);
  }
  // Asks for what `mark` will read first, and then second.
  void expect_counter(Own tensor) const { __builtin_prefetch(tensor + access_.version_at); }
  void expect_count(Own tensor) const {
    __builtin_prefetch(object(word_at(tensor, access_.version_at)));
  }

  // Hands the facts of a tensor to `sink`, word by word, until it is not content. A stride that is
  // never walked is 0; so is the address unless it counts.
  template <class Sink>
  int64_t facts(void* tensor, bool lasting, Sink& sink, DLTensor& t) const {
    if (!sink.put(id(type(tensor)))) return 0;
    if (access_.describe(tensor, &t)) return kFailed;
    const int64_t negated = is_negated(tensor);
    if (negated < 0) return kFailed;
    const int64_t dtype = t.dtype.code | int64_t(t.dtype.bits) << 8 | int64_t(t.dtype.lanes) << 16;
    const int64_t device = int64_t(t.device.type) << 32 | uint32_t(t.device.id);
    bool same = sink.put(negated) && sink.put(lasting ? address(t) : 0) && sink.put(dtype) &&
                sink.put(device) && sink.put(t.ndim);
    for (int32_t j = 0; same && j < t.ndim; ++j)
      same = sink.put(t.shape[j]) && sink.put(t.shape[j] > 1 ? t.strides[j] : 0);
    return same;
  }

  // Of the first element.
  static int64_t address(const DLTensor& t) { return id(t.data) + int64_t(t.byte_offset); }

  // What torch's own tensor looked like when its facts were read. Where it looks the same they are
  // still true, if it has few dimensions; to read them takes ten times as long. Of what lasts:
  // where its memory is and who frees it (a lazy copy has another), and all from its storage to its
  // keys. Of a gradient: where in its storage it begins, who frees that, and how it is read.
  int64_t seen_words(bool lasting) const {
    if (!inside()) return 0;
    return lasting ? kOfStorage + words_from(access_.storage_at)
                   : kOfGradient + words_from(access_.sizes_at);
  }
  bool lies_alike(const int64_t* seen, Own tensor) const {
    const char* held = storage(tensor);
    return held && !std::memcmp(seen, held + access_.data_at, 8 * kOfStorage) &&
           !std::memcmp(seen + kOfStorage, tensor + access_.storage_at,
                        8 * words_from(access_.storage_at));
  }
  // What is behind the last size or stride has never been written, nor has every bit that comes
  // behind dtype and device in the word before the keys; the others do not matter.
  bool read_alike(const int64_t* seen, Own tensor) const {
    const char* held = storage(tensor);
    if (!held || seen[1] != word_at(held, access_.deleter_at)) return false;
    const int64_t *then = seen + kOfGradient, dimensions = *then;
    const auto* now = reinterpret_cast<const int64_t*>(tensor + access_.sizes_at);
    int64_t differences = *now ^ dimensions;
    const auto compare = [&](int64_t from, int64_t to) {
      for (int64_t i = from; i < to; ++i) differences |= now[i] ^ then[i];
    };
    compare(1, 1 + dimensions);
    compare(1 + kOwnDimensions, 1 + kOwnDimensions + dimensions);
    const int64_t keys = words_from(access_.sizes_at) - 1, kind = keys - 1;
    compare(1 + 2 * kOwnDimensions, kind);
    const uint64_t of_kind = uint64_t(now[kind] ^ then[kind]) << 24;
    return !(differences | (now[keys] ^ then[keys])) && !of_kind;
  }
  void remember(int64_t* seen, void* tensor, const DLTensor& t, bool lasting) const {
    if (!inside() || t.ndim > kOwnDimensions || !storage(own(tensor))) return;
    const char* held = storage(own(tensor));
    if (lasting) {
      std::memcpy(seen, held + access_.data_at, 8 * kOfStorage);
    } else {
      seen[0] = address(t) - data(own(tensor));
      seen[1] = word_at(held, access_.deleter_at);
    }
    const int64_t from = lasting ? access_.storage_at : access_.sizes_at;
    std::memcpy(seen + (lasting ? kOfStorage : kOfGradient), own(tensor) + from,
                8 * words_from(from));
  }

  // How many bytes the storage has from an address on.
  int64_t bytes_from(Own tensor, int64_t address) const {
    const int64_t end = data(tensor) + word_at(storage(tensor), access_.bytes_at);
    return end < address ? 0 : end - address;
  }
  // The same; where only torch's methods can say it, in all; -1 with a Python error.
  int64_t bytes_from(void* tensor, int64_t address) const {
    if (inside()) return bytes_from(own(tensor), address);
    void* storage = call(access_.storage, tensor);
    if (!storage) return kFailed;
    void* held = call(access_.bytes, storage);
    access_.release(storage);
    if (!held) return kFailed;
    const int64_t bytes = access_.integer(held);
    access_.release(held);
    return bytes;
  }

 private:
  static constexpr int64_t kOwnDimensions = 5;               // that torch keeps inside a tensor
  static constexpr int64_t kOfStorage = 3, kOfGradient = 2;  // words

  int64_t words_from(int64_t offset) const { return (access_.keys_at - offset) / 8 + 1; }
  void* call(void* callable, void* argument) const {
    return access_.call(callable, &argument, 1, nullptr);
  }

  // What an object holds under a name: at a known offset, where it always is, or as Python finds
  // it. Borrowed.
  void* held(void* of, int64_t at, void* name) const {
    if (at >= 0)
      if (void* there = object(word_at(of, at))) return there;
    void* found = access_.attribute(of, name);
    if (found) access_.release(found);  // the object holds it
    return found;
  }

  int64_t is_negated(void* tensor) const {
    if (inside()) return (word_at(own(tensor), access_.keys_at) & access_.negated) != 0;
    void* negated = call(access_.is_neg, tensor);
    if (!negated) return kFailed;
    access_.release(negated);  // only its identity is used
    return negated != access_.false_object;
  }

  const Access& access_;
};

}  // namespace spectramind
