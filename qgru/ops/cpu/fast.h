// The walk over time where operands have 8 bits and float32 holds every other sum exactly.
// Each part of the batch walks alone; inputs are projected for as many steps at a time as give full tiles.

constexpr int64_t PROJECTED_ROWS = 64;
constexpr float MAGIC = 12582912.0f;  // 1.5 * 2^23: adding it rounds a float below 2^22 to an integer, half to even

// A grid's ends, moved by MAGIC, and back.
struct Rounder {
  F lo, hi;
  explicit Rounder(const Grid& grid)
      : lo(all(MAGIC + static_cast<float>(grid.lo))), hi(all(MAGIC + static_cast<float>(grid.hi))) {}
  // rne(a * b + c) of an exact sum, clamped; `inside` gets all ones where it was not.
  QGRU_MEMBER F operator()(F a, F b, F c, I& inside) const { return clamped(fma(a, b, c) + all(MAGIC), inside); }
  // rne(a * b), clamped.
  QGRU_MEMBER F operator()(F a, F b, I& inside) const { return clamped(fma(a, b, all(MAGIC)), inside); }

 private:
  QGRU_MEMBER F clamped(F steps, I& inside) const {
    const F kept = clamp(steps, lo, hi);
    inside = kept == steps;
    return kept - all(MAGIC);
  }
};

struct Numbers {
  Rounder Wx, Rh, r_pre, z_pre, g_pre, c, m, old_contrib, new_contrib, h;
  F r_from_Wx, z_from_Wx, g_from_Wx, r_from_Rh, z_from_Rh, c_from_Rh, m_from_c, g_from_m;
  F old_from_h, new_from_g, h_from_old, h_from_new, h_unit, c_unit;
  F r_lo, z_lo, g_lo, h_lo;

  explicit Numbers(const Grids& on)
      : Wx(on.Wx), Rh(on.Rh), r_pre(on.r_pre), z_pre(on.z_pre), g_pre(on.g_pre), c(on.Rh_add_br), m(on.rRh),
        old_contrib(on.old_contrib), new_contrib(on.new_contrib), h(on.h) {
    const auto scale = [](const Grid& from, const Grid& to) { return all(power(to.exponent - from.exponent)); };
    r_from_Wx = scale(on.Wx, on.r_pre), z_from_Wx = scale(on.Wx, on.z_pre), g_from_Wx = scale(on.Wx, on.g_pre);
    r_from_Rh = scale(on.Rh, on.r_pre), z_from_Rh = scale(on.Rh, on.z_pre), c_from_Rh = scale(on.Rh, on.Rh_add_br);
    m_from_c = scale(on.Rh_add_br, on.rRh), g_from_m = scale(on.rRh, on.g_pre);
    old_from_h = scale(on.h, on.old_contrib), new_from_g = all(power(on.new_contrib.exponent));
    h_from_old = scale(on.old_contrib, on.h), h_from_new = scale(on.new_contrib, on.h);
    h_unit = all(power(-on.h.exponent)), c_unit = all(power(-on.Rh_add_br.exponent));
    const auto lo = [](const Grid& grid) { return all(static_cast<float>(grid.lo)); };
    r_lo = lo(on.r_pre), z_lo = lo(on.z_pre), g_lo = lo(on.g_pre), h_lo = lo(on.h);
  }
};

