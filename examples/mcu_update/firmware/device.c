/* Packages from files, and the call into a model's image. */
#include "device.h"

#include <string.h>

#include "ht_harness.h"
#include "slot.h"

static int8_t arena[MODEL_ARENA_MOST] __attribute__((aligned(8)));

int package_load(package *to, const char *path) {
  const int32_t bytes = hh_read_file(path, to->data, sizeof to->data);
  to->bytes = bytes > 0 ? (uint32_t)bytes : 0;
  return bytes >= 0;
}

static uint32_t read_package(void *user, uint32_t offset, void *to, uint32_t bytes) {
  const package *from = (const package *)user;
  const uint32_t left = offset < from->bytes ? from->bytes - offset : 0;
  const uint32_t count = bytes < left ? bytes : left;
  memcpy(to, from->data + offset, count);
  return count;
}

update_source package_source(package *from) {
  const update_source source = {read_package, from};
  return source;
}

uint32_t device_run(uint32_t slot, const int8_t **output) {
  static int8_t input[MODEL_ARENA_MOST];
  static int32_t input_bytes = -1;
  const model *chosen = slot_model(slot);
  if (input_bytes < 0) {
    input_bytes = hh_read_file("input.bin", input, sizeof input);
  }
  if (input_bytes < 0 || (uint32_t)input_bytes != chosen->input_bytes) {
    return 0;
  }
  memcpy(arena + chosen->input_offset, input, chosen->input_bytes);
  if (chosen->run(arena) != 0) {
    return 0;
  }
  *output = arena + chosen->output_offset;
  return chosen->output_bytes;
}
