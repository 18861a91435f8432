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
constexpr int64_t kAhead = 12;   // hints, from asking for a line to its use
constexpr int64_t kHintWords = sizeof(Hint) / sizeof(int64_t);
constexpr int64_t kUnknown = 2;  // whether it agrees
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
// of the gradient. Facts come behind room for what torch's own tensor looks like.
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
    for (int64_t i = 0; i < tensors_.seen_words(lasting); ++i) out_.put(0);
    return part && tensors_.facts(part, lasting, out_, t) != kFailed;
  }

  const Access& access_;
  const Tensors tensors_;
  const Given& given_;
  Writer out_;
  int64_t hints_ = 0;  // how many a comparison follows
};

// Reads the words beside what is there now. Its functions return 1 where both agree, 0 where not,
// and -1 with a Python error; `kUnknown` where Python must be asked.
class Comparison {
 public:
  Comparison(const Access& access, int64_t* words, uint8_t* has_grad, bool overlaps)
      : access_(access),
        tensors_(access),
        words_{words + 1},
        hints_(reinterpret_cast<Hint*>(words + words[0])),
        has_grad_(has_grad),
        overlaps_(overlaps) {}

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
      int64_t agrees = split(param, object(next()));
      if (agrees == 1) agrees = facts(param);
      if (agrees == 1) agrees = state();
      if (agrees != 1) return agrees;
    }
    return gradient(param, may_step);
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

  // The words of a gradient, which may be missing.
  struct Gradient {
    int64_t row, needed;
    void* placements;
    int64_t *seen, *facts;
  };
  Gradient gradient_words() const {
    int64_t *at = words_.at, *seen = at + 3;
    return {at[0], at[1], object(at[2]), seen, seen + tensors_.seen_words(false)};
  }
  static int64_t* behind(int64_t* facts) { return facts + kHead + 2 * facts[kNdimAt]; }

  int64_t gradient(void* param, bool may_step) {
    if (tensors_.has_own_gradient(param)) {
      Own own = tensors_.gradient(param);
      if (!own) return absent(may_step);
      if (!may_step) return 0;
      const int64_t agrees = as_before(own, tensors_.gradient_at(param));
      if (agrees != kUnknown) return agrees;
    }
    void* grad = access_.attribute(param, access_.grad);
    if (!grad) return kFailed;
    const int64_t agrees = grad == access_.none ? absent(may_step) : may_step ? asked(grad) : 0;
    access_.release(grad);
    return agrees;
  }

  int64_t absent(bool may_step) {
    note(false);
    if (!may_step) return 1;
    const Gradient words = gradient_words();
    found_ |= kMissing;
    expect(*hints_);
    write(words.row, 0);
    words_.at = behind(words.facts);
    return 1;
  }

  // A gradient that looks as it did, if that can be seen without running any Python: nobody holds
  // it.
  int64_t as_before(Own own, int64_t held_at) {
    const Gradient words = gradient_words();
    void *grad = tensors_.python(own), *class_of = grad ? tensors_.type(grad) : access_.plain;
    if (words.placements || class_of != object(*words.facts)) return kUnknown;
    if (!tensors_.read_alike(words.seen, own)) return kUnknown;
    expect({held_at, id(own) + access_.sizes_at, id(tensors_.storage(own))});
    words_.at = behind(words.facts);
    const int64_t address = tensors_.data(own) + *words.seen;
    return present(words, address, tensors_.bytes_from(own, address));
  }

  int64_t asked(void* grad) {
    const Gradient words = gradient_words();
    void* part = tensors_.local(grad);
    if (!part) return kFailed;
    expect(tensors_.hint(part));
    int64_t agrees = split(grad, words.placements);
    if (agrees != 1) return agrees;
    words_.at = words.facts;
    DLTensor t;
    agrees = tensors_.facts(part, false, words_, t);
    if (agrees != 1) return agrees;
    tensors_.remember(words.seen, part, t, false);
    const int64_t address = tensors_.address(t);
    const int64_t bytes = words.needed > 0 ? tensors_.bytes_from(part, address) : 0;
    return bytes == kFailed ? kFailed : present(words, address, bytes);
  }

  int64_t present(const Gradient& words, int64_t address, int64_t bytes) {
    note(true);
    if (words.needed > 0 && (bytes < words.needed || !address)) found_ |= kLost;
    write(words.row, words.needed ? address : kNowhere);
    if (overlaps_) spans_.push_back({address, address + reach(words.facts)});
    return 1;
  }

  void write(int64_t row, int64_t address) {
    int64_t* const place = static_cast<int64_t*>(object(row));
    if (!place || *place == address) return;
    *place = address;
    found_ |= kMoved;
  }

  // Bytes from the first element to behind the last.
  static int64_t reach(const int64_t* facts) {
    int64_t elements = 1;
    const int64_t* dimension = facts + kHead;
    for (int64_t j = 0; j < facts[kNdimAt]; ++j, dimension += 2) {
      if (!dimension[0]) return 0;
      elements += (dimension[0] - 1) * dimension[1];
    }
    return elements * dtype_bytes(facts);
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

  int64_t split(void* tensor, void* placements) const {
    if (tensors_.is_dtensor(tensor) != (placements != nullptr)) return 0;
    return placements ? tensors_.split_alike(tensor, placements) : 1;
  }

  int64_t facts(void* tensor) {
    void* part = tensors_.local(tensor);
    if (!part) return kFailed;
    int64_t* const seen = words_.at;
    words_.at += tensors_.seen_words(true);
    if (tensors_.type(part) != object(*words_.at)) return 0;  // it may be no tensor
    expect(tensors_.hint(part));
    if (tensors_.inside() && tensors_.lies_alike(seen, tensors_.own(part))) {
      words_.at = behind(words_.at);
      return 1;
    }
    DLTensor t;
    const int64_t agrees = tensors_.facts(part, true, words_, t);
    if (agrees == 1) tensors_.remember(seen, part, t, true);
    return agrees;
  }

  // Asks for what comes later, and notes for the next time what has come now.
  void expect(const Hint& now) {
    hints_[kAhead].follow();
    *hints_++ = now;
  }

  const Access& access_;
  const Tensors tensors_;
  Reader words_;
  Hint* hints_;
  uint8_t* has_grad_;
  bool overlaps_;  // whether anybody asks
  std::vector<std::pair<int64_t, int64_t>> spans_;
  int64_t found_ = kFits;
};

