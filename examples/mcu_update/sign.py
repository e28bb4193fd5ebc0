"""Signs model packages: Winternitz one-time keys (SHA-256, w = 16) as leaves of a Merkle tree; package n uses leaf n.

    python sign.py SECRET_FILE COUNTER MODEL PACKAGE      writes the package and root.bin beside it

The secret is 32 random bytes; whoever has it can sign. A counter may be signed only once: a second, different package
of the same counter would give the key away, so the counters that were used are kept beside the secret.
"""

import hashlib
import struct
import sys
from pathlib import Path

CHAINS, STEPS, HEIGHT = 67, 15, 4
MAGIC = 0x31505448


def sha(*parts: bytes) -> bytes:
    return hashlib.sha256(b"".join(parts)).digest()


def walk(leaf: int, chain: int, start: int, stop: int, value: bytes) -> bytes:
    """Steps [start, stop) of a chain."""
    for step in range(start, stop):
        value = sha(bytes([ord("c"), leaf, chain, step]), value)
    return value


def first_value(secret: bytes, leaf: int, chain: int) -> bytes:
    return sha(b"s", secret, bytes([leaf, chain]))


def leaf_node(secret: bytes, leaf: int) -> bytes:
    ends = (walk(leaf, chain, 0, STEPS, first_value(secret, leaf, chain)) for chain in range(CHAINS))
    return sha(b"l", *ends)


def tree(secret: bytes) -> list[list[bytes]]:
    """Levels of the Merkle tree, leaves first."""
    levels = [[leaf_node(secret, leaf) for leaf in range(1 << HEIGHT)]]
    while len(levels[-1]) > 1:
        below = levels[-1]
        levels.append([sha(b"n", below[i], below[i + 1]) for i in range(0, len(below), 2)])
    return levels


def nibbles(message: bytes) -> list[int]:
    """64 nibbles of the digest and three of the checksum."""
    values = [n for byte in sha(message) for n in (byte >> 4, byte & 15)]
    checksum = sum(STEPS - n for n in values)
    return [*values, checksum >> 8 & 15, checksum >> 4 & 15, checksum & 15]


def sign(secret: bytes, counter: int, model: bytes) -> tuple[bytes, bytes]:
    """Package and root."""
    levels = tree(secret)
    head = struct.pack("<4I", MAGIC, counter, len(model), 0) + sha(model)
    path = b"".join(levels[level][(counter >> level) ^ 1] for level in range(HEIGHT))
    chains = enumerate(nibbles(head))
    signature = b"".join(walk(counter, c, 0, n, first_value(secret, counter, c)) for c, n in chains)
    return head + path + signature + model, levels[-1][0]


def main() -> None:
    secret_file, counter, model, package = Path(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]), Path(sys.argv[4])
    used = secret_file.with_suffix(".used")
    done = used.read_text().split() if used.exists() else []
    if str(counter) in done or not 0 <= counter < 1 << HEIGHT:
        sys.exit(f"counter {counter} was signed already or is not in 0..{(1 << HEIGHT) - 1}")
    used.write_text(" ".join([*done, str(counter)]) + "\n")
    data, root = sign(secret_file.read_bytes(), counter, model.read_bytes())
    package.write_bytes(data)
    package.with_name("root.bin").write_bytes(root)


if __name__ == "__main__":
    main()
