/* Kernels for Arm's DSP extension (Cortex-M4, M7, M33): SMLAD adds two products of 16 bits. */
#ifndef QGRU_DSP_H
#define QGRU_DSP_H

#include <arm_acle.h>

/* Four neighbours of a vector, as SXTB16 takes bytes apart: elements 0 and 2, and 1 and 3. */
typedef struct {
    int16x2_t even, odd;
} qgru_dsp_four;

/* Two words that lie anywhere; M4 and M7 load them with one instruction each. */
QGRU_INLINE uint32_t qgru_dsp_word(const void *at)
{
    uint32_t word;
    memcpy(&word, at, sizeof word);
    return word;
}

QGRU_INLINE qgru_dsp_four qgru_dsp_bytes(uint32_t word)
{
    qgru_dsp_four four;
    four.even = __sxtb16((int8x4_t)word);
    __asm__("sxtb16 %0, %1, ror #8" : "=r"(four.odd) : "r"(word));
    return four;
}

QGRU_INLINE qgru_dsp_four qgru_dsp_halfwords(uint32_t low, uint32_t high)
{
    const qgru_dsp_four four = {(int16x2_t)((low & 0xffff) | high << 16), (int16x2_t)(low >> 16 | (high & 0xffff0000))};
    return four;
}

QGRU_INLINE int32_t qgru_dsp_add(uint32_t weights, qgru_dsp_four vector, int32_t sum)
{
    const qgru_dsp_four four = qgru_dsp_bytes(weights);
    return __smlad(four.odd, vector.odd, __smlad(four.even, vector.even, sum));
}

#define QGRU_DSP_LOAD_8(vector) qgru_dsp_bytes(qgru_dsp_word(vector))
#define QGRU_DSP_LOAD_16(vector) qgru_dsp_halfwords(qgru_dsp_word(vector), qgru_dsp_word((vector) + 2))

/* 8-bit weights: four columns at a time, then those that are left. */
#define QGRU_DSP_DOT(name, vector_t, load)                                                                     \
    QGRU_INLINE void name(const int8_t *weights, const vector_t *vector, int32_t columns, int32_t sum[3])      \
    {                                                                                                          \
        const int8_t *r = weights, *z = r + columns, *g = z + columns;                                         \
        int32_t sum_r = sum[0], sum_z = sum[1], sum_g = sum[2], i = 0;                                         \
        for (; i < columns - 3; i += 4) {                                                                      \
            const qgru_dsp_four v = load(vector + i);                                                          \
            sum_r = qgru_dsp_add(qgru_dsp_word(r + i), v, sum_r);                                              \
            sum_z = qgru_dsp_add(qgru_dsp_word(z + i), v, sum_z);                                              \
            sum_g = qgru_dsp_add(qgru_dsp_word(g + i), v, sum_g);                                              \
        }                                                                                                      \
        for (; i < columns; ++i) {                                                                             \
            sum_r += r[i] * vector[i];                                                                         \
            sum_z += z[i] * vector[i];                                                                         \
            sum_g += g[i] * vector[i];                                                                         \
        }                                                                                                      \
        sum[0] = sum_r, sum[1] = sum_z, sum[2] = sum_g;                                                        \
    }

/* 4-bit weights, eight columns at a time. Both halves of a byte are taken as the high one, sixteen times the weight:
 * the exporter has proven that the sums hold that. */
