"""What NVIDIA's lists say of ONNX operators in TensorRT: facts, with the version that each is from.

The lists are operators.md and Changelog.md of the ONNX parser for TensorRT 10.0 and 10.15, and what
TensorRT for RTX 1.7.1 said when it was tried. No list for TensorRT 11 was published with these; its migration guide
removes weak typing, calibrators and old plugin interfaces, and no operator, so that of 10.15 is taken for it.
"""

from __future__ import annotations

__all__ = [
    "ADVICE", "DATA_DEPENDENT", "LATER", "NEVER", "OPSETS", "OPSETS_OF_10_0", "RTX_NEVER", "SOURCE",
    "STANDARD_PLUGINS", "TRIED_TYPES", "TYPES",
]  # fmt: skip

SOURCE = "list of TensorRT 10.15"
OPSETS = (9, 24)
OPSETS_OF_10_0 = (9, 20)

_FLOATS = frozenset(("FLOAT", "FLOAT16", "BFLOAT16"))
_HALF = frozenset(("FLOAT", "FLOAT16"))
_NUMBERS = _FLOATS | {"INT32", "INT64"}
_ALL = _NUMBERS | {"BOOL"}
_LISTS = {
    _FLOATS: """Acos Acosh Asin Asinh Atan Atanh AveragePool BatchNormalization Ceil Celu Clip Conv ConvTranspose Cos
        Cosh CumSum Dropout Einsum Elu Erf Exp Floor GRU Gemm GlobalAveragePool GlobalLpPool GlobalMaxPool
        GroupNormalization HardSigmoid HardSwish Hardmax ImageScaler InstanceNormalization IsInf LRN LSTM
        LayerNormalization LeakyRelu Log LogSoftmax LpNormalization LpPool MatMul MaxPool MeanVarianceNormalization
        PRelu ParametricSoftplus QuantizeLinear RMSNormalization RNN RandomNormal RandomNormalLike RandomUniform
        RandomUniformLike Reciprocal Resize RotaryEmbedding Round ScaledTanh Scan Selu Sigmoid Sin Sinh Softmax Softplus
        Softsign Sqrt Tan Tanh ThresholdedRelu Upsample""",
    _NUMBERS: """Abs Add ArgMax ArgMin DepthToSpace Div Equal Greater GreaterOrEqual IsNaN Less LessOrEqual Max Min Mod
        Mul Neg Pad Pow Range ReduceL1 ReduceL2 ReduceLogSum ReduceLogSumExp ReduceMax ReduceMean ReduceMin ReduceProd
        ReduceSum ReduceSumSquare Relu Scatter ScatterElements ScatterND Shrink Sign SpaceToDepth Sub Sum TopK""",
    _ALL: """Concat ConstantOfShape Expand EyeLike Flatten Gather GatherElements GatherND Identity If Loop OneHot
        Reshape ReverseSequence Shape Size Slice Split Squeeze Tile Transpose Trilu Unsqueeze Where""",
    _HALF: """BlackmanWindow DeformConv GridSample HammingWindow HannWindow Mish NonMaxSuppression NonZero RoiAlign""",
    _ALL | {"UINT8"}: "Cast CastLike",
    frozenset(("BOOL",)): "And Not Or Xor",
    frozenset(("FLOAT",)): "STFT",
    _FLOATS | {"INT8", "FLOAT8E4M3FN"}: "Attention",
    _NUMBERS | {"INT8"}: "Gelu",
    _NUMBERS | {"FLOAT8E4M3FN"}: "Mean",
    _FLOATS | {"INT32"}: "TensorScatter",
    frozenset(("INT8", "FLOAT8E4M3FN", "FLOAT4E2M1", "INT4")): "DequantizeLinear",
}
TYPES = {name: types for types, names in _LISTS.items() for name in names.split()} | {"Constant": frozenset()}
"""Operator that TensorRT has -> the types of its data; empty: not asked."""

