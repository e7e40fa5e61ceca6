// One tensor as a block sees it, and the items that a block takes.
#pragma once

#include "adafactor/adafactor.cuh"

namespace fused_optim {

// One tensor as the kernels see it. All threads of a block read the same values, so these lie in
// shared memory and leave the registers to the elements.
struct TensorTask : ShapeTables {
  TensorRecord t;
  AdafactorRow row;
  Preparation prepare;
  Draw draw;
  int64_t scratch;  // address of this tensor's part

  FUSED_DEVICE bool Factored() const { return t.max_exp_avg_sq != 0; }
  // Statistics by column or, of a linear tensor, by element.
  FUSED_DEVICE int64_t ColumnState() const { return Factored() ? t.max_exp_avg_sq : t.exp_avg_sq; }
  FUSED_DEVICE float* Scratch() const { return GlobalPointer<float>(scratch); }
};

// Copies words to shared memory, one by each thread from `first` on.
template <typename Word>
FUSED_DEVICE void CopyWords(const void* from, void* to, size_t bytes, int first) {
  const int i = ThreadIndex() - first;
  if (i < 0 || i >= static_cast<int>(bytes / sizeof(Word))) return;
  static_cast<Word*>(to)[i] = LoadEntry(static_cast<const Word*>(from) + i);
}

// Fills `task`, which is in shared memory. All threads of the block must call it: each warp has a
// part of it to copy or to compute, so that none waits for more than two loads in turn.
FUSED_DEVICE void BeginTask(const LaunchArguments& launch, int32_t tensor, float* scratch,
                            TensorTask* task) {
  const TensorRecord* record = launch.records + tensor;
  const ShapeTables* tables = static_cast<const ShapeTables*>(launch.shapes) + tensor;
  const AdafactorRow* rows = static_cast<const AdafactorRow*>(launch.rows);
  ShapeTables* shapes = task;
  Barrier();  // after the last use of the task before
  CopyWords<int64_t>(record, &task->t, sizeof(TensorRecord), 0);
  CopyWords<int64_t>(tables, shapes, sizeof(ShapeTables), kLanes);
  const int warp = ThreadIndex() >> kLaneBits;
  if (warp >= 2 && warp < 5) {
    const AdafactorRow* row = rows + LoadEntry(&record->row);
    CopyWords<uint32_t>(row, &task->row, sizeof(AdafactorRow), 2 * kLanes);
    if (ThreadIndex() == 3 * kLanes) {
      task->prepare = Prepare(launch, tensor, LoadEntry(&row->grad_mul), Infinity());
    } else if (ThreadIndex() == 4 * kLanes) {
      task->draw = DrawOf(launch, LoadEntry(&record->number), LoadEntry(&row->step));
    }
  } else if (ThreadIndex() == 5 * kLanes) {
    task->scratch = reinterpret_cast<int64_t>(scratch + LoadEntry(&record->scratch));
  }
  Barrier();
}

// Calls run(work, i) for the items of this block, which at(i) loads, with `task` at the item's
// tensor. Consecutive items of a tensor begin its task once. Which tensor that was lies in shared
// memory: a register for it, or for the item after this one, makes sm_120 spill.
template <typename At, typename Run>
FUSED_DEVICE void ForItems(const LaunchArguments& launch, int64_t count, float* scratch,
                           TensorTask* task, const At& at, const Run& run) {
  int32_t begun = -1;
#pragma unroll 1
  for (int64_t item = BlockIndex(); item < count; item += BlockCount()) {
    const WorkItem work = at(item);
    if (work.tensor != begun) BeginTask(launch, work.tensor, scratch, task);
    begun = work.tensor;
    run(work, item);
  }
}

}  // namespace fused_optim
