"""What the survey traces, and the default configs that need a word to be buildable.

A family is a transformers `model_type`. Causal language models are listed by transformers itself;
the others stand here, by what they read.
"""

from __future__ import annotations

from typing import Any

OTHERS: dict[str, str] = {
    "encoder": "bert roberta distilbert albert deberta deberta-v2 electra modernbert mpnet "
    "xlm-roberta longformer funnel squeezebert mobilebert layoutlm nystromformer fnet convbert "
    "ernie esm eurobert",
    "encoder-decoder": "t5 mt5 umt5 bart mbart pegasus marian longt5 led switch_transformers "
    "m2m_100 blenderbot prophetnet fsmt nllb-moe t5gemma plbart",
    "vision": "vit deit swin swinv2 convnext convnextv2 resnet dinov2 dinov3_vit beit segformer "
    "detr conditional_detr deformable_detr rt_detr yolos mask2former maskformer sam efficientnet "
    "mobilenet_v2 mobilevit regnet cvt pvt levit poolformer dpt vit_mae hiera videomae timesformer "
    "vivit focalnet glpn ijepa vjepa2 sam2 swin2sr",
    "audio": "wav2vec2 hubert wavlm whisper audio-spectrogram-transformer speech_to_text "
    "data2vec-audio unispeech sew encodec wav2vec2-bert wav2vec2-conformer moonshine parakeet_ctc "
    "dac mimi speecht5 univnet",
    "multimodal": "clip siglip siglip2 llava llava_next llava_onevision qwen2_vl qwen2_5_vl "
    "qwen3_vl paligemma gemma3 idefics3 smolvlm internvl mllama blip blip-2 mistral3 aya_vision "
    "qwen2_audio voxtral align vilt layoutlmv3 clipseg owlvit chinese_clip groupvit pix2struct "
    "kosmos-2 chameleon florence2",
    "time series": "patchtst patchtsmixer time_series_transformer informer autoformer timesfm",
}

# Fields of a default config that its own model class cannot be built or run with, and what real
# checkpoints of the family have in their place. Keys with a dot are of a sub-config.
FIELDS: dict[str, dict[str, Any]] = {
    "bamba": {"attn_layer_indices": [1]},
    "deepseek_v2": {
        "num_experts_per_tok": 6,
        "n_group": 1,
        "topk_group": 1,
        "moe_intermediate_size": 1408,
    },
    "hunyuan_v1_dense": {"head_dim": 128},
    "hunyuan_v1_moe": {"head_dim": 128},
    "ministral": {"head_dim": 128},
    "nemotron": {"num_key_value_heads": 8},
    "blip-2": {"image_token_index": 50265},
    "reformer": {"is_decoder": True, "axial_pos_embds": False, "attn_layers": ["local", "lsh"]},
    "xmod": {"default_language": "en_XX"},
    "granitemoehybrid": {"num_hidden_layers": 2, "layer_types": ["mamba", "attention"]},
    "dbrx": {"attn_config": {"rope_theta": 500000.0, "kv_n_heads": 8, "clip_qkv": 8.0}},
    "dots1": {"n_routed_experts": 128, "num_experts_per_tok": 6, "n_shared_experts": 2},
    "lfm2_moe": {
        "num_hidden_layers": 2,
        "num_dense_layers": 1,
        "layer_types": ["conv", "full_attention"],
    },
    "cohere_compass_text": {
        "rope_parameters": {"full_attention": {"rope_type": "default", "rope_theta": 10000.0}}
    },
    "gemma3": {"vision_config": {"image_size": 896, "patch_size": 14}},
    "idefics3": {"vision_config": {"image_size": 364, "patch_size": 14}},
    "smolvlm": {"vision_config": {"image_size": 512, "patch_size": 16}, "scale_factor": 4},
    "qwen2_vl": {"vision_config": {"hidden_size": 8192}},
    "qwen2_5_vl": {"vision_config": {"out_hidden_size": 8192}},
    "qwen3_vl": {"vision_config": {"out_hidden_size": 4096}},
    "voxtral": {"audio_token_id": 24},
    "esm": {"vocab_size": 33, "pad_token_id": 1, "mask_token_id": 32},
    "wav2vec2-bert": {"vocab_size": 32},
    "wav2vec2-conformer": {"vocab_size": 32},
    "time_series_transformer": {"prediction_length": 24},
    "informer": {"prediction_length": 24},
    "autoformer": {"prediction_length": 24},
    "detr": {"backbone_config": {"model_type": "resnet", "out_features": ["stage4"]}},
    "conditional_detr": {"backbone_config": {"model_type": "resnet", "out_features": ["stage4"]}},
    "deformable_detr": {
        "backbone_config": {"model_type": "resnet", "out_features": ["stage2", "stage3", "stage4"]}
    },
}

# Stacks that a shorter depth does not fit: outputs are taken from layers by index, or a shared
# block comes back after so many layers.
FULL_DEPTH = frozenset({"dpt", "hrm_text"})
DEPTHS = {"zamba": 8}
