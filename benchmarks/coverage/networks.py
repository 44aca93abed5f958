"""The networks of the coverage table: what builds each, and what it is run on. One line a network, where one will do.

Weights are random. Images are small and sequences short, so that a network takes seconds. Networks of transformers are
built from small configurations, with the structure of the real ones.
"""
# ruff: noqa: E501

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import small
import torch
from network import Make, Network, ids, image, named
from torch import nn

# --------------------------------------------------------------------------------------------------------------- timm

# name | side of the example | side of the further one (- where the network has one size) | options
TIMM = """
resnet18                          64 96
resnet26t                         64 96
seresnext26d_32x4d                64 96
ecaresnet26t                      64 96
resnetblur50                      64 96
skresnet18                        64 96
resnest14d                        64 96
res2net50_14w_8s                  64 96
resnetv2_18                       64 96
resnetv2_50x1_bit                 64 96
legacy_seresnet18                 64 96
tresnet_m                         64 96
densenet121                       64 96
rdnet_tiny                        64 96
dla46_c                           64 96
dpn48b                            64 96
vgg11_bn                          64 96 mlp_ratio=0.125
ese_vovnet19b_dw                  64 96
xception41                        64 96
legacy_xception                   96 128
inception_v3                      96 128
inception_v4                      96 128
inception_resnet_v2               96 128
nasnetalarge                      64 96
hrnet_w18_small                   64 96
selecsls42b                       64 96
cspresnet50                       64 96
darknet17                         64 96
cspnext_tiny                      64 96
hgnetv2_b0                        64 96
lcnetv2_base                      64 96
ghostnet_050                      64 96
ghostnetv2_100                    64 96
repghostnet_050                   64 96
mobilenetv2_050                   64 96
mobilenetv3_small_050             64 96
mobilenetv4_conv_small_035        64 96
mobilenetv4_hybrid_medium         64 96
lcnet_050                         64 96
fbnetv3_b                         64 96
hardcorenas_a                     64 96
mnasnet_small                     64 96
mixnet_s                          64 96
tinynet_e                         64 96
efficientnet_lite0                64 96
efficientnetv2_rw_t               64 96
rexnet_100                        64 96
regnetx_002                       64 96
regnety_002                       64 96
regnetz_005                       64 96
repvgg_a0                         64 96
mobileone_s0                      64 96
gernet_s                          64 96
nf_resnet26                       64 96
eca_nfnet_l0                      64 96
convmixer_768_32                  63 84
convnext_atto                     64 96
convnextv2_atto                   64 96
inception_next_atto               64 96
mambaout_femto                    64 96
starnet_s050                      64 96
fasternet_t0                      64 96
shvit_s1                          96 128
repvit_m0_9                       64 96
swiftformer_xs                    64 96
edgenext_xx_small                 64 96
efficientvit_b0                   64 96
efficientvit_m0                   64 - img_size=64
efficientformer_l1                224 -
efficientformerv2_s0              64 - img_size=64
efficientvim_m1                   64 96
mobilevit_xxs                     64 96
mobilevitv2_050                   64 96
fastvit_t8                        64 96
nextvit_small                     64 96
cpubone_nano                      64 96
lowformer_b0                      64 96
iformer_t                         64 96
csatv2                            128 -
halonet26t                        256 -
botnet26t_256                     64 - img_size=64
lambda_resnet26t                  64 -
poolformer_s12                    64 96
poolformerv2_s12                  64 96
convformer_s18                    64 96
caformer_s18                      64 96
coatnet_nano_rw_224               64 - img_size=64
maxvit_rmlp_pico_rw_256           64 - img_size=64
focalnet_tiny_srf                 64 96
davit_tiny                        64 96
gcvit_xxtiny                      64 - img_size=64
hiera_tiny_224                    64 - img_size=64
mvitv2_tiny                       64 - img_size=64
levit_128s                        64 - img_size=64
xcit_nano_12_p16_224              64 96
pit_ti_224                        64 - img_size=64
visformer_tiny                    64 - img_size=64
volo_d1_224                       64 - img_size=64
tnt_s_patch16_224                 64 - img_size=64
twins_svt_small                   64 - img_size=64
twins_pcpvt_small                 64 - img_size=64
pvt_v2_b0                         64 96
nest_tiny                         64 - img_size=64
crossvit_9_240                    240 -
convit_tiny                       64 - img_size=64
cait_xxs24_224                    64 - img_size=64
coat_lite_tiny                    64 - img_size=64
deit_tiny_patch16_224             64 - img_size=64
deit3_small_patch16_224           64 - img_size=64&depth=6
beit_base_patch16_224             64 - img_size=64&embed_dim=192&depth=4&num_heads=3
eva02_tiny_patch14_224            70 - img_size=70
vit_tiny_patch16_224              64 96 img_size=64&dynamic_img_size=True
vit_relpos_small_patch16_224      64 - img_size=64&depth=6
vit_small_r26_s32_224             64 - img_size=64&depth=4
flexivit_small                    64 - img_size=64&depth=6
samvit_base_patch16               64 - img_size=64&embed_dim=192&depth=4&num_heads=4&global_attn_indexes=(1,3)
vitamin_small_224                 64 - img_size=64
mixer_s32_224                     64 - img_size=64
resmlp_12_224                     64 - img_size=64
gmlp_ti16_224                     64 - img_size=64
gmixer_12_224                     64 - img_size=64
sequencer2d_s                     64 96
swin_tiny_patch4_window7_224      64 - img_size=64&window_size=4
swin_s3_tiny_224                  112 - img_size=112
swinv2_tiny_window8_256           64 - img_size=64
swinv2_cr_tiny_ns_224             64 - img_size=64
tiny_vit_5m_224                   64 96
naflexvit_base_patch16_gap        64 96 embed_dim=192&depth=4&num_heads=3
"""


