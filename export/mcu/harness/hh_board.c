/* The proof program's machine, on a Cortex-M in QEMU: semihosting, SysTick under -icount, painted stack. */
#include <stddef.h>

#include "ht_harness.h"

extern uint32_t hh_stack_limit[], hh_stack_top[];
extern uint32_t hh_data_load[], hh_data_start[], hh_data_end[], hh_bss_start[], hh_bss_end[];
extern uint32_t hh_own_bss_start[], hh_own_bss_end[];
int main(void);
void hh_reset(void);
void hh_fault(void);
void ht_prof_mark(int layer);

static uint32_t semihost(uint32_t operation, const void *argument) {
  register uint32_t r0 __asm__("r0") = operation;
  register const void *r1 __asm__("r1") = argument;
  __asm__ volatile("bkpt 0xab" : "+r"(r0) : "r"(r1) : "memory");
  return r0;
}

static void leave(uint32_t status) {
  const uint32_t exit_block[2] = {0x20026u, status}; /* ADP_Stopped_ApplicationExit */
  semihost(0x20u, exit_block);
  for (;;) {
  }
}

/* Prints why the core stopped; the addresses help with addr2line. */
void hh_fault(void) {
  const uint32_t *frame;
  __asm__ volatile("mov %0, sp" : "=r"(frame));
  hh_print_hex("fault: status ", *(volatile uint32_t *)0xE000ED28u, "");
  hh_print_hex(" hard ", *(volatile uint32_t *)0xE000ED2Cu, "");
  hh_print_hex(" secure ", *(volatile uint32_t *)0xE000EDE4u, "");
  hh_print_hex(" address ", *(volatile uint32_t *)0xE000ED38u, "\n");
  for (int i = 0; i < 16; ++i) {
    hh_print_hex(" ", frame[i], i == 15 ? "\n" : "");
  }
  leave(99);
}

void hh_reset(void) {
  *(volatile uint32_t *)0xE000ED88u |= 0xFu << 20; /* CPACR: FPU and MVE on */
  __asm__ volatile("dsb\n isb" ::: "memory");
  const uint32_t *from = hh_data_load;
  for (uint32_t *to = hh_data_start; to < hh_data_end; ++to) {
    *to = *from++;
  }
  for (uint32_t *to = hh_bss_start; to < hh_bss_end; ++to) {
    *to = 0;
  }
  for (uint32_t *to = hh_own_bss_start; to < hh_own_bss_end; ++to) {
    *to = 0;
  }
  leave((uint32_t)main());
}

typedef void (*vector)(void);
__attribute__((section(".vectors"), used)) static const vector vectors[16] = {
    (vector)hh_stack_top, hh_reset, hh_fault, hh_fault, hh_fault, hh_fault, hh_fault, hh_fault,
    hh_fault, hh_fault, hh_fault, hh_fault, hh_fault, hh_fault, hh_fault, hh_fault};

/* volatile: no call of strlen, whose code would count as the product's flash. */
static uint32_t length_of(const volatile char *text) {
  uint32_t n = 0;
  while (text[n]) {
    ++n;
  }
  return n;
}

static uint32_t open_file(const char *path, uint32_t mode) {
  const uint32_t block[3] = {(uint32_t)path, mode, length_of(path)};
  return semihost(0x01u, block);
}

int32_t hh_read_file(const char *path, void *to, uint32_t room) {
  const uint32_t file = open_file(path, 1);
  if (file == 0xFFFFFFFFu) {
    return -1;
  }
  const uint32_t size = semihost(0x0Cu, &file);
  uint32_t left = 1;
  if (size <= room) {
    const uint32_t block[3] = {file, (uint32_t)to, size};
    left = size ? semihost(0x06u, block) : 0;
  }
  semihost(0x02u, &file);
  return left == 0 ? (int32_t)size : -1;
}

int32_t hh_write_file(const char *path, const void *from, uint32_t bytes) {
  const uint32_t file = open_file(path, 5);
  if (file == 0xFFFFFFFFu) {
    return -1;
  }
  const uint32_t block[3] = {file, (uint32_t)from, bytes};
  const uint32_t left = semihost(0x05u, block);
  semihost(0x02u, &file);
  return left == 0 ? 0 : -1;
}

void hh_print(const char *text) {
  semihost(0x04u, text);
}

void hh_print_number(const char *before, uint32_t value, const char *after) {
  char digits[12];
  char *first = digits + sizeof digits - 1;
  *first = 0;
  do {
    *--first = (char)('0' + value % 10u);
    value /= 10u;
  } while (value);
  hh_print(before);
  hh_print(first);
  hh_print(after);
}

void hh_print_hex(const char *before, uint32_t value, const char *after) {
  char digits[9];
  for (int i = 0; i < 8; ++i) {
    digits[i] = "0123456789abcdef"[(value >> (28 - 4 * i)) & 15u];
  }
  digits[8] = 0;
  hh_print(before);
  hh_print(digits);
  hh_print(after);
}

#define SYST_CSR (*(volatile uint32_t *)0xE000E010u)
#define SYST_RVR (*(volatile uint32_t *)0xE000E014u)
#define SYST_CVR (*(volatile uint32_t *)0xE000E018u)
static uint32_t wraps;

#ifdef HH_PROFILE
uint32_t hh_layer_ticks[256];
static uint32_t layer_start;
#endif

/* The counter has 24 bits; marks come often enough to see every wrap. */
void ht_prof_mark(int layer) {
  if (SYST_CSR & (1u << 16)) {
    ++wraps;
  }
#ifdef HH_PROFILE
  const uint32_t now = SYST_CVR;
  hh_layer_ticks[layer & 255] += (layer_start - now) & 0xFFFFFFu;
  layer_start = SYST_CVR;
#else
  (void)layer;
#endif
}

void hh_clock_start(void) {
  wraps = 0;
  SYST_CSR = 0;
  SYST_RVR = 0xFFFFFFu;
  SYST_CVR = 0;
  SYST_CSR = 5;
#ifdef HH_PROFILE
  layer_start = 0xFFFFFFu;
#endif
  __asm__ volatile("dsb\n isb" ::: "memory");
}

uint32_t hh_clock_ticks(void) {
  __asm__ volatile("dsb\n isb" ::: "memory");
  const uint32_t now = SYST_CVR;
  if (SYST_CSR & (1u << 16)) {
    ++wraps;
  }
  return wraps * 0x1000000u + (0xFFFFFFu - now);
}

static uint32_t *painted_to;

/* Paints from the stack's end to just below this function's own frame, for which 64 bytes are spared. */
__attribute__((noinline)) void hh_stack_paint(void) {
  uint32_t *sp;
  __asm__ volatile("mov %0, sp" : "=r"(sp));
  painted_to = sp;
  for (uint32_t *at = hh_stack_limit; at < sp - 16; ++at) {
    *at = 0xA5C35A3Cu;
  }
}

__attribute__((noinline)) uint32_t hh_stack_depth(void) {
  const uint32_t *at = hh_stack_limit;
  while (at < painted_to - 16 && *at == 0xA5C35A3Cu) {
    ++at;
  }
  return (uint32_t)((const uint8_t *)painted_to - (const uint8_t *)at);
}
