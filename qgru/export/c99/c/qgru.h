/* One time step of a quantized GRU, on integers alone.
 *
 * A value is `mantissa * 2^-n`, n its operator's exponent. Vectors hold codes: mantissas plus an offset that makes them
 * fit int8_t or int16_t. r, z and g are the reset, update and new gate; c = Rh_g + br_g, m = r * c.
 *
 * Every function below is inlined into a caller that knows the cell as a constant: types, shifts and bounds fold, and
 * what a model does not need is not compiled. Its exporter has proven that no sum overflows and that every shift is
 * shorter than its type.
 */
#ifndef QGRU_H
#define QGRU_H

#include <stdint.h>
#include <string.h>

#include "qgru_dot.h"

/* What rounding takes for granted: -1 >> 1 is -1. C99 leaves it to the compiler; another one stops here. */
typedef char qgru_arithmetic_shift[(-1 >> 1) == -1 ? 1 : -1];

typedef enum { QGRU_INT4, QGRU_INT8, QGRU_UINT8, QGRU_INT16, QGRU_UINT16, QGRU_INT32, QGRU_INT64 } qgru_type;

/* Numbers of any type; INT4 and INT64 only where they are said to be possible. `data` is null for zeros. */
typedef struct {
    const void *data;
    qgru_type type;
} qgru_array;

/* How to get onto a grid: a shift to the right with one rounding (negative: to the left), and its mantissas' range. */
typedef struct {
    int32_t shift;
    int32_t lo, hi;
    int32_t is_wide; /* what is rounded takes 64 bits */
} qgru_grid;

/* Weights of three rows a unit, r, z and g, and the grid of their products with a vector. */
typedef struct {
    qgru_array weights;   /* [rows][columns]; INT4: two a byte, see qgru_dot.h */
    qgru_type vector;     /* of the codes: INT8 or INT16 */
    int32_t columns;
    qgru_array start;     /* [rows]: what the vector's offset adds, taken back; INT32, or INT64 where the sums are wide */
    const uint8_t *shift; /* [rows], each at least 1 */
    int32_t left;         /* before those shifts, to the left */
    int32_t lo, hi;
    int32_t is_wide;
} qgru_matrix;

/* A sum of two mantissas, each shifted to the left, and a bias for each unit. */
typedef struct {
    int32_t left[2];
    qgru_array bias; /* [hidden] */
    qgru_grid grid;
} qgru_sum;

/* A function of a pre-activation's mantissa, given for lo .. hi of the grid before it.
 * A table of its mantissas, or ascending thresholds: `base` and one more for each that is at most the index. */
typedef struct {
    qgru_array table;
    int32_t thresholds; /* 0: a table */
    int32_t first;      /* the largest power of two of at most `thresholds` */
    int32_t base;
} qgru_function;

typedef struct {
    int32_t hidden;
    qgru_type state; /* of the codes: INT8 or INT16 */
    int32_t offset;  /* the code of a state of 0 */
    qgru_matrix Wx, Rh;
    qgru_sum r_pre, z_pre, c, g_pre, h;
    qgru_grid m, old_contrib, new_contrib;
    qgru_function r, z, g;
    int32_t one, z_left; /* 1 - z is `one - z * 2^z_left` */
} qgru_cell;

/* From one vector of numbers to another: what is written is on a grid, plus an offset. */
typedef struct {
    qgru_type from, to;
    int32_t from_offset, to_offset;
    qgru_grid grid;
} qgru_link;

/* 1 where a tie is to be rounded up, given the integer below it: to the even one. */
#ifndef QGRU_TIE
#define QGRU_TIE(below) ((below) & 1)
#endif

/* value * 2^-shift to the nearest integer, ties to the even one; shift 1 to 30. */
QGRU_INLINE int32_t qgru_round(int32_t value, int32_t shift)
{
    return (value + (((int32_t)1 << (shift - 1)) - 1) + QGRU_TIE(value >> shift)) >> shift;
}

/* The same in 64 bits; shift 1 to 62. */
QGRU_INLINE int64_t qgru_round_wide(int64_t value, int32_t shift)
{
    return (value + (((int64_t)1 << (shift - 1)) - 1) + QGRU_TIE(value >> shift)) >> shift;
}

/* Arm has an instruction for the usual ranges, which compilers don't find by themselves. */
QGRU_INLINE int32_t qgru_clamp(int32_t value, int32_t lo, int32_t hi)
{
#if defined(__ARM_FEATURE_SAT) && defined(__GNUC__)
    if (lo == INT8_MIN && hi == INT8_MAX)
        return (int32_t)__builtin_arm_ssat(value, 8);
    if (lo == INT16_MIN && hi == INT16_MAX)
        return (int32_t)__builtin_arm_ssat(value, 16);
#endif
    value = value < hi ? value : hi;
    return value > lo ? value : lo;
}

QGRU_INLINE int32_t qgru_clamp_wide(int64_t value, int32_t lo, int32_t hi)
{
    return (int32_t)(value < lo ? lo : value > hi ? hi : value);
}

