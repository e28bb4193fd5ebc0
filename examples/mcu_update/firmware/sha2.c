/* SHA-256 and SHA-512 of a whole message in memory (FIPS 180-4). */
#include "sha2.h"

#include <string.h>

/* First 64 bits of the fractions of the cube roots of the first 80 primes; SHA-256's are their upper halves. */
static const uint64_t round_constants[80] = {
    0x428a2f98d728ae22u, 0x7137449123ef65cdu, 0xb5c0fbcfec4d3b2fu, 0xe9b5dba58189dbbcu,
    0x3956c25bf348b538u, 0x59f111f1b605d019u, 0x923f82a4af194f9bu, 0xab1c5ed5da6d8118u,
    0xd807aa98a3030242u, 0x12835b0145706fbeu, 0x243185be4ee4b28cu, 0x550c7dc3d5ffb4e2u,
    0x72be5d74f27b896fu, 0x80deb1fe3b1696b1u, 0x9bdc06a725c71235u, 0xc19bf174cf692694u,
    0xe49b69c19ef14ad2u, 0xefbe4786384f25e3u, 0x0fc19dc68b8cd5b5u, 0x240ca1cc77ac9c65u,
    0x2de92c6f592b0275u, 0x4a7484aa6ea6e483u, 0x5cb0a9dcbd41fbd4u, 0x76f988da831153b5u,
    0x983e5152ee66dfabu, 0xa831c66d2db43210u, 0xb00327c898fb213fu, 0xbf597fc7beef0ee4u,
    0xc6e00bf33da88fc2u, 0xd5a79147930aa725u, 0x06ca6351e003826fu, 0x142929670a0e6e70u,
    0x27b70a8546d22ffcu, 0x2e1b21385c26c926u, 0x4d2c6dfc5ac42aedu, 0x53380d139d95b3dfu,
    0x650a73548baf63deu, 0x766a0abb3c77b2a8u, 0x81c2c92e47edaee6u, 0x92722c851482353bu,
    0xa2bfe8a14cf10364u, 0xa81a664bbc423001u, 0xc24b8b70d0f89791u, 0xc76c51a30654be30u,
    0xd192e819d6ef5218u, 0xd69906245565a910u, 0xf40e35855771202au, 0x106aa07032bbd1b8u,
    0x19a4c116b8d2d0c8u, 0x1e376c085141ab53u, 0x2748774cdf8eeb99u, 0x34b0bcb5e19b48a8u,
    0x391c0cb3c5c95a63u, 0x4ed8aa4ae3418acbu, 0x5b9cca4f7763e373u, 0x682e6ff3d6b2b8a3u,
    0x748f82ee5defb2fcu, 0x78a5636f43172f60u, 0x84c87814a1f0ab72u, 0x8cc702081a6439ecu,
    0x90befffa23631e28u, 0xa4506cebde82bde9u, 0xbef9a3f7b2c67915u, 0xc67178f2e372532bu,
    0xca273eceea26619cu, 0xd186b8c721c0c207u, 0xeada7dd6cde0eb1eu, 0xf57d4f7fee6ed178u,
    0x06f067aa72176fbau, 0x0a637dc5a2c898a6u, 0x113f9804bef90daeu, 0x1b710b35131c471bu,
    0x28db77f523047d84u, 0x32caab7b40c72493u, 0x3c9ebe0a15c9bebcu, 0x431d67c49c100d4cu,
    0x4cc5d4becb3e42b6u, 0x597f299cfc657e2au, 0x5fcb6fab3ad6faecu, 0x6c44198c4a475817u};

/* The same of the square roots of the first 8 primes. */
static const uint64_t start[8] = {
    0x6a09e667f3bcc908u, 0xbb67ae8584caa73bu, 0x3c6ef372fe94f82bu, 0xa54ff53a5f1d36f1u,
    0x510e527fade682d1u, 0x9b05688c2b3e6c1fu, 0x1f83d9abfb41bd6bu, 0x5be0cd19137e2179u};

static uint32_t right32(uint32_t x, unsigned n) {
  return x >> n | x << (32u - n);
}

static uint64_t right64(uint64_t x, unsigned n) {
  return x >> n | x << (64u - n);
}

static uint64_t big_endian(const uint8_t *from, unsigned bytes) {
  uint64_t value = 0;
  for (unsigned i = 0; i < bytes; ++i) {
    value = value << 8 | from[i];
  }
  return value;
}

static void put_big_endian(uint8_t *to, uint64_t value, unsigned bytes) {
  for (unsigned i = 0; i < bytes; ++i) {
    to[i] = (uint8_t)(value >> 8u * (bytes - 1u - i));
  }
}

