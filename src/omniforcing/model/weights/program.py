"""TorchScript programs: networks in one file, for which no installed package has the classes.

A TorchScript file is a program: it does what its author wrote. Only a file whose sha256 the user
has named is opened. PyTorch reads it with a reader of its own that knows no Python classes;
exported programs (``.pt2``) are refused, for they may hold Python pickles.
"""

from __future__ import annotations

import hashlib
import re
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from typing import Any

import torch

from omniforcing.core.errors import OmniForcingError, quoted

SHA256 = re.compile("[0-9a-fA-F]{64}")
CODE = re.compile(r"/code/.*\.py$")  # of a TorchScript file, which holds its methods as text
PRINTS = re.compile(rb"(?<![\w.])print\(")
_DAMAGE = (zipfile.BadZipFile, zlib.error, OSError, EOFError, RuntimeError, ValueError)
_FAULTS = (RuntimeError, AttributeError, TypeError, IndexError, ValueError)


class ProgramError(OmniForcingError):
    """A TorchScript program that cannot be used."""


def named_program(text: str, option: str) -> tuple[Path, str]:
    """Read ``FILE:SHA256`` of an option.

    Args:
        text: the option's value.
        option: its name, for the sentence.

    Returns:
        The file, and the sha256 that it must have, in small letters.

    Raises:
        ProgramError: if it is not of that form.
    """
    path, _, digest = text.rpartition(":")
    if not path or not SHA256.fullmatch(digest):
        raise ProgramError(
            "option.malformed",
            f"{option} is {quoted(text)}, with {len(digest)} characters behind the last colon; "
            "give FILE:SHA256, with the 64 hexadecimal digits that `sha256sum FILE` prints for the "
            "file that you trust",
        )
    return Path(path), digest.lower()


def open_program(path: Path, sha256: str, device: str = "cpu") -> Any:
    """Open a TorchScript file that was named with its sha256.

    Args:
        path: the file.
        sha256: what it must have, in small letters.
        device: where to compute.

    Returns:
        The module, for inference.

    Raises:
        ProgramError: if the file cannot be read, has another sha256, is no TorchScript file, or
            prints: a clip on standard output would hold it.
    """
    try:
        content = path.read_bytes()  # once, for what is loaded must be what was hashed
    except FileNotFoundError as error:
        raise ProgramError("file.missing", f"{path} is missing; name a TorchScript file") from error
    except OSError as error:
        raise ProgramError(
            "file.unreadable", f"{path} cannot be read ({error.strerror}); name a TorchScript file"
        ) from error
    found = hashlib.sha256(content).hexdigest()
    if found != sha256:
        raise ProgramError(
            "program.other-sha256",
            f"{path} has sha256 {found}, not {sha256}; name the file that you trust, "
            "or its sha256 if this is the one",
        )
    try:
        with zipfile.ZipFile(BytesIO(content)) as archive:
            members = archive.namelist()
            code = b"".join(archive.read(name) for name in members if CODE.search(name))
    except _DAMAGE as error:
        raise _no_program(path) from error
    if not any(name.endswith("constants.pkl") for name in members):
        raise ProgramError(
            "program.not-torchscript",
            f"{path} is no TorchScript file; exported programs may hold pickles and are refused; "
            "write one with torch.jit.trace or torch.jit.script",
        )
    if PRINTS.search(code):
        raise ProgramError(
            "program.prints", f"{path} prints, which would get into outputs; make it without that"
        )
    try:
        return torch.jit.load(BytesIO(content), map_location=device).eval()
    except (RuntimeError, ValueError) as error:
        raise _no_program(path) from error


def _no_program(path: Path) -> ProgramError:
    return ProgramError(
        "program.not-torchscript",
        f"{path} is no TorchScript file that can be loaded; "
        "write one with torch.jit.trace or torch.jit.script",
    )


@contextmanager
def calling(path: Path, signature: str) -> Iterator[None]:
    """Tell what a program raises, or what the caller says of its output, in one sentence.

    Args:
        path: the program.
        signature: what its ``forward`` takes and returns.

    Raises:
        ProgramError: if the body raises what a program that is called wrongly raises.
    """
    try:
        yield
    except (*_FAULTS, torch.jit.Error) as error:
        raise ProgramError(
            "program.wrong-signature",
            f"{path} has another signature: {_said(error)}; its forward must take {signature}",
        ) from error


def float_tensor(found: Any, *shapes: list[int]) -> torch.Tensor:
    """What a program returned, if it is a dense float32 tensor of one of the shapes.

    Raises:
        ValueError: if it is not; within ``calling``, one sentence.
    """
    if not isinstance(found, torch.Tensor) or list(found.shape) not in shapes:
        given = list(found.shape) if isinstance(found, torch.Tensor) else type(found).__name__
        raise ValueError(f"gave {given}, not {' or '.join(map(str, shapes))}")
    if found.dtype != torch.float32 or found.layout != torch.strided:
        raise ValueError(f"gave {found.dtype}, {found.layout}, not torch.float32")
    return found


def _said(error: Exception) -> str:
    """What an error says: of a program's own, behind its traceback, else at its beginning."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [""]
    return lines[-1 if "interpreter" in lines[0] else 0][:160]
