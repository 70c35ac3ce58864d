// One path: the kernels, compiled for the instructions that the including file has chosen.
#define QGRU_MEMBER inline __attribute__((always_inline))

#include "vector.h"

#include "pack.h"

#include "fast.h"

#include "backward.h"

#include "exact.h"

#include "digest.h"
