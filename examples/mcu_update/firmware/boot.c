/* The recorded slot if it verifies, else the other one if that verifies: a damaged flash must not stop the device. */
#include "boot.h"

#include "record.h"
#include "slot.h"

static void take_better(boot_choice *choice, uint32_t slot) {
  uint32_t counter = 0;
  if (slot_verify(slot, &counter) == ACCEPTED && (choice->slot == NO_SLOT || counter > choice->counter)) {
    choice->slot = slot;
    choice->counter = counter;
  }
}

boot_choice boot_choose(void) {
  boot_choice choice = {NO_SLOT, 0, 0, NOT_A_MANIFEST};
  record newest;
  if (record_newest(&newest)) {
    choice.floor = newest.counter;
    choice.recorded = slot_verify(newest.slot, &choice.counter);
    if (choice.recorded == ACCEPTED) {
      choice.slot = newest.slot;
    } else {
      take_better(&choice, 1u - newest.slot);
    }
    return choice;
  }
  /* No record: a new device, or both record pages are damaged. */
  for (uint32_t slot = 0; slot < SLOT_COUNT; ++slot) {
    take_better(&choice, slot);
  }
  choice.floor = choice.counter;
  return choice;
}
