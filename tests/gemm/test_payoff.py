"""Whether FP8 can pay for a shape: the arithmetic, and what others published."""

import re
from pathlib import Path

import pytest

from unitscale.gemm.accelerator import ACCELERATORS, find_accelerator, recognized
from unitscale.gemm.payoff import PAYS, WAYS, Shape, judge, parse_shape, torchao_converts

H100 = find_accelerator("h100")


def speedups(shape: str, device=H100) -> dict[str, float]:
    """By way, to two digits."""
    judged = judge(parse_shape(shape), device)
    return {way.name: round(judged.speedup(way.name), 2) for way in WAYS}


def test_arithmetic_by_hand():
    """4096 cubed on an H100: 3 * 2 * 4096^3 operations, 3 * 4096^2 elements, 3 kernels."""
    judged = judge(Shape(4096, 4096, 4096), H100)
    assert judged.bf16 == pytest.approx(3 * 2 * 4096**3 / (0.7 * 989e12) + 9e-6)
    assert judged.fp8 == pytest.approx(3 * 2 * 4096**3 / (0.7 * 1979e12) + 9e-6)
    moved = 3 * 4096**2 / 3.35e12
    assert judged.passes["units"] == pytest.approx(4 * moved + 9e-6)
    assert judged.passes["tensorwise"] == pytest.approx(6 * moved + 18e-6)
    assert judged.passes["rowwise"] == pytest.approx(10 * moved + 36e-6)
    assert judged.filling == 0


@pytest.mark.parametrize(
    ("size", "tensorwise", "units"),
    [(8192, 0.58, 0.55), (4096, 0.68, 0.62)],
)
def test_it_is_the_arithmetic_of_the_documentation(size, tensorwise, units):
    """The tables of docs/speed.md, as multiples of the time of BF16; products start for nothing."""
    judged = judge(Shape(size, size, size), H100)
    bf16 = judged.bf16 - 9e-6
    assert (judged.seconds("tensorwise") - 9e-6) / bf16 == pytest.approx(tensorwise, abs=0.006)
    assert (judged.seconds("units") - 9e-6) / bf16 == pytest.approx(units, abs=0.006)


@pytest.mark.parametrize(
    ("shape", "verdict", "words"),
    [
        ("8192x8192x8192", "yes", "1.81 times as fast at best, 1.72 with a scale of now"),
        ("16384x4096x1024", "yes", "1.44 times as fast with scales known before the tensor, 1.25"),
        ("16384x1024x1024", "perhaps", "1.18 times as fast at best; too few features in: 1024"),
        ("16x4096x4096", "no", "16 operations a byte where the H100 SXM needs 295"),
        ("1024x1024x1024", "no", "the starts of kernels weigh, 3.0 us each"),
        ("4096x4100x4100", "perhaps", "at best; 1.61 if every size were a multiple of 16"),
        ("4096x60x40", "no", "of which 25 us fill sizes up"),
    ],
)
def test_verdict_says_the_numbers_that_it_rests_on(shape, verdict, words):
    judged = judge(parse_shape(shape), H100)
    assert judged.verdict == verdict
    assert words in judged.why
    assert "the products save" in judged.why


def test_larger_layers_gain_more_by_every_way():
    for way in WAYS:
        found = [judge(Shape(n, n, n), H100).speedup(way.name) for n in (256, 1024, 4096, 16384)]
        assert found == sorted(found)
        assert found[0] < 1 < found[-1] < 2


def test_sizes_that_are_no_multiples_cost_copies():
    """By hand: k = 60 fills x and weight once each, and cuts grad_input and grad_weight."""
    even = judge(Shape(64, 64, 64), H100)
    odd = judge(Shape(64, 60, 64), H100)
    assert even.filling == 0
    x, w = 64 * 60, 60 * 64
    # output: x and weight filled; grad_input: weight filled, result cut; grad_weight: x and cut.
    moved = (2 * x + 2 * w) + (2 * w + 4 * x) + (2 * x + 4 * w)
    assert odd.filling == pytest.approx(moved / 3.35e12 + 6 * 3e-6)


def test_device_without_fp8_says_so():
    judged = judge(Shape(8192, 8192, 8192), find_accelerator("a100"))
    assert (judged.fp8, judged.verdict) == (None, "no")
    assert judged.speedup("units") is None
    assert "the A100 SXM has no FP8 products" in judged.why


