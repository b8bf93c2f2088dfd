import copy
import math

import pytest
import torch

import unitscale as us
from compress import trained
from growth import tiny
from unitscale.units.forward import session_of


def student_of(model, **asked):
    made = us.compress.plan(model, importance=us.compress.drawn(model), **asked)
    return made, us.compress.apply(model, made)


def test_the_loss_of_logits_is_the_divergence_from_the_teacher():
    teacher = torch.tensor([[math.log(0.5), math.log(0.25), math.log(0.25)]])
    student = torch.tensor([[math.log(0.25), math.log(0.5), math.log(0.25)]])
    expected = 0.5 * math.log(2) + 0.25 * math.log(0.5)
    assert us.compress.logit_loss(student, teacher).item() == pytest.approx(expected)
    assert us.compress.logit_loss(teacher + 3, teacher).item() == pytest.approx(0, abs=1e-6)
    # Not the reverse: that is another number for other distributions.
    skewed = torch.tensor([[math.log(0.9), math.log(0.05), math.log(0.05)]])
    one, other = (us.compress.logit_loss(*pair) for pair in ((skewed, teacher), (teacher, skewed)))
    assert one.item() != pytest.approx(other.item(), rel=0.1)


def test_the_loss_of_logits_keeps_its_gradient_over_temperatures():
    generator = torch.Generator().manual_seed(0)
    teacher = torch.randn(4, 8, generator=generator) / 100
    student = torch.zeros(4, 8, requires_grad=True)
    gradients = []
    for temperature in (1.0, 8.0):
        loss = us.compress.logit_loss(student, teacher, temperature=temperature)
        gradients.append(torch.autograd.grad(loss, student)[0])
    torch.testing.assert_close(*gradients, rtol=0.05, atol=1e-5)


def divergence_of(student, teacher, temperature):
    """T^2 KL of two rows of logits, by Python's exact sums of terms without cancellation.

    With u = (student - teacher) / T and its mean m over p, KL = log E_p[e^(u - m)], which is
    log1p of E_p[e^(u - m) - 1 - (u - m)]: no two large numbers are subtracted.
    """
    total = torch.zeros((), dtype=torch.float64)
    for q, p in zip(student.double(), teacher.double(), strict=True):
        weights = (p / temperature).softmax(0)
        u = (q - p) / temperature
        u = u - (weights * u).sum()
        series = u.square() / 2 * (1 + u / 3 * (1 + u / 4 * (1 + u / 5 * (1 + u / 6))))
        rest = torch.where(u.abs() < 1e-2, series, u.exp() - 1 - u)
        total += (weights * rest).sum().log1p() * temperature**2
    return (total / len(student)).item()


@pytest.mark.parametrize("temperature", [0.1, 0.5, 1.0, 4.0, 30.0, 100.0, 1000.0, 1e4])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("apart", [1.0, 0.05])
def test_the_loss_of_logits_holds_at_every_temperature(temperature, dtype, apart):
    generator = torch.Generator().manual_seed(1)
    drawn = torch.randn(2, 4, 50, generator=generator)
    teacher = (3 * drawn[0]).to(dtype)
    student = (3 * drawn[0] + apart * drawn[1]).to(dtype).requires_grad_()
    loss = us.compress.logit_loss(student, teacher, temperature=temperature)
    expected = divergence_of(student.detach(), teacher, temperature)
    # Of float64: 16 epsilons of a log of about 4, each times T^2; of float32 the last rounding.
    absolute = 16 * 2**-52 * 4 * temperature**2
    assert loss.item() == pytest.approx(expected, rel=2**-23, abs=absolute)
    assert loss.item() > 0
    q, p = ((x.detach().double() / temperature).softmax(-1) for x in (student, teacher))
    (gradient,) = torch.autograd.grad(loss, student)
    wanted = temperature * (q - p) / len(teacher)
    rounding = torch.finfo(dtype).eps
    torch.testing.assert_close(gradient.double(), wanted, rtol=rounding, atol=1e-9)


@pytest.mark.parametrize("temperature", [1e-5, 1e6, 0.0, -1.0, math.nan, math.inf])
def test_a_temperature_without_digits_is_refused(temperature):
    logits = torch.randn(2, 5)
    with pytest.raises(ValueError, match=r"temperature is .*; expected"):
        us.compress.logit_loss(logits, logits, temperature=temperature)


