// What a plan was built on, compared in one loop at every step: who takes part, where parameters,
// states and gradients lie, and how. The loop also writes down where the gradients are. The caller
// keeps alive whatever is known by its address.
#include "facts.h"

#include <algorithm>
#include <cstdint>
#include <utility>
#include <vector>

#include "tensors.h"

namespace spectramind {
namespace {

constexpr int64_t kNowhere = 1;  // the address of an empty gradient: 0 says that there is none
constexpr int64_t kInside = 5;   // dimensions that torch keeps inside a tensor
constexpr int64_t kAhead = 12;   // hints, from asking for a line to its use
constexpr int64_t kHintWords = sizeof(Hint) / sizeof(int64_t);
constexpr int64_t kKeysAt = 32;  // in a dict, of the address of its keys: a bad guess costs time

// Writes words, as far as there is room.
struct Writer {
  int64_t *words, room, count = 0;
  bool put(int64_t word) {
    if (count < room) words[count] = word;
    ++count;
    return true;
  }
};

// Compares words with those that were written.
struct Reader {
  int64_t* at;
  bool put(int64_t word) { return *at++ == word; }
};

// The words: where the hints begin; how many groups, and parameters in each; how many states, and
// whose each is; then of each parameter: itself, whether it may step, its split, its facts, its
// state with the size of that, each entry's name and facts, the row, the bytes, and split and facts
// of the gradient. Facts of what is not a gradient come behind room for its insides, with torch's
// own address and its memory's.
class Recorder {
 public:
  Recorder(const Access& access, const Given& given, int64_t* words, int64_t room)
      : access_(access), tensors_(access), given_(given), out_{words, room} {}

  // How many words they are, or -1 with a Python error.
  int64_t all() {
    const intptr_t groups = access_.list_size(given_.groups);
    out_.put(0);
    out_.put(groups);
    for (intptr_t i = 0; i < groups; ++i) out_.put(access_.list_size(group(i)));
    out_.put(access_.dict_size(given_.state));
    intptr_t position = 0;
    for (void *key, *value; access_.dict_next(given_.state, &position, &key, &value);) {
      out_.put(id(key));
      out_.put(id(value));
    }
    intptr_t i = 0;
    for (intptr_t j = 0; j < groups; ++j)
      for (intptr_t k = 0; k < access_.list_size(group(j)); ++k)
        if (!parameter(access_.list_item(group(j), k), i++)) return kFailed;
    if (out_.room) out_.words[0] = out_.count;
    for (int64_t word = 0; word < kHintWords * (hints_ + kAhead); ++word) out_.put(0);
    return out_.count;
  }

 private:
  void* group(intptr_t i) const { return access_.list_item(given_.groups, i); }

  bool parameter(void* param, intptr_t i) {
    void* grad = access_.list_item(given_.grads, i);
    out_.put(id(param));
    out_.put(grad != access_.none);
    if (grad == access_.none) return true;
    split(i, 0);
    if (!facts(param, true) || !state(i)) return false;
    out_.put(given_.rows[i]);
    out_.put(given_.needed[i]);
    split(i, 1);
    return facts(grad, false);
  }

  bool state(intptr_t i) {
    void* held = access_.list_item(given_.states, i);
    void* names = access_.list_item(given_.names, i);
    const bool any = held != access_.none;
    hints_ += any;
    const intptr_t count = any ? access_.list_size(names) : 0;
    out_.put(any ? id(held) : 0);
    out_.put(any ? access_.dict_size(held) : 0);
    out_.put(count);
    for (intptr_t j = 0; j < count; ++j) {
      void* name = access_.list_item(names, j);
      void* entry = access_.dict_item(held, name);
      out_.put(id(name));
      if (!entry || !facts(entry, true)) return false;
    }
    return true;
  }

  void split(intptr_t i, intptr_t which) {
    void* how = access_.list_item(given_.splits, i);
    out_.put(how == access_.none ? 0 : id(access_.list_item(how, which)));
  }

