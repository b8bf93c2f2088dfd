"""FOA: adapting with forward passes alone, so a frozen model in 8 or 6 bits can be adapted.

    for each batch:  s = mean_source(last) - history
                     candidates = those of CMA-ES, and the best prompts of the batch before
                     fitness = sum of entropies + lam * discrepancy * images / 64
                     answer = head(features + gamma * s) of the candidate of lowest fitness
                     history = 0.9 history + 0.1 mean over candidates of mean(last)

The discrepancy is the squared distance of mean and deviation of the class token after each block
from those of source images. The fitness is that of the logits without the shift.

Source: Niu et al. 2024, arXiv 2404.01650, and the authors' code.
"""

import math
import warnings
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from unitscale.adapt.argument import check_number, check_whole
from unitscale.adapt.parts import Parts, find
from unitscale.adapt.probe import Pass, probe_of
from unitscale.adapt.score import entropy
from unitscale.adapt.search import Search, cma_module, default_population
from unitscale.adapt.source import Images, Source, source_of
from unitscale.adapt.stream import check_images, check_kept, check_mode
from unitscale.units import coverage
from unitscale.units.forward import session_of

__all__ = ["FOA", "Step"]

TERMS = 12 * 768
"""Blocks times channels of ViT-Base, for which the published weight of the discrepancy is."""


@dataclass(frozen=True, kw_only=True)
class Step:
    """What one generation of the search came to.

    Args:
        number: counts them, from 1.
        images: in its batch.
        candidates: prompts tried, so forward passes.
        fitness: the lowest.
        entropy: of the answer without the shift, nats an image.
        discrepancy: of the candidate of lowest fitness, before its weight.
        moved: root mean square of the shift, in deviations of the source. Where it grows though the
            entropy stays low, the classes may have changed rather than the images: use gamma=0.
        coverage: share of the multiply-adds that the recipe rounds; None for a plain model.
    """

    number: int
    images: int
    candidates: int
    fitness: float
    entropy: float
    discrepancy: float
    moved: float
    coverage: float | None


@dataclass(frozen=True)
class _Judged:
    """A candidate's pass, and what it is worth."""

    fitness: float
    entropy: float
    discrepancy: float
    center: Tensor
    answer: Tensor


