/* Kernels for Helium, the M-profile vector extension (Cortex-M55, M85): sixteen products of 8 bits an instruction. */
#ifndef QGRU_HELIUM_H
#define QGRU_HELIUM_H

#include <arm_mve.h>

/* As many columns at a time as a register has lanes; the last time, lanes past the end are not loaded and count as 0.
 * The `_rest` of a load is its predicated form. */
#define QGRU_HELIUM_DOT(name, weight_t, vector_t, sum_t, lanes, vctp, load_w, load_w_rest, load_v, load_v_rest, multiply) \
    QGRU_INLINE void name(const weight_t *weights, const vector_t *vector, int32_t columns, sum_t sum[3])                 \
    {                                                                                                                     \
        const weight_t *r = weights, *z = r + columns, *g = z + columns;                                                  \
        sum_t sum_r = sum[0], sum_z = sum[1], sum_g = sum[2];                                                             \
        int32_t i = 0;                                                                                                    \
        for (; i <= columns - lanes; i += lanes) {                                                                        \
            sum_r = multiply(sum_r, load_w(r + i), load_v(vector + i));                                                   \
            sum_z = multiply(sum_z, load_w(z + i), load_v(vector + i));                                                   \
            sum_g = multiply(sum_g, load_w(g + i), load_v(vector + i));                                                   \
        }                                                                                                                 \
        if (i < columns) {                                                                                                \
            const mve_pred16_t rest = vctp((uint32_t)(columns - i));                                                      \
            sum_r = multiply(sum_r, load_w_rest(r + i, rest), load_v_rest(vector + i, rest));                             \
            sum_z = multiply(sum_z, load_w_rest(z + i, rest), load_v_rest(vector + i, rest));                             \
            sum_g = multiply(sum_g, load_w_rest(g + i, rest), load_v_rest(vector + i, rest));                             \
        }                                                                                                                 \
        sum[0] = sum_r, sum[1] = sum_z, sum[2] = sum_g;                                                                   \
    }

/* Four-bit weights: the low half of every byte, moved up and back for its sign, then the high one. */
#define QGRU_HELIUM_PACKED_DOT(name, vector_t, lanes, vctp, load_w_rest, load_v_rest, shl, shr, bits, multiply) \
    QGRU_INLINE void name(const uint8_t *weights, const vector_t *vector, int32_t columns, int32_t sum[3])      \
    {                                                                                                           \
        const int32_t low = (columns + 1) / 2, high = columns - low;                                            \
        const int8_t *r = (const int8_t *)weights, *z = r + low, *g = z + low;                                  \
        int32_t sum_r = sum[0], sum_z = sum[1], sum_g = sum[2];                                                 \
        for (int32_t i = 0; i < low; i += lanes) {                                                              \
            const mve_pred16_t in = vctp((uint32_t)(low - i)), in_high = vctp((uint32_t)(high - i));            \
            sum_r = multiply(sum_r, shr(shl(load_w_rest(r + i, in), bits), bits), load_v_rest(vector + i, in)); \
            sum_z = multiply(sum_z, shr(shl(load_w_rest(z + i, in), bits), bits), load_v_rest(vector + i, in)); \
            sum_g = multiply(sum_g, shr(shl(load_w_rest(g + i, in), bits), bits), load_v_rest(vector + i, in)); \
            sum_r = multiply(sum_r, shr(load_w_rest(r + i, in), 4), load_v_rest(vector + low + i, in_high));    \
            sum_z = multiply(sum_z, shr(load_w_rest(z + i, in), 4), load_v_rest(vector + low + i, in_high));    \
            sum_g = multiply(sum_g, shr(load_w_rest(g + i, in), 4), load_v_rest(vector + low + i, in_high));    \
        }                                                                                                       \
        sum[0] = sum_r, sum[1] = sum_z, sum[2] = sum_g;                                                         \
    }

#ifndef QGRU_DOT_8X8
#define QGRU_DOT_8X8
QGRU_HELIUM_DOT(qgru_dot_8x8, int8_t, int8_t, int32_t, 16, vctp8q, vldrbq_s8, vldrbq_z_s8, vldrbq_s8, vldrbq_z_s8,
                vmladavaq_s8)
#endif
#ifndef QGRU_DOT_8X16
#define QGRU_DOT_8X16
QGRU_HELIUM_DOT(qgru_dot_8x16, int8_t, int16_t, int32_t, 8, vctp16q, vldrbq_s16, vldrbq_z_s16, vldrhq_s16, vldrhq_z_s16,
                vmladavaq_s16)
#endif
#ifndef QGRU_DOT_16X8
#define QGRU_DOT_16X8
QGRU_HELIUM_DOT(qgru_dot_16x8, int16_t, int8_t, int32_t, 8, vctp16q, vldrhq_s16, vldrhq_z_s16, vldrbq_s16, vldrbq_z_s16,
                vmladavaq_s16)
#endif
#ifndef QGRU_DOT_16X16
#define QGRU_DOT_16X16
QGRU_HELIUM_DOT(qgru_dot_16x16, int16_t, int16_t, int32_t, 8, vctp16q, vldrhq_s16, vldrhq_z_s16, vldrhq_s16, vldrhq_z_s16,
                vmladavaq_s16)
#endif
#ifndef QGRU_DOT_8X16_WIDE
#define QGRU_DOT_8X16_WIDE
QGRU_HELIUM_DOT(qgru_dot_8x16_wide, int8_t, int16_t, int64_t, 8, vctp16q, vldrbq_s16, vldrbq_z_s16, vldrhq_s16, vldrhq_z_s16,
                vmlaldavaq_s16)
#endif
#ifndef QGRU_DOT_16X16_WIDE
#define QGRU_DOT_16X16_WIDE
QGRU_HELIUM_DOT(qgru_dot_16x16_wide, int16_t, int16_t, int64_t, 8, vctp16q, vldrhq_s16, vldrhq_z_s16, vldrhq_s16, vldrhq_z_s16,
                vmlaldavaq_s16)
#endif
#ifndef QGRU_DOT_4X8
#define QGRU_DOT_4X8
QGRU_HELIUM_PACKED_DOT(qgru_dot_4x8, int8_t, 16, vctp8q, vldrbq_z_s8, vldrbq_z_s8, vshlq_n_s8, vshrq_n_s8, 4,
                       vmladavaq_s8)
#endif
#ifndef QGRU_DOT_4X16
#define QGRU_DOT_4X16
QGRU_HELIUM_PACKED_DOT(qgru_dot_4x16, int16_t, 8, vctp16q, vldrbq_z_s16, vldrhq_z_s16, vshlq_n_s16, vshrq_n_s16, 12,
                       vmladavaq_s16)
#endif

#endif