def timm_networks() -> Iterator[Network]:
    from topiarist import load_model

    for line in TIMM.strip().splitlines():
        name, side, other, *options = line.split()
        spec = f"timm:{name}" + (f"?{options[0]}" if options else "")
        further = None if other == "-" else image(int(other))
        yield Network(f"timm:{name}", partial(load_model, spec), image(int(side)), further)


# -------------------------------------------------------------------------------------------------------- torchvision

TORCHVISION = """
alexnet                                     64 96
resnet18                                    64 96
resnext50_32x4d                             64 96
densenet121                                 64 96
googlenet                                   64 96 init_weights=False&aux_logits=False
inception_v3                                96 128 init_weights=False&aux_logits=False
mobilenet_v2                                64 96
mobilenet_v3_small                          64 96
efficientnet_b0                             64 96
efficientnet_v2_s                           64 96
shufflenet_v2_x0_5                          64 96
squeezenet1_1                               64 96
mnasnet0_5                                  64 96
regnet_x_400mf                              64 96
regnet_y_400mf                              64 96
convnext_tiny                               64 96
swin_t                                      64 96
swin_v2_t                                   64 96
segmentation.fcn_resnet50                   32 48
segmentation.deeplabv3_resnet50             32 48
segmentation.deeplabv3_mobilenet_v3_large   64 96
segmentation.lraspp_mobilenet_v3_large      64 96
detection.backbone_utils.resnet_fpn_backbone  64 96 backbone_name="resnet18"
"""

# Detectors take a list of images; they resize them to the smaller side. Few regions are enough on small images.
REGIONS = {f"rpn_{when}_nms_top_n_{mode}": n for when, n in (("pre", 60), ("post", 30)) for mode in ("train", "test")}
TWO_STAGES = {"min_size": 64, "max_size": 96, "box_detections_per_img": 3, **REGIONS}
DETECTORS = {
    "retinanet_resnet50_fpn": {"min_size": 64, "max_size": 96},
    "fcos_resnet50_fpn": {"min_size": 64, "max_size": 96},
    "fasterrcnn_mobilenet_v3_large_320_fpn": TWO_STAGES,
    "fasterrcnn_resnet50_fpn": TWO_STAGES,
    "maskrcnn_resnet50_fpn": TWO_STAGES,
    "keypointrcnn_resnet50_fpn": TWO_STAGES,
    "ssdlite320_mobilenet_v3_large": {},
}