@pytest.mark.parametrize("angle", [1e-2, 1e-4, 1e-6])
def test_the_loss_by_angle_holds_for_states_that_nearly_agree(angle):
    one = torch.tensor([[1.0, 0.0]])
    other = torch.tensor([[1.0, angle]])  # 1 - cos = a^2 / 2 (1 - 3 a^2 / 4 + ...)
    found = us.compress.hidden_loss(other, one, by="cosine").item()
    assert found == pytest.approx(other[0, 1].item() ** 2 / 2, rel=angle**2 + 1e-3)


def test_only_positions_that_count_do():
    teacher, student = torch.randn(2, 3, 5), torch.randn(2, 3, 5)
    mask = torch.tensor([[1, 1, 0], [1, 0, 0]]).bool()
    found = us.compress.logit_loss(student, teacher, mask=mask)
    expected = us.compress.logit_loss(student[mask], teacher[mask])
    torch.testing.assert_close(found, expected)


def test_hidden_states_by_square_or_angle():
    x = torch.randn(2, 3, 5)
    assert us.compress.hidden_loss(2 * x, x, by="cosine").item() == pytest.approx(0, abs=1e-6)
    found = us.compress.hidden_loss(2 * x, x).item()
    assert found == pytest.approx(x.square().mean().item(), rel=1e-5)


def test_hidden_losses_weigh_as_much_as_logits_and_begin_where_the_channels_were():
    teacher = tiny.llama()
    made, student = student_of(teacher, width=8)
    batch = tiny.batch_for(teacher)
    alone = us.compress.Distillation(teacher, student, made)(batch)
    both = us.compress.Distillation(teacher, student, made, layers=(-1, 1))
    assert both(batch).item() == pytest.approx(2 * alone.item(), rel=1e-5)
    assert len(list(both.parameters())) == 2
    states = student(input_ids=batch["input_ids"], output_hidden_states=True).hidden_states
    raised = states[0] @ both.up[0].T
    torch.testing.assert_close(raised[..., list(made.channels)], states[0])
    # Of the same model there is nothing to lose.
    whole, same = student_of(teacher, depth=2)
    nothing = us.compress.Distillation(teacher, same, whole, layers=(0, 1))(batch)
    assert nothing.item() == pytest.approx(0, abs=1e-5)


def test_labels_are_shifted_as_in_the_model():
    teacher = tiny.llama()
    made, student = student_of(teacher, ffn=9)
    batch = tiny.batch_for(teacher)
    alone = us.compress.Distillation(teacher, student, made)(batch)
    more = us.compress.Distillation(teacher, student, made, cross_entropy=0.5)(batch)
    own = student(**batch).loss
    torch.testing.assert_close(more, alone + 0.5 * own)


def test_a_student_learns_in_fp8_under_units_and_the_teacher_stays_in_its_own_numerics():
    teacher = trained.teacher()
    before = copy.deepcopy(teacher.state_dict())
    made, student = student_of(teacher, ffn=32)
    us.unit_scale(student, "fp8")
    distillation = us.compress.Distillation(teacher, student.train(), made, layers=(-1, 1))
    optimizer = torch.optim.Adam([*student.parameters(), *distillation.parameters()], 3e-3)
    losses = us.compress.distil(distillation, trained.batches(5, 25), optimizer)
    assert losses[-1] < losses[0] / 2
    assert session_of(student) is not None
    assert us.coverage(student) > 0.9
    assert session_of(teacher) is None
    assert all(value.equal(before[name]) for name, value in teacher.state_dict().items())
    assert not teacher.training
    assert student.training


def test_bad_input_is_one_line():
    teacher = tiny.llama()
    made, student = student_of(teacher, ffn=9)
    batch = tiny.batch_for(teacher)
    a, b = torch.zeros(2, 3), torch.zeros(2, 4)
    with pytest.raises(ValueError, match=r"logits are of shape \[2, 3\]"):
        us.compress.logit_loss(a, b)
    with pytest.raises(ValueError, match=r"hidden states are of shape \[2, 3\]"):
        us.compress.hidden_loss(a, b)
    with pytest.raises(ValueError, match="by is 'kl'; expected mse, cosine"):
        us.compress.hidden_loss(a, a, by="kl")
    with pytest.raises(ValueError, match="temperature is 0"):
        us.compress.logit_loss(a, a, temperature=0)
    with pytest.raises(ValueError, match="with 0 positions that count"):
        us.compress.logit_loss(a, a, mask=torch.zeros(2).bool())
    with pytest.raises(ValueError, match="no layer 2; expected from -1"):
        us.compress.Distillation(teacher, student, made, layers=(2,))
    plain = us.compress.Distillation(teacher, student, made, cross_entropy=1.0)
    with pytest.raises(ValueError, match="cross_entropy needs labels"):
        plain({"input_ids": batch["input_ids"]})
    optimizer = torch.optim.SGD(student.parameters(), 0.1)
    with pytest.raises(ValueError, match="there is no batch"):
        us.compress.distil(plain, [], optimizer)
    with torch.no_grad():
        teacher.lm_head.weight[0, 0] = float("nan")
    before = copy.deepcopy(student.state_dict())
    with pytest.raises(ValueError, match="loss of distillation is nan"):
        us.compress.distil(us.compress.Distillation(teacher, student, made), [batch], optimizer)
    assert all(value.equal(before[name]) for name, value in student.state_dict().items())


