// Runs a GRU from its quant_params.json on integers, with nothing but core.h.
//
//   c++ -std=c++20 -O2 -I qgru/ops/cpu examples/run_integers.cpp -o run_integers
//   ./run_integers quant_params.json < input.txt > output.txt
//
// The file comes from `gru.export_quant_params(path, include_weights=True)`. Every line of the input is one time step:
// integers on the first layer's grid input.x. Every line of the output is one: integers on the last layer's output.h,
// the two directions side by side. States start at zero.

#include <cmath>
#include <fstream>
#include <iostream>
#include <iterator>
#include <sstream>

#include "core.h"
#include "json.h"

namespace {

using Row = std::vector<int64_t>;  // one time step

struct Operator {
  qgru::Grid grid;
  int64_t zero_point;
};

Operator read_operator(const Json& section, const std::string& name) {
  const Json& entry = section.at(name);
  const std::string type = entry.at("dtype").text;  // INT8, UINT8, ...
  const bool is_unsigned = type[0] == 'U';
  const int bits = std::stoi(type.substr(is_unsigned ? 4 : 3));
  const int64_t lowest = is_unsigned ? 0 : -(int64_t{1} << (bits - 1));
  const Json &zero = entry.at("zero_point"), &n = entry.at("n");
  const int64_t zero_point = zero.kind == Json::LIST ? 0 : std::llround(zero.number);
  const int exponent = n.kind == Json::LIST ? 0 : static_cast<int>(n.number);  // a weight's are per channel
  return {{lowest - zero_point, lowest + (int64_t{1} << bits) - 1 - zero_point, exponent}, zero_point};
}

struct Weight {
  std::vector<Row> rows;  // [channel][input]; a bias has one input
  std::vector<int> exponents;
};

Weight read_weight(const Json& section, const std::string& name, size_t channels) {
  Weight weight{std::vector<Row>(channels, Row(1, 0)), std::vector<int>(channels, 0)};
  if (!section.has(name) || !section.at(name).has("quantized_weights")) {
    if (name[0] == 'b') return weight;  // bias=False
    throw std::runtime_error("no quantized_weights in the file: export it with include_weights=True");
  }
  const Json &integers = section.at(name).at("quantized_weights"), &n = section.at(name).at("n");
  for (size_t channel = 0; channel < channels; ++channel) {
    const Json& row = integers.list.at(channel);
    weight.rows[channel].clear();
    if (row.kind == Json::LIST)
      for (const Json& value : row.list) weight.rows[channel].push_back(std::llround(value.number));
    else
      weight.rows[channel].push_back(std::llround(row.number));
    weight.exponents[channel] = static_cast<int>(n.kind == Json::LIST ? n.list.at(channel).number : n.number);
  }
  return weight;
}

// One layer and direction.
struct Cell {
  Operator x, h;
  qgru::Grids on;
  Weight W, R, bw, br;

  Cell(const Json& section, size_t hidden) : x(read_operator(section, "x")), h(read_operator(section, "h")) {
    const auto grid = [&](const char* name) { return read_operator(section, name).grid; };
    on = {x.grid, h.grid, grid("Wx"), grid("Rh"), grid("z_pre"), grid("z_out"), grid("r_pre"), grid("r_out"),
          grid("g_pre"), grid("g_out"), grid("rRh"), grid("old_contrib"), grid("new_contrib"),
          grid(section.has("Rh_add_br") ? "Rh_add_br" : "Rh")};
    W = read_weight(section, "W", 3 * hidden), R = read_weight(section, "R", 3 * hidden);
    bw = read_weight(section, "bw", 3 * hidden), br = read_weight(section, "br", 3 * hidden);
  }

  static qgru::Exact product(const Weight& weight, size_t channel, const Row& vector, int exponent) {
    int64_t sum = 0;
    for (size_t k = 0; k < vector.size(); ++k) sum += weight.rows[channel][k] * vector[k];
    return {sum, weight.exponents[channel] + exponent};
  }

