"""Lines with checksums: whole ones are read, and nothing else is."""

import pytest

from unitscale.report.checksum import checked, sealed

BODIES = [b'{"a": 1}', b'{"a": 2}', b"{}"]


def lines_of(bodies: list[bytes]) -> list[bytes]:
    crc, lines = 0, []
    for body in bodies:
        line, crc = sealed(body, crc)
        lines.append(line)
    return lines


def test_sealed_lines_are_checked_one_after_the_other():
    crc = 0
    for line, body in zip(lines_of(BODIES), BODIES, strict=True):
        found, crc = checked(line.removesuffix(b"\n"), crc)
        assert found == body


@pytest.mark.parametrize("position", range(8))
def test_every_changed_byte_of_the_body_is_noticed(position):
    line = bytearray(lines_of(BODIES)[0][:-1])
    line[position] ^= 1
    with pytest.raises(ValueError, match="checksum"):
        checked(bytes(line), 0)


def test_a_line_at_another_place_does_not_match():
    with pytest.raises(ValueError, match="does not match"):
        checked(lines_of(BODIES)[1][:-1], 0)


def test_a_line_without_is_refused():
    with pytest.raises(ValueError, match="it has no checksum"):
        checked(BODIES[0], 0)
