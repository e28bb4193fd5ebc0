/* One power-up of the device. flash.bin holds the flash between power-ups, update.bin is a download that waits, and
 * cut.bin (two numbers: operation, tear) lets the power fail. All but input.bin may be missing.
 */
#include <string.h>

#include "device.h"
#include "flash_sim.h"
#include "ht_harness.h"

static const char *const slot_names[] = {"A", "B"};

static boot_choice boot_and_run(void) {
  const boot_choice choice = boot_choose();
  const int8_t *output = NULL;
  if (choice.slot == NO_SLOT) {
    hh_print("boot: no verified model\n");
    return choice;
  }
  hh_print("boot: slot ");
  hh_print(slot_names[choice.slot]);
  hh_print_number(", counter ", choice.counter, "");
  if (choice.recorded != ACCEPTED) {
    hh_print(", as the recorded slot is refused: ");
    hh_print(refusal_name(choice.recorded));
  }
  hh_print("\n");
  const uint32_t count = device_run(choice.slot, &output);
  hh_print("output:");
  for (uint32_t i = 0; i < count; ++i) {
    hh_print_hex(" ", (uint8_t)output[i], "");
  }
  hh_print("\n");
  return choice;
}

int main(void) {
  static package download;
  uint32_t cut[2];
  if (hh_read_file("flash.bin", flash_sim_bytes, FLASH_BYTES) != (int32_t)FLASH_BYTES) {
    memset(flash_sim_bytes, 0xFF, FLASH_BYTES);
  }
  if (setjmp(flash_sim_power) != 0) {
    hh_print("power cut\n");
    return hh_write_file("flash.bin", flash_sim_bytes, FLASH_BYTES) != 0;
  }
  const boot_choice running = boot_and_run();
  if (package_load(&download, "update.bin")) {
    const update_source source = package_source(&download);
    if (hh_read_file("cut.bin", cut, sizeof cut) == (int32_t)sizeof cut) {
      flash_sim_cut_at(cut[0], (flash_sim_tear)cut[1], cut[0]);
    }
    const refusal reason = update_install(&running, &source);
    flash_sim_cut_at(FLASH_SIM_NEVER, TEAR_BEFORE, 0);
    hh_print(reason == ACCEPTED ? "update: installed" : "update: refused: ");
    hh_print(reason == ACCEPTED ? "\n" : refusal_name(reason));
    hh_print(reason == ACCEPTED ? "" : "\n");
    boot_and_run();
  }
  return hh_write_file("flash.bin", flash_sim_bytes, FLASH_BYTES) != 0;
}
