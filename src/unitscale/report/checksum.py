"""Lines of JSON that say themselves whether they are whole: each ends with a checksum.

The checksum is that of the line without it, continued from the line before, so that a line that is
edited, lost or moved breaks its own and every later one.
"""

import re
import zlib

__all__ = ["checked", "sealed"]

CHECKSUM = re.compile(rb', "crc": "([0-9a-f]{8})"\}\Z')
"""The last key of a line."""


def sealed(body: bytes, previous: int) -> tuple[bytes, int]:
    """An object of JSON as a line with its checksum after that of the `previous` line, and that."""
    crc = zlib.crc32(body, previous)
    return body[:-1] + f', "crc": "{crc:08x}"}}\n'.encode(), crc


def checked(line: bytes, previous: int) -> tuple[bytes, int]:
    """The object in a line, which comes without its end, and its checksum.

    Raises:
        ValueError: the line has no checksum, or another one.
    """
    found = CHECKSUM.search(line)
    if found is None:
        raise ValueError("it has no checksum")
    body = line[: found.start()] + b"}"
    crc = zlib.crc32(body, previous)
    if crc != int(found.group(1), 16):
        raise ValueError("its checksum does not match")
    return body, crc
