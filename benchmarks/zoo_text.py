"""Language models of the zoo: decoders, mixtures of experts, state space, encoders, both."""

from functools import partial
from typing import Any

from zoo_entry import (
    BOS,
    EOS,
    MASK,
    PAD,
    VOCABULARY,
    Entry,
    causal,
    continued,
    detected,
    masked,
    short,
    transformers_model,
)

WIDTH, DEPTH, HEADS, HIDDEN = 64, 2, 4, 128

MARKS = {
    "vocab_size": VOCABULARY,
    "pad_token_id": PAD,
    "bos_token_id": BOS,
    "eos_token_id": EOS,
}
SHAPE = {
    "hidden_size": WIDTH,
    "num_hidden_layers": DEPTH,
    "num_attention_heads": HEADS,
    "intermediate_size": HIDDEN,
    "max_position_embeddings": 128,
} | MARKS
GROUPED = SHAPE | {"num_key_value_heads": 2}


def decoder(name: str, stem: str, family: str = "decoder", **settings: Any) -> Entry:
    """A causal model that `transformers` names `<stem>ForCausalLM`."""
    build = transformers_model(f"{stem}ForCausalLM", f"{stem}Config", use_cache=False, **settings)
    batch = short if stem in ("Mamba", "Rwkv", "Jamba") else causal
    return Entry(name=name, family=family, build=build, batch=batch)


DECODERS = [
    Entry(
        name="GPT-2",
        family="decoder",
        build=transformers_model(
            "GPT2LMHeadModel",
            "GPT2Config",
            n_embd=WIDTH,
            n_layer=DEPTH,
            n_head=HEADS,
            n_positions=128,
            use_cache=False,
            **MARKS,
        ),
        batch=causal,
    ),
    decoder("Llama", "Llama", **GROUPED),
    decoder("Qwen3", "Qwen3", head_dim=16, **GROUPED),
    decoder("Gemma", "Gemma", head_dim=16, **GROUPED),
    decoder("Gemma 2", "Gemma2", head_dim=16, sliding_window=32, **GROUPED),
    Entry(
        name="Gemma 3",
        family="decoder",
        build=transformers_model(
            "Gemma3ForCausalLM",
            "Gemma3TextConfig",
            head_dim=16,
            sliding_window=32,
            use_cache=False,
            layer_types=["sliding_attention", "full_attention"],
            **GROUPED,
        ),
        batch=causal,
    ),
    decoder("Mistral", "Mistral", sliding_window=32, **GROUPED),
    decoder("GPT-NeoX", "GPTNeoX", **SHAPE),
    decoder(
        "OPT",
        "OPT",
        ffn_dim=HIDDEN,
        word_embed_proj_dim=WIDTH,
        **{k: v for k, v in SHAPE.items() if k != "intermediate_size"},
    ),
    decoder("Phi", "Phi", **SHAPE),
    decoder("Phi-3", "Phi3", **GROUPED),
    decoder("Falcon", "Falcon", alibi=False, new_decoder_architecture=True, **GROUPED),
    decoder("BLOOM", "Bloom", hidden_size=WIDTH, n_layer=DEPTH, n_head=HEADS, **MARKS),
    decoder("StableLM", "StableLm", **GROUPED),
    decoder("OLMo 2", "Olmo2", **GROUPED),
    decoder("Granite", "Granite", **GROUPED),
    decoder("Cohere", "Cohere", **GROUPED),
    decoder(
        "GPT-J",
        "GPTJ",
        n_embd=WIDTH,
        n_layer=DEPTH,
        n_head=HEADS,
        n_inner=HIDDEN,
        n_positions=128,
        rotary_dim=8,
        **MARKS,
    ),
]

EXPERTS = [
    decoder("Mixtral", "Mixtral", "experts", num_local_experts=4, num_experts_per_tok=2, **GROUPED),
    decoder(
        "Qwen2-MoE",
        "Qwen2Moe",
        "experts",
        num_experts=4,
        num_experts_per_tok=2,
        moe_intermediate_size=64,
        shared_expert_intermediate_size=64,
        **GROUPED,
    ),
    decoder("OLMoE", "Olmoe", "experts", num_experts=4, num_experts_per_tok=2, **GROUPED),
    decoder(
        "DeepSeek-V3",
        "DeepseekV3",
        "experts",
        n_routed_experts=4,
        num_experts_per_tok=2,
        n_group=1,
        topk_group=1,
        moe_intermediate_size=64,
        first_k_dense_replace=1,
        q_lora_rank=32,
        kv_lora_rank=32,
        qk_nope_head_dim=16,
        qk_rope_head_dim=8,
        v_head_dim=16,
        **SHAPE,
    ),
    decoder(
        "GPT-OSS",
        "GptOss",
        "experts",
        num_local_experts=4,
        num_experts_per_tok=2,
        head_dim=16,
        sliding_window=32,
        **GROUPED,
    ),
    decoder(
        "Qwen3-Next",
        "Qwen3Next",
        "experts",
        num_experts=4,
        num_experts_per_tok=2,
        moe_intermediate_size=32,
        shared_expert_intermediate_size=32,
        head_dim=16,
        linear_num_key_heads=2,
        linear_num_value_heads=4,
        linear_key_head_dim=16,
        linear_value_head_dim=16,
        layer_types=["linear_attention", "full_attention"],
        **GROUPED,
    ),
]

