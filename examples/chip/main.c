/* Runs model_vectors.h on a microcontroller, prints the integers, and counts instructions.
 *
 * The count is QEMU's under `-icount shift=0`, where every instruction takes one tick of virtual time: read from SysTick
 * on a Cortex-M, whose ticks are compared with a loop of known length first, and from minstret on a RISC-V. On a real
 * chip the same lines count cycles.
 */
#include <stdint.h>
#include <stdio.h>

#include "model.h"
#include "model_vectors.h"

#if defined(__riscv)
static uint32_t now(void)
{
    uint32_t instructions;
    __asm__ volatile(".option arch, +zicsr\n csrr %0, minstret" : "=r"(instructions));
    return instructions;
}

static void start(void)
{
}

static uint32_t since(uint32_t before)
{
    return now() - before;
}

static double instructions_a_tick(void)
{
    return 1;
}
#else
#define SYST ((volatile uint32_t *)0xE000E010) /* control, reload value, current value */

static uint32_t now(void)
{
    return 0xFFFFFF - SYST[2]; /* it counts down */
}

static void start(void)
{
    SYST[1] = 0xFFFFFF;
    SYST[2] = 0;
    SYST[0] = 5; /* the processor's clock, no interrupt */
}

static uint32_t since(uint32_t before)
{
    return (now() - before) & 0xFFFFFF;
}

static double instructions_a_tick(void)
{
    uint32_t rounds = 1000000;
    const uint32_t before = now();
    __asm__ volatile(".syntax unified\n1: subs %0, %0, #1\n bne 1b" : "+l"(rounds) : : "cc");
    return 2e6 / since(before);
}
#endif

int main(void)
{
    static model_state state;
    static model_y y[MODEL_OUTPUT];
    long differing = 0;
    uint32_t ticks = 0;
    start();
    const double a_tick = instructions_a_tick();
    model_reset(&state);
    for (int32_t t = 0; t < MODEL_STEPS; ++t) {
        const uint32_t before = now();
        model_step(&state, model_inputs + t * MODEL_INPUT, y);
        ticks += since(before);
        printf("step %ld:", (long)t);
        for (int i = 0; i < MODEL_OUTPUT; ++i) {
            printf(" %d", y[i]);
            differing += y[i] != model_outputs[t * MODEL_OUTPUT + i];
        }
        printf("\n");
    }
#ifdef MODEL_LOGITS
    int16_t logits[MODEL_LOGITS];
    model_logits(&state, logits);
    printf("logits:");
    for (int i = 0; i < MODEL_LOGITS; ++i) {
        printf(" %d", logits[i]);
        differing += logits[i] != model_expected_logits[(MODEL_STEPS - 1) * MODEL_LOGITS + i];
    }
    printf("\n");
#endif
    printf("%ld integers differ from qgru's\n", differing);
    printf("%.0f instructions a step\n", a_tick * ticks / MODEL_STEPS);
    return differing != 0;
}
