"""Make signing keys, and sign a model's two images into one update package.

python make_update.py keys FOLDER --board NAME
python make_update.py package MODEL_A.bin MODEL_B.bin --key KEY.pem --board NAME --counter N --out UPDATE.bin

A package is the manifest (struct ``manifest`` of firmware/manifest.h) and the image for slot A, then that for slot B.
"""

import argparse
import hashlib
import struct
import sys
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
)

MAGIC, FORMAT = b"HTUP", 1
WORD_BYTES = 32  # FLASH_WORD
BOARD_NAME_BYTES = 16


class UpdateError(ValueError):
    """The inputs cannot become a package."""


def board_field(board: str) -> bytes:
    """The board's name as the manifest and the firmware hold it: 16 bytes, zeros at the end."""
    name = board.encode("ascii")
    if not 0 < len(name) < BOARD_NAME_BYTES:
        raise UpdateError(f"wanted a board name of 1 to {BOARD_NAME_BYTES - 1} ASCII characters, found {board!r}.")
    return name.ljust(BOARD_NAME_BYTES, b"\0")


def public_bytes(key: Ed25519PrivateKey) -> bytes:
    """The 32 bytes that the firmware knows."""
    return key.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw)


def make_package(key: Ed25519PrivateKey, board: str, counter: int, images: tuple[bytes, bytes]) -> bytes:
    """Sign both images of a model.

    Args:
        key: The signing key.
        board: Which boards may take it.
        counter: Higher than that of every update before, in [1, 2**32).
        images: For slot A and slot B, padded here to one length of whole flash words.

    Raises:
        UpdateError: The board's name or the counter is out of range.
    """
    if not 1 <= counter < 2**32:
        raise UpdateError(f"wanted a counter in [1, 2**32), found {counter}.")
    size = -(-max(map(len, images)) // WORD_BYTES) * WORD_BYTES
    padded = [image.ljust(size, b"\xff") for image in images]
    manifest = MAGIC + struct.pack("<III", FORMAT, counter, size) + board_field(board) + public_bytes(key)
    manifest += b"".join(hashlib.sha256(image).digest() for image in padded)
    return manifest + key.sign(manifest) + b"".join(padded)


def identity_source(key: Ed25519PrivateKey, board: str) -> str:
    """C source of the two constants that tie a firmware to its signer and its board."""

    def listed(data: bytes) -> str:
        return ", ".join(f"0x{byte:02x}" for byte in data)

    return (
        "/* Written by make_update.py. */\n"
        '#include "manifest.h"\n\n'
        f"const char device_board[BOARD_NAME_BYTES] = {{{listed(board_field(board))}}};\n"
        f"const uint8_t device_key[PUBLIC_KEY_BYTES] = {{{listed(public_bytes(key))}}};\n"
    )


def make_keys(folder: Path, board: str) -> None:
    """Write signing.pem (kept by whoever signs) and identity.c (compiled into the firmware) into a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    if (folder / "signing.pem").exists():
        raise UpdateError(
            f"{folder / 'signing.pem'} exists; devices trust it, so it is not replaced. Move it away first."
        )
    key = Ed25519PrivateKey.generate()
    pem = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    (folder / "signing.pem").touch(mode=0o600)
    (folder / "signing.pem").write_bytes(pem)
    (folder / "identity.c").write_text(identity_source(key, board))


def read_key(path: Path) -> Ed25519PrivateKey:
    """Read an unencrypted Ed25519 key in PEM."""
    key = load_pem_private_key(path.read_bytes(), password=None)
    if not isinstance(key, Ed25519PrivateKey):
        raise UpdateError(f"wanted an Ed25519 private key, found {type(key).__name__} in {path}.")
    return key


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; 0, or 1 with one line on stderr."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    keys = commands.add_parser("keys")
    keys.add_argument("folder", type=Path)
    package = commands.add_parser("package")
    package.add_argument("images", type=Path, nargs=2)
    package.add_argument("--key", type=Path, required=True)
    package.add_argument("--counter", type=int, required=True)
    package.add_argument("--out", type=Path, required=True)
    for command in (keys, package):
        command.add_argument("--board", required=True)
    options = parser.parse_args(arguments)
    try:
        if options.command == "keys":
            make_keys(options.folder, options.board)
        else:
            first, second = (path.read_bytes() for path in options.images)
            key = read_key(options.key)
            options.out.write_bytes(make_package(key, options.board, options.counter, (first, second)))
    except (UpdateError, OSError) as error:
        print(f"make_update: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
