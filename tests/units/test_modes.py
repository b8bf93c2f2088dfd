"""Training and evaluation, batch norm, changing shapes: several graphs, one set of units."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from units.training import (
    CountingInner,
    assert_same_trace,
    assert_trains_as_plain,
    named,
    train,
)
from unitscale.units import rows, unit_scale
from unitscale.units.forward import require_session


class Normed(nn.Module):
    """Convolution, batch norm and dropout: buffers and a training flag."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv1d(3, 4, 3)
        self.norm, self.drop, self.out = nn.BatchNorm1d(4), nn.Dropout(0.25), nn.Linear(4, 5)

    def forward(self, x: Tensor, target: Tensor | None = None) -> Tensor:
        hidden = self.drop(F.relu(self.norm(self.conv(x))))
        logits = self.out(hidden.mean(-1))
        return logits if target is None else F.cross_entropy(logits, target)


def batch(size: int = 6, length: int = 8) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(size * 100 + length)
    x = torch.randn(size, 3, length, generator=generator)
    return x * 5 + 1, torch.arange(size) % 5


def pair_of_models(**options) -> tuple[Normed, Normed]:
    """The plain model and the scaled one, with the same parameters."""
    plain, scaled = Normed(), Normed()
    scaled.load_state_dict(plain.state_dict())
    return plain, unit_scale(scaled, "fp32-units", **{"inner": "eager"} | options)


def test_buffers_of_batch_norm_are_bit_identical():
    model = assert_trains_as_plain(Normed, batch())
    assert model.norm.num_batches_tracked == 3
    assert named(model)["norm.batch_norm"].s != 1.0 or named(model)["conv.conv1d"].s != 1.0


def test_frozen_batch_norm_is_bit_identical():
    assert_trains_as_plain(lambda: Normed().eval(), batch())


def test_training_and_evaluation_in_turn_are_bit_identical():
    plain, scaled = pair_of_models(remeasure=[0, 2])
    x, target = batch()
    for step in range(4):
        for model in (plain, scaled):
            torch.manual_seed(step)
            model.train()
            model.zero_grad()
            model(x, target).backward()
            with torch.no_grad():
                for p in model.parameters():
                    p -= 0.1 * p.grad
            model.eval()
        with torch.no_grad():
            assert torch.equal(scaled(x), plain(x))
            assert torch.equal(scaled(x, target), plain(x, target))
    for name, value in plain.state_dict().items():
        assert torch.equal(scaled.state_dict()[name], value)


def test_evaluation_uses_the_units_of_training_and_measures_nothing():
    _, scaled = pair_of_models(remeasure="once")
    x, target = batch()
    scaled(x, target).backward()
    before = {row.name: (row.s, row.rms) for row in rows(scaled)}
    scaled.eval()
    with torch.no_grad():
        scaled(x * 100, target)
        scaled(x * 100, target)
    after = {row.name: (row.s, row.rms) for row in rows(scaled)}
    for name in before:
        assert after[name] == before[name]


class WithProbabilities(Normed):
    """What is outside of every submodule is of evaluation's own: it goes on in another way."""

    def forward(self, x: Tensor, target: Tensor | None = None) -> Tensor:
        hidden = self.drop(F.relu(self.norm(self.conv(x))))
        logits = self.out(hidden.mean(-1))
        return logits.softmax(-1) if target is None else F.cross_entropy(logits, target)


def test_evaluation_measures_its_own_tensors_again_after_training_did():
    scaled = unit_scale(WithProbabilities(), "fp32-units", inner="eager", remeasure=[0, 2])
    x, target = batch()
    seen = []
    for step in range(4):
        scaled.train()
        scaled(x * 10**step, target).backward()
        scaled.eval()
        with torch.no_grad():
            for scale in (1.0, 2.0):
                scaled(x * scale * 10**step)
        seen.append(named(scaled)["graph1.mean"].rms)
    # Measured after steps 0 and 2 of training, each time in the first evaluation.
    assert seen[0] == seen[1]
    assert seen[2] == seen[3] != seen[0]


def test_evaluation_before_training_measures_values_once():
    plain, scaled = pair_of_models()
    plain.eval()
    scaled.eval()
    x, _ = batch()
    with torch.no_grad():
        outputs = [scaled(x), scaled(x * 2), scaled(x * 3)]
        wanted = [plain(x), plain(x * 2), plain(x * 3)]
    torch.testing.assert_close(outputs, wanted, rtol=0, atol=0)
    row = named(scaled)["conv.conv1d"]
    assert row.s > 1.0
    assert row.grad_rms is None
    first = row.rms
    with torch.no_grad():
        scaled(x * 100)
    assert named(scaled)["conv.conv1d"].rms == first


