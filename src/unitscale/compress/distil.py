"""A pruned model trained to give what the large one gives.

The teacher runs in its own numerics and the student in its recipe; the losses are computed outside
of both. What is small beside the numbers that it is the difference of is computed in float64.

Source: Minitron, arXiv 2407.14679, section 3.
"""

import math
import warnings
from collections.abc import Iterable, Mapping
from typing import Any, Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from unitscale.anatomy.output import evaluating
from unitscale.anatomy.shape import shape_of
from unitscale.compress.importance import refuse_empty, several
from unitscale.compress.plan import Plan

__all__ = ["Distillation", "distil", "hidden_loss", "logit_loss"]

Distance = Literal["mse", "cosine"]

TEMPERATURES = (1e-4, 1e5)
"""Beyond the upper one a divergence of temperature^-2 is lost in float64 too, whose epsilon is
2e-16; below the lower one a softmax of most logits has a single symbol."""


def logit_loss(
    student: Tensor, teacher: Tensor, *, temperature: float = 1.0, mask: Tensor | None = None
) -> Tensor:
    """Forward KL divergence of the student's distribution from the teacher's, in nats a position.

    mean over positions of sum_v p(v) (log p(v) - log q(v)), p the teacher's; times temperature^2,
    so that gradients keep their size. At T = 1000 each log p is near log(1 / symbols) and the
    divergence near 1e-6, so it is computed in float64: the error is at most 16 epsilons of float64,
    times temperature^2 and log(symbols), and the rounding of the result to float32.

    Args:
        student, teacher: logits [..., symbols], of one shape.
        temperature: from 1e-4 to 1e5.
        mask: [...], true for positions that count.
    Raises:
        ValueError: other shapes, a single symbol, a temperature out of range, a mask of nothing.
    """
    if student.shape != teacher.shape:
        raise ValueError(
            f"compress: the student's logits are of shape {list(student.shape)} and the teacher's "
            f"of {list(teacher.shape)}; expected the same"
        )
    if student.shape[-1] < 2:
        raise ValueError(
            f"compress: the logits are of shape {list(student.shape)}, one number a position, and "
            "the divergence of one is always 0; expected two symbols or more: train a regression "
            "on its labels"
        )
    check_temperature(temperature)
    log_p = F.log_softmax(teacher.double() / temperature, dim=-1)
    log_q = F.log_softmax(student.double() / temperature, dim=-1)
    each = (log_p.exp() * (log_p - log_q)).sum(-1) * temperature**2
    return mean_of(each, mask).float()


def check_temperature(value: Any) -> None:
    """Refuse a temperature at which the loss has no digits.

    Raises:
        ValueError: says the range.
    """
    check_positive("temperature", value)
    low, high = TEMPERATURES
    if not low <= value <= high:
        raise ValueError(
            f"compress: temperature is {value!r}; expected {low:g} to {high:g}: further up the "
            "loss would change no more, further down the softmax has a single symbol"
        )


def check_positive(name: str, value: Any, *, or_zero: bool = False) -> None:
    """Refuse what is no finite number above 0.

    Raises:
        ValueError: names the argument.
    """
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if not is_number or not math.isfinite(value) or value < 0 or not (value or or_zero):
        expected = "a number of at least 0" if or_zero else "a number above 0"
        raise ValueError(f"compress: {name} is {value!r}; expected {expected}")


def hidden_loss(
    student: Tensor, teacher: Tensor, *, by: Distance = "mse", mask: Tensor | None = None
) -> Tensor:
    """Distance of hidden states [..., width]: mean square, or 1 - cosine.

    Raises:
        ValueError: other shapes, another distance, a mask of nothing.
    """
    if by not in get_args(Distance):
        raise ValueError(f"compress: by is {by!r}; expected {', '.join(get_args(Distance))}")
    if student.shape != teacher.shape:
        raise ValueError(
            f"compress: the student's hidden states are of shape {list(student.shape)} and the "
            f"teacher's of {list(teacher.shape)}; expected the same: project them first"
        )
    if by == "mse":
        return mean_of((student.float() - teacher.float()).square().mean(-1), mask)
    # Of states that nearly agree 1 - cosine is smaller than float32's epsilon.
    each = 1 - F.cosine_similarity(student.double(), teacher.double(), dim=-1)
    return mean_of(each, mask).float()


def mean_of(each: Tensor, mask: Tensor | None) -> Tensor:
    """The mean over positions that count."""
    if mask is None:
        return each.mean()
    if mask.shape != each.shape or not mask.any():
        raise ValueError(
            f"compress: the mask is of shape {list(mask.shape)} with {int(mask.sum())} positions "
            f"that count; expected at least one, of shape {list(each.shape)}"
        )
    return (each * mask).sum() / mask.sum()


