"""Names that moved to another room are found under the old one, with a warning."""

import pytest

from unitscale import numerics, record


@pytest.mark.parametrize("name", ["record", "Recorder"])
def test_old_name_is_kept_with_a_warning(name):
    with pytest.warns(DeprecationWarning, match=f"unitscale.record.{name}"):
        assert getattr(numerics, name) is getattr(record, name)


def test_unknown_name_is_an_error():
    with pytest.raises(AttributeError, match="no attribute 'rekord'"):
        _ = numerics.rekord
