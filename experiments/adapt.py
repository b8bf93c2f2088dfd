"""Adapting a vision transformer to corrupted images: none, T3A, TENT and FOA in 32, 8 and 6 bits.

    pip install 'unitscale[hf,lifecycle]' imagecorruptions-imaug opencv-python-headless scikit-image
    python experiments/adapt.py --out runs/adapt

Images are drawn by this script: eight shapes and textures in random grays, 32 x 32. Corruptions are
those of ImageNet-C, from imagecorruptions. 8 bits: recipe "fp8", static scales by units; 6 bits:
"mxfp6". A row of rows.jsonl per corruption, bits and method; what is there is not run again. The
table is printed.
"""

import argparse
import json
import time
from pathlib import Path

import numpy as np
import torch
from torch.nn.functional import cross_entropy

import unitscale as us

CORRUPTIONS = ("contrast", "fog", "gaussian_noise", "brightness", "defocus_blur")
RECIPES = {32: None, 8: "fp8", 6: "mxfp6"}
SEARCHED = ("prompts", "foa", "foa-default")
METHODS = {
    32: ("none", "t3a", "tent", "tent-1e-2", "shift", *SEARCHED),
    8: ("none", "t3a", "shift", "foa"),
    6: ("none", "t3a", "shift", "foa"),
}
CLASSES, SIZE, BATCH = 8, 32, 64


