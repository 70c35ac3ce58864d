// The walk over time in the whole exactness domain: `core.h` for every unit, products in int32 or int64.

// A matrix of integers, transposed: [inputs][3 * hidden].
template <class T>
class Matrix {
 public:
  Matrix(const double* matrix, int64_t channels, int64_t inputs, const int32_t* exponents, const Grid& grid)
      : channels_(channels), inputs_(inputs), data_(channels * inputs) {
    for (int64_t channel = 0; channel < channels; ++channel)
      for (int64_t k = 0; k < inputs; ++k) {
        const Grid own{grid.lo, grid.hi, exponents[channel]};
        data_[k * channels + channel] = static_cast<T>(quantize(matrix[channel * inputs + k], own).mantissa);
      }
  }

  // sums[channel] = the inner product of `vector` with the channel's row.
  void multiply(const int64_t* vector, T* __restrict sums) const {
    std::fill_n(sums, channels_, T{});
    for (int64_t k = 0; k < inputs_; ++k) {
      const T factor = static_cast<T>(vector[k]);
      const T* const row = data_ + k * channels_;
#pragma GCC ivdep
      for (int64_t channel = 0; channel < channels_; ++channel) sums[channel] += factor * row[channel];
    }
  }

  const T* data() const { return data_; }

 private:
  const int64_t channels_, inputs_;
  Buffer<T> data_;
};

template <class T>
class ExactWalk {
 public:
  ExactWalk(const Forward& f, const Matrix<T>& W, const Matrix<T>& R, const int64_t* bw, const int64_t* br)
      : f_(f), W_(W), R_(R), bw_(bw), br_(br), x_(f.input), h_(f.hidden), next_(f.hidden), Wx_(3 * f.hidden),
        Rh_(3 * f.hidden) {}

  void run(int64_t row) {
    const double* const h0 = static_cast<const double*>(f_.h0) + row * f_.hidden;
    for (int64_t u = 0; u < f_.hidden; ++u) h_[u] = quantize(h0[u], f_.on.h).mantissa;
    for (int64_t index = 0; index < f_.time; ++index) {
      const int64_t t = f_.reverse ? f_.time - 1 - index : index;
      advance(t * f_.batch + row);
    }
    for (int64_t u = 0; u < f_.hidden; ++u)
      static_cast<double*>(f_.last)[row * f_.hidden + u] = real(h_[u], f_.on.h.exponent);
  }

 private:
  void advance(int64_t line) {
    const double* const x = static_cast<const double*>(f_.x) + line * f_.input;
    f_.lost[line] = 0;
    for (int64_t i = 0; i < f_.input; ++i) {
      f_.lost[line] |= std::isnan(x[i]);
      x_[i] = quantize(x[i], f_.on.x).mantissa;
    }
    const bool active = !f_.active || f_.active[line];
    if (active || f_.factors) {
      W_.multiply(x_, Wx_);
      R_.multiply(h_, Rh_);
    }
    const auto gate = [&](int which, int64_t pre) { return f_.integers[which][pre - pre_grid(which).lo]; };
    for (int64_t u = 0; u < f_.hidden; ++u) {
      if (active) {
        const Step s = step(unit(u), h_[u], f_.on, gate);
        next_[u] = s.h.mantissa;
        if (f_.factors) keep(line, u, s);
      } else {
        next_[u] = h_[u];
        if (f_.factors) keep_padding(line, u);
      }
    }
    double* const state = static_cast<double*>(f_.states) + line * f_.row;
    for (int64_t u = 0; u < f_.hidden; ++u) state[u] = real(h_[u] = next_[u], f_.on.h.exponent);
  }

  const Grid& pre_grid(int gate) const { return gate == Z ? f_.on.z_pre : gate == R ? f_.on.r_pre : f_.on.g_pre; }

  Unit unit(int64_t u) const {
    const int64_t H = f_.hidden;
    Unit unit;
    for (const int gate : {R, Z, G}) {
      const int64_t channel = gate * H + u;
      unit.Wx[gate] = {static_cast<int64_t>(Wx_[channel]), f_.exponents[channel] + f_.on.x.exponent};
      unit.Rh[gate] = {static_cast<int64_t>(Rh_[channel]), f_.exponents[3 * H + channel] + f_.on.h.exponent};
      unit.bw[gate] = {bw_[channel], f_.exponents[6 * H + channel]};
      unit.br[gate] = {br_[channel], f_.exponents[9 * H + channel]};
    }
    return unit;
  }

