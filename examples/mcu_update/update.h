/*
 * update.h - two model slots in flash, signed packages with a counter, always a verified model after a power cut.
 *
 * A package is a header and a model. The header is signed with a Winternitz one-time signature (SHA-256, w = 16); the
 * sixteen one-time keys of a device family are the leaves of a Merkle tree, whose root is all that the device stores.
 * Package n uses leaf n, so that counter and key can not be exchanged, and a counter never goes back.
 */
#ifndef UPDATE_H
#define UPDATE_H

#include <stdint.h>

enum {
  UP_SECTOR = 4096,
  UP_SLOT_SECTORS = 3, /* one for the header, the rest for the model */
  UP_SLOT = UP_SECTOR * UP_SLOT_SECTORS,
  UP_UNIT = 16, /* the smallest flash write */
  UP_CHAINS = 67,
  UP_HEIGHT = 4,
  UP_MODEL_ROOM = UP_SLOT - UP_SECTOR
};

typedef struct up_header {
  uint32_t magic, counter, model_bytes, reserved;
  uint8_t digest[32]; /* SHA-256 of the model */
  uint8_t path[UP_HEIGHT][32];
  uint8_t signature[UP_CHAINS][32];
} up_header; /* 2320 bytes, a multiple of UP_UNIT */

enum { UP_OK = 0, UP_POWER_LOST, UP_BAD_PACKAGE, UP_OLD_PACKAGE };
#define UP_MAGIC 0x31505448u /* "HTP1" */

/* Flash as the device has it; both functions return 0 when the power went away meanwhile. */
typedef struct up_flash {
  const uint8_t *base; /* two slots */
  int (*erase)(void *user, uint32_t sector);
  int (*write)(void *user, uint32_t address, const uint8_t *unit);
  void *user;
} up_flash;

void up_sha256(const void *data, uint32_t bytes, uint8_t digest[32]);

/* Whether a header is signed under root and the model is the one it names. */
int up_verify(const up_header *header, const uint8_t *model, const uint8_t root[32]);

/* The slot (0 or 1) of the newest verified model, or -1. */
int up_boot(const up_flash *flash, const uint8_t root[32]);

/* Verify a package and put it into the slot that does not run. The header's first unit is written last of all. */
int up_install(const up_flash *flash, const uint8_t root[32], const up_header *header, const uint8_t *model);

#endif
