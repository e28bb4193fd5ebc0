/* Start-up and SysTick of the QEMU MPS boards; natively only board_ticks. */
#include <stdint.h>

uint32_t board_ticks(void);

#ifdef __arm__
#include <stdlib.h>

extern uint32_t _data_start[], _data_end[], _data_load[], __bss_start__[], __bss_end__[], _stack_top[];
extern void initialise_monitor_handles(void);
int main(int argc, char **argv);
void reset(void);
void _init(void);
void _fini(void);
void _init(void) {}
void _fini(void) {}

uint32_t board_ticks(void) {
  return *(volatile uint32_t *)0xE000E018u;
}

void reset(void) {
  *(volatile uint32_t *)0xE000ED88u |= 0xFu << 20; /* coprocessors: FPU and MVE */
  __asm__ volatile("dsb\n\tisb" ::: "memory");
  for (uint32_t *d = _data_start, *s = _data_load; d < _data_end;) {
    *d++ = *s++;
  }
  for (uint32_t *b = __bss_start__; b < __bss_end__;) {
    *b++ = 0;
  }
  *(volatile uint32_t *)0xE000E014u = 0xFFFFFFu; /* SysTick: reload, clear, core clock */
  *(volatile uint32_t *)0xE000E018u = 0;
  *(volatile uint32_t *)0xE000E010u = 5;
  initialise_monitor_handles();
  exit(main(0, (char **)0));
}

static void hang(void) {
  exit(99);
}

typedef void (*handler)(void);
__attribute__((section(".vectors"), used)) static const handler vectors[16] = {
    (handler)(uintptr_t)_stack_top, reset, hang, hang, hang, hang, hang, 0, 0, 0, 0, hang, hang, 0, hang, hang};
#else
uint32_t board_ticks(void) {
  return 0;
}
#endif
