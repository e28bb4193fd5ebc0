/* The proof program's machine, on the host: plain files, no clock. */
#include <stdio.h>

#include "ht_harness.h"

int32_t hh_read_file(const char *path, void *to, uint32_t room) {
  FILE *file = fopen(path, "rb");
  if (!file) {
    return -1;
  }
  const size_t got = fread(to, 1, room, file);
  const int more = fgetc(file) != EOF;
  fclose(file);
  return more ? -1 : (int32_t)got;
}

int32_t hh_write_file(const char *path, const void *from, uint32_t bytes) {
  FILE *file = fopen(path, "wb");
  if (!file) {
    return -1;
  }
  const size_t put = fwrite(from, 1, bytes, file);
  return fclose(file) == 0 && put == bytes ? 0 : -1;
}

void hh_print(const char *text) {
  fputs(text, stdout);
}

void hh_print_number(const char *before, uint32_t value, const char *after) {
  printf("%s%lu%s", before, (unsigned long)value, after);
}

void hh_print_hex(const char *before, uint32_t value, const char *after) {
  printf("%s%08lx%s", before, (unsigned long)value, after);
}

void hh_clock_start(void) {
}

uint32_t hh_clock_ticks(void) {
  return 0;
}

void hh_stack_paint(void) {
}

uint32_t hh_stack_depth(void) {
  return 0;
}