  bool facts(void* tensor, bool lasting) {
    DLTensor t;
    void* part = tensors_.local(tensor);
    ++hints_;
    for (int64_t i = 0; lasting && i < tensors_.inside_words() + 1; ++i) out_.put(0);
    return part && tensors_.facts(part, lasting, out_, t) != kFailed;
  }

  const Access& access_;
  const Tensors tensors_;
  const Given& given_;
  Writer out_;
  int64_t hints_ = 0;  // how many a comparison follows
};

// Reads the words beside what is there now. Every function returns 1 where both agree, 0 where not,
// and -1 with a Python error.
class Comparison {
 public:
  Comparison(const Access& access, int64_t* words, uint8_t* has_grad, void* grads)
      : access_(access),
        tensors_(access),
        words_{words + 1},
        hints_(reinterpret_cast<Hint*>(words + words[0])),
        has_grad_(has_grad),
        grads_(grads) {}

  // What `Found` says, or 0 or -1.
  int64_t all(void* groups, void* state) {
    if (!same(access_.list_size(groups))) return 0;
    const int64_t* sizes = words_.at;
    const intptr_t count = access_.list_size(groups);
    for (intptr_t i = 0; i < count; ++i)
      if (!same(access_.list_size(access_.list_item(groups, i)))) return 0;
    if (!owners(state)) return 0;
    for (intptr_t i = 0; i < count; ++i) {
      void* group = access_.list_item(groups, i);
      for (intptr_t j = 0; j < sizes[i]; ++j) {
        const int64_t agrees = parameter(access_.list_item(group, j));
        if (agrees != 1) return agrees;
      }
    }
    if (found_ & kMoved && overlap()) found_ |= kOverlap;
    return found_;
  }

 private:
  bool same(int64_t word) { return words_.put(word); }
  int64_t next() { return *words_.at++; }

  bool owners(void* state) {
    const int64_t count = next();
    if (access_.dict_size(state) != count) return false;
    intptr_t position = 0;
    for (void *key, *value; access_.dict_next(state, &position, &key, &value);)
      if (!same(id(key)) || !same(id(value))) return false;
    return true;
  }

  int64_t parameter(void* param) {
    if (!param || !same(id(param))) return 0;
    const bool may_step = next();
    if (may_step) {
      int64_t agrees = split(param);
      if (agrees == 1) agrees = facts(param);
      if (agrees == 1) agrees = state();
      if (agrees != 1) return agrees;
    }
    void* grad = access_.attribute(param, access_.grad);
    if (!grad) return kFailed;
    const bool is_there = grad != access_.none;
    note(is_there);
    int64_t agrees = 1;
    if (!may_step)
      agrees = !is_there;
    else if (is_there)
      agrees = gradient(grad);
    else
      pass();
    access_.release(grad);
    return agrees;
  }

  void note(bool is_there) {
    if (bool(*has_grad_) != is_there) found_ |= kOthers;
    *has_grad_++ = is_there;
  }

  int64_t state() {
    void* held = object(next());
    const int64_t size = next(), count = next();
    if (held) expect({id(held), word_at(held, kKeysAt), 0});
    if (held && access_.dict_size(held) != size) return 0;
    for (int64_t j = 0; j < count; ++j) {
      void* entry = access_.dict_item(held, object(next()));
      if (!entry) return 0;
      const int64_t agrees = facts(entry);
      if (agrees != 1) return agrees;
    }
    return 1;
  }

  int64_t gradient(void* grad) {
    const int64_t row = next(), needed = next();
    int64_t agrees = split(grad);
    if (agrees != 1) return agrees;
    DLTensor t;
    void* part = tensors_.local(grad);
    if (part) expect(tensors_.hint(part));
    agrees = part ? tensors_.facts(part, false, words_, t) : kFailed;
    if (agrees != 1) return agrees;
    const int64_t address = id(t.data) + int64_t(t.byte_offset);
    if (needed > 0) {
      const int64_t bytes = tensors_.bytes_from(part, address);
      if (bytes == kFailed) return kFailed;
      if (bytes < needed || !address) found_ |= kLost;
    }
    write(row, needed ? address : kNowhere);
    if (!grads_) return 1;
    spans_.push_back({address, address + reach(t)});
    return access_.append(grads_, grad) ? kFailed : 1;
  }

