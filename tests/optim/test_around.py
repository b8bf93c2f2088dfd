"""What stands around an optimizer: clipping, scalers, schedulers, closures, compilers, Trainer."""

import copy

import pytest
import torch
from torch import nn
from torch.optim.lr_scheduler import CosineAnnealingLR, LambdaLR, OneCycleLR

from optim.state_cases import BF16, FP32, adamw, assert_same_bits, fill, parameters, run, snapshot
from unitscale import optim

STATES = [
    ("fp8-lm", FP32),
    ("coat", FP32),
    ("bf16-stochastic", BF16),
    ("master24", BF16),
]


def net(dtype=FP32):
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(40, 130), nn.Tanh(), nn.Linear(130, 40)).to(dtype)


def loss_of(model, step=0):
    generator = torch.Generator().manual_seed(step)
    x = torch.randn(8, 40, generator=generator).to(model[0].weight.dtype)
    return (model(x) - x).float().square().mean()


@pytest.mark.parametrize(("states", "dtype"), STATES)
@pytest.mark.parametrize(
    "schedule",
    [
        lambda o: LambdaLR(o, lambda step: 0.5**step),
        lambda o: CosineAnnealingLR(o, 10),
        lambda o: OneCycleLR(o, 0.1, total_steps=10),  # moves beta1 too
    ],
    ids=["lambda", "cosine", "one cycle"],
)
def test_torchs_schedulers_move_rates_and_betas(states, dtype, schedule):
    """The rate of a step is the group's: a copy that is set by hand goes the same way."""
    by_schedule, by_hand = parameters(dtype), parameters(dtype)
    one, other = adamw(by_schedule, states), adamw(by_hand, states)
    moved = schedule(one)
    for step in range(4):
        group = one.param_groups[0]
        other.param_groups[0].update(lr=group["lr"], betas=group["betas"])
        run(one, by_schedule, [step])
        run(other, by_hand, [step])
        moved.step()
    assert one.param_groups[0]["lr"] != 1e-2
    assert_same_bits(snapshot(one, by_schedule), snapshot(other, by_hand))


def test_a_rate_that_is_a_tensor_is_read_at_each_step():
    number, tensor = parameters(), parameters()
    one = adamw(number, "coat", lr=0.5)
    other = adamw(tensor, "coat", lr=torch.tensor(0.1))
    other.param_groups[0]["lr"].fill_(0.5)
    run(one, number, range(2))
    run(other, tensor, range(2))
    assert_same_bits(snapshot(one, number), snapshot(other, tensor))


@pytest.mark.parametrize(("states", "dtype"), STATES)
def test_a_closure_is_called_with_gradients_on_and_its_loss_returned(states, dtype):
    model = net(dtype)
    optimizer = adamw(model.parameters(), states)

    def closure():
        optimizer.zero_grad()
        loss = loss_of(model)
        loss.backward()
        return loss

    losses = [optimizer.step(closure).item() for _ in range(20)]
    assert losses[-1] < 0.8 * losses[0]
    assert losses[0] == pytest.approx(loss_of(net(dtype)).item())


@pytest.mark.parametrize(("states", "dtype"), STATES)
def test_a_grad_scaler_skips_a_step_that_overflowed_and_nothing_changes(states, dtype):
    model = net(dtype)
    optimizer = adamw(model.parameters(), states)
    scaler = torch.amp.GradScaler("cpu", init_scale=8.0)

    def step(factor):
        optimizer.zero_grad()
        scaler.scale(loss_of(model) * factor).backward()
        scaler.unscale_(optimizer)
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        scaler.step(optimizer)
        scaler.update()

    step(1.0)
    named = list(model.named_parameters())
    before = snapshot(optimizer, named)
    step(float("inf"))
    assert_same_bits(before, snapshot(optimizer, named))
    assert scaler.get_scale() == 4.0
    step(1.0)
    with pytest.raises(AssertionError):
        assert_same_bits(before, snapshot(optimizer, named))
    assert all(parameter.isfinite().all() for parameter in model.parameters())


