// Just enough of JSON to read quant_params.json and rows of integers.
#pragma once

#include <cctype>
#include <cstdlib>
#include <map>
#include <stdexcept>
#include <string>
#include <vector>

struct Json {
  enum Kind { NUMBER, TEXT, LIST, OBJECT } kind = NUMBER;
  double number = 0;  // true and false are 1 and 0
  std::string text;
  std::vector<Json> list;
  std::map<std::string, Json> object;

  const Json& at(const std::string& key) const {
    const auto found = object.find(key);
    if (found == object.end()) throw std::runtime_error("the file has no \"" + key + "\"");
    return found->second;
  }
  bool has(const std::string& key) const { return object.count(key) > 0; }
};

class JsonReader {
 public:
  explicit JsonReader(std::string text) : text_(std::move(text)) {}

  Json read() {
    const char first = peek();
    if (first == '{') return read_object();
    if (first == '[') return read_list();
    if (first == '"') return read_text();
    return read_number();
  }

 private:
  char peek() {
    while (at_ < text_.size() && std::isspace(static_cast<unsigned char>(text_[at_]))) ++at_;
    if (at_ == text_.size()) throw std::runtime_error("the file ends too early");
    return text_[at_];
  }

  bool take(char wanted) { return peek() == wanted && ++at_; }

  Json read_object() {
    Json json;
    json.kind = Json::OBJECT;
    for (take('{'); !take('}'); take(',')) {
      const std::string key = read_text().text;
      take(':');
      json.object[key] = read();
    }
    return json;
  }

  Json read_list() {
    Json json;
    json.kind = Json::LIST;
    for (take('['); !take(']'); take(',')) json.list.push_back(read());
    return json;
  }

  Json read_text() {
    if (!take('"')) throw std::runtime_error("expected a string");
    const size_t end = text_.find('"', at_);
    if (end == std::string::npos) throw std::runtime_error("a string has no end");
    Json json;
    json.kind = Json::TEXT;
    json.text = text_.substr(at_, end - at_);
    at_ = end + 1;
    return json;
  }

  Json read_number() {
    Json json;
    for (const std::string word : {"true", "false", "null"}) {
      if (text_.compare(at_, word.size(), word) == 0) {
        json.number = word == "true";
        at_ += word.size();
        return json;
      }
    }
    const char* const start = text_.c_str() + at_;
    char* end = nullptr;
    json.number = std::strtod(start, &end);
    if (end == start) throw std::runtime_error("expected a value");
    at_ += static_cast<size_t>(end - start);
    return json;
  }

  const std::string text_;
  size_t at_ = 0;
};
