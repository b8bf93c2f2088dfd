"""Exports of quantized models: what stock loaders make of them, and what is refused by name."""

import json

import pytest
import torch
from torch import nn

import unitscale as us
from deploy.small import Gated, inputs
from deploy.tiny import assert_loads_whole, ids, logits, made, stock
from unitscale import deploy
from unitscale.deploy import SCHEMES

BATCH = [{"input_ids": ids()}]


def quantized(name, recipe, **options):
    return deploy.quantize(made(name), recipe, BATCH, **options)


@pytest.mark.parametrize(
    ("name", "recipe", "options"),
    [
        ("llama", "fp8", {}),
        ("llama", "fp8-tensor", {"clip": "percentile"}),
        ("bert", "fp8-dynamic", {}),
        ("qwen3_moe", "fp8-weight", {}),
        ("phi3", "int8", {"differences": "report"}),
        ("llama", "int8-tensor", {"differences": "report", "clip": "mse"}),
    ],
)
def test_a_stock_loader_gives_our_logits_to_the_bit(name, recipe, options, tmp_path):
    differences = options.pop("differences", "refuse")
    model = quantized(name, recipe, **options)
    ours = logits(model, ids())
    assert not torch.equal(ours, logits(made(name), ids()))
    found = deploy.export(model, tmp_path / "out", differences=differences)
    assert found.layers == len(deploy.quantization(model).rows)
    assert len(found.differences) == recipe.startswith("int8")
    deploy.verify(tmp_path / "out")
    assert torch.equal(logits(stock(tmp_path / "out"), ids()), ours)
    assert torch.equal(logits(deploy.load(tmp_path / "out"), ids()), ours)


def test_scales_that_are_powers_of_two_serve_in_bfloat16(tmp_path):
    config = made("llama").config
    model = type(made("llama"))._from_config(config, dtype=torch.bfloat16).eval()
    deploy.quantize(model, "fp8", BATCH, power_of_two=True)
    ours = logits(model, ids())
    deploy.export(model, tmp_path / "out")
    assert torch.equal(logits(stock(tmp_path / "out"), ids()), ours)


class Activated(Gated):
    def forward(self, x):
        return nn.functional.gelu(super().forward(x))


@pytest.mark.parametrize("recipe", ["fp8", "fp8-e5m2", "int8", "mxfp8", "nvfp4"])
def test_any_module_goes_through_our_own_files(recipe, tmp_path):
    torch.manual_seed(0)
    model = deploy.quantize(Activated(), recipe, [inputs()], also=("gelu",))
    expected = model(inputs())
    found = deploy.export(model, tmp_path / "out", format="safetensors")
    assert found.layers == 3
    loaded = deploy.load(tmp_path / "out", Activated())
    assert torch.equal(loaded(inputs()), expected)
    assert deploy.quantization(loaded).recipe == recipe
    assert deploy.quantization(loaded).also == ("gelu",)


REFUSED = [
    ("fp8-e5m2", {}, "compressed-tensors", "'fp8-e5m2' has weights E5M2 row.* written for fp8"),
    ("mxfp8", {}, "compressed-tensors", "'mxfp8' has weights MX_E4M3FN.*safetensors' writes any"),
    ("nvfp4", {}, "compressed-tensors", "'nvfp4' has weights NVFP4"),
    ("int8-fp8", {}, "compressed-tensors", "'int8-fp8' has weights INT8 row, inputs E4M3FN"),
    ("int8-weight", {}, "compressed-tensors", "'int8-weight' has weights INT8 row;"),
    ("fp8", {}, "modelopt", "'fp8' has weights E4M3FN row.*'modelopt' is written for fp8-tensor"),
    ("int8", {}, "compressed-tensors", "saturate at -127 here and at -128 there"),
    ("int8-dynamic", {}, "compressed-tensors", "amax / 127 here and amax / 127.5 there"),
    ("fp8", {"also": ("softmax",)}, "compressed-tensors", "rounds softmax, and no server does"),
    (
        "fp8",
        {"skip": ["*q_proj"]},
        "compressed-tensors",
        "servers join .*k_proj.* with 'model.layers.0.self_attn.q_proj', which keep full precision",
    ),
]


@pytest.mark.parametrize(("recipe", "options", "format", "message"), REFUSED)
def test_what_no_server_has_is_refused_by_name(recipe, options, format, message, tmp_path):
    model = quantized("llama", recipe, **options)
    with pytest.raises(ValueError, match=message):
        deploy.export(model, tmp_path / "out", format=format)
    assert not list(tmp_path.iterdir())


def test_bfloat16_needs_powers_of_two(tmp_path):
    model = deploy.quantize(made("llama").bfloat16(), "fp8-weight")
    with pytest.raises(ValueError, match=r"loaders hold scales in torch.bfloat16.*power_of_two"):
        deploy.export(model, tmp_path / "out")


