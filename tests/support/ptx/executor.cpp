// Runs a grid of PTX on a CPU, through a C interface: machine.py is its caller.
#include <cstdio>
#include <random>

#include "operations.h"

namespace ptx {
namespace {

class Grid {
 public:
  explicit Grid(Machine* machine) : machine_(*machine), random_(machine->options.seed) {}

  void Run() {
    const Options& options = machine_.options;
    std::vector<int32_t> order(options.blocks);
    for (size_t i = 0; i < order.size(); ++i) order[i] = static_cast<int32_t>(i);
    if (options.seed != 0) std::shuffle(order.begin(), order.end(), random_);
    size_t next = 0;
    std::vector<Block> blocks(std::min<size_t>(order.size(), options.resident));
    for (Block& block : blocks) Begin(&block, order[next++]);
    while (!blocks.empty()) {
      const size_t at = options.seed == 0 ? 0 : random_() % blocks.size();
      RunOnce(&blocks[at]);
      if (!Ended(blocks[at])) continue;
      if (next < order.size()) {
        Begin(&blocks[at], order[next++]);
      } else {
        std::swap(blocks[at], blocks.back());
        for (Warp& warp : blocks[at].warps) warp.block = &blocks[at];
        blocks.pop_back();
      }
    }
  }

 private:
  void Begin(Block* block, int32_t number) {
    const Options& options = machine_.options;
    block->number = number;
    block->epoch = 0;
    block->acquired.clear();
    block->shared.assign(options.shared_bytes, char(0xcd));
    block->shared_cells.assign(options.races ? options.shared_bytes : 0, Cell());
    block->shared_initialised.assign(options.shared_bytes, 0);
    block->warps.resize(options.threads / kLanes);
    for (size_t w = 0; w < block->warps.size(); ++w) {
      Warp& warp = block->warps[w];
      warp.block = block;
      warp.index = static_cast<int>(w);
      warp.sync = 0;
      warp.registers.assign(machine_.register_bytes, char(0xcd));
      warp.groups = {{0, kAllLanes}};
      const uint32_t values[] = {uint32_t(w * kLanes), uint32_t(number), uint32_t(options.blocks),
                                 uint32_t(options.threads)};
      for (int s = 0; s < 4; ++s) {
        if (machine_.specials[s] < 0) continue;
        uint32_t* row = Row<uint32_t>(warp, machine_.specials[s]);
        for (int lane = 0; lane < kLanes; ++lane) row[lane] = values[s] + (s == 0 ? lane : 0);
      }
    }
  }

  static bool Ended(const Block& block) {
    return std::all_of(block.warps.begin(), block.warps.end(),
                       [](const Warp& warp) { return warp.groups.empty(); });
  }

  // Gives each warp that can run a turn; then lets the block pass a barrier that all have reached.
  void RunOnce(Block* block) {
    bool progress = false;
    const size_t first = machine_.options.seed == 0 ? 0 : random_() % block->warps.size();
    for (size_t w = 0; w < block->warps.size(); ++w) {
      Warp& warp = block->warps[(first + w) % block->warps.size()];
      if (machine_.options.seed != 0 && progress && random_() % 2) continue;
      progress |= RunWarp(&warp);
    }
    if (!progress) PassBarrier(block);
  }

  void PassBarrier(Block* block) {
    uint32_t waiting = 0, ended = 0;
    const Group* stuck = nullptr;
    for (Warp& warp : block->warps) {
      uint32_t left = 0;
      for (const Group& group : warp.groups) {
        left += __builtin_popcount(group.lanes);
        if (group.state == Group::kAtBarrier) {
          waiting += __builtin_popcount(group.lanes);
        } else {
          stuck = &group;
        }
      }
      ended += kLanes - left;
    }
    if (stuck != nullptr) {
      Fail("lanes " + Hex(stuck->lanes) + " wait at an exchange that the others don't reach",
           *block, 0, machine_.program[stuck->at]);
    }
    if (waiting == 0) return;
    if (ended != 0) {
      Fail("a barrier that " + std::to_string(ended) + " threads will not reach", *block, 0,
           machine_.program[block->warps[0].groups.empty() ? 0 : block->warps[0].groups[0].at]);
    }
    ++block->epoch;
    for (Warp& warp : block->warps) {
      for (Group& group : warp.groups) {
        group.state = Group::kRuns;
        ++group.at;
      }
      MergeGroups(&warp);
    }
  }

  // Joins groups that are at one instruction in one state; an exchange goes on with all lanes.
  static void MergeGroups(Warp* warp) {
    auto& groups = warp->groups;
    for (size_t a = 0; a < groups.size(); ++a) {
      for (size_t b = groups.size() - 1; b > a; --b) {
        if (groups[a].at == groups[b].at && groups[a].state == groups[b].state) {
          groups[a].lanes |= groups[b].lanes;
          groups.erase(groups.begin() + b);
        }
      }
      if (groups[a].lanes == kAllLanes && groups[a].state == Group::kAtCollective) {
        groups[a].state = Group::kRuns;
      }
    }
  }

