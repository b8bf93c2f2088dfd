"""The comparison with other libraries, on peers made up here: neither library is needed."""

import block_oracle
import torch

from unitscale.formats import MX_E2M1FN


def own(x, codec):
    """A peer that does as we do."""
    e = codec.grid(x)
    return e.data.double() * e.scale.double()


def test_a_peer_that_does_the_same_has_no_differences(capsys):
    assert block_oracle.compare_mx("own", own, block_oracle.RULES, 50) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 5 * 4 * len(block_oracle.blocks(MX_E2M1FN, 50))
    assert all(" 0 of " in line for line in lines)


def test_a_difference_without_a_reason_counts(capsys):
    def doubled(x, codec):
        return own(x, codec) * 2

    assert block_oracle.compare_mx("wrong", doubled, ("floor",), 50) > 0
    assert "NOT EXPLAINED" in capsys.readouterr().out
    one = torch.tensor([[1.0, torch.nan], [0.0, 2.0]])
    assert block_oracle.differences(one, one).tolist() == [False, False]
    assert block_oracle.differences(one, one + 1).tolist() == [True, True]


def test_a_peer_that_is_missing_is_one_line(capsys):
    assert block_oracle.load("none", "no_such_package_of_this_name", None) is None
    (line,) = capsys.readouterr().out.splitlines()
    assert line.startswith("none: skipped, ")
