/* SHA-256 and SHA-512 of a whole message in memory. */
#ifndef SHA2_H
#define SHA2_H

#include <stdint.h>

void sha256(uint8_t digest[32], const uint8_t *message, uint32_t bytes);
void sha512(uint8_t digest[64], const uint8_t *message, uint32_t bytes);

#endif
