"""What shares a scale: names, shapes, refusals."""

import re

import pytest

from unitscale.formats import PerAxis, PerBlock, PerTensor, PerTile


@pytest.mark.parametrize(
    ("granularity", "name", "scale_shape"),
    [
        (PerTensor(), "tensor", ()),
        (PerAxis(), "row", (6, 1)),
        (PerAxis(0), "axis 0", (1, 300)),
        (PerBlock(128), "1x128", (6, 3)),
        (PerBlock(4, 0), "1x4 axis 0", (2, 300)),
        (PerTile(128, 128), "128x128", (1, 3)),
    ],
)
def test_name_and_scale_shape(granularity, name, scale_shape):
    assert str(granularity) == name
    assert granularity.scale_shape((6, 300)) == scale_shape


def test_scale_shape_of_other_dimensions():
    assert PerAxis().scale_shape(()) == ()
    assert PerAxis(1).scale_shape((2, 3, 4)) == (2, 1, 4)
    assert PerBlock(2).scale_shape((0,)) == (0,)
    assert PerTile(2, 3).scale_shape((5, 4, 4)) == (5, 2, 2)


@pytest.mark.parametrize(
    ("granularity", "shape", "message"),
    [
        (PerAxis(2), (3, 4), "no axis 2"),
        (PerAxis(-3), (3, 4), "no axis -3"),
        (PerBlock(16), (), "no axis -1"),
        (PerTile(16, 16), (3,), r"shape (3,)"),
    ],
)
def test_a_shape_without_the_axis(granularity, shape, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        granularity.scale_shape(shape)


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: PerAxis("row"), TypeError, "axis is 'row'; expected an int"),
        (lambda: PerAxis(True), TypeError, "axis is True"),
        (lambda: PerBlock(0), ValueError, "size is 0; expected 1 or more"),
        (lambda: PerBlock(16.0), TypeError, "size is 16.0"),
        (lambda: PerTile(0, 4), ValueError, "rows is 0"),
        (lambda: PerTile(4, -1), ValueError, "columns is -1"),
        (lambda: PerTile(4, None), TypeError, "columns is None"),
    ],
)
def test_fields_are_checked(make, error, message):
    with pytest.raises(error, match=re.escape(message)):
        make()