def test_a_teacher_is_not_trained_along():
    teacher = tiny.llama()
    made, student = student_of(teacher, ffn=9)
    student.lm_head.weight = teacher.lm_head.weight
    distillation = us.compress.Distillation(teacher, student, made)
    before = copy.deepcopy(teacher.state_dict())
    for parameters in (student.parameters(), {*student.parameters(), *teacher.parameters()}):
        optimizer = torch.optim.SGD(parameters, 0.1)
        with pytest.raises(ValueError, match=r"has \d+ parameters of the teacher, the first is"):
            us.compress.distil(distillation, [tiny.batch_for(teacher)], optimizer)
    assert all(value.equal(before[name]) for name, value in teacher.state_dict().items())


def test_a_step_that_makes_the_student_nan_is_an_error_of_its_own():
    """In FP16 eps is 1e-8 = 0: where the second moment is zero AdamW divides zero by zero."""
    teacher = tiny.llama().half()
    made, student = student_of(teacher, ffn=9)
    optimizer = torch.optim.AdamW(student.parameters(), 1e-5)
    distillation = us.compress.Distillation(teacher, student, made)
    with pytest.raises(ValueError, match=r"step 0 of the AdamW made .*; in FP16 AdamW"):
        us.compress.distil(distillation, [tiny.batch_for(teacher)], optimizer)


def test_what_would_teach_nothing_is_refused():
    teacher = tiny.llama()
    made, student = student_of(teacher, ffn=9)
    batch = tiny.batch_for(teacher)
    distillation = us.compress.Distillation(teacher, student, made)
    elsewhere = torch.optim.SGD(teacher.parameters(), 0.1)
    with pytest.raises(ValueError, match="the SGD has no parameter of the student"):
        us.compress.distil(distillation, [batch], elsewhere)
    optimizer = torch.optim.SGD(student.parameters(), 0.1)
    with torch.no_grad():
        us.compress.distil(distillation, [batch], optimizer)
    student.requires_grad_(False)
    with pytest.raises(ValueError, match="no parameter of the student requires a gradient"):
        us.compress.distil(distillation, [batch], optimizer)
    with pytest.raises(ValueError, match=r"of width 12.* and the plan makes a llama"):
        us.compress.Distillation(student, teacher, made)
    with pytest.raises(ValueError, match=r"shape \[3, 1\], one number a position"):
        us.compress.logit_loss(torch.zeros(3, 1), torch.ones(3, 1))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"cross_entropy": -1.0}, "cross_entropy is -1.0; expected a number of at least 0"),
        ({"cross_entropy": float("nan")}, "cross_entropy is nan"),
        ({"temperature": float("inf")}, "temperature is inf; expected a number above 0"),
        ({"by": "l1"}, "by is 'l1'"),
        ({"layers": [0.5]}, "no layer 0.5"),
        ({"layers": "0"}, "no layer '0'"),
    ],
)
def test_options_are_checked_before_any_step(options, message):
    teacher = tiny.llama()
    made, student = student_of(teacher, ffn=9)
    with pytest.raises(ValueError, match=message):
        us.compress.Distillation(teacher, student, made, **options)


def test_a_batch_that_is_no_mapping_and_one_in_the_place_of_several_are_refused():
    teacher = tiny.llama()
    made, student = student_of(teacher, ffn=9)
    batch, distillation = tiny.batch_for(teacher), us.compress.Distillation(teacher, student, made)
    with pytest.raises(TypeError, match="the batch is a Tensor; expected a mapping"):
        distillation(batch["input_ids"])
    with pytest.raises(TypeError, match="batches is a dict; expected several"):
        us.compress.distil(distillation, batch, torch.optim.SGD(student.parameters(), 0.1))
