"""Networks that deploykit does not build, by the names of tensors that only they have: a table, and its look-up.

The names are facts of the projects' public code and files; each row has enough of them to be no other network's.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any, NamedTuple

__all__ = ["ANCHOR_FREE", "SIGNATURES", "Signature", "described_by", "layers_of", "signature_of"]

TIMM = "timm reads it: deploykit export --weights FILE --timm-model NAME"
"""Advice for files in timm's own names."""


class Signature(NamedTuple):
    """What a network is called, the names of tensors that it has, and what to do instead, if anything."""

    what: str
    keys: frozenset[str]
    advice: str = ""


def _of(what: str, *keys: str, advice: str = "") -> Signature:
    return Signature(what, frozenset(keys), advice)


SIGNATURES: tuple[Signature, ...] = (
    # YOLO
    _of("YOLO-NAS (super-gradients)", "heads.head1.cls_pred.weight", "heads.head1.reg_pred.weight"),
    _of("YOLOR, Scaled-YOLOv4 or YOLOv3 of a Darknet .cfg", "module_list.0.Conv2d.weight"),
    _of("YOLOv4 of the pytorch-YOLOv4 project", "down1.conv1.conv.0.weight"),
    _of("YOLOX in MMDetection's names", "bbox_head.multi_level_conv_cls.0.weight"),
    _of("a detector of MMYOLO", "bbox_head.head_module.cls_preds.0.0.conv.weight"),
    # Transformers that detect
    _of("RF-DETR or LW-DETR", "refpoint_embed.weight", "query_feat.weight"),
    _of("RT-DETR, D-FINE or DEIM", "decoder.enc_score_head.weight", "decoder.dec_score_head.0.weight"),
    _of("RT-DETR or D-FINE in Hugging Face's names", "model.enc_score_head.weight", "model.enc_output.0.weight"),
    _of("Deformable DETR or DINO", "transformer.level_embed"),
    _of("DETR", "transformer.encoder.layers.0.self_attn.in_proj_weight", "class_embed.weight", "query_embed.weight"),
    _of("DETR in Hugging Face's names", "class_labels_classifier.weight", "bbox_predictor.layers.0.weight"),
    # Detectors of torchvision, detectron2, MMDetection and others
    _of("Faster or Mask R-CNN of torchvision", "rpn.head.cls_logits.weight", "rpn.head.bbox_pred.weight"),
    _of("FCOS of torchvision", "head.regression_head.bbox_ctrness.weight"),
    _of("RetinaNet of torchvision", "head.classification_head.cls_logits.weight"),
    _of("SSD of torchvision", "head.classification_head.module_list.0.weight"),
    _of("a model of detectron2 other than ViTDet", "backbone.bottom_up.stem.conv1.weight"),
    _of("a model of detectron2 other than ViTDet", "proposal_generator.rpn_head.conv.weight"),
    _of("RTMDet (MMDetection)", "bbox_head.rtm_cls.0.weight"),
    _of("RetinaNet of MMDetection", "bbox_head.retina_cls.weight"),
    _of("ATSS of MMDetection", "bbox_head.atss_cls.weight"),
    _of("GFL of MMDetection", "bbox_head.gfl_cls.weight"),
    _of("FCOS of MMDetection", "bbox_head.conv_cls.weight", "bbox_head.conv_centerness.weight"),
    _of("a detector in two stages of MMDetection", "rpn_head.rpn_cls.weight"),
    _of("EfficientDet (effdet)", "class_net.predict.conv_pw.weight", "box_net.predict.conv_pw.weight"),
    # Poses, segmentation, depth
    _of("a pose model of MMPose", "keypoint_head.final_layer.weight"),
    _of("a pose model of MMPose", "head.final_layer.weight", "backbone.patch_embed.projection.weight"),
    _of("a model of MMSegmentation", "decode_head.conv_seg.weight"),
    _of("a model of segmentation_models_pytorch", "segmentation_head.0.weight"),
    _of("DeepLabV3 of torchvision", "backbone.layer4.0.conv1.weight", "classifier.0.convs.0.0.weight"),
    _of("FCN on a ResNet of torchvision", "backbone.layer4.0.conv1.weight", "classifier.4.weight"),
    _of("SegFormer in Hugging Face's names", "segformer.encoder.patch_embeddings.0.proj.weight"),
    _of("nnU-Net", "encoder.stages.0.0.convs.0.conv.weight"),
    _of("Segment Anything", "image_encoder.pos_embed", "mask_decoder.iou_token.weight"),
    _of("Depth Anything", "pretrained.cls_token", "depth_head.projects.0.weight"),
    # Restoration
    _of("Real-ESRGAN or another RRDBNet", "conv_first.weight", "body.0.rdb1.conv1.weight"),
    _of("SwinIR", "conv_first.weight", "layers.0.residual_group.blocks.0.attn.qkv.weight"),
    _of("Restormer", "patch_embed.proj.weight", "encoder_level1.0.norm1.body.weight"),
    # Classifiers in timm's names
    _of("EfficientNet or MobileNet in timm's names", "conv_stem.weight", "blocks.0.0.conv_dw.weight", advice=TIMM),
    _of("ConvNeXt in timm's names", "stem.0.weight", "stages.0.blocks.0.conv_dw.weight", advice=TIMM),
    _of(
        "Swin in timm's names",
        "layers.0.blocks.0.attn.relative_position_bias_table", "patch_embed.proj.weight", "head.fc.weight", advice=TIMM,
    ),
    _of("RegNet in timm's names", "stem.conv.weight", "s1.b1.conv1.conv.weight", advice=TIMM),
    _of(
        "DenseNet", "features.conv0.weight", "features.denseblock1.denselayer1.norm1.weight", "classifier.weight",
        advice=TIMM,
    ),
    # Classifiers in other names
    _of("Swin in Microsoft's names", "layers.0.blocks.0.attn.relative_position_bias_table", "patch_embed.proj.weight"),
    _of("ConvNeXt in Facebook's names", "downsample_layers.0.0.weight", "stages.0.0.dwconv.weight"),
    _of("ViT of torchvision", "conv_proj.weight", "encoder.layers.encoder_layer_0.ln_1.weight"),
    _of("Swin of torchvision", "features.1.0.attn.relative_position_bias_table"),
    _of("ConvNeXt of torchvision", "features.1.0.layer_scale"),
    _of("EfficientNet of torchvision", "features.0.0.weight", "features.1.0.block.0.0.weight"),
    _of("MobileNetV3 of torchvision", "features.0.0.weight", "features.1.block.0.0.weight"),
    _of("MobileNetV2 of torchvision", "features.0.0.weight", "features.1.conv.0.0.weight"),
    _of("RegNet of torchvision", "stem.0.weight", "trunk_output.block1.block1-0.proj.0.weight"),
    _of("ShuffleNetV2 of torchvision", "conv1.0.weight", "stage2.0.branch1.0.weight"),
    _of("VGG or AlexNet of torchvision", "features.0.weight", "classifier.6.weight"),
    _of("ViT or DeiT in Hugging Face's names", "vit.embeddings.cls_token"),
    _of("ViT or DeiT in Hugging Face's names", "deit.embeddings.cls_token"),
    _of("ResNet in Hugging Face's names", "resnet.embedder.embedder.convolution.weight"),
    _of("ConvNeXt in Hugging Face's names", "convnext.embeddings.patch_embeddings.weight"),
    _of("Swin in Hugging Face's names", "swin.embeddings.patch_embeddings.projection.weight"),
    _of("EfficientNet in Hugging Face's names", "efficientnet.embeddings.convolution.weight"),
    _of("DINOv2 in Hugging Face's names", "embeddings.cls_token", "encoder.layer.0.layer_scale1.lambda1"),
    _of("CLIP", "visual.conv1.weight", "transformer.resblocks.0.ln_1.weight"),
    _of("CLIP in Hugging Face's names", "vision_model.embeddings.class_embedding"),
    _of("a classifier of MMPretrain", "head.fc.weight", "backbone.conv1.weight"),
    _of("a classifier of MMPretrain", "head.fc.weight", "backbone.patch_embed.projection.weight"),
    # No vision
    _of("BERT", "bert.embeddings.word_embeddings.weight"),
    _of("a language model", "model.embed_tokens.weight"),
    _of("Stable Diffusion", "model.diffusion_model.input_blocks.0.0.weight"),
)  # fmt: skip

