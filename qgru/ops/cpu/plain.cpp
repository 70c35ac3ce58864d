// The path of every machine: whatever vectors the compiler has without being asked.
#include <type_traits>

#include "layer.h"

namespace qgru {
namespace {
#include "path.h"
}  // namespace

extern const Path plain;
const Path plain{prepare_fast, prepare_exact, backward, digest};
}  // namespace qgru
