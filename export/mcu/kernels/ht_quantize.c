/* QUANTIZE and DEQUANTIZE at the edges of a network; the only floating point here. */
#include "ht_internal.h"

void ht_quantize_f32(const float *in, int8_t *out, int32_t n, float scale, int32_t zero) {
  for (int32_t i = 0; i < n; ++i) {
    const float x = in[i] / scale;
    /* Round half away from zero; clamped first so that the conversion is defined (NaN becomes the zero point). */
    const float limited = x > 1024.0f ? 1024.0f : (x < -1024.0f ? -1024.0f : (x == x ? x : 0.0f));
    const float magnitude = limited < 0.0f ? -limited : limited;
    const int32_t whole = (int32_t)magnitude;
    const int32_t rounded = whole + ((magnitude - (float)whole) >= 0.5f ? 1 : 0);
    out[i] = (int8_t)ht_clamp((limited < 0.0f ? -rounded : rounded) + zero, -128, 127);
  }
}

void ht_dequantize_f32(const int8_t *in, float *out, int32_t n, float scale, int32_t zero) {
  for (int32_t i = 0; i < n; ++i) {
    out[i] = (float)(in[i] - zero) * scale;
  }
}

void ht_flip_sign(const uint8_t *in, uint8_t *out, int32_t n) {
  for (int32_t i = 0; i < n; ++i) {
    out[i] = (uint8_t)(in[i] ^ 0x80u);
  }
}
