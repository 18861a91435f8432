// Runs a decoded kernel: block by block, all threads of a block side by side.
//
// A register is one array with an entry per thread. Each thread has a program counter; the threads
// at the lowest one run next, under a mask, to the end of a basic block. bar.sync holds threads
// until their block has arrived, a shuffle until their warp has. Blocks run one after the other:
// so what one block reads and another stores in the same launch is refused, in either order.
#include <algorithm>
#include <array>
#include <memory>
#include <unordered_map>

#include "opcodes.h"

namespace emulator {
namespace {

constexpr int kWarp = 32;
constexpr int kMostThreads = 1024;

// As decode.py numbers them.
enum Kind : int32_t {
  kCompute,
  kLoad,
  kStore,
  kPack,
  kUnpack,
  kShuffle,
  kBranch,
  kReturn,
  kBarrier,
  kUnknown,
  kReduce
};  // clang-format skip
enum Space : int32_t { kGlobal, kShared, kParam };
enum Mode : int32_t { kButterfly, kDown, kUp, kIndex };
enum Code : int32_t {
  kFine,
  kUnknownInstruction,
  kUnwritten,
  kMisaligned,
  kOutside,
  kPoison,
  kStoredTwice,
  kRace,
  kDeadlock,
  kPartOfAWarp,
  kMembers,
  kEndless
};

struct Instruction {
  int32_t kind, function;
  int32_t guard, negated;   // a slot, or -1
  int32_t space, mode;      // of an access; of a shuffle
  int32_t size, count;      // bytes of an element, and how many; of pack and unpack: of a part
  int64_t offset;           // of an address; of a branch: where to
  int32_t outputs, inputs;  // operands[0 .. outputs), then the inputs
  int32_t operands[8];      // slots
  int32_t take[3];          // bytes to take of an input that is wider, or 0
  int32_t leader;           // whether a basic block begins here
};

struct Program {
  const Instruction* code;
  int64_t length;
  const int32_t* widths;    // bytes of each slot
  const uint64_t* values;   // what a slot holds from the beginning
  const uint8_t* constant;  // whether it does
  int64_t slots;
  int64_t threads;                                      // per block
  int32_t lane, thread, block[3], threads_x, blocks_x;  // slots of special registers, or -1
};

// Live memory, sorted. `refresh` looks further for what is not known yet, until it answers 0.
struct Extents {
  const uint64_t *starts, *ends;
  int64_t count;
};

struct Poison {
  uint64_t start, size;
  uint8_t* flags;  // of each byte: not yet written
};

struct Run {
  int64_t grid[3];
  int64_t shared_bytes, limit;
  const uint8_t* arguments;
  const int64_t* inside;  // of each byte of the arguments: which one, or 0
  int64_t argument_bytes;
  Extents* extents;
  int (*refresh)(int times);
  const Poison* poison;
  int64_t poisoned;
  uint64_t* executed;  // per instruction: how often a block ran it
};

struct Fault {
  int32_t code, space, store;
  int32_t slot;
  int64_t instruction, address, bytes;
};

const Table& table() {
  static const Table the_table;
  return the_table;
}

// Who loaded and stored each byte of 4,096: a block's number + 1, or several.
constexpr uint16_t kSeveral = 0xFFFF;
struct Page {
  std::array<uint16_t, 4096> stored{}, loaded{};
};

class Machine {
 public:
  Machine(const Program& program, const Run& run)
      : program_(program), run_(run), threads_(int(program.threads)) {
    int64_t bytes = 0;
    for (int64_t i = 0; i < program.slots; ++i) {
      starts_.push_back(bytes);
      bytes += (int64_t(program.widths[i]) * threads_ + 63) / 64 * 64;
    }
    memory_ = std::make_unique<uint8_t[]>(bytes + 64);
    const auto raw = reinterpret_cast<uintptr_t>(memory_.get());
    base_ = memory_.get() + (64 - raw % 64) % 64;
    for (int64_t i = 0; i < program.slots; ++i)
      if (program.constant[i]) fill(int32_t(i), [&](int) { return program_.values[i]; });
    fill(program.lane, [](int t) { return uint64_t(t % kWarp); });
    fill(program.thread, [](int t) { return uint64_t(t); });
    fill(program.threads_x, [&](int) { return uint64_t(threads_); });
    fill(program.blocks_x, [&](int) { return uint64_t(run_.grid[0]); });
    shared_.resize(size_t(run.shared_bytes));
  }

