"""Language models of `transformers` that the zoo does not list, from their config classes."""

from typing import Any

from zoo_entry import Entry, causal, continued, masked, transformers_model
from zoo_text import DEPTH, GROUPED, HALVES, HEADS, HIDDEN, MARKS, SHAPE, WIDTH

GPT = {"n_embd": WIDTH, "n_layer": DEPTH, "n_head": HEADS, "n_positions": 128} | MARKS
ROUTED = GROUPED | {"num_experts_per_tok": 2}


def decoder(stem: str, family: str = "decoder", *, kind: str = "", **settings: Any) -> Entry:
    """A causal model that `transformers` names `<stem>ForCausalLM`, or `kind`."""
    kind = kind or f"{stem}ForCausalLM"
    build = transformers_model(kind, f"{stem}Config", use_cache=False, **settings)
    return Entry(name=stem, family=family, build=build, batch=causal)


DECODERS = [
    decoder("CodeGen", n_inner=HIDDEN, rotary_dim=8, n_ctx=128, **GPT),
    decoder(
        "GPTNeo",
        attention_types=[[["global", "local"], 1]],
        window_size=32,
        hidden_size=WIDTH,
        num_layers=DEPTH,
        num_heads=HEADS,
        max_position_embeddings=128,
        **MARKS,
    ),
    decoder("GPTBigCode", n_inner=HIDDEN, **GPT),
    decoder("Persimmon", **SHAPE),
    decoder("Starcoder2", **GROUPED),
    decoder("Mpt", d_model=WIDTH, n_heads=HEADS, n_layers=DEPTH, max_seq_len=128, **MARKS),
    decoder("Olmo", **GROUPED),
    decoder("Nemotron", **GROUPED),
    decoder("Cohere2", head_dim=16, sliding_window=32, **GROUPED),
    decoder("Glm", head_dim=16, **GROUPED),
    decoder("Helium", head_dim=16, **GROUPED),
    decoder("SmolLM3", **GROUPED),
    decoder("DiffLlama", **GROUPED),
    decoder("BioGpt", **SHAPE),
    decoder(
        "XGLM",
        d_model=WIDTH,
        num_layers=DEPTH,
        attention_heads=HEADS,
        ffn_dim=HIDDEN,
        max_position_embeddings=128,
        **MARKS | {"pad_token_id": 1},  # the table of positions has one for padding
    ),
    decoder("CTRL", kind="CTRLLMHeadModel", dff=HIDDEN, **GPT),
    decoder("ImageGPT", kind="ImageGPTForCausalImageModeling", n_inner=HIDDEN, **GPT),
]

EXPERTS = [
    decoder("Qwen3Moe", "experts", num_experts=4, moe_intermediate_size=64, head_dim=16, **ROUTED),
    decoder("Phimoe", "experts", num_local_experts=4, **ROUTED),
    decoder("GraniteMoe", "experts", num_local_experts=4, **ROUTED),
    decoder(
        "DeepseekV2",
        "experts",
        n_routed_experts=4,
        num_experts_per_tok=2,
        n_shared_experts=1,
        moe_intermediate_size=64,
        first_k_dense_replace=1,
        q_lora_rank=32,
        kv_lora_rank=32,
        qk_nope_head_dim=16,
        qk_rope_head_dim=8,
        v_head_dim=16,
        **SHAPE,
    ),
    decoder("Ernie4_5_Moe", "experts", moe_num_experts=4, moe_k=2, **GROUPED),
    decoder("JetMoe", "experts", num_local_experts=4, kv_channels=16, **ROUTED),
]

STATE_SPACE = [
    decoder(
        "FalconMamba",
        "state space",
        hidden_size=WIDTH,
        num_hidden_layers=1,
        state_size=8,
        time_step_rank=4,
        **MARKS,
    ),
    decoder(
        "RecurrentGemma",
        "state space",
        lru_width=WIDTH,
        attention_window_size=32,
        block_types=["recurrent", "attention"],
        **GROUPED,
    ),
    decoder("Lfm2", "state space", full_attn_idxs=[1], **GROUPED),
]


