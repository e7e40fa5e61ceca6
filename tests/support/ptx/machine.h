// What a grid of PTX consists of while it runs: instructions, warps, blocks, memory and faults.
//
// A register of a warp is a row: its value in each of the 32 lanes, one after the other, and for a
// predicate a mask. Lanes of a warp that are at the same instruction form a group, which runs as
// one.
#pragma once

#include <cstdint>
#include <cstring>
#include <map>
#include <stdexcept>
#include <string>
#include <vector>

namespace ptx {

constexpr int kLanes = 32;
constexpr uint32_t kAllLanes = 0xffffffffu;
constexpr uint64_t kSharedWindow = uint64_t{1} << 62;  // where shared memory begins, if generic

// One instruction, as program.py writes it: 16 words of 32 bits. Operands are places of rows, in
// bytes, in a warp's registers; or -1 - place, in the constants.
struct Instruction {
  int32_t op;
  int32_t guard;  // place of a predicate, or -1
  int32_t guard_negated;
  int32_t target;  // of a branch
  int32_t to[4];   // destinations; for a store, the values
  int32_t from[4];
  int64_t immediate;  // the offset of an address, ...
  int32_t detail;     // see Access, for memory
  int32_t line;       // of the text that the program was made of
};
static_assert(sizeof(Instruction) == 64, "16 words");

// The detail of an instruction that reaches memory.
struct Access {
  uint32_t bytes : 8;
  uint32_t count : 4;
  uint32_t is_signed : 1;
  uint32_t row_bytes : 8;  // a lane's share of the register's row
  uint32_t space : 3;
  uint32_t unused : 4;  // elements of a vector that the compiler says nobody needs
  uint32_t : 4;
};
static_assert(sizeof(Access) == 4, "one word");
enum Space : uint32_t { kParameters = 0, kGlobal, kShared, kGeneric };

// A part of global memory that the launch may reach.
struct Region {
  uint64_t begin, end;
  uint32_t writable;
  uint32_t granule;      // bytes that are read and written together
  uint8_t* initialised;  // a flag for each granule, or null where all of it is
};

struct Fault : std::runtime_error {
  using std::runtime_error::runtime_error;
};

// Who touched a granule last.
struct Cell {
  int32_t write_block = -1, read_block = -1;
  uint32_t write_epoch = 0, read_epoch = 0;
  uint32_t write_sync = 0, read_sync = 0;  // of the warp
  uint16_t write_thread = 0, read_thread = 0;
  bool read_by_threads = false;  // by several, in that block and epoch
  bool read_by_warps = false;
  bool read_by_blocks = false;
};

// What is known of a block's stores: those before `epoch`, and in it those of `threads`.
struct Known {
  uint32_t epoch = 0;
  std::vector<uint16_t> threads;
};
using Clock = std::map<int32_t, Known>;

// A clock that a thread acquired; its block's other threads have it from the next barrier on.
struct Acquired {
  uint16_t thread;
  uint32_t epoch;
  Clock clock;
};

struct Group {
  int32_t at;
  uint32_t lanes;
  enum { kRuns, kAtBarrier, kAtCollective } state = kRuns;
};

struct Block;

struct Warp {
  Block* block = nullptr;
  int index = 0;
  uint32_t sync = 0;  // barriers of the warp alone that it has passed
  std::vector<char> registers;
  std::vector<Group> groups;
};

struct Block {
  int32_t number = -1;
  uint32_t epoch = 0;  // barriers passed
  std::vector<char> shared;
  std::vector<Cell> shared_cells;
  std::vector<uint8_t> shared_initialised;
  std::vector<Warp> warps;
  std::vector<Acquired> acquired;
};

// The kinds by which executed instructions are counted.
enum Kind { kInteger, kFloat, kSpecial, kMemory, kExchange, kMove, kControl, kKinds };

struct Options {
  int64_t blocks, threads, shared_bytes;
  int64_t resident;  // blocks that run at a time
  int64_t slice;     // the most instructions that a warp runs before another's turn; 0: no limit
  uint64_t seed;     // of the order of blocks and warps; 0: as they are numbered
  int64_t races;     // 1 where they are looked for
  int64_t limit;     // of a launch's instructions
};

struct Machine {
  const Instruction* program;
  int64_t instructions;
  const char* constants;
  int64_t register_bytes;
  const int32_t* specials;  // places of %tid.x, %ctaid.x, %nctaid.x, %ntid.x, or -1
  const char* parameters;
  int64_t parameter_bytes;
  Options options;

  std::vector<Region> regions;
  std::vector<std::vector<Cell>> cells;  // of each region
  std::vector<int32_t> last_region;      // of each instruction
  std::map<uint64_t, Clock> counters;    // what an atomic's address has released
  int64_t* executed = nullptr;           // how often, for each instruction
  int64_t counts[kKinds] = {};
};

// The row of an operand.
template <typename T>
inline const T* Row(const Machine& machine, const Warp& warp, int32_t place) {
  const char* at = place >= 0 ? warp.registers.data() + place : machine.constants + (-1 - place);
  return reinterpret_cast<const T*>(at);
}

template <typename T>
inline T* Row(Warp& warp, int32_t place) {
  return reinterpret_cast<T*>(warp.registers.data() + place);
}

inline Access AccessOf(const Instruction& instruction) {
  Access access;
  std::memcpy(&access, &instruction.detail, sizeof access);
  return access;
}

}  // namespace ptx