TRIED_TYPES = {
    "Equal": frozenset(("BOOL",)),
    "Clip": frozenset(("INT32", "INT64")),
    "CumSum": frozenset(("INT32", "INT64")),
}
"""Types that the list leaves out, and that TensorRT for RTX 1.7.1, whose parser is the same, built."""

_NEVER = """AffineGrid Bernoulli BitShift BitwiseAnd BitwiseNot BitwiseOr BitwiseXor CenterCropPad Col2Im Compress
    ConcatFromSequence ConvInteger DFT Det DynamicQuantizeLinear ImageDecoder MatMulInteger MaxRoiPool MaxUnpool
    MelWeightMatrix Multinomial NegativeLogLikelihoodLoss Optional OptionalGetElement OptionalHasElement QLinearConv
    QLinearMatMul RegexFullMatch SequenceAt SequenceConstruct SequenceEmpty SequenceErase SequenceInsert SequenceLength
    SequenceMap SoftmaxCrossEntropyLoss SplitToSequence StringConcat StringNormalizer StringSplit TfIdfVectorizer
    Unique"""
NEVER = frozenset(_NEVER.split())
"""Operators that the list names as not supported."""

LATER = {
    "DeformConv": "10.1", "BlackmanWindow": "10.4", "HammingWindow": "10.4", "HannWindow": "10.4", "STFT": "10.5",
    "Attention": "10.14", "RMSNormalization": "10.15", "RotaryEmbedding": "10.15", "TensorScatter": "10.15",
}  # fmt: skip
"""Operators that TensorRT 10.0 did not have -> the first version that has them."""

RTX_NEVER = {
    "NonMaxSuppression": "it has no implementation of it",
    "NonZero": "it has no implementation of it",
    "RoiAlign": "its parser needs a GPU for it",
}
"""Operators of the list that TensorRT for RTX 1.7.1 refused without a GPU -> why."""

_PLUGINS = """BatchedNMSDynamic_TRT BatchedNMS_TRT CoordConvAC DisentangledAttention_TRT EfficientNMS_ONNX_TRT
    EfficientNMS_TRT InstanceNormalization_TRT ModulatedDeformConv2d MultiscaleDeformableAttnPlugin_TRT
    PillarScatterPlugin ProposalLayer_TRT PyramidROIAlign_TRT ROIAlign_TRT ScatterElements"""
STANDARD_PLUGINS = frozenset(_PLUGINS.split())
"""Plugins in TensorRT's own library, which TensorRT for RTX lacks."""

DATA_DEPENDENT = frozenset(("NonZero", "NonMaxSuppression", "Compress", "Unique"))
"""Operators whose output's size depends on the data."""

_QDQ = "quantize in the QDQ format: deploykit export --precision int8 does"
ADVICE = {
    "NonMaxSuppression": "export with --nms basic, the same NMS from basic operators, or with --nms none",
    "NonZero": "take a mask or TopK of a fixed number instead, whose size does not depend on the data",
    "Compress": "take Where or TopK of a fixed number instead, whose size does not depend on the data",
    "Unique": "move it out of the network, behind its outputs",
    "RoiAlign": "end the engine before it (deploykit does so with detectors in two stages), or sample with GridSample",
    "QLinearConv": _QDQ,
    "QLinearMatMul": _QDQ,
    "ConvInteger": _QDQ,
    "MatMulInteger": _QDQ,
    "DynamicQuantizeLinear": _QDQ,
    "MaxUnpool": "unpool by masks, as deploykit's own networks do (docs/unpooling.md)",
    "Col2Im": "write it as ConvTranspose with fixed weights, or as Reshape and Transpose",
    "AffineGrid": "compute the grid outside, or from MatMul and constants",
    "Bernoulli": "export the network for inference: noise belongs to training",
    "Dropout": "export the network for inference",
    **{op: "export it without sequences: Concat of the tensors, with fixed shapes" for op in NEVER if "Sequence" in op},
    "DFT": "write it as MatMul with constant sines and cosines",
}
"""Operator -> what to do instead."""
