/* The boot record: a log in two pages. Its newest valid entry says which slot to boot and the highest counter ever. */
#ifndef RECORD_H
#define RECORD_H

#include "flash.h"

typedef struct record {
  uint32_t magic, sequence; /* the entry with the highest sequence counts */
  uint32_t slot, counter;
  uint32_t unused[3];
  uint32_t check; /* CRC-32 of what precedes: tells a torn entry */
} record;

/* 1 and the newest valid entry, or 0: there is none. */
int record_newest(record *newest);
/* One flash word switches the device over: before it the old entry holds, after it the new one. 0, or -1. */
int record_append(uint32_t slot, uint32_t counter);
/* Words that are still blank behind the newest entry. */
uint32_t record_room(void);

#endif
