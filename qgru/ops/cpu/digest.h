// A number that tells contents of memory apart: any change of one 32-bit word, and of more all but one in 2^64.

// The low half of each 64-bit lane times its high half.
QGRU_INLINE L halves_multiplied(L v) {
#if defined(QGRU_AVX512)
  return (L)_mm512_mul_epu32((__m512i)v, (__m512i)(v >> 32));
#elif defined(QGRU_AVX2)
  return (L)_mm256_mul_epu32((__m256i)v, (__m256i)(v >> 32));
#else
  return (v & 0xffffffff) * (v >> 32);
#endif
}

// Every word counts with its place, and is multiplied by its neighbour: sums alone would miss a change of all signs.
QGRU_INLINE void take(L v, L& key, L& sum) {
  key += 0xd6e8feb86659fd93u;
  v ^= key;
  sum += halves_multiplied(v) + v;
}

static uint64_t digest(const void* data, int64_t bytes) {
  constexpr int64_t WAYS = 4, WIDTH = sizeof(L), NUMBERS = WIDTH / 8;
  constexpr uint64_t ODD = 0x9e3779b97f4a7c15u;
  const char* at = static_cast<const char*>(data);
  L keys[WAYS], sums[WAYS] = {};
  for (int64_t i = 0; i < WAYS * NUMBERS; ++i) keys[i / NUMBERS][i % NUMBERS] = ODD * static_cast<uint64_t>(i + 1);
  int64_t left = bytes;
  for (; left >= WAYS * WIDTH; left -= WAYS * WIDTH, at += WAYS * WIDTH) {
#pragma GCC unroll 4
    for (int64_t way = 0; way < WAYS; ++way) take(load<L>(at + way * WIDTH), keys[way], sums[way]);
  }
  for (int64_t way = 0; left > 0; left -= WIDTH, at += WIDTH, ++way) {
    L rest{};
    std::memcpy(&rest, at, static_cast<size_t>(std::min(left, WIDTH)));
    take(rest, keys[way], sums[way]);
  }
  uint64_t result = static_cast<uint64_t>(bytes);
  for (int64_t i = 0; i < WAYS * NUMBERS; ++i) {
    result = (result ^ sums[i / NUMBERS][i % NUMBERS]) * ODD;
    result ^= result >> 32;
  }
  return result;
}
