import pytest
import torch
from torch import nn
from transformers import (
    DeiTConfig,
    DeiTForImageClassification,
    SwinConfig,
    SwinForImageClassification,
)

import unitscale as us
from unitscale.adapt import Parts
from unitscale.adapt.parts import find


class Own(nn.Module):
    """A transformer of someone's, whose blocks return tuples."""

    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.mix = nn.Linear(8, 8)

        def forward(self, x):
            return x + self.mix(x).tanh(), None

    class Tokens(nn.Module):
        def __init__(self):
            super().__init__()
            self.cls_token = nn.Parameter(torch.zeros(1, 1, 8))
            self.patch = nn.Conv2d(1, 8, 4, 4)

        def forward(self, x):
            tokens = self.patch(x).flatten(2).transpose(1, 2)
            return torch.cat([self.cls_token.expand(len(x), -1, -1), tokens], 1)

    def __init__(self):
        super().__init__()
        self.stem = self.Tokens()
        self.stages = nn.ModuleList(self.Block() for _ in range(2))
        self.norm, self.fc = nn.LayerNorm(8), nn.Linear(8, 3)

    def forward(self, x):
        x = self.stem(x)
        for stage in self.stages:
            x, _ = stage(x)
        return self.fc(self.norm(x)[:, 0])


OWN = Parts(embeddings="stem", blocks="stages", head="fc")


def test_any_model_with_a_class_token_by_its_parts(images, source_images):
    model = Own().eval()
    foa = us.adapt.FOA(model, source_images, parts=OWN, population=4)
    assert foa(images).shape == (6, 3)
    assert foa.source.mean.shape == (2, 8)


def test_deit_is_known(images, source_images):
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 1}
    inputs = {"image_size": 8, "patch_size": 4, "num_channels": 1}
    model = DeiTForImageClassification(DeiTConfig(**sizes, **inputs, intermediate_size=16)).eval()
    foa = us.adapt.FOA(model, source_images, population=4)
    assert foa(images).shape == (6, 2)


def test_models_without_a_class_token_are_refused_by_name(source_images):
    config = SwinConfig(image_size=8, patch_size=2, embed_dim=8, depths=[1], num_heads=[1])
    model = SwinForImageClassification(config).eval()
    for adapter in (lambda: us.adapt.FOA(model, source_images), lambda: us.adapt.T3A(model)):
        with pytest.raises(ValueError, match="SwinForImageClassification has no class token"):
            adapter()


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        (None, "parts of Own are not known; pass parts="),
        (Parts(embeddings="stm", blocks="stages", head="fc"), "no module 'stm'; its children"),
        (Parts(embeddings="stem", blocks="stages", head="norm"), "'norm' of Own is a LayerNorm"),
        (Parts(embeddings="stem", blocks="norm", head="fc"), "'norm' of Own is a LayerNorm"),
    ],
)
def test_bad_parts(parts, message):
    with pytest.raises(ValueError, match=message):
        find(Own(), parts, "FOA")
    with pytest.raises(TypeError, match="got str"):
        find("model", parts, "FOA")
    with pytest.raises(TypeError, match="parts is 'stem'; expected"):
        find(Own(), "stem", "FOA")


def test_parts_that_do_not_do_what_they_should(source_images):
    """The head gets all tokens here, not the class token."""

    class Whole(Own):
        def forward(self, x):
            x = self.stem(x)
            for stage in self.stages:
                x, _ = stage(x)
            return self.fc(self.norm(x))[:, 0]

    with pytest.raises(ValueError, match=r"Whole: the parts given took out .*\(32, 5, 8\)"):
        us.adapt.FOA(Whole().eval(), source_images, parts=OWN, n_prompts=0)


def test_one_class_is_refused(vit):
    with pytest.raises(ValueError, match="'classifier' of ViTForImageClassification gives one"):
        us.adapt.T3A(vit(num_labels=1))
