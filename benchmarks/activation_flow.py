"""What recipe "coat" holds between forward and backward, against BF16 and other recipes.

    python benchmarks/activation_flow.py [--quick] [--threads 1] [--json FILE]

One block of a Llama (transformers' own, hidden size 512, 8/3 of that in the MLP, 2 x 256 tokens)
and a GPT block, both in BF16, on the CPU: bytes that autograd saves in the forward pass,
each storage once, parameters apart. 1 U is tokens x hidden size x 2 bytes, in which the paper's
table of a layer counts: 22.66 U in BF16 and 13.33 U by COAT (0.59). The goal is 0.62 or less. Then
the list of what is held, by op and dtype, and why what is left is in 16 bits.
"""

from collections.abc import Callable
from dataclasses import replace

import paired
import torch
from gpt_block import Block
from paired import Row
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


COMPILERS = {"eager": "eager", "compiled": "aot_eager_decomp_partition"}
"""What decides what is saved: the ops themselves, or inductor's partitioner, whose result this
backend runs uncompiled."""


def held_by(
    make: Callable[[], nn.Module], recipe: Recipe | None, backend: str
) -> tuple[int, us.units.SavedTensors]:
    """Bytes of a block's forward pass, and the list of them."""
    torch.manual_seed(0)
    torch.compiler.reset()
    block = make().bfloat16()
    if recipe is not None:
        us.apply_recipe(block, recipe, inner=backend)
    elif backend != "eager":
        block.compile(backend=backend)
    x = torch.randn(BATCH, LENGTH, WIDTH, dtype=torch.bfloat16, requires_grad=True)
    block(x).sum().backward()
    with saved_for_backward(block) as saved:
        output = block(x)
    del output
    with us.saved_tensors(block) as held:
        output = block(x)
    del output
    assert held.bytes == saved.bytes
    return saved.bytes, held


def rows_of(name: str, make: Callable[[], nn.Module]) -> list[Row]:
    """A row for each recipe and compiler, as shares of BF16 under the same compiler."""
    rows: list[Row] = []
    for compiler, backend in COMPILERS.items():
        found = {case: held_by(make, recipe, backend) for case, recipe in CASES.items()}
        base = found["BF16"][0]
        for case, (size, held) in found.items():
            note = f"{size / 2**20:.2f} MiB, {size / UNIT:.2f} U"
            note += f", {held.share_in_few_bits:.0%} in values of a byte"
            share = size / base
            rows.append(
                Row(
                    case=f"{name}, {compiler}: {case}",
                    measure="of BF16's bytes",
                    median=share,
                    low=share,
                    high=share,
                    rounds=1,
                    note=note,
                )
            )
    return rows


def main() -> None:
    """Measure and print, with the list of what COAT holds of a Llama block."""
    options = paired.arguments(__doc__).parse_args()
    torch.set_num_threads(options.threads)
    blocks: dict[str, Callable[[], nn.Module]] = {"Llama": LlamaBlock}
    if not options.quick:
        blocks["GPT"] = lambda: Block(WIDTH)
    rows = [row for name, make in blocks.items() for row in rows_of(name, make)]
    paired.report("Held between forward and backward, one block in BF16", rows, options.json)
    print(f"\n{held_by(LlamaBlock, COAT, 'eager')[1]}")


if __name__ == "__main__":
    main()
