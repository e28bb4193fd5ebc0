/* The simulated flash's other side: its bytes, and power cuts. */
#ifndef FLASH_SIM_H
#define FLASH_SIM_H

#include <setjmp.h>

#include "flash.h"

extern uint8_t flash_sim_bytes[FLASH_BYTES];
extern jmp_buf flash_sim_power; /* a power cut jumps here with 1: the "reset" */

typedef enum flash_sim_tear {
  TEAR_BEFORE, /* power fails just before the operation */
  TEAR_BITS,   /* some of the bits that should change have changed, all over the word or page */
  TEAR_PART,   /* the first bytes are done, the rest are untouched */
  TEAR_AFTER,  /* the operation is complete, and nothing follows */
} flash_sim_tear;

#define FLASH_SIM_NEVER 0xFFFFFFFFu

/* Cut in operation `number`, counted from this call. variant: which bits, or (modulo 32) how many 32nds are done. */
void flash_sim_cut_at(uint32_t number, flash_sim_tear tear, uint32_t variant);
/* Operations since that call. */
uint32_t flash_sim_operations(void);

#endif
