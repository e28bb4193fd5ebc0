/* A flash in memory that can lose its power in every operation. */
#include "flash_sim.h"

#include <string.h>

__attribute__((section(".flash"))) uint8_t flash_sim_bytes[FLASH_BYTES];
jmp_buf flash_sim_power;

static uint32_t operations, cut_number = FLASH_SIM_NEVER, cut_variant;
static flash_sim_tear cut_tear;

void flash_sim_cut_at(uint32_t number, flash_sim_tear tear, uint32_t variant) {
  operations = 0;
  cut_number = number;
  cut_tear = tear;
  cut_variant = variant;
}

uint32_t flash_sim_operations(void) {
  return operations;
}

static uint32_t next_random(uint32_t *state) {
  *state = *state * 1664525u + 1013904223u;
  return *state >> 24;
}

/* Leave target somewhere between what it is and `wanted`; a NULL `wanted` is 0xFF everywhere. Bits that agree stay. */
static void tear(uint8_t *target, const uint8_t *wanted, uint32_t bytes) {
  uint32_t random = 64u * cut_number + cut_variant;
  const uint32_t done = cut_variant % 32u * bytes / 32u;
  for (uint32_t i = 0; i < bytes; ++i) {
    const uint8_t to = wanted ? wanted[i] : 0xFFu;
    const uint32_t changing = (uint32_t)(target[i] ^ to) & (cut_tear == TEAR_BITS ? next_random(&random) : i < done ? 0xFFu : 0u);
    target[i] = (uint8_t)(target[i] ^ changing);
  }
}

static void complete(uint8_t *target, const uint8_t *wanted, uint32_t bytes) {
  if (wanted) {
    memcpy(target, wanted, bytes);
  } else {
    memset(target, 0xFF, bytes);
  }
}

static void operate(uint8_t *target, const uint8_t *wanted, uint32_t bytes) {
  if (operations++ != cut_number) {
    complete(target, wanted, bytes);
    return;
  }
  if (cut_tear == TEAR_AFTER) {
    complete(target, wanted, bytes);
  } else if (cut_tear != TEAR_BEFORE) {
    tear(target, wanted, bytes);
  }
  cut_number = FLASH_SIM_NEVER;
  longjmp(flash_sim_power, 1);
}

int flash_erase(uint32_t page_offset) {
  if (page_offset % FLASH_PAGE || page_offset >= FLASH_BYTES) {
    return -1;
  }
  operate(flash_sim_bytes + page_offset, NULL, FLASH_PAGE);
  return 0;
}

int flash_program(uint32_t word_offset, const uint8_t word[FLASH_WORD]) {
  if (word_offset % FLASH_WORD || word_offset >= FLASH_BYTES || !flash_is_blank(word_offset)) {
    return -1;
  }
  operate(flash_sim_bytes + word_offset, word, FLASH_WORD);
  return 0;
}

const uint8_t *flash_at(uint32_t offset) {
  return flash_sim_bytes + offset;
}

int flash_is_blank(uint32_t word_offset) {
  for (uint32_t i = 0; i < FLASH_WORD; ++i) {
    if (flash_sim_bytes[word_offset + i] != 0xFFu) {
      return 0;
    }
  }
  return 1;
}
