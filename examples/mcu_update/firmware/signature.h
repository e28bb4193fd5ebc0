/* Ed25519 (RFC 8032) verification of short messages. */
#ifndef SIGNATURE_H
#define SIGNATURE_H

#include <stdint.h>

#define SIGNATURE_BYTES 64u
#define PUBLIC_KEY_BYTES 32u
#define SIGNED_BYTES_MOST 192u

/* 1: the signature is the key's over this message. 0: it is not, or the message is longer than SIGNED_BYTES_MOST. */
int signature_is_valid(const uint8_t signature[SIGNATURE_BYTES], const uint8_t key[PUBLIC_KEY_BYTES],
                       const uint8_t *message, uint32_t bytes);

#endif
