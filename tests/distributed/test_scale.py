"""The choices of a scale say what is wrong with them."""

import pytest

from unitscale.distributed import AutomaticScale, CurrentScale, UnitScale


@pytest.mark.parametrize("target", [16, -25, 2.0, True, None])
def test_unit_scale_refuses_another_target(target: object) -> None:
    with pytest.raises(ValueError, match=rf"target_log2 is {target}; expected an int from -24"):
        UnitScale(target_log2=target)


def test_unit_scale_refuses_another_schedule() -> None:
    with pytest.raises(ValueError, match="remeasure is 'often'; expected one of"):
        UnitScale(remeasure="often")


def test_unit_scales_of_the_same_steps_have_the_same_text() -> None:
    texts = {str(UnitScale(remeasure=steps)) for steps in ([3, 0, 3], (0, 3), {0, 3})}
    assert texts == {"UnitScale(target_log2=2, remeasure=[0, 3])"}


@pytest.mark.parametrize("margin", [-1, 65, 0.5])
def test_current_scale_refuses_another_margin(margin: object) -> None:
    with pytest.raises(ValueError, match=f"margin is {margin}"):
        CurrentScale(margin=margin)


@pytest.mark.parametrize("share", [-0.1, 1, float("nan"), True, "all"])
def test_automatic_scale_refuses_what_is_no_share(share: object) -> None:
    with pytest.raises(ValueError, match=f"share is {share!r}; expected a share"):
        AutomaticScale(share=share)
    with pytest.raises(ValueError, match="doubling is 0; expected 1 or more"):
        AutomaticScale(doubling=0)
