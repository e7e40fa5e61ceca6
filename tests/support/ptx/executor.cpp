// Runs a grid of PTX on a CPU, through a C interface: machine.py is its caller.
#include <cstdio>
#include <random>

#include "operations.h"

namespace ptx {
namespace {

using i16 = int16_t;
using i32 = int32_t;
using i64 = int64_t;
using u16 = uint16_t;
using u32 = uint32_t;
using u64 = uint64_t;
using i128 = __int128;
using u128 = unsigned __int128;

enum Control { kBranch, kReturn, kBarrier };  // the first operations, in this order

#define BITS(OP, FUNCTION)                                      \
  {OP ".b16", kInteger, Binary<u16, u16, u16, FUNCTION>},       \
      {OP ".b32", kInteger, Binary<u32, u32, u32, FUNCTION>}, { \
    OP ".b64", kInteger, Binary<u64, u64, u64, FUNCTION>        \
  }
#define SIGNS(OP, FUNCTION)                                     \
  {OP ".u16", kInteger, Binary<u16, u16, u16, FUNCTION>},       \
      {OP ".s16", kInteger, Binary<i16, i16, i16, FUNCTION>},   \
      {OP ".u32", kInteger, Binary<u32, u32, u32, FUNCTION>},   \
      {OP ".s32", kInteger, Binary<i32, i32, i32, FUNCTION>},   \
      {OP ".u64", kInteger, Binary<u64, u64, u64, FUNCTION>}, { \
    OP ".s64", kInteger, Binary<i64, i64, i64, FUNCTION>        \
  }
#define ORDER(OP, FUNCTION)                                    \
  {"setp." OP ".u16", kInteger, Compare<u16, FUNCTION>},       \
      {"setp." OP ".s16", kInteger, Compare<i16, FUNCTION>},   \
      {"setp." OP ".u32", kInteger, Compare<u32, FUNCTION>},   \
      {"setp." OP ".s32", kInteger, Compare<i32, FUNCTION>},   \
      {"setp." OP ".u64", kInteger, Compare<u64, FUNCTION>},   \
      {"setp." OP ".s64", kInteger, Compare<i64, FUNCTION>}, { \
    "setp." OP ".f32", kFloat, Compare<float, FUNCTION>        \
  }
#define EQUALITY(OP, FUNCTION)                                 \
  {"setp." OP ".b16", kInteger, Compare<u16, FUNCTION>},       \
      {"setp." OP ".b32", kInteger, Compare<u32, FUNCTION>}, { \
    "setp." OP ".b64", kInteger, Compare<u64, FUNCTION>        \
  }

const Operation kOperations[] = {
    {"bra", kControl, nullptr},
    {"ret", kControl, nullptr},
    {"bar.sync", kControl, nullptr},
    BITS("add", Add),
    {"add.s16x2", kInteger, Binary<u32, u32, u32, AddHalves>},
    BITS("sub", Subtract),
    BITS("and", And),
    BITS("or", Or),
    BITS("xor", Xor),
    {"mul.lo.b32", kInteger, Binary<u32, u32, u32, Multiply>},
    {"mul.lo.b64", kInteger, Binary<u64, u64, u64, Multiply>},
    {"mul.hi.u32", kInteger, Binary<u32, u32, u32, MultiplyHigh<u64>>},
    {"mul.hi.s32", kInteger, Binary<i32, i32, i32, MultiplyHigh<i64>>},
    {"mul.hi.u64", kInteger, Binary<u64, u64, u64, MultiplyHigh<u128>>},
    {"mul.hi.s64", kInteger, Binary<i64, i64, i64, MultiplyHigh<i128>>},
    {"mul.wide.u16", kInteger, Binary<u32, u16, u16, MultiplyWide<u32>>},
    {"mul.wide.s16", kInteger, Binary<i32, i16, i16, MultiplyWide<i32>>},
    {"mul.wide.u32", kInteger, Binary<u64, u32, u32, MultiplyWide<u64>>},
    {"mul.wide.s32", kInteger, Binary<i64, i32, i32, MultiplyWide<i64>>},
    {"mad.lo.b32", kInteger, Ternary<u32, u32, u32, u32, MultiplyAdd>},
    {"mad.lo.b64", kInteger, Ternary<u64, u64, u64, u64, MultiplyAdd>},
    {"mad.wide.u32", kInteger, Ternary<u64, u32, u32, u64, MultiplyWideAdd<u64>>},
    {"mad.wide.s32", kInteger, Ternary<i64, i32, i32, i64, MultiplyWideAdd<i64>>},
    SIGNS("div", Divide),
    SIGNS("rem", Remainder),
    SIGNS("min", Smaller),
    SIGNS("max", Larger),
    {"not.b16", kInteger, Unary<u16, u16, Not>},
    {"not.b32", kInteger, Unary<u32, u32, Not>},
    {"not.b64", kInteger, Unary<u64, u64, Not>},
    {"neg.b16", kInteger, Unary<u16, u16, Negate>},
    {"neg.b32", kInteger, Unary<u32, u32, Negate>},
    {"neg.b64", kInteger, Unary<u64, u64, Negate>},
    {"shl.b16", kInteger, Binary<u16, u16, u32, ShiftLeft>},
    {"shl.b32", kInteger, Binary<u32, u32, u32, ShiftLeft>},
    {"shl.b64", kInteger, Binary<u64, u64, u32, ShiftLeft>},
    {"shr.u16", kInteger, Binary<u16, u16, u32, ShiftRightUnsigned>},
    {"shr.u32", kInteger, Binary<u32, u32, u32, ShiftRightUnsigned>},
    {"shr.u64", kInteger, Binary<u64, u64, u32, ShiftRightUnsigned>},
    {"shr.s16", kInteger, Binary<i16, i16, u32, ShiftRight>},
    {"shr.s32", kInteger, Binary<i32, i32, u32, ShiftRight>},
    {"shr.s64", kInteger, Binary<i64, i64, u32, ShiftRight>},
    {"prmt.b32", kInteger, Ternary<u32, u32, u32, u32, PermuteBytes>},
    {"bfe.u32", kInteger, Ternary<u32, u32, u32, u32, ExtractBits<u32>>},
    {"bfe.s32", kInteger, Ternary<i32, i32, u32, u32, ExtractBits<i32>>},
    EQUALITY("eq", Equal),
    EQUALITY("ne", Unequal),
    ORDER("lt", Less),
    ORDER("le", LessOrEqual),
    ORDER("gt", Greater),
    ORDER("ge", GreaterOrEqual),
    {"setp.eq.f32", kFloat, Compare<float, Equal>},
    {"setp.ne.f32", kFloat, Compare<float, UnequalNumbers>},
    {"setp.neu.f32", kFloat, Compare<float, Unequal>},
    {"setp.equ.f32", kFloat, Compare<float, EqualOrNan>},
    {"setp.ltu.f32", kFloat, Compare<float, LessOrNan>},
    {"setp.leu.f32", kFloat, Compare<float, LessOrEqualOrNan>},
    {"setp.gtu.f32", kFloat, Compare<float, GreaterOrNan>},
    {"setp.geu.f32", kFloat, Compare<float, GreaterOrEqualOrNan>},
    {"setp.num.f32", kFloat, Compare<float, Numbers>},
    {"setp.nan.f32", kFloat, Compare<float, SomeNan>},
    {"and.pred", kInteger, Logic<And>},
    {"or.pred", kInteger, Logic<Or>},
    {"xor.pred", kInteger, Logic<Xor>},
    {"andnot.pred", kInteger, Logic<AndNot>},  // not.pred, of all lanes and its operand
    {"selp.b16", kInteger, Select<u16>},
    {"selp.b32", kInteger, Select<u32>},
    {"selp.b64", kInteger, Select<u64>},
    {"add.f32", kFloat, Binary<float, float, float, Add>},
    {"sub.f32", kFloat, Binary<float, float, float, Subtract>},
    {"mul.f32", kFloat, Binary<float, float, float, Multiply>},
    {"div.f32", kSpecial, Binary<float, float, float, DivideFloat>},
    {"sqrt.f32", kSpecial, Unary<float, float, SquareRoot>},
    {"neg.f32", kFloat, Unary<float, float, NegateFloat>},
    {"abs.f32", kFloat, Unary<float, float, AbsoluteFloat>},
    {"min.f32", kFloat, Binary<float, float, float, SmallerFloat>},
    {"max.f32", kFloat, Binary<float, float, float, LargerFloat>},
    {"min.NaN.f32", kFloat, Binary<float, float, float, SmallerOrNan>},
    {"max.NaN.f32", kFloat, Binary<float, float, float, LargerOrNan>},
    {"cvt.u16.u32", kMove, Unary<u16, u32, Copy>},
    {"cvt.u16.u64", kMove, Unary<u16, u64, Copy>},
    {"cvt.u32.u16", kMove, Unary<u32, u16, Copy>},
    {"cvt.u32.u64", kMove, Unary<u32, u64, Copy>},
    {"cvt.u64.u16", kMove, Unary<u64, u16, Copy>},
    {"cvt.u64.u32", kMove, Unary<u64, u32, Copy>},
    {"cvt.s32.s16", kMove, Unary<i32, i16, Copy>},
    {"cvt.s64.s16", kMove, Unary<i64, i16, Copy>},
    {"cvt.s64.s32", kMove, Unary<i64, i32, Copy>},
    {"cvt.u16.u8", kMove, Unary<u16, u16, Convert<u16, u16, uint8_t>>},
    {"cvt.s16.s8", kMove, Unary<i16, i16, Convert<i16, i16, int8_t>>},
    {"cvt.u32.u8", kMove, Unary<u32, u16, Convert<u32, u32, uint8_t>>},
    {"cvt.s32.s8", kMove, Unary<i32, i16, Convert<i32, i32, int8_t>>},
    {"cvt.f32.f64", kFloat, Unary<float, double, Copy>},
    {"cvt.f32.u16", kFloat, Unary<float, u16, Copy>},
    {"cvt.f32.s16", kFloat, Unary<float, i16, Copy>},
    {"cvt.f32.u32", kFloat, Unary<float, u32, Copy>},
    {"cvt.f32.s32", kFloat, Unary<float, i32, Copy>},
    {"cvt.f32.u64", kFloat, Unary<float, u64, Copy>},
    {"cvt.f32.s64", kFloat, Unary<float, i64, Copy>},
    {"cvt.rzi.s32.f32", kFloat, Unary<i32, float, TruncateToInt>},
    {"cvt.f32.f16", kFloat, Unary<float, u16, HalfToFloat>},
    {"cvt.f16.f32", kFloat, Unary<u16, float, FloatToHalf>},
    {"cvt.f16x2.f32", kFloat, Binary<u32, float, float, FloatsToHalves>},
    {"mov.b16", kMove, Unary<u16, u16, Copy>},
    {"mov.b32", kMove, Unary<u32, u32, Copy>},
    {"mov.b64", kMove, Unary<u64, u64, Copy>},
    {"pack.b32", kMove, Binary<u32, u16, u16, Pack<u32, u32>>},
    {"pack.b64", kMove, Binary<u64, u32, u32, Pack<u64, u64>>},
    {"unpack.b32", kMove, Unpack<u16, u32>},
    {"unpack.b64", kMove, Unpack<u32, u64>},
    {"ld", kMemory, Load},
    {"st", kMemory, Store},
    {"prefetch", kMemory, Prefetch},
    {"atom.add", kMemory, AtomicAdd},
    {"shfl.bfly", kExchange, ShuffleButterfly},
    {"bar.warp.sync", kExchange, WarpBarrier},
    {"redux.max.s32", kExchange, Reduce<Larger>},
    {"redux.min.s32", kExchange, Reduce<Smaller>},
    {"ldmatrix", kExchange, Matrices<false, false>},
    {"ldmatrix.trans", kExchange, Matrices<false, true>},
    {"stmatrix", kExchange, Matrices<true, false>},
    {"stmatrix.trans", kExchange, Matrices<true, true>},
};
#undef BITS
#undef SIGNS
#undef ORDER
#undef EQUALITY

constexpr int kOperationCount = sizeof(kOperations) / sizeof(kOperations[0]);

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
      const u32 values[] = {u32(w * kLanes), u32(number), u32(options.blocks),
                            u32(options.threads)};
      for (int s = 0; s < 4; ++s) {
        if (machine_.specials[s] < 0) continue;
        u32* row = Row<u32>(warp, machine_.specials[s]);
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
    int64_t left = options.slice == 0 ? options.limit : 1 + i64(random_() % options.slice);
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
      u32 lanes = group.lanes;
      if (i.guard >= 0) {
        const u32 guard = *Row<u32>(*warp, i.guard);
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
  int64_t bytes_loaded, bytes_stored;
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
  result->bytes_loaded = machine.bytes_loaded;
  result->bytes_stored = machine.bytes_stored;
  return ended;
}
