"""The pictures of the documentation, as SVG.

    python docs/scripts/site_pictures.py              # draws docs/pictures/*.svg anew
    python docs/scripts/site_pictures.py --check      # exit code 1, and which, if one is old
    python docs/scripts/site_pictures.py --measure    # first measures docs/pictures/sizes.json anew

What is drawn is computed from the formats, or read from `sizes.json`: the RMS of every tensor of
one training step of a small Transformer (`measure`), as it is computed and as it is held.
"""

import argparse
import json
import math
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from site_svg import BLUE, GRAY, GREEN, INK, LIGHT, ORANGE, Picture
from unitscale.formats import BF16, E2M1FN, E4M3FN, E5M2, FORMATS, FP16

PICTURES = Path(__file__).parents[1] / "pictures"
SIZES = PICTURES / "sizes.json"


def measure() -> dict[str, Any]:
    """log2 of the RMS of values and gradients of one step, plain and held."""
    import torch
    from torch import nn

    import unitscale as us

    torch.manual_seed(0)
    width, layers = 128, 4

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed = nn.Embedding(256, width)
            layer = nn.TransformerEncoderLayer(
                width, 4, 4 * width, dropout=0.0, batch_first=True, norm_first=True
            )
            self.layers = nn.TransformerEncoder(layer, layers, enable_nested_tensor=False)
            self.norm = nn.LayerNorm(width)
            self.readout = nn.Linear(width, 256)

        def forward(self, ids: Any) -> Any:
            return self.readout(self.norm(self.layers(self.embed(ids))))

    model = us.unit_scale(Model(), "fp32-units", inner="eager")
    ids = torch.randint(256, (16, 64))
    nn.functional.cross_entropy(model(ids).flatten(0, 1), ids.roll(-1, 1).flatten()).backward()
    rows = [row for row in us.unit_rows(model) if row.reason is None and row.op != "parameter"]

    def logs(pairs: list[tuple[float | None, float]]) -> list[list[float]]:
        known = [(rms, factor) for rms, factor in pairs if rms]
        return [[round(math.log2(x), 2), round(math.log2(x * f), 2)] for x, f in known]

    return {
        "what": f"nn.TransformerEncoder, {layers} layers, width {width}, 16 x 64 bytes, first step",
        "torch": torch.__version__.partition("+")[0],
        "values": logs([(row.rms, 1 / row.s) for row in rows]),
        "gradients": logs([(row.grad_rms, row.phi) for row in rows]),
    }


def across(low: float, high: float, left: float, right: float) -> Callable[[float], float]:
    """From log2 of a number to pixels."""
    return lambda log2: left + (right - left) * (log2 - low) / (high - low)


def axis(picture: Picture, place: Callable[[float], float], y: float, marks: range) -> None:
    """Powers of two below a picture."""
    picture.line([(place(marks[0]), y), (place(marks[-1]), y)], color=GRAY)
    for k in marks:
        picture.line([(place(k), y), (place(k), y + 5)], color=GRAY)
        picture.text(place(k), y + 22, f"2^{k}", size=13, color=GRAY, anchor="middle")


def held() -> Picture:
    """Where the tensors of a model lie, before and after units, and where formats do."""
    sizes = json.loads(SIZES.read_text(encoding="utf-8"))
    picture = Picture(
        560, 380, "Sizes of tensors as the model computes them, and as they are held at units"
    )
    place = across(-26, 6, 24, 536)
    y = 54
    picture.text(24, 30, "RMS of each tensor of a small Transformer", bold=True)
    for kind, color in (("values", BLUE), ("gradients", ORANGE)):
        for index, label in ((0, f"{kind}, as computed"), (1, f"{kind}, as held")):
            picture.text(24, y + 6, label, size=14, color=color)
            for order, pair in enumerate(sizes[kind]):
                picture.dot(place(pair[index]), y + 20 + 3 * (order % 4), color=color)
            y += 52
    y += 12
    for fmt in (FP16, E5M2, E4M3FN):
        low, high = math.log2(fmt.min_normal), min(math.log2(fmt.max), 6)
        below = math.log2(fmt.min_subnormal)
        picture.rectangle(place(below), y, place(low) - place(below), 12, fill=LIGHT)
        picture.rectangle(place(low), y, place(high) - place(low), 12, fill=GREEN)
        picture.text(place(below) - 6, y + 11, fmt.name, size=13, color=GREEN, anchor="end")
        y += 20
    axis(picture, place, y + 4, range(-24, 7, 6))
    return picture


