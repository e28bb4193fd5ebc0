/* Checks of a manifest; the cheap ones first, as they only save time: nothing passes without the signature. */
#include "manifest.h"

#include <string.h>

#include "flash.h"

const char *refusal_name(refusal reason) {
  static const char *const names[REFUSALS] = {
      "accepted", "truncated", "not a manifest", "wrong key", "bad signature", "wrong board",
      "wrong size", "counter not higher", "wrong model hash", "not a model", "flash failed"};
  return reason < REFUSALS ? names[reason] : "unknown";
}

refusal manifest_check(const manifest *m) {
  if (m->magic != MANIFEST_MAGIC || m->format != MANIFEST_FORMAT) {
    return NOT_A_MANIFEST;
  }
  if (memcmp(m->signer, device_key, PUBLIC_KEY_BYTES) != 0) {
    return WRONG_KEY;
  }
  if (!signature_is_valid(m->signature, device_key, (const uint8_t *)m, MANIFEST_SIGNED_BYTES)) {
    return BAD_SIGNATURE;
  }
  if (memcmp(m->board, device_board, BOARD_NAME_BYTES) != 0) {
    return WRONG_BOARD;
  }
  if (m->model_bytes == 0 || m->model_bytes > SLOT_BYTES - FLASH_PAGE || m->model_bytes % FLASH_WORD != 0) {
    return WRONG_SIZE;
  }
  return ACCEPTED;
}
