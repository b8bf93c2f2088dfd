"""The converter, in a host that calls it as torchtitan 0.2.2 documents."""

import inspect
from collections.abc import Iterator

import pytest

import unitscale as us
from integrations.titan_host import Job, ModelConverter, ParallelDims, train
from marks import slow
from processes import group_of_one
from unitscale.integrations import TorchtitanConverter

pytestmark = pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")


@pytest.fixture(scope="module")
def one_rank(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with group_of_one(tmp_path_factory.mktemp("group")):
        yield


def converter(recipe: str = "fp8") -> ModelConverter:
    made = TorchtitanConverter.of(recipe, inner="eager")
    return made(Job(), ParallelDims())


def test_the_protocol_is_the_documented_one() -> None:
    for name in ("__init__", "convert", "post_optimizer_hook"):
        own, documented = (
            list(inspect.signature(getattr(kind, name)).parameters)
            for kind in (TorchtitanConverter, ModelConverter)
        )
        assert own == documented


@pytest.mark.parametrize(
    ("shard", "checkpoint"), [(False, False), slow(False, True), slow(True, False), (True, True)]
)
def test_the_recipe_holds_in_the_hosts_order(one_rank, shard, checkpoint) -> None:
    """Made on the meta device, checkpointed, sharded, then given memory and weights."""
    options = {"steps": 2, "shard": shard, "checkpoint": checkpoint}
    model, losses = train([converter()], **options)
    assert us.coverage(model) == 1.0
    assert losses != train([], **options)[1]
    plain = train([], **options)[1]
    assert train([converter("fp32-units")], **options)[1] == plain


def test_a_recipe_without_units_is_applied() -> None:
    model, _ = train([converter("mxfp8")], steps=1)
    assert us.coverage(model) == 1.0


def test_recipes_of_two_converters_are_their_own() -> None:
    first, second = TorchtitanConverter.of("fp8"), TorchtitanConverter.of("mus")
    assert (first.recipe.name, second.recipe.name) == ("fp8", "mus")
    assert TorchtitanConverter.recipe == "fp8"


def test_an_unknown_recipe_is_refused_when_it_is_registered() -> None:
    with pytest.raises(ValueError, match="unknown recipe 'float8'"):
        TorchtitanConverter.of("float8")


@pytest.mark.parametrize("components", [("model", "loss"), ("model",)])
def test_a_job_that_compiles_the_model_is_refused(components) -> None:
    with pytest.raises(ValueError, match=r"compile.components is \['model'"):
        TorchtitanConverter(Job(compile_model=True, components=components), ParallelDims())


def test_a_job_that_compiles_its_loss_alone_is_not() -> None:
    TorchtitanConverter(Job(compile_model=True, components=("loss",)), ParallelDims())
    TorchtitanConverter(Job(), ParallelDims(dp_replicate=2, dp_shard=4))


@pytest.mark.parametrize("name", ["tp", "cp", "pp", "ep"])
def test_other_parallelism_is_refused(name) -> None:
    with pytest.raises(ValueError, match=f"{name} of degree 2"):
        TorchtitanConverter(Job(), ParallelDims(**{name: 2}))


@pytest.mark.parametrize("other", ["quantize.linear.float8", "quantize.linear.mx", "float8"])
def test_a_second_converter_of_products_is_refused(other) -> None:
    with pytest.raises(ValueError, match=f"model.converters has .*{other}"):
        TorchtitanConverter(Job(converters=["unitscale", other]), ParallelDims())