def torchvision_networks() -> Iterator[Network]:
    from topiarist import load_model

    for line in TORCHVISION.strip().splitlines():
        name, side, other, *options = line.split()
        spec = f"torchvision:{name}" + (f"?{options[0]}" if options else "")
        yield Network(f"torchvision:{name}", partial(load_model, spec), image(int(side)), image(int(other)))
    yield Network("torchvision:vit, 4 layers", _vit, image(64))
    yield Network("torchvision:maxvit, small", _maxvit, image(64))
    for name, options in DETECTORS.items():
        build = partial(_detector, name, **options)
        yield Network(f"torchvision:detection.{name}", build, _pictures((64, 80)), _pictures((64, 80), (72, 60)))
    for name in ("r3d_18", "mc3_18", "r2plus1d_18"):
        yield Network(
            f"torchvision:video.{name}",
            partial(load_model, f"torchvision:video.{name}"),
            image(4, 32, 32),
            image(8, 48, 48),
        )
    yield Network("torchvision:video.mvit, small", _mvit, image(4, 32, 32))
    yield Network("torchvision:video.swin3d, small", _swin3d, image(4, 56, 56), image(8, 64, 48))
    yield Network(
        "torchvision:optical_flow.raft_small", _raft, _two_images(128, 128), _two_images(136, 128), single=True
    )


def _two_images(*sides: int) -> Make:
    return lambda: {
        "image1": torch.randn(1, 3, *sides),
        "image2": torch.randn(1, 3, *sides),
        "num_flow_updates": 2,
    }


def _pictures(*sides: tuple[int, int]) -> Make:
    return lambda: ([torch.rand(3, *each) for each in sides],)


def _detector(name: str, **options: Any) -> nn.Module:
    from topiarist import load_model

    return load_model(f"torchvision:detection.{name}", num_classes=5, **options)


def _vit() -> nn.Module:
    from torchvision.models import VisionTransformer

    return VisionTransformer(64, 16, num_layers=4, num_heads=3, hidden_dim=192, mlp_dim=768)


def _maxvit() -> nn.Module:
    from torchvision.models.maxvit import MaxVit

    return MaxVit((64, 64), 32, 2, [32, 64, 96, 128], [1, 1, 2, 1], head_dim=32, stochastic_depth_prob=0.2)


def _mvit() -> nn.Module:
    from torchvision.models.video.mvit import MSBlockConfig, MViT

    def block(heads: int, inputs: int, outputs: int, q: list[int], kv: list[int]) -> MSBlockConfig:
        return MSBlockConfig(heads, inputs, outputs, [3, 3, 3], [3, 3, 3], q, kv)

    ones = [1, 1, 1]
    blocks = [
        block(1, 48, 48, ones, [1, 4, 4]),
        block(2, 48, 96, [1, 2, 2], [1, 2, 2]),
        block(2, 96, 96, ones, [1, 2, 2]),
    ]
    return MViT(
        (32, 32), 4, blocks, residual_pool=True, residual_with_cls_embed=False, rel_pos_embed=True, proj_after_attn=True
    )


def _swin3d() -> nn.Module:
    from torchvision.models.video.swin_transformer import SwinTransformer3d

    return SwinTransformer3d([2, 4, 4], 24, [2, 2, 2], [2, 4, 8], window_size=[8, 7, 7], num_classes=10)


def _raft() -> nn.Module:
    from topiarist import load_model

    return load_model("torchvision:optical_flow.raft_small")


# ------------------------------------------------------------------------------------------------------- transformers

