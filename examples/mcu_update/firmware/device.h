/* What both programs share: files as the download, and running the booted model. */
#ifndef DEVICE_H
#define DEVICE_H

#include "boot.h"
#include "update.h"

typedef struct package {
  uint32_t bytes;
  uint8_t data[2u * 16384u + 256u];
} package;

/* Read a file. 1, or 0: missing or too long. */
int package_load(package *to, const char *path);
update_source package_source(package *from);

/* Run the slot's model on input.bin. Its output in *output, whose length is returned; 0: no input, or the run failed. */
uint32_t device_run(uint32_t slot, const int8_t **output);

#endif
