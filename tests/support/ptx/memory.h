// Memory as a launch may use it: bounds, alignment, what was never written, and races.
//
// Of several loads the last is remembered, and that there were others.
//
// Two accesses of a granule, one of them a store, are a race: of two threads of a block, where no
// barrier of the block, or of their warp, lies between them; of two blocks, where no counter orders
// them. A thread that adds to a counter by release and acquire hands on its own stores, its block's
// before the last barrier, and all that it has been handed; it is handed what others handed on
// there before. Threads of a block may store one value to one place of shared memory: Triton's
// reductions do.
#pragma once

#include <algorithm>
#include <string>

#include "machine.h"

namespace ptx {

struct Place {
  char* at;
  Cell* cells;  // null where races are not looked for
  uint8_t* initialised;
  int granules;
};

inline std::string Hex(uint64_t value) {
  char text[20];
  std::snprintf(text, sizeof text, "0x%llx", static_cast<unsigned long long>(value));
  return text;
}

[[noreturn]] inline void Fail(const std::string& what, const Block& block, uint32_t thread,
                              const Instruction& instruction) {
  throw Fault("line " + std::to_string(instruction.line) + ": " + what + " by thread " +
              std::to_string(thread) + " of block " + std::to_string(block.number));
}

inline bool Covers(const Clock& clock, int32_t block, uint32_t epoch, uint16_t thread) {
  const auto found = clock.find(block);
  if (found == clock.end()) return false;
  const Known& known = found->second;
  if (epoch != known.epoch) return epoch < known.epoch;
  return std::find(known.threads.begin(), known.threads.end(), thread) != known.threads.end();
}

inline bool Sees(const Acquired& acquired, uint16_t thread, uint32_t epoch) {
  return acquired.epoch < epoch || acquired.thread == thread;
}

// Whether a block's thread may rely on an access of another block.
inline bool Ordered(const Block& block, uint16_t thread, int32_t other, uint32_t epoch,
                    uint16_t other_thread) {
  for (const Acquired& acquired : block.acquired) {
    if (Sees(acquired, thread, block.epoch) && Covers(acquired.clock, other, epoch, other_thread)) {
      return true;
    }
  }
  return false;
}

inline void Merge(Clock* into, int32_t block, const Known& known) {
  Known& mine = (*into)[block];
  if (known.epoch > mine.epoch || mine.threads.empty()) {
    if (known.epoch >= mine.epoch) mine = known;
  } else if (known.epoch == mine.epoch) {
    for (const uint16_t thread : known.threads) {
      if (std::find(mine.threads.begin(), mine.threads.end(), thread) == mine.threads.end()) {
        mine.threads.push_back(thread);
      }
    }
  }
}

// A thread adds to the counter at `address` by release and acquire.
inline void ReleaseAndAcquire(Machine* machine, Block* block, uint16_t thread, uint64_t address) {
  Clock& counter = machine->counters[address];
  if (!counter.empty()) block->acquired.push_back({thread, block->epoch, counter});
  for (const Acquired& acquired : block->acquired) {
    if (!Sees(acquired, thread, block->epoch)) continue;
    for (const auto& [other, known] : acquired.clock) Merge(&counter, other, known);
  }
  Merge(&counter, block->number, {block->epoch, {thread}});
}

// `repeats`: the access stores what is there already.
inline void NoteAccess(const Block& block, uint16_t thread, bool stores, bool repeats, bool shared,
                       Cell* cell, const Instruction& instruction) {
  const uint32_t sync = block.warps[thread / kLanes].sync;
  const bool same_write = cell->write_block == block.number && cell->write_epoch == block.epoch;
  const bool write_passed =
      cell->write_thread / kLanes == thread / kLanes && cell->write_sync < sync;
  if (same_write && cell->write_thread != thread && !write_passed && !repeats) {
    Fail("a race with a store of thread " + std::to_string(cell->write_thread) +
             " that no barrier orders",
         block, thread, instruction);
  }
  const bool same_read = cell->read_block == block.number && cell->read_epoch == block.epoch;
  const bool of_warp = cell->read_thread / kLanes == thread / kLanes && !cell->read_by_warps;
  const bool reads_passed = of_warp && cell->read_sync < sync;
  if (stores && same_read && !reads_passed &&
      (cell->read_thread != thread || cell->read_by_threads)) {
    Fail("a race with a load of thread " + std::to_string(cell->read_thread) +
             " that no barrier orders",
         block, thread, instruction);
  }
  if (!shared) {
    const bool foreign = cell->write_block >= 0 && cell->write_block != block.number;
    if (foreign &&
        !Ordered(block, thread, cell->write_block, cell->write_epoch, cell->write_thread)) {
      Fail("a race with a store of block " + std::to_string(cell->write_block) +
               " that no counter orders",
           block, thread, instruction);
    }
    const bool read = cell->read_block >= 0 && cell->read_block != block.number;
    if (stores && (read || cell->read_by_blocks) &&
        !Ordered(block, thread, cell->read_block, cell->read_epoch, cell->read_thread)) {
      Fail("a race with a load of block " + std::to_string(cell->read_block) +
               " that no counter orders",
           block, thread, instruction);
    }
  }
  if (stores) {
    cell->write_block = block.number;
    cell->write_epoch = block.epoch;
    cell->write_sync = sync;
    cell->write_thread = thread;
    return;
  }
  cell->read_by_blocks |= cell->read_block >= 0 && cell->read_block != block.number;
  cell->read_by_warps = same_read && !of_warp;
  cell->read_by_threads = same_read && (cell->read_by_threads || cell->read_thread != thread);
  cell->read_block = block.number;
  cell->read_epoch = block.epoch;
  cell->read_sync = sync;
  cell->read_thread = thread;
}

inline Place SharedPlace(Block* block, uint32_t thread, uint64_t address, int bytes,
                         const Instruction& instruction, bool races) {
  if (address % bytes != 0) {
    Fail("an access of " + std::to_string(bytes) + " bytes of shared memory at " + Hex(address) +
             " is not aligned",
         *block, thread, instruction);
  }
  if (address + bytes > block->shared.size()) {
    Fail("an access of shared memory at " + Hex(address) + ", of which the block has " +
             std::to_string(block->shared.size()) + " bytes",
         *block, thread, instruction);
  }
  return {block->shared.data() + address, races ? &block->shared_cells[address] : nullptr,
          &block->shared_initialised[address], bytes};
}

inline Place GlobalPlace(Machine* machine, const Block& block, uint32_t thread, uint64_t address,
                         int bytes, bool stores, const Instruction& instruction) {
  int32_t& last = machine->last_region[&instruction - machine->program];
  const auto holds = [&](int32_t i) {
    return address >= machine->regions[i].begin && address + bytes <= machine->regions[i].end;
  };
  if (last < 0 || !holds(last)) {
    const auto after =
        std::upper_bound(machine->regions.begin(), machine->regions.end(), address,
                         [](uint64_t value, const Region& region) { return value < region.begin; });
    const auto found = static_cast<int32_t>(after - machine->regions.begin()) - 1;
    if (found < 0 || !holds(found)) {
      std::string nearest;
      if (found >= 0) {
        nearest = ": " + std::to_string(address - machine->regions[found].begin) +
                  " bytes after the beginning of one of " +
                  std::to_string(machine->regions[found].end - machine->regions[found].begin);
      }
      Fail("an access of " + std::to_string(bytes) + " bytes at " + Hex(address) +
               " is in none of the launch's tensors, tables and buffers" + nearest,
           block, thread, instruction);
    }
    last = found;
  }
  const Region& region = machine->regions[last];
  if (address % bytes != 0) {
    Fail("an access of " + std::to_string(bytes) + " bytes at " + Hex(address) + " is not aligned",
         block, thread, instruction);
  }
  if (stores && !region.writable) {
    Fail("a store to a read-only table or tensor at " + Hex(address), block, thread, instruction);
  }
  const uint64_t first = (address - region.begin) / region.granule;
  const uint64_t last_granule = (address + bytes - 1 - region.begin) / region.granule;
  const bool noted = region.writable && machine->options.races;
  return {reinterpret_cast<char*>(address), noted ? &machine->cells[last][first] : nullptr,
          region.initialised == nullptr ? nullptr : region.initialised + first,
          static_cast<int>(last_granule - first) + 1};
}

// Checks an access and returns where it is. A store's `value` is what it will write, else null.
inline char* Reach(Machine* machine, Block* block, uint32_t thread, uint32_t space,
                   uint64_t address, int bytes, const char* value, const Instruction& instruction) {
  const bool stores = value != nullptr;
  bool shared = space == kShared;
  if (space == kGeneric && address >= kSharedWindow) {
    shared = true;
    address -= kSharedWindow;
  }
  const Place place =
      shared ? SharedPlace(block, thread, address, bytes, instruction, machine->options.races)
             : GlobalPlace(machine, *block, thread, address, bytes, stores, instruction);
  if (place.initialised != nullptr) {
    for (int i = 0; i < place.granules; ++i) {
      if (stores) {
        place.initialised[i] = 1;
      } else if (!place.initialised[i]) {
        Fail(std::string("a load of ") + (shared ? "shared" : "scratch") + " memory at " +
                 Hex(address) + " that nothing has written",
             *block, thread, instruction);
      }
    }
  }
  if (place.cells != nullptr) {
    const bool repeats = shared && stores && std::memcmp(place.at, value, bytes) == 0;
    for (int i = 0; i < place.granules; ++i) {
      NoteAccess(*block, static_cast<uint16_t>(thread), stores, repeats, shared, place.cells + i,
                 instruction);
    }
  }
  return place.at;
}

}  // namespace ptx