// Biases on the grids of the sums they go into: of r and z bw + br, of g bw, and br of c; [unit block][4][lane].
static void fold_biases(const Forward& f, float* biases) {
  const int64_t H = f.hidden;
  const auto bias = [&](int which, int64_t channel, const Grid& on) {
    const float value = static_cast<const float*>(f.parameters[which])[channel];
    const int exponent = f.exponents[which * 3 * H + channel];
    const Grid own{f.weights[which].lo, f.weights[which].hi, exponent};
    return std::ldexp(static_cast<double>(quantize(value, own).mantissa), on.exponent - exponent);
  };
  for (int64_t u = 0; u < H; ++u) {
    float* const at = biases + u / LANES * 4 * LANES + u % LANES;
    at[0] = static_cast<float>(bias(2, u, f.on.r_pre) + bias(3, u, f.on.r_pre));
    at[LANES] = static_cast<float>(bias(2, H + u, f.on.z_pre) + bias(3, H + u, f.on.z_pre));
    at[2 * LANES] = static_cast<float>(bias(2, 2 * H + u, f.on.g_pre));
    at[3 * LANES] = static_cast<float>(bias(3, 2 * H + u, f.on.Rh_add_br));
  }
}

struct Layer {
  const Numbers n;
  Packed W, R;
  Buffer<float> biases;

  Layer(const Forward& f, const ParallelFor& parallel)
      : n(f.on), W(f.hidden, f.input), R(f.hidden, f.hidden), biases(R.blocks * 4 * LANES) {
    const auto matrix = [&](int i) { return static_cast<const float*>(f.parameters[i]); };
    pack(W, matrix(0), f.hidden, f.input, f.exponents, f.weights[0], f.on.x, f.on.Wx, parallel);
    pack(R, matrix(1), f.hidden, f.hidden, f.exponents + 3 * f.hidden, f.weights[1], f.on.h, f.on.Rh, parallel);
    fold_biases(f, biases);
  }
};

// Quantizes a row of reals to codes from the grid's `lo`; returns 1 where one is a NaN.
static uint8_t encode(const float* row, int64_t size, const Grid& grid, Code* codes) {
  const float steps = power(grid.exponent), lo = static_cast<float>(grid.lo), hi = static_cast<float>(grid.hi);
  uint32_t lost = 0;
  for (int64_t i = 0; i < size; ++i) {
    float q = row[i] * steps;
    lost |= q != q;
    q = q > lo ? q : lo;
    q = q < hi ? q : hi;
    codes[i] = static_cast<Code>(static_cast<int32_t>((q + MAGIC) - MAGIC) - static_cast<int32_t>(grid.lo));
  }
  return static_cast<uint8_t>(lost);
}

template <bool TRAIN>
class Walk {
 public:
  Walk(const Layer& layer, const Forward& f, Rows rows)
      : l_(layer), f_(f), rows_(rows), count_(rows.end - rows.begin), width_(layer.R.blocks * LANES),
        input_((f_.input + 3) / 4 * 4), steps_(std::clamp<int64_t>(PROJECTED_ROWS / count_, 1, f_.time)),
        codes_{Buffer<Code>(count_ * width_), Buffer<Code>(count_ * width_)}, x_(steps_ * count_ * input_),
        h_(count_ * width_), projected_(steps_ * count_ * 3 * width_), passed_(TRAIN ? steps_ * count_ * width_ : 0) {}

  void run() {
    start();
    int now = 0;
    for (int64_t first = 0; first < f_.time; first += steps_) {
      const int64_t steps = std::min(steps_, f_.time - first);
      project(first, steps);
      for (int64_t s = 0; s < steps; ++s, now ^= 1)
        step(first + s, s * count_, steps * count_, codes_[now], codes_[now ^ 1]);
    }
    finish();
  }

 private:
  int64_t time_of(int64_t index) const { return f_.reverse ? f_.time - 1 - index : index; }

  void start() {
    const float lo = static_cast<float>(f_.on.h.lo);
    for (int64_t row = 0; row < count_; ++row) {
      Code* const codes = codes_[0] + row * width_;
      encode(static_cast<const float*>(f_.h0) + (rows_.begin + row) * f_.hidden, f_.hidden, f_.on.h, codes);
      for (int64_t u = 0; u < f_.hidden; ++u) h_[row * width_ + u] = static_cast<float>(codes[u]) + lo;
    }
  }

