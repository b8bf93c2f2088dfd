"""Operands of rows and blocks in a graph: one node each, the bits of eager code."""

from typing import Any

import pytest
import torch
from functorch.compile import make_boxed_func
from torch import Tensor, fx
from torch._dynamo.backends.common import aot_autograd
from torch._subclasses import FakeTensorMode

import unitscale as us
from gemm.edges import assert_same_bits, saved_bytes, values_and_gradients
from unitscale import gemm
from unitscale.formats import Encoded
from unitscale.gemm import ProductFormats, opaque
from unitscale.gemm.formats import operand_of
from unitscale.gemm.grid import Use, grid
from unitscale.gemm.operand import encode, pack, take
from unitscale.recipes import RECIPES

pytestmark = [
    # 2026-11-24: torch 2.13's Dynamo instantiates the Function that it traces.
    pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:.*torch.jit.script_method.*:DeprecationWarning"),
]

OF_BLOCKS = ("fp8-rowwise", "fp8-block", "mxfp8", "mxfp6-even", "nvfp4", "nvfp4-units")
each_recipe = pytest.mark.parametrize("name", OF_BLOCKS)

TEXTS = (
    "E4M3FN current rceil row",
    "E4M3FN current 1x128",
    "E4M3FN current 128x128",
    "MX_E4M3FN current floor 1x32",
    "MX_E3M2FN current even 1x32",
    "MX_E2M1FN current ceil 1x32",
    "NVFP4 current 1x16",
    "NVFP4 current 16x16",
    "NVFP4 unit 1x16",
    "NVFP4 current 1x16 hadamard=16",
    "NVFP4 current 1x16 stochastic hadamard=16",
)
each_text = pytest.mark.parametrize("text", TEXTS)


def formats_of(name: str, *, nearest: bool = False) -> ProductFormats:
    """The operands of a recipe's products; compilers draw random numbers in an order of theirs."""
    formats = ProductFormats.from_gemm(RECIPES[name].main, "emulated")
    if not nearest:
        return formats
    texts = (text and text.replace(" stochastic", "") for text in formats.texts)
    return ProductFormats(*texts, result=formats.result)


def operands(dtype: torch.dtype = torch.float32) -> list[Tensor]:
    """An input and a weight that no block divides, with an outlier and a row of zeros."""
    x, weight = torch.randn(10, 40), torch.randn(24, 40)
    x[0, 0], x[3] = 1e4, 0.0
    return [x.to(dtype), weight.to(dtype)]


def graphs_of(formats: ProductFormats, device: str = "cpu") -> list[fx.Graph]:
    """The graphs that a compiler gets of one layer: of the forward pass, and of the backward."""
    found: list[fx.Graph] = []

    def keep(module: fx.GraphModule, _: Any) -> Any:
        found.append(module.graph)
        return make_boxed_func(module.forward)

    layer = torch.compile(
        lambda x, weight: gemm.linear(x, weight, formats=formats),
        backend=aot_autograd(fw_compiler=keep, bw_compiler=keep),
        fullgraph=True,
    )
    layer(*(x.to(device).requires_grad_() for x in operands())).sum().backward()
    return found


def calls(graph: fx.Graph) -> list[fx.Node]:
    return [node for node in graph.nodes if node.op == "call_function"]


@each_recipe
def test_a_graph_has_few_nodes_for_a_product(name):
    """Of each operand: encoded, packed and read, its parts taken out; turned, cast, multiplied.

    A formula written out has some forty nodes, and every operand has three.
    """
    forward, backward = graphs_of(formats_of(name))
    own = {
        str(n.target) for n in (*calls(forward), *calls(backward)) if "unitscale" in str(n.target)
    }
    assert own >= {"unitscale.encode.default", "unitscale.decode.default"}
    assert len(calls(forward)) <= 2 * 20 + 10, forward  # two operands, each with up to two copies
    assert len(calls(backward)) <= 2 * 20 + 20, backward


def test_the_formulas_of_a_tensor_with_one_scale_stay_in_the_graph():
    forward, backward = graphs_of(ProductFormats.of("E4M3FN current", "E5M2 current"))
    assert not any("unitscale" in str(n.target) for n in (*calls(forward), *calls(backward)))


def test_what_is_one_node():
    block, row = operand_of("MX_E4M3FN current floor 1x32"), operand_of("E4M3FN current rceil row")
    whole, cast = operand_of("E4M3FN current"), operand_of("BF16 cast")
    x = torch.ones(2, 32)
    assert not opaque.serves(x, block), "a tensor of eager code has no graph"
    with FakeTensorMode() as mode:
        fake = mode.from_tensor(x)
        assert opaque.serves(fake, block)
        assert opaque.serves(fake, row)
        assert not opaque.serves(fake, whole)
        assert not opaque.serves(fake, cast)
        assert not opaque.serves(torch.ones(2, 32, device="cuda"), block)