/* Onto a grid. To the left, what saturates anyway is cut first, and nothing overflows. */
QGRU_INLINE int32_t qgru_quantize(int32_t value, const qgru_grid *on)
{
    if (on->shift > 0)
        value = qgru_round(value, on->shift);
    else if (on->shift < 0)
        value = qgru_clamp(value, on->lo >> -on->shift, (on->hi >> -on->shift) + 1) * ((int32_t)1 << -on->shift);
    return qgru_clamp(value, on->lo, on->hi);
}

QGRU_INLINE int32_t qgru_quantize_wide(int64_t value, const qgru_grid *on)
{
    if (on->shift > 0)
        value = qgru_round_wide(value, on->shift);
    else if (on->shift < 0)
        return qgru_quantize(qgru_clamp_wide(value, on->lo >> -on->shift, (on->hi >> -on->shift) + 1), on);
    return qgru_clamp_wide(value, on->lo, on->hi);
}

QGRU_INLINE int32_t qgru_load(const void *data, qgru_type type, int32_t index)
{
    switch (type) {
    case QGRU_INT8:
        return ((const int8_t *)data)[index];
    case QGRU_UINT8:
        return ((const uint8_t *)data)[index];
    case QGRU_INT16:
        return ((const int16_t *)data)[index];
    case QGRU_UINT16:
        return ((const uint16_t *)data)[index];
    default:
        return ((const int32_t *)data)[index];
    }
}

QGRU_INLINE int32_t qgru_get(qgru_array array, int32_t index)
{
    return array.data ? qgru_load(array.data, array.type, index) : 0;
}

QGRU_INLINE int64_t qgru_get_wide(qgru_array array, int32_t index)
{
    return array.data && array.type == QGRU_INT64 ? ((const int64_t *)array.data)[index] : qgru_get(array, index);
}

QGRU_INLINE void qgru_store(void *vector, qgru_type type, int32_t index, int32_t value)
{
    switch (type) {
    case QGRU_INT8:
        ((int8_t *)vector)[index] = (int8_t)value;
        break;
    case QGRU_UINT8:
        ((uint8_t *)vector)[index] = (uint8_t)value;
        break;
    case QGRU_INT16:
        ((int16_t *)vector)[index] = (int16_t)value;
        break;
    default:
        ((uint16_t *)vector)[index] = (uint16_t)value;
    }
}

/* Add the products of a unit's three rows with a vector of codes. */
QGRU_INLINE void qgru_dot(const qgru_matrix *by, int32_t unit, const void *vector, int32_t sum[3])
{
    const int32_t columns = by->columns, first = 3 * unit * columns;
    if (by->weights.type == QGRU_INT4) {
        const uint8_t *weights = (const uint8_t *)by->weights.data + 3 * unit * ((columns + 1) / 2);
        if (by->vector == QGRU_INT8)
            qgru_dot_4x8(weights, (const int8_t *)vector, columns, sum);
        else
            qgru_dot_4x16(weights, (const int16_t *)vector, columns, sum);
    } else if (by->weights.type == QGRU_INT8) {
        if (by->vector == QGRU_INT8)
            qgru_dot_8x8((const int8_t *)by->weights.data + first, (const int8_t *)vector, columns, sum);
        else
            qgru_dot_8x16((const int8_t *)by->weights.data + first, (const int16_t *)vector, columns, sum);
    } else {
        if (by->vector == QGRU_INT8)
            qgru_dot_16x8((const int16_t *)by->weights.data + first, (const int8_t *)vector, columns, sum);
        else
            qgru_dot_16x16((const int16_t *)by->weights.data + first, (const int16_t *)vector, columns, sum);
    }
}

QGRU_INLINE void qgru_dot_wide(const qgru_matrix *by, int32_t unit, const void *vector, int64_t sum[3])
{
    const int32_t columns = by->columns, first = 3 * unit * columns;
    if (by->weights.type == QGRU_INT8) {
        if (by->vector == QGRU_INT8)
            qgru_dot_8x8_wide((const int8_t *)by->weights.data + first, (const int8_t *)vector, columns, sum);
        else
            qgru_dot_8x16_wide((const int8_t *)by->weights.data + first, (const int16_t *)vector, columns, sum);
    } else {
        if (by->vector == QGRU_INT8)
            qgru_dot_16x8_wide((const int16_t *)by->weights.data + first, (const int8_t *)vector, columns, sum);
        else
            qgru_dot_16x16_wide((const int16_t *)by->weights.data + first, (const int16_t *)vector, columns, sum);
    }
}

/* A row's sum onto the grid. */
QGRU_INLINE int32_t qgru_round_row(const qgru_matrix *by, int32_t row, int32_t sum)
{
    return qgru_clamp(qgru_round(sum * ((int32_t)1 << by->left), by->shift[row]), by->lo, by->hi);
}

