#include "update.h"

#include <string.h>

typedef struct sha256_state {
  uint32_t h[8];
  uint8_t block[64];
  uint32_t used, bytes;
} sha256_state;

static const uint32_t K[64] = {
    0x428a2f98u, 0x71374491u, 0xb5c0fbcfu, 0xe9b5dba5u, 0x3956c25bu, 0x59f111f1u, 0x923f82a4u, 0xab1c5ed5u,
    0xd807aa98u, 0x12835b01u, 0x243185beu, 0x550c7dc3u, 0x72be5d74u, 0x80deb1feu, 0x9bdc06a7u, 0xc19bf174u,
    0xe49b69c1u, 0xefbe4786u, 0x0fc19dc6u, 0x240ca1ccu, 0x2de92c6fu, 0x4a7484aau, 0x5cb0a9dcu, 0x76f988dau,
    0x983e5152u, 0xa831c66du, 0xb00327c8u, 0xbf597fc7u, 0xc6e00bf3u, 0xd5a79147u, 0x06ca6351u, 0x14292967u,
    0x27b70a85u, 0x2e1b2138u, 0x4d2c6dfcu, 0x53380d13u, 0x650a7354u, 0x766a0abbu, 0x81c2c92eu, 0x92722c85u,
    0xa2bfe8a1u, 0xa81a664bu, 0xc24b8b70u, 0xc76c51a3u, 0xd192e819u, 0xd6990624u, 0xf40e3585u, 0x106aa070u,
    0x19a4c116u, 0x1e376c08u, 0x2748774cu, 0x34b0bcb5u, 0x391c0cb3u, 0x4ed8aa4au, 0x5b9cca4fu, 0x682e6ff3u,
    0x748f82eeu, 0x78a5636fu, 0x84c87814u, 0x8cc70208u, 0x90befffau, 0xa4506cebu, 0xbef9a3f7u, 0xc67178f2u};

static uint32_t rotate(uint32_t x, uint32_t n) {
  return x >> n | x << (32 - n);
}

/* FIPS 180-4, section 6.2.2. */
static void compress(uint32_t h[8], const uint8_t *block) {
  uint32_t w[64], s[8];
  for (uint32_t i = 0; i < 16; ++i) {
    const uint8_t *p = block + 4 * i;
    w[i] = (uint32_t)p[0] << 24 | (uint32_t)p[1] << 16 | (uint32_t)p[2] << 8 | p[3];
  }
  for (uint32_t i = 16; i < 64; ++i) {
    const uint32_t a = rotate(w[i - 15], 7) ^ rotate(w[i - 15], 18) ^ w[i - 15] >> 3;
    const uint32_t b = rotate(w[i - 2], 17) ^ rotate(w[i - 2], 19) ^ w[i - 2] >> 10;
    w[i] = w[i - 16] + a + w[i - 7] + b;
  }
  memcpy(s, h, sizeof s);
  for (uint32_t i = 0; i < 64; ++i) {
    const uint32_t e = rotate(s[4], 6) ^ rotate(s[4], 11) ^ rotate(s[4], 25);
    const uint32_t one = s[7] + e + ((s[4] & s[5]) ^ (~s[4] & s[6])) + K[i] + w[i];
    const uint32_t a = rotate(s[0], 2) ^ rotate(s[0], 13) ^ rotate(s[0], 22);
    const uint32_t two = a + ((s[0] & s[1]) ^ (s[0] & s[2]) ^ (s[1] & s[2]));
    memmove(s + 1, s, 7 * sizeof *s);
    s[4] += one;
    s[0] = one + two;
  }
  for (uint32_t i = 0; i < 8; ++i) {
    h[i] += s[i];
  }
}

static void sha_start(sha256_state *s) {
  static const uint32_t first[8] = {0x6a09e667u, 0xbb67ae85u, 0x3c6ef372u, 0xa54ff53au,
                                    0x510e527fu, 0x9b05688cu, 0x1f83d9abu, 0x5be0cd19u};
  memcpy(s->h, first, sizeof first);
  s->used = s->bytes = 0;
}

static void sha_add(sha256_state *s, const void *data, uint32_t bytes) {
  const uint8_t *p = (const uint8_t *)data;
  s->bytes += bytes;
  for (uint32_t i = 0; i < bytes; ++i) {
    s->block[s->used++] = p[i];
    if (s->used == 64) {
      compress(s->h, s->block);
      s->used = 0;
    }
  }
}

static void sha_end(sha256_state *s, uint8_t digest[32]) {
  const uint64_t bits = (uint64_t)s->bytes * 8u;
  uint8_t tail[72] = {0x80};
  const uint32_t zeros = (s->used < 56 ? 56 : 120) - s->used;
  for (uint32_t i = 0; i < 8; ++i) {
    tail[zeros + i] = (uint8_t)(bits >> (56 - 8 * i));
  }
  sha_add(s, tail, zeros + 8);
  for (uint32_t i = 0; i < 32; ++i) {
    digest[i] = (uint8_t)(s->h[i / 4] >> (24 - 8 * (i & 3)));
  }
}

