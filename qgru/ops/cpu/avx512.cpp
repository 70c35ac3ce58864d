// The path of x86-64 with AVX-512 and its 8-bit products.
#if defined(__x86_64__)
#include <immintrin.h>

#include <type_traits>

#include "layer.h"

// What comes before is compiled for every machine: the linker may share it among paths.
#if defined(__clang__)
#pragma clang attribute push(__attribute__((target( \
    "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma"))), apply_to = function)
#else
#pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma,prefer-vector-width=512")
#endif
#define QGRU_AVX512

namespace qgru {
namespace {
#include "path.h"
}  // namespace

extern const Path avx512;
const Path avx512{prepare_fast, prepare_exact, backward, digest};
}  // namespace qgru

#if defined(__clang__)
#pragma clang attribute pop
#endif
#endif