  // Runs the group that is furthest behind until none can run; returns whether any did.
  bool RunWarp(Warp* warp) {
    const Options& options = machine_.options;
    int64_t left = options.slice == 0 ? options.limit : 1 + int64_t(random_() % options.slice);
    bool progress = false;
    while (left > 0) {
      int at = -1;
      for (size_t g = 0; g < warp->groups.size(); ++g) {
        const Group& group = warp->groups[g];
        if (group.state != Group::kRuns) continue;
        if (at < 0 || group.at < warp->groups[at].at) at = static_cast<int>(g);
      }
      if (at < 0) break;
      int32_t stop = INT32_MAX;  // where another group is
      for (size_t g = 0; g < warp->groups.size(); ++g) {
        if (warp->groups[g].at > warp->groups[at].at) stop = std::min(stop, warp->groups[g].at);
      }
      RunGroup(warp, at, stop, &left);
      MergeGroups(warp);
      progress = true;
      if (executed_ > options.limit) {
        throw Fault("more than " + std::to_string(options.limit) +
                    " instructions: an endless loop");
      }
    }
    return progress;
  }

  // Runs a group until it ends, splits, waits, or comes to `stop`.
  void RunGroup(Warp* warp, int at, int32_t stop, int64_t* left) {
    Group group = warp->groups[at];
    const int32_t from = group.at;
    const auto leave = [&] { warp->groups[at] = group; };
    while (true) {
      if ((group.at >= stop && group.at != from) || *left <= 0) return leave();
      if (group.at >= machine_.instructions) throw Fault("the end of the program is not a return");
      const Instruction& i = machine_.program[group.at];
      uint32_t lanes = group.lanes;
      if (i.guard >= 0) {
        const uint32_t guard = *Row<uint32_t>(*warp, i.guard);
        lanes &= i.guard_negated ? ~guard : guard;
      }
      const Operation& operation = kOperations[i.op];
      const bool collective = operation.kind == kExchange;
      if (collective && lanes != kAllLanes) {
        group.state = Group::kAtCollective;
        return leave();
      }
      --*left;
      ++executed_;
      ++machine_.executed[group.at];
      ++machine_.counts[operation.kind];
      if (operation.run != nullptr) {
        if (lanes != 0) operation.run(machine_, *warp, i, lanes);
        ++group.at;
        continue;
      }
      if (lanes == 0) {
        ++group.at;
        continue;
      }
      if (i.op == kBarrier) {
        if (lanes != group.lanes) throw Fault("a barrier of some lanes alone");
        group.state = Group::kAtBarrier;
        return leave();
      }
      if (i.op == kBranch && lanes == group.lanes) {
        group.at = i.target;
        if (i.target <= from || group.at >= stop) return leave();
        continue;
      }
      group.lanes &= ~lanes;  // a branch of some lanes, or a return
      ++group.at;
      if (i.op == kReturn && group.lanes == 0) {
        warp->groups.erase(warp->groups.begin() + at);
        return;
      }
      leave();
      if (i.op == kBranch) warp->groups.push_back({i.target, lanes});
      return;
    }
  }

  Machine& machine_;
  std::mt19937_64 random_;
  int64_t executed_ = 0;
};

}  // namespace

// What machine.py hands over, field by field.
struct LaunchRequest {
  const Instruction* program;
  int64_t instructions;
  const char* constants;
  int64_t register_bytes;
  int32_t specials[4];
  const char* parameters;
  int64_t parameter_bytes;
  const Region* regions;
  int64_t region_count;
  Options options;
  int64_t* executed;
};

struct LaunchResult {
  int64_t counts[kKinds];
  char fault[512];
};

}  // namespace ptx

// Writes the names of all operations, a line each; the place of one is its number.
extern "C" void ptx_operations(char* out, int64_t bytes) {
  std::string names;
  for (const auto& operation : ptx::kOperations) names += std::string(operation.name) + "\n";
  std::snprintf(out, bytes, "%s", names.c_str());
}

// Runs a launch; returns whether it ended without a fault.
extern "C" int ptx_run(const ptx::LaunchRequest* request, ptx::LaunchResult* result) {
  using namespace ptx;
  Machine machine = {};
  machine.program = request->program;
  machine.instructions = request->instructions;
  machine.constants = request->constants;
  machine.register_bytes = request->register_bytes;
  machine.specials = request->specials;
  machine.parameters = request->parameters;
  machine.parameter_bytes = request->parameter_bytes;
  machine.options = request->options;
  machine.executed = request->executed;
  machine.regions.assign(request->regions, request->regions + request->region_count);
  machine.last_region.assign(request->instructions, -1);
  for (const Region& region : machine.regions) {
    const bool noted = region.writable && machine.options.races;
    const uint64_t granules = (region.end - region.begin + region.granule - 1) / region.granule;
    machine.cells.emplace_back(noted ? granules : 0);
  }
  bool ended = true;
  try {
    Grid(&machine).Run();
  } catch (const Fault& fault) {
    std::snprintf(result->fault, sizeof result->fault, "%s", fault.what());
    ended = false;
  }
  std::copy_n(machine.counts, kKinds, result->counts);
  return ended;
}