void up_sha256(const void *data, uint32_t bytes, uint8_t digest[32]) {
  sha256_state s;
  sha_start(&s);
  sha_add(&s, data, bytes);
  sha_end(&s, digest);
}

/* One step of a chain: every input that decides where it is goes into the hash. */
static void chain_step(uint32_t leaf, uint32_t chain, uint32_t step, uint8_t value[32]) {
  const uint8_t place[4] = {'c', (uint8_t)leaf, (uint8_t)chain, (uint8_t)step};
  sha256_state s;
  sha_start(&s);
  sha_add(&s, place, sizeof place);
  sha_add(&s, value, 32);
  sha_end(&s, value);
}

/* The 64 nibbles of the digest and the 3 of their checksum, which keeps chains from being walked on. */
static void message_nibbles(const up_header *header, uint8_t nibbles[UP_CHAINS]) {
  uint8_t digest[32];
  uint32_t checksum = 0;
  up_sha256(header, 16 + 32, digest);
  for (uint32_t i = 0; i < 64; ++i) {
    nibbles[i] = (uint8_t)(i & 1 ? digest[i / 2] & 15 : digest[i / 2] >> 4);
    checksum += 15u - nibbles[i];
  }
  for (uint32_t i = 0; i < 3; ++i) {
    nibbles[64 + i] = (uint8_t)((checksum >> (8 - 4 * i)) & 15u);
  }
}

int up_verify(const up_header *header, const uint8_t *model, const uint8_t root[32]) {
  uint8_t nibbles[UP_CHAINS], value[32], node[32];
  const uint32_t leaf = header->counter;
  if (header->magic != UP_MAGIC || leaf >= 1u << UP_HEIGHT || header->reserved != 0 ||
      header->model_bytes > UP_MODEL_ROOM) {
    return 0;
  }
  message_nibbles(header, nibbles);
  sha256_state s;
  sha_start(&s);
  sha_add(&s, "l", 1);
  for (uint32_t chain = 0; chain < UP_CHAINS; ++chain) {
    memcpy(value, header->signature[chain], 32);
    for (uint32_t step = nibbles[chain]; step < 15; ++step) {
      chain_step(leaf, chain, step, value);
    }
    sha_add(&s, value, 32);
  }
  sha_end(&s, node);
  for (uint32_t level = 0; level < UP_HEIGHT; ++level) {
    const int right = (leaf >> level) & 1;
    sha_start(&s);
    sha_add(&s, "n", 1);
    sha_add(&s, right ? header->path[level] : node, 32);
    sha_add(&s, right ? node : header->path[level], 32);
    sha_end(&s, node);
  }
  up_sha256(model, header->model_bytes, value);
  return memcmp(node, root, 32) == 0 && memcmp(value, header->digest, 32) == 0;
}

static const up_header *header_of(const up_flash *flash, int slot) {
  return (const up_header *)(const void *)(flash->base + slot * UP_SLOT);
}

int up_boot(const up_flash *flash, const uint8_t root[32]) {
  int best = -1;
  for (int slot = 0; slot < 2; ++slot) {
    const up_header *header = header_of(flash, slot);
    if (up_verify(header, flash->base + slot * UP_SLOT + UP_SECTOR, root) &&
        (best < 0 || header->counter > header_of(flash, best)->counter)) {
      best = slot;
    }
  }
  return best;
}

static int write_run(const up_flash *flash, uint32_t address, const uint8_t *data, uint32_t bytes) {
  uint8_t unit[UP_UNIT];
  for (uint32_t done = 0; done < bytes; done += UP_UNIT) {
    const uint32_t left = bytes - done < UP_UNIT ? bytes - done : UP_UNIT;
    memset(unit, 0xFF, sizeof unit);
    memcpy(unit, data + done, left);
    if (!flash->write(flash->user, address + done, unit)) {
      return 0;
    }
  }
  return 1;
}

int up_install(const up_flash *flash, const uint8_t root[32], const up_header *header, const uint8_t *model) {
  if (!up_verify(header, model, root)) {
    return UP_BAD_PACKAGE;
  }
  const int running = up_boot(flash, root);
  if (running >= 0 && header->counter <= header_of(flash, running)->counter) {
    return UP_OLD_PACKAGE;
  }
  const uint32_t slot = running == 0 ? 1 : 0;
  const uint32_t start = slot * UP_SLOT;
  for (uint32_t sector = 0; sector < UP_SLOT_SECTORS; ++sector) { /* the old header goes first */
    if (!flash->erase(flash->user, slot * UP_SLOT_SECTORS + sector)) {
      return UP_POWER_LOST;
    }
  }
  const uint8_t *bytes = (const uint8_t *)header;
  if (!write_run(flash, start + UP_SECTOR, model, header->model_bytes) ||
      !write_run(flash, start + UP_UNIT, bytes + UP_UNIT, sizeof *header - UP_UNIT) ||
      !write_run(flash, start, bytes, UP_UNIT)) {
    return UP_POWER_LOST;
  }
  return UP_OK;
}
