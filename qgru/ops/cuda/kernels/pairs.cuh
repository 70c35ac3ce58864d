// A row of the gates' gradients, dWx or dRh: for every pair of units (gates r z, 2 terms, 2 units), then likewise g, 12
// numbers a pair. The rows of the products with them, and of W beside them, are in that order.
#pragma once
#include "base.cuh"

#define PAIRS_OF(hidden) ((hidden + 3) / 4 * 2)  // even: 16-byte stores
