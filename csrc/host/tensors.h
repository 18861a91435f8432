// Python's objects and torch's tensors, read where they lie.
//
// They are read through functions whose addresses the caller hands over: some of CPython's, and the
// one of torch's DLPack exchange table that fills a DLTensor in. So nothing of Python or torch is
// included, and one binary serves every version. The caller holds the interpreter's lock.
#pragma once

#include <cstdint>

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
  int32_t (*append)(void* list, void* object);           // not 0: an error
  void (*release)(void* object);
  int32_t (*describe)(void* tensor, DLTensor* described);  // not 0: a Python error is set
  // Methods of torch, for what DLPack does not tell: whether a tensor is negated only when it is
  // read, its storage, and how many bytes that has.
  void *is_neg, *storage, *bytes;
  void *none, *false_object;
  void *grad, *local_tensor, *spec, *placements;  // names of attributes
  void* dtensor;                                  // the class, or null
  int64_t type_at;                                // where an object has its type
  int64_t local_at, spec_at;                      // where a DTensor has these attributes, or -1
  // Where torch has the same, as found by looking for what the methods say; all -1: not known.
  int64_t tensor_at, keys_at, negated, storage_at, data_at, bytes_at;
};

constexpr int64_t kFailed = -1;
constexpr int64_t kHead = 6;    // words of a tensor, before two for each dimension
constexpr int64_t kNdimAt = 5;  // among them
constexpr int32_t kEq = 2;      // Py_EQ

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

class Tensors {
 public:
  explicit Tensors(const Access& access) : access_(access) {}

  void* type(void* tensor) const { return object(word_at(tensor, access_.type_at)); }
  // Torch's own tensor as it lies in memory: from the address of its storage to its keys, with all
  // that says how it is read, if it has few dimensions. Where these words are the same, and the
  // storage has its memory where it was, nothing has changed; DLPack takes ten times as long.
  const int64_t* insides(void* tensor) const {
    const char* torchs = static_cast<const char*>(object(word_at(tensor, access_.tensor_at)));
    return reinterpret_cast<const int64_t*>(torchs + access_.storage_at);
  }
  int64_t inside_words() const {
    return access_.tensor_at < 0 ? 0 : (access_.keys_at - access_.storage_at) / 8 + 1;
  }
  // The address of the memory; 0 of a tensor without a storage, such as a sparse one.
  int64_t data(const int64_t* insides) const {
    return *insides ? word_at(object(*insides), access_.data_at) : 0;
  }
  int64_t keys(const int64_t* insides) const { return insides[inside_words() - 1]; }

  // Where the processor will find a tensor: itself, torch's own, its storage.
  Hint hint(void* tensor) const {
    if (!inside_words()) return {id(tensor), 0, 0};
    const int64_t* now = insides(tensor);
    return {id(tensor), id(now), *now};
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

  // Hands the facts of a tensor to `sink`, word by word, until it is not content. A stride that is
  // never walked is 0; so is the address unless it counts.
  template <class Sink>
  int64_t facts(void* tensor, bool lasting, Sink& sink, DLTensor& t) const {
    if (!sink.put(id(type(tensor)))) return 0;
    if (access_.describe(tensor, &t)) return kFailed;
    const int64_t negated = is_negated(tensor);
    if (negated < 0) return kFailed;
    const int64_t address = id(t.data) + int64_t(t.byte_offset);
    const int64_t dtype = t.dtype.code | int64_t(t.dtype.bits) << 8 | int64_t(t.dtype.lanes) << 16;
    const int64_t device = int64_t(t.device.type) << 32 | uint32_t(t.device.id);
    bool same = sink.put(negated) && sink.put(lasting ? address : 0) && sink.put(dtype) &&
                sink.put(device) && sink.put(t.ndim);
    for (int32_t j = 0; same && j < t.ndim; ++j)
      same = sink.put(t.shape[j]) && sink.put(t.shape[j] > 1 ? t.strides[j] : 0);
    return same;
  }

  // How many bytes the storage of a tensor has from an address on, or, where only torch's methods
  // can say it, in all; -1 with a Python error.
  int64_t bytes_from(void* tensor, int64_t address) const {
    if (inside_words()) {
      const int64_t* now = insides(tensor);
      const int64_t behind = data(now) + word_at(object(*now), access_.bytes_at) - address;
      return behind < 0 ? 0 : behind;
    }
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
    if (inside_words()) return (keys(insides(tensor)) & access_.negated) != 0;
    void* negated = call(access_.is_neg, tensor);
    if (!negated) return kFailed;
    access_.release(negated);  // only its identity is used
    return negated != access_.false_object;
  }

  const Access& access_;
};

}  // namespace spectramind