def test_layers_that_loaders_do_not_know(tmp_path):
    import transformers as T

    model = T.GPT2LMHeadModel(T.GPT2Config(n_layer=1, n_embd=16, n_head=2, vocab_size=48))
    deploy.quantize(model.eval(), "fp8-weight")
    with pytest.raises(ValueError, match=r"'transformer.h.0.attn.c_attn' is a Conv1D"):
        deploy.export(model, tmp_path / "out")


def changed(folder, change):
    from safetensors.torch import load_file, save_file

    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})


def test_faults_of_scales_are_named(tmp_path):
    path = "model.layers.0.mlp.down_proj"
    deploy.export(quantized("llama", "fp8"), tmp_path / "out")
    changed(tmp_path / "out", lambda tensors: tensors[f"{path}.input_scale"].fill_(-1))
    with pytest.raises(ValueError, match=f"{path}.input_scale has a scale that is not positive"):
        deploy.verify(tmp_path / "out")
    changed(tmp_path / "out", lambda tensors: tensors.pop(f"{path}.input_scale"))
    with pytest.raises(ValueError, match=f"{path}.input_scale is missing"):
        deploy.load(tmp_path / "out")
    changed(
        tmp_path / "out", lambda t: t.update({f"{path}.weight_scale": t[f"{path}.weight_scale"][0]})
    )
    with pytest.raises(
        ValueError, match=r"weight_scale is torch.float32 of shape \(1,\); expected"
    ):
        deploy.verify(tmp_path / "out")


@pytest.mark.parametrize("damage", ["layers", "weight", "input", "dtypes"])
def test_a_damaged_description_of_our_own_is_refused(damage, tmp_path):
    model = deploy.quantize(Gated(), "fp8", [inputs()])
    deploy.export(model, tmp_path / "out", format="safetensors")
    file = tmp_path / "out" / "unitscale.json"
    content = json.loads(file.read_text())
    content["quantized"][damage] = ["norm"] * 3 if damage == "layers" else {"format": "E9"}
    file.write_text(json.dumps(content))
    with pytest.raises(ValueError, match=r"layer 'norm', and the model has none|is damaged"):
        deploy.load(tmp_path / "out", Gated())
    assert type(Gated().gate_proj) is nn.Linear


@pytest.mark.parametrize("value", [-1.0, 0.0, float("inf"), float("nan")])
@pytest.mark.parametrize("name", ["weight_scale", "input_scale"])
def test_scales_of_our_own_files_are_checked(name, value, tmp_path):
    model = deploy.quantize(Gated(), "int8", [inputs()])
    deploy.export(model, tmp_path / "out", format="safetensors")
    changed(tmp_path / "out", lambda tensors: tensors[f"up_proj.{name}"].view(-1)[0].fill_(value))
    plain = Gated()
    with pytest.raises(ValueError, match=f"'up_proj.{name}' has a scale that is not positive"):
        deploy.load(tmp_path / "out", plain)
    assert type(plain.up_proj) is nn.Linear


@pytest.mark.parametrize("late", [False, True])
@pytest.mark.parametrize("bias", [False, True])
def test_our_own_files_are_for_a_model_in_their_dtype(bias, late, tmp_path):
    plain = nn.Sequential(nn.Linear(16, 16, bias=bias))
    model = plain if late else plain.bfloat16()
    model = deploy.quantize(model, "fp8-weight")
    deploy.export(model.bfloat16(), tmp_path / "out", format="safetensors")
    other = nn.Sequential(nn.Linear(16, 16, bias=bias))
    with pytest.raises(ValueError, match=r"is in float32, and was exported in bfloat16.*model\.to"):
        deploy.load(tmp_path / "out", other)
    assert type(other[0]) is nn.Linear
    x = inputs().bfloat16()
    assert torch.equal(deploy.load(tmp_path / "out", other.bfloat16())(x), model(x))


def test_a_tied_head_of_its_own_codes_is_refused(tmp_path):
    import transformers as T

    from deploy.tiny import GROUPED

    tied = T.LlamaForCausalLM(T.LlamaConfig(**GROUPED, tie_word_embeddings=True)).eval()
    model = deploy.quantize(tied, "fp8-weight", spare=())
    with pytest.raises(ValueError, match=r"'lm_head' is quantized, and tie_word_.*skip=\['lm_head"):
        deploy.export(model, tmp_path / "out")
    assert not list(tmp_path.iterdir())
    model = deploy.quantize(made("llama"), "fp8-weight", spare=())
    deploy.export(model, tmp_path / "out")
    deploy.verify(tmp_path / "out")


def test_a_report_that_loads_whole_is_checked():
    with pytest.raises(AssertionError):
        assert_loads_whole({"missing_keys": ["a"]})


def test_every_scheme_is_served_or_refused():
    from unitscale.deploy.stored import SERVED, check_scheme

    for format, names in SERVED.items():
        for name, scheme in SCHEMES.items():
            if name in names:
                check_scheme(scheme, format)
            else:
                with pytest.raises(ValueError, match=f"recipe '{name}' has"):
                    check_scheme(scheme, format)
    with pytest.raises(ValueError, match="fp8-rowwise"):
        check_scheme(us.deploy.scheme.scheme_of("fp8-rowwise"), "compressed-tensors")
