/* What a signed manifest says, and why one is refused. Numbers are little-endian, as is the core. */
#ifndef MANIFEST_H
#define MANIFEST_H

#include "signature.h"

#define MANIFEST_MAGIC 0x50555448u /* "HTUP" */
#define MANIFEST_FORMAT 1u
#define BOARD_NAME_BYTES 16u

typedef struct manifest {
  uint32_t magic, format;
  uint32_t counter;     /* higher than that of every model installed before */
  uint32_t model_bytes; /* of each of the two images; a multiple of FLASH_WORD */
  char board[BOARD_NAME_BYTES];      /* zeros after the name */
  uint8_t signer[PUBLIC_KEY_BYTES];  /* only says whose signature to expect; the device's own key checks it */
  uint8_t sha256[2][32];             /* of the image linked for slot A, and for slot B */
  uint8_t signature[SIGNATURE_BYTES]; /* over everything before */
} manifest;

#define MANIFEST_SIGNED_BYTES ((uint32_t)(sizeof(manifest) - SIGNATURE_BYTES))

typedef enum refusal {
  ACCEPTED,
  TRUNCATED,
  NOT_A_MANIFEST,
  WRONG_KEY,
  BAD_SIGNATURE,
  WRONG_BOARD,
  WRONG_SIZE,
  OLD_COUNTER,
  WRONG_HASH,
  NOT_A_MODEL,
  FLASH_FAILED,
  REFUSALS
} refusal;

const char *refusal_name(refusal reason);

/* The device's identity, fixed when the firmware is built. */
extern const char device_board[BOARD_NAME_BYTES];
extern const uint8_t device_key[PUBLIC_KEY_BYTES];

/* Is it whole, ours, for this board, and does the model fit? All but the counter. */
refusal manifest_check(const manifest *m);

#endif