def ranges() -> Picture:
    """The range of every narrow format."""
    formats = [FORMATS[n] for n in ("BF16", "FP16", "E5M2", "E4M3FN", "E3M2FN", "E2M3FN", "E2M1FN")]
    picture = Picture(560, 330, "Ranges of number formats: normal numbers, and subnormal ones")
    place = across(-27, 18, 96, 530)
    picture.text(24, 30, "What each format can hold", bold=True)
    y = 56
    for fmt in formats:
        low, high = (math.log2(v) for v in (fmt.min_normal, fmt.max))
        below = math.log2(fmt.min_subnormal)
        left, right = max(low, -27), min(high, 18)
        if below < low and below > -27:
            picture.rectangle(place(below), y, place(low) - place(below), 16, fill=LIGHT)
        picture.rectangle(place(left), y, place(right) - place(left), 16, fill=GREEN)
        picture.text(84, y + 13, fmt.name, size=14, anchor="end")
        if low < -27:
            picture.text(place(left) + 6, y + 13, "to 2^-126", size=12, color="#ffffff")
            picture.text(
                place(right) - 6, y + 13, "to 2^127", size=12, color="#ffffff", anchor="end"
            )
        y += 29
    picture.line([(place(0), 48), (place(0), y)], color=ORANGE, dashed=True)
    picture.text(place(0), y + 12, "a unit", size=13, color=ORANGE, anchor="middle")
    axis(picture, place, y + 22, range(-24, 19, 6))
    return picture


def snr() -> Picture:
    """Signal to noise of normal numbers, by their size."""
    from unitscale.numerics.snr import expected_snr

    picture = Picture(560, 360, "Signal to noise of rounding by the size of a tensor")
    place = across(-28, 19, 56, 534)

    def up(decibels: float) -> float:
        return 310 - 270 * max(0.0, min(decibels, 80.0)) / 80

    picture.text(24, 30, "Signal to noise after rounding, dB", bold=True)
    for decibels in range(0, 81, 20):
        picture.line([(56, up(decibels)), (534, up(decibels))], color=LIGHT)
        picture.text(48, up(decibels) + 5, str(decibels), size=13, color=GRAY, anchor="end")
    for fmt, color, where in (
        (FP16, BLUE, -8),
        (BF16, GRAY, -24),
        (E4M3FN, GREEN, -1.5),
        (E5M2, ORANGE, -11),
        (E2M1FN, INK, 3),
    ):
        points = [(k / 4, expected_snr(fmt, k / 4)) for k in range(-112, 77)]
        shown = [(place(x), up(db)) for x, db in points if db > 0.5]
        picture.line(shown, color=color, width=2)
        label = up(expected_snr(fmt, where)) - 8
        picture.text(place(where), label, fmt.name, size=13, color=color, anchor="middle")
    picture.line([(place(0), 44), (place(0), 310)], color=INK, dashed=True)
    picture.text(place(0) + 6, 56, "held at its unit", size=13)
    axis(picture, place, 314, range(-24, 19, 6))
    return picture


def edge() -> Picture:
    """One linear layer with its units, forward and backward."""
    picture = Picture(560, 390, "One linear layer held at units, forward and backward")
    picture.text(24, 30, "One linear layer, 256 features in and out", bold=True)

    def box(x: float, y: float, first: str, second: str, color: str) -> None:
        picture.rectangle(x, y, 130, 52, fill="#ffffff", stroke=color, radius=6)
        picture.text(x + 65, y + 22, first, size=14, anchor="middle", bold=True, color=color)
        picture.text(x + 65, y + 42, second, size=12, anchor="middle")

    def op(x: float, y: float, words: str) -> None:
        picture.rectangle(x, y, 120, 52, fill=LIGHT, radius=6)
        picture.text(x + 60, y + 22, words, size=14, anchor="middle", bold=True)

    picture.text(24, 62, "forward: values", size=14, color=BLUE)
    box(24, 74, "x / s", "RMS 1/8, s = 1/8", BLUE)
    op(220, 74, "x wᵀ")
    picture.text(280, 116, "256 terms: 16", size=13, anchor="middle")
    box(406, 74, "y / s", "RMS 1/8, s = 1/8", BLUE)
    box(215, 158, "w / s", "RMS 1/16, s = 1/16", BLUE)
    picture.line([(154, 100), (218, 100)], color=BLUE, arrow=True)
    picture.line([(340, 100), (404, 100)], color=BLUE, arrow=True)
    picture.line([(280, 158), (280, 128)], color=BLUE, arrow=True)
    picture.text(372, 90, "× 1/16", size=13, anchor="middle", color=BLUE)
    picture.text(24, 246, "backward: gradients", size=14, color=ORANGE)
    box(24, 258, "phi g(x)", "RMS 1/32, phi = 32", ORANGE)
    op(220, 258, "g w")
    picture.text(280, 300, "256 terms: 16", size=13, anchor="middle")
    box(406, 258, "phi g(y)", "RMS 1/32, phi = 32", ORANGE)
    picture.line([(404, 284), (342, 284)], color=ORANGE, arrow=True)
    picture.line([(218, 284), (156, 284)], color=ORANGE, arrow=True)
    picture.line([(280, 210), (280, 256)], color=BLUE, arrow=True)
    picture.text(188, 274, "× 1/16", size=13, anchor="middle", color=ORANGE)
    picture.text(
        24, 340, "forward: s(x) s(w) / s(y) = 1/8 · 1/16 / (1/8) = 1/16", size=14, color=BLUE
    )
    picture.text(
        24, 364, "backward: s(w) phi(x) / phi(y) = 1/16 · 32 / 32 = 1/16", size=14, color=ORANGE
    )
    return picture