@pytest.mark.parametrize(
    ("name", "dtype"),
    [
        ("fp8-rowwise", torch.float32),
        ("fp8-rowwise-hp", torch.bfloat16),
        ("fp8-block", torch.bfloat16),
        ("mxfp8", torch.float32),
        ("nvfp4", torch.bfloat16),
    ],
)
def test_aot_eager_gives_the_same_bits(name, dtype):
    formats = formats_of(name, nearest=True)

    def product(x: Tensor, weight: Tensor) -> Tensor:
        return gemm.linear(x, weight, formats=formats)

    compiled = torch.compile(product, backend="aot_eager", fullgraph=True)
    given = operands(dtype)
    assert_same_bits(values_and_gradients(compiled, given), values_and_gradients(product, given))


@pytest.mark.parametrize("name", ["fp8-rowwise", "nvfp4"])
def test_inductor_gives_the_same_bits(name):
    formats = formats_of(name, nearest=True)

    def product(x: Tensor, weight: Tensor) -> Tensor:
        return gemm.linear(x, weight, formats=formats)

    given = operands()
    compiled = torch.compile(product, fullgraph=True)
    assert_same_bits(values_and_gradients(compiled, given), values_and_gradients(product, given))


def parts(encoded: Encoded) -> list[Tensor]:
    return [part for part in encoded if part is not None]


@each_text
@pytest.mark.parametrize(("along", "dtype"), [(-1, torch.bfloat16), (-2, torch.float32)], ids=str)
def test_a_graph_encodes_packs_and_decodes_as_eager_code_does(text, along, dtype):
    """Stochastically too: one seed for a tensor is all that is drawn."""
    use = Use(text, along)

    def everything(x: Tensor) -> list[Tensor]:
        grid = encode(x, use)
        few = pack(grid, use)
        return [*parts(grid), *parts(few), take(grid, use, dtype), take(few, use, torch.float16)]

    x = operands(dtype)[0]
    compiled = torch.compile(everything, backend="aot_eager", fullgraph=True)
    torch.manual_seed(0)
    got = compiled(x)
    torch.manual_seed(0)
    want = everything(x)
    assert [y.stride() for y in got] == [y.stride() for y in want]
    as_numbers = [[y.float() for y in found] for found in (got, want)]
    assert_same_bits(*as_numbers)
    assert [y.dtype for y in got] == [y.dtype for y in want]


@each_text
def test_fake_results_are_those_of_the_nodes(text):
    """By torch's own checker: shapes, strides, dtypes, nothing written to and nothing shared."""
    checks = ("test_schema", "test_faketensor")
    seed = torch.tensor(3) if "stochastic" in text else None
    x = torch.randn(3, 10, 40)
    for along in (-1, -2):
        torch.library.opcheck(opaque.encoded_node, (x, text, along, seed), test_utils=checks)
    grid_ = grid(x, Use(text), seed=seed)
    torch.library.opcheck(opaque.packed_node, (*grid_[:2], text), test_utils=checks)
    torch.library.opcheck(opaque.decoded_node, (*grid_, text, torch.float16), test_utils=checks)
    few = pack(grid_, Use(text))
    torch.library.opcheck(
        opaque.decoded_node, (*few, text, torch.float32), test_utils="test_faketensor"
    )


def test_partitioner_keeps_eight_bits():
    formats = formats_of("mxfp8")

    def product(x: Tensor, weight: Tensor) -> Tensor:
        return gemm.linear(x, weight, formats=formats)

    # The partitioner of inductor, without its kernels.
    compiled = torch.compile(product, backend="aot_eager_decomp_partition", fullgraph=True)
    x, weight = torch.randn(64, 96, requires_grad=True), torch.randn(32, 96, requires_grad=True)
    compiled(x, weight)
    scales = 96 * 64 // 32 + 96 * 32 // 32
    assert saved_bytes(lambda: compiled(x, weight)) == 64 * 96 + 32 * 96 + scales


def test_a_graph_for_any_number_of_rows():
    formats = formats_of("mxfp8")
    weight = torch.randn(24, 40)

    def product(x: Tensor) -> Tensor:
        return gemm.linear(x, weight, formats=formats)

    compiled = torch.compile(product, backend="aot_eager", fullgraph=True)
    for count in (40, 7, 33):
        x = torch.randn(count, 40)
        torch._dynamo.mark_dynamic(x, 0)
        assert torch.equal(compiled(x), product(x))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["fp8-block", "mxfp8", "nvfp4"])
def test_a_whole_llama_compiles(name):
    """Written out, the formulas of its operands keep inductor busy for more than four minutes."""
    transformers = pytest.importorskip("transformers")
    losses = []
    for inner in ("eager", "inductor"):
        torch.manual_seed(0)
        torch._dynamo.reset()
        config = transformers.LlamaConfig(
            hidden_size=64,
            intermediate_size=128,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=4,
            vocab_size=128,
            use_cache=False,
        )
        model = us.apply_recipe(transformers.LlamaForCausalLM(config), name, inner=inner)
        tokens = torch.randint(0, 128, (2, 32), generator=torch.Generator().manual_seed(0))
        loss = model(input_ids=tokens, labels=tokens).loss
        loss.backward()
        losses.append(loss.detach())
    # Kernels of inductor add in another order, so that single values cross an edge of a format.
    torch.testing.assert_close(*losses, rtol=1e-3, atol=0)
