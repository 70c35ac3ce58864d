// The kernels as C functions, called by kernels.py: no header of Python or torch, so one library serves every version.
#include <exception>

#include "layer.h"

#define QGRU_EXPORT extern "C" __attribute__((visibility("default")))

namespace {

int64_t paths_here() {
#if defined(__x86_64__)
  if (!__builtin_cpu_supports("avx2") || !__builtin_cpu_supports("fma")) return 1;
  const bool wide = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                    __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") &&
                    __builtin_cpu_supports("avx512vnni");
  return wide ? 3 : 2;
#else
  return 1;
#endif
}

const qgru::Path& path_of([[maybe_unused]] int64_t index) {
#if defined(__x86_64__)
  if (index == 1) return qgru::avx2;
  if (index == 2) return qgru::avx512;
#endif
  return qgru::plain;
}

qgru::ParallelFor threads_of(qgru::TorchParallelFor parallel_for) {
  return [parallel_for](int64_t parts, const std::function<void(int64_t)>& part) {
    if (parts == 1) return part(0);
    const auto range = [](int64_t begin, int64_t end, void* part) {
      for (; begin < end; ++begin) (*static_cast<const std::function<void(int64_t)>*>(part))(begin);
    };
    auto* const context = const_cast<void*>(static_cast<const void*>(&part));
    if (parallel_for(0, parts, 1, range, context) != 0) throw std::bad_alloc();  // all that a part throws
  };
}

// Returns null, or what went wrong.
template <class Call>
const char* guarded(const Call& call) {
  try {
    call();
    return nullptr;
  } catch (const std::bad_alloc&) {
    return "out of memory";
  } catch (...) {
    return "an unknown C++ exception";
  }
}

}  // namespace

// Of the structures, for the caller to compare with its own.
QGRU_EXPORT const int64_t qgru_sizes[] = {sizeof(qgru::Forward), sizeof(qgru::Backward), sizeof(qgru::Steps)};

// How many of plain, avx2, avx512 this machine runs.
QGRU_EXPORT int64_t qgru_paths() { return paths_here(); }

// Tells contents of memory apart, within one process.
QGRU_EXPORT uint64_t qgru_digest(const void* data, int64_t bytes, int64_t path) {
  return path_of(path).digest(data, bytes);
}

// Makes what `Forward::prepared` points to, for any number of calls with the same grids and exponents.
QGRU_EXPORT const char* qgru_prepare(const qgru::Forward* f, int64_t path, bool exact, const qgru::Prepared** made) {
  const qgru::Path& kernels = path_of(path);
  return guarded([&] { *made = (exact ? kernels.exact : kernels.fast)(*f, threads_of(f->parallel_for)).release(); });
}

QGRU_EXPORT void qgru_release(const qgru::Prepared* prepared) { delete prepared; }

QGRU_EXPORT const char* qgru_forward(const qgru::Forward* f, int64_t path, bool exact) {
  const qgru::Path& kernels = path_of(path);
  return guarded([&] {
    const qgru::ParallelFor threads = threads_of(f->parallel_for);
    if (f->prepared) return static_cast<const qgru::Prepared*>(f->prepared)->run(*f, threads);
    (exact ? kernels.exact : kernels.fast)(*f, threads)->run(*f, threads);
  });
}

// Returns 0, 1 where the weights or grids have changed, and nothing was run, or 2 where memory runs out.
QGRU_EXPORT int qgru_step(qgru::Steps* s, int64_t batch, int parts, const float* x, const float* h0, float* y,
                          float* last) {
  if (!qgru::are_unchanged(*s, path_of(s->path))) return 1;
  return guarded([&] { qgru::run_step(*s, batch, parts, x, h0, y, last, threads_of(s->parallel_for)); }) ? 2 : 0;
}

QGRU_EXPORT const char* qgru_backward(const qgru::Backward* b, int64_t path) {
  return guarded([&] { path_of(path).backward(*b, threads_of(b->parallel_for)); });
}
