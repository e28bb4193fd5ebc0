/* ht_harness.h - what the proof program needs of the machine it runs on: the host, or a board in QEMU. */
#ifndef HT_HARNESS_H
#define HT_HARNESS_H

#include <stdint.h>

/* Read a whole file into memory; its length, or -1 when it is missing or longer than room. */
int32_t hh_read_file(const char *path, void *to, uint32_t room);
int32_t hh_write_file(const char *path, const void *from, uint32_t bytes);
void hh_print(const char *text);
void hh_print_number(const char *before, uint32_t value, const char *after);
void hh_print_hex(const char *before, uint32_t value, const char *after);

/* Instruction clock and painted stack; on the host both are absent and read 0. */
void hh_clock_start(void);
uint32_t hh_clock_ticks(void);
void hh_stack_paint(void);
uint32_t hh_stack_depth(void);

#endif