TOKENS = {"vocab_size": 100, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
BASE = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 8}
TEXT = {**TOKENS, **BASE, "max_position_embeddings": 64}
GROUPED = {**TEXT, "num_key_value_heads": 2, "use_cache": False}
"""Grouped queries: four heads of queries read one of keys and values."""
EXPERTS = {**GROUPED, "moe_intermediate_size": 32, "num_experts_per_tok": 2}
VISION = {"hidden_size": 48, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4}
VIT = {**VISION, "image_size": 32, "patch_size": 8}
TOWER = {**TOKENS, **VISION, "max_position_embeddings": 32}
PYRAMID = {"num_channels": 3, "hidden_sizes": [16, 32, 48, 64], "depths": [1, 1, 1, 1]}
SWIN = {"image_size": 64, "embed_dim": 24, "depths": [1, 1, 2], "num_heads": [2, 4, 8], "window_size": 4}
DETR = {"d_model": 32, "encoder_layers": 1, "decoder_layers": 2, "encoder_ffn_dim": 48, "decoder_ffn_dim": 48,
        "encoder_attention_heads": 4, "decoder_attention_heads": 4, "num_queries": 6}  # fmt: skip
SPEECH = {"vocab_size": 32, **VISION, "conv_dim": (16, 16), "conv_stride": (5, 2), "conv_kernel": (10, 3),
          "num_feat_extract_layers": 2, "num_conv_pos_embeddings": 16, "num_conv_pos_embedding_groups": 4}  # fmt: skip
SEQ2SEQ = {**TOKENS, "d_model": 64, "encoder_layers": 2, "decoder_layers": 2, "encoder_attention_heads": 4,
           "decoder_attention_heads": 4, "encoder_ffn_dim": 96, "decoder_ffn_dim": 96, "use_cache": False,
           "decoder_start_token_id": 1, "max_position_embeddings": 64}  # fmt: skip
T5 = {"vocab_size": 100, "d_model": 64, "d_kv": 8, "d_ff": 96, "num_layers": 2, "num_heads": 8, "use_cache": False,
      "decoder_start_token_id": 0}  # fmt: skip

PAIR, LONGER_PAIR = (
    named(input_ids=(1, 12), decoder_input_ids=(1, 7)),
    named(input_ids=(2, 9), decoder_input_ids=(2, 5)),
)
PIXELS, BIG = named(pixel_values=(1, 3, 32, 32)), named(pixel_values=(1, 3, 64, 64))
BIGGER = named(pixel_values=(1, 3, 96, 96))
SOUND, LONGER_SOUND = named(input_values=(1, 2000)), named(input_values=(1, 2600))
TEXT_IMAGE = named(input_ids=(1, 12), pixel_values=(1, 3, 32, 32))