  bool run() {
    const int64_t blocks = run_.grid[0] * run_.grid[1] * run_.grid[2];
    for (int64_t block = 0; block < blocks; ++block)
      if (!run_block(block)) return false;
    return true;
  }

  Fault fault{};
  std::vector<uint64_t> loads[17], stores[17];  // addresses, by bytes of the access

 private:
  template <class F>
  void fill(int32_t slot, F value) {
    if (slot < 0) return;
    for (int t = 0; t < threads_; ++t) put(slot, t, value(t));
  }

  void* at(int32_t slot) { return base_ + starts_[size_t(slot)]; }

  uint64_t get(int32_t slot, int t) {
    const void* from = at(slot);
    switch (program_.widths[slot]) {
      case 1: return static_cast<const uint8_t*>(from)[t];
      case 2: return static_cast<const uint16_t*>(from)[t];
      case 4: return static_cast<const uint32_t*>(from)[t];
      default: return static_cast<const uint64_t*>(from)[t];
    }
  }

  void put(int32_t slot, int t, uint64_t value) {
    void* to = at(slot);
    switch (program_.widths[slot]) {
      case 1: static_cast<uint8_t*>(to)[t] = uint8_t(value); break;
      case 2: static_cast<uint16_t*>(to)[t] = uint16_t(value); break;
      case 4: static_cast<uint32_t*>(to)[t] = uint32_t(value); break;
      default: static_cast<uint64_t*>(to)[t] = value;
    }
  }

  bool fail(Code code) {
    fault.code = code;
    fault.instruction = now_;
    return false;
  }

  bool fail_access(Code code, const Instruction& one, uint64_t address) {
    fault.space = one.space;
    fault.store = one.kind == kStore;
    fault.address = int64_t(address);
    fault.bytes = int64_t(one.size) * one.count;
    return fail(code);
  }

  bool run_block(int64_t block) {
    owner_ = uint16_t(block + 1);
    written_.assign(program_.constant, program_.constant + program_.slots);
    const int64_t place[3] = {block % run_.grid[0], block / run_.grid[0] % run_.grid[1],
                              block / (run_.grid[0] * run_.grid[1])};
    for (int i = 0; i < 3; ++i) fill(program_.block[i], [&](int) { return uint64_t(place[i]); });
    std::fill(shared_.begin(), shared_.end(), 0);
    std::fill_n(pc_, threads_, 0);
    std::fill_n(waiting_, threads_, false);
    std::fill_n(gathering_, threads_, false);
    const int end = int(program_.length);
    for (int64_t i = 0; i < run_.limit; ++i) {
      int lowest = end;
      for (int t = 0; t < threads_; ++t) {
        const int own = waiting_[t] | gathering_[t] ? end : pc_[t];
        lowest = own < lowest ? own : lowest;
      }
      if (lowest < end) {
        now_ = lowest;
        for (int t = 0; t < threads_; ++t)
          here_[t] = !(waiting_[t] | gathering_[t]) & (pc_[t] == lowest);
        const int kind = program_.code[lowest].kind;
        if (kind == kShuffle || kind == kReduce) gather(lowest);
        if (any(here_) && !basic_block(lowest)) return false;
      } else if (any(waiting_)) {
        if (!pass_barrier()) return false;
      } else if (any(gathering_)) {
        return fail(kPartOfAWarp);
      } else {
        return true;
      }
    }
    return fail(kEndless);
  }

  bool any(const bool* mask) const {
    bool found = false;
    for (int t = 0; t < threads_; ++t) found |= mask[t];
    return found;
  }

  bool all(const bool* mask) const {
    bool every = true;
    for (int t = 0; t < threads_; ++t) every &= mask[t];
    return every;
  }

