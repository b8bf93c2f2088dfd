"""Models of images, sound and series of `transformers` that the zoo does not list."""

from typing import Any

import torch
from zoo_entry import (
    BATCH,
    CLASSES,
    Batch,
    Entry,
    captioned,
    generator,
    images,
    tones,
    transformers_model,
)
from zoo_senses import PATCHES
from zoo_text import DEPTH, HEADS, SHAPE


def classifier(stem: str, **settings: Any) -> Entry:
    """A model that `transformers` names `<stem>ForImageClassification`."""
    kind = f"{stem}ForImageClassification"
    build = transformers_model(kind, f"{stem}Config", num_labels=CLASSES, **settings)
    return Entry(name=stem, family="vision", build=build, batch=images)


def pictures(text: Any, step: int) -> Batch:
    """Images without labels: the model makes its own task of them."""
    return {"pixel_values": images(text, step)["pixel_values"]}


def series(text: Any, step: int) -> Batch:
    """Forecast 8 values of 3 noisy waves from the 32 before."""
    source = generator(step)
    phase = torch.rand(BATCH, 1, 3, generator=source)
    waves = torch.sin(6.28 * (torch.arange(40)[None, :, None] / 16 + phase))
    waves = waves + 0.1 * torch.randn(waves.shape, generator=source)
    return {"past_values": waves[:, :32], "future_values": waves[:, 32:]}


VISION = [
    classifier("ConvNextV2", hidden_sizes=[16, 32], depths=[1, 1], num_stages=2),
    classifier("Dinov2WithRegisters", num_register_tokens=2, mlp_ratio=2, **PATCHES),
    classifier("ViTMSN", **PATCHES),
    classifier("Data2VecVision", **PATCHES),
    classifier("RegNet", embedding_size=16, hidden_sizes=[16, 32], depths=[1, 1], groups_width=8),
    classifier("Bit", embedding_size=16, hidden_sizes=[16, 32], depths=[1, 1], num_groups=8),
    classifier("MobileNetV1", depth_multiplier=0.25, image_size=32),
    classifier(
        "PoolFormer",
        depths=[1, 1],
        hidden_sizes=[16, 32],
        num_encoder_blocks=2,
        patch_sizes=[7, 3],
        strides=[4, 2],
        padding=[2, 1],
    ),
    classifier(
        "FocalNet",
        image_size=32,
        embed_dim=16,
        hidden_sizes=[16, 32],
        depths=[1, 1],
        focal_levels=[1, 1],
        focal_windows=[3, 3],
    ),
    classifier(
        "PvtV2",
        image_size=32,
        num_encoder_blocks=2,
        depths=[1, 1],
        sr_ratios=[4, 2],
        hidden_sizes=[16, 32],
        patch_sizes=[7, 3],
        strides=[4, 2],
        num_attention_heads=[1, 2],
        mlp_ratios=[2, 2],
    ),
    Entry(
        name="ViTMAE",
        family="vision",
        build=transformers_model(
            "ViTMAEForPreTraining",
            "ViTMAEConfig",
            decoder_hidden_size=32,
            decoder_num_hidden_layers=1,
            decoder_num_attention_heads=2,
            decoder_intermediate_size=64,
            **PATCHES,
        ),
        batch=pictures,
    ),
]


def siglip() -> torch.nn.Module:
    """SigLIP with both towers small."""
    import transformers

    text = {**SHAPE, "max_position_embeddings": 8}
    config = transformers.SiglipConfig(text_config=text, vision_config=PATCHES)
    return WithLoss(transformers.SiglipModel(config).train())


class WithLoss(torch.nn.Module):
    """A contrastive model that is asked for its loss."""

    def __init__(self, model: torch.nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, **batch: Any) -> torch.Tensor:
        """The loss."""
        loss: torch.Tensor = self.model(**batch, return_loss=True).loss
        return loss


MULTIMODAL = [Entry(name="SigLIP", family="vision and text", build=siglip, batch=captioned)]


def sound(stem: str, **settings: Any) -> Entry:
    """A model that `transformers` names `<stem>ForSequenceClassification`."""
    waves = {
        "conv_dim": [32, 32],
        "conv_kernel": [10, 3],
        "conv_stride": [5, 2],
        "num_feat_extract_layers": 2,
        "num_conv_pos_embeddings": 16,
        "num_conv_pos_embedding_groups": 4,
        "classifier_proj_size": 32,
        "num_labels": CLASSES,
    }
    shape = {k: v for k, v in SHAPE.items() if k != "max_position_embeddings"}
    kind = f"{stem}ForSequenceClassification"
    build = transformers_model(kind, f"{stem}Config", **shape | waves | settings)
    return Entry(name=stem, family="audio", build=build, batch=tones)


AUDIO = [
    sound("WavLM", num_buckets=16, max_bucket_distance=32),
    sound("UniSpeechSat"),
    sound("SEW", squeeze_factor=2),
    sound("Data2VecAudio", conv_pos_kernel_size=3, num_conv_pos_embeddings=2),
    sound("Wav2Vec2Conformer", position_embeddings_type="rotary", conv_depthwise_kernel_size=5),
]

SERIES = [
    Entry(
        name="PatchTST",
        family="series",
        build=transformers_model(
            "PatchTSTForPrediction",
            "PatchTSTConfig",
            num_input_channels=3,
            context_length=32,
            prediction_length=8,
            patch_length=4,
            patch_stride=4,
            d_model=32,
            num_hidden_layers=DEPTH,
            num_attention_heads=HEADS,
            ffn_dim=64,
            loss="mse",
        ),
        batch=series,
    ),
    Entry(
        name="PatchTSMixer",
        family="series",
        build=transformers_model(
            "PatchTSMixerForPrediction",
            "PatchTSMixerConfig",
            num_input_channels=3,
            context_length=32,
            prediction_length=8,
            patch_length=4,
            patch_stride=4,
            d_model=32,
            num_layers=DEPTH,
        ),
        batch=series,
    ),
]

SENSES = [*VISION, *MULTIMODAL, *AUDIO, *SERIES]