# name → class of the model, its configuration, inputs, further inputs
TRANSFORMERS: dict[str, tuple[str, dict[str, Any], Make, Make | None]] = {
    # decoders
    "Llama": ("LlamaForCausalLM", GROUPED, ids(), ids(9, 2)),
    "Qwen2": ("Qwen2ForCausalLM", GROUPED, ids(), ids(9, 2)),
    "Qwen3": ("Qwen3ForCausalLM", {**GROUPED, "head_dim": 8}, ids(), ids(9, 2)),
    "Phi3": ("Phi3ForCausalLM", GROUPED, ids(), ids(9, 2)),
    "Mistral": ("MistralForCausalLM", GROUPED, ids(), ids(9, 2)),
    "Gemma": ("GemmaForCausalLM", {**GROUPED, "head_dim": 8}, ids(), ids(9, 2)),
    "Gemma2": ("Gemma2ForCausalLM", {**GROUPED, "head_dim": 8}, ids(), ids(9, 2)),
    "Olmo2": ("Olmo2ForCausalLM", GROUPED, ids(), ids(9, 2)),
    "Cohere": ("CohereForCausalLM", GROUPED, ids(), ids(9, 2)),
    "StableLm": ("StableLmForCausalLM", GROUPED, ids(), ids(9, 2)),
    "Starcoder2": ("Starcoder2ForCausalLM", GROUPED, ids(), ids(9, 2)),
    "Granite": ("GraniteForCausalLM", GROUPED, ids(), ids(9, 2)),
    "Falcon": ("FalconForCausalLM", {**TEXT, "num_kv_heads": 2, "use_cache": False}, ids(), ids(9, 2)),
    "GPT-2": ("GPT2LMHeadModel", {**TOKENS, "n_embd": 64, "n_layer": 2, "n_head": 4, "n_positions": 64, "use_cache": False}, ids(), ids(9, 2)),
    "GPT-NeoX": ("GPTNeoXForCausalLM", {**TEXT, "use_cache": False}, ids(), ids(9, 2)),
    "GPT-J": ("GPTJForCausalLM", {**TOKENS, "n_embd": 64, "n_layer": 2, "n_head": 4, "n_positions": 64, "rotary_dim": 8, "use_cache": False}, ids(), ids(9, 2)),
    "OPT": ("OPTForCausalLM", {**TOKENS, "hidden_size": 64, "ffn_dim": 96, "num_hidden_layers": 2, "num_attention_heads": 4, "max_position_embeddings": 64, "word_embed_proj_dim": 64, "use_cache": False}, ids(), ids(9, 2)),
    "BLOOM": ("BloomForCausalLM", {**TOKENS, "hidden_size": 64, "n_layer": 2, "n_head": 4, "use_cache": False}, ids(), ids(9, 2)),
    "Mixtral, eager": ("MixtralForCausalLM", {**GROUPED, "num_local_experts": 4}, ids(), ids(9, 2)),
    "Qwen2-MoE, eager": ("Qwen2MoeForCausalLM", {**EXPERTS, "num_experts": 4, "shared_expert_intermediate_size": 48}, ids(), ids(9, 2)),
    "Qwen3-MoE, eager": ("Qwen3MoeForCausalLM", {**EXPERTS, "num_experts": 4, "head_dim": 8}, ids(), ids(9, 2)),
    "OLMoE, eager": ("OlmoeForCausalLM", {**EXPERTS, "num_experts": 4}, ids(), ids(9, 2)),
    "Mamba": ("MambaForCausalLM", {**TOKENS, "hidden_size": 32, "state_size": 8, "num_hidden_layers": 2, "use_cache": False}, ids(), ids(9, 2)),
    "Mamba-2": ("Mamba2ForCausalLM", {**TOKENS, "hidden_size": 32, "state_size": 8, "num_hidden_layers": 2, "num_heads": 8, "head_dim": 8, "n_groups": 2, "chunk_size": 8, "use_cache": False}, ids(16), ids(8, 2)),
    "RWKV": ("RwkvForCausalLM", {**TOKENS, "hidden_size": 32, "attention_hidden_size": 32, "num_hidden_layers": 2, "use_cache": False}, ids(), ids(9, 2)),
    # encoders
    "BERT": ("BertForSequenceClassification", TEXT, ids(), ids(9, 2)),
    "RoBERTa": ("RobertaForSequenceClassification", TEXT, ids(), ids(9, 2)),
    "DistilBERT": ("DistilBertForSequenceClassification", {"vocab_size": 100, "dim": 64, "hidden_dim": 96, "n_layers": 2, "n_heads": 4, "max_position_embeddings": 64}, ids(), ids(9, 2)),
    "ALBERT": ("AlbertForSequenceClassification", {**TEXT, "embedding_size": 32}, ids(), ids(9, 2)),
    "ELECTRA": ("ElectraForSequenceClassification", {**TEXT, "embedding_size": 32}, ids(), ids(9, 2)),
    "MobileBERT": ("MobileBertForSequenceClassification", {**TEXT, "embedding_size": 32, "intra_bottleneck_size": 32, "num_attention_heads": 4}, ids(), ids(9, 2)),
    "SqueezeBERT": ("SqueezeBertForSequenceClassification", {**TEXT, "embedding_size": 64, "num_attention_heads": 4}, ids(), ids(9, 2)),
    "DeBERTa-v2": ("DebertaV2ForSequenceClassification", {**TEXT, "relative_attention": True, "pos_att_type": ["p2c", "c2p"], "position_buckets": 8}, ids(), ids(9, 2)),
    "ModernBERT": ("ModernBertForSequenceClassification", {**TOKENS, **BASE, "global_attn_every_n_layers": 2, "local_attention": 8, "reference_compile": False, "cls_token_id": 1, "sep_token_id": 2}, ids(), ids(9, 2)),
    "FNet": ("FNetForSequenceClassification", TEXT | {"tpu_short_seq_length": 12}, ids(), ids(9, 2)),
    # encoders with decoders
    "T5": ("T5ForConditionalGeneration", T5, PAIR, LONGER_PAIR),
    "T5 v1.1": ("T5ForConditionalGeneration", {**T5, "feed_forward_proj": "gated-gelu", "tie_word_embeddings": False}, PAIR, LONGER_PAIR),
    "BART": ("BartForConditionalGeneration", SEQ2SEQ, PAIR, LONGER_PAIR),
    "Pegasus": ("PegasusForConditionalGeneration", SEQ2SEQ, PAIR, LONGER_PAIR),
    "Marian": ("MarianMTModel", SEQ2SEQ, PAIR, LONGER_PAIR),
    "Switch": ("SwitchTransformersForConditionalGeneration", {**T5, "num_experts": 4, "expert_capacity": 16, "num_sparse_encoder_layers": 1, "num_sparse_decoder_layers": 1}, PAIR, LONGER_PAIR),
    # speech
    "Whisper": ("WhisperForConditionalGeneration", {**SEQ2SEQ, "max_source_positions": 16, "max_target_positions": 32, "num_mel_bins": 8}, named(input_features=(1, 8, 32), decoder_input_ids=(1, 7)), named(input_features=(2, 8, 32), decoder_input_ids=(2, 5))),
    "Wav2Vec2": ("Wav2Vec2ForCTC", SPEECH, SOUND, LONGER_SOUND),
    "HuBERT": ("HubertModel", SPEECH, SOUND, LONGER_SOUND),
    "WavLM": ("WavLMModel", SPEECH, SOUND, LONGER_SOUND),
    "SEW": ("SEWModel", {**SPEECH, "squeeze_factor": 2}, SOUND, LONGER_SOUND),
    "AST": ("ASTForAudioClassification", {**VISION, "max_length": 48, "num_mel_bins": 16, "patch_size": 8, "frequency_stride": 8, "time_stride": 8}, named(input_values=(1, 48, 16)), None),
    # images
    "ViT": ("ViTForImageClassification", VIT, PIXELS, named(pixel_values=(2, 3, 32, 32))),
    "DeiT": ("DeiTForImageClassificationWithTeacher", VIT, PIXELS, None),
    "BEiT": ("BeitForImageClassification", {**VIT, "use_relative_position_bias": True}, PIXELS, None),
    "Data2Vec-vision": ("Data2VecVisionForImageClassification", VIT, PIXELS, None),
    "DINOv2": ("Dinov2ForImageClassification", VIT, PIXELS, BIG),
    "DINOv2, SwiGLU": ("Dinov2Model", {**VIT, "use_swiglu_ffn": True}, PIXELS, BIG),
    "DINOv2 with registers": ("Dinov2WithRegistersModel", {**VIT, "num_register_tokens": 2}, PIXELS, BIG),
    "DINOv3": ("DINOv3ViTModel", VIT, PIXELS, BIG),
    "DINOv3 ConvNeXt": ("DINOv3ConvNextModel", PYRAMID, BIG, BIGGER),
    "ViT-MAE": ("ViTMAEForPreTraining", {**VIT, "decoder_hidden_size": 32, "decoder_num_attention_heads": 4, "decoder_num_hidden_layers": 1, "decoder_intermediate_size": 48}, named(pixel_values=(1, 3, 32, 32), noise=(1, 16)), None),
    "VideoMAE": ("VideoMAEModel", {**VIT, "num_frames": 4}, named(pixel_values=(1, 4, 3, 32, 32)), None),
    "TimeSformer": ("TimesformerModel", {**VIT, "num_frames": 4}, named(pixel_values=(1, 4, 3, 32, 32)), None),
    "LeViT": ("LevitForImageClassification", {"image_size": 64, "hidden_sizes": [32, 48, 64], "num_attention_heads": [2, 3, 4], "depths": [1, 1, 1], "key_dim": [8, 8, 8]}, BIG, None),
    "ConvNeXt": ("ConvNextForImageClassification", PYRAMID, BIG, BIGGER),
    "ConvNeXt v2": ("ConvNextV2ForImageClassification", PYRAMID, BIG, BIGGER),
    "Swin": ("SwinForImageClassification", SWIN, BIG, BIGGER),
    "Swin v2": ("Swinv2ForImageClassification", SWIN, BIG, BIGGER),
    "PVT v2": ("PvtV2ForImageClassification", {"hidden_sizes": [16, 32, 40, 64], "depths": [1, 1, 1, 1], "num_attention_heads": [1, 2, 4, 8]}, BIG, BIGGER),
    "CvT": ("CvtForImageClassification", {"embed_dim": [16, 32, 48], "num_heads": [1, 2, 3], "depth": [1, 2, 3]}, BIG, BIGGER),
    "MobileViT": ("MobileViTForImageClassification", {"hidden_sizes": [24, 32, 40], "neck_hidden_sizes": [8, 16, 24, 32, 40, 48, 96], "image_size": 64}, BIG, BIGGER),
    "MobileNet v2": ("MobileNetV2ForImageClassification", {"depth_multiplier": 0.5}, BIG, BIGGER),
    "ResNet": ("ResNetForImageClassification", {"embedding_size": 16, "hidden_sizes": [32, 48, 64, 96], "depths": [1, 1, 2, 1]}, BIG, BIGGER),
    "RegNet": ("RegNetForImageClassification", {"embedding_size": 16, "hidden_sizes": [32, 48, 64, 96], "depths": [1, 1, 2, 1], "groups_width": 8}, BIG, BIGGER),
    "PoolFormer": ("PoolFormerForImageClassification", {"hidden_sizes": [16, 32, 48, 64], "depths": [1, 1, 2, 1]}, BIG, BIGGER),
    "FocalNet": ("FocalNetForImageClassification", {"image_size": 64, "embed_dim": 24, "depths": [1, 1, 2, 1]}, BIG, None),
    "SegFormer": ("SegformerForSemanticSegmentation", {"hidden_sizes": [16, 32, 40, 64], "depths": [1, 1, 1, 1], "num_attention_heads": [1, 2, 4, 8], "decoder_hidden_size": 32, "num_labels": 5}, BIG, BIGGER),
    "DPT": ("DPTForSemanticSegmentation", {**VIT, "num_hidden_layers": 4, "backbone_out_indices": [0, 1, 2, 3], "neck_hidden_sizes": [8, 16, 24, 32], "fusion_hidden_size": 16}, PIXELS, None),
    "GLPN": ("GLPNForDepthEstimation", {"hidden_sizes": [16, 32, 40, 64], "depths": [1, 1, 1, 1], "num_attention_heads": [1, 2, 4, 8], "decoder_hidden_size": 16}, BIG, BIGGER),
    "SAM": ("SamVisionModel", {**VISION, "image_size": 64, "patch_size": 8, "output_channels": 32, "window_size": 4, "global_attn_indexes": [1], "mlp_dim": 96}, BIG, None),
    "YOLOS": ("YolosForObjectDetection", {**VISION, "image_size": [64, 64], "patch_size": 16, "num_detection_tokens": 5}, BIG, BIGGER),
    "DETR": ("DetrForObjectDetection", DETR, BIG, BIGGER),
    "Conditional DETR": ("ConditionalDetrForObjectDetection", DETR, BIG, BIGGER),
    "Deformable DETR": ("DeformableDetrForObjectDetection", {**DETR, "num_feature_levels": 2}, BIG, BIGGER),
    "RT-DETR": ("RTDetrForObjectDetection", {"encoder_hidden_dim": 32, "d_model": 32, "encoder_ffn_dim": 48, "decoder_ffn_dim": 48, "encoder_attention_heads": 4, "decoder_attention_heads": 4, "decoder_layers": 2, "num_queries": 6, "encoder_in_channels": [48, 64, 96], "feat_strides": [8, 16, 32], "decoder_in_channels": [32, 32, 32]}, BIG, BIGGER),
    "Mask2Former": ("Mask2FormerForUniversalSegmentation", {"feature_size": 32, "mask_feature_size": 32, "hidden_dim": 32, "encoder_feedforward_dim": 48, "dim_feedforward": 48, "encoder_layers": 1, "decoder_layers": 2, "num_attention_heads": 4, "num_queries": 6}, BIG, BIGGER),
    "MaskFormer": ("MaskFormerForInstanceSegmentation", {"fpn_feature_size": 32, "mask_feature_size": 32}, BIG, BIGGER),
    # pairs
    "CLIP": ("CLIPModel", {"text_config": TOWER, "vision_config": VIT, "projection_dim": 24}, TEXT_IMAGE, named(input_ids=(2, 9), pixel_values=(2, 3, 32, 32))),
    "SigLIP": ("SiglipModel", {"text_config": {**TOWER, "projection_size": 48}, "vision_config": VIT}, named(input_ids=(1, 32), pixel_values=(1, 3, 32, 32)), None),
    "ViLT": ("ViltModel", {**TOWER, "image_size": 32, "patch_size": 8, "max_image_length": -1}, TEXT_IMAGE, None),
    # time series
    "PatchTST": ("PatchTSTForPrediction", {"num_input_channels": 2, "context_length": 32, "patch_length": 8, "patch_stride": 8, "d_model": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "ffn_dim": 48, "prediction_length": 8}, named(past_values=(1, 32, 2)), None),
}  # fmt: skip