TORCHAO = [
    # From torchao 0.18's test of its filter, (in, out) features, and its borders.
    ("tensorwise", (8192, 2048), True),
    ("tensorwise", (4096, 1024), False),
    ("tensorwise", (4112, 1024), True),
    ("tensorwise", (4096, 1040), True),
    ("tensorwise", (8192, 2040), False),
    ("rowwise", (4096, 8192), True),
    ("rowwise", (8192, 2048), False),
    ("rowwise", (1024, 8192), False),
    ("rowwise", (2048, 4096), False),
    ("rowwise", (2064, 4096), True),
    ("rowwise", (2048, 4112), True),
]


@pytest.mark.parametrize(("recipe", "sizes", "converts"), TORCHAO)
def test_filter_is_that_of_torchao(recipe, sizes, converts):
    assert torchao_converts(Shape(4096, *sizes), recipe) == converts


def test_arithmetic_agrees_with_the_thresholds_of_torchao():
    """On 25 weights by 3 numbers of rows by 2 recipes: the border of 1.3 gives 130 of 150."""
    sizes = (1024, 2048, 4096, 8192, 16384)
    agreed = [
        (judge(Shape(m, k, n), H100).speedup(way) >= PAYS) == torchao_converts(Shape(m, k, n), way)
        for m in (4096, 16384, 65536)
        for k in sizes
        for n in sizes
        for way in ("tensorwise", "rowwise")
    ]
    assert sum(agreed) == 130


def test_what_was_measured_is_about_eight_tenths_of_it():
    """An MLP on 8 H100 (nanochat): 1.18 tensorwise, 1.05 rowwise, forward and backward."""
    found = speedups("65536x1664x6656")
    assert 1.18 / found["tensorwise"] == pytest.approx(0.8, abs=0.03)
    assert 1.05 / found["rowwise"] == pytest.approx(0.8, abs=0.03)


def test_documentation_shows_these_figures():
    """The table of shapes, its verdicts, and the bytes and kernels of each way."""
    page = (Path(__file__).parents[2] / "docs" / "speed.md").read_text()
    section = page.split("## Can FP8 pay for my shapes?")[1].split("\n## ")[0]
    rows = re.findall(r"^\| (\d+x\d+x\d+) \| (.*) \| (\w+)[^|]* \|$", section, re.MULTILINE)
    assert len(rows) == 6
    for shape, figures, verdict in rows:
        assert [float(text) for text in figures.split(" | ")] == list(speedups(shape).values())
        assert judge(parse_shape(shape), H100).verdict == verdict
    for way in WAYS:
        total = way.amax_bytes + way.cast_bytes
        assert re.search(rf"^\| {way.name} \|.*\| {total}: .*\| {way.launches} \|$", section, re.M)
        assert all(f"`{name}`" in section for name in way.recipes.split(", "))
    for words in ("130 of 150", "1.3 is where", "1.1 where", "1.51 and 1.30"):
        assert words in section


@pytest.mark.parametrize(
    "text", ["4096x4096", "4096", "", "ax4x4", "4x4x4x4", "0x4x4", "-1x4x4", "4.5x4x4", "4x4x²"]
)
def test_text_that_is_no_shape_is_refused(text):
    with pytest.raises(ValueError, match=r"--shapes has '.*'; expected"):
        parse_shape(text)


def test_shape_is_its_text():
    assert str(parse_shape(" 4096X128x64 ")) == "4096x128x64"
    with pytest.raises(ValueError, match="from 1 to"):
        parse_shape("4x4x9999999999999")


def test_devices_are_found_by_name_and_by_driver():
    assert len({one.key for one in ACCELERATORS}) == len(ACCELERATORS)
    assert find_accelerator(" H100 ") is H100
    with pytest.raises(ValueError, match=r"'h10'; expected one of h100, .*Did you mean 'h100'"):
        find_accelerator("h10")
    names = {
        "NVIDIA H100 80GB HBM3": "h100",
        "NVIDIA H100 PCIe": "h100-pcie",
        "NVIDIA H200": "h200",
        "NVIDIA GeForce RTX 4090": "rtx4090",
        "NVIDIA A100-SXM4-80GB": "a100",
        "AMD Instinct MI300X": "mi300x",
    }
    for driver, key in names.items():
        assert recognized(driver).key == key
    assert recognized("NVIDIA GeForce GTX 1080") is None


@pytest.mark.parametrize("device", ACCELERATORS, ids=lambda one: one.key)
def test_devices_are_plausible(device):
    assert device.source
    assert 100 < device.ridge < 700
    if device.fp8 is not None:
        assert device.fp8 / device.bf16 == pytest.approx(2, abs=0.03)