def draw(count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Gray images in [0, 1] and their classes."""
    random = np.random.default_rng(seed)
    labels = np.arange(count) % CLASSES
    y, x = np.mgrid[:SIZE, :SIZE]
    images = np.empty((count, SIZE, SIZE), dtype=np.float32)
    for i, label in enumerate(labels):
        cx, cy = random.uniform(12, 20, 2)
        r, period, phase = random.uniform(6, 11), random.uniform(5, 9), random.uniform(0, 9)
        u, v = x - cx, y - cy
        mask = (
            u**2 + v**2 < r**2,
            np.maximum(abs(u), abs(v)) < r * 0.85,
            (v > -r) & (v < r) & (abs(u) < (v + r) / 2),
            (np.minimum(abs(u), abs(v)) < r / 4) & (np.maximum(abs(u), abs(v)) < r),
            abs(np.hypot(u, v) - r * 0.8) < r / 4,
            (y + phase) % period < period / 2,
            (x + phase) % period < period / 2,
            ((x + phase) % period < period / 2) ^ ((y + phase) % period < period / 2),
        )[label]
        low = random.uniform(0.1, 0.4)
        gray = np.where(mask, low + random.uniform(0.25, 0.5), low)
        images[i] = gray + random.normal(0, 0.02, gray.shape)
    return images.clip(0, 1), labels


def corrupt(images: np.ndarray, name: str, severity: int) -> np.ndarray:
    """The images under a corruption of ImageNet-C."""
    from imagecorruptions import corrupt as damage

    np.random.seed(0)  # noqa: NPY002 - the package draws from numpy's global state
    eight = (images * 255).round().astype(np.uint8)
    found = [damage(i, severity=severity, corruption_name=name)[..., 0] for i in eight]
    return np.stack(found).astype(np.float32) / 255


def batches(images: np.ndarray) -> list[torch.Tensor]:
    """As the model takes them."""
    return list(((torch.from_numpy(images)[:, None] - 0.5) / 0.25).split(BATCH))


def build(**other: int) -> torch.nn.Module:
    from transformers import ViTConfig, ViTForImageClassification

    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 1}
    inputs = {"image_size": SIZE, "patch_size": 8, "num_channels": 1, "num_labels": CLASSES}
    sizes = {**sizes, **inputs, "intermediate_size": 64, **other}
    return ViTForImageClassification(ViTConfig(**sizes))


def train(folder: Path, steps: int) -> dict[str, torch.Tensor]:
    """Weights of the model after training on clean images, from the folder if they are there."""
    path = folder / "weights.pt"
    if path.exists():
        return torch.load(path, weights_only=True)
    model = build()
    images, labels = draw(4096, seed=1)
    inputs, targets = torch.cat(batches(images)), torch.from_numpy(labels)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, total_steps=steps)
    for step in range(steps):
        chosen = torch.randint(len(inputs), (BATCH,))
        loss = cross_entropy(model(inputs[chosen]).logits, targets[chosen])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        if step % 100 == 0:
            print(f"step {step}: loss {loss.item():.3f}", flush=True)
    torch.save(model.state_dict(), path.with_suffix(".new"))
    path.with_suffix(".new").rename(path)
    return model.state_dict()


def adapter(method: str, model: torch.nn.Module, source: object, seed: int) -> object:
    if method == "none":
        return us.adapt.FOA(model, source, n_prompts=0, gamma=0)
    if method == "t3a":
        return us.adapt.T3A(model)
    if method.startswith("tent"):
        return us.adapt.TENT(model, lr=1e-2 if method == "tent-1e-2" else 1e-3)
    if method == "foa-default":
        return us.adapt.FOA(model, source, seed=seed)
    options = {
        "shift": {"n_prompts": 0},
        "prompts": {"gamma": 0},
        "entropy": {"lam": 0, "gamma": 0},
    }.get(method, {})
    # Chosen in 32 bits on 256 other images: clean, gaussian_blur at 3, a quarter of the contrast.
    options = {"normalize_lam": True, "sigma": 0.1, **options}
    return us.adapt.FOA(model, source, seed=seed, **options)


def measure(
    weights: dict[str, torch.Tensor],
    bits: int,
    streams: dict[str, np.ndarray],
    rows: Path,
    seed: int,
) -> None:
    """The rows of one precision that are not there yet."""
    _, labels = draw(len(streams["clean"]), seed=3)
    order = np.random.default_rng(0).permutation(len(labels))
    done = {(r["corruption"], r["bits"], r["method"], r["seed"]) for r in read(rows)}
    model = build()
    model.load_state_dict(weights)
    model.eval()
    if RECIPES[bits]:
        (us.unit_scale if bits == 8 else us.apply_recipe)(model, RECIPES[bits])
    source = us.adapt.measure_source(model, batches(draw(256, seed=2)[0]))
    for name, stream in streams.items():
        extra = ("entropy",) if name == "contrast" and bits == 8 else ()
        for method in (*METHODS[bits], *extra):
            if (name, bits, method, seed) in done or (seed and method not in SEARCHED):
                continue
            start = time.process_time()
            adapt = adapter(method, model, source, seed)
            logits = torch.cat([adapt(batch) for batch in batches(stream[order])])
            if method.startswith("tent"):
                adapt.reset()
            targets = torch.from_numpy(labels[order])
            row = {
                "corruption": name,
                "bits": bits,
                "method": method,
                "seed": seed,
                "n": len(labels),
                "accuracy": 100 * (logits.argmax(1) == targets).double().mean().item(),
                "ece": 100 * us.adapt.calibration_error(logits, targets),
                "coverage": us.coverage(model) if RECIPES[bits] else None,
                "cpu_s": round(time.process_time() - start, 1),
            }
            with rows.open("a") as file:
                file.write(json.dumps(row) + "\n")
            print(row, flush=True)


def memory() -> str:
    """Peak memory of a call in 32 bits, beside a plain forward pass."""
    torch.manual_seed(0)
    images = torch.randn(BATCH, 1, SIZE, SIZE)
    model = build(hidden_size=64, num_hidden_layers=12, patch_size=4).eval()
    calls = {m: adapter(m, model, images, 0) for m in ("none", "t3a", "foa", "tent")}
    peaks = {}
    for method, adapt in calls.items():
        if method == "foa":
            adapt.population = 4  # one after another: more do not need more
            adapt.reset()
        adapt(images)
        peaks[method] = us.adapt.peak_bytes(lambda adapt=adapt: adapt(images))
    return "\n".join(f"{m}: {b / 2**20:.1f} MiB, {b / peaks['none']:.2f}" for m, b in peaks.items())


def read(rows: Path) -> list[dict]:
    return [json.loads(line) for line in rows.read_text().splitlines()] if rows.exists() else []


def table(rows: list[dict]) -> str:
    """Accuracy / calibration error in percent, means over seeds, a row per precision and method."""
    names = ["clean", *CORRUPTIONS]
    lines = ["| bits | method | " + " | ".join([*names, "mean of corruptions"]) + " |"]
    lines.append("|---|---|" + "---|" * (len(names) + 1))
    for bits in RECIPES:
        for method in (*METHODS[bits], "entropy"):
            own = [r for r in rows if (r["bits"], r["method"]) == (bits, method)]
            if not own:
                continue
            cells = {
                name: tuple(np.mean([r[k] for r in found]) for k in ("accuracy", "ece"))
                for name in names
                if (found := [r for r in own if r["corruption"] == name])
            }
            if all(name in cells for name in CORRUPTIONS):
                cells["mean"] = tuple(np.mean([cells[name] for name in CORRUPTIONS], axis=0))
            shown = [
                f"{cells[name][0]:.1f} / {cells[name][1]:.1f}" if name in cells else "-"
                for name in [*names, "mean"]
            ]
            lines.append(f"| {bits} | {method} | " + " | ".join(shown) + " |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--images", type=int, default=512, help="in a stream")
    parser.add_argument("--steps", type=int, default=2000, help="of training")
    parser.add_argument("--severity", type=int, default=3)
    parser.add_argument("--seed", type=int, default=0, help="of FOA's search")
    parser.add_argument("--bits", type=int, nargs="+", default=list(RECIPES))
    parser.add_argument("--memory", action="store_true", help="measure that too")
    given = parser.parse_args()
    torch.set_num_threads(1)
    given.out.mkdir(parents=True, exist_ok=True)
    weights = train(given.out, given.steps)
    streams = given.out / f"streams_{given.images}_{given.severity}.npz"
    if not streams.exists():
        clean, _ = draw(given.images, seed=3)
        made = {n: corrupt(clean, n, given.severity) for n in CORRUPTIONS}
        with streams.with_suffix(".new").open("wb") as file:
            np.savez(file, clean=clean, **made)
        streams.with_suffix(".new").rename(streams)
    rows = given.out / "rows.jsonl"
    for bits in given.bits:
        measure(weights, bits, dict(np.load(streams)), rows, given.seed)
    print(table(read(rows)))
    if given.memory:
        print(memory())


if __name__ == "__main__":
    main()
