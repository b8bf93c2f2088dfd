from dataclasses import replace

import pytest

from growth import tiny
from unitscale.anatomy.architecture import architecture_of, in_layer, starred
from unitscale.anatomy.shape import nearest, shape_of, sized


@pytest.mark.parametrize("name", tiny.MODELS)
def test_a_configuration_of_other_sizes_differs_in_nothing_else(name):
    model = tiny.MODELS[name]()
    known = architecture_of(model, "here")
    old = shape_of(model.config, known)
    assert sized(model.config, old, old, known).to_dict() == model.config.to_dict() | (
        {"head_dim": old.head_dim} if known.fields["head_dim"] else {}
    )
    other = replace(old, ffn=7, depth=1)
    found = sized(model.config, old, other, known)
    assert shape_of(found, known) == other
    before, after = model.config.to_dict(), found.to_dict()
    changed = {key for key in after if after[key] != before.get(key)}
    assert changed == {known.fields["ffn"], known.fields["depth"]}


def test_names_of_layers_have_a_star_and_get_it_back():
    star, layer = starred("model.layers.11.mlp.up_proj.weight", "model.layers")
    assert (star, layer) == ("model.layers.*.mlp.up_proj.weight", 11)
    assert in_layer(star, 11) == "model.layers.11.mlp.up_proj.weight"
    assert starred("model.norm.weight", "model.layers") == ("model.norm.weight", None)


def test_errors_say_who_asks():
    with pytest.raises(ValueError, match="adapt: object is no architecture that adapt knows"):
        architecture_of(object(), "adapt")


def test_the_nearest_sizes_lie_on_either_side():
    assert nearest(18, 4) == "16 or 20"
    assert nearest(3, 4) == "4"
    assert nearest(18, 4, 17) == "20"
    assert nearest(18, 4, 1, 19) == "16"
    assert nearest(18, 4, 17, 19) == ""
