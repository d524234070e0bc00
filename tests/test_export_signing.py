"""Signatures: what `--sign` writes, `--verify` and openssl accept, and everything else is refused by name."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

import polars as pl
import pytest
from click.testing import CliRunner
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa, x25519
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from hypothesis import given, settings
from hypothesis import strategies as st

from export.bundle import read_bundle
from export.exporter import export_bundle
from export.signing import check_signature, read_private_key, sign
from pipeline.cli import main
from pipeline.errors import InputError
from scoring.runtimes import open_scorer

ROOT = Path(__file__).resolve().parents[1]
MAKE = "Make one: openssl genpkey -algorithm ed25519 -out key.pem"
PUBLIC = "openssl pkey -in key.pem -pubout -out public.pem"
OPENSSL = shutil.which("openssl")
needs_openssl = pytest.mark.skipif(OPENSSL is None, reason="openssl is not installed")


def openssl(command: str, folder: Path) -> None:
    done = subprocess.run([*command.split()], cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def write_keys(folder: Path, private: object, password: bytes | None = None) -> tuple[Path, Path]:
    """key.pem and public.pem, as openssl writes them."""
    encryption: serialization.KeySerializationEncryption = serialization.NoEncryption()
    if password is not None:
        encryption = serialization.BestAvailableEncryption(password)
    pem = serialization.Encoding.PEM
    key, public = folder / "key.pem", folder / "public.pem"
    key.write_bytes(private.private_bytes(pem, serialization.PrivateFormat.PKCS8, encryption))
    public.write_bytes(private.public_key().public_bytes(pem, serialization.PublicFormat.SubjectPublicKeyInfo))
    return key, public


@pytest.fixture
def keys(tmp_path: Path) -> tuple[Path, Path]:
    return write_keys(tmp_path, Ed25519PrivateKey.from_private_bytes(bytes(range(32))))


@pytest.fixture
def signed(bundle: Path, tmp_path: Path, keys: tuple[Path, Path]) -> Path:
    """A copy of the small bundle, signed."""
    copy = tmp_path / "bundle"
    shutil.copytree(bundle, copy)
    sign(copy, read_private_key(keys[0]))
    return copy


def refusal(directory: Path, public: Path) -> str:
    with pytest.raises(InputError) as error:
        read_bundle(directory, public)
    return str(error.value)


def refused_key(path: Path) -> str:
    with pytest.raises(InputError) as error:
        read_private_key(path)
    return str(error.value)


def refused_public_key(path: Path, signed: Path) -> str:
    return refusal(signed, path)


def test_a_signature_of_a_known_answer(tmp_path: Path) -> None:
    """RFC 8032, 7.1, TEST 2: one byte signed, and by its public key accepted."""
    seed = bytes.fromhex("4ccd089b28ff96da9db6c346ec114e0f5b8a319f35aba624da8cf6ed4fb8a6fb")
    public = bytes.fromhex("3d4017c3e843895a92b70aa74d1b7ebc9c982ccf2ec4968cc0cd55f12af4660c")
    (tmp_path / "manifest.json").write_bytes(b"\x72")
    key, public_key = write_keys(tmp_path, Ed25519PrivateKey.from_private_bytes(seed))
    sign(tmp_path, read_private_key(key))
    assert (tmp_path / "manifest.sig").read_bytes().hex() == (
        "92a009a9f0d4cab8720e820b5f642540a2b27b5416503f8fb3762223ebdb69da"
        "085ac1e43e15996e458f3613d0f11d8c387b2eaeb4302aeeb00d291612bb0c00"
    )
    pem = serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    assert public_key.read_bytes() == Ed25519PublicKey.from_public_bytes(public).public_bytes(*pem)
    check_signature(tmp_path, b"\x72", public_key)


def test_a_signed_bundle_opens_with_and_without_the_key(signed: Path, bundle: Path, keys: tuple[Path, Path]) -> None:
    assert read_bundle(signed, keys[1]).digest == read_bundle(signed).digest == read_bundle(bundle).digest


def test_two_exports_are_equal_signature_included(checkpoint: Path, tmp_path: Path, keys: tuple[Path, Path]) -> None:
    for name in ("one", "two"):
        export_bundle(checkpoint, tmp_path / name, ["onnx"], open_scorer, sign=keys[0])
        read_bundle(tmp_path / name, keys[1])
    for file in ("manifest.json", "manifest.sig"):
        assert (tmp_path / "one" / file).read_bytes() == (tmp_path / "two" / file).read_bytes()


def test_a_key_that_cannot_be_read_is_refused_before_the_work(checkpoint: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError) as error:
        export_bundle(tmp_path / "no checkpoint", tmp_path / "bundle", [], open_scorer, sign=tmp_path / "key.pem")
    assert str(error.value) == f"{tmp_path / 'key.pem'} does not exist. Name a PEM file with an Ed25519 key. {MAKE}"


@needs_openssl
def test_the_documented_commands(signed: Path, tmp_path: Path) -> None:
    """What docs/signing.md tells people to type, in its order; openssl and we accept each other's signatures."""
    text = (ROOT / "docs" / "signing.md").read_text(encoding="utf-8")
    lines = [line for block in re.findall(r"```console\n(.*?)```", text, re.DOTALL) for line in block.splitlines()]
    commands = [line.removeprefix("$ ") for line in lines]
    ours = [command for command in commands if command.startswith("pipeline ")]
    make_keys, verify, sign_apart = commands[:2], *[line for line in commands[2:] if line.startswith("openssl")]
    assert ours == [
        "pipeline export --sign key.pem",
        "pipeline score --input users.parquet --verify public.pem",
        "pipeline evaluate --model bundle --history history.parquet --truth truth.parquet --verify public.pem",
    ]
    (signed / "manifest.sig").unlink()
    for command in make_keys:
        openssl(command, tmp_path)
    sign(signed, read_private_key(tmp_path / "key.pem"))
    first = (signed / "manifest.sig").read_bytes()
    openssl(verify, tmp_path)
    (signed / "manifest.sig").unlink()
    openssl(sign_apart, tmp_path)
    assert (signed / "manifest.sig").read_bytes() == first
    read_bundle(signed, tmp_path / "public.pem")


