// Weights of 8-bit integers on their grid, in the order in which the matrix products read them.

// [unit block][group of inputs][gate][lane][input in the group], and each channel's sum.
struct Packed {
  int64_t groups, blocks;
  Buffer<Weight> weights;
  Buffer<int32_t> sums;   // [unit block][gate][lane]: what the codes' offset contributes
  Buffer<float> scales;   // [unit block][gate][lane]: to the product's grid

  Packed(int64_t hidden, int64_t inputs)
      : groups((inputs + GROUP - 1) / GROUP),
        blocks((hidden + LANES - 1) / LANES),
        weights(groups * blocks * 3 * LANES * GROUP),
        sums(blocks * 3 * LANES),
        scales(blocks * 3 * LANES) {}

  const Weight* block(int64_t b) const { return static_cast<const Weight*>(weights) + b * groups * 3 * LANES * GROUP; }
};

static float power(int exponent) { return static_cast<float>(std::ldexp(1.0, exponent)); }

// `exponents`: one for each of the 3 * hidden rows of `matrix`; `from` and `to` are the grids of codes and products.
static void pack(Packed& packed, const float* matrix, int64_t hidden, int64_t inputs, const int32_t* exponents,
                 const Grid& grid, const Grid& from, const Grid& to, const ParallelFor& parallel) {
  parallel(packed.blocks, [&](int64_t block) {
    Weight* const weights = const_cast<Weight*>(packed.block(block));
    const int64_t units = std::min<int64_t>(LANES, hidden - block * LANES);
    const float lo = static_cast<float>(grid.lo), hi = static_cast<float>(grid.hi);
    for (int gate = 0; gate < 3; ++gate) {
      for (int64_t lane = 0; lane < units; ++lane) {
        const int64_t channel = gate * hidden + block * LANES + lane, at = (block * 3 + gate) * LANES + lane;
        const float* row = matrix + channel * inputs;
        const float steps = power(exponents[channel]);
        int32_t sum = 0;
        for (int64_t k = 0; k < inputs; ++k) {
          float q = std::nearbyintf(row[k] * steps);
          q = q > lo ? q : lo;  // a NaN too
          q = q < hi ? q : hi;
          const int32_t integer = static_cast<int32_t>(q);
          weights[((k / GROUP * 3 + gate) * LANES + lane) * GROUP + k % GROUP] = static_cast<Weight>(integer);
          sum += integer;
        }
        packed.sums[at] = sum * static_cast<int32_t>(from.lo);
        packed.scales[at] = power(to.exponent - from.exponent - exponents[channel]);
      }
    }
  });
}

// Sums of products of `R` rows of codes (`stride` apart) with one block of units.
template <int R>
QGRU_INLINE void product(const Code* codes, int64_t stride, const Packed& packed, int64_t block, I sums[R][3]) {
  for (int r = 0; r < R; ++r)
    for (int gate = 0; gate < 3; ++gate)
      sums[r][gate] = load<I>(static_cast<const int32_t*>(packed.sums) + (block * 3 + gate) * LANES);
  const Weight* weights = packed.block(block);
  int64_t group = 0;
  if (R == 1) {  // a row alone waits for its sums: every other group goes into sums of its own
    I others[3]{};
    for (; group + 2 <= packed.groups; group += 2, weights += 6 * LANES * GROUP) {
#pragma GCC unroll 3
      for (int gate = 0; gate < 3; ++gate) {
        const Weight* const own = weights + gate * LANES * GROUP;
        sums[0][gate] = dot(sums[0][gate], codes + group * GROUP, own);
        others[gate] = dot(others[gate], codes + (group + 1) * GROUP, own + 3 * LANES * GROUP);
      }
    }
    for (int gate = 0; gate < 3; ++gate) sums[0][gate] += others[gate];
  }
  for (; group < packed.groups; ++group, weights += 3 * LANES * GROUP) {
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) {
#pragma GCC unroll 3
      for (int gate = 0; gate < 3; ++gate)
        sums[r][gate] = dot(sums[r][gate], codes + r * stride + group * GROUP, weights + gate * LANES * GROUP);
    }
  }
}

// Calls `tile(row, std::integral_constant<int, R>)` on all rows, as many at a time as registers hold.
template <class Tile>
QGRU_INLINE void for_tiles(int64_t rows, const Tile& tile) {
  int64_t row = 0;
  for (; row + ROWS <= rows; row += ROWS) tile(row, std::integral_constant<int, ROWS>());
  for (; row + 2 <= rows; row += 2) tile(row, std::integral_constant<int, 2>());
  if (row < rows) tile(row, std::integral_constant<int, 1>());
}
