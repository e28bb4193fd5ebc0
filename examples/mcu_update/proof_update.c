/* Cuts the power at every flash operation of an update, in the middle of it, and boots: a verified model must be there. */
#include <string.h>

#include "ht_harness.h"
#include "update.h"

typedef struct package {
  up_header header;
  uint8_t model[UP_MODEL_ROOM];
} package;

static uint8_t root[32], memory[2 * UP_SLOT], before[2 * UP_SLOT];
static package first, second, third;
static uint32_t left_until_cut;

static int spend(void) {
  if (left_until_cut == 0) {
    return 0;
  }
  --left_until_cut;
  return 1;
}

/* A cut erase has done half of the sector, a cut write half of the unit; writing can only clear bits. */
static int erase(void *user, uint32_t sector) {
  const int powered = spend();
  (void)user;
  memset(memory + sector * UP_SECTOR, 0xFF, powered ? UP_SECTOR : UP_SECTOR / 2);
  return powered;
}

static int write(void *user, uint32_t address, const uint8_t *unit) {
  const int powered = spend();
  (void)user;
  for (uint32_t i = 0; i < (powered ? UP_UNIT : UP_UNIT / 2u); ++i) {
    memory[address + i] &= unit[i];
  }
  return powered;
}

static const up_flash flash = {memory, erase, write, NULL};

static int load(const char *path, package *to) {
  memset(to, 0, sizeof *to);
  return hh_read_file(path, to, sizeof *to) > (int32_t)sizeof(up_header);
}

static int check(const char *what, int holds) {
  if (!holds) {
    hh_print(what);
    hh_print(": WRONG\n");
  }
  return !holds;
}

static int running_counter(void) {
  const int slot = up_boot(&flash, root);
  return slot < 0 ? -1 : (int)((const up_header *)(const void *)(memory + slot * UP_SLOT))->counter;
}

int main(void) {
  int wrong = 0;
  if (hh_read_file("root.bin", root, sizeof root) != 32 || !load("package1.bin", &first) ||
      !load("package2.bin", &second) || !load("package3.bin", &third)) {
    hh_print("missing files\n");
    return 2;
  }
  memset(memory, 0xFF, sizeof memory);
  left_until_cut = 0xFFFFFFFFu;
  wrong += check("empty flash boots nothing", running_counter() == -1);
  wrong += check("first install", up_install(&flash, root, &first.header, first.model) == UP_OK && running_counter() == 1);
  memcpy(before, memory, sizeof memory);
  uint32_t cuts = 0, old = 0;
  for (;; ++cuts) {
    memcpy(memory, before, sizeof memory);
    left_until_cut = cuts;
    const int result = up_install(&flash, root, &second.header, second.model);
    const int counter = running_counter();
    if (result == UP_OK) {
      wrong += check("a complete update runs", counter == 2);
      break;
    }
    wrong += check("a cut update leaves a verified model", result == UP_POWER_LOST && (counter == 1 || counter == 2));
    old += counter == 1;
    left_until_cut = 0xFFFFFFFFu; /* and the update can be repeated */
    if (cuts % 16 == 0) {
      const int again = up_install(&flash, root, &second.header, second.model);
      wrong += check("repeated", (again == UP_OK || again == UP_OLD_PACKAGE) && running_counter() == 2);
    }
  }
  left_until_cut = 0xFFFFFFFFu;
  wrong += check("no way back", up_install(&flash, root, &first.header, first.model) == UP_OLD_PACKAGE);
  third.model[5] ^= 1;
  wrong += check("a changed model", up_install(&flash, root, &third.header, third.model) == UP_BAD_PACKAGE);
  third.model[5] ^= 1;
  third.header.counter = 4;
  wrong += check("a changed counter", up_install(&flash, root, &third.header, third.model) == UP_BAD_PACKAGE);
  third.header.counter = 3;
  third.header.signature[7][0] ^= 1;
  wrong += check("a changed signature", up_install(&flash, root, &third.header, third.model) == UP_BAD_PACKAGE);
  third.header.signature[7][0] ^= 1;
  wrong += check("the next update", up_install(&flash, root, &third.header, third.model) == UP_OK && running_counter() == 3);
  hh_print_number("power cuts ", cuts, "");
  hh_print_number(", booted the old model after ", old, "");
  hh_print_number(", wrong ", (uint32_t)wrong, "\n");
  return wrong != 0;
}
