"""What the installation has: versions of packages, kept files, codecs of PyAV's FFmpeg."""

from __future__ import annotations

import importlib.util
import platform
import re
import sys
from collections.abc import Iterable, Iterator
from importlib import metadata
from pathlib import Path

from omniforcing import __version__
from omniforcing.core.errors import OmniForcingError
from omniforcing.core.files import read_json, verify_manifest
from omniforcing.doctor.finding import Finding
from omniforcing.pocket import foundation
from omniforcing.pocket.student import check_student

PYTHONS = ((3, 11), (3, 13))  # oldest and newest that pyproject.toml takes
EXTRAS = ("serve", "telemetry", "pipeline")
# Encoders that streams and clips are written with, and decoders of what we write.
NEEDED_CODECS = {"w": ("libx264", "aac", "flac"), "r": ("h264", "aac", "flac")}
# Decoders of what other people's clips hold.
COMMON_DECODERS = ("hevc", "vp8", "vp9", "av1", "mpeg4", "opus", "vorbis", "mp3", "pcm_s16le")


# --- versions ---


def versions(checkout: Path | None) -> Iterator[Finding]:
    """Python, this package and the packages that it needs, each against the checkout's pins.

    Args:
        checkout: folder with ``constraints.txt``; None outside a checkout.
    """
    yield _python()
    yield Finding("versions", "omniforcing", __version__)
    pins = _pins(checkout)
    if not requirements():
        fault = "omniforcing runs from a folder of sources, so what it needs is unknown here; "
        fault += "install it with pip install -c constraints.txt -e ."
        yield Finding("versions", "packages", "not looked at", fault, needed=False)
    for name, extra in sorted(requirements(), key=lambda needed: (needed[1], needed[0])):
        yield _package(name, extra, pins.get(name))


def _python() -> Finding:
    oldest, newest = (".".join(map(str, version)) for version in PYTHONS)
    fits = PYTHONS[0] <= sys.version_info[:2] <= PYTHONS[1]
    fault = f"Python {oldest} to {newest} is needed; install one and make the environment with it"
    return Finding("versions", "python", platform.python_version(), None if fits else fault)


def requirements() -> set[tuple[str, str]]:
    """Name of every package that the installation declares, with its extra or an empty word."""
    try:
        lines = metadata.requires("omniforcing") or []
    except metadata.PackageNotFoundError:  # run from a folder of sources
        return set()
    found = set()
    for line in lines:
        name = re.match(r"[\w.-]+", line)
        extra = re.search(r"""extra\s*==\s*['"](\w+)['"]""", line)
        if name and (extra is None or extra[1] in EXTRAS):
            found.add((name[0], extra[1] if extra else ""))
    return found


def _pins(checkout: Path | None) -> dict[str, str]:
    file = checkout / "constraints.txt" if checkout else None
    if file is None or not file.is_file():
        return {}
    pairs = re.findall(r"^([\w.-]+)==(\S+)", file.read_text(encoding="utf-8"), re.MULTILINE)
    return dict(pairs)


def _package(name: str, extra: str, pin: str | None) -> Finding:
    whole = f"omniforcing[{extra}]" if extra else "omniforcing"
    command = f"pip install '{whole}'" + (" -c constraints.txt" if pin else "")
    try:
        found = metadata.version(name)
    except metadata.PackageNotFoundError:
        use = f"what `{whole}` adds needs it" if extra else "everything needs it"
        fault = f"the package {name} is missing, {use}; {command}"
        return Finding("versions", name, "missing", fault, needed=not extra)
    value = f"{found}, {torch_build()}" if name == "torch" else found
    other = pin is not None and found.partition("+")[0] != pin  # any build of a version fits
    note = f"{name} is {found}, tested is {pin}; {command}" if other else None
    return Finding("versions", name, value, note, needed=False)


def is_installed(name: str) -> bool:
    """Whether a package is installed, by its name on the package index."""
    try:
        metadata.version(name)
    except metadata.PackageNotFoundError:
        return False
    return True


def torch_build() -> str:
    """Say what the installed torch is built for, from its file of versions alone."""
    place = importlib.util.find_spec("torch")
    file = Path(place.origin).with_name("version.py") if place and place.origin else None
    if file is None or not file.is_file():
        return "of an unknown build"
    cuda = re.search(r"^cuda\b.*?=\s*'([\d.]+)'", file.read_text(encoding="utf-8"), re.MULTILINE)
    return f"for CUDA {cuda[1]}" if cuda else "for CPUs"


# --- kept files ---


def kept_files() -> Iterator[Finding]:
    """The foundation and the student that the package keeps, every file verified."""
    for part in foundation.PARTS:
        yield _kept_part(part)
    try:
        record = check_student()
    except OmniForcingError as error:
        yield Finding("kept files", "student", "unusable", str(error))
    else:
        commit = record["git_commit"][:12]
        value = f"artifact {record['artifact'][:12]}, commit {commit}, {len(record['files'])} files"
        yield Finding("kept files", "student", f"{value} verified")


def _kept_part(part: str) -> Finding:
    folder = foundation.KEPT / part
    remedy = "install omniforcing again; it is needed by preset pocket and the kept student"
    try:
        count = len(verify_manifest(folder)["files"])
        record = read_json(folder.with_suffix(".json"))
        digest = foundation.weights_digest(folder)
    except OmniForcingError as error:
        fact = str(error).partition(";")[0]
        return Finding("kept files", part, "unusable", f"{fact}; {remedy}")
    fault = None
    if record.get("weights") != digest:
        fault = f"the weights in {folder} are not those that {part}.json records; {remedy}"
    value = f"weights {digest[:12]}, commit {record.get('git_commit', 'unknown')[:12]}"
    return Finding("kept files", part, f"{value}, {count} files verified", fault)


# --- codecs ---


def codecs() -> Iterator[Finding]:
    """Codecs of the FFmpeg in PyAV: those that we need, and those of other people's clips."""
    try:
        import av
    except (ImportError, OSError) as error:
        reason = " ".join(str(error).split())
        fault = f"PyAV cannot be loaded ({reason}); pip install --force-reinstall av"
        yield Finding("codecs", "PyAV", "unusable", fault)
        return
    yield Finding("codecs", "FFmpeg", f"{av.ffmpeg_version_info}, in PyAV {av.__version__}")
    remedy = "install the wheel of PyAV, pip install --force-reinstall --only-binary av av"
    for mode, kind in (("w", "encoders"), ("r", "decoders")):
        lacking = missing_codecs(NEEDED_CODECS[mode], mode)
        fault = f"FFmpeg lacks {', '.join(lacking)}, which streams and clips need; {remedy}"
        value = ", ".join(name for name in NEEDED_CODECS[mode] if name not in lacking)
        yield Finding("codecs", kind, value or "none", fault if lacking else None)
    lacking = missing_codecs(COMMON_DECODERS, "r")
    fault = f"clips with {', '.join(lacking)} will be rejected; convert them, or {remedy}"
    value = ", ".join(name for name in COMMON_DECODERS if name not in lacking)
    yield Finding("codecs", "of others", value, fault if lacking else None, needed=False)


def missing_codecs(names: Iterable[str], mode: str) -> list[str]:
    """List the codecs that FFmpeg lacks, of ``names``.

    Args:
        names: names of codecs.
        mode: ``r`` to decode, ``w`` to encode.
    """
    from av.codec import Codec
    from av.codec.codec import UnknownCodecError

    lacking = []
    for name in names:
        try:
            Codec(name, mode)
        except UnknownCodecError:
            lacking.append(name)
    return lacking
