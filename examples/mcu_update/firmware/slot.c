/* Verification of what lies in a slot: always of the flash itself, never of what was meant to be written. */
#include "slot.h"

#include <string.h>

#include "flash.h"
#include "sha2.h"

const model *slot_model(uint32_t slot) {
  return (const model *)(const void *)flash_at(MODEL_OFFSET(slot));
}

static int is_within(uint32_t offset, uint32_t bytes, uint32_t room) {
  return offset <= room && bytes <= room - offset;
}

refusal slot_check_model(uint32_t slot, const manifest *m) {
  uint8_t digest[32];
  sha256(digest, flash_at(MODEL_OFFSET(slot)), m->model_bytes);
  if (memcmp(digest, m->sha256[slot], sizeof digest) != 0) {
    return WRONG_HASH;
  }
  const model *found = slot_model(slot);
  const uint32_t start = FLASH_START + MODEL_OFFSET(slot);
  const uint32_t entry = (uint32_t)(uintptr_t)found->run - start;
  if (m->model_bytes < sizeof *found || found->magic != MODEL_MAGIC || found->arena_bytes > MODEL_ARENA_MOST ||
      !is_within(found->input_offset, found->input_bytes, found->arena_bytes) ||
      !is_within(found->output_offset, found->output_bytes, found->arena_bytes) || entry >= m->model_bytes) {
    return NOT_A_MODEL; /* signed, but linked for another slot or for a larger board */
  }
  return ACCEPTED;
}

refusal slot_verify(uint32_t slot, uint32_t *counter) {
  manifest m;
  memcpy(&m, flash_at(SLOT_OFFSET(slot)), sizeof m);
  refusal reason = manifest_check(&m);
  if (reason == ACCEPTED) {
    reason = slot_check_model(slot, &m);
  }
  if (reason == ACCEPTED) {
    *counter = m.counter;
  }
  return reason;
}