QGRU_INLINE int32_t qgru_round_row_wide(const qgru_matrix *by, int32_t row, int64_t sum)
{
    return qgru_clamp_wide(qgru_round_wide(sum * ((int64_t)1 << by->left), by->shift[row]), by->lo, by->hi);
}

/* One unit's three rows times a vector. */
QGRU_INLINE void qgru_multiply(const qgru_matrix *by, int32_t unit, const void *vector, int32_t product[3])
{
    const int32_t r = 3 * unit, z = r + 1, g = r + 2;
    if (by->is_wide) {
        int64_t sum[3] = {qgru_get_wide(by->start, r), qgru_get_wide(by->start, z), qgru_get_wide(by->start, g)};
        qgru_dot_wide(by, unit, vector, sum);
        product[0] = qgru_round_row_wide(by, r, sum[0]);
        product[1] = qgru_round_row_wide(by, z, sum[1]);
        product[2] = qgru_round_row_wide(by, g, sum[2]);
    } else {
        int32_t sum[3] = {qgru_get(by->start, r), qgru_get(by->start, z), qgru_get(by->start, g)};
        qgru_dot(by, unit, vector, sum);
        product[0] = qgru_round_row(by, r, sum[0]);
        product[1] = qgru_round_row(by, z, sum[1]);
        product[2] = qgru_round_row(by, g, sum[2]);
    }
}

QGRU_INLINE int32_t qgru_add(const qgru_sum *to, int32_t unit, int32_t a, int32_t b)
{
    if (to->grid.is_wide) {
        const int64_t sum = a * ((int64_t)1 << to->left[0]) + b * ((int64_t)1 << to->left[1]);
        return qgru_quantize_wide(sum + qgru_get_wide(to->bias, unit), &to->grid);
    }
    return qgru_quantize(
        a * ((int32_t)1 << to->left[0]) + b * ((int32_t)1 << to->left[1]) + qgru_get(to->bias, unit), &to->grid);
}

QGRU_INLINE int32_t qgru_times(const qgru_grid *on, int32_t a, int32_t b)
{
    return on->is_wide ? qgru_quantize_wide((int64_t)a * b, on) : qgru_quantize(a * b, on);
}

/* The gate's mantissa for a pre-activation that is `index` above the lowest. */
QGRU_INLINE int32_t qgru_apply(const qgru_function *function, int32_t index)
{
    int32_t count = 0;
    if (!function->thresholds)
        return qgru_get(function->table, index);
    for (int32_t step = function->first; step; step >>= 1)
        if (count + step <= function->thresholds && qgru_get(function->table, count + step - 1) <= index)
            count += step;
    return function->base + count;
}

/* The next state of one unit, from its three products each and its state, all mantissas. */
QGRU_INLINE int32_t qgru_unit(const qgru_cell *on, int32_t unit, const int32_t Wx[3], const int32_t Rh[3], int32_t h)
{
    const int32_t r = qgru_apply(&on->r, qgru_add(&on->r_pre, unit, Wx[0], Rh[0]) - on->r_pre.grid.lo);
    const int32_t z = qgru_apply(&on->z, qgru_add(&on->z_pre, unit, Wx[1], Rh[1]) - on->z_pre.grid.lo);
    const int32_t m = qgru_times(&on->m, r, qgru_add(&on->c, unit, Rh[2], 0));
    const int32_t g = qgru_apply(&on->g, qgru_add(&on->g_pre, unit, Wx[2], m) - on->g_pre.grid.lo);
    const int32_t old_contrib = qgru_times(&on->old_contrib, z, h);
    const int32_t new_contrib = qgru_times(&on->new_contrib, on->one - z * ((int32_t)1 << on->z_left), g);
    return qgru_add(&on->h, unit, old_contrib, new_contrib);
}

/* One time step of a layer in one direction: its next codes into `next`, which is not `h`. */
QGRU_INLINE void qgru_step(const qgru_cell *on, const void *x, const void *h, void *next)
{
    for (int32_t unit = 0; unit < on->hidden; ++unit) {
        int32_t Wx[3], Rh[3];
        qgru_multiply(&on->Wx, unit, x, Wx);
        qgru_multiply(&on->Rh, unit, h, Rh);
        qgru_store(next, on->state, unit,
                   qgru_unit(on, unit, Wx, Rh, qgru_load(h, on->state, unit) - on->offset) + on->offset);
    }
}

/* `count` codes of 0. */
QGRU_INLINE void qgru_reset(void *state, qgru_type type, int32_t offset, int32_t count)
{
    for (int32_t i = 0; i < count; ++i)
        qgru_store(state, type, i, offset);
}

/* `count` numbers from one grid to another. */
QGRU_INLINE void qgru_convert(const qgru_link *by, const void *from, void *to, int32_t count)
{
    for (int32_t i = 0; i < count; ++i)
        qgru_store(to, by->to, i,
                   qgru_quantize(qgru_load(from, by->from, i) - by->from_offset, &by->grid) + by->to_offset);
}

#endif
