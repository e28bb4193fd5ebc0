/* Receives a model into the slot that is not in use. */
#ifndef UPDATE_H
#define UPDATE_H

#include "boot.h"

/* The download. A package is a manifest, the image for slot A, the image for slot B; only one of the two is read. */
typedef struct update_source {
  /* Read up to `bytes` from `offset`; how many came. */
  uint32_t (*read)(void *user, uint32_t offset, void *to, uint32_t bytes);
  void *user;
} update_source;

/* Install, and switch over as the last step. Any refusal leaves the running model and the record as they were. */
refusal update_install(const boot_choice *running, const update_source *source);

#endif
