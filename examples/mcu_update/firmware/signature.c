/* Ed25519 from Monocypher's curve arithmetic and our SHA-512: Monocypher's own EdDSA hashes with BLAKE2b instead. */
#include "signature.h"

#include <string.h>

#include "monocypher.h"
#include "sha2.h"

int signature_is_valid(const uint8_t signature[SIGNATURE_BYTES], const uint8_t key[PUBLIC_KEY_BYTES],
                       const uint8_t *message, uint32_t bytes) {
  uint8_t hashed[32u + PUBLIC_KEY_BYTES + SIGNED_BYTES_MOST], wide[64], scalar[32];
  if (bytes > SIGNED_BYTES_MOST) {
    return 0;
  }
  memcpy(hashed, signature, 32); /* R, the signature's first half */
  memcpy(hashed + 32, key, PUBLIC_KEY_BYTES);
  memcpy(hashed + 64, message, bytes);
  sha512(wide, hashed, 64u + bytes);
  crypto_eddsa_reduce(scalar, wide);
  return crypto_eddsa_check_equation(signature, key, scalar) == 0;
}
