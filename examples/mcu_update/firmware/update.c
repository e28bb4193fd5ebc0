/* Check, erase, write, read back, manifest, switch: see the README's table. */
#include "update.h"

#include <string.h>

#include "record.h"
#include "slot.h"

static refusal check_offer(const boot_choice *running, const update_source *source, manifest *offered) {
  if (source->read(source->user, 0, offered, sizeof *offered) != sizeof *offered) {
    return TRUNCATED;
  }
  const refusal reason = manifest_check(offered);
  if (reason != ACCEPTED) {
    return reason;
  }
  return offered->counter > running->floor ? ACCEPTED : OLD_COUNTER;
}

/* The manifest's page goes first, so that a half-written slot never has one. */
static refusal erase_slot(uint32_t slot, uint32_t model_bytes) {
  for (uint32_t at = 0; at < FLASH_PAGE + model_bytes; at += FLASH_PAGE) {
    if (flash_erase(SLOT_OFFSET(slot) + at) != 0) {
      return FLASH_FAILED;
    }
  }
  return ACCEPTED;
}

static refusal write_model(uint32_t slot, uint32_t model_bytes, const update_source *source) {
  const uint32_t start = (uint32_t)sizeof(manifest) + slot * model_bytes;
  uint8_t word[FLASH_WORD];
  for (uint32_t at = 0; at < model_bytes; at += FLASH_WORD) {
    if (source->read(source->user, start + at, word, FLASH_WORD) != FLASH_WORD) {
      return TRUNCATED;
    }
    if (flash_program(MODEL_OFFSET(slot) + at, word) != 0) {
      return FLASH_FAILED;
    }
  }
  return ACCEPTED;
}

static refusal write_manifest(uint32_t slot, const manifest *m) {
  for (uint32_t at = 0; at < sizeof *m; at += FLASH_WORD) {
    uint8_t word[FLASH_WORD];
    memcpy(word, (const uint8_t *)m + at, FLASH_WORD);
    if (flash_program(SLOT_OFFSET(slot) + at, word) != 0) {
      return FLASH_FAILED;
    }
  }
  return memcmp(flash_at(SLOT_OFFSET(slot)), m, sizeof *m) == 0 ? ACCEPTED : FLASH_FAILED;
}

refusal update_install(const boot_choice *running, const update_source *source) {
  const uint32_t slot = running->slot == 0 ? 1 : 0;
  manifest m;
  refusal reason = check_offer(running, source, &m);
  if (reason == ACCEPTED) {
    reason = erase_slot(slot, m.model_bytes);
  }
  if (reason == ACCEPTED) {
    reason = write_model(slot, m.model_bytes, source);
  }
  if (reason == ACCEPTED) {
    reason = slot_check_model(slot, &m);
  }
  if (reason == ACCEPTED) {
    reason = write_manifest(slot, &m);
  }
  if (reason == ACCEPTED && record_append(slot, m.counter) != 0) {
    reason = FLASH_FAILED;
  }
  return reason;
}
