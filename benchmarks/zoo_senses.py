"""Models of images, of images with text, and of sound in the zoo."""

from functools import partial
from typing import Any

from zoo_entry import (
    CLASSES,
    LENGTH,
    Entry,
    captioned,
    images,
    spectra,
    tones,
    transformers_model,
)
from zoo_text import DEPTH, HALVES, HEADS, HIDDEN, SHAPE, WIDTH


def classifier(name: str, stem: str, **settings: Any) -> Entry:
    """A model that `transformers` names `<stem>ForImageClassification`."""
    build = transformers_model(
        f"{stem}ForImageClassification", f"{stem}Config", num_labels=CLASSES, **settings
    )
    return Entry(name=name, family="vision", build=build, batch=images)


PATCHES = {
    "image_size": 32,
    "patch_size": 4,
    "hidden_size": WIDTH,
    "num_hidden_layers": DEPTH,
    "num_attention_heads": HEADS,
    "intermediate_size": HIDDEN,
}

WINDOWS = {
    "image_size": 32,
    "patch_size": 2,
    "embed_dim": 32,
    "num_heads": [2, 4],
    "window_size": 4,
}

VISION = [
    classifier("ViT", "ViT", **PATCHES),
    classifier("DeiT", "DeiT", **PATCHES),
    classifier("BEiT", "Beit", **PATCHES),
    classifier("DINOv2", "Dinov2", mlp_ratio=2, **PATCHES),
    classifier("Swin", "Swin", depths=[2, 2], **WINDOWS),
    classifier("Swin v2", "Swinv2", depths=[1, 1], **WINDOWS),
    classifier(
        "Hiera",
        "Hiera",
        image_size=[32, 32],
        embed_dim=32,
        depths=[1, 1],
        num_heads=[1, 2],
        patch_size=[3, 3],
        patch_stride=[2, 2],
        patch_padding=[1, 1],
        query_stride=[2, 2],
        masked_unit_size=[4, 4],
        num_query_pool=1,
    ),
    classifier(
        "ConvNeXt", "ConvNext", patch_size=2, hidden_sizes=[32, 64], depths=[1, 2], num_stages=2
    ),
    classifier(
        "ResNet",
        "ResNet",
        embedding_size=16,
        hidden_sizes=[16, 32, 64],
        depths=[1, 1, 1],
        layer_type="basic",
    ),
    classifier("MobileNetV2", "MobileNetV2", image_size=32, depth_multiplier=0.25),
    classifier(
        "SegFormer",
        "Segformer",
        num_encoder_blocks=2,
        depths=[1, 1],
        sr_ratios=[4, 2],
        hidden_sizes=[32, 64],
        patch_sizes=[3, 3],
        strides=[2, 2],
        num_attention_heads=[2, 4],
        mlp_ratios=[2, 2],
    ),
]

CLIP_TOWER = {k: v for k, v in SHAPE.items() if k != "max_position_embeddings"}


def clip() -> Any:
    """CLIP, asked for its contrastive loss."""
    import torch
    import transformers

    class Contrastive(transformers.CLIPModel):
        def forward(self, **batch: torch.Tensor) -> Any:
            return super().forward(**batch, return_loss=True)

    config = transformers.CLIPConfig(
        text_config=CLIP_TOWER | {"max_position_embeddings": 8},
        vision_config=PATCHES,
        projection_dim=WIDTH,
    )
    return Contrastive(config).train()


WAVES = {
    "num_labels": CLASSES,
    "conv_dim": [32, 32, 32],
    "conv_stride": [5, 4, 2],
    "conv_kernel": [10, 8, 4],
    "num_feat_extract_layers": 3,
    "num_conv_pos_embeddings": 16,
    "num_conv_pos_embedding_groups": 4,
    "classifier_proj_size": WIDTH,
} | SHAPE

SOUND = partial(Entry, family="audio")

SENSES = [
    *VISION,
    Entry(name="CLIP", family="vision and text", build=clip, batch=captioned),
    SOUND(
        name="Wav2Vec2",
        build=transformers_model(
            "Wav2Vec2ForSequenceClassification",
            "Wav2Vec2Config",
            mask_time_prob=0.0,
            layerdrop=0.0,
            **WAVES,
        ),
        batch=tones,
    ),
    SOUND(
        name="HuBERT",
        build=transformers_model("HubertForSequenceClassification", "HubertConfig", **WAVES),
        batch=tones,
    ),
    SOUND(
        name="Whisper",
        build=transformers_model(
            "WhisperForConditionalGeneration",
            "WhisperConfig",
            num_mel_bins=16,
            max_source_positions=LENGTH,
            max_target_positions=128,
            use_cache=False,
            begin_suppress_tokens=None,
            **{k: v for k, v in HALVES.items() if k not in ("max_position_embeddings",)},
        ),
        batch=spectra,
    ),
]
