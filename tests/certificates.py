"""Certificates for tests of tls://: an authority, and a server certificate of it for this machine.

Rules: made anew for each run, valid for a day, kept in the directory of whoever asks, and gone with it. They have
what a strict verification asks for.
"""

from __future__ import annotations

import datetime
import ipaddress
from pathlib import Path
from typing import TYPE_CHECKING

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

if TYPE_CHECKING:
    import os

    Key = ec.EllipticCurvePrivateKey

_DAY = datetime.timedelta(days=1)
_AUTHORITY = "test authority"
_PEM = serialization.Encoding.PEM


def make_authority(directory: str | os.PathLike[str]) -> tuple[str, str, str]:
    """Write an authority, and a certificate of it for 127.0.0.1, ::1 and localhost with its key, as PEM files.

    Returns the paths of the authority's certificate (--tls-ca), the server's (--tls-cert) and its key (--tls-key).
    """
    authority_key, key = ec.generate_private_key(ec.SECP256R1()), ec.generate_private_key(ec.SECP256R1())
    authority = _certificate(_AUTHORITY, authority_key, authority_key, _authority_usage())
    certificate = _certificate("localhost", key, authority_key, [(_names(), False)])
    secret = key.private_bytes(_PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    contents = {
        "ca.pem": authority.public_bytes(_PEM),
        "cert.pem": certificate.public_bytes(_PEM),
        "key.pem": secret,
    }
    ca_file, cert_file, key_file = (_write(Path(directory, name), content) for name, content in contents.items())
    return ca_file, cert_file, key_file


def _certificate(
    subject: str, key: Key, signer: Key, extensions: list[tuple[x509.ExtensionType, bool]]
) -> x509.Certificate:
    now = datetime.datetime.now(datetime.UTC)
    builder = x509.CertificateBuilder(
        _name(_AUTHORITY), _name(subject), key.public_key(), x509.random_serial_number(), now - _DAY, now + _DAY
    )
    identifiers = [
        (x509.SubjectKeyIdentifier.from_public_key(key.public_key()), False),
        (x509.AuthorityKeyIdentifier.from_issuer_public_key(signer.public_key()), False),
    ]
    for extension, critical in [*identifiers, *extensions]:
        builder = builder.add_extension(extension, critical)
    return builder.sign(signer, hashes.SHA256())


def _authority_usage() -> list[tuple[x509.ExtensionType, bool]]:
    allowed = dict.fromkeys(("key_cert_sign", "crl_sign"), True)
    others = ["digital_signature", "content_commitment", "key_encipherment", "data_encipherment", "key_agreement"]
    usage = x509.KeyUsage(**allowed, **dict.fromkeys([*others, "encipher_only", "decipher_only"], False))
    return [(x509.BasicConstraints(ca=True, path_length=0), True), (usage, True)]


def _names() -> x509.SubjectAlternativeName:
    addresses = [x509.IPAddress(ipaddress.ip_address(ip)) for ip in ("127.0.0.1", "::1")]
    return x509.SubjectAlternativeName([x509.DNSName("localhost"), *addresses])


def _name(text: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, text)])


def _write(path: Path, content: bytes) -> str:
    path.touch(0o600)
    path.write_bytes(content)
    return str(path)