  // Leaves those in here_ whose warps are all here; the others wait.
  void gather(int place) {
    for (int warp = 0; warp < threads_; warp += kWarp) {
      bool whole = true;
      bool present[kWarp];
      for (int i = 0; i < kWarp; ++i) {
        const int t = warp + i;
        present[i] = here_[t] | (gathering_[t] & (pc_[t] == place));
        whole &= present[i];
      }
      for (int i = 0; i < kWarp; ++i) {
        here_[warp + i] = whole;
        if (present[i]) gathering_[warp + i] = !whole;
      }
    }
  }

  // Lets the block go on if its running threads all wait at one barrier.
  bool pass_barrier() {
    int place = -1;
    for (int t = 0; t < threads_; ++t) {
      if (pc_[t] >= program_.length) continue;
      if (!waiting_[t] || (place >= 0 && pc_[t] != place)) return fail(kDeadlock);
      place = pc_[t];
    }
    std::fill_n(waiting_, threads_, false);
    return true;
  }

  bool basic_block(int place) {
    const bool full = all(here_);
    while (true) {
      const Instruction& one = program_.code[place];
      now_ = place;
      ++run_.executed[place];
      const bool* active = here_;
      bool complete = full;
      if (one.guard >= 0) {
        if (!check_written(one.guard)) return false;
        const bool* guard = static_cast<const bool*>(at(one.guard));
        const bool negated = one.negated;
        for (int t = 0; t < threads_; ++t) active_[t] = here_[t] & (guard[t] != negated);
        active = active_;
        complete = all(active_);
      }
      const int next = place + 1;
      if (one.kind == kBranch || one.kind == kReturn) {
        const int to = one.kind == kBranch ? int(one.offset) : int(program_.length);
        for (int t = 0; t < threads_; ++t)
          if (here_[t]) pc_[t] = active[t] ? to : next;
        return true;
      }
      if (one.kind == kBarrier) {
        for (int t = 0; t < threads_; ++t) waiting_[t] |= active[t];
      } else if ((complete || any(active)) && !execute(one, active, complete)) {
        return false;
      }
      place = next;
      if (place >= program_.length || program_.code[place].leader) {
        for (int t = 0; t < threads_; ++t) pc_[t] = here_[t] ? place : pc_[t];
        return true;
      }
    }
  }

  bool check_written(int32_t slot) {
    if (written_[size_t(slot)]) return true;
    fault.slot = slot;
    return fail(kUnwritten);
  }

  // What a register holds in threads that never wrote it: zero.
  void mark_written(int32_t slot, bool complete) {
    if (written_[size_t(slot)]) return;
    written_[size_t(slot)] = 1;
    if (!complete) std::memset(at(slot), 0, size_t(program_.widths[slot]) * size_t(threads_));
  }

  bool execute(const Instruction& one, const bool* active, bool complete) {
    switch (one.kind) {
      case kCompute: return compute(one, active, complete);
      case kLoad:
      case kStore:
        if (one.space == kShared) return access_shared(one, active, complete);
        if (one.space == kParam) return load_arguments(one, active, complete);
        return access_global(one, active, complete);
      case kPack:
      case kUnpack: return pack(one, active, complete);
      case kShuffle: return shuffle(one, active, complete);
      case kReduce: return reduce(one, active, complete);
      default: return fail(kUnknownInstruction);
    }
  }

  bool compute(const Instruction& one, const bool* active, bool complete) {
    const void* from[3];
    for (int i = 0; i < one.inputs; ++i) {
      const int32_t slot = one.operands[one.outputs + i];
      if (!check_written(slot)) return false;
      from[i] = at(slot);
      if (one.take[i]) {
        for (int t = 0; t < threads_; ++t)
          std::memcpy(chopped_[i] + size_t(t) * size_t(one.take[i]),
                      static_cast<const uint8_t*>(from[i]) + t * program_.widths[slot],
                      size_t(one.take[i]));
        from[i] = chopped_[i];
      }
    }
    void* to[2];
    for (int i = 0; i < one.outputs; ++i) to[i] = complete ? at(one.operands[i]) : results_[i];
    table().opcodes[size_t(one.function)].run(to, from, threads_);
    for (int i = 0; i < one.outputs; ++i) {
      const int32_t slot = one.operands[i];
      mark_written(slot, complete);
      if (complete) continue;
      switch (program_.widths[slot]) {
        case 1: blend<uint8_t>(slot, results_[i], active); break;
        case 2: blend<uint16_t>(slot, results_[i], active); break;
        case 4: blend<uint32_t>(slot, results_[i], active); break;
        default: blend<uint64_t>(slot, results_[i], active);
      }
    }
    return true;
  }

