// The gradient's walk over time, in float32: what the forward pass kept times what comes back through R.
// The products over all steps (dW, dR, dx) are left to the caller.

constexpr int64_t PANEL = 2 * LANES;

// R in panels of PANEL columns: [panel][3 * hidden][PANEL].
static void pack_panels(const float* R, int64_t hidden, float* panels, const ParallelFor& parallel) {
  parallel((hidden + PANEL - 1) / PANEL, [&](int64_t panel) {
    const int64_t columns = std::min(PANEL, hidden - panel * PANEL);
    float* const to = panels + panel * 3 * hidden * PANEL;
    for (int64_t k = 0; k < 3 * hidden; ++k)
      std::memcpy(to + k * PANEL, R + k * hidden + panel * PANEL, static_cast<size_t>(columns) * sizeof(float));
  });
}

// dh[T][PANEL] += rows[T] @ panel
template <int T>
QGRU_INLINE void add_product(const float* rows, int64_t depth, const float* panel, float* dh, int64_t width) {
  F sums[T][2];
  for (int r = 0; r < T; ++r)
    for (int half = 0; half < 2; ++half) sums[r][half] = load<F>(dh + r * width + half * LANES);
  for (int64_t k = 0; k < depth; ++k) {
    const F right[2] = {load<F>(panel + k * PANEL), load<F>(panel + k * PANEL + LANES)};
#pragma GCC unroll 8
    for (int r = 0; r < T; ++r) {
      const F left = all(rows[r * depth + k]);
      sums[r][0] = left * right[0] + sums[r][0];
      sums[r][1] = left * right[1] + sums[r][1];
    }
  }
  for (int r = 0; r < T; ++r)
    for (int half = 0; half < 2; ++half) store(dh + r * width + half * LANES, sums[r][half]);
}

class WalkBack {
 public:
  WalkBack(const Backward& b, const float* panels, int64_t part)
      : b_(b), panels_(panels), rows_(rows_of(part, b.parts, b.batch)), count_(rows_.end - rows_.begin),
        width_((b.hidden + PANEL - 1) / PANEL * PANEL), biases_(b.biases + part * 4 * b.hidden), dh_(count_ * width_),
        sums_(4 * b.hidden) {}

  void run() {
    if (b_.d_last) copy(b_.d_last + rows_.begin * b_.hidden, b_.hidden, dh_, width_);
    for (int64_t index = 0; index < b_.time; ++index) step(b_.reverse ? index : b_.time - 1 - index);
    copy(dh_, width_, b_.dh + rows_.begin * b_.hidden, b_.hidden);
  }

 private:
  void copy(const float* from, int64_t from_row, float* to, int64_t to_row) const {
    for (int64_t row = 0; row < count_; ++row)
      std::memcpy(to + row * to_row, from + row * from_row, static_cast<size_t>(b_.hidden) * sizeof(float));
  }

  void step(int64_t t) {
    const int64_t H = b_.hidden, first = t * b_.batch + rows_.begin;
    std::fill_n(static_cast<float*>(sums_), 4 * H, 0.0f);
    for (int64_t row = 0; row < count_; ++row) {
      const float* const d_state = b_.d_states ? b_.d_states + (first + row) * b_.row : nullptr;
      pointwise(first + row, d_state, dh_ + row * width_);
    }
    for (int64_t i = 0; i < 4 * H; ++i) biases_[i] += static_cast<double>(sums_[i]);
    for (int64_t panel = 0; panel * PANEL < H; ++panel) {
      for_tiles(count_, [&](int64_t row, auto tile) {
        add_product<decltype(tile)::value>(b_.dRh + (first + row) * 3 * H, 3 * H, panels_ + panel * 3 * H * PANEL,
                                           dh_ + row * width_ + panel * PANEL, width_);
      });
    }
  }

  void pointwise(int64_t line, const float* d_state, float* __restrict dh) {
    const int64_t H = b_.hidden;
    const float* const factors = b_.factors + line * FACTORS * H;
    const uint8_t* const passed = b_.passed + line * H;
    float* const dWx = b_.dWx + line * 3 * H;
    float* const dRh = b_.dRh + line * 3 * H;
    float* const sums = sums_;
    const auto through = [](bool inside, float value) { return inside ? value : 0.0f; };
#pragma GCC ivdep
    for (int64_t u = 0; u < H; ++u) {
      const float d_next = dh[u] + (d_state ? d_state[u] : 0.0f);
      const float dz = d_next * factors[FACTOR_Z * H + u], dg = d_next * factors[FACTOR_G * H + u];
      const float dr = dg * factors[FACTOR_R * H + u], dc = dg * factors[FACTOR_C * H + u];
      const uint8_t bits = passed[u];
      dh[u] = d_next * factors[FACTOR_H * H + u];
      dWx[u] = through(bits & 1, dr);
      dWx[H + u] = through(bits & 2, dz);
      dWx[2 * H + u] = through(bits & 4, dg);
      dRh[u] = through(bits & 8, dr);
      dRh[H + u] = through(bits & 16, dz);
      dRh[2 * H + u] = through(bits & 32, dc);
      sums[u] += dr;
      sums[H + u] += dz;
      sums[2 * H + u] += dg;
      sums[3 * H + u] += dc;
    }
  }

  const Backward& b_;
  const float* const panels_;
  const Rows rows_;
  const int64_t count_, width_;
  double* const biases_;
  Buffer<float> dh_, sums_;
};

static void backward(const Backward& b, const ParallelFor& parallel) {
  Buffer<float> panels((b.hidden + PANEL - 1) / PANEL * 3 * b.hidden * PANEL);
  pack_panels(b.R, b.hidden, panels, parallel);
  parallel(b.parts, [&](int64_t part) { WalkBack(b, panels, part).run(); });
}