@needs_openssl
def test_an_encrypted_key_of_openssl(signed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    openssl("openssl genpkey -algorithm ed25519 -aes256 -pass pass:secret -out locked.pem", tmp_path)
    openssl("openssl pkey -in locked.pem -passin pass:secret -pubout -out locked-public.pem", tmp_path)
    monkeypatch.setenv("MACRID_KEY_PASSWORD", "secret")
    sign(signed, read_private_key(tmp_path / "locked.pem"))
    read_bundle(signed, tmp_path / "locked-public.pem")


def test_the_password_of_an_encrypted_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = Ed25519PrivateKey.from_private_bytes(bytes(32))
    key, _ = write_keys(tmp_path, plain, "pässword".encode())
    monkeypatch.delenv("MACRID_KEY_PASSWORD", raising=False)
    assert refused_key(key) == (
        f"{key} is encrypted. Put its password into the environment variable MACRID_KEY_PASSWORD."
    )
    for wrong in ("wrong", ""):
        monkeypatch.setenv("MACRID_KEY_PASSWORD", wrong)
        assert refused_key(key) == (
            f"{key} cannot be used as a private key: its password is not what MACRID_KEY_PASSWORD holds. {MAKE}"
        )
    monkeypatch.setenv("MACRID_KEY_PASSWORD", "pässword")
    assert read_private_key(key).sign(b"") == plain.sign(b"")


def test_a_password_that_is_not_needed(keys: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MACRID_KEY_PASSWORD", "secret")
    read_private_key(keys[0])


def test_keys_may_be_links_and_pipes(keys: tuple[Path, Path], signed: Path, tmp_path: Path) -> None:
    """So are secrets mounted, and handed over by a shell."""
    (tmp_path / "link.pem").symlink_to(keys[1])
    read_bundle(signed, tmp_path / "link.pem")
    read_end, write_end = os.pipe()
    os.write(write_end, keys[1].read_bytes())
    os.close(write_end)
    read_bundle(signed, Path(f"/dev/fd/{read_end}"))
    os.close(read_end)


def test_an_unsigned_bundle(bundle: Path, keys: tuple[Path, Path]) -> None:
    assert refusal(bundle, keys[1]) == (
        f"{bundle} is not signed: it has no manifest.sig. Export it again with --sign, or name a signed bundle."
    )


def altered(signed: Path, public: Path) -> str:
    return (
        f"{signed / 'manifest.json'} is not what the owner of {public} signed: it was altered, or signed with another "
        "key. Do not use this bundle; fetch it again, or name the signer's public key."
    )


def test_another_key(signed: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    _, public = write_keys(other, Ed25519PrivateKey.generate())
    assert refusal(signed, public) == altered(signed, public)


def test_the_signature_of_another_bundle(signed: Path, keys: tuple[Path, Path], tmp_path: Path) -> None:
    manifest = signed / "manifest.json"
    text = manifest.read_bytes()
    manifest.write_bytes(text.replace(b'"rows_read": 10', b'"rows_read": 11'))
    sign(signed, read_private_key(keys[0]))
    read_bundle(signed, keys[1])
    manifest.write_bytes(text)
    assert refusal(signed, keys[1]) == altered(signed, keys[1])


@settings(max_examples=60, deadline=None, derandomize=True)
@given(where=st.floats(0, 1, exclude_max=True), flip=st.integers(1, 255), file=st.sampled_from(["json", "sig"]))
def test_any_changed_byte(
    bundle: Path, where: float, flip: int, file: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("signed")
    shutil.copyfile(bundle / "manifest.json", folder / "manifest.json")
    key, public = write_keys(folder, Ed25519PrivateKey.from_private_bytes(bytes(32)))
    sign(folder, read_private_key(key))
    path = folder / f"manifest.{file}"
    content = bytearray(path.read_bytes())
    content[int(where * len(content))] ^= flip
    path.write_bytes(content)
    assert refusal(folder, public) == altered(folder, public)


@pytest.mark.parametrize("size", [0, 63, 65])
def test_a_signature_of_another_size(size: int, signed: Path, keys: tuple[Path, Path]) -> None:
    path = signed / "manifest.sig"
    path.write_bytes(((path.read_bytes()) * 2)[:size])
    assert refusal(signed, keys[1]) == (
        f"{path} is not a signature: it has {size} bytes, Ed25519 signatures have 64. "
        "Do not use this bundle; fetch it again."
    )


@pytest.mark.parametrize("verified", [False, True])
@pytest.mark.parametrize("link", [False, True])
def test_something_in_place_of_the_signature(
    link: bool, verified: bool, signed: Path, keys: tuple[Path, Path], tmp_path: Path
) -> None:
    path = signed / "manifest.sig"
    path.rename(tmp_path / "elsewhere")
    if link:
        path.symlink_to(tmp_path / "elsewhere")
    else:
        os.mkfifo(path)
    with pytest.raises(InputError) as error:
        read_bundle(signed, keys[1] if verified else None)
    what = "a symbolic link" if link else "a folder, pipe, socket or device"
    assert str(error.value) == f"{path} is {what}; a bundle holds plain files only. Write the bundle again."


def test_a_file_altered_under_a_good_signature(signed: Path, keys: tuple[Path, Path]) -> None:
    path = signed / "model.onnx"
    path.write_bytes(path.read_bytes()[:-1] + b"\0")
    assert refusal(signed, keys[1]) == (
        f"{path} has changed since it was written (its SHA-256 differs). Write the bundle again."
    )


@pytest.mark.parametrize(
    "private",
    [
        rsa.generate_private_key(65537, 2048),
        ec.generate_private_key(ec.SECP256R1()),
        x25519.X25519PrivateKey.generate(),
    ],
    ids=["RSA", "EC", "X25519"],
)
def test_a_key_of_another_kind(private: object, signed: Path, tmp_path: Path) -> None:
    key, public = write_keys(tmp_path, private)
    assert refused_key(key) == f"{key} is a key of another kind; bundles are signed with Ed25519. {MAKE}"
    assert refusal(signed, public) == f"{public} is a key of another kind; bundles are signed with Ed25519. {MAKE}"


def test_the_halves_of_a_key_exchanged(keys: tuple[Path, Path], signed: Path) -> None:
    key, public = keys
    assert refused_key(public) == f"{public} cannot be used as a private key: it is not one in PEM. {MAKE}"
    assert refusal(signed, key) == (
        f"{key} is a private key: keep it where bundles are signed. Name its public half: {PUBLIC}"
    )


def test_no_key_at_all(keys: tuple[Path, Path], signed: Path, tmp_path: Path) -> None:
    path = tmp_path / "nothing.pem"
    missing = f"{path} does not exist. Name a PEM file with an Ed25519 key. {MAKE}"
    assert (refused_key(path), refusal(signed, path)) == (missing, missing)
    folder = f"{tmp_path} cannot be read: Is a directory. Check its permissions and the disk."
    assert (refused_key(tmp_path), refusal(signed, tmp_path)) == (folder, folder)


OPENSSH = Ed25519PrivateKey.from_private_bytes(bytes(32)).private_bytes(
    serialization.Encoding.PEM, serialization.PrivateFormat.OpenSSH, serialization.NoEncryption()
)
NOT_PEM = [b"", b"key", bytes(range(256)), b"-----BEGIN PUBLIC KEY-----\nAAAA\n-----END PUBLIC KEY-----\n", b"\0" * 64]
CUT = [b"-----BEGIN PRIVATE KEY-----\nMC4CAQAwBQYDK2VwBCIEI\n-----END PRIVATE KEY-----\n", OPENSSH]


@pytest.mark.parametrize("content", [*NOT_PEM, *CUT], ids=range(7))
def test_a_file_that_is_no_key(content: bytes, signed: Path, tmp_path: Path) -> None:
    path = tmp_path / "file.pem"
    path.write_bytes(content)
    assert refused_key(path) == f"{path} cannot be used as a private key: it is not one in PEM. {MAKE}"
    if content in NOT_PEM:
        assert refusal(signed, path) == (
            f"{path} cannot be used as a public key: it is not one in PEM. Make it: {PUBLIC}"
        )


def test_the_command_line(checkpoint: Path, tmp_path: Path, keys: tuple[Path, Path]) -> None:
    """Export signed, score and evaluate verified; unsigned, or with another key, nothing is written."""
    run = CliRunner()
    pl.DataFrame({"user_id": [1, 1], "item_id": ["item-003", "item-004"]}).write_parquet(tmp_path / "users.parquet")
    pl.DataFrame({"user_id": [1], "item_id": ["item-007"]}).write_parquet(tmp_path / "truth.parquet")
    users, truth = str(tmp_path / "users.parquet"), str(tmp_path / "truth.parquet")
    target, bundle = str(tmp_path / "run"), str(tmp_path / "bundle")
    score = [
        "score",
        "--input",
        users,
        "--bundle",
        bundle,
        "--output",
        target,
        "--device",
        "cpu",
        "--k",
        "3",
        "--verify",
    ]
    evaluate = [
        "evaluate",
        "--history",
        users,
        "--truth",
        truth,
        "--device",
        "cpu",
        "--verify",
        str(keys[1]),
        "--model",
    ]

    export = ["export", "--checkpoint", str(checkpoint), "--output", bundle, "--sign", str(keys[0])]
    assert run.invoke(main, export).exit_code == 0
    _, other = write_keys((tmp_path / "users.parquet").parent, Ed25519PrivateKey.generate())
    refused = run.invoke(main, [*score, str(other)])
    assert (refused.exit_code, refused.stderr) == (2, f"Error: {altered(Path(bundle), other)}\n")
    assert not Path(target).exists()

    keys = write_keys(tmp_path, Ed25519PrivateKey.from_private_bytes(bytes(range(32))))
    assert run.invoke(main, [*score, str(keys[1])]).exit_code == 0
    assert (Path(target) / "_SUCCESS").exists()
    assert run.invoke(main, [*evaluate, bundle]).exit_code == 0
    refused = run.invoke(main, [*evaluate, str(checkpoint)])
    assert (refused.exit_code, refused.stderr) == (
        2,
        f"Error: {checkpoint} is not a bundle, and only bundles are signed. Name a bundle, or leave --verify out.\n",
    )