  Row step(const Row& inputs, const Row& state) const {
    const size_t hidden = state.size();
    Row next(hidden);
    for (size_t u = 0; u < hidden; ++u) {
      qgru::Unit unit;
      for (const int gate : {qgru::R, qgru::Z, qgru::G}) {
        const size_t channel = static_cast<size_t>(gate) * hidden + u;
        unit.Wx[gate] = product(W, channel, inputs, on.x.exponent);
        unit.Rh[gate] = product(R, channel, state, on.h.exponent);
        unit.bw[gate] = {bw.rows[channel][0], bw.exponents[channel]};
        unit.br[gate] = {br.rows[channel][0], br.exponents[channel]};
      }
      const auto gate = [this](int which, int64_t pre) {
        if (which == qgru::Z) return qgru::sigmoid(pre, on.z_pre, on.z_out);
        if (which == qgru::R) return qgru::sigmoid(pre, on.r_pre, on.r_out);
        return qgru::tanh(pre, on.g_pre, on.g_out);
      };
      next[u] = qgru::step(unit, state[u], on, gate).h.mantissa;
    }
    return next;
  }

  // `inputs` are mantissas on x's grid; the states are on h's.
  std::vector<Row> run(const std::vector<Row>& inputs, size_t hidden, bool reverse) const {
    std::vector<Row> states(inputs.size());
    Row state(hidden, 0);
    for (size_t i = 0; i < inputs.size(); ++i) {
      const size_t t = reverse ? inputs.size() - 1 - i : i;
      states[t] = state = step(inputs[t], state);
    }
    return states;
  }
};

Json read_json(const char* path) {
  std::ifstream file(path);
  if (!file) throw std::runtime_error(std::string(path) + ": can't be read");
  return JsonReader({std::istreambuf_iterator<char>(file), {}}).read();
}

std::vector<Row> read_rows(std::istream& stream) {
  std::vector<Row> rows;
  for (std::string line; std::getline(stream, line);) {
    std::istringstream words(line);
    rows.emplace_back(std::istream_iterator<int64_t>(words), std::istream_iterator<int64_t>());
  }
  return rows;
}

void run(const Json& file) {
  const Json& info = file.at("model_info");
  if (!info.has("gate_order") || info.at("gate_order").text != "rzn")
    throw std::runtime_error("expected \"gate_order\": \"rzn\"");
  const auto hidden = static_cast<size_t>(info.at("hidden_size").number);
  const int layers = static_cast<int>(info.at("num_layers").number);
  const int directions = info.at("bidirectional").number != 0 ? 2 : 1;

  std::vector<Row> feed = read_rows(std::cin);  // integers on the layer's input.x, or the states of the one before
  std::vector<Operator> from;                   // those states' grids, one for each direction
  for (int layer = 0; layer < layers; ++layer) {
    std::vector<Cell> cells;
    const std::string suffix = layer ? "_l" + std::to_string(layer) : "";
    for (int d = 0; d < directions; ++d)
      cells.emplace_back(file.at((d ? "operators_reverse" : "operators") + suffix), hidden);
    for (Row& row : feed)
      for (size_t i = 0; i < row.size(); ++i)
        row[i] = layer ? qgru::quantize({row[i], from[i / hidden].grid.exponent}, cells[0].x.grid).mantissa
                       : row[i] - cells[0].x.zero_point;
    std::vector<Row> states(feed.size());
    from.clear();
    for (int d = 0; d < directions; ++d) {
      const std::vector<Row> own = cells[d].run(feed, hidden, d > 0);
      for (size_t t = 0; t < feed.size(); ++t) states[t].insert(states[t].end(), own[t].begin(), own[t].end());
      from.push_back(cells[d].h);
    }
    feed = states;
  }
  for (const Row& row : feed)
    for (size_t i = 0; i < row.size(); ++i)
      std::cout << row[i] + from[i / hidden].zero_point << (i + 1 < row.size() ? ' ' : '\n');
}

}  // namespace

int main(int count, char** arguments) {
  if (count != 2) {
    std::cerr << "usage: run_integers quant_params.json < input.txt > output.txt\n";
    return 2;
  }
  try {
    run(read_json(arguments[1]));
  } catch (const std::exception& error) {
    std::cerr << "run_integers: " << error.what() << '\n';
    return 1;
  }
}
