/* Append-only boot record. A page is erased only while the newest entry lies in the other one. */
#include "record.h"

#include <string.h>

#define RECORD_MAGIC 0x43525448u /* "HTRC" */
#define PER_PAGE (FLASH_PAGE / FLASH_WORD)
#define PLACES (RECORD_PAGES * PER_PAGE)
#define NOWHERE 0xFFFFFFFFu

typedef char record_is_one_word[sizeof(record) == FLASH_WORD ? 1 : -1];

static uint32_t crc32(const void *data, uint32_t bytes) {
  const uint8_t *from = (const uint8_t *)data;
  uint32_t crc = 0xFFFFFFFFu;
  for (uint32_t i = 0; i < bytes; ++i) {
    crc ^= from[i];
    for (unsigned bit = 0; bit < 8; ++bit) {
      crc = crc >> 1 ^ (crc & 1u ? 0xEDB88320u : 0u);
    }
  }
  return ~crc;
}

static uint32_t check_of(const record *entry) {
  return crc32(entry, (uint32_t)(sizeof *entry - sizeof entry->check));
}

/* Place of the newest valid entry, or NOWHERE. */
static uint32_t find_newest(record *newest) {
  uint32_t place = NOWHERE;
  for (uint32_t i = 0; i < PLACES; ++i) {
    record entry;
    memcpy(&entry, flash_at(i * FLASH_WORD), sizeof entry);
    if (entry.magic == RECORD_MAGIC && entry.check == check_of(&entry) && entry.slot < SLOT_COUNT &&
        (place == NOWHERE || entry.sequence > newest->sequence)) {
      *newest = entry;
      place = i;
    }
  }
  return place;
}

/* First blank place behind `place` in its page; places with a torn entry are passed over. */
static uint32_t next_blank(uint32_t place) {
  if (place == NOWHERE) {
    return NOWHERE;
  }
  for (uint32_t i = place + 1; i % PER_PAGE != 0; ++i) {
    if (flash_is_blank(i * FLASH_WORD)) {
      return i;
    }
  }
  return NOWHERE;
}

int record_newest(record *newest) {
  return find_newest(newest) != NOWHERE;
}

uint32_t record_room(void) {
  record newest;
  const uint32_t place = next_blank(find_newest(&newest));
  return place == NOWHERE ? 0 : PER_PAGE - place % PER_PAGE;
}

int record_append(uint32_t slot, uint32_t counter) {
  record newest, entry = {RECORD_MAGIC, 1, slot, counter, {0, 0, 0}, 0};
  const uint32_t last = find_newest(&newest);
  uint32_t place = next_blank(last);
  if (last != NOWHERE) {
    entry.sequence = newest.sequence + 1;
  }
  if (place == NOWHERE) {
    place = last == NOWHERE || last >= PER_PAGE ? 0 : PER_PAGE; /* start of the other page */
    if (flash_erase(place * FLASH_WORD) != 0) {
      return -1;
    }
  }
  entry.check = check_of(&entry);
  return flash_program(place * FLASH_WORD, (const uint8_t *)&entry);
}
