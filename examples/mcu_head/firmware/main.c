/* A camera node without an operating system: for every picture, run the head and print its frame.
 *
 * The pictures come through semihosting from pictures/NNN.bin (on a board: from the camera), and each frame leaves as a
 * line "frame NNN <hex>" (on a board: through UART, SPI or a radio module that speaks MQTT).
 */
#include "head.h"

#include "ht_harness.h"

/* One buffer for everything that is sent, in SRAM like the arena. */
static uint8_t out[HEAD_BYTES(FRAME_BYTES)];
static char path[] = "pictures/000.bin";

static void print_frame(uint32_t number, const ht_head_bytes *frame) {
  static const char digits[] = "0123456789abcdef";
  char text[65];
  uint32_t i, used = 0;
  hh_print_number("frame ", number, " ");
  for (i = 0; i < frame->size; i++) {
    text[used++] = digits[frame->data[i] >> 4];
    text[used++] = digits[frame->data[i] & 15u];
    if (used == 64u || i + 1u == frame->size) {
      text[used] = 0;
      hh_print(text);
      used = 0;
    }
  }
  hh_print("\n");
}

int main(void) {
  uint32_t number = 0;
  for (; number < 1000u; number++) {
    ht_head_bytes frame;
    path[9] = (char)('0' + number / 100u);
    path[10] = (char)('0' + number / 10u % 10u);
    path[11] = (char)('0' + number % 10u);
    if (hh_read_file(path, HEAD(input)(HEAD(arena)), HEAD_BYTES(INPUT_BYTES)) != (int32_t)HEAD_BYTES(INPUT_BYTES)) {
      break; /* no more pictures */
    }
    if (HEAD(frame)(HEAD(arena), out, sizeof out, &frame) != 0) {
      hh_print("failed\n");
      return 1;
    }
    print_frame(number, &frame);
  }
  hh_print_number("end ", number, "\n");
  return 0;
}