  void project(int64_t first, int64_t steps) {
    for (int64_t s = 0; s < steps; ++s) {
      for (int64_t row = 0; row < count_; ++row) {
        const int64_t at = time_of(first + s) * f_.batch + rows_.begin + row;
        f_.lost[at] = encode(static_cast<const float*>(f_.x) + at * f_.input, f_.input, f_.on.x,
                             x_ + (s * count_ + row) * input_);
      }
    }
    const int64_t rows = steps * count_;
    for (int64_t block = 0; block < l_.R.blocks; ++block) {
      for_tiles(rows, [&](int64_t row, auto tile) {
        constexpr int T = decltype(tile)::value;
        I sums[T][3];
        product<T>(x_ + row * input_, input_, l_.W, block, sums);
        for (int r = 0; r < T; ++r) keep_projection(sums[r], block, block * rows + row + r);
      });
    }
  }

  QGRU_MEMBER void keep_projection(const I (&sums)[3], int64_t block, int64_t at) {
    const Numbers& n = l_.n;
    const float* const scales = l_.W.scales + block * 3 * LANES;
    const float* const biases = l_.biases + block * 4 * LANES;
    float* const to = projected_ + at * 3 * LANES;
    const F shifts[3] = {n.r_from_Wx, n.z_from_Wx, n.g_from_Wx};
    I passed{};
    for (int gate = 0; gate < 3; ++gate) {
      I inside;
      const F Wx = n.Wx(__builtin_convertvector(sums[gate], F), load<F>(scales + gate * LANES), inside);
      store(to + gate * LANES, Wx * shifts[gate] + load<F>(biases + gate * LANES));
      passed |= inside & (1 << gate);
    }
    if (TRAIN) store(passed_ + at * LANES, __builtin_convertvector(passed, Bytes));
  }

  void step(int64_t index, int64_t row_of_step, int64_t rows, const Code* old_codes, Code* new_codes) {
    const int64_t t = time_of(index);
    for (int64_t block = 0; block < l_.R.blocks; ++block) {
      for_tiles(count_, [&](int64_t row, auto tile) {
        constexpr int T = decltype(tile)::value;
        I sums[T][3];
        product<T>(old_codes + row * width_, width_, l_.R, block, sums);
        for (int r = 0; r < T; ++r)
          update(sums[r], t, row + r, block, block * rows + row_of_step + row + r, new_codes + (row + r) * width_);
      });
    }
  }