  template <class T>
  void blend(int32_t slot, const void* results, const bool* active) {
    T* to = static_cast<T*>(at(slot));
    const T* from = static_cast<const T*>(results);
    for (int t = 0; t < threads_; ++t) to[t] = active[t] ? from[t] : to[t];
  }

  // Accesses: operands are the address, then a register per element.

  bool begin_access(const Instruction& one, bool complete) {
    if (!check_written(one.operands[0])) return false;
    for (int i = 1; i <= one.count; ++i) {
      if (one.kind == kLoad)
        mark_written(one.operands[i], complete);
      else if (!check_written(one.operands[i]))
        return false;
    }
    return true;
  }

  void move(const Instruction& one, int t, uint8_t* memory) {
    for (int i = 0; i < one.count; ++i, memory += one.size) {
      uint64_t value = 0;
      if (one.kind == kLoad) {  // zeros go before an integer in a wider register
        std::memcpy(&value, memory, size_t(one.size));
        put(one.operands[1 + i], t, value);
      } else {
        value = get(one.operands[1 + i], t);
        std::memcpy(memory, &value, size_t(one.size));
      }
    }
  }

  bool access_global(const Instruction& one, const bool* active, bool complete) {
    const int bytes = one.size * one.count;
    // An address may lie in a register that the load overwrites.
    uint64_t places[kMostThreads];
    if (!check_written(one.operands[0])) return false;
    for (int t = 0; t < threads_; ++t) {
      places[t] = get(one.operands[0], t) + uint64_t(one.offset);
      if (active[t] && places[t] % uint64_t(bytes)) return fail_access(kMisaligned, one, places[t]);
    }
    if (!begin_access(one, complete)) return false;
    for (int t = 0; t < threads_; ++t)
      if (active[t] && !is_live(places[t], uint64_t(bytes)))
        return fail_access(kOutside, one, places[t]);
    auto& record = (one.kind == kLoad ? loads : stores)[bytes];
    for (int t = 0; t < threads_; ++t) {
      if (!active[t]) continue;
      const uint64_t place = places[t];
      const Code code = one.kind == kLoad ? see_load(place, bytes) : see_store(place, bytes);
      if (code != kFine) return fail_access(code, one, place);
      record.push_back(place);
      move(one, t, reinterpret_cast<uint8_t*>(place));
    }
    return true;
  }

  bool is_live(uint64_t place, uint64_t bytes) {
    if (place >= start_ && place + bytes <= end_) return true;
    for (int times = 0;; ++times) {
      const Extents& live = *run_.extents;
      const auto* after = std::upper_bound(live.starts, live.starts + live.count, place);
      if (after != live.starts) {
        start_ = after[-1];
        end_ = live.ends[after - live.starts - 1];
        if (place + bytes <= end_ && place + bytes > place) return true;
      }
      start_ = end_ = 0;
      if (!run_.refresh(times)) return false;
    }
  }

  Page& page(uint64_t place) {
    const uint64_t number = place / 4096;
    if (number != page_number_ || last_page_ == nullptr) {
      last_page_ = &pages_[number];
      page_number_ = number;
    }
    return *last_page_;
  }

  // An access is aligned to its width, so it lies in one page.
  Code see_load(uint64_t place, int bytes) {
    Page& here = page(place);
    const size_t first = place % 4096;
    bool race = false;
    for (size_t i = first; i < first + size_t(bytes); ++i) {
      race |= here.stored[i] != 0 && here.stored[i] != owner_;
      const uint16_t before = here.loaded[i];
      here.loaded[i] = before == 0 || before == owner_ ? owner_ : kSeveral;
    }
    if (race) return kRace;
    for (int64_t i = 0; i < run_.poisoned; ++i) {
      const Poison& bad = run_.poison[i];
      for (uint64_t b = place; b < place + uint64_t(bytes); ++b)
        if (b - bad.start < bad.size && bad.flags[b - bad.start]) return kPoison;
    }
    return kFine;
  }

