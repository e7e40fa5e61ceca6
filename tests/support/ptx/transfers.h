// Instructions that reach memory, and those by which the lanes of a warp exchange values.
#pragma once

#include "arithmetic.h"
#include "memory.h"

namespace ptx {

inline uint64_t FromMemory(const char* at, const Access& access) {
  uint64_t bits = 0;
  std::memcpy(&bits, at, access.bytes);
  if (access.is_signed && access.bytes < 8 && bits >> (8 * access.bytes - 1) & 1) {
    bits |= ~uint64_t{0} << (8 * access.bytes);
  }
  return bits;
}

inline uint64_t AddressOf(const Machine& machine, const Warp& warp, const Instruction& i,
                          uint32_t space, int lane) {
  const uint64_t base = space == kShared ? Row<uint32_t>(machine, warp, i.from[0])[lane]
                                         : Row<uint64_t>(machine, warp, i.from[0])[lane];
  return base + static_cast<uint64_t>(i.immediate);
}

// Checks the elements of a vector that are used: the others may be what nothing has written.
inline const char* ReachUsed(Machine* machine, Block* block, uint32_t thread, const Access& access,
                             uint64_t address, const Instruction& i) {
  if (address % (access.bytes * access.count) != 0) {
    Fail("an access of a vector that is not aligned", *block, thread, i);
  }
  const char* first = nullptr;
  for (uint32_t k = 0; k < access.count; ++k) {
    if (access.unused >> k & 1) continue;
    const uint64_t element = address + k * access.bytes;
    first = Reach(machine, block, thread, access.space, element, access.bytes, nullptr, i) -
            k * access.bytes;
  }
  return first;
}

inline void Load(Machine& machine, Warp& warp, const Instruction& i, uint32_t lanes) {
  const Access access = AccessOf(i);
  ForLanes(lanes, [&](int lane) {
    const char* at = nullptr;
    if (access.space == kParameters) {
      if (i.immediate + access.bytes * access.count > machine.parameter_bytes) {
        Fail("a load after the end of the parameters", *warp.block, lane, i);
      }
      at = machine.parameters + i.immediate;
    } else {
      const uint64_t address = AddressOf(machine, warp, i, access.space, lane);
      const uint32_t thread = warp.index * kLanes + lane;
      const int bytes = access.bytes * access.count;
      if (access.unused == 0) {
        at = Reach(&machine, warp.block, thread, access.space, address, bytes, nullptr, i);
      } else {
        at = ReachUsed(&machine, warp.block, thread, access, address, i);
      }
    }
    for (uint32_t k = 0; k < access.count; ++k) {
      if (i.to[k] < 0) continue;
      const uint64_t bits = FromMemory(at + k * access.bytes, access);
      std::memcpy(Row<char>(warp, i.to[k]) + lane * access.row_bytes, &bits, access.row_bytes);
    }
  });
}

inline void Store(Machine& machine, Warp& warp, const Instruction& i, uint32_t lanes) {
  const Access access = AccessOf(i);
  ForLanes(lanes, [&](int lane) {
    const uint64_t address = AddressOf(machine, warp, i, access.space, lane);
    const uint32_t thread = warp.index * kLanes + lane;
    char values[16];
    for (uint32_t k = 0; k < access.count; ++k) {
      const char* value = Row<char>(machine, warp, i.to[k]) + lane * access.row_bytes;
      std::memcpy(values + k * access.bytes, value, access.bytes);
    }
    const int bytes = access.bytes * access.count;
    char* at = Reach(&machine, warp.block, thread, access.space, address, bytes, values, i);
    std::memcpy(at, values, bytes);
  });
}

// A prefetch can't fail; one outside of the launch's memory is a waste that is reported too.
inline void Prefetch(Machine& machine, Warp& warp, const Instruction& i, uint32_t lanes) {
  ForLanes(lanes, [&](int lane) {
    const uint64_t address = AddressOf(machine, warp, i, kGlobal, lane);
    GlobalPlace(&machine, *warp.block, warp.index * kLanes + lane, address, 1, false, i);
  });
}

// atom.add of 32 bits; its detail is 1 where it releases and acquires.
inline void AtomicAdd(Machine& machine, Warp& warp, const Instruction& i, uint32_t lanes) {
  const uint32_t* value = Row<uint32_t>(machine, warp, i.from[1]);
  ForLanes(lanes, [&](int lane) {
    const uint64_t address = AddressOf(machine, warp, i, kGlobal, lane);
    const auto thread = static_cast<uint16_t>(warp.index * kLanes + lane);
    const Place place = GlobalPlace(&machine, *warp.block, thread, address, 4, true, i);
    if (place.initialised != nullptr && !place.initialised[0]) {
      Fail("an addition to a counter that nothing has set", *warp.block, thread, i);
    }
    if (i.detail == 1) ReleaseAndAcquire(&machine, warp.block, thread, address);
    uint32_t before;
    std::memcpy(&before, place.at, sizeof before);
    const uint32_t after = before + value[lane];
    std::memcpy(place.at, &after, sizeof after);
    if (i.to[0] >= 0) Row<uint32_t>(warp, i.to[0])[lane] = before;
  });
}

// The exchanges of a whole warp; executor.cpp waits until all its lanes have come.

inline void ShuffleButterfly(Machine& machine, Warp& warp, const Instruction& i, uint32_t) {
  uint32_t values[kLanes];
  std::memcpy(values, Row<uint32_t>(machine, warp, i.from[0]), sizeof values);
  const uint32_t* distance = Row<uint32_t>(machine, warp, i.from[1]);
  const uint32_t* bounds = Row<uint32_t>(machine, warp, i.from[2]);
  const uint32_t* members = Row<uint32_t>(machine, warp, i.from[3]);
  uint32_t* to = Row<uint32_t>(warp, i.to[0]);
  for (int lane = 0; lane < kLanes; ++lane) {
    if (bounds[lane] != 31 || members[lane] != kAllLanes) {
      Fail("a shuffle of a part of a warp", *warp.block, warp.index * kLanes + lane, i);
    }
    to[lane] = values[lane ^ (distance[lane] & 31)];
  }
}

inline void WarpBarrier(Machine& machine, Warp& warp, const Instruction& i, uint32_t) {
  if (Row<uint32_t>(machine, warp, i.from[0])[0] != kAllLanes) {
    Fail("a barrier of a part of a warp", *warp.block, warp.index * kLanes, i);
  }
  ++warp.sync;
}

template <typename Function>
void Reduce(Machine& machine, Warp& warp, const Instruction& i, uint32_t) {
  const int32_t* values = Row<int32_t>(machine, warp, i.from[0]);
  const uint32_t* members = Row<uint32_t>(machine, warp, i.from[1]);
  if (std::count(members, members + kLanes, kAllLanes) != kLanes) {
    Fail("a reduction of a part of a warp", *warp.block, warp.index * kLanes, i);
  }
  int32_t result = values[0];
  for (int lane = 1; lane < kLanes; ++lane) result = Function()(result, values[lane]);
  std::fill_n(Row<int32_t>(warp, i.to[0]), kLanes, result);
}

// 8 x 8 matrices of 16 bits, as many as the detail says. Lane 8 k + r has the address of row r of
// the k-th. Lane n holds the elements of row n / 4 in columns 2 (n % 4) and the next; of a
// transposed matrix those of column n / 4 in rows 2 (n % 4) and the next.
template <bool kStores, bool kTransposed>
void Matrices(Machine& machine, Warp& warp, const Instruction& i, uint32_t) {
  for (int k = 0; k < i.detail; ++k) {
    for (int lane = 0; lane < kLanes; ++lane) {
      for (int half = 0; half < 2; ++half) {
        const int pair = 2 * (lane % 4) + half;
        const int row = kTransposed ? pair : lane / 4;
        const int column = kTransposed ? lane / 4 : pair;
        const uint32_t thread = warp.index * kLanes + lane;
        const uint64_t first = AddressOf(machine, warp, i, kShared, 8 * k + row);
        if (first % 16 != 0) Fail("a row of a matrix that is not aligned", *warp.block, thread, i);
        auto* value = reinterpret_cast<char*>(Row<uint32_t>(warp, i.to[k]) + lane) + 2 * half;
        char* at = Reach(&machine, warp.block, thread, kShared, first + 2 * column, 2,
                         kStores ? value : nullptr, i);
        std::memcpy(kStores ? at : value, kStores ? value : at, 2);
      }
    }
  }
}

}  // namespace ptx
