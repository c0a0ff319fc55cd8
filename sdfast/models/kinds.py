"""What models are that sdfast does not take, in words: by `model_type`, by timm's architecture, by names of tensors.

Facts on model types: transformers 5.23 (configuration_auto.py and the models' configurations); on architectures: timm
1.0. What *is* taken stands in the tables of families; the sentences here list those.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Any, Literal

from sdfast.errors import UserError, shortened

Of = Literal["images", "texts", "both", "neither"]  # which of the models that are taken could stand in

_WHAT: Mapping[str, tuple[Of, str]] = {
    "convolution": ("images", "a convolutional network, which has no patches to mask"),
    "windows": ("images", "a hierarchy of stages or windows, whose tokens are not the patches of one plain ViT"),
    "position bias": ("images", "a ViT with relative positions in its attention, or none that are added to patches"),
    "distillation": ("images", "a ViT with a distillation token (one published as model_type vit has none)"),
    "further parts": ("images", "a ViT with further tokens or other blocks"),
    "any size": (
        "images",
        "SigLIP 2 for images of any size, whose positions are resized for each (that of one size is model_type siglip)",
    ),
    "causal": ("texts", "a language model with causal attention, where no word sees a later one, and no encoder"),
    "recurrent": ("texts", "a language model that is recurrent, and no encoder with attention"),
    "pixels by words": ("images", "a model that predicts pixels one after the other, and no encoder"),
    "two halves": ("texts", "an encoder with a decoder, trained to write one text from another"),
    "relative": ("texts", "an encoder with relative positions in its attention"),
    "rotary": ("texts", "an encoder with rotary positions in blocks whose LayerNorms stand behind"),
    "norms before": ("texts", "an encoder whose LayerNorms stand before the layers of its blocks, not behind"),
    "permuted": ("texts", "a model that predicts words in permuted order, with relative positions"),
    "languages": ("texts", "a model with embeddings or adapters of languages"),
    "sparse": ("texts", "an encoder whose words attend to a window and a few global ones, for long texts"),
    "shared": ("texts", "an encoder whose layers share their weights"),
    "untied": ("texts", "an encoder whose head has another matrix than its word embeddings"),
    "other blocks": (
        "texts",
        "an encoder with blocks of another make: bottlenecks, convolutions, or no full attention",
    ),
    "relatives": ("texts", "a relative of BERT or RoBERTa that was not tested"),
    "proteins": ("texts", "a model of proteins"),
    "pages": ("texts", "a model that reads layout, markup or entities beside the words"),
    "audio": ("neither", "a model of sound"),
    "series": ("neither", "a model of time series"),
    "video": ("images", "a model of videos, whose patches span several frames"),
    "pair": ("both", "a whole that takes images and texts, together or with a tower for each"),
    "images to words": ("both", "a model that reads images and writes text"),
    "boxes": ("images", "a whole that finds objects, segments, depth or points, with more than an encoder"),
    "letters": ("images", "a whole that reads letters in images"),
    "diffusion": ("neither", "a part of a diffusion model, which makes images out of noise"),
    "any backbone": ("images", "a wrapper around another library's model"),
}
_TYPES: Mapping[str, str] = {  # of `model_type`, by what they are
    "convolution": "bit convnext convnextv2 dinov3_convnext efficientnet hgnet_v2 mobilenet_v1 mobilenet_v2"
    " pp_lcnet regnet resnet rt_detr_resnet textnet",
    "windows": "cvt dinat donut-swin focalnet glpn hiera levit maskformer-swin mobilevit mobilevitv2 poolformer pvt"
    " pvt_v2 segformer swiftformer swin swin2sr swinv2",
    "position bias": "vitdet",
    "distillation": "deit",
    "any size": "siglip2 siglip2_vision_model",
    "further parts": "aimv2 aimv2_vision_model mlcd mlcd_vision_model pixio radio",
    "causal": "bitnet biogpt bloom codegen cohere cohere2 cpmant ctrl dbrx deepseek_v2 deepseek_v3 ernie4_5"
    " ernie4_5_moe exaone4 falcon gemma gemma2 gemma3_text gemma3n_text glm glm4 glm4_moe gpt-sw3 gpt2"
    " gpt_bigcode gpt_neo gpt_neox gpt_neox_japanese gpt_oss gptj granite granitemoe helium internlm3 jetmoe llama"
    " minicpm3 minimax ministral mistral mixtral modernbert-decoder mpt nemotron olmo olmo2 olmo3 olmoe openai-gpt opt"
    " persimmon phi phi3 phimoe qwen2 qwen2_moe qwen3 qwen3_moe seed_oss smollm3 stablelm starcoder2 trocr xglm",
    "recurrent": "falcon_mamba jamba mamba mamba2 recurrent_gemma rwkv xlstm zamba zamba2",
    "pixels by words": "imagegpt",
    "two halves": "bart bigbird_pegasus blenderbot blenderbot-small encoder-decoder fsmt led longt5 m2m_100 marian"
    " mbart mt5 mvp nllb-moe pegasus pegasus_x plbart prophetnet rag switch_transformers t5 t5gemma umt5",
    "relative": "deberta deberta-v2 mpnet",
    "rotary": "jina_embeddings_v3 nomic_bert roformer",
    "norms before": "megatron-bert roberta-prelayernorm xlm-roberta-xl",
    "permuted": "xlnet",
    "languages": "flaubert xlm xmod",
    "sparse": "big_bird longformer",
    "shared": "albert",
    "untied": "rembert",
    "other blocks": "canine convbert fnet funnel mobilebert mra nystromformer perceiver reformer squeezebert yoso",
    "relatives": "bert-generation data2vec-text dpr ernie gte ibert roc_bert splinter",
    "proteins": "esm esmc",
    "pages": "bros layoutlm layoutlmv2 layoutlmv3 layoutxlm lilt luke markuplm tapas udop",
    "audio": "audio-spectrogram-transformer bark clap clvp csm dac data2vec-audio dia encodec fastspeech2_conformer"
    " hubert mimi moonshine moshi musicgen musicgen_melody parakeet_ctc parakeet_encoder pop2piano seamless_m4t"
    " seamless_m4t_v2 sew sew-d speech-encoder-decoder speech_to_text speecht5 unispeech unispeech-sat univnet vits"
    " voxtral wav2vec2 wav2vec2-bert wav2vec2-conformer wavlm whisper",
    "series": "autoformer informer patchtsmixer patchtst time_series_transformer timesfm",
    "video": "timesformer tvp videomae videoprism vivit vjepa2 xclip",
    "pair": "align altclip blip bridgetower chinese_clip clipseg flava groupvit lxmert owlv2 owlvit"
    " vilt vision-text-dual-encoder visual_bert",
    "images to words": "aria aya_vision blip-2 chameleon deepseek_vl emu3 florence2 fuyu gemma3 gemma3n gemma4 git"
    " glm4v got_ocr2 idefics idefics2 idefics3 instructblip internvl janus kosmos-2 llama4 llava llava_next"
    " llava_next_video llava_onevision mistral3 mllama molmo2 ovis2 paligemma pix2struct pixtral qwen2_5_omni"
    " qwen2_5_vl qwen2_vl qwen3_vl smolvlm video_llava vipllava vision-encoder-decoder",
    "boxes": "conditional_detr d_fine dab-detr deformable_detr depth_anything depth_pro detr dpt edgetam eomt"
    " grounding-dino lw_detr mask2former maskformer mm-grounding-dino omdet-turbo oneformer prompt_depth_anything"
    " rf_detr rt_detr rt_detr_v2 sam sam2 sam3 sam_hq seggpt superglue superpoint lightglue table-transformer upernet"
    " vitmatte vitpose yolos zoedepth",
    "letters": "mgp-str nougat",
    "any backbone": "timm_backbone timm_wrapper",
}
_OF_TYPE: Mapping[str, str] = {kind: what for what, kinds in _TYPES.items() for kind in kinds.split()}
_ARCHITECTURES: Mapping[str, str] = {  # of timm, by words in the name; the first that fits
    "convolution": "caformer convformer convmixer convnext cs3 darknet densenet dla dpn edgenext efficientnet fasternet"
    " fbnet ghostnet hgnet hrnet inception iformer lcnet mixnet mnasnet mobilenet mobileone mobilevit nfnet poolformer"
    " rdnet regnet repvgg resnest resnet resnext rexnet selecsls senet starnet tinynet vgg vovnet xception",
    "windows": "coat davit dinat efficientformer efficientvit fastvit focalnet gcvit hiera levit maxvit maxxvit mvit"
    " nest nextvit pit pvt repvit shvit swiftformer swin twins visformer volo",
    "position bias": "beit eva samvit",
    "further parts": "aimv2 cait convit crossvit naflexvit tnt vitamin xcit",
}
_TENSORS = (  # in a file of weights alone: a name that gives it away, and what that is
    (r"(module\.)?(bert|roberta|distilbert|electra|deberta)\.|.*word_embeddings\.", "a language model's"),
    (r".*(wte|embed_tokens|tok_embeddings)\.weight$", "a language model's"),
    (r".*embeddings\.(cls_token|patch_embeddings|position_embeddings|class_embedding)", "a model of transformers"),
    (r"(module\.)?(conv1|layer1\.0\.conv1|stem\.|features\.0|downsample_layers\.0)\b", "a convolutional network's"),
    (r"(visual|image_encoder)\.|positional_embedding$", "a CLIP's or SAM's"),
    (r".*relative_position_bias_table$", "a Swin's or BEiT's, with relative positions in its attention"),
    (r"model\.diffusion_model\.|.*first_stage_model\.", "a diffusion model's"),
)


def refusal(path: Path, config: Mapping[str, Any], taken: Mapping[str, Iterable[str]]) -> UserError:
    """One sentence on a model that is none of those taken.

    Args:
        path: of its `config.json`.
        config: what that holds.
        taken: the model types, by `images` and `texts`; one of both where no other is asked for.
    """
    kind = config.get("model_type", config.get("_class_name"))
    named = f"{path} describes a {shortened(kind)} model"
    of, what = _told(kind if isinstance(kind, str) else None, config)
    known = any(kind in list(families) for families in taken.values())
    what = f", {what}" if what and not known else ""
    lists = [_listed(each, taken[each]) for each in ("images", "texts") if each in taken and of in (each, "both")]
    lists = lists or [_listed(each, families) for each, families in taken.items()]
    return UserError(f"{named}{what}: {', and '.join(lists)}.")


def _listed(of: str, families: Iterable[str]) -> str:
    *most, last = families
    more = " and timm's ViTs" if of == "images" else ""
    names = ", ".join([*most, last]) if more or not most else f"{', '.join(most)} and {last}"
    return f"of {of.removesuffix('s')} models sdfast takes {names}{more}"


def _told(kind: str | None, config: Mapping[str, Any]) -> tuple[Of, str]:
    """Which kind of data it is of, and what it is, as far as the table knows or the configuration shows."""
    if kind is not None and kind in _OF_TYPE:
        return _WHAT[_OF_TYPE[kind]]
    if "_diffusers_version" in config:
        return _WHAT["diffusion"]
    classes = config.get("architectures")
    classes = [str(each) for each in classes] if isinstance(classes, list) else []
    words, pixels = "vocab_size" in config, "image_size" in config or "patch_size" in config
    parts = isinstance(config.get("vision_config"), Mapping), isinstance(config.get("text_config"), Mapping)
    if any(parts):
        return (
            _WHAT["images to words"]
            if any("Generation" in each for each in classes)
            else ("both", "a whole of several models")
        )
    if config.get("is_encoder_decoder") is True and words:
        return _WHAT["two halves"]
    if any(each.endswith("ForCausalLM") for each in classes):
        return _WHAT["causal"]
    if words != pixels:
        return ("texts", "") if words else ("images", "")
    return "both" if words else "neither", ""


def timm_words(architecture: str) -> str:
    """What an architecture of timm is that is no plain ViT, with a comma before it; empty where nobody knows."""
    for what, words in _ARCHITECTURES.items():
        if any(word in architecture for word in words.split()):
            return f", {_WHAT[what][1]}"
    return ""


def tensor_words(names: Collection[str]) -> tuple[str, str] | None:
    """What the tensors of a file are, and the name that says so; None where none does."""
    for pattern, what in _TENSORS:
        if (found := next((name for name in sorted(names) if re.match(pattern, name)), None)) is not None:
            return what, found
    return None