  void keep(int64_t line, int64_t u, const Step& s) const {
    const auto slope = [&](int gate, const Quantized& pre) {
      return pre.inside ? static_cast<double>(f_.slopes[gate][pre.mantissa - pre_grid(gate).lo]) : 0.0;
    };
    const Grids& on = f_.on;
    const double z = real(s.z, on.z_out.exponent), r = real(s.r, on.r_out.exponent), g = real(s.g, on.g_out.exponent);
    const double c = real(s.c.mantissa, on.Rh_add_br.exponent), h = real(h_[u], on.h.exponent);
    const double d_old = s.h.inside && s.old_contrib.inside, d_new = s.h.inside && s.new_contrib.inside;
    float* const factors = f_.factors + line * FACTORS * f_.hidden + u;
    const auto put = [&](Factor which, double value) { factors[which * f_.hidden] = static_cast<float>(value); };
    put(FACTOR_H, d_old * z);
    put(FACTOR_Z, (d_old * h - d_new * g) * slope(Z, s.z_pre));
    put(FACTOR_G, d_new * (1 - z) * slope(G, s.g_pre));
    put(FACTOR_R, s.m.inside ? c * slope(R, s.r_pre) : 0.0);
    put(FACTOR_C, s.m.inside && s.c.inside ? r : 0.0);
    unsigned bits = 0;
    for (const int gate : {R, Z, G}) bits |= s.Wx[gate].inside << gate | s.Rh[gate].inside << (3 + gate);
    f_.passed[line * f_.hidden + u] = static_cast<uint8_t>(bits);
  }

  void keep_padding(int64_t line, int64_t u) const {
    for (int i = 0; i < FACTORS; ++i)
      f_.factors[(line * FACTORS + i) * f_.hidden + u] = i == FACTOR_H ? 1.0f : 0.0f;
    f_.passed[line * f_.hidden + u] = 0;
  }

  const Forward& f_;
  const Matrix<T>&W_, &R_;
  const int64_t *bw_, *br_;
  Buffer<int64_t> x_, h_, next_;
  Buffer<T> Wx_, Rh_;
};

template <class T>
class PreparedExact : public Prepared {
 public:
  explicit PreparedExact(const Forward& f)
      : W_(matrix(f, 0), 3 * f.hidden, f.input, exponents(f, 0), f.weights[0]),
        R_(matrix(f, 1), 3 * f.hidden, f.hidden, exponents(f, 1), f.weights[1]),
        bw_(matrix(f, 2), 3 * f.hidden, 1, exponents(f, 2), f.weights[2]),
        br_(matrix(f, 3), 3 * f.hidden, 1, exponents(f, 3), f.weights[3]) {}

  void run(const Forward& f, const ParallelFor& parallel) const override {
    parallel(f.parts, [&](int64_t part) {
      const Rows rows = rows_of(part, f.parts, f.batch);
      ExactWalk<T> walk(f, W_, R_, bw_.data(), br_.data());
      for (int64_t row = rows.begin; row < rows.end; ++row) walk.run(row);
    });
  }

 private:
  static const double* matrix(const Forward& f, int i) { return static_cast<const double*>(f.parameters[i]); }
  static const int32_t* exponents(const Forward& f, int i) { return f.exponents + i * 3 * f.hidden; }

  const Matrix<T> W_, R_;
  const Matrix<int64_t> bw_, br_;
};

static std::unique_ptr<const Prepared> prepare_exact(const Forward& f, const ParallelFor&) {
  const auto bound = [](const Grid& a, const Grid& b, int64_t terms) {
    const auto size = [](const Grid& grid) { return static_cast<double>(std::max(-grid.lo, grid.hi)); };
    return size(a) * size(b) * static_cast<double>(terms);
  };
  const double most = std::max(bound(f.weights[0], f.on.x, f.input), bound(f.weights[1], f.on.h, f.hidden));
  if (most < 2147483648.0) return std::make_unique<const PreparedExact<int32_t>>(f);
  return std::make_unique<const PreparedExact<int64_t>>(f);
}