def encoder(stem: str, *, kind: str = "", **settings: Any) -> Entry:
    """A masked language model that `transformers` names `<stem>ForMaskedLM`, or `kind`."""
    build = transformers_model(kind or f"{stem}ForMaskedLM", f"{stem}Config", **settings)
    return Entry(name=stem, family="encoder", build=build, batch=masked)


WIDE = SHAPE | {"max_position_embeddings": 400}

ENCODERS = [
    encoder("XLMRoberta", **WIDE),
    encoder("Deberta", relative_attention=True, pos_att_type=["p2c", "c2p"], **SHAPE),
    encoder("Longformer", attention_window=[16, 16], **WIDE),
    encoder("BigBird", attention_type="original_full", **SHAPE),
    encoder(
        "Funnel",
        block_sizes=[1, 1],
        num_decoder_layers=1,
        d_model=WIDTH,
        n_head=HEADS,
        d_head=16,
        d_inner=HIDDEN,
        vocab_size=MARKS["vocab_size"],
        pad_token_id=MARKS["pad_token_id"],
    ),
    encoder("SqueezeBert", embedding_size=WIDTH, **SHAPE),
    encoder("RoFormer", embedding_size=32, **SHAPE),
    encoder("MPNet", **SHAPE),
    encoder("ConvBert", embedding_size=32, head_ratio=2, conv_kernel_size=5, **SHAPE),
    encoder("FNet", **{k: v for k, v in SHAPE.items() if k != "num_attention_heads"}),
    encoder("IBert", **WIDE),
    encoder("MobileBert", embedding_size=32, intra_bottleneck_size=32, **SHAPE),
    encoder("MegatronBert", **SHAPE),
    encoder("Esm", mask_token_id=259, **WIDE),
    encoder(
        "Reformer",
        attn_layers=["local", "local"],
        axial_pos_embds=False,
        is_decoder=False,
        feed_forward_size=HIDDEN,
        attention_head_size=16,
        local_attn_chunk_length=16,
        hidden_dropout_prob=0.0,  # its dropout seeds torch from the clock
        local_attention_probs_dropout_prob=0.0,
        **SHAPE,
    ),
]


def halves(stem: str, kind: str = "", **settings: Any) -> Entry:
    """An encoder-decoder that `transformers` names `<stem>ForConditionalGeneration`, or `kind`."""
    kind = kind or f"{stem}ForConditionalGeneration"
    build = transformers_model(kind, f"{stem}Config", use_cache=False, **settings)
    return Entry(name=stem, family="encoder-decoder", build=build, batch=continued)


T5_SHAPE = {
    "d_model": WIDTH,
    "d_kv": 16,
    "d_ff": HIDDEN,
    "num_layers": DEPTH,
    "num_heads": HEADS,
    "decoder_start_token_id": MARKS["pad_token_id"],
} | MARKS

ENCODER_DECODERS = [
    halves("MBart", **HALVES),
    halves("M2M100", **HALVES | {"pad_token_id": 1}),
    halves("Blenderbot", **HALVES),
    halves("PLBart", **HALVES),
    halves(
        "LED",
        attention_window=16,
        max_encoder_position_embeddings=128,
        max_decoder_position_embeddings=128,
        **{k: v for k, v in HALVES.items() if k != "max_position_embeddings"},
    ),
    halves("UMT5", **T5_SHAPE),
    halves("LongT5", local_radius=15, **T5_SHAPE),
    halves(
        "SwitchTransformers",
        num_experts=4,
        expert_capacity=64,
        num_sparse_encoder_layers=1,
        num_sparse_decoder_layers=1,
        **T5_SHAPE,
    ),
]

TEXT = [*DECODERS, *EXPERTS, *STATE_SPACE, *ENCODERS, *ENCODER_DECODERS]
