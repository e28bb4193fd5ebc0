/* A slot: its manifest in the first page, its model from the second. */
#ifndef SLOT_H
#define SLOT_H

#include "manifest.h"
#include "model.h"

#define MODEL_OFFSET(slot) (SLOT_OFFSET(slot) + FLASH_PAGE)

/* Do the bytes in the flash have the hash that a (checked) manifest states for this slot, and are they a model? */
refusal slot_check_model(uint32_t slot, const manifest *m);
/* Everything: manifest, signature, board, hash. *counter is set when the slot is accepted. */
refusal slot_verify(uint32_t slot, uint32_t *counter);
/* The model of a verified slot. */
const model *slot_model(uint32_t slot);

#endif
