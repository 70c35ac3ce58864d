// What the kernels are called with, and the paths that a machine may have.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <functional>
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
  TorchParallelFor parallel_for;
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

struct Path {
  void (*fast)(const Forward&, const ParallelFor&);   // 8-bit operands, float32 exact elsewhere
  void (*exact)(const Forward&, const ParallelFor&);  // the exactness domain, int64
  void (*backward)(const Backward&, const ParallelFor&);
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

}  // namespace qgru