class FOA:
    """Adapts a frozen classifier to a stream of batches, without gradients: `logits = foa(images)`.

    Neither parameters nor buffers change, and the hooks are gone after each call. A scaled model
    keeps its recipe: prompts and shifted features go through its own graph. The memory is that of
    one forward pass, since candidates run one after another; the time is `population + 1` passes a
    batch. With `n_prompts=0` and `gamma=0` the answer is that of the plain model to the bit.

    Args:
        model: in evaluation mode; a `ViTForImageClassification`, or any with a class token by
            `parts`.
        source: images of the kind that the model was trained on, without labels (32 do), as one
            batch or several; or a `Source`, or its state.
        n_prompts: tokens put behind the class token; 0 shifts alone.
        lam: weight of the discrepancy.
        normalize_lam: multiply it by 9216 / (blocks * width) and by 1 / mean(variance of the
            source), so that it does not depend on the size of the model.
        gamma: how much of the shift is made; 0 for none.
        alpha: share of a batch in the history of the last class token.
        population: candidates a generation beside the best of the last; None is 4 + 3 ln n.
        sigma: step size at the start; "tokens" for the deviation of the source's tokens.
        cap: the most that a channel is shifted, in deviations of the source; None is no limit.
        interval: search once per this many images, kept until then, and answer with the best
            prompts so far; for streams of single images. None searches at each batch.
        seed: of the search.
        parts: where prompts go in and features come out, for models that are not known.

    Attributes:
        source: the statistics in use.
        last: the `Step` of the latest generation; None before it.
        history: moving average of the last class token, (width,); None before the first batch.
        prompts: the best of the latest generation, (1, n_prompts, width); None before it.

    Raises:
        TypeError, ValueError: a model without a class token or in training mode, bad source images,
            an argument out of range. ModuleNotFoundError: `cma` is not installed.
    """

    def __init__(
        self,
        model: nn.Module,
        source: Source | Mapping[str, Any] | Images,
        *,
        n_prompts: int = 3,
        lam: float = 0.4,
        normalize_lam: bool = False,
        gamma: float = 1.0,
        alpha: float = 0.1,
        population: int | None = None,
        sigma: float | Literal["tokens"] = 1.0,
        cap: float | None = None,
        interval: int | None = None,
        seed: int = 0,
        parts: Parts | None = None,
    ) -> None:
        self.found = find(model, parts, "FOA")
        check_mode(model, "FOA")
        check_whole("FOA", "n_prompts", n_prompts, 0)
        check_whole("FOA", "seed", seed, 0)
        if population is not None:
            check_whole("FOA", "population", population, 4)
        if interval is not None:
            check_whole("FOA", "interval", interval, 2)
        check_number("FOA", "lam", lam)
        check_number("FOA", "gamma", gamma)
        check_number("FOA", "alpha", alpha, 0, 1, above=True)
        if sigma != "tokens":
            check_number("FOA", "sigma", sigma, above=True)
        if cap is not None:
            check_number("FOA", "cap", cap, above=True)
        if n_prompts:
            cma_module()
        self.model, self.n_prompts, self.seed = model, n_prompts, seed
        self.gamma, self.alpha, self.cap, self.interval = gamma, alpha, cap, interval
        self.source = source_of(model, self.found, source, "FOA")
        self.lam = lam * self._lam_scale() if normalize_lam else lam
        self.sigma = self.source.spread if sigma == "tokens" else float(sigma)
        self.population = population or default_population(max(n_prompts, 1) * self.found.width)
        self.coverage = self._coverage()
        self.reset()

    def reset(self) -> None:
        """Forget the stream: a new search, no history; the source stays."""
        self.search = self._search() if self.n_prompts else None
        self.history: Tensor | None = None
        self.prompts: Tensor | None = None
        self.last: Step | None = None
        self.kept: list[Tensor] = []

    def __call__(self, images: Tensor) -> Tensor:
        """Logits of a batch, adapted on the way.

        Raises:
            TypeError, ValueError: a batch that is empty, of another size, or holds NaN; one image
                without `interval`; a model that gives NaN for every candidate. Nothing was changed.
        """
        check_mode(self.model, "FOA")
        check_images(images, "FOA", self.source.size)
        if self.interval is None and len(images) < 2:
            raise ValueError(
                "FOA: the batch is 1 image, whose features have no deviation; expected 2 or more; "
                "pass interval=64 to gather images."
            )
        with torch.no_grad():
            if self.interval is None:
                return self._generation(images)
            got = self._pass(images, self.prompts)
            if not math.isfinite(self._judge(got).fitness):
                # Kept, it would spoil the generation, and each that is tried again.
                raise ValueError(
                    f"FOA: {type(self.model).__name__} gives NaN or infinity for this batch; "
                    "expected finite logits; does it without adaptation? Leave these images out."
                )
            answer = got.shifted
            kept = [*self.kept, images.detach().clone()]
            if sum(map(len, kept)) >= self.interval:
                self._generation(torch.cat(kept))
                kept = []
            self.kept = kept
            return answer

    def _generation(self, images: Tensor) -> Tensor:
        """One generation of the search; the answer of its best candidate."""
        search = self.search
        random: Any = search.random.bit_generator.state if search else None
        candidates = [*search.ask(), self._best()] if search else [None]
        try:
            judged, best = self._judge_all(images, candidates)
        except BaseException:
            if search:
                search.random.bit_generator.state = random
            raise
        finite = [j for j in judged if math.isfinite(j.fitness)]
        if search:
            # One that overflows is as bad as the worst, for a search that goes by ranks.
            worst = max(j.fitness for j in finite)
            search.tell(
                [c for c in candidates if c is not None],
                [j.fitness if math.isfinite(j.fitness) else worst for j in judged],
            )
            self.prompts = self._tokens(candidates[judged.index(best)])
        moved = self._moved()
        center = torch.stack([j.center for j in finite]).mean(dim=0)
        self.history = (
            center
            if self.history is None
            else (1 - self.alpha) * self.history + self.alpha * center
        )
        self.last = Step(
            number=(self.last.number if self.last else 0) + 1,
            images=len(images),
            candidates=len(candidates),
            fitness=best.fitness,
            entropy=best.entropy,
            discrepancy=best.discrepancy,
            moved=moved,
            coverage=self._coverage_in_force(),
        )
        return best.answer

    def _judge_all(self, images: Tensor, candidates: list[Any]) -> tuple[list[_Judged], _Judged]:
        """All candidates, one after another; of the answers only the best so far is held."""
        judged: list[_Judged] = []
        best: _Judged | None = None
        for candidate in candidates:
            tokens = None if candidate is None else self._tokens(candidate)
            one = self._judge(self._pass(images, tokens))
            if math.isfinite(one.fitness) and (best is None or one.fitness < best.fitness):
                best = one
            judged.append(one)
        if best is None:
            raise ValueError(
                f"FOA: {type(self.model).__name__} gives NaN or infinity for each of "
                f"{len(candidates)} candidates; expected finite logits; does it without adaptation?"
            )
        return judged, best

    def _judge(self, got: Pass) -> _Judged:
        """The fitness of a candidate."""
        images = len(got.logits)
        deviation, mean = torch.std_mean(got.features, dim=1, correction=1 if images > 1 else 0)
        source_deviation = self.source.deviation.to(deviation)
        source_mean = self.source.mean.to(mean)
        discrepancy = float(
            (deviation - source_deviation).square().sum() + (mean - source_mean).square().sum()
        )
        nats = float(entropy(got.logits).sum())
        return _Judged(
            fitness=nats + self.lam * discrepancy * images / 64,
            entropy=nats / images,
            discrepancy=discrepancy,
            center=mean[-1],
            answer=got.shifted,
        )

    def _pass(self, images: Tensor, prompts: Tensor | None) -> Pass:
        shift = self._shift()
        if shift is None and prompts is not None and self.gamma:
            shift = torch.zeros(
                self.found.width
            )  # the same graph for the first batch as for others
        shift = None if shift is None else self.gamma * shift.to(images.device)
        return probe_of(self.model).run(
            self.model, self.found, images, prompts=prompts, shift=shift
        )

    def _shift(self) -> Tensor | None:
        """From the history to the source, of the last class token."""
        if self.history is None or not self.gamma:
            return None
        shift = self.source.mean[-1].to(self.history) - self.history
        if self.cap is not None:
            limit = self.cap * self.source.deviation[-1].to(shift)
            shift = shift.clamp(-limit, limit)
        return shift

    def _moved(self) -> float:
        shift = self._shift()
        if shift is None:
            return 0.0
        deviation = self.source.deviation[-1].to(shift).clamp_min(1e-12)
        return float((shift / deviation).square().mean().sqrt())

    def _best(self) -> Any:
        size = self.n_prompts * self.found.width
        if self.prompts is None:
            return np.zeros(size)
        return self.prompts.double().cpu().numpy().reshape(size)

    def _tokens(self, candidate: Any) -> Tensor:
        shape = (1, self.n_prompts, self.found.width)
        return torch.as_tensor(candidate, dtype=torch.float32).reshape(shape)

    def _search(self, **at: Any) -> Search:
        size = self.n_prompts * self.found.width
        given = {"sigma": self.sigma, **at}
        return Search(size, population=self.population, seed=self.seed, **given)

    def _lam_scale(self) -> float:
        variance = float(self.source.deviation.square().mean())
        return TERMS / self.source.mean.numel() / max(variance, 1e-12)

    def _coverage(self) -> float | None:
        return None if session_of(self.model) is None else coverage(self.model)

    def _coverage_in_force(self) -> float | None:
        """The coverage now; a warning if it fell from one generation to the next.

        The first sets the mark: prompts alone move it where attention is not covered.
        """
        now, before = self._coverage(), self.coverage
        lost = before is not None and now is None
        if lost or (self.last and before is not None and now is not None and now < before):
            warnings.warn(
                f"FOA: the recipe rounded {before:.1%} of the multiply-adds, and {now or 0:.1%} "
                "now; us.summary(model) says why.",
                stacklevel=4,
            )
        self.coverage = now
        return now

    def state_dict(self) -> dict[str, Any]:
        """Where the stream stands: tensors, numbers and text, for `torch.save`.

        Of the search it has mean, step size and random numbers; the covariance begins anew.
        """
        return {
            "source": self.source.state_dict(),
            "history": self.history,
            "prompts": self.prompts,
            "search": self.search.state_dict() if self.search else None,
            "last": asdict(self.last) if self.last else None,
            "kept": list(self.kept),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where a stream stood.

        Raises:
            ValueError: the state of another model, other prompts, or not one. Nothing was changed.
        """
        try:
            source = source_of(self.model, self.found, state["source"], "FOA")
            history, prompts, kept = state["history"], state["prompts"], list(state["kept"])
            last = None if state["last"] is None else Step(**state["last"])
            found = state["search"]
            mean = None if found is None else np.array(found["mean"], dtype=np.float64)
            search = None
            if mean is not None:
                if mean.shape != (self.n_prompts * self.found.width,):
                    raise ValueError(
                        f"FOA: the state has {len(mean)} numbers of prompts; expected "
                        f"{self.n_prompts} prompts of {self.found.width}; build FOA as it was then."
                    )
                sigma = float(found["sigma"])
                if not (np.isfinite(mean).all() and 0 < sigma < math.inf):
                    raise ValueError(
                        f"FOA: the search of the state has the step size {sigma} and a mean up to "
                        f"{abs(mean).max()}; expected finite numbers; is it a damaged state?"
                    )
                search = self._search(mean=mean, sigma=sigma)
                with suppress(ValueError):  # numpy's, which says nothing of a state
                    search.random.bit_generator.state = found["random"]
                if search.random.bit_generator.state != found["random"]:
                    raise TypeError("random numbers of another generator")
            kept = [check_images(one, "FOA", source.size) for one in kept]
        except (KeyError, TypeError, AttributeError, OverflowError) as error:
            raise ValueError(
                f"FOA: this is not a state of it ({error!r}); expected that of state_dict()."
            ) from None
        if (search is None) != (self.n_prompts == 0):
            raise ValueError("FOA: the state is of other n_prompts; build FOA as it was then.")
        width = self.found.width
        check_kept("history", history, (width,))
        check_kept("prompts", prompts, (1, self.n_prompts, width))
        self.source, self.history, self.prompts = source, history, prompts
        self.search, self.last, self.kept = search, last, kept
