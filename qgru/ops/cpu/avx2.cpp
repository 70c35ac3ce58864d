// The path of x86-64 with AVX2 and FMA.
#if defined(__x86_64__)
#include <immintrin.h>

#include <type_traits>

#include "layer.h"

// What comes before is compiled for every machine: the linker may share it among paths.
#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx2,fma"))), apply_to = function)
#else
#pragma GCC target("avx2,fma")
#endif
#define QGRU_AVX2

namespace qgru {
namespace {
#include "path.h"
}  // namespace

extern const Path avx2;
const Path avx2{prepare_fast, prepare_exact, backward, digest};
}  // namespace qgru

#if defined(__clang__)
#pragma clang attribute pop
#endif
#endif
