"""Certificates to sign clips with, made for a test."""

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

DAY = timedelta(days=1)


def certificates(
    folder: Path, key: Any = None, days: tuple[int, int] = (-1, 1), purpose: bool = True
) -> tuple[Path, Path]:
    """Write a chain of a signer and an authority, and the signer's key; return both files.

    Args:
        folder: where to write.
        key: private key of the signer; one of curve P-256 by default.
        days: first and last day of the signer's certificate, from today.
        purpose: whether it says that it is for signatures.
    """
    key, authority = key or ec.generate_private_key(ec.SECP256R1()), _new_key()
    chain = [
        _certificate("Signer", key, authority, (days[0] * DAY, days[1] * DAY), purpose),
        _certificate("Authority", authority, authority, (-DAY, DAY), None),
    ]
    paths = folder / "chain.pem", folder / "key.pem"
    paths[0].write_bytes(b"".join(c.public_bytes(serialization.Encoding.PEM) for c in chain))
    paths[1].write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
    )
    return paths


def _new_key() -> ec.EllipticCurvePrivateKey:
    return ec.generate_private_key(ec.SECP256R1())


def _name(text: str) -> x509.Name:
    organisation = x509.NameAttribute(NameOID.ORGANIZATION_NAME, "Example")
    return x509.Name([organisation, x509.NameAttribute(NameOID.COMMON_NAME, text)])


def _certificate(
    name: str, key: Any, authority: Any, days: tuple[timedelta, timedelta], purpose: bool | None
) -> x509.Certificate:
    """A certificate; that of an authority has no purpose, None."""
    is_authority, now = purpose is None, datetime.now(UTC)
    usage = dict.fromkeys(("content_commitment", "key_encipherment", "data_encipherment"), False)
    usage |= dict.fromkeys(("key_agreement", "encipher_only", "decipher_only"), False)
    usage |= {"digital_signature": not is_authority, "crl_sign": is_authority}
    builder = (
        x509.CertificateBuilder()
        .subject_name(_name(name))
        .issuer_name(_name("Authority"))
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now + days[0])
        .not_valid_after(now + days[1])
        .add_extension(x509.BasicConstraints(is_authority, None), True)
        .add_extension(x509.KeyUsage(**usage, key_cert_sign=is_authority), True)
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_public_key(authority.public_key()), False
        )
    )
    if purpose:
        wanted = x509.ExtendedKeyUsage([ExtendedKeyUsageOID.EMAIL_PROTECTION])
        builder = builder.add_extension(wanted, False)
    return builder.sign(authority, hashes.SHA256())
