// What the kernels are called with, and the paths that a machine may have.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <memory>
#include <new>

#include "core.h"

namespace qgru {

// Runs a function on [0, parts), the parts in parallel.
using ParallelFor = std::function<void(int64_t parts, const std::function<void(int64_t)>&)>;

// `torch_parallel_for` of torch's stable C ABI: its own threads, so that none fight over the cores. 0 is success.
using TorchParallelFor = int32_t (*)(int64_t begin, int64_t end, int64_t grain,
                                     void (*range)(int64_t begin, int64_t end, void* context), void* context);

constexpr int FACTORS = 5;  // what the forward pass keeps of each unit and step, see `Factor`

// With dh the gradient of a new state: dz_pre = Z dh, dg_pre = G dh, dr_pre = R dg_pre, dc = C dg_pre; the old state
// gets H dh directly. Clamped quantizers have put zeros here.
enum Factor { FACTOR_H, FACTOR_Z, FACTOR_G, FACTOR_R, FACTOR_C };

// One layer and direction, as kernels.py fills it in. Arrays are contiguous; reals are float for `fast` and double for
// `exact`.
struct Forward {
  int64_t time, batch, input, hidden;
  bool reverse;
  int parts;                    // of the batch, one for each thread
  Grids on;
  Grid weights[4];              // W, R, bw, br without their exponents
  const int32_t* exponents;     // (4, 3 * hidden)
  const void *x, *h0;           // (time, batch, input), (batch, hidden)
  const void* parameters[4];    // (3 * hidden, input), (3 * hidden, hidden), (3 * hidden), (3 * hidden)
  const uint8_t* active;        // (time, batch), or null
  const int64_t* integers[3];   // tables of r, z, g from the mantissa `pre.lo` on: mantissas,
  const float* values[3];       // numbers,
  const float* slopes[3];       // and derivatives, 0 where the output clamps
  void* states;                 // (time, batch, hidden), rows `row` elements apart
  int64_t row;
  void* last;                   // (batch, hidden)
  float* factors;               // (time, batch, FACTORS, hidden), or null at inference
  uint8_t* passed;              // (time, batch, hidden), or null: bits 0..2 for Wx, 3..5 for Rh: not clamped
  uint8_t* lost;                // (time, batch): set to 1 where x has a NaN, else 0
  const void* prepared;         // a `Prepared` of the same weights and grids, or null: made for this call alone
  TorchParallelFor parallel_for;
};

// A layer's weights in the form that one path's walk reads. `f` gives the grids and exponents that they are on.
class Prepared {
 public:
  virtual ~Prepared() = default;
  virtual void run(const Forward& f, const ParallelFor& parallel) const = 0;
};

// As kernels.py fills it in.
struct Backward {
  int64_t time, batch, hidden;
  bool reverse;
  int parts;
  const float* d_states;        // (time, batch, hidden), rows `row` elements apart, or null
  int64_t row;
  const float* d_last;          // (batch, hidden), or null
  const float* R;               // (3 * hidden, hidden), dequantized
  const float* factors;
  const uint8_t* passed;
  float *dWx, *dRh;             // (time, batch, 3 * hidden)
  float* dh;                    // (batch, hidden), of the dequantized h0
  double* biases;               // (parts, 4, hidden): sums of dr_pre, dz_pre, dg_pre, dc
  TorchParallelFor parallel_for;
};

using Prepare = std::unique_ptr<const Prepared> (*)(const Forward&, const ParallelFor&);

struct Path {
  Prepare fast;   // 8-bit operands, float32 exact elsewhere
  Prepare exact;  // the exactness domain, int64
  void (*backward)(const Backward&, const ParallelFor&);
  uint64_t (*digest)(const void* data, int64_t bytes);
};

// Memory that something was made from, and what was in it then.
struct Region {
  const void* data;
  int64_t bytes;
  uint64_t digest;
};

// A stack of one-directional layers on prepared weights, for one time step a call; as kernels.py fills it in.
struct Steps {
  int64_t layers, path;
  const Forward* of_layers;       // all but what a call brings
  const bool* exact;              // of every layer: its weights were prepared by `exact`, whose reals are double
  int64_t always, others;         // regions that every call looks at, and behind them those that take turns:
  int64_t window, turn;           // how many of these a call looks at, and where it begins
  const Region* of_regions;       // what the weights and grids were made from
  TorchParallelFor parallel_for;
};

extern const Path plain;
#if defined(__x86_64__)
extern const Path avx2, avx512;
#endif

// A zeroed array, aligned to a cache line.
template <class T>
class Buffer {
 public:
  explicit Buffer(int64_t size) {
    const size_t bytes = (static_cast<size_t>(size) * sizeof(T) + 64) / 64 * 64;
    data_ = static_cast<T*>(std::aligned_alloc(64, bytes));
    if (!data_) throw std::bad_alloc();
    std::memset(static_cast<void*>(data_), 0, bytes);
  }
  ~Buffer() { std::free(data_); }
  Buffer(const Buffer&) = delete;
  Buffer& operator=(const Buffer&) = delete;
  operator T*() { return data_; }
  operator const T*() const { return data_; }

 private:
  T* data_;
};

struct Rows {
  int64_t begin, end;
};

inline Rows rows_of(int64_t part, int64_t parts, int64_t batch) {
  return {batch * part / parts, batch * (part + 1) / parts};
}

// Whether the regions hold what they did, of those that it is the turn of.
bool are_unchanged(Steps& s, const Path& path);

// Runs one time step: x (batch, input) and h0 (layers, batch, hidden), or null for zeros, to y (batch, hidden) and
// last (layers, batch, hidden). A NaN in a row of a layer's input or state makes all of that row NaN.
void run_step(const Steps& s, int64_t batch, int parts, const float* x, const float* h0, float* y, float* last,
              const ParallelFor& parallel);

}  // namespace qgru
