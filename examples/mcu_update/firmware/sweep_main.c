/* Cuts the power in every flash operation of an update, in every way a cut can tear it, and resets each time.
 *
 * A reset is a jump back to the start; nothing that boot or update keeps outlives it but the flash. After it the device
 * must boot a model that verifies and gives its own golden output; the update must then go through, and the new model
 * must run. package1.bin to package3.bin hold the counters 1 to 3; 1 and 3 are the model of odd.bin (its golden output),
 * 2 that of even.bin.
 */
#include <string.h>

#include "device.h"
#include "flash_sim.h"
#include "ht_harness.h"
#include "record.h"

#ifndef EVERY_TEAR
#define EVERY_TEAR 0 /* 1: take more time, and tear in every way in all three updates */
#endif

typedef struct expectation {
  int32_t bytes;
  int8_t data[1024];
} expectation;

typedef struct tally {
  uint32_t points, booted_none, booted_old, booted_new, failures;
} tally;

static package packages[3];
static expectation golden[2]; /* of even and odd counters */
static uint8_t saved[FLASH_BYTES];

/* 1: the chosen slot's model gives the golden output that belongs to its counter. */
static int runs_right(const boot_choice *choice) {
  const expectation *wanted = &golden[choice->counter & 1u];
  const int8_t *output = NULL;
  const uint32_t bytes = device_run(choice->slot, &output);
  return bytes != 0 && bytes == (uint32_t)wanted->bytes && memcmp(output, wanted->data, bytes) == 0;
}

static refusal install(const boot_choice *running, uint32_t counter) {
  const update_source source = package_source(&packages[counter - 1]);
  return update_install(running, &source);
}

static refusal boot_and_install(uint32_t counter) {
  const boot_choice running = boot_choose();
  return install(&running, counter);
}

/* Reset after a cut: boot, update again, boot. old is the counter before (0: an empty device). 1: all as it must be. */
static int recovers(uint32_t old, tally *sums) {
  const boot_choice first = boot_choose();
  if (first.slot == NO_SLOT) {
    ++sums->booted_none;
    if (old != 0) {
      return 0;
    }
  } else if (first.counter == old || first.counter == old + 1) {
    ++*(first.counter == old ? &sums->booted_old : &sums->booted_new);
    if (first.recorded != ACCEPTED && old != 0) {
      return 0;
    }
    if (first.floor != first.counter || !runs_right(&first)) {
      return 0;
    }
  } else {
    return 0;
  }
  const refusal again = install(&first, old + 1);
  if (again != (first.counter == old + 1 ? OLD_COUNTER : ACCEPTED)) {
    return 0;
  }
  const boot_choice last = boot_choose();
  return last.slot != NO_SLOT && last.counter == old + 1 && last.floor == last.counter && runs_right(&last);
}

static void cut(const boot_choice *running, uint32_t operation, flash_sim_tear tear, uint32_t variant, tally *sums) {
  const uint32_t old = running->counter;
  memcpy(flash_sim_bytes, saved, FLASH_BYTES);
  ++sums->points;
  if (setjmp(flash_sim_power) == 0) {
    flash_sim_cut_at(operation, tear, variant);
    (void)install(running, old + 1);
    hh_print_number("operation ", operation, ": was not reached\n");
    ++sums->failures;
    return;
  }
  if (!recovers(old, sums)) {
    hh_print_number("operation ", operation, "");
    hh_print_number(", tear ", (uint32_t)tear, ": FAILED\n");
    ++sums->failures;
  }
}

/* Update the flash as it is to the next counter, with every cut. Returns the failures.
 * Every operation is cut: before it starts, in some of its bits, and in part; or (every_tear 0) in one of these, in turn.
 * The last operation switches over, so it is cut at every byte.
 */
static uint32_t sweep(const char *name, int every_tear) {
  static tally sums;
  const boot_choice running = boot_choose();
  memset(&sums, 0, sizeof sums);
  memcpy(saved, flash_sim_bytes, FLASH_BYTES);
  flash_sim_cut_at(FLASH_SIM_NEVER, TEAR_BEFORE, 0);
  if (install(&running, running.counter + 1) != ACCEPTED) {
    ++sums.failures;
  }
  const uint32_t operations = flash_sim_operations();
  for (uint32_t i = 0; i < operations; ++i) {
    for (uint32_t tear = 0; tear < TEAR_AFTER; ++tear) {
      if (every_tear || tear == i % TEAR_AFTER) {
        cut(&running, i, (flash_sim_tear)tear, i, &sums);
      }
    }
  }
  const uint32_t last = operations - 1; /* the switch: torn after every byte, and in many patterns of bits */
  for (uint32_t variant = 0; variant < FLASH_WORD; ++variant) {
    cut(&running, last, TEAR_BITS, variant, &sums);
    cut(&running, last, TEAR_PART, variant, &sums);
  }
  cut(&running, last, TEAR_AFTER, 0, &sums);
  hh_print(name);
  hh_print_number(": operations ", operations, "");
  hh_print_number(", cut points ", sums.points, "");
  hh_print_number(", then booted none ", sums.booted_none, "");
  hh_print_number(" old ", sums.booted_old, "");
  hh_print_number(" new ", sums.booted_new, "");
  hh_print_number(", failures ", sums.failures, "\n");
  return sums.failures;
}

int main(void) {
  static char path[] = "package1.bin";
  uint32_t failures = 0;
  for (uint32_t i = 0; i < 3; ++i) {
    path[7] = (char)('1' + i);
    if (!package_load(&packages[i], path)) {
      hh_print("a package is missing\n");
      return 2;
    }
  }
  golden[0].bytes = hh_read_file("even.bin", golden[0].data, sizeof golden[0].data);
  golden[1].bytes = hh_read_file("odd.bin", golden[1].data, sizeof golden[1].data);
  memset(flash_sim_bytes, 0xFF, FLASH_BYTES);
  failures += sweep("empty device to slot A", EVERY_TEAR);
  memset(flash_sim_bytes, 0xFF, FLASH_BYTES);
  failures += boot_and_install(1) != ACCEPTED;
  failures += sweep("slot A to B", 1);
  memset(flash_sim_bytes, 0xFF, FLASH_BYTES);
  failures += boot_and_install(1) != ACCEPTED;
  failures += boot_and_install(2) != ACCEPTED;
  while (record_room() != 0) {
    failures += record_append(1, 2) != 0;
  }
  failures += sweep("slot B to A with a full record page", EVERY_TEAR);
  hh_print(failures == 0 ? "always a verified model\n" : "FAILED\n");
  return failures != 0;
}
