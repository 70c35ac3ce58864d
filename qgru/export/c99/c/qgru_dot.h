/* Sums of products: where a quantized GRU spends its time, and what to write anew for another machine.
 *
 *     qgru_dot_WxV(weights, vector, columns, sum)
 *
 * adds to `sum[3]` the products of three rows of W-bit weights, one behind the other, with `columns` codes of V bits.
 * No alignment is promised beyond the elements' own. Four-bit weights lie two a byte, (columns + 1) / 2 bytes a row:
 * byte i holds weight i in its low half and weight i + (columns + 1) / 2 in its high half.
 *
 * Define QGRU_DOT as the name of a header with kernels of your own; for each it holds, it defines a macro named as the
 * function in capitals, QGRU_DOT_8X8. QGRU_SIMD chooses among those below: 0 plain C, 1 Arm's DSP extension, 2 Helium.
 */
#ifndef QGRU_DOT_H
#define QGRU_DOT_H

#include <stdint.h>
#include <string.h>

/* `static inline` alone gives one copy of the kernels for all layers: smaller, and slower. */
#ifndef QGRU_INLINE
#if defined(__GNUC__)
#define QGRU_INLINE static inline __attribute__((always_inline))
#else
#define QGRU_INLINE static inline
#endif
#endif

/* The signed halves of a byte. */
#define QGRU_LOW_HALF(byte) ((int32_t)(((byte) & 15) ^ 8) - 8)
#define QGRU_HIGH_HALF(byte) ((int32_t)(int8_t)(byte) >> 4)

#ifdef QGRU_DOT
#include QGRU_DOT
#endif

#ifndef QGRU_SIMD
#if defined(__ARM_FEATURE_MVE) && (__ARM_FEATURE_MVE & 1)
#define QGRU_SIMD 2
#elif defined(__ARM_FEATURE_DSP) && defined(__ARM_FEATURE_UNALIGNED) && defined(__thumb2__) && !defined(__ARM_BIG_ENDIAN)
#define QGRU_SIMD 1
#else
#define QGRU_SIMD 0
#endif
#endif

#if QGRU_SIMD == 1
#include "qgru_dsp.h"
#elif QGRU_SIMD == 2
#include "qgru_helium.h"
#endif

/* Plain C: one kernel for each pair of types. */
#define QGRU_PLAIN_DOT(name, weight_t, vector_t, sum_t)                                                     \
    QGRU_INLINE void name(const weight_t *weights, const vector_t *vector, int32_t columns, sum_t sum[3]) \
    {                                                                                                       \
        const weight_t *r = weights, *z = r + columns, *g = z + columns;                                    \
        sum_t sum_r = sum[0], sum_z = sum[1], sum_g = sum[2];                                               \
        for (int32_t i = 0; i < columns; ++i) {                                                             \
            const sum_t v = vector[i];                                                                      \
            sum_r += r[i] * v;                                                                              \
            sum_z += z[i] * v;                                                                              \
            sum_g += g[i] * v;                                                                              \
        }                                                                                                   \
        sum[0] = sum_r, sum[1] = sum_z, sum[2] = sum_g;                                                     \
    }

#ifndef QGRU_DOT_8X8
QGRU_PLAIN_DOT(qgru_dot_8x8, int8_t, int8_t, int32_t)
#endif
#ifndef QGRU_DOT_8X16
QGRU_PLAIN_DOT(qgru_dot_8x16, int8_t, int16_t, int32_t)
#endif
#ifndef QGRU_DOT_16X8
QGRU_PLAIN_DOT(qgru_dot_16x8, int16_t, int8_t, int32_t)
#endif
#ifndef QGRU_DOT_16X16
QGRU_PLAIN_DOT(qgru_dot_16x16, int16_t, int16_t, int32_t)
#endif

/* The same with sums of 64 bits. */
#ifndef QGRU_DOT_8X8_WIDE
QGRU_PLAIN_DOT(qgru_dot_8x8_wide, int8_t, int8_t, int64_t)
#endif
#ifndef QGRU_DOT_8X16_WIDE
QGRU_PLAIN_DOT(qgru_dot_8x16_wide, int8_t, int16_t, int64_t)
#endif
#ifndef QGRU_DOT_16X8_WIDE
QGRU_PLAIN_DOT(qgru_dot_16x8_wide, int16_t, int8_t, int64_t)
#endif
#ifndef QGRU_DOT_16X16_WIDE
QGRU_PLAIN_DOT(qgru_dot_16x16_wide, int16_t, int16_t, int64_t)
#endif

/* Four-bit weights: the halves of a byte are unpacked as they are read. */
#define QGRU_PLAIN_PACKED_DOT(name, vector_t)                                                               \
    QGRU_INLINE void name(const uint8_t *weights, const vector_t *vector, int32_t columns, int32_t sum[3])  \
    {                                                                                                       \
        const int32_t low = (columns + 1) / 2, high = columns - low;                                        \
        const uint8_t *r = weights, *z = r + low, *g = z + low;                                             \
        int32_t sum_r = sum[0], sum_z = sum[1], sum_g = sum[2];                                             \
        for (int32_t i = 0; i < high; ++i) {                                                                \
            const int32_t v = vector[i], w = vector[low + i];                                               \
            sum_r += QGRU_LOW_HALF(r[i]) * v + QGRU_HIGH_HALF(r[i]) * w;                                    \
            sum_z += QGRU_LOW_HALF(z[i]) * v + QGRU_HIGH_HALF(z[i]) * w;                                    \
            sum_g += QGRU_LOW_HALF(g[i]) * v + QGRU_HIGH_HALF(g[i]) * w;                                    \
        }                                                                                                   \
        if (high < low) {                                                                                   \
            sum_r += QGRU_LOW_HALF(r[high]) * vector[high];                                                 \
            sum_z += QGRU_LOW_HALF(z[high]) * vector[high];                                                 \
            sum_g += QGRU_LOW_HALF(g[high]) * vector[high];                                                 \
        }                                                                                                   \
        sum[0] = sum_r, sum[1] = sum_z, sum[2] = sum_g;                                                     \
    }

#ifndef QGRU_DOT_4X8
QGRU_PLAIN_PACKED_DOT(qgru_dot_4x8, int8_t)
#endif
#ifndef QGRU_DOT_4X16
QGRU_PLAIN_PACKED_DOT(qgru_dot_4x16, int16_t)
#endif

#endif