// The versions of tensors, which autograd compares to find out that one was written to.
class Marks {
 public:
  Marks(const Access& access, void* list)
      : access_(access), tensors_(access), list_(list), count_(access.list_size(list)) {}

  int64_t all(bool gradients) const {
    if (!tensors_.inside()) return 0;
    for (intptr_t i = 0; i < count_; ++i) {
      if (!gradients) expect(i);
      if (gradients && !tensors_.has_own_gradient(at(i))) return i;
      Own own = gradients ? tensors_.gradient(at(i)) : tensors_.own(at(i));
      if (own) tensors_.mark(own);
    }
    return count_;
  }

 private:
  void* at(intptr_t i) const { return access_.list_item(list_, i); }

  // Asks for what is to be read: objects, then torch's tensors, then their counters.
  void expect(intptr_t i) const {
    if (i + 3 * kAhead < count_) __builtin_prefetch(at(i + 3 * kAhead));
    if (i + 2 * kAhead < count_) tensors_.expect_counter(tensors_.own(at(i + 2 * kAhead)));
    if (i + kAhead < count_) tensors_.expect_count(tensors_.own(at(i + kAhead)));
  }

  const Access& access_;
  const Tensors tensors_;
  void* const list_;
  const intptr_t count_;
};

}  // namespace

extern "C" {

// Writes what is there, as far as there is room. Returns how many words it is, or -1 with a Python
// error.
int64_t spectramind_record(const Access* access, const Given* given, int64_t* words, int64_t room) {
  return Recorder(*access, *given, words, room).all();
}

// Compares it with what is there now. Returns 0 where anything differs, -1 with a Python error,
// else what `Found` says, and leaves who has a gradient, and where each of those is. If
// `overlaps`, and one has moved, it says whether any share memory.
int64_t spectramind_compare(const Access* access, void* groups, void* state, int64_t* words,
                            uint8_t* has_grad, int64_t overlaps) {
  return Comparison(*access, words, has_grad, overlaps).all(groups, state);
}

// Counts one more write to every tensor of a list, or to its gradient, if it has one. Returns for
// how many, from the first on: before one of whose gradient only Python knows, it stops.
int64_t spectramind_mark(const Access* access, void* tensors, int64_t gradients) {
  return Marks(*access, tensors).all(gradients);
}
}

}  // namespace spectramind
