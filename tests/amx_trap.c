/* AMX on a processor without it. Each of its instructions raises SIGILL there; this handler does what it says, from its bytes,
   and goes on behind it. So the code that is compiled for AMX runs as it is, some hundred times slower.

   cc -O2 -mfma -shared -fPIC amx_trap.c -o amx_trap.so; load it before the first instruction and call install().
   Bytes: C4, two of VEX (map 2), opcode, ModRM, and with memory SIB and displacement. Intel's manual, volume 2. */
#define _GNU_SOURCE
#include <math.h>
#include <signal.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <ucontext.h>

static __thread uint32_t tiles[8][16][16];
static __thread int configured;
static long counts[4]; /* of configurations, releases, multiplications, refusals to go on */

static const int REGISTERS[16] = {REG_RAX, REG_RCX, REG_RDX, REG_RBX, REG_RSP, REG_RBP, REG_RSI, REG_RDI,
                                  REG_R8,  REG_R9,  REG_R10, REG_R11, REG_R12, REG_R13, REG_R14, REG_R15};

static float number(uint32_t bits) {
    float value;
    if ((bits & 0x7F800000) == 0) bits &= 0x80000000; /* no denormals */
    memcpy(&value, &bits, 4);
    return value;
}

static float flushed(float value) { return fabsf(value) < 0x1p-126f ? copysignf(0, value) : value; }

static void multiply(uint32_t (*c)[16], uint32_t (*a)[16], uint32_t (*b)[16]) {
    for (int m = 0; m < 16; m++)
        for (int n = 0; n < 16; n++) {
            float even = 0, odd = 0, sum;
            for (int k = 0; k < 16; k++) {
                even = flushed(fmaf(number(a[m][k] << 16), number(b[k][n] << 16), even));
                odd = flushed(fmaf(number(a[m][k] & 0xFFFF0000), number(b[k][n] & 0xFFFF0000), odd));
            }
            sum = flushed(number(c[m][n]) + flushed(even + odd));
            memcpy(&c[m][n], &sum, 4);
        }
}

/* The address and the stride of a memory operand; its length is added to *at. */
static char *operand(greg_t *registers, const uint8_t **at, int rex_x, int rex_b, int has_sib, int64_t *stride) {
    int mode = (*at)[0] >> 6, base = (*at)[0] & 7;
    int64_t place = 0, shift = 0;
    *at += 1;
    if (base == 4) {
        int index = ((*at)[0] >> 3 & 7) | rex_x, scale = (*at)[0] >> 6;
        base = (*at)[0] & 7;
        *at += 1;
        *stride = index == 4 ? 0 : registers[REGISTERS[index]] << scale;
    } else if (has_sib)
        abort();
    if (mode == 0 && base == 5) abort(); /* relative to the instruction: not made by LLVM's large code model */
    if (mode == 1) shift = *(const int8_t *)*at, *at += 1;
    if (mode == 2) shift = *(const int32_t *)*at, *at += 4;
    place = registers[REGISTERS[base | rex_b]] + shift;
    return (char *)place;
}

static int step(greg_t *registers) {
    const uint8_t *at = (const uint8_t *)registers[REG_RIP];
    if (at[0] != 0xC4 || (at[1] & 0x1F) != 2 || (at[2] & 0x84) != 0) return 0;
    int rex_r = at[1] & 0x80 ? 0 : 8, rex_x = at[1] & 0x40 ? 0 : 8, rex_b = at[1] & 0x20 ? 0 : 8;
    int third = ~at[2] >> 3 & 15, prefix = at[2] & 3, opcode = at[3], model = at[4], tile = model >> 3 & 7;
    int64_t stride = 0;
    at += 4;
    if (opcode == 0x49 && prefix == 0 && model == 0xC0) { /* TILERELEASE */
        memset(tiles, 0xFF, sizeof tiles);
        configured = 0, at += 1;
        __atomic_add_fetch(&counts[1], 1, __ATOMIC_RELAXED);
    } else if (opcode == 0x49 && prefix == 0 && tile == 0 && model < 0xC0) { /* LDTILECFG */
        const uint8_t *wanted = (const uint8_t *)operand(registers, &at, rex_x, rex_b, 0, &stride) + stride;
        for (int i = 0; i < 64; i++)
            if (wanted[i] != (i == 0 ? 1 : i < 16 ? 0 : i < 32 ? (i % 2 ? 0 : 64) : i < 48 ? 0 : i < 56 ? 16 : 0)) return 0;
        memset(tiles, 0, sizeof tiles);
        configured = 1;
        __atomic_add_fetch(&counts[0], 1, __ATOMIC_RELAXED);
    } else if (!configured || rex_r) {
        return 0;
    } else if (opcode == 0x4B && (prefix == 3 || prefix == 2) && model < 0xC0) { /* TILELOADD, TILESTORED */
        char *place = operand(registers, &at, rex_x, rex_b, 1, &stride);
        for (int row = 0; row < 16; row++)
            if (prefix == 3)
                memcpy(tiles[tile][row], place + row * stride, 64);
            else
                memcpy(place + row * stride, tiles[tile][row], 64);
    } else if (opcode == 0x5C && prefix == 2 && model >= 0xC0 && !rex_b) { /* TDPBF16PS */
        if (third > 7 || tile == third || tile == (model & 7) || third == (model & 7)) return 0;
        multiply(tiles[tile], tiles[model & 7], tiles[third]);
        __atomic_add_fetch(&counts[2], 1, __ATOMIC_RELAXED);
        at += 1;
    } else
        return 0;
    registers[REG_RIP] = (greg_t)at;
    return 1;
}

static void handle(int number, siginfo_t *info, void *context) {
    (void)info;
    if (!step(((ucontext_t *)context)->uc_mcontext.gregs)) {
        counts[3]++;
        signal(number, SIG_DFL);
    }
}

long *install(void) {
    struct sigaction action = {0};
    action.sa_sigaction = handle;
    action.sa_flags = SA_SIGINFO | SA_NODEFER;
    sigaction(SIGILL, &action, NULL);
    return counts;
}