@pytest.mark.parametrize(("states", "dtype"), STATES)
@pytest.mark.parametrize("foreach", [True, False])
def test_foreach_is_accepted_and_changes_nothing(states, dtype, foreach):
    with_it, without = parameters(dtype), parameters(dtype)
    one, other = adamw(with_it, states, foreach=foreach), adamw(without, states)
    run(one, with_it, range(2))
    run(other, without, range(2))
    assert_same_bits(snapshot(one, with_it), snapshot(other, without))


def test_zero_grad_and_hooks_are_torchs():
    named = parameters()
    optimizer = adamw(named, "coat")
    called = []
    optimizer.register_step_pre_hook(lambda *_: called.append("before"))
    optimizer.register_step_post_hook(lambda *_: called.append("after"))
    run(optimizer, named, [0])
    optimizer.zero_grad(set_to_none=False)
    assert all((parameter.grad == 0).all() for _, parameter in named)
    optimizer.zero_grad()
    assert all(parameter.grad is None for _, parameter in named)
    before = snapshot(optimizer, named)
    optimizer.step()  # without gradients
    assert_same_bits(before, snapshot(optimizer, named))
    assert called == ["before", "after"] * 2


# 2026-11-29: torch 2.13's Dynamo warns of the profiler's label around every optimizer's step.
@pytest.mark.filterwarnings("ignore:.*record_function")
@pytest.mark.parametrize(("states", "dtype"), STATES)
def test_a_compiled_step_has_the_bits_of_the_eager_one(states, dtype):
    compiled, eager = parameters(dtype), parameters(dtype)
    one, other = adamw(compiled, states), adamw(eager, states)
    step = torch.compile(one.step, backend="eager")
    for number in range(3):
        fill(compiled, number)
        step()
        run(other, eager, [number])
    assert_same_bits(snapshot(one, compiled), snapshot(other, eager))


@pytest.mark.filterwarnings("ignore:.*record_function")
def test_one_whole_graph_is_refused():
    named = parameters()
    optimizer = adamw(named, "coat")
    fill(named, 0)
    with pytest.raises(torch._dynamo.exc.Unsupported, match=r"disable"):
        torch.compile(optimizer.step, backend="eager", fullgraph=True)()
    assert not optimizer.state


# 2026-11-28: torch 2.13's Dynamo reads `.grad` of what crosses a graph break.
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")
def test_training_in_a_compiled_function_steps():
    model, twin = net(), net()
    ours, plain = adamw(model.parameters(), "coat"), adamw(twin.parameters(), "coat")

    def train(one, optimizer, step):
        loss = loss_of(one, step)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    compiled = torch.compile(train, backend="eager")
    for step in range(2):
        compiled(model, ours, step)
        train(twin, plain, step)
    assert_same_bits(list(model.parameters()), list(twin.parameters()))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda p: adamw([p], "coats"), r"states is 'coats'; expected None or one of 'fp32', "),
        (lambda p: adamw([p], "coat", seed=-1), r"seed is -1; expected an int from 0"),
        (lambda p: adamw([p], "coat", chunk_size=0), r"chunk_size is 0; expected an int of 1"),
        (lambda p: adamw([p], "coat", amsgrad=True), r"amsgrad=True with states='coat', which has"),
        (lambda p: adamw([p], "coat", fused=True), r"fused=True with states='coat'"),
        (lambda p: adamw([p], "master24"), r"'0': states='master24' cannot hold a parameter of"),
        (
            lambda p: adamw([nn.Parameter(p.to(torch.complex64))], "coat"),
            r"states='coat' cannot hold a parameter of complex64, only of float32 or .*; convert",
        ),
        (
            lambda p: adamw([nn.Parameter(p.double())], "fp8-lm"),
            r"'fp8-lm' cannot hold a parameter of float64",
        ),
        (
            lambda p: optim.AdamW([p], 0.1, rules="mup", states="coat"),
            r"rules is 'mup'; expected 'u-mup', or None",
        ),
        (
            lambda p: optim.AdamW([p], 0.1, rules=None, rates={"hidden": 2.0}),
            r"rates is \{'hidden': 2.0\} with rules=None, which has no use for it",
        ),
    ],
)
def test_bad_arguments_are_one_clear_line(make, message):
    with pytest.raises(ValueError, match=message) as caught:
        make(nn.Parameter(torch.randn(4, 300)))
    assert "\n" not in str(caught.value)


