import json
import re
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from growth import tiny
from unitscale.anatomy.folder import check_whole, described, into, loaded

WEIGHTS = "model.safetensors"


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    folder = tmp_path_factory.mktemp("saved") / "gpt2"
    tiny.gpt2().save_pretrained(folder)
    return folder


@pytest.fixture
def folder(saved, tmp_path):
    """A copy of one's own."""
    return shutil.copytree(saved, tmp_path / "gpt2")


def read(folder):
    return loaded(folder, described(folder, folder / "out", "growth", write=False)[0])


def with_config(folder, **changes):
    content = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**content, **changes}))


def with_weights(folder, change):
    weights = load_file(folder / WEIGHTS)
    change(weights)
    save_file(weights, folder / WEIGHTS, {"format": "pt"})


@pytest.mark.parametrize("name", tiny.MODELS)
def test_what_was_saved_is_whole(name, tmp_path):
    model = tiny.MODELS[name]()
    model.save_pretrained(tmp_path)
    for key, value in read(tmp_path).state_dict().items():
        assert torch.equal(value, model.state_dict()[key])


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (
            lambda it: with_weights(it, lambda w: w.pop("transformer.h.1.mlp.c_fc.weight")),
            "lacks 1 of the weights of its GPT2LMHeadModel, the first is "
            "transformer.h.1.mlp.c_fc.weight",
        ),
        (lambda it: with_config(it, n_layer=3), "lacks 12 of the weights"),
        (lambda it: with_config(it, n_layer=1), "weights of layers that its config.json does not"),
        (lambda it: (it / WEIGHTS).write_bytes(b""), "cannot be loaded: SafetensorError"),
        (
            lambda it: (it / WEIGHTS).write_bytes((it / WEIGHTS).read_bytes()[:-99]),
            "cannot be loaded: SafetensorError",
        ),
        (lambda it: with_config(it, n_layer=-1), "weights of layers that its config.json"),
        (lambda it: with_config(it, n_embd="a"), "cannot be loaded: "),
        (lambda it: with_config(it, architectures=3), "names the class None"),
        (lambda it: with_config(it, architectures=["GPT2Config"]), "names the class 'GPT2Config'"),
        (lambda it: with_config(it, architectures=["set_seed"]), "names the class 'set_seed'"),
    ],
)
def test_a_damaged_folder_is_one_line(folder, damage, message):
    """Transformers warns of missing weights, and goes on with random ones."""
    damage(folder)
    with pytest.raises(ValueError, match=re.escape(message)):
        read(folder)


def test_another_head_and_old_buffers_may_be_left_out(folder):
    def dropping(key, *own):
        check_whole(folder, "X", {"missing_keys": [], "unexpected_keys": [key]}, own)

    dropping("cls.seq_relationship.bias", "h.0.bias")
    dropping("h.0.attn.inv_freq", "h.0.bias")
    for own in (["h.0.bias"], []):
        with pytest.raises(ValueError, match=r"weights of layers .* as h\.7\.bias"):
            dropping("h.7.bias", *own)


def test_a_neighbor_is_not_taken_for_a_leftover(tmp_path):
    neighbor = tmp_path / "out.tmp"
    neighbor.mkdir()
    (neighbor / "notes.txt").write_text("mine")
    into(tmp_path / "out", lambda at: (at / "a").write_text("b"), "growth")
    assert (neighbor / "notes.txt").read_text() == "mine"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "out.tmp"]


def test_of_two_that_write_one_folder_the_first_is_whole(tmp_path):
    def both(at):
        (at / "a").write_text("second")
        into(tmp_path / "out", lambda other: (other / "a").write_text("first"), "growth")

    with pytest.raises(OSError, match="not empty"):
        into(tmp_path / "out", both, "growth")
    assert (tmp_path / "out" / "a").read_text() == "first"
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_a_link_is_followed(tmp_path):
    link = tmp_path / "link"
    link.symlink_to(tmp_path / "there")
    into(link, lambda at: (at / "a").write_text("b"), "growth")
    assert link.is_symlink()
    assert (tmp_path / "there" / "a").read_text() == "b"


def test_a_place_that_cannot_be_is_refused_before_the_work(saved, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match=r"growth: .* is to be inside of .*file, which is a file"):
        described(saved, tmp_path / "file" / "out", "growth")
