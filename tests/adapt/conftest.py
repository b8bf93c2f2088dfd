"""Small vision transformers, made in milliseconds."""

from collections.abc import Callable

import pytest
import torch
from transformers import ViTConfig, ViTForImageClassification


@pytest.fixture
def vit() -> Callable[..., ViTForImageClassification]:
    """Makes one: `vit(num_hidden_layers=1)`; images are (1, 8, 8), tokens 4 and a class token."""

    def make(**sizes: int) -> ViTForImageClassification:
        torch.manual_seed(0)
        given = {
            "hidden_size": 16,
            "num_hidden_layers": 2,
            "num_attention_heads": 1,
            "intermediate_size": 32,
            "image_size": 8,
            "patch_size": 4,
            "num_channels": 1,
            "num_labels": 5,
        }
        return ViTForImageClassification(ViTConfig(**{**given, **sizes})).eval()

    return make


@pytest.fixture
def images() -> torch.Tensor:
    """A batch from elsewhere: brighter and of more contrast than the source."""
    return 2 * torch.randn(6, 1, 8, 8, generator=torch.Generator().manual_seed(1)) + 1


@pytest.fixture
def source_images() -> torch.Tensor:
    return torch.randn(32, 1, 8, 8, generator=torch.Generator().manual_seed(2))
