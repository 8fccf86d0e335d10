"""Signatures of clips, as C2PA (Content Credentials) has them, by a person's own certificate.

A signature holds the digest of the whole clip, so that one that was changed is told from one that
was not, and who signed it. It needs the extra ``signing``. It states no trusted time: that would be
asked of a server. Two signatures of the same clip differ in their numbers.
"""

from __future__ import annotations

import io
import json
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from importlib.util import find_spec
from pathlib import Path
from typing import IO, Any, BinaryIO

from omniforcing.core.errors import OmniForcingError
from omniforcing.media.marking import SOURCE_TYPE, Mark

LIBRARIES = ("c2pa", "cryptography")
INSTALL = "pip install -c constraints.txt 'omniforcing[signing]'"
MP4 = "video/mp4"
BOX = bytes.fromhex("D8FEC3D61B0E483C92975828877EC481")  # of a C2PA manifest, in a ``uuid`` box
# Algorithms that C2PA allows for elliptic curves, by the curves' names in ``cryptography``.
CURVES = {"secp256r1": b"es256", "secp384r1": b"es384", "secp521r1": b"es512"}


class ClipSigner:
    """Signs clips with a certificate, after trying it on a picture.

    Args:
        certificate: PEM file with the certificate and those that vouch for it, its own first.
        key: PEM file of its private key, without a password.

    Raises:
        OmniForcingError: if the extra is not installed, or the two cannot sign.
    """

    def __init__(self, certificate: Path, key: Path) -> None:
        if not _installed():
            raise OmniForcingError(
                "signing.not-installed", f"--sign needs {' and '.join(LIBRARIES)}: {INSTALL}"
            )
        self._name = certificate
        self._chain, self._key = _read(certificate, "certificate"), _read(key, "key")
        self._algorithm = self._check(key)
        self._sign("image/png", io.BytesIO(_picture()), io.BytesIO(), Mark())

    def sign(self, clip: IO[bytes], out: IO[bytes], mark: Mark) -> None:
        """Write a clip with its signature.

        Args:
            clip: an MP4 from its beginning.
            out: file to write.
            mark: what the clip says of how it was made; the signature says it too.

        Raises:
            OmniForcingError: if it cannot be signed.
        """
        with tempfile.TemporaryFile() as signed:  # it is read again while it is signed
            self._sign(MP4, clip, signed, mark)
            signed.seek(0)
            shutil.copyfileobj(signed, out)

    def _sign(self, form: str, source: IO[bytes], target: IO[bytes], mark: Mark) -> None:
        import c2pa

        info = c2pa.C2paSignerInfo(
            alg=self._algorithm, sign_cert=self._chain, private_key=self._key, ta_url=None
        )
        try:
            signer, builder = c2pa.Signer.from_info(info), c2pa.Builder(json.dumps(_manifest(mark)))
            builder.sign(signer, form, source, target)
        except c2pa.C2paError as error:
            reason = str(error).removeprefix("Signature: ").removeprefix("Other: ")
            raise OmniForcingError(
                "signing.unusable-certificate",
                f"{self._name} cannot sign ({reason}); it must be a PEM chain that ends at an "
                "authority, whose first certificate is for signatures of documents or e-mail",
            ) from error

    def _check(self, key: Path) -> bytes:
        """Return the algorithm of a pair of certificate and key that belong together."""
        from cryptography import x509
        from cryptography.hazmat.primitives import serialization

        try:
            certificate = x509.load_pem_x509_certificates(self._chain)[0]
        except ValueError as error:
            raise OmniForcingError(
                "signing.unusable-certificate",
                f"{self._name} holds no certificate in PEM; name a chain of them",
            ) from error
        try:
            private: Any = serialization.load_pem_private_key(self._key, None)
        except (ValueError, TypeError) as error:
            raise OmniForcingError(
                "signing.unusable-key",
                f"{key} holds no private key in PEM without a password; name that of {self._name}",
            ) from error
        if certificate.public_key() != private.public_key():
            raise OmniForcingError(
                "signing.unusable-key",
                f"{key} is not the key of {self._name}; name the two that belong together",
            )
        now = datetime.now(UTC)
        begins, ends = certificate.not_valid_before_utc, certificate.not_valid_after_utc
        if not begins <= now <= ends:
            word = "expired" if now > ends else "is not valid yet"
            raise OmniForcingError(
                "signing.unusable-certificate",
                f"{self._name} {word}: it is for {begins:%Y-%m-%d} to {ends:%Y-%m-%d}; "
                "sign with one that is valid today",
            )
        kind = type(private).__name__
        if kind.startswith("Ed25519"):
            return b"ed25519"
        return CURVES.get(private.curve.name, b"") if hasattr(private, "curve") else b"ps256"


@contextmanager
def signing(signer: ClipSigner | None, file: BinaryIO, mark: Mark) -> Iterator[BinaryIO]:
    """Yield a file whose content, signed when the body is done, goes into another.

    Args:
        signer: None: the other file itself is yielded.
        file: the other file.
        mark: what the clip says of how it was made.
    """
    if signer is None:
        yield file
        return
    with tempfile.TemporaryFile(dir=Path(file.name).parent) as plain:
        yield plain  # type: ignore[misc]
        plain.seek(0)
        signer.sign(plain, file, mark)


def read_signature(path: Path) -> str | None:
    """Say who signed a clip and whether it was changed since; None if nobody did.

    No authority is trusted or distrusted: whether the signer is who the certificate says is left to
    tools with a list of those, such as https://contentcredentials.org/verify.
    """
    if not _is_signed(path):
        return None
    if not _installed():
        return f"there, and not checked: {INSTALL}"
    import c2pa

    try:
        with path.open("rb") as file:
            found = json.loads(c2pa.Reader(MP4, file).json())
    except c2pa.C2paError as error:
        return f"there, and unreadable ({error})"
    about = found["manifests"][found["active_manifest"]].get("signature_info", {})
    who = " of ".join(filter(None, (about.get("common_name"), about.get("issuer"))))
    if found.get("validation_state") in ("Valid", "Trusted"):
        return f"by {who or 'somebody'}, and unchanged since"
    return f"by {who or 'somebody'}, and broken: the clip was changed since"


def _is_signed(path: Path) -> bool:
    """Return whether a box of an MP4 holds a C2PA manifest."""
    from omniforcing.media.reading.edits import open_boxes

    return any(content.startswith(BOX) for _, content in open_boxes(path, {b"uuid"}))


def _installed() -> bool:
    return all(find_spec(name) for name in LIBRARIES)


def _read(path: Path, what: str) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise OmniForcingError(
            "file.unreadable",
            f"{path} cannot be read ({error.strerror}); name the {what} in --sign CERTIFICATE KEY",
        ) from error


def _picture() -> bytes:
    from PIL import Image

    out = io.BytesIO()
    Image.new("RGB", (1, 1)).save(out, "PNG")
    return out.getvalue()


def _manifest(mark: Mark) -> dict[str, Any]:
    name, _, version = mark.software.partition(" ")
    software = {"name": name, "version": version}
    created = {
        "action": "c2pa.created",
        "digitalSourceType": SOURCE_TYPE,
        "softwareAgent": software,
    }
    own = {"model": mark.model, "artifact": mark.artifact, "watermark": mark.watermark}
    return {
        "claim_generator_info": [software],
        "assertions": [
            {"label": "c2pa.actions.v2", "data": {"actions": [created]}},
            {"label": "com.omniforcing.model", "data": own},
        ],
    }