  Code see_store(uint64_t place, int bytes) {
    Page& here = page(place);
    const size_t first = place % 4096;
    bool twice = false, race = false;
    for (size_t i = first; i < first + size_t(bytes); ++i) {
      twice |= here.stored[i] != 0;
      race |= here.loaded[i] != 0 && here.loaded[i] != owner_;
      here.stored[i] = owner_;
    }
    if (twice || race) return twice ? kStoredTwice : kRace;
    for (int64_t i = 0; i < run_.poisoned; ++i) {
      const Poison& bad = run_.poison[i];
      for (uint64_t b = place; b < place + uint64_t(bytes); ++b)
        if (b - bad.start < bad.size) bad.flags[b - bad.start] = 0;
    }
    return kFine;
  }

  bool access_shared(const Instruction& one, const bool* active, bool complete) {
    if (!check_written(one.operands[0])) return false;
    const uint64_t bytes = uint64_t(one.size) * uint64_t(one.count);
    uint64_t places[kMostThreads];
    for (int t = 0; t < threads_; ++t) places[t] = get(one.operands[0], t) + uint64_t(one.offset);
    if (!begin_access(one, complete)) return false;
    for (int t = 0; t < threads_; ++t) {
      if (!active[t]) continue;
      if (places[t] % bytes) return fail_access(kMisaligned, one, places[t]);
      if (places[t] + bytes > shared_.size() || places[t] + bytes < bytes)
        return fail_access(kOutside, one, places[t]);
      move(one, t, shared_.data() + places[t]);
    }
    return true;
  }

  bool load_arguments(const Instruction& one, const bool* active, bool complete) {
    if (!check_written(one.operands[0])) return false;
    const uint64_t bytes = uint64_t(one.size) * uint64_t(one.count);
    uint64_t places[kMostThreads];
    for (int t = 0; t < threads_; ++t) places[t] = get(one.operands[0], t) + uint64_t(one.offset);
    if (!begin_access(one, complete)) return false;
    for (int t = 0; t < threads_; ++t) {
      if (!active[t]) continue;
      const uint64_t place = places[t];
      if (place % bytes) return fail_access(kMisaligned, one, place);
      if (place > uint64_t(run_.argument_bytes) || place + bytes > uint64_t(run_.argument_bytes))
        return fail_access(kOutside, one, place);
      for (uint64_t i = place; i < place + bytes; ++i)
        if (!run_.inside[i]) return fail_access(kOutside, one, place);
      move(one, t, const_cast<uint8_t*>(run_.arguments) + place);
    }
    return true;
  }

  // mov between a register (the first operand) and a vector of narrower ones.
  bool pack(const Instruction& one, const bool* active, bool complete) {
    const int32_t whole = one.operands[0];
    const int bits = 8 * one.size;
    if (one.kind == kUnpack) {
      if (!check_written(whole)) return false;
      for (int i = 1; i <= one.count; ++i) mark_written(one.operands[i], complete);
    } else {
      for (int i = 1; i <= one.count; ++i)
        if (!check_written(one.operands[i])) return false;
      mark_written(whole, complete);
    }
    for (int t = 0; t < threads_; ++t) {
      if (!active[t]) continue;
      if (one.kind == kUnpack) {
        const uint64_t value = get(whole, t);
        for (int i = 0; i < one.count; ++i) put(one.operands[1 + i], t, value >> (i * bits));
      } else {
        uint64_t value = 0;
        for (int i = 0; i < one.count; ++i) value |= get(one.operands[1 + i], t) << (i * bits);
        put(whole, t, value);
      }
    }
    return true;
  }

