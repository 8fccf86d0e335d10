#!/usr/bin/env bash
# One would guess: signing a fragmented MP4 with c2pa-python puts a manifest into the file and leaves it playable as it was, the
#   index of its fragments (mfra/tfra) included, whose offsets move by as many bytes as were put in.
# What happens: every offset of the index becomes the same number, a little below the place of the last fragment. The signature is
#   "Valid" all the same. A player that goes by the index finds no frame after a seek; FFmpeg, told to use it, reads none, and
#   misses two frames even from the start. Without an index the signed file plays as before.
# Versions: c2pa-python 0.38.1 (c2pa-rs 0.91.3), PyAV 18.1.0. Seen 2026-11-29.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet c2pa-python==0.38.1 cryptography==50.0.2 av==18.1.0 numpy==2.4.6
cat > "$folder/try.py" <<'PY'
import datetime
import io
import json
import struct
import sys
from fractions import Fraction

import av
import c2pa
import numpy as np
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

PLAIN, SIGNED = sys.argv[1] + "/plain.mp4", sys.argv[1] + "/signed.mp4"
now, day = datetime.datetime.now(datetime.timezone.utc), datetime.timedelta(days=1)
keys = {name: ec.generate_private_key(ec.SECP256R1()) for name in ("root", "signer")}


def certificate(name, authority):
    def named(text):
        return x509.Name([x509.NameAttribute(NameOID.ORGANIZATION_NAME, "Example"), x509.NameAttribute(NameOID.COMMON_NAME, text)])

    usage = dict.fromkeys(("content_commitment", "key_encipherment", "data_encipherment", "key_agreement"), False)
    usage |= {"crl_sign": authority, "encipher_only": False, "decipher_only": False}
    usage |= {"digital_signature": not authority, "key_cert_sign": authority}
    builder = x509.CertificateBuilder(named("root"), named(name), keys[name].public_key(), x509.random_serial_number(), now - day, now + day)
    builder = builder.add_extension(x509.BasicConstraints(authority, None), True).add_extension(x509.KeyUsage(**usage), True)
    builder = builder.add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(keys["root"].public_key()), False)
    if not authority:
        builder = builder.add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.EMAIL_PROTECTION]), False)
    return builder.sign(keys["root"], hashes.SHA256()).public_bytes(serialization.Encoding.PEM)


def boxes(data, at, end):
    while at < end:
        size, kind = struct.unpack_from(">I4s", data, at)
        yield kind, at, at + size
        at += size


def fragments(path):
    """Where the fragments are, and where the index says that they are."""
    data = open(path, "rb").read()
    found, indexed = [], []
    for kind, begin, end in boxes(data, 0, len(data)):
        if kind == b"moof":
            found.append(begin)
        for inner, at, _ in boxes(data, begin + 8, end) if kind == b"mfra" else ():
            if inner == b"tfra":
                wide = data[at + 8]
                sizes, count = struct.unpack_from(">II", data, at + 16)
                step = (16 if wide else 8) + sum((sizes >> shift & 3) + 1 for shift in (0, 2, 4))
                indexed += [struct.unpack_from(">QQ" if wide else ">II", data, at + 24 + n * step)[1] for n in range(count)]
    return found, indexed


def frames(path, second):
    with av.open(path, options={"use_mfra_for": "pts"}) as file:
        video = file.streams.video[0]
        file.seek(int(second / video.time_base), stream=video)
        return sum(1 for _ in file.decode(video))


with av.open(PLAIN, "w", options={"movflags": "frag_keyframe+empty_moov+default_base_moof"}) as out:
    video = out.add_stream("libx264", rate=24, options={"g": "12"})
    video.width = video.height = 64
    video.pix_fmt = "yuv420p"
    for number in range(96):
        frame = av.VideoFrame.from_ndarray(np.full((64, 64, 3), 2 * number, np.uint8), "rgb24")
        frame.pts, frame.time_base = number, Fraction(1, 24)
        out.mux(video.encode(frame))
    out.mux(video.encode(None))
key = keys["signer"].private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
chain = certificate("signer", False) + certificate("root", True)
signer = c2pa.Signer.from_info(c2pa.C2paSignerInfo(alg=b"es256", sign_cert=chain, private_key=key, ta_url=None))
action = {"action": "c2pa.created", "digitalSourceType": "http://cv.iptc.org/newscodes/digitalsourcetype/trainedAlgorithmicMedia"}
manifest = {
    "claim_generator_info": [{"name": "example", "version": "1"}],
    "assertions": [{"label": "c2pa.actions.v2", "data": {"actions": [action]}}],
}
signed = io.BytesIO()
with open(PLAIN, "rb") as file:
    c2pa.Builder(json.dumps(manifest)).sign(signer, "video/mp4", file, signed)
open(SIGNED, "wb").write(signed.getvalue())
state = json.loads(c2pa.Reader("video/mp4", io.BytesIO(signed.getvalue())).json())["validation_state"]
print("c2pa-rs", c2pa.sdk_version() if hasattr(c2pa, "sdk_version") else "", "PyAV", av.__version__, "signature:", state)
for path in (PLAIN, SIGNED):
    found, indexed = fragments(path)
    print(path.rpartition("/")[2], "fragments at", found[:4], "index says", indexed[:4], "frames from 0 to 3 s:", [frames(path, s) for s in range(4)])
found, indexed = fragments(PLAIN)
assert indexed == found
found, indexed = fragments(SIGNED)
assert state == "Valid" and len(set(indexed)) == 1 and len(found) > 4, "this has changed"
assert [frames(SIGNED, second) for second in (1, 2, 3)] == [0, 0, 0], "this has changed"
PY
"$folder/venv/bin/python" "$folder/try.py" "$folder"