def transformers_networks() -> Iterator[Network]:
    for name, (model, options, inputs, other) in TRANSFORMERS.items():
        yield Network(f"transformers:{name}", partial(_transformer, name, model, options), inputs, other)


def _transformer(name: str, model: str, options: dict[str, Any]) -> nn.Module:
    import transformers

    kind = getattr(transformers, model)
    parts = _backbones(name)
    config = kind.config_class(**options, **parts)
    if "eager" in name:
        config._experts_implementation = "eager"  # by default one product of all experts, which is not made for float64
    return kind(config)


def _backbones(name: str) -> dict[str, Any]:
    """The image networks inside detectors: none of theirs is fetched."""
    from transformers import ResNetConfig, RTDetrResNetConfig, SwinConfig

    resnet = {"embedding_size": 16, "hidden_sizes": [32, 48, 64, 96], "depths": [1, 1, 1, 1]}
    if name in ("DETR", "Conditional DETR", "Deformable DETR"):
        levels = ["stage3", "stage4"] if name.startswith("Deform") else ["stage4"]
        return {
            "backbone_config": ResNetConfig(**resnet, out_features=levels),
            "use_timm_backbone": False,
            "use_pretrained_backbone": False,
            "backbone": None,
        }
    if name == "RT-DETR":
        return {"backbone_config": RTDetrResNetConfig(**resnet, out_features=["stage2", "stage3", "stage4"])}
    if name in ("Mask2Former", "MaskFormer"):
        swin = SwinConfig(
            image_size=64, embed_dim=16, depths=[1, 1, 1, 1], num_heads=[1, 2, 4, 8], window_size=4,
            out_features=["stage1", "stage2", "stage3", "stage4"],
        )  # fmt: skip
        return {"backbone_config": swin, **({"decoder_config": _decoder()} if name == "MaskFormer" else {})}
    return {}


def _decoder() -> Any:
    from transformers import DetrConfig

    return DetrConfig(**DETR, use_timm_backbone=False, use_pretrained_backbone=False, backbone=None)


# ---------------------------------------------------------------------------------------------------------------- own


def own_networks() -> Iterator[Network]:
    for name, (build, inputs, other) in small.NETWORKS.items():
        yield Network(f"own:{name}", build, inputs, other)


def networks() -> dict[str, Network]:
    """Returns all, by name, in the order of the table."""
    every = [*timm_networks(), *torchvision_networks(), *transformers_networks(), *own_networks()]
    return {network.name: network for network in every}