  // Operands: where to, where to say who had a partner, value, lane, clamp, members.
  bool shuffle(const Instruction& one, const bool* active, bool complete) {
    for (int i = 2; i < 6; ++i)
      if (!check_written(one.operands[i])) return false;
    uint64_t values[kMostThreads];
    bool valid[kMostThreads];
    for (int t = 0; t < threads_; ++t) {
      if (active[t] && get(one.operands[5], t) != 0xFFFFFFFF) return fail(kMembers);
      if (active[t] != active[t / kWarp * kWarp]) return fail(kPartOfAWarp);
      const int lane = t % kWarp, clamp = int(get(one.operands[4], t));
      const int by = int(get(one.operands[3], t)) & 31;
      const int segment = clamp >> 8 & 31, low = lane & segment;
      const int high = low | (clamp & 31 & ~segment);
      int other = lane;
      switch (one.mode) {
        case kUp: other = lane - by; break;
        case kDown: other = lane + by; break;
        case kButterfly: other = lane ^ by; break;
        default: other = low | (by & ~segment);
      }
      valid[t] = one.mode == kUp ? other >= high : other <= high;
      values[t] = get(one.operands[2], t / kWarp * kWarp + (valid[t] ? other : lane));
    }
    mark_written(one.operands[0], complete);
    mark_written(one.operands[1], complete);
    for (int t = 0; t < threads_; ++t) {
      if (!active[t]) continue;
      put(one.operands[0], t, values[t]);
      put(one.operands[1], t, valid[t]);
    }
    return true;
  }

  // Operands: where to, value, members.
  bool reduce(const Instruction& one, const bool* active, bool complete) {
    for (int i = 1; i < 3; ++i)
      if (!check_written(one.operands[i])) return false;
    uint32_t values[kMostThreads];
    for (int t = 0; t < threads_; ++t) {
      if (active[t] && get(one.operands[2], t) != 0xFFFFFFFF) return fail(kMembers);
      if (active[t] != active[t / kWarp * kWarp]) return fail(kPartOfAWarp);
      const auto value = uint32_t(get(one.operands[1], t));
      uint32_t& of_warp = values[t / kWarp * kWarp];
      if (t % kWarp == 0)
        of_warp = value;
      else
        of_warp = one.mode == 0 ? of_warp + value : std::max(of_warp, value);
    }
    mark_written(one.operands[0], complete);
    for (int t = 0; t < threads_; ++t)
      if (active[t]) put(one.operands[0], t, values[t / kWarp * kWarp]);
    return true;
  }

  const Program& program_;
  const Run& run_;
  const int threads_;
  std::vector<int64_t> starts_;
  std::unique_ptr<uint8_t[]> memory_;
  uint8_t* base_ = nullptr;
  std::vector<uint8_t> written_, shared_;
  int pc_[kMostThreads];
  bool waiting_[kMostThreads], gathering_[kMostThreads];  // at a barrier, before a shuffle
  bool here_[kMostThreads], active_[kMostThreads];
  alignas(64) uint64_t results_[2][kMostThreads];
  alignas(64) uint8_t chopped_[3][8 * kMostThreads];
  int64_t now_ = 0;
  uint16_t owner_ = 0;
  uint64_t start_ = 0, end_ = 0;  // the live memory of the last access
  std::unordered_map<uint64_t, Page> pages_;
  uint64_t page_number_ = 0;
  Page* last_page_ = nullptr;
};

}  // namespace
}  // namespace emulator

using emulator::Machine;

extern "C" {

int64_t emulator_opcodes() { return int64_t(emulator::table().opcodes.size()); }
const char* emulator_opcode_name(int64_t i) {
  return emulator::table().opcodes[size_t(i)].name.c_str();
}
const char* emulator_opcode_to(int64_t i) {
  return emulator::table().opcodes[size_t(i)].to.c_str();
}
const char* emulator_opcode_sources(int64_t i) {
  return emulator::table().opcodes[size_t(i)].sources.c_str();
}
void emulator_compute(int64_t i, void* const* to, const void* const* from, int threads) {
  emulator::table().opcodes[size_t(i)].run(to, from, threads);
}

// Runs a launch to its end, or to the first fault; what it loaded and stored can be read until
// emulator_forget.
Machine* emulator_run(const emulator::Program* program, const emulator::Run* run,
                      emulator::Fault* fault) {
  auto* machine = new Machine(*program, *run);
  machine->run();
  *fault = machine->fault;
  return machine;
}
int64_t emulator_accesses(Machine* machine, int store, int bytes, const uint64_t** addresses) {
  const auto& all = (store ? machine->stores : machine->loads)[bytes];
  *addresses = all.data();
  return int64_t(all.size());
}
void emulator_forget(Machine* machine) { delete machine; }
}
