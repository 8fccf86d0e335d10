"""Signatures of clips: made with a person's certificate, read back, broken by a change."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import av
import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa

from omniforcing.cli import main
from omniforcing.media.marking import Mark, read_marks
from omniforcing.media.provenance import describe
from omniforcing.media.signing import ClipSigner, read_signature
from tests.support.certificates import certificates
from tests.support.marked import MARK, stream
from tests.support.refusals import refused, refuses


def signed(folder: Path, clip: bytes, mark: Mark = MARK, key: Any = None) -> Path:
    path = folder / "signed.mp4"
    with path.open("wb") as file:
        ClipSigner(*certificates(folder, key)).sign(io.BytesIO(clip), file, mark)
    return path


def decoded(clip: Path) -> list[bytes]:
    with av.open(str(clip)) as file:
        return [frame.to_ndarray().tobytes() for frame in file.decode(video=0, audio=0)]


def test_a_signed_clip_says_who_signed_it_and_plays_as_before(tmp_path: Path) -> None:
    plain = tmp_path / "plain.mp4"
    plain.write_bytes(stream())
    clip = signed(tmp_path, plain.read_bytes())
    assert read_signature(clip) == "by Signer of Example, and unchanged since"
    assert "by Signer of Example" in describe(clip)
    assert decoded(clip) == decoded(plain) and read_marks(clip) == read_marks(plain)
    assert read_signature(plain) is None and "signature" not in describe(plain)


def test_the_signature_itself_says_that_a_machine_made_the_clip(tmp_path: Path) -> None:
    import c2pa

    clip = signed(tmp_path, stream())
    with clip.open("rb") as file:
        found = c2pa.Reader("video/mp4", file).json()
    assert "trainedAlgorithmicMedia" in found and MARK.artifact in found


def test_a_clip_that_was_changed_since_is_told(tmp_path: Path) -> None:
    clip = signed(tmp_path, stream())
    content = bytearray(clip.read_bytes())
    content[-10] ^= 1  # of the last block's sound
    clip.write_bytes(content)
    assert "broken: the clip was changed" in (read_signature(clip) or "")


@pytest.mark.parametrize(
    "key",
    [
        ec.generate_private_key(ec.SECP384R1()),
        ed25519.Ed25519PrivateKey.generate(),
        rsa.generate_private_key(65537, 2048),
    ],
    ids=["P-384", "Ed25519", "RSA"],
)
def test_keys_of_other_kinds_sign(key: Any, tmp_path: Path) -> None:
    assert "unchanged" in (read_signature(signed(tmp_path, stream(), key=key)) or "")


def test_what_cannot_sign_is_one_sentence(tmp_path: Path) -> None:
    chain, key = certificates(tmp_path)
    other = tmp_path / "other"
    other.mkdir()
    with refuses("signing.unusable-key", "key.pem is not the key of"):
        ClipSigner(chain, certificates(other)[1])
    with refuses("signing.unusable-certificate", "expired", "sign with one that is valid today"):
        ClipSigner(*certificates(other, days=(-9, -2)))
    with refuses("signing.unusable-certificate", "is not valid yet"):
        ClipSigner(*certificates(other, days=(2, 9)))
    with refuses("signing.unusable-certificate", "chain.pem cannot sign"):
        ClipSigner(*certificates(other, purpose=False))
    (tmp_path / "junk.pem").write_text("junk")
    with refuses("signing.unusable-certificate", "junk.pem holds no certificate"):
        ClipSigner(tmp_path / "junk.pem", key)
    with refuses("signing.unusable-key", "junk.pem holds no private key"):
        ClipSigner(chain, tmp_path / "junk.pem")
    with refuses("file.unreadable", "none.pem cannot be read", "--sign CERTIFICATE KEY"):
        ClipSigner(tmp_path / "none.pem", key)


def test_without_the_library_a_signature_is_told_and_signing_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clip, files = signed(tmp_path, stream()), certificates(tmp_path)
    monkeypatch.setattr("omniforcing.media.signing.LIBRARIES", ("no_such_library",))
    assert "not checked" in (read_signature(clip) or "")
    with refuses("signing.not-installed", "omniforcing[signing]"):
        ClipSigner(*files)


def test_the_command_signs_files_and_no_stream_to_a_player(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["stream", "--prompt", "a red ball bounces high on the floor", "--seconds", "1"]
    sign = ["--sign", *map(str, certificates(tmp_path))]
    with pytest.raises(SystemExit, match="2"):
        main([*words, "--out", "-", *sign])
    refused(capsys.readouterr().err, "option.conflict", "name a file in --out")
    out = tmp_path / "clip.mp4"
    with pytest.raises(SystemExit, match="0"):
        main([*words, "--out", str(out), *sign])
    assert read_signature(out) == "by Signer of Example, and unchanged since"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["chain.pem", "clip.mp4", "key.pem"]
