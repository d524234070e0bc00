"""Signing: proof of who wrote a bundle.

`manifest.json` holds the SHA-256 of every other file, so one Ed25519 signature (RFC 8032) over its bytes binds them
all. `manifest.sig` is that signature, 64 bytes, what `openssl pkeyutl -sign -rawin` writes. Keys are PEM files as
`openssl genpkey -algorithm ed25519` and `openssl pkey -pubout` make them. Ed25519 draws nothing: the same manifest and
key give the same signature.

A signature is checked before the manifest is parsed. It says who, not when: an older bundle of the same signer is as
valid as the latest.
"""

from __future__ import annotations

import os
from pathlib import Path

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import load_pem_private_key, load_pem_public_key

from pipeline.errors import InputError
from pipeline.folder import plain_bytes, reading
from pipeline.manifest import NAME as MANIFEST

SIGNATURE = "manifest.sig"
PASSWORD = "MACRID_KEY_PASSWORD"  # noqa: S105 (the variable's name)
"""Environment variable with the password of an encrypted private key."""

_SIZE = 64
_MAKE = "Make one: openssl genpkey -algorithm ed25519 -out key.pem"
_PUBLIC = "openssl pkey -in key.pem -pubout -out public.pem"


def read_private_key(path: Path) -> Ed25519PrivateKey:
    """The key to sign with.

    Raises:
        InputError: the file cannot be read, is not a private key in PEM, is encrypted and `MACRID_KEY_PASSWORD` is not
            its password, or is of another kind than Ed25519.
    """
    content = _read_key(path)
    try:
        key = load_pem_private_key(content, _password(path, content))
    except (TypeError, ValueError, UnsupportedAlgorithm):  # TypeError: encrypted without a password, or the reverse
        wrong = f"its password is not what {PASSWORD} holds" if _encrypted(content) else "it is not one in PEM"
        raise InputError(f"{path} cannot be used as a private key: {wrong}. {_MAKE}") from None
    if not isinstance(key, Ed25519PrivateKey):
        raise InputError(f"{path} is a key of another kind; bundles are signed with Ed25519. {_MAKE}")
    return key


def sign(directory: Path, key: Ed25519PrivateKey) -> None:
    """Write `manifest.sig` beside `manifest.json`."""
    (directory / SIGNATURE).write_bytes(key.sign((directory / MANIFEST).read_bytes()))


def check_signature(directory: Path, manifest: bytes, public_key: Path) -> None:
    """Make sure that the owner of a key signed a directory's manifest.

    Args:
        directory: where `manifest.sig` lies.
        manifest: the content of its `manifest.json`.
        public_key: PEM file.

    Raises:
        InputError: the key cannot be read or is not an Ed25519 public key; there is no signature; or it is one of other
            content, or with another key.
    """
    key = _read_public_key(public_key)
    path = directory / SIGNATURE
    try:
        with reading(path):
            signature = plain_bytes(path, "bundle")
    except FileNotFoundError:
        raise InputError(
            f"{directory} is not signed: it has no {SIGNATURE}. Export it again with --sign, or name a signed bundle."
        ) from None
    if len(signature) != _SIZE:
        raise InputError(
            f"{path} is not a signature: it has {len(signature)} bytes, Ed25519 signatures have {_SIZE}. "
            "Do not use this bundle; fetch it again."
        )
    try:
        key.verify(signature, manifest)
    except InvalidSignature:
        raise InputError(
            f"{directory / MANIFEST} is not what the owner of {public_key} signed: it was altered, or signed with "
            "another key. Do not use this bundle; fetch it again, or name the signer's public key."
        ) from None


def _read_public_key(path: Path) -> Ed25519PublicKey:
    content = _read_key(path)
    if b"PRIVATE KEY-----" in content:
        raise InputError(f"{path} is a private key: keep it where bundles are signed. Name its public half: {_PUBLIC}")
    try:
        key = load_pem_public_key(content)
    except (ValueError, UnsupportedAlgorithm):
        raise InputError(f"{path} cannot be used as a public key: it is not one in PEM. Make it: {_PUBLIC}") from None
    if not isinstance(key, Ed25519PublicKey):
        raise InputError(f"{path} is a key of another kind; bundles are signed with Ed25519. {_MAKE}")
    return key


def _read_key(path: Path) -> bytes:
    """Keys may be links or pipes: that is how secrets are mounted and handed over."""
    try:
        with reading(path):
            return path.read_bytes()
    except FileNotFoundError:
        raise InputError(f"{path} does not exist. Name a PEM file with an Ed25519 key. {_MAKE}") from None


def _encrypted(key: bytes) -> bool:
    return b"ENCRYPTED" in key


def _password(path: Path, key: bytes) -> bytes | None:
    if not _encrypted(key):
        return None
    if PASSWORD not in os.environ:
        raise InputError(f"{path} is encrypted. Put its password into the environment variable {PASSWORD}.")
    return os.fsencode(os.environ[PASSWORD])