def products() -> Picture:
    """The three products of a layer, and their six operands."""
    picture = Picture(560, 330, "Three products of a linear layer, six operands")
    picture.text(24, 30, "Three products, six operands", bold=True)
    rows = (
        ("output", "x", "w", "y", "over features in", BLUE, BLUE),
        ("grad_input", "g", "w", "g(x)", "over features out", ORANGE, BLUE),
        ("grad_weight", "g", "x", "g(w)", "over tokens", ORANGE, BLUE),
    )
    y = 56
    for name, left, right, result, over, one, two in rows:
        picture.text(24, y + 26, name, size=14, bold=True)
        picture.text(24, y + 46, f"sums {over}", size=13, color=GRAY)
        for x, words, color in ((190, left, one), (290, right, two)):
            picture.rectangle(x, y + 4, 64, 44, fill=color, radius=6)
            picture.text(
                x + 32, y + 32, words, size=16, color="#ffffff", anchor="middle", bold=True
            )
        picture.text(272, y + 33, "×", size=20, anchor="middle")
        picture.line([(362, y + 26), (422, y + 26)], color=GRAY, arrow=True)
        picture.rectangle(428, y + 4, 96, 44, stroke=GRAY, radius=6)
        picture.text(476, y + 32, result, size=16, anchor="middle")
        y += 72
    picture.text(24, y + 18, "A filled box is rounded: values to one format,", size=14, color=BLUE)
    picture.text(24, y + 38, "gradients to another. Results add up in FP32.", size=14, color=ORANGE)
    return picture


QUESTIONS = (
    ("Does fp32-units diverge too?", "yes: rate, data, start"),
    ("Does us.summary cover the model?", "no: mend this first"),
    ("Does the report say NaN?", "yes: the first tensor"),
    ("Does it say that something jumped?", "yes: data, rate, batch"),
    ('Does it say "has outgrown"?', "yes: measure units again"),
    ("Do operands lose more than 1 %?", "yes: see the table"),
)


def diverges() -> Picture:
    """The questions to ask in turn when a run diverges."""
    height = 50 + 62 * len(QUESTIONS) + 46
    picture = Picture(560, height, "Questions to ask in turn when a run diverges")
    picture.text(24, 30, "Ask in this order; stop at the first that fits", bold=True)
    y = 48
    for number, (question, answer) in enumerate(QUESTIONS, 1):
        picture.rectangle(24, y, 304, 42, stroke=BLUE, radius=6)
        picture.text(36, y + 26, f"{number}. {question}", size=14)
        picture.line([(328, y + 21), (356, y + 21)], color=ORANGE, arrow=True)
        picture.text(364, y + 26, answer, size=13, color=ORANGE)
        picture.line([(176, y + 42), (176, y + 61)], color=BLUE, arrow=True)
        y += 62
    picture.rectangle(24, y, 304, 36, fill=LIGHT, radius=6)
    picture.text(36, y + 24, "7. The format is fine: rate and seeds", size=14)
    return picture


def favicon() -> Picture:
    """A scale in balance."""
    picture = Picture(32, 32, "unitscale")
    picture.line([(16, 5), (16, 27)], color=BLUE, width=2.5)
    picture.line([(5, 10), (27, 10)], color=BLUE, width=2.5)
    picture.line([(9, 27), (23, 27)], color=BLUE, width=2.5)
    picture.dot(6, 18, color=ORANGE, radius=5)
    picture.dot(26, 18, color=GREEN, radius=5)
    return picture


DRAWN: dict[str, Callable[[], Picture]] = {
    "diverges": diverges,
    "edge": edge,
    "favicon": favicon,
    "held": held,
    "products": products,
    "ranges": ranges,
    "snr": snr,
}


def old_pictures(folder: Path = PICTURES) -> list[str]:
    """The pictures that are not what would be drawn now."""
    return [
        name
        for name, draw in DRAWN.items()
        if not (folder / f"{name}.svg").is_file()
        or (folder / f"{name}.svg").read_text(encoding="utf-8") != draw().svg()
    ]


def write(path: Path, text: str) -> None:
    """Under another name, then renamed."""
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text(text, encoding="utf-8")
    temporary.replace(path)
    print(f"wrote docs/pictures/{path.name}")


def main() -> None:
    """Draw them, or say which are old."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--check", action="store_true", help="write nothing; 1 if one is old")
    parser.add_argument("--measure", action="store_true", help="measure the tensors first")
    chosen = parser.parse_args()
    if chosen.check:
        sys.exit(f"old: {', '.join(old)}" if (old := old_pictures()) else 0)
    PICTURES.mkdir(exist_ok=True)
    if chosen.measure:
        write(SIZES, json.dumps(measure()) + "\n")
    for name, draw in DRAWN.items():
        write(PICTURES / f"{name}.svg", draw().svg())


if __name__ == "__main__":
    main()
