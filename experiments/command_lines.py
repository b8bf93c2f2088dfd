"""Random command lines, and the files of every kind that they name; see `torture.py`."""

import json
import os
import random
from collections.abc import Mapping
from pathlib import Path

from unitscale.data import open_corpus
from unitscale.train import TrainConfig
from unitscale.train.run_folder import describe, write_json

OWN_MODEL = """
from torch import nn
def build(width=8):
    return nn.Sequential(nn.Embedding(256, width), nn.Linear(width, 256))
def fails():
    raise RuntimeError("no model today")
def number():
    return 3
"""

SMALL = ["--steps", "2", "--width", "16", "--depth", "1", "--batch-size", "2"]
SMALL += ["--sequence-length", "8", "--set", "eval_windows=2", "--threads", "1"]

BRACKETS = "[" * 100_000
INTEGERS = ["-1", "0", "1", "2", "3", "7", str(2**31), str(2**63), str(2**64), "9" * 23]
INTEGERS += ["", "nan", "1e3", "x", "٣", " 5", "0x10", "-0", "1.0", "9" * 5000]
NUMBERS = ["-1", "0", "1e-3", "1", "1e300", "1e400", "nan", "inf", "-inf", "", "x", "1e-320"]
WORDS = ["", "x", "fp8", "none", "\udcff", "a" * 300, "%s{}", "--", "null", "true", "é"]
RECIPES = ["fp32", "fp8", "fp16-loss-dynamic", "fp8-current", "fp9", "", ",", "fp32,fp32,fp8"]
MODELS = ["attention", "conv", "rnn", "gpt2", "llama", "own:build", "own:fails", "own:number"]
MODELS += ["own:nothing", "nowhere:build", ":", "own:", "", "atention", "os:getcwd", "sys:exit"]
DEVICES = ["auto", "cpu", "cuda", "cuda:7", "cuda:-1", "mps", "meta", "", "cpu:0", "tpu"]
KEYS = ["steps", "lr", "betas", "seed", "warmup_fraction", "final_lr_fraction", "weight_decay"]
KEYS += ["clip_norm", "eval_every", "record_every", "checkpoint_every", "existing", "remeasure"]
KEYS += [
    "model",
    "model.width",
    "model.heads",
    "model.tau",
    "model.dropout",
    "model.bias",
    "recipe",
]
KEYS += ["model.", "", "stpes", "inner", "device", "dtype", "numerics", "__class__", "model.layer"]
VALUES = [*INTEGERS, *NUMBERS, *WORDS, BRACKETS, "[0.9,0.99]", "[1,2,3]", "{}", '{"a":1}', '"x"']


def make_surroundings(folder: Path) -> dict[str, str]:
    """Files and folders by what they are, below a new folder that is to be the current one."""
    folder.mkdir(parents=True, exist_ok=True)
    text = folder / "text.txt"
    words = ["unit", "scale", "float", "round", "loss", "step"]
    text.write_text(" ".join(words[i * i % 7 % 6] for i in range(2000)))
    (folder / "own.py").write_text(OWN_MODEL)
    (folder / "empty.txt").touch()
    (folder / "short.txt").write_text("short")
    strange = os.fsencode(folder) + b"/\xfftext.txt"
    Path(os.fsdecode(strange)).write_bytes(text.read_bytes())
    run, corpus = folder / "run_of_another", open_corpus(text)
    run.mkdir(exist_ok=True)
    write_json(run / "config.json", describe(TrainConfig(steps=77), corpus))
    for name, content in {
        "brackets": BRACKETS,
        "list": "[]",
        "number": "3",
        "old": json.dumps({"config": {}, "data": "x"}),
        "bytes": "\x00\x01",
        "nothing": "",
    }.items():
        for file in ("config.json", "results.json", "log.jsonl", "result.json", "numerics.jsonl"):
            own = folder / f"{file.split('.')[0]}_{name}"
            own.mkdir(exist_ok=True)
            (own / file).write_text(content)
    (folder / "comparison" / "runs").mkdir(parents=True, exist_ok=True)
    names = sorted(str(path.relative_to(folder)) for path in folder.iterdir())
    return {"text": str(text)} | {name: name for name in names}


def command_lines(number: int, surroundings: Mapping[str, str]) -> list[str]:
    """The command line of that number: mostly sound, with a few things wrong."""
    draw = random.Random(number)
    paths = [
        *surroundings.values(),
        "",
        ".",
        "/",
        "/proc/self/mem",
        "/dev/null",
        "a/b/c",
        "nowhere",
    ]
    paths += ["x" * 300, "text.txt/below", "\udcffout", "~", "-", "/dev/full"]
    pools = {
        "--recipe": RECIPES,
        "--recipes": RECIPES,
        "--steps": INTEGERS,
        "--lr": NUMBERS,
        "--unit-lr": NUMBERS,
        "--seed": INTEGERS,
        "--seeds": INTEGERS[:4] + INTEGERS[6:],
        "--batch-size": INTEGERS,
        "--sequence-length": INTEGERS,
        "--model": MODELS,
        "--norm": ["pre", "post", "none", *WORDS],
        "--residual": ["fixed", "ratio", *WORDS],
        "--width": INTEGERS,
        "--depth": INTEGERS,
        "--device": DEVICES,
        "--dtype": ["fp32", "bf16", *WORDS],
        "--inner": ["eager", *WORDS],
        "--threads": INTEGERS,
        "--set": [f"{key}={draw.choice(VALUES)}" for key in KEYS] + WORDS,
        "--data": paths,
        "--out": paths,
        "--rows": INTEGERS,
        "--formats": [*RECIPES, "E4M3FN", "FP16,BF16", "E9M9"],
        "--step": INTEGERS,
        "--nonsense": WORDS,
    }
    flags = {
        "--json": 0.2,
        "--resume": 0.3,
        "--tensorboard": 0.05,
        "--help": 0.03,
        "--nonsense": 0.02,
    }
    command = draw.choice(["train"] * 5 + ["compare"] * 5 + OTHERS)
    line = [command]
    if command in ("train", "compare"):
        recipes = "--recipe" if command == "train" else "--recipes"
        line += [*SMALL, "--data", "text.txt", "--out", "out", recipes, "fp32"]
        foreign = FOREIGN[command]
        used = [name for name in pools if name not in foreign and draw.random() < 1.5 / len(pools)]
        if draw.random() < 0.05:
            used += [draw.choice(foreign)]
    else:
        line += draw.sample([*paths, *MODELS, "snr", "depth", "exponents"], draw.randint(0, 2))
        used = draw.sample(["--out", "--formats", "--step", "--rows"], draw.randint(0, 2))
    for name in used:
        line += [name] if draw.random() < 0.03 else [name, draw.choice(pools[name])]
    line += [flag for flag, share in flags.items() if draw.random() < share]
    return line


FOREIGN = {
    "train": ["--recipes", "--seeds", "--unit-lr", "--rows", "--formats", "--step", "--nonsense"],
    "compare": ["--recipe", "--seed", "--rows", "--formats", "--step", "--nonsense"],
}
"""Options that a command does not have."""
OTHERS = ["report", "report", "figure", "figure", "analyse", "formats", "doctor", "", "trian", "-v"]
