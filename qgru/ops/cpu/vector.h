// The few vector operations of the kernels, for the path that includes this file (no include guard on purpose).
// `GROUP` products go into one 32-bit lane at a time; an activation's code is never negative.

#if defined(QGRU_AVX512)
constexpr int LANES = 16, ROWS = 8, GROUP = 4;
using Code = uint8_t;
using Weight = int8_t;
#elif defined(QGRU_AVX2)
constexpr int LANES = 8, ROWS = 4, GROUP = 2;
using Code = int16_t;
using Weight = int16_t;
#else
constexpr int LANES = 4, ROWS = 4, GROUP = 1;
using Code = int32_t;
using Weight = int32_t;
#endif

typedef float F __attribute__((vector_size(LANES * 4)));
typedef int32_t I __attribute__((vector_size(LANES * 4)));
typedef uint64_t L __attribute__((vector_size(LANES * 4)));
typedef Code Codes __attribute__((vector_size(LANES * sizeof(Code))));
typedef uint8_t Bytes __attribute__((vector_size(LANES)));

#define QGRU_INLINE static inline __attribute__((always_inline))

template <class V, class T>
QGRU_INLINE V load(const T* from) {
  V v;
  __builtin_memcpy(&v, from, sizeof(V));
  return v;
}

template <class V, class T>
QGRU_INLINE void store(T* to, V v) {
  __builtin_memcpy(to, &v, sizeof(V));
}

QGRU_INLINE F all(float value) { return F{} + value; }

// a * b + c, rounded once.
QGRU_INLINE F fma(F a, F b, F c) {
#if defined(QGRU_AVX512)
  return (F)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)c);
#elif defined(QGRU_AVX2)
  return (F)_mm256_fmadd_ps((__m256)a, (__m256)b, (__m256)c);
#else
  F result;
  for (int i = 0; i < LANES; ++i) result[i] = __builtin_fmaf(a[i], b[i], c[i]);
  return result;
#endif
}

QGRU_INLINE F clamp(F v, F lo, F hi) {
  v = v < lo ? lo : v;
  return v > hi ? hi : v;
}

QGRU_INLINE F lookup(const float* table, I index) {
#if defined(QGRU_AVX512)
  return (F)_mm512_i32gather_ps((__m512i)index, table, 4);
#elif defined(QGRU_AVX2)
  return (F)_mm256_i32gather_ps(table, (__m256i)index, 4);
#else
  F result;
  for (int i = 0; i < LANES; ++i) result[i] = table[index[i]];
  return result;
#endif
}

// sum + the products of GROUP codes, the same in every lane, and each lane's GROUP weights.
QGRU_INLINE I dot(I sum, const Code* codes, const Weight* weights) {
  int32_t group;
  __builtin_memcpy(&group, codes, 4);
#if defined(QGRU_AVX512)
  return (I)_mm512_dpbusd_epi32((__m512i)sum, _mm512_set1_epi32(group), _mm512_loadu_si512(weights));
#elif defined(QGRU_AVX2)
  const __m256i products = _mm256_madd_epi16(_mm256_set1_epi32(group), _mm256_loadu_si256((const __m256i*)weights));
  return sum + (I)products;
#else
  return sum + group * load<I>(weights);
#endif
}
