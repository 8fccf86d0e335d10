"""Marks of machine-made clips: what a container says of how its picture and sound came to be.

They lie in the header of a stream, so each copy of it has them: a file, what a browser is sent and
what it records. Three forms, because tools differ in what they read and in what they keep:

- tags as iTunes has them (``moov/udta/meta/ilst``): encoder, title and comment, which players and
  FFmpeg show, and which survive FFmpeg's copies; free-form ones under ``com.omniforcing``
- an XMP packet (ISO 16684-1) in a ``uuid`` box of the file: IPTC's *digital source type*, in which
  platforms look for ``trainedAlgorithmicMedia``, and the tool that made the clip

No mark holds a time of day or a prompt: the same stream has the same bytes.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from xml.sax.saxutils import escape

from omniforcing import __version__
from omniforcing.core.errors import OmniForcingError
from omniforcing.media.boxes import box, full_box

SOURCE_TYPES = "http://cv.iptc.org/newscodes/digitalsourcetype/"
SOURCE_TYPE = f"{SOURCE_TYPES}trainedAlgorithmicMedia"
TITLE = "Machine-generated picture and sound"
_XMP_UUID = bytes.fromhex("BE7ACFCB97A942E89C71999491E3AFAC")  # XMP specification, part 3
_TEXT = bytes((0, 0, 0, 1, 0, 0, 0, 0))  # of a ``data`` box: UTF-8, in no language
_XMP = """<?xpacket begin="\ufeff" id="W5M0MpCehiHzreSzNTczkc9d"?>
<x:xmpmeta xmlns:x="adobe:ns:meta/">
 <rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">
  <rdf:Description rdf:about=""
    xmlns:xmp="http://ns.adobe.com/xap/1.0/"
    xmlns:dc="http://purl.org/dc/elements/1.1/"
    xmlns:Iptc4xmpExt="http://iptc.org/std/Iptc4xmpExt/2008-02-29/"
    Iptc4xmpExt:DigitalSourceType="{source_type}"
    xmp:CreatorTool="{software}">
   <dc:description>
    <rdf:Alt><rdf:li xml:lang="x-default">{comment}</rdf:li></rdf:Alt>
   </dc:description>
  </rdf:Description>
 </rdf:RDF>
</x:xmpmeta>
<?xpacket end="r"?>"""


@dataclass(frozen=True)
class Mark:
    """What a clip says of itself.

    Attributes:
        model: name of the model that made it.
        artifact: sha256 that identifies the model's artifact; empty if it is not known.
        software: name and version of the program.
        watermark: sha256 of the program that made the watermark in the sound; empty for none.
    """

    model: str = ""
    artifact: str = ""
    software: str = f"omniforcing {__version__}"
    watermark: str = ""

    @property
    def comment(self) -> str:
        """The mark as a sentence."""
        model = f" with model {self.model}" if self.model else ""
        artifact = f", artifact {self.artifact}" if self.artifact else ""
        watermark = f", watermark {self.watermark}" if self.watermark else ""
        return f"{TITLE}, made by {self.software}{model}{artifact}{watermark}; {SOURCE_TYPE}"

    def user_data(self) -> bytes:
        """Build the ``udta`` box of ``moov``: tags as iTunes has them."""
        own = {"digital_source_type": SOURCE_TYPE, "model": self.model, "artifact": self.artifact}
        own |= {"watermark": self.watermark}
        tags = [
            _tag(b"\xa9nam", TITLE),
            _tag(b"\xa9too", self.software),
            _tag(b"\xa9cmt", self.comment),
            *(_free_form(name, value) for name, value in own.items() if value),
        ]
        handler = full_box(b"hdlr", 0, 0, bytes(4), b"mdir", b"appl", bytes(9))
        return box(b"udta", full_box(b"meta", 0, 0, handler, box(b"ilst", *tags)))

    def packet(self) -> bytes:
        """Build the ``uuid`` box of the file: an XMP packet."""
        values = {
            "source_type": SOURCE_TYPE,
            "software": escape(self.software, {'"': "&quot;"}),
            "comment": escape(self.comment),
        }
        return box(b"uuid", _XMP_UUID, _XMP.format(**values).encode())


def _tag(kind: bytes, text: str) -> bytes:
    return box(kind, box(b"data", _TEXT, text.encode()))


def _free_form(name: str, text: str) -> bytes:
    mean = full_box(b"mean", 0, 0, b"com.omniforcing")
    return box(
        b"----", mean, full_box(b"name", 0, 0, name.encode()), box(b"data", _TEXT, text.encode())
    )


def read_marks(path: Path) -> dict[str, str]:
    """Read the marks of a clip in any container that FFmpeg reads.

    Args:
        path: the clip.

    Returns:
        ``digital_source_type`` if the clip states one, ``software``, ``title``, ``comment``,
        ``model``, ``artifact`` and ``watermark``, those that are there.

    Raises:
        OmniForcingError: if the file cannot be read.
    """
    import av  # an engine, which only writes marks, does without

    try:
        # As a file: FFmpeg would take a colon in a name for a protocol.
        options = {"export_xmp": "1"}
        with (
            path.open("rb") as file,
            av.open(file, metadata_errors="ignore", options=options) as container,
        ):
            tags = {name.lower(): value for name, value in container.metadata.items()}
    except (av.FFmpegError, OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise OmniForcingError(
            "file.unreadable", f"{path} is no clip that FFmpeg reads ({reason}); give a video file"
        ) from error
    marks = {}
    if found := re.search(rf"{re.escape(SOURCE_TYPES)}\w+", " ".join(tags.values())):
        marks["digital_source_type"] = found[0]
    tool = re.search(r'CreatorTool(?:="|>)([^"<]+)', tags.get("xmp", ""))
    marks["software"] = tool[1] if tool else tags.get("encoder", "")
    names = ("title", "comment", "model", "artifact", "watermark")
    marks |= {name: tags.get(name, "") for name in names}
    return {name: value for name, value in marks.items() if value}
