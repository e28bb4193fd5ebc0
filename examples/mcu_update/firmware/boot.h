/* What a reset does: choose a slot whose model verifies. */
#ifndef BOOT_H
#define BOOT_H

#include "manifest.h"

#define NO_SLOT 0xFFFFFFFFu

typedef struct boot_choice {
  uint32_t slot;    /* verified just now, or NO_SLOT */
  uint32_t counter; /* of that model */
  uint32_t floor;   /* an update must be above: the highest counter that was ever recorded */
  refusal recorded; /* why the recorded slot was not taken; ACCEPTED when it was */
} boot_choice;

boot_choice boot_choose(void);

#endif
