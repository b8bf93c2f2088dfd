"""What recipe "coat" holds between forward and backward, against BF16 and other recipes.

    python benchmarks/activation_flow.py [--json FILE]

One block of a Llama (transformers' own, hidden size 512, 8/3 of that in the MLP, 2 x 256 tokens)
and a GPT block, both in BF16, on the CPU, eager: bytes that autograd saves in the forward pass,
each storage once, parameters apart. 1 U is tokens x hidden size x 2 bytes, in which the paper's
table of a layer counts: 22.66 U in BF16 and 13.33 U by COAT (0.59). The goal is 0.62 or less. Then
the list of what is held, by op and dtype, and why what is left is in 16 bits.
"""

import argparse
import json
import platform
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from gpt_block import Block
from torch import Tensor, nn

import unitscale as us
from unitscale.formats import E4M3FN, E5M2
from unitscale.recipes import Current, Operand, PerBlock, Recipe, parse, uniform
from unitscale.train.measure import saved_for_backward

BATCH, LENGTH, WIDTH = 2, 256, 512
UNIT = BATCH * LENGTH * WIDTH * 2
COAT = parse("coat")


class LlamaBlock(nn.Module):
    """A decoder layer of transformers, with the tables of its positions."""

    def __init__(self) -> None:
        super().__init__()
        from transformers import LlamaConfig
        from transformers.models.llama.modeling_llama import (
            LlamaDecoderLayer,
            LlamaRotaryEmbedding,
        )

        config = LlamaConfig(
            hidden_size=WIDTH,
            intermediate_size=8 * WIDTH // 3 // 16 * 16,
            num_attention_heads=8,
            num_key_value_heads=8,
            attn_implementation="sdpa",
        )
        self.layer = LlamaDecoderLayer(config, 0)
        self.positions = LlamaRotaryEmbedding(config)

    def forward(self, x: Tensor) -> Tensor:
        """The layer at positions 0, 1, 2, ..."""
        ids = torch.arange(x.shape[1])[None]
        return self.layer(x, position_embeddings=self.positions(x, ids))


CASES: dict[str, Recipe | None] = {
    "BF16": None,
    "fp8-current": parse("fp8-current"),
    "coat": COAT,
    "coat, scales in a byte": replace(COAT, saved=Operand(E4M3FN, Current("rceil"), PerBlock(16))),
    "coat, attention in FP8 too": replace(COAT, rules=uniform(E4M3FN, E5M2, scale=Current())),
    "coat, one scale a tensor": replace(COAT, saved=Operand(E4M3FN, Current())),
}


def held_by(
    kind: type[nn.Module], recipe: Recipe | None, inner: str, *arguments: Any
) -> tuple[int, us.units.SavedTensors]:
    """Bytes of a block's forward pass, and the list."""
    torch.manual_seed(0)
    torch.compiler.reset()
    block = kind(*arguments).bfloat16()
    if recipe is not None:
        us.apply_recipe(block, recipe, inner=inner)
    x = torch.randn(BATCH, LENGTH, WIDTH, dtype=torch.bfloat16, requires_grad=True)
    block(x).sum().backward()
    with saved_for_backward(block) as saved:
        output = block(x)
    del output
    with us.saved_tensors(block) as held:
        output = block(x)
    del output
    return saved.bytes, held


def main() -> None:
    """Print the table, and the list for COAT."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path, help="write the rows to this file")
    given = parser.parse_args()
    torch.set_num_threads(1)
    print(f"{platform.machine()}, torch {torch.__version__}, unitscale {us.__version__}\n")
    rows: list[dict[str, Any]] = []
    for name, kind, arguments in (("Llama", LlamaBlock, ()), ("GPT", Block, (WIDTH,))):
        base = 0
        for case, recipe in CASES.items():
            for inner in ("eager", "aot_eager_decomp_partition"):
                if recipe is None and inner != "eager":
                    continue
                found, held = held_by(kind, recipe, inner, *arguments)
                base = base or found
                rows.append(
                    {
                        "block": name,
                        "case": case,
                        "compiler": "eager" if inner == "eager" else "inductor's partitioner",
                        "bytes": found,
                        "units": found / UNIT,
                        "of_bf16": found / base,
                        "listed": held.bytes,
                    }
                )
                print(
                    f"{name:6} {case:27} {rows[-1]['compiler']:24} {found / 2**20:7.2f} MiB "
                    f"{found / UNIT:6.2f} U  {found / base:.3f} of BF16"
                )
                if (name, case, inner) == ("Llama", "coat", "eager"):
                    listing = str(held)
    print(f"\n{listing}")
    if given.json is not None:
        given.json.write_text(json.dumps(rows, indent=2) + "\n")


if __name__ == "__main__":
    main()