STATE_SPACE = [
    decoder(
        "Mamba",
        "Mamba",
        "state space",
        hidden_size=WIDTH,
        num_hidden_layers=DEPTH,
        state_size=8,
        time_step_rank=4,
        **MARKS,
    ),
    decoder(
        "Mamba-2",
        "Mamba2",
        "state space",
        hidden_size=WIDTH,
        num_hidden_layers=DEPTH,
        state_size=16,
        num_heads=8,
        head_dim=16,
        n_groups=1,
        chunk_size=32,
        **MARKS,
    ),
    decoder(
        "RWKV",
        "Rwkv",
        "state space",
        hidden_size=WIDTH,
        num_hidden_layers=DEPTH,
        context_length=128,
        **MARKS,
    ),
    decoder(
        "Jamba",
        "Jamba",
        "state space",
        num_experts=2,
        mamba_d_state=8,
        mamba_dt_rank=4,
        use_mamba_kernels=False,
        attn_layer_period=2,
        attn_layer_offset=1,
        expert_layer_period=2,
        expert_layer_offset=1,
        **GROUPED,
    ),
]


def encoder(name: str, stem: str, **settings: Any) -> Entry:
    """A masked language model that `transformers` names `<stem>ForMaskedLM`."""
    build = transformers_model(f"{stem}ForMaskedLM", f"{stem}Config", **settings)
    return Entry(name=name, family="encoder", build=build, batch=masked)


ENCODERS = [
    encoder("BERT", "Bert", **SHAPE),
    encoder("RoBERTa", "Roberta", **SHAPE | {"max_position_embeddings": 400}),
    encoder(
        "DeBERTa-v2",
        "DebertaV2",
        relative_attention=True,
        pos_att_type=["p2c", "c2p"],
        position_buckets=32,
        **SHAPE,
    ),
    encoder("ALBERT", "Albert", embedding_size=32, **SHAPE),
    Entry(
        name="ELECTRA",
        family="encoder",
        build=transformers_model(
            "ElectraForPreTraining", "ElectraConfig", embedding_size=32, **SHAPE
        ),
        batch=detected,
    ),
    encoder(
        "DistilBERT",
        "DistilBert",
        dim=WIDTH,
        n_layers=DEPTH,
        n_heads=HEADS,
        hidden_dim=HIDDEN,
        max_position_embeddings=128,
        **MARKS,
    ),
    encoder(
        "ModernBERT",
        "ModernBert",
        local_attention=32,
        cls_token_id=BOS,
        sep_token_id=EOS,
        reference_compile=False,
        mask_token_id=MASK,
        **SHAPE,
    ),
]

HALVES = {
    "d_model": WIDTH,
    "encoder_layers": DEPTH,
    "decoder_layers": DEPTH,
    "encoder_attention_heads": HEADS,
    "decoder_attention_heads": HEADS,
    "encoder_ffn_dim": HIDDEN,
    "decoder_ffn_dim": HIDDEN,
    "max_position_embeddings": 128,
    "decoder_start_token_id": BOS,
    "forced_eos_token_id": EOS,
} | MARKS

both = partial(Entry, family="encoder-decoder", batch=continued)

ENCODER_DECODERS = [
    both(
        name="T5",
        build=transformers_model(
            "T5ForConditionalGeneration",
            "T5Config",
            d_model=WIDTH,
            d_kv=16,
            d_ff=HIDDEN,
            num_layers=DEPTH,
            num_heads=HEADS,
            decoder_start_token_id=PAD,
            use_cache=False,
            **MARKS,
        ),
    ),
    both(
        name="BART",
        build=transformers_model(
            "BartForConditionalGeneration", "BartConfig", use_cache=False, **HALVES
        ),
    ),
    both(
        name="Pegasus",
        build=transformers_model(
            "PegasusForConditionalGeneration", "PegasusConfig", use_cache=False, **HALVES
        ),
    ),
    both(
        name="Marian",
        build=transformers_model("MarianMTModel", "MarianConfig", use_cache=False, **HALVES),
    ),
]