#define QGRU_DSP_PACKED_DOT(name, vector_t, load)                                                              \
    QGRU_INLINE void name(const uint8_t *weights, const vector_t *vector, int32_t columns, int32_t sum[3])     \
    {                                                                                                          \
        const int32_t low = (columns + 1) / 2, high = columns - low;                                           \
        const uint8_t *r = weights, *z = r + low, *g = z + low;                                                \
        int32_t sum_r = 0, sum_z = 0, sum_g = 0, i = 0;                                                        \
        for (; i < high - 3; i += 4) {                                                                         \
            const qgru_dsp_four v = load(vector + i), w = load(vector + low + i);                              \
            const uint32_t in_r = qgru_dsp_word(r + i), in_z = qgru_dsp_word(z + i), in_g = qgru_dsp_word(g + i); \
            sum_r = qgru_dsp_add(in_r & 0xf0f0f0f0, w, qgru_dsp_add(in_r << 4 & 0xf0f0f0f0, v, sum_r));        \
            sum_z = qgru_dsp_add(in_z & 0xf0f0f0f0, w, qgru_dsp_add(in_z << 4 & 0xf0f0f0f0, v, sum_z));        \
            sum_g = qgru_dsp_add(in_g & 0xf0f0f0f0, w, qgru_dsp_add(in_g << 4 & 0xf0f0f0f0, v, sum_g));        \
        }                                                                                                      \
        sum_r >>= 4, sum_z >>= 4, sum_g >>= 4;                                                                 \
        for (; i < low; ++i) {                                                                                 \
            const int32_t v = vector[i], w = i < high ? vector[low + i] : 0;                                   \
            sum_r += QGRU_LOW_HALF(r[i]) * v + QGRU_HIGH_HALF(r[i]) * w;                                       \
            sum_z += QGRU_LOW_HALF(z[i]) * v + QGRU_HIGH_HALF(z[i]) * w;                                       \
            sum_g += QGRU_LOW_HALF(g[i]) * v + QGRU_HIGH_HALF(g[i]) * w;                                       \
        }                                                                                                      \
        sum[0] += sum_r, sum[1] += sum_z, sum[2] += sum_g;                                                     \
    }

/* 16-bit weights and codes: two columns at a time. */
#define QGRU_DSP_LONG_DOT(name, sum_t, multiply)                                                               \
    QGRU_INLINE void name(const int16_t *weights, const int16_t *vector, int32_t columns, sum_t sum[3])        \
    {                                                                                                          \
        const int16_t *r = weights, *z = r + columns, *g = z + columns;                                        \
        sum_t sum_r = sum[0], sum_z = sum[1], sum_g = sum[2];                                                  \
        int32_t i = 0;                                                                                         \
        for (; i < columns - 1; i += 2) {                                                                      \
            const int16x2_t v = (int16x2_t)qgru_dsp_word(vector + i);                                          \
            sum_r = multiply((int16x2_t)qgru_dsp_word(r + i), v, sum_r);                                       \
            sum_z = multiply((int16x2_t)qgru_dsp_word(z + i), v, sum_z);                                       \
            sum_g = multiply((int16x2_t)qgru_dsp_word(g + i), v, sum_g);                                       \
        }                                                                                                      \
        if (i < columns) {                                                                                     \
            const sum_t v = vector[i];                                                                         \
            sum_r += r[i] * v;                                                                                 \
            sum_z += z[i] * v;                                                                                 \
            sum_g += g[i] * v;                                                                                 \
        }                                                                                                      \
        sum[0] = sum_r, sum[1] = sum_z, sum[2] = sum_g;                                                        \
    }

#ifndef QGRU_DOT_8X8
#define QGRU_DOT_8X8
QGRU_DSP_DOT(qgru_dot_8x8, int8_t, QGRU_DSP_LOAD_8)
#endif
#ifndef QGRU_DOT_8X16
#define QGRU_DOT_8X16
QGRU_DSP_DOT(qgru_dot_8x16, int16_t, QGRU_DSP_LOAD_16)
#endif
#ifndef QGRU_DOT_4X8
#define QGRU_DOT_4X8
QGRU_DSP_PACKED_DOT(qgru_dot_4x8, int8_t, QGRU_DSP_LOAD_8)
#endif
#ifndef QGRU_DOT_4X16
#define QGRU_DOT_4X16
QGRU_DSP_PACKED_DOT(qgru_dot_4x16, int16_t, QGRU_DSP_LOAD_16)
#endif
#ifndef QGRU_DOT_16X16
#define QGRU_DOT_16X16
QGRU_DSP_LONG_DOT(qgru_dot_16x16, int32_t, __smlad)
#endif
#ifndef QGRU_DOT_16X16_WIDE
#define QGRU_DOT_16X16_WIDE
QGRU_DSP_LONG_DOT(qgru_dot_16x16_wide, int64_t, __smlald)
#endif

#endif
