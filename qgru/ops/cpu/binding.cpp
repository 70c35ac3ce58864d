// The kernels as torch ops, on torch's stable ABI: one binary for every Python, and torch from 2.10 on.
#include <Python.h>
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <stdexcept>
#include <vector>

#include "layer.h"

namespace {

using torch::stable::Tensor;
using Tensors = std::vector<Tensor>;

const qgru::Path& path_of(int64_t index) {
#if defined(__x86_64__)
  if (index == 1) return qgru::avx2;
  if (index == 2) return qgru::avx512;
#endif
  if (index != 0) throw std::invalid_argument("qgru_cpu: this machine has no such path");
  return qgru::plain;
}

// How many of plain, avx2, avx512 this machine runs.
int64_t paths() {
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

void parallel(int64_t parts, const std::function<void(int64_t)>& part) {
  torch::stable::parallel_for(0, parts, 1, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) part(i);
  });
}

int64_t parts_of(int64_t batch) { return std::clamp<int64_t>(torch::stable::get_num_threads(), 1, batch); }

template <class T>
T* data(const Tensor& tensor) {
  return tensor.numel() ? static_cast<T*>(tensor.data_ptr()) : nullptr;
}

// `numbers`: lo, hi, exponent of the 14 activations in the order of `Grids`, then lo, hi of the four weights.
void read_grids(const int64_t* numbers, qgru::Forward& f) {
  qgru::Grid* const grids[] = {&f.on.x, &f.on.h, &f.on.Wx, &f.on.Rh, &f.on.z_pre, &f.on.z_out, &f.on.r_pre,
                               &f.on.r_out, &f.on.g_pre, &f.on.g_out, &f.on.rRh, &f.on.old_contrib,
                               &f.on.new_contrib, &f.on.Rh_add_br};
  for (qgru::Grid* grid : grids) {
    *grid = {numbers[0], numbers[1], static_cast<int>(numbers[2])};
    numbers += 3;
  }
  for (qgru::Grid& grid : f.weights) {
    grid = {numbers[0], numbers[1], 0};
    numbers += 2;
  }
}

void forward(Tensor x, Tensor h0, Tensors parameters, Tensor exponents, Tensor active, Tensors plan, Tensors outputs,
             int64_t column, bool reverse, bool exact, int64_t path) {
  qgru::Forward f{};
  f.time = x.size(0), f.batch = x.size(1), f.input = x.size(2), f.hidden = h0.size(1);
  f.reverse = reverse;
  f.parts = static_cast<int>(parts_of(f.batch));
  read_grids(data<int64_t>(plan[0]), f);
  f.exponents = data<int32_t>(exponents);
  f.x = x.data_ptr(), f.h0 = h0.data_ptr();
  for (int i = 0; i < 4; ++i) f.parameters[i] = parameters[i].data_ptr();
  f.active = data<uint8_t>(active);
  int64_t start = 0;
  for (int gate = 0; gate < 3; ++gate) {
    f.integers[gate] = data<int64_t>(plan[1]) + start;
    f.values[gate] = data<float>(plan[2]) + start;
    f.slopes[gate] = data<float>(plan[3]) + start;
    const qgru::Grid& pre = gate == qgru::R ? f.on.r_pre : gate == qgru::Z ? f.on.z_pre : f.on.g_pre;
    start += pre.hi - pre.lo + 1;
  }
  f.row = outputs[0].size(2);
  const size_t bytes = exact ? sizeof(double) : sizeof(float);
  f.states = static_cast<char*>(outputs[0].data_ptr()) + static_cast<size_t>(column) * bytes;
  f.last = outputs[1].data_ptr();
  f.lost = data<uint8_t>(outputs[2]);
  f.factors = data<float>(outputs[3]);
  f.passed = data<uint8_t>(outputs[4]);
  (exact ? path_of(path).exact : path_of(path).fast)(f, parallel);
}

void backward(Tensor d_states, Tensor d_last, Tensor R, Tensor factors, Tensor passed, Tensors outputs, int64_t column,
              bool reverse, int64_t path) {
  qgru::Backward b{};
  b.time = factors.size(0), b.batch = factors.size(1), b.hidden = R.size(1);
  b.reverse = reverse;
  b.parts = static_cast<int>(outputs[3].size(0));
  if (d_states.numel()) b.d_states = data<float>(d_states) + column, b.row = d_states.size(2);
  b.d_last = data<float>(d_last);
  b.R = data<float>(R);
  b.factors = data<float>(factors);
  b.passed = data<uint8_t>(passed);
  b.dWx = data<float>(outputs[0]), b.dRh = data<float>(outputs[1]), b.dh = data<float>(outputs[2]);
  b.biases = data<double>(outputs[3]);
  path_of(path).backward(b, parallel);
}

}  // namespace

STABLE_TORCH_LIBRARY(qgru_cpu, m) {
  m.def("paths() -> int");
  m.def("parts(int batch) -> int");
  m.def(
      "forward(Tensor x, Tensor h0, Tensor[] parameters, Tensor exponents, Tensor active, Tensor[] plan, "
      "Tensor(a!)[] outputs, int column, bool reverse, bool exact, int path) -> ()");
  m.def(
      "backward(Tensor d_states, Tensor d_last, Tensor R, Tensor factors, Tensor passed, Tensor(a!)[] outputs, "
      "int column, bool reverse, int path) -> ()");
}

STABLE_TORCH_LIBRARY_IMPL(qgru_cpu, CompositeExplicitAutograd, m) {
  m.impl("paths", TORCH_BOX(&paths));
  m.impl("parts", TORCH_BOX(&parts_of));
}

STABLE_TORCH_LIBRARY_IMPL(qgru_cpu, CPU, m) {
  m.impl("forward", TORCH_BOX(&forward));
  m.impl("backward", TORCH_BOX(&backward));
}

// An empty module: importing it registers the ops.
extern "C" PyObject* PyInit__kernels() {
  static PyModuleDef definition = {PyModuleDef_HEAD_INIT, "_kernels", nullptr, -1, nullptr, nullptr, nullptr, nullptr,
                                   nullptr};
  return PyModule_Create(&definition);
}