def test_training_after_evaluation_measures_gradients():
    _, scaled = pair_of_models()
    x, target = batch()
    scaled.eval()
    with torch.no_grad():
        scaled(x, target)
    scaled.train()
    scaled(x, target).backward()
    assert named(scaled)["conv.conv1d"].grad_rms is not None


def test_inference_mode_gives_the_plain_values():
    plain, scaled = pair_of_models()
    plain.eval()
    scaled.eval()
    x, _ = batch()
    with torch.inference_mode():
        for scale in (1.0, 2.0):
            assert torch.equal(scaled(x * scale), plain(x * scale))


def test_training_goes_on_after_evaluation_in_inference_mode():
    """As Lightning evaluates: the factors that it sets must serve a step with a backward pass.

    Step 2 measures, the evaluation after it takes that over, and step 3 uses it.
    """
    _, scaled = pair_of_models()
    x, target = batch()
    for _ in range(4):
        scaled.train()
        scaled(x, target).backward()
        scaled.eval()
        with torch.inference_mode():
            scaled(x)
            scaled(x)
    assert named(scaled)["conv.conv1d"].s != 1.0


@pytest.mark.parametrize("shapes", [[(6, 8), (4, 8), (5, 8)], [(6, 8), (6, 12), (6, 9)]], ids=str)
def test_other_shapes_are_bit_identical_and_keep_their_keys(shapes):
    """The second shape makes Dynamo compile again, with a symbolic size."""
    batches = [batch(*shape) for shape in shapes]
    inner = CountingInner()
    model = assert_trains_as_plain(Normed, *batches, steps=2, inner=inner)
    assert inner.graphs >= 2
    session = require_session(model, "test")
    assert len(session.executables) == 1  # the later one has the tensors of the earlier one
    assert session.store.step == 2 * len(batches)
    assert not any(name.startswith("graph") for name in session.store.units)


def test_recompile_does_not_measure_again():
    _, scaled = pair_of_models(remeasure="once")
    for size in (6, 4, 5):
        x, target = batch(size)
        scaled(x, target).backward()
    assert named(scaled)["x"].rms == pytest.approx(batch(6)[0].square().mean().sqrt().item())


class SizeInArithmetic(nn.Module):
    """A symbolic size is a node of the graph, but not a tensor that could be scaled."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        y = self.layer(x) * 30
        return (y + x.shape[0] - y.sum() / x.numel() + y * x.shape[0]).square().mean()


def test_symbolic_sizes_in_arithmetic_are_bit_identical():
    batches = [
        (torch.randn(size, 8, generator=torch.Generator().manual_seed(1)),) for size in (4, 7, 9)
    ]
    assert_trains_as_plain(SizeInArithmetic, *batches, steps=2)


class Frozen(Normed):
    def __init__(self) -> None:
        super().__init__()
        self.conv.requires_grad_(False)


def test_frozen_parameters_get_no_gradient():
    model = assert_trains_as_plain(Frozen, batch())
    assert model.conv.weight.grad is None
    assert named(model)["conv.conv1d"].grad_rms is None


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16], ids=str)
def test_model_of_another_dtype_trains_as_plain(dtype):
    x, target = batch()
    assert_trains_as_plain(lambda: Normed().to(dtype), (x.to(dtype), target))


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.lstm, self.out = nn.LSTM(3, 4, batch_first=True), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.lstm(x)[0]).square().mean()


def test_recurrent_module_that_is_not_captured_is_named():
    model = unit_scale(Recurrent(), inner="eager")
    x = torch.randn(4, 5, 3)
    found = r"'fp8' is not in force in lstm \(torch.compile does not capture nn.LSTM, .*cells"
    with pytest.warns(UserWarning, match=found):
        model(x)
    model(x)  # once is enough
    assert {"out.linear"} <= named(model).keys()


@pytest.mark.filterwarnings("ignore:Recurrent. recipe 'fp32-units' is not in force in lstm")
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")
def test_recurrent_module_trains_as_plain_around_it():
    model = assert_trains_as_plain(Recurrent, (torch.randn(4, 5, 3),))
    assert "out.linear" in named(model)


def test_recurrent_module_is_captured_with_torchs_own_switch():
    with torch._dynamo.config.patch(allow_rnn=True):
        model = assert_trains_as_plain(Recurrent, (torch.randn(4, 5, 3),))
    assert any("lstm" in row.name for row in rows(model))


def test_second_run_from_the_same_start_is_the_first_again():
    traces = []
    for _ in range(2):
        torch.manual_seed(0)
        traces.append(train(unit_scale(Normed(), "fp8", inner="eager"), [batch()] * 3))
    assert_same_trace(*traces)
