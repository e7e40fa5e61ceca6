// The ops as a Python module: fused_optim._C, of CUDA, or fused_optim._cpu. Pointers and streams
// are Python ints; this file knows pybind11, and neither CUDA nor torch.
#include <pybind11/pybind11.h>

#include "ops.h"

#ifdef FUSED_OPTIM_HOST
#include "host/fibers.h"
#endif

#ifdef FUSED_OPTIM_CPU
#include "cpu/kernels.h"
#include "cpu/threads.h"
#endif

#ifndef FUSED_OPTIM_ARCHITECTURES
#define FUSED_OPTIM_ARCHITECTURES ""
#endif

#ifdef FUSED_OPTIM_CPU
#define FUSED_OPTIM_MODULE _cpu
#else
#define FUSED_OPTIM_MODULE _C
#endif

namespace py = pybind11;
using namespace pybind11::literals;

namespace fused_optim {
namespace {

struct PyLaunch {
  LaunchTarget target;
  LaunchArguments arguments;
};

template <typename T>
T* Pointer(uintptr_t address) {
  return reinterpret_cast<T*>(address);
}

PyLaunch MakeLaunch(int device, uintptr_t stream, int64_t dtype, int mode, int64_t tensors,
                    uintptr_t records, uintptr_t rows, uintptr_t items, int64_t num_items,
                    uintptr_t grad_scale, uintptr_t found_inf, uintptr_t clip, int64_t clip_stride,
                    int64_t seed_low, int64_t seed_high, uintptr_t shapes, int threads) {
  PyLaunch launch;
  launch.target = {device, Pointer<void>(stream), tensors, dtype, static_cast<Mode>(mode), threads};
  launch.arguments = {Pointer<const TensorRecord>(records), Pointer<const void>(rows),
                      Pointer<const WorkItem>(items),       num_items,
                      Pointer<const float>(grad_scale),     Pointer<const float>(found_inf),
                      Pointer<const float>(clip),           clip_stride,
                      static_cast<uint32_t>(seed_low),      static_cast<uint32_t>(seed_high),
                      Pointer<const void>(shapes)};
  return launch;
}

// Python's other threads run while an op does.
using Unlocked = py::call_guard<py::gil_scoped_release>;

void DefineElementwise(py::module_& m) {
  m.def(
      "adamw_",
      [](const PyLaunch& launch, bool amsgrad) { AdamW(launch.target, launch.arguments, amsgrad); },
      Unlocked());
  m.def("lion_", [](const PyLaunch& launch) { Lion(launch.target, launch.arguments); }, Unlocked());
  m.def(
      "grad_square_sums",
      [](const PyLaunch& launch, bool clamps, uintptr_t partials, uintptr_t sums) {
        GradSquareSums(launch.target, launch.arguments, clamps, Pointer<float>(partials),
                       Pointer<float>(sums));
      },
      Unlocked());
}

void DefineAdafactor(py::module_& m) {
  m.def(
      "adafactor_statistics",
      [](const PyLaunch& launch, uintptr_t lines, int64_t num_lines, uintptr_t scratch,
         uintptr_t sums) {
        AdafactorStatistics(launch.target, launch.arguments, Pointer<const WorkItem>(lines),
                            num_lines, Pointer<float>(scratch), Pointer<float>(sums));
      },
      Unlocked());
  m.def(
      "adafactor_finalise_",
      [](const PyLaunch& lines, uintptr_t visits, int64_t num_visits, bool have_statistics,
         uintptr_t scratch) {
        const VisitArguments visited = {Pointer<const WorkItem>(visits), num_visits,
                                        have_statistics, lines.target.dtype, lines.target.mode};
        AdafactorFinalise(lines.target, lines.arguments, visited, Pointer<float>(scratch));
      },
      Unlocked());
  m.def(
      "adafactor_update_sums",
      [](const PyLaunch& launch, uintptr_t scratch) {
        AdafactorUpdateSums(launch.target, launch.arguments, Pointer<float>(scratch));
      },
      Unlocked());
  m.def(
      "adafactor_apply_",
      [](const PyLaunch& launch, uintptr_t scratch) {
        AdafactorApply(launch.target, launch.arguments, Pointer<float>(scratch));
      },
      Unlocked());
  m.attr("ADAFACTOR_MOST_CUT") = kAdafactorMostCut;
  m.def("adafactor_blocks", &AdafactorBlocks, "device"_a);
  m.def("adafactor_tiles", &AdafactorTiles, "batch"_a, "rows"_a, "cols"_a, "cut"_a = 0);
  m.def("adafactor_lines", &AdafactorLines, "batch"_a, "rows"_a, "cols"_a, "cut"_a = 0);
  m.def("adafactor_visited", &AdafactorVisited, "batch"_a, "rows"_a, "cols"_a, "cut"_a = 0);
  m.def("adafactor_scratch", &AdafactorScratch, "batch"_a, "rows"_a, "cols"_a, "cut"_a = 0);
  m.def(
      "adafactor_shape",
      [](int64_t batch, int64_t rows, int64_t cols, int cut) {
        return py::bytes(AdafactorShape(batch, rows, cols, cut));
      },
      "batch"_a, "rows"_a, "cols"_a, "cut"_a = 0);
  m.def(
      "adafactor_tile_sizes",
      [](int64_t batch, int64_t rows, int64_t cols, int cut) {
        py::list sizes;
        for (const int64_t size : AdafactorTileSizes(batch, rows, cols, cut)) sizes.append(size);
        return sizes;
      },
      "batch"_a, "rows"_a, "cols"_a, "cut"_a = 0);
  m.def(
      "adafactor_sums",
      [](int64_t batch, int64_t rows, int64_t cols, int cut) {
        const AdafactorSumPlaces at = AdafactorSums(batch, rows, cols, cut);
        return py::dict("grads"_a = at.grads, "params"_a = at.params, "updates"_a = at.updates,
                        "rows"_a = at.rows, "cols"_a = at.cols, "means"_a = at.means,
                        "olds"_a = at.olds, "row_jobs"_a = at.row_jobs);
      },
      "batch"_a, "rows"_a, "cols"_a, "cut"_a = 0);
}

#ifdef FUSED_OPTIM_CPU
void DefineMachine(py::module_& m) {
  m.attr("ISA") = fused_optim_cpu::Chosen().name;
  m.def("use_runtime", &fused_optim_cpu::UseRuntime, "path"_a);
}
#else
void DefineMachine(py::module_& m) { m.def("check_device", &CheckDevice, "device"_a); }
#endif

#ifdef FUSED_OPTIM_HOST
void DefineHost(py::module_& m) {
  m.def("set_thread_order", &host::SetThreadOrder, "seed"_a);
  m.def(
      "set_resident_blocks", [](int64_t blocks) { host::resident_blocks() = blocks; }, "blocks"_a);
  m.def(
      "take_trace",
      [](bool go_on) {  // the noted accesses, as the bytes of host::Access
        static std::vector<host::Access> accesses;
        const py::bytes noted(reinterpret_cast<const char*>(accesses.data()),
                              accesses.size() * sizeof(host::Access));
        std::vector<host::Access>().swap(accesses);
        host::trace() = go_on ? &accesses : nullptr;
        return noted;
      },
      "go_on"_a);
  m.def("take_counters", [] {
    const host::Counters counted = host::counters();
    host::counters() = {};
    return py::dict("launches"_a = counted.launches, "kernels_loaded"_a = counted.loaded.size(),
                    "bytes_loaded"_a = counted.bytes_loaded,
                    "bytes_stored"_a = counted.bytes_stored);
  });
}
#endif

}  // namespace
}  // namespace fused_optim

PYBIND11_MODULE(FUSED_OPTIM_MODULE, m) {
  using namespace fused_optim;
  m.doc() = "Kernels of fused_optim; fused_optim/backends/compiled.py is their caller.";
  m.attr("CHUNK_SIZE") = kChunkSize;
  m.attr("ARCHITECTURES") = FUSED_OPTIM_ARCHITECTURES;
  py::class_<PyLaunch>(m, "Launch", py::module_local())
      .def(py::init(&MakeLaunch), py::kw_only(), "device"_a, "stream"_a, "dtype"_a, "mode"_a,
           "tensors"_a, "records"_a, "rows"_a, "items"_a, "num_items"_a, "grad_scale"_a,
           "found_inf"_a, "clip"_a, "clip_stride"_a, "seed_low"_a, "seed_high"_a, "shapes"_a = 0,
           "threads"_a = 1);
  DefineElementwise(m);
  DefineAdafactor(m);
  DefineMachine(m);
#ifdef FUSED_OPTIM_HOST
  DefineHost(m);
#endif
}