class Distillation(nn.Module):
    """The loss of a student against its teacher: `loss = distillation(batch)`.

    L = KL(teacher, student) + alpha * hidden + cross_entropy * loss of the labels, where
    alpha = KL / hidden is computed anew at each step and has no gradient, so that both weigh the
    same. Hidden states of the student go up to the teacher's width through a learned matrix, which
    at first puts each channel where it was; train `parameters()` of this with the student's.

    Args:
        teacher: called in eval() without gradients, in the numerics that it has.
        student: of `apply(teacher, plan)`.
        layers: numbers of the student's layers, from 0, whose outputs are compared with those of
            the layers that they were; -1 is the embeddings. Use few, and none unless depth is cut
            much.
        cross_entropy: weight of the student's own loss, which needs labels.
        temperature: of both distributions.
        by: the distance of hidden states.

    Raises:
        ValueError: a layer that the student does not have; a student of another shape than the
            plan's; a number out of range.
    """

    def __init__(
        self,
        teacher: nn.Module,
        student: nn.Module,
        plan: Plan,
        *,
        layers: Iterable[int] = (),
        cross_entropy: float = 0.0,
        temperature: float = 1.0,
        by: Distance = "mse",
    ) -> None:
        super().__init__()
        # Not as submodules: the teacher's parameters are nobody's to train.
        self.models = (teacher, student)
        self.plan, self.layers, self.by = plan, tuple(layers), by
        self.cross_entropy, self.temperature = cross_entropy, temperature
        check_positive("cross_entropy", cross_entropy, or_zero=True)
        check_temperature(temperature)
        if by not in get_args(Distance):
            raise ValueError(f"compress: by is {by!r}; expected {', '.join(get_args(Distance))}")
        check_student(student, plan)
        depth = plan.target.depth
        if wrong := [n for n in self.layers if type(n) is not int or not -1 <= n < depth]:
            raise ValueError(
                f"compress: the student has no layer {wrong[0]!r}; expected from -1 (the "
                f"embeddings) to {plan.target.depth - 1}"
            )
        first = next(student.parameters())
        start = torch.zeros(plan.old.width, plan.target.width)
        start[list(plan.channels), range(plan.target.width)] = 1.0
        self.up = nn.ParameterList(
            nn.Parameter(start.clone().to(first.device)) for _ in self.layers
        )

    def forward(self, batch: Mapping[str, Any]) -> Tensor:
        """The loss of a batch.

        Raises:
            TypeError: the batch is no mapping. ValueError: the loss is not finite: the batch, the
                teacher or the student holds NaN.
        """
        if not isinstance(batch, Mapping):
            raise TypeError(
                f"compress: the batch is a {type(batch).__name__}; expected a mapping of "
                "arguments, as {'input_ids': ids}"
            )
        inputs = {name: value for name, value in batch.items() if name != "labels"}
        more = {"output_hidden_states": True} if self.layers else {}
        large, small = self.models
        with evaluating(large), torch.no_grad():
            teacher = large(**inputs, **more)
        with warnings.catch_warnings():
            # Of hidden states transformers makes a second graph, and torch warns of itself there.
            warnings.filterwarnings(
                "ignore", r"The \.grad attribute of a Tensor that is not a leaf"
            )
            student = small(**inputs, **more)
        mask = counted(batch, student.logits)
        loss = logit_loss(student.logits, teacher.logits, temperature=self.temperature, mask=mask)
        if self.layers:
            hidden = self.hidden(student.hidden_states, teacher.hidden_states, mask)
            alpha = loss.detach() / hidden.detach().clamp(min=torch.finfo(torch.float32).tiny)
            loss = loss + alpha * hidden
        if self.cross_entropy:
            loss = loss + self.cross_entropy * label_loss(student.logits, batch, self.plan)
        if not loss.isfinite():
            raise ValueError(
                f"compress: the loss of distillation is {loss.item()}; the batch, the teacher or "
                "the student holds NaN or infinity"
            )
        return loss

    def hidden(self, student: Any, teacher: Any, mask: Tensor | None) -> Tensor:
        """The sum of distances of the layers' outputs.

        The last state that `transformers` gives is after the last norm, in both models.
        """
        total = torch.zeros((), device=student[0].device)
        for layer, up in zip(self.layers, self.up, strict=True):
            # State n + 1 is the output of layer n, and state 0 the embeddings.
            is_last = layer == self.plan.target.depth - 1
            source = -1 if layer == -1 else self.plan.layers[layer]
            theirs = teacher[-1] if is_last else teacher[source + 1]
            raised = student[layer + 1].float() @ up.T
            total = total + hidden_loss(raised, theirs, by=self.by, mask=mask)
        return total