  QGRU_MEMBER void update(const I (&sums)[3], int64_t t, int64_t row, int64_t block, int64_t at, Code* codes) {
    const Numbers& n = l_.n;
    const float* const scales = l_.R.scales + block * 3 * LANES;
    const float* const projected = projected_ + at * 3 * LANES;
    const F h = load<F>(h_ + row * width_ + block * LANES);
    I in_Rh[3], in_r, in_z, in_g, in_c, in_m, in_old, in_new, in_h;
    F Rh[3];
    for (int gate = 0; gate < 3; ++gate)
      Rh[gate] = n.Rh(__builtin_convertvector(sums[gate], F), load<F>(scales + gate * LANES), in_Rh[gate]);

    const F z_pre = n.z_pre(Rh[Z], n.z_from_Rh, load<F>(projected + Z * LANES), in_z);
    const F r_pre = n.r_pre(Rh[qgru::R], n.r_from_Rh, load<F>(projected), in_r);
    const I z_at = __builtin_convertvector(z_pre - n.z_lo, I), r_at = __builtin_convertvector(r_pre - n.r_lo, I);
    const F z = lookup(f_.values[Z], z_at), r = lookup(f_.values[qgru::R], r_at);
    const F c = n.c(Rh[G], n.c_from_Rh, load<F>(l_.biases + (block * 4 + 3) * LANES), in_c);
    const F m = n.m(r * n.m_from_c, c, in_m);
    const F g_pre = n.g_pre(m, n.g_from_m, load<F>(projected + G * LANES), in_g);
    const I g_at = __builtin_convertvector(g_pre - n.g_lo, I);
    const F g = lookup(f_.values[G], g_at);

    const F old_contrib = n.old_contrib(z * n.old_from_h, h, in_old);
    const F new_contrib = n.new_contrib((all(1) - z) * n.new_from_g, g, in_new);
    F next = n.h(old_contrib, n.h_from_old, new_contrib * n.h_from_new, in_h);

    const int64_t line = t * f_.batch + rows_.begin + row;
    const bool active = !f_.active || f_.active[line];
    if (!active) next = h;
    store(h_ + row * width_ + block * LANES, next);
    store(codes + block * LANES, __builtin_convertvector(__builtin_convertvector(next - n.h_lo, I), Codes));
    put(static_cast<float*>(f_.states) + line * f_.row, block, next * n.h_unit);
    if (!TRAIN) return;

    const auto where = [](I mask, F value) { return (F)((I)value & mask); };
    const F slope_z = lookup(f_.slopes[Z], z_at), slope_r = lookup(f_.slopes[qgru::R], r_at);
    const F slope_g = lookup(f_.slopes[G], g_at);
    const F d_z = where(in_old, h * n.h_unit) - where(in_new, g);
    F factors[FACTORS];
    factors[FACTOR_H] = where(in_h & in_old, z);
    factors[FACTOR_Z] = where(in_h & in_z, d_z * slope_z);
    factors[FACTOR_G] = where(in_h & in_new & in_g, (all(1) - z) * slope_g);
    factors[FACTOR_R] = where(in_m & in_r, c * n.c_unit * slope_r);
    factors[FACTOR_C] = where(in_m & in_c, r);
    if (!active) {
      for (F& factor : factors) factor = F{};
      factors[FACTOR_H] = all(1);
    }
    for (int i = 0; i < FACTORS; ++i) put(f_.factors + (line * FACTORS + i) * f_.hidden, block, factors[i]);
    const Bytes in_Wx = load<Bytes>(passed_ + at * LANES);
    const I bits = (in_Rh[0] & 8) | (in_Rh[1] & 16) | (in_Rh[2] & 32);
    put(f_.passed + line * f_.hidden, block, in_Wx | __builtin_convertvector(bits, Bytes));
  }

  template <class T, class V>
  QGRU_MEMBER void put(T* row, int64_t block, V values) const {
    const int64_t units = f_.hidden - block * LANES;
    if (units >= LANES) return store(row + block * LANES, values);
    T all_lanes[LANES];
    store(all_lanes, values);
    std::memcpy(row + block * LANES, all_lanes, static_cast<size_t>(units) * sizeof(T));
  }

  void finish() {
    const float unit = power(-f_.on.h.exponent);
    for (int64_t row = 0; row < count_; ++row)
      for (int64_t u = 0; u < f_.hidden; ++u)
        static_cast<float*>(f_.last)[(rows_.begin + row) * f_.hidden + u] = h_[row * width_ + u] * unit;
  }

  const Layer& l_;
  const Forward& f_;
  const Rows rows_;
  const int64_t count_, width_, input_, steps_;
  Buffer<Code> codes_[2], x_;
  Buffer<float> h_, projected_;
  Buffer<uint8_t> passed_;
};

class PreparedFast : public Prepared {
 public:
  PreparedFast(const Forward& f, const ParallelFor& parallel) : layer_(f, parallel) {}

  void run(const Forward& f, const ParallelFor& parallel) const override {
    parallel(f.parts, [&](int64_t part) {
      const Rows rows = rows_of(part, f.parts, f.batch);
      if (f.factors) Walk<true>(layer_, f, rows).run();
      else Walk<false>(layer_, f, rows).run();
    });
  }

 private:
  const Layer layer_;
};

static std::unique_ptr<const Prepared> prepare_fast(const Forward& f, const ParallelFor& parallel) {
  return std::make_unique<const PreparedFast>(f, parallel);
}
