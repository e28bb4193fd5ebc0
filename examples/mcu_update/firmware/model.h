/* The start of a model's image. The rest is code and constants, linked for the slot that it runs in. */
#ifndef MODEL_H
#define MODEL_H

#include <stdint.h>

#define MODEL_MAGIC 0x444D5448u /* "HTMD" */
#define MODEL_ARENA_MOST 16384u /* what this firmware lends a model */

typedef struct model {
  uint32_t magic;
  uint32_t arena_bytes, input_offset, input_bytes, output_offset, output_bytes;
  int (*run)(int8_t *arena);
} model;

#endif
