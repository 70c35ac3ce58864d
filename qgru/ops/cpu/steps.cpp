// One time step of a stack of layers: what is around the kernels of a path.
#include <limits>

#include "layer.h"

namespace qgru {
namespace {

// A layer's reals as `exact` takes them.
class Doubles {
 public:
  Doubles(const Forward& f)
      : x_(f.batch * f.input), h0_(f.batch * f.hidden), states_(f.batch * f.hidden), last_(f.batch * f.hidden) {
    std::copy_n(static_cast<const float*>(f.x), f.batch * f.input, static_cast<double*>(x_));
    std::copy_n(static_cast<const float*>(f.h0), f.batch * f.hidden, static_cast<double*>(h0_));
  }

  void run(const Forward& f, const ParallelFor& parallel) {
    Forward own = f;
    own.x = x_, own.h0 = h0_, own.states = states_, own.last = last_;
    static_cast<const Prepared*>(f.prepared)->run(own, parallel);
    for (int64_t i = 0; i < f.batch * f.hidden; ++i)
      static_cast<float*>(f.states)[i] = static_cast<float*>(f.last)[i] = static_cast<float>(last_[i]);
  }

 private:
  Buffer<double> x_, h0_, states_, last_;
};

void spread_nan(const Forward& f) {
  for (int64_t row = 0; row < f.batch; ++row) {
    const float* const h0 = static_cast<const float*>(f.h0) + row * f.hidden;
    bool lost = f.lost[row];
    for (int64_t u = 0; u < f.hidden; ++u) lost |= h0[u] != h0[u];
    if (!lost) continue;
    for (void* const rows : {f.states, f.last})
      std::fill_n(static_cast<float*>(rows) + row * f.hidden, f.hidden, std::numeric_limits<float>::quiet_NaN());
  }
}

}  // namespace

bool are_unchanged(Steps& s, const Path& path) {
  const auto is_unchanged = [&](int64_t i) {
    return path.digest(s.of_regions[i].data, s.of_regions[i].bytes) == s.of_regions[i].digest;
  };
  const int64_t turn = __atomic_load_n(&s.turn, __ATOMIC_RELAXED);  // other threads may take a step as well
  for (int64_t i = 0; i < s.always; ++i)
    if (!is_unchanged(i)) return false;
  for (int64_t i = turn; i < turn + s.window; ++i)
    if (!is_unchanged(s.always + i % s.others)) return false;
  __atomic_store_n(&s.turn, (turn + s.window) % s.others, __ATOMIC_RELAXED);
  return true;
}

void run_step(const Steps& s, int64_t batch, int parts, const float* x, const float* h0, float* y, float* last,
              const ParallelFor& parallel) {
  const int64_t size = batch * s.of_layers[0].hidden;
  Buffer<uint8_t> lost(batch);
  const Buffer<float> zeros(h0 ? 0 : size);
  for (int64_t layer = 0; layer < s.layers; ++layer, x = last, last += size) {
    Forward f = s.of_layers[layer];
    f.batch = batch, f.parts = parts;
    f.x = x, f.h0 = h0 ? h0 + layer * size : static_cast<const float*>(zeros);
    f.states = y, f.last = last, f.lost = lost;
    if (s.exact[layer]) Doubles(f).run(f, parallel);
    else static_cast<const Prepared*>(f.prepared)->run(f, parallel);
    spread_nan(f);
  }
}

}  // namespace qgru