_DFL = frozenset(f"model.{i}.dfl.conv.weight" for i in range(12, 64))
ANCHOR_FREE = Signature("an anchor-free YOLO of other layers than deploykit knows, whose head has a dfl", _DFL)

_LAYERS = (
    ("YOLOv9 (WongKinYiu/yolov9)", {"RepNCSPELAN4", "DDetect", "DualDDetect", "TripleDDetect", "CBFuse", "ADown"}),
    ("the branch u6 of YOLOv7, which has no anchors", {"V6Detect", "IV6Detect", "V7Detect", "IV7Detect"}),
    ("YOLOv8 or a later model in the ultralytics package's layers", {"C2f", "C3k2", "C2PSA", "A2C2f", "v10Detect"}),
    ("RT-DETR in the ultralytics package's layers", {"RTDETRDecoder", "HGStem", "HGBlock", "AIFI"}),
    ("YOLOR or Scaled-YOLOv4 (CSP models)", {"BottleneckCSP2", "BottleneckCSPF", "SPPCSP", "VoVCSP", "ImplicitA"}),
    ("YOLOR-CSP or YOLOv4-CSP, as YOLOv7 describes them", {"BottleneckCSPA", "BottleneckCSPB", "BottleneckCSPC"}),
    ("yolov5-face", {"ShuffleV2Block", "BlazeBlock", "DoubleBlazeBlock"}),
    ("a model that segments", {"Segment", "ISegment"}),
    ("a model that classifies", {"Classify"}),
    ("a model of oriented boxes", {"OBB"}),
)
"""What a description by layers is of -> layers of which it has at least one."""


def signature_of(names: Collection[str]) -> Signature | None:
    """The network whose characteristic tensors are among these names."""
    found = set(names)
    if _DFL & found:
        return ANCHOR_FREE
    return next((signature for signature in SIGNATURES if signature.keys <= found), None)


def described_by(yaml: Mapping[str, Any], kind: str = "") -> str:
    """What a model is of that carries this description by layers; empty: it is not in the table.

    ``kind``: the class of the pickled model. The family of the ultralytics package says itself what it does not have.
    """
    found = set() if kind.startswith("ultralytics.") else layers_of(yaml)
    return next((what for what, known in _LAYERS if known & found), "")


def layers_of(yaml: Mapping[str, Any]) -> set[str]:
    """The layers that a description names, as far as it can be read."""
    parts = [part for part in (yaml.get("backbone"), yaml.get("head")) if isinstance(part, (list, tuple))]
    rows = [row for part in parts for row in part if isinstance(row, (list, tuple)) and len(row) > 2]
    return {row[2] for row in rows if isinstance(row[2], str)}