static void block256(uint32_t h[8], const uint8_t *block) {
  uint32_t w[64], s[8];
  for (unsigned i = 0; i < 16; ++i) {
    w[i] = (uint32_t)big_endian(block + 4 * i, 4);
  }
  for (unsigned i = 16; i < 64; ++i) {
    const uint32_t a = w[i - 15], b = w[i - 2];
    w[i] = w[i - 16] + (right32(a, 7) ^ right32(a, 18) ^ a >> 3) + w[i - 7] + (right32(b, 17) ^ right32(b, 19) ^ b >> 10);
  }
  memcpy(s, h, sizeof s);
  for (unsigned i = 0; i < 64; ++i) {
    const uint32_t a = s[0], e = s[4];
    const uint32_t t1 = s[7] + (right32(e, 6) ^ right32(e, 11) ^ right32(e, 25)) + ((e & s[5]) ^ (~e & s[6])) +
                        (uint32_t)(round_constants[i] >> 32) + w[i];
    const uint32_t t2 = (right32(a, 2) ^ right32(a, 13) ^ right32(a, 22)) + ((a & s[1]) ^ (a & s[2]) ^ (s[1] & s[2]));
    for (unsigned k = 7; k > 0; --k) {
      s[k] = s[k - 1];
    }
    s[4] += t1;
    s[0] = t1 + t2;
  }
  for (unsigned i = 0; i < 8; ++i) {
    h[i] += s[i];
  }
}

static void block512(uint64_t h[8], const uint8_t *block) {
  uint64_t w[80], s[8];
  for (unsigned i = 0; i < 16; ++i) {
    w[i] = big_endian(block + 8 * i, 8);
  }
  for (unsigned i = 16; i < 80; ++i) {
    const uint64_t a = w[i - 15], b = w[i - 2];
    w[i] = w[i - 16] + (right64(a, 1) ^ right64(a, 8) ^ a >> 7) + w[i - 7] + (right64(b, 19) ^ right64(b, 61) ^ b >> 6);
  }
  memcpy(s, h, sizeof s);
  for (unsigned i = 0; i < 80; ++i) {
    const uint64_t a = s[0], e = s[4];
    const uint64_t t1 =
        s[7] + (right64(e, 14) ^ right64(e, 18) ^ right64(e, 41)) + ((e & s[5]) ^ (~e & s[6])) + round_constants[i] + w[i];
    const uint64_t t2 = (right64(a, 28) ^ right64(a, 34) ^ right64(a, 39)) + ((a & s[1]) ^ (a & s[2]) ^ (s[1] & s[2]));
    for (unsigned k = 7; k > 0; --k) {
      s[k] = s[k - 1];
    }
    s[4] += t1;
    s[0] = t1 + t2;
  }
  for (unsigned i = 0; i < 8; ++i) {
    h[i] += s[i];
  }
}

/* The message's last blocks: what is left of it, a one bit, zeros, its length in bits. Returns their bytes. */
static uint32_t last_blocks(uint8_t *to, const uint8_t *message, uint32_t bytes, uint32_t block) {
  const uint32_t left = bytes % block;
  const uint32_t used = left + 1 + block / 8 <= block ? block : 2 * block;
  memset(to, 0, used);
  if (left) {
    memcpy(to, message + bytes - left, left);
  }
  to[left] = 0x80;
  put_big_endian(to + used - 8, (uint64_t)bytes * 8u, 8);
  return used;
}

void sha256(uint8_t digest[32], const uint8_t *message, uint32_t bytes) {
  uint32_t h[8];
  uint8_t last[128];
  for (unsigned i = 0; i < 8; ++i) {
    h[i] = (uint32_t)(start[i] >> 32);
  }
  for (uint32_t at = 0; bytes - at >= 64; at += 64) {
    block256(h, message + at);
  }
  const uint32_t used = last_blocks(last, message, bytes, 64);
  for (uint32_t at = 0; at < used; at += 64) {
    block256(h, last + at);
  }
  for (unsigned i = 0; i < 8; ++i) {
    put_big_endian(digest + 4 * i, h[i], 4);
  }
}

void sha512(uint8_t digest[64], const uint8_t *message, uint32_t bytes) {
  uint64_t h[8];
  uint8_t last[256];
  memcpy(h, start, sizeof h);
  for (uint32_t at = 0; bytes - at >= 128; at += 128) {
    block512(h, message + at);
  }
  const uint32_t used = last_blocks(last, message, bytes, 128);
  for (uint32_t at = 0; at < used; at += 128) {
    block512(h, last + at);
  }
  for (unsigned i = 0; i < 8; ++i) {
    put_big_endian(digest + 8 * i, h[i], 8);
  }
}
