/* The flash: pages are erased to 0xFF, blank words are programmed once. Any operation may be the one that power fails in. */
#ifndef FLASH_H
#define FLASH_H

#include <stdint.h>

#define FLASH_START 0x21000000u /* where the core sees it; models are run in place */
#define FLASH_PAGE 1024u
#define FLASH_WORD 32u /* programmed at once, and only when blank: as on parts whose words carry an ECC */

#define RECORD_PAGES 2u
#define SLOT_COUNT 2u
#define SLOT_BYTES (16u * FLASH_PAGE) /* first page: manifest; from the second: the model */
#define SLOT_OFFSET(slot) (FLASH_PAGE * 4u + (slot)*SLOT_BYTES)
#define FLASH_BYTES SLOT_OFFSET(SLOT_COUNT)

/* Offsets count from FLASH_START. 0, or -1: not on a border, outside, or the word is not blank. */
int flash_erase(uint32_t page_offset);
int flash_program(uint32_t word_offset, const uint8_t word[FLASH_WORD]);
const uint8_t *flash_at(uint32_t offset);
int flash_is_blank(uint32_t word_offset);

#endif