  // Goes past the words of a gradient that is not there.
  void pass() {
    found_ |= kMissing;
    expect(*hints_);
    const int64_t row = next();
    words_.at += 2;  // the bytes, the placements
    words_.at += kHead + 2 * words_.at[kNdimAt];
    write(row, 0);
  }

  void write(int64_t row, int64_t address) {
    int64_t* const place = static_cast<int64_t*>(object(row));
    if (!place || *place == address) return;
    *place = address;
    found_ |= kMoved;
  }

  // Bytes from the first element to behind the last.
  static int64_t reach(const DLTensor& t) {
    int64_t elements = 1;
    for (int32_t j = 0; j < t.ndim; ++j) {
      if (!t.shape[j]) return 0;
      elements += (t.shape[j] - 1) * t.strides[j];
    }
    return elements * t.dtype.bits / 8;
  }

  // Whether any gradients share memory.
  bool overlap() {
    std::sort(spans_.begin(), spans_.end());
    int64_t end = 0;
    for (const auto& [first, last] : spans_) {
      if (first == last) continue;
      if (first < end) return true;
      end = last;
    }
    return false;
  }

  int64_t split(void* tensor) {
    void* placements = object(next());
    if (tensors_.is_dtensor(tensor) != (placements != nullptr)) return 0;
    return placements ? tensors_.split_alike(tensor, placements) : 1;
  }

  int64_t facts(void* tensor) {
    void* part = tensors_.local(tensor);
    if (!part) return kFailed;
    int64_t* const known = words_.at;
    const int64_t inside = tensors_.inside_words();
    words_.at += inside ? inside + 1 : 1;
    if (tensors_.type(part) != object(*words_.at)) return 0;  // it may be no tensor
    expect(tensors_.hint(part));
    if (inside && same_insides(known, part)) {
      words_.at += kHead + 2 * words_.at[kNdimAt];
      return 1;
    }
    DLTensor t;
    const int64_t agrees = tensors_.facts(part, true, words_, t);
    if (agrees == 1 && inside && t.ndim <= kInside) remember(known, part);
    return agrees;
  }

  bool same_insides(const int64_t* known, void* tensor) const {
    const int64_t* now = tensors_.insides(tensor);
    int64_t differences = known[0] ^ tensors_.data(now);
    for (int64_t i = 0; i < tensors_.inside_words(); ++i) differences |= known[i + 1] ^ now[i];
    return !differences;
  }

  // Asks for what comes later, and notes for the next time what has come now.
  void expect(const Hint& now) {
    hints_[kAhead].follow();
    *hints_++ = now;
  }

  void remember(int64_t* known, void* tensor) const {
    const int64_t* now = tensors_.insides(tensor);
    known[0] = tensors_.data(now);
    for (int64_t i = 0; i < tensors_.inside_words(); ++i) known[i + 1] = now[i];
  }

  const Access& access_;
  const Tensors tensors_;
  Reader words_;
  Hint* hints_;
  uint8_t* has_grad_;
  void* grads_;
  std::vector<std::pair<int64_t, int64_t>> spans_;
  int64_t found_ = kFits;
};

}  // namespace

extern "C" {

// Writes what is there, as far as there is room. Returns how many words it is, or -1 with a Python
// error.
int64_t spectramind_record(const Access* access, const Given* given, int64_t* words, int64_t room) {
  return Recorder(*access, *given, words, room).all();
}

// Compares it with what is there now. Returns 0 where anything differs, -1 with a Python error,
// else what `Found` says, and leaves who has a gradient, and where each of those is. To `grads`, a
// list, unless it is null, it appends them, and if one has moved, it says whether any share memory.
int64_t spectramind_compare(const Access* access, void* groups, void* state, int64_t* words,
                            uint8_t* has_grad, void* grads) {
  return Comparison(*access, words, has_grad, grads).all(groups, state);
}
}

}  // namespace spectramind