def test_a_bad_group_is_not_added():
    optimizer = adamw([nn.Parameter(torch.randn(4, 300).bfloat16())], "bf16-stochastic")
    with pytest.raises(ValueError, match=r"'head': .* cannot hold a parameter of float32, only of"):
        optimizer.add_param_group({"params": [("head", nn.Parameter(torch.randn(4)))]})
    assert len(optimizer.param_groups) == 1


def test_a_sparse_gradient_is_refused_before_anything_changes():
    table = nn.Embedding(30, 300, sparse=True)
    first = nn.Parameter(torch.randn(4, 300))
    optimizer = adamw([("first", first), ("table", table.weight)], "coat")
    first.grad = torch.ones_like(first)
    table(torch.tensor([1, 2])).sum().backward()
    before = first.detach().clone()
    with pytest.raises(ValueError, match=r"gradient of 'table' is torch.sparse_coo; expected"):
        optimizer.step()
    assert torch.equal(first, before)
    assert not optimizer.state


class Rows(torch.utils.data.Dataset):
    def __len__(self):
        return 16

    def __getitem__(self, index):
        tokens = torch.arange(index, index + 12) % 50
        return {"input_ids": tokens, "labels": tokens}


@pytest.mark.parametrize("states", ["coat", "fp8-lm"])
def test_trainer_saves_and_resumes(tmp_path, states):
    """Four steps are two, a checkpoint, and two more; accelerate wraps, saves and loads."""
    transformers = pytest.importorskip("transformers")
    config = transformers.LlamaConfig(
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=1,
        num_attention_heads=2,
        vocab_size=50,
    )
    torch.manual_seed(0)
    start = transformers.LlamaForCausalLM(config)

    def trainer(folder):
        model = copy.deepcopy(start)
        optimizer = adamw(model.parameters(), states, weight_decay=0.1)
        schedule = transformers.get_cosine_schedule_with_warmup(optimizer, 1, 4)
        arguments = transformers.TrainingArguments(
            output_dir=str(folder),
            max_steps=4,
            save_steps=2,
            per_device_train_batch_size=4,
            max_grad_norm=1.0,
            report_to=[],
            use_cpu=True,
            disable_tqdm=True,
            logging_steps=1,
        )
        return transformers.Trainer(
            model, arguments, train_dataset=Rows(), optimizers=(optimizer, schedule)
        )

    whole = trainer(tmp_path)
    whole.train()
    resumed = trainer(tmp_path)
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    assert float(next(iter(resumed.optimizer.optimizer.state.values()))["step"]) == 4
    assert type(resumed.optimizer.optimizer).__name__ == "CodedAdamW"
    assert_same_bits(list(whole.model.parameters()), list(resumed.model.parameters()))


@pytest.mark.parametrize("mode", ["amsgrad", "capturable", "fused"])
def test_an_option_set_on_a_live_group_is_refused_before_anything_changes(mode):
    parameter = torch.nn.Parameter(torch.ones(4, 300))
    optimizer = adamw([parameter], "coat")
    parameter.grad = torch.ones_like(parameter)
    optimizer.param_groups[0][mode] = True
    with pytest.raises(ValueError, match=f"{mode}=True with states='coat', which has no such step"):
        optimizer.step()
    assert torch.equal(parameter, torch.ones(4, 300))
    assert not optimizer.state
    optimizer.param_groups[0][mode] = False
    optimizer.step()
    assert not torch.equal(parameter, torch.ones(4, 300))
