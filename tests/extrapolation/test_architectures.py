"""Architecture-blind: whatever transformers can build small, extrapolated, compared and loaded."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from transformers.models.auto import modeling_auto

from expo_ray.errors import PairError
from expo_ray.extrapolation import extrapolate
from tests.extrapolation.synthetic import closed_form, load, same_bits

ALPHA = 0.3
TEXT: dict[str, Any] = {
    "vocab_size": 48,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 8,
    "max_position_embeddings": 32,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
MANY_HEADS = {**TEXT, "num_key_value_heads": 2}
EXPERTS = {"moe_intermediate_size": 8, "num_experts": 4, "num_experts_per_tok": 2}
LATENT = {
    "q_lora_rank": 8,
    "kv_lora_rank": 8,
    "qk_nope_head_dim": 4,
    "qk_rope_head_dim": 4,
    "v_head_dim": 8,
    "n_routed_experts": 4,
    "n_shared_experts": 1,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 8,
    "first_k_dense_replace": 1,
    "n_group": 2,
    "topk_group": 1,
}
VISION: dict[str, Any] = {
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": 16,
    "patch_size": 8,
    "projection_dim": 16,
}
MAMBA = {"mamba_d_state": 4, "mamba_d_conv": 2, "mamba_expand": 2, "mamba_dt_rank": 4}
MROPE = {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [1, 1, 2]}
GPT = {"vocab_size": 48, "n_positions": 32, "n_embd": 16, "n_layer": 2, "n_head": 2}
T5 = {"vocab_size": 48, "d_model": 16, "d_kv": 8, "d_ff": 24, "num_layers": 2, "num_heads": 2}

# Whatever a config calls its sizes.
SMALL: dict[str, Any] = {
    **GPT,
    **T5,
    **MANY_HEADS,
    **EXPERTS,
    **LATENT,
    "num_local_experts": 4,
    "embedding_size": 16,
    "n_inner": 24,
    "ffn_dim": 24,
    "encoder_layers": 1,
    "decoder_layers": 1,
    "num_decoder_layers": 1,
    "encoder_attention_heads": 2,
    "decoder_attention_heads": 2,
    "encoder_ffn_dim": 24,
    "decoder_ffn_dim": 24,
    "decoder_start_token_id": 1,
    "state_size": 4,
    "attention_head_dim": 8,
}
# What transformers itself does not load as it saved it.
GAPS = {
    "MarianMTModel": "positions are not stored, but computed anew",
    "YoutuForCausalLM": "the row of the padding token is set anew",
}

# Model class -> settings of its config; "+name" marks a second case of one class.
CASES: dict[str, dict[str, Any]] = {
    "LlamaForCausalLM": TEXT,
    "LlamaForCausalLM+tied": {**TEXT, "tie_word_embeddings": True},
    "MistralForCausalLM": {**TEXT, "sliding_window": 16},
    "MixtralForCausalLM": {**TEXT, "num_local_experts": 4},
    "MixtralForCausalLM+fused": {**TEXT, "num_local_experts": 4},
    "Qwen2ForCausalLM": TEXT,
    "Qwen2MoeForCausalLM": {**TEXT, **EXPERTS, "shared_expert_intermediate_size": 8},
    "Qwen3ForCausalLM": TEXT,
    "Qwen3MoeForCausalLM": {**TEXT, **EXPERTS},
    "Qwen3MoeForCausalLM+fused": {**TEXT, **EXPERTS},
    "Qwen3NextForCausalLM": {
        **TEXT,
        **EXPERTS,
        "shared_expert_intermediate_size": 8,
        "linear_num_key_heads": 2,
        "linear_num_value_heads": 2,
        "linear_key_head_dim": 4,
        "linear_value_head_dim": 4,
        "layer_types": ["linear_attention", "full_attention"],
    },
    "GemmaForCausalLM": TEXT,
    "Gemma2ForCausalLM": TEXT,
    "Gemma3ForCausalLM": {**TEXT, "sliding_window": 16},
    "PhiForCausalLM": MANY_HEADS,
    "Phi3ForCausalLM": TEXT,
    "PhimoeForCausalLM": {**TEXT, "num_local_experts": 4},
    "GPT2LMHeadModel": GPT,
    "GPTNeoXForCausalLM": MANY_HEADS,
    "GPTNeoForCausalLM": {
        "vocab_size": 48,
        "hidden_size": 16,
        "num_layers": 2,
        "num_heads": 2,
        "attention_types": [[["global", "local"], 1]],
        "max_position_embeddings": 32,
    },
    "GPTJForCausalLM": {**GPT, "rotary_dim": 4},
    "GPTBigCodeForCausalLM": GPT,
    "T5ForConditionalGeneration": T5,
    "MT5ForConditionalGeneration": T5,
    "BartForConditionalGeneration": {
        "vocab_size": 48,
        "d_model": 16,
        "encoder_layers": 1,
        "decoder_layers": 1,
        "encoder_attention_heads": 2,
        "decoder_attention_heads": 2,
        "encoder_ffn_dim": 24,
        "decoder_ffn_dim": 24,
        "max_position_embeddings": 32,
    },
    "MambaForCausalLM": {"vocab_size": 48, "hidden_size": 16, "num_hidden_layers": 2},
    "Mamba2ForCausalLM": {
        "vocab_size": 48,
        "hidden_size": 16,
        "num_hidden_layers": 2,
        "num_heads": 4,
        "head_dim": 8,
        "state_size": 8,
        "n_groups": 1,
    },
    "JambaForCausalLM": {
        **TEXT,
        **MAMBA,
        "num_experts": 2,
        "attn_layer_period": 2,
        "attn_layer_offset": 1,
        "expert_layer_period": 2,
        "expert_layer_offset": 1,
    },
    "ZambaForCausalLM": {
        **TEXT,
        **MAMBA,
        "num_hidden_layers": 4,
        "layers_block_type": ["mamba", "hybrid", "mamba", "hybrid"],
        "head_dim": 16,
    },
    "Zamba2ForCausalLM": {
        **MANY_HEADS,
        **MAMBA,
        "num_hidden_layers": 3,
        "layers_block_type": ["mamba", "hybrid", "mamba"],
        "n_mamba_heads": 4,
        "mamba_headdim": 8,
        "mamba_ngroups": 1,
        "num_mem_blocks": 1,
        "adapter_rank": 4,
    },
    "BambaForCausalLM": {
        **TEXT,
        "mamba_n_heads": 4,
        "mamba_d_head": 8,
        "mamba_n_groups": 1,
        "mamba_d_state": 4,
        "attn_layer_indices": [1],
    },
    "FalconH1ForCausalLM": {
        **TEXT,
        "mamba_n_heads": 4,
        "mamba_d_head": 8,
        "mamba_n_groups": 1,
        "mamba_d_state": 4,
        "mamba_d_ssm": 32,
    },
    "RecurrentGemmaForCausalLM": {**TEXT, "lru_width": 16, "num_hidden_layers": 3},
    "FalconForCausalLM": {
        "vocab_size": 48,
        "hidden_size": 16,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
    },
    "FalconMambaForCausalLM": {"vocab_size": 48, "hidden_size": 16, "num_hidden_layers": 2},
    "OPTForCausalLM": {**MANY_HEADS, "ffn_dim": 24, "word_embed_proj_dim": 16},
    "BloomForCausalLM": {"vocab_size": 48, "hidden_size": 16, "n_layer": 2, "n_head": 2},
    "OlmoForCausalLM": TEXT,
    "Olmo2ForCausalLM": TEXT,
    "OlmoeForCausalLM": {**TEXT, "num_experts": 4, "num_experts_per_tok": 2},
    "CohereForCausalLM": TEXT,
    "Cohere2ForCausalLM": {**TEXT, "sliding_window": 16},
    "DeepseekV2ForCausalLM": {**MANY_HEADS, **LATENT},
    "DeepseekV3ForCausalLM": {**MANY_HEADS, **LATENT},
    "Glm4MoeForCausalLM": {**TEXT, **LATENT},
    "GptOssForCausalLM": {**TEXT, "num_local_experts": 4, "num_experts_per_tok": 2},
    "GraniteForCausalLM": TEXT,
    "GraniteMoeForCausalLM": {**TEXT, "num_local_experts": 4},
    "StableLmForCausalLM": TEXT,
    "Starcoder2ForCausalLM": TEXT,
    "SmolLM3ForCausalLM": TEXT,
    "NemotronForCausalLM": TEXT,
    "MptForCausalLM": {"vocab_size": 48, "d_model": 16, "n_heads": 2, "n_layers": 2},
    "CodeGenForCausalLM": {**GPT, "n_head": 4, "n_positions": 32, "rotary_dim": 4},
    "PersimmonForCausalLM": MANY_HEADS,
    "XGLMForCausalLM": {
        "vocab_size": 48,
        "d_model": 16,
        "ffn_dim": 24,
        "num_layers": 2,
        "attention_heads": 2,
    },
    "JetMoeForCausalLM": {**TEXT, "kv_channels": 8, "num_local_experts": 4},
    "Exaone4ForCausalLM": {**TEXT, "sliding_window": 16},
    "Ernie4_5_MoeForCausalLM": {
        **TEXT,
        "moe_num_experts": 4,
        "moe_k": 2,
        "moe_intermediate_size": 8,
    },
    "Dots1ForCausalLM": {**TEXT, **LATENT},
    "HunYuanMoEV1ForCausalLM": {**TEXT, "num_experts": 4, "moe_topk": 2},
    "MiniMaxForCausalLM": {
        **TEXT,
        "num_local_experts": 4,
        "block_size": 8,
        "layer_types": ["linear_attention", "full_attention"],
    },
    "Lfm2ForCausalLM": {**TEXT, "layer_types": ["conv", "full_attention"]},
    "Lfm2MoeForCausalLM": {
        **TEXT,
        **EXPERTS,
        "num_dense_layers": 1,
        "layer_types": ["conv", "full_attention"],
    },
    "GraniteMoeHybridForCausalLM": {
        **TEXT,
        "mamba_n_heads": 4,
        "mamba_d_head": 8,
        "mamba_n_groups": 1,
        "mamba_d_state": 4,
        "num_local_experts": 2,
        "num_experts_per_tok": 1,
        "shared_intermediate_size": 8,
        "layer_types": ["mamba", "attention"],
    },
    "BertForMaskedLM": TEXT,
    "BertForSequenceClassification": {**TEXT, "num_labels": 3},
    "RobertaForSequenceClassification": {**TEXT, "num_labels": 2},
    "ModernBertForMaskedLM": TEXT,
    "LlamaForSequenceClassification": {**TEXT, "num_labels": 1},
    "Qwen2ForSequenceClassification": {**TEXT, "num_labels": 1},
    "GemmaForSequenceClassification": {**TEXT, "num_labels": 1},
    "MistralForTokenClassification": {**TEXT, "num_labels": 1},
    "LlavaForConditionalGeneration": {
        "text_config": {"model_type": "llama", **TEXT},
        "vision_config": {"model_type": "clip_vision_model", **VISION},
    },
    "LlavaNextForConditionalGeneration": {
        "text_config": {"model_type": "mistral", **TEXT},
        "vision_config": {"model_type": "clip_vision_model", **VISION},
    },
    "PaliGemmaForConditionalGeneration": {
        "text_config": {"model_type": "gemma", **TEXT},
        "vision_config": {"model_type": "siglip_vision_model", **VISION},
    },
    "Gemma3ForConditionalGeneration": {
        "text_config": TEXT,
        "vision_config": {**VISION, "image_size": 32},
        "mm_tokens_per_image": 4,
    },
    "Idefics3ForConditionalGeneration": {
        "text_config": {"model_type": "llama", **TEXT},
        "vision_config": VISION,
    },
    "Qwen2VLForConditionalGeneration": {
        "text_config": {**TEXT, "rope_parameters": MROPE},
        "vision_config": {
            "depth": 2,
            "embed_dim": 16,
            "hidden_size": 16,
            "num_heads": 2,
            "patch_size": 4,
        },
    },
    "Qwen2_5_VLForConditionalGeneration": {
        "text_config": {**TEXT, "rope_parameters": MROPE},
        "vision_config": {
            "depth": 2,
            "hidden_size": 16,
            "out_hidden_size": 16,
            "num_heads": 2,
            "intermediate_size": 24,
            "patch_size": 4,
            "fullatt_block_indexes": [1],
        },
    },
    "MllamaForConditionalGeneration": {
        "text_config": {**TEXT, "cross_attention_layers": [1]},
        "vision_config": {
            "hidden_size": 16,
            "intermediate_size": 24,
            "num_hidden_layers": 1,
            "num_global_layers": 1,
            "attention_heads": 2,
            "image_size": 16,
            "patch_size": 8,
            "vision_output_dim": 32,
            "intermediate_layers_indices": [0],
            "supported_aspect_ratios": [[1, 1]],
            "max_num_tiles": 1,
        },
    },
    "InternVLForConditionalGeneration": {
        "text_config": {"model_type": "qwen2", **TEXT},
        "vision_config": {**VISION, "image_size": [16, 16], "patch_size": [8, 8]},
    },
    "Llama4ForConditionalGeneration": {
        "text_config": {**TEXT, "num_local_experts": 2, "intermediate_size_mlp": 24},
        "vision_config": {
            **VISION,
            "vision_output_dim": 16,
            "projector_input_dim": 16,
            "projector_output_dim": 16,
        },
    },
    "Qwen3VLMoeForConditionalGeneration": {
        "text_config": {**TEXT, **EXPERTS, "rope_parameters": MROPE},
        "vision_config": {
            "depth": 2,
            "hidden_size": 16,
            "out_hidden_size": 16,
            "num_heads": 2,
            "intermediate_size": 24,
            "patch_size": 4,
            "num_position_embeddings": 16,
            "deepstack_visual_indexes": [0],
        },
    },
    "Mistral3ForConditionalGeneration": {
        "text_config": {"model_type": "mistral", **TEXT},
        "vision_config": {"model_type": "pixtral", **VISION},
    },
    "AriaForConditionalGeneration": {
        "text_config": {"model_type": "aria_text", **TEXT, "moe_num_experts": 4, "moe_topk": 2},
        "vision_config": {"model_type": "idefics3_vision", **VISION},
        "projector_patch_to_query_dict": {4: 2},
    },
    "Blip2ForConditionalGeneration": {
        "text_config": {
            "model_type": "opt",
            **MANY_HEADS,
            "ffn_dim": 24,
            "word_embed_proj_dim": 16,
        },
        "vision_config": VISION,
        "qformer_config": {**MANY_HEADS, "encoder_hidden_size": 16},
    },
    "WhisperForConditionalGeneration": {
        "vocab_size": 48,
        "d_model": 16,
        "encoder_layers": 1,
        "decoder_layers": 1,
        "encoder_attention_heads": 2,
        "decoder_attention_heads": 2,
        "encoder_ffn_dim": 24,
        "decoder_ffn_dim": 24,
        "max_source_positions": 8,
        "max_target_positions": 16,
        "num_mel_bins": 8,
        "pad_token_id": 0,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "decoder_start_token_id": 1,
    },
}


@pytest.mark.parametrize("case", CASES)
def test_formula_and_loading(case: str, tmp_path: Path) -> None:
    model_class = getattr(transformers, case.partition("+")[0])
    # transformers 5 fuses the experts in memory; files may have them fused or one by one.
    layout = {"save_original_format": not case.endswith("+fused")}
    torch.manual_seed(0)
    model = model_class(model_class.config_class(**CASES[case])).to(torch.bfloat16)
    check(model, tmp_path, **layout)


def check(model: transformers.PreTrainedModel, tmp_path: Path, **layout: bool) -> None:
    """Extrapolate a model and noise, and compare file by file and in memory."""
    model_class = type(model)
    states = [{name: tensor.clone() for name, tensor in model.state_dict().items()}]
    model.save_pretrained(tmp_path / "initial", **layout)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_((torch.randn(parameter.shape) * 0.01).to(parameter.dtype))
    states.append(model.state_dict())
    model.save_pretrained(tmp_path / "aligned", max_shard_size="10KB", **layout)

    result = extrapolate(
        tmp_path / "initial", tmp_path / "aligned", tmp_path / "out", alpha=ALPHA, address="inline"
    )

    before, after, written = (load(tmp_path / name) for name in ("initial", "aligned", "out"))
    assert written.keys() == after.keys()
    for name, tensor in written.items():
        assert same_bits(tensor, closed_form(before[name], after[name], ALPHA)), name
    assert result.loading is not None
    assert (result.loading.status, result.loading.note) == ("loads", "")
    loaded, info = model_class.from_pretrained(
        tmp_path / "out", dtype=torch.bfloat16, output_loading_info=True
    )
    assert not any(info.values()), info
    # The names of the files and those in memory differ (fused experts, renamed parts): what
    # arrives in memory is the formula all the same.
    for name, tensor in loaded.state_dict().items():
        expected = closed_form(states[0][name], states[1][name], ALPHA)
        assert torch.equal(tensor.to(expected.dtype), expected), name


def other_classes() -> list[str]:
    """Classes of language models that have no case of their own."""
    mappings = (
        modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
        modeling_auto.MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES,
        modeling_auto.MODEL_FOR_MASKED_LM_MAPPING_NAMES,
        modeling_auto.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES,
    )
    names = {name for mapping in mappings for name in mapping.values() if isinstance(name, str)}
    return sorted(names - {case.partition("+")[0] for case in CASES})


def small_config(model_class: Any) -> transformers.PreTrainedConfig | None:
    """Return a config that builds a small model, None where general settings give none."""
    try:
        config = model_class.config_class(**SMALL)
        with torch.device("meta"):
            model = model_class(config)
    except Exception:  # noqa: BLE001 - whatever a model says to settings that it does not know
        return None
    return config if sum(p.numel() for p in model.parameters()) < 1_500_000 else None


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_all_that_general_settings_build_small(tmp_path: Path) -> None:
    failed, num_built = {}, 0
    for name in other_classes():
        model_class = getattr(transformers, name)
        config = small_config(model_class)
        if config is None or name in GAPS:
            continue
        num_built += 1
        torch.manual_seed(0)
        try:
            check(model_class(config).to(torch.bfloat16), tmp_path / name)
        except Exception as error:  # noqa: BLE001 - all that fail are told at the end
            failed[name] = repr(error)[:500]
        shutil.rmtree(tmp_path / name, ignore_errors=True)
    assert failed == {}
    assert num_built > 100


@pytest.mark.parametrize(
    ("case", "words"),
    [("MixtralForCausalLM", "fused"), ("LlavaForConditionalGeneration", "prefix")],
)
def test_two_ways_of_naming_one_model_are_told_from_two_models(
    case: str, words: str, tmp_path: Path
) -> None:
    model_class = getattr(transformers, case)
    model = model_class(model_class.config_class(**CASES[case]))
    for folder, original in (("initial", True), ("aligned", False)):
        model.save_pretrained(tmp_path / folder, save_original_format=original)
    with pytest.raises(PairError, match="missing from") as caught:
        extrapolate(
            tmp_path / "initial", tmp_path / "aligned", tmp_path / "out", alpha=1, address="inline"
        )
    assert words in str(caught.value.hint)