def check_student(student: Any, plan: Plan) -> None:
    """Refuse a student that is not the plan's, as where it and the teacher changed places.

    Raises:
        ValueError: says both shapes.
    """
    inner = getattr(student, "_orig_mod", getattr(student, "module", student))
    config = getattr(inner, "config", None)
    if config is None:
        return
    kind = getattr(config, "model_type", None)
    found = shape_of(config, plan.known) if kind == plan.architecture else kind
    if found != plan.target:
        raise ValueError(
            f"compress: the student is of {found}, and the plan makes a {plan.architecture} of "
            f"{plan.target}; expected us.compress.apply(teacher, plan)"
        )


def check_optimizer(
    optimizer: torch.optim.Optimizer, teacher: nn.Module, student: nn.Module
) -> None:
    """Refuse a training that would leave the student as it is, or change the teacher.

    Raises:
        ValueError: the student has nothing to train; the optimizer has none of its parameters, or
            some of the teacher's.
    """
    own = {id(p) for p in student.parameters() if p.requires_grad}
    if not own:
        raise ValueError(
            "compress: no parameter of the student requires a gradient, as none of the large "
            "model did; call student.requires_grad_() first"
        )
    if not any(id(p) in own for group in optimizer.param_groups for p in group["params"]):
        raise ValueError(
            f"compress: the {type(optimizer).__name__} has no parameter of the student, which "
            "would stay as it is; build it of student.parameters()"
        )
    trained = {id(p) for group in optimizer.param_groups for p in group["params"]}
    if theirs := [name for name, p in teacher.named_parameters() if id(p) in trained]:
        raise ValueError(
            f"compress: the {type(optimizer).__name__} has {len(theirs)} parameters of the "
            f"teacher, the first is {theirs[0]!r}, and would train it too; build it of "
            "student.parameters(), and copy what the student shares with the teacher"
        )


def check_trained(student: nn.Module, step: int, optimizer: torch.optim.Optimizer) -> None:
    """Refuse a student that a step has made NaN.

    Raises:
        ValueError: names a parameter.
    """
    for name, parameter in student.named_parameters():
        if not bool(parameter.isfinite().all()):
            why = "; in FP16 AdamW's eps of 1e-8 is zero: train it in float32, and cast it then"
            raise ValueError(
                f"compress: step {step} of the {type(optimizer).__name__} made {name!r} of the "
                f"student NaN or infinite{why if parameter.dtype == torch.float16 else ''}; "
                "expected finite weights: lower the rate"
            )


def counted(batch: Mapping[str, Any], logits: Tensor) -> Tensor | None:
    """The positions that count: those that `attention_mask` has, if there are any."""
    mask = batch.get("attention_mask")
    return mask.bool() if mask is not None and mask.shape == logits.shape[:-1] else None


def label_loss(logits: Tensor, batch: Mapping[str, Any], plan: Plan) -> Tensor:
    """Cross-entropy with the labels, which causal models are shifted by one against.

    Raises:
        ValueError: the batch has no labels.
    """
    labels = batch.get("labels")
    if labels is None:
        raise ValueError("compress: cross_entropy needs labels; the batch has none")
    if plan.architecture in ("gpt2", "llama"):
        logits, labels = logits[:, :-1], labels[:, 1:]
    return F.cross_entropy(logits.flatten(0, -2).float(), labels.flatten())


def distil(
    distillation: Distillation,
    batches: Iterable[Mapping[str, Any]],
    optimizer: torch.optim.Optimizer,
    *,
    schedule: Any = None,
) -> list[float]:
    """Train a student for as many steps as there are batches; the losses of the steps.

    Args:
        optimizer: of the student's parameters, and of the distillation's.
        schedule: of torch, stepped after the optimizer; None is a constant rate.

    Raises:
        TypeError: a single batch. ValueError: no batch; a student that has nothing to train, or
            that the optimizer does not have, or a teacher that it has; a loss that is not finite,
            before the step is made; a step that makes the student NaN.
    """
    several(batches)
    check_optimizer(optimizer, *distillation.models)
    losses: list[float] = []
    for batch in batches:
        refuse_empty(batch, len(losses))
        optimizer.zero_grad()
        with torch.enable_grad():
            loss = distillation(batch)
            loss.backward()
        optimizer.step()
        check_trained(distillation.models[1], len(losses), optimizer)
        if schedule is not None:
            schedule.step()
        losses.append(loss.item())
    if not losses:
        raise ValueError("compress: there is no batch; expected at least one to train on")
    return losses
