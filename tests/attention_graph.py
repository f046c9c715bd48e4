"""A small attention as an ONNX graph, of random weights with outliers."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
from onnx import TensorProto, helper

X = np.random.default_rng(0).normal(size=(1, 3, 4, 4)).astype(np.float32)
WIDTH, HEADS, TOKENS = 8, 2, 16


def transformer(
    *,
    seed: int = 0,
    logits: float = 1.0,
    masked: bool = False,
    padded: bool = False,
    added: bool = False,
    shown: bool = False,
) -> ir.Model:
    """Pixels as tokens: a norm with outliers, attention of one layer for q, k and v, and a projection.

    ``logits``: a factor of the queries; ``masked``: -100 is added to some logits; ``padded``: zeros are added to the
    normalised tokens, and tokens taken away after the attention; ``added``: the normalised tokens are also added to
    what comes out; ``shown``: the attention's output is one of the graph's.
    """
    chance = np.random.default_rng(seed)
    gain = chance.uniform(0.5, 2, WIDTH)
    gain[chance.integers(WIDTH)] *= 30
    weights = {
        "embed": chance.normal(size=(WIDTH, 3, 1, 1)),
        "gain": gain,
        "shift": chance.normal(size=WIDTH),
        "qkv": chance.normal(size=(WIDTH, 3 * WIDTH)) * 0.2,
        "qkv_bias": chance.normal(size=3 * WIDTH) * np.repeat([0.3, 0.3, 1.0], WIDTH),
        "wall": np.where(chance.random((TOKENS + 3 * padded,) * 2) < 0.5, 0, -100),
        "last": chance.normal(size=(WIDTH, 5)),
    }
    weights["qkv_bias"][2 * WIDTH :] *= chance.choice([1.0, 20.0], WIDTH)  # some values are much larger
    weights["qkv"][:, :WIDTH] *= logits
    whole = {
        "tokens": [1, WIDTH, TOKENS], "heads": [1, -1, 3, HEADS, WIDTH // HEADS], "joined": [1, -1, WIDTH],
        "first": [0], "second": [1], "third": [2], "pads": [0, 0, 0, 0, 3, 0], "start": [0], "stop": [TOKENS],
        "axis": [1],
    }  # fmt: skip
    nodes = [
        helper.make_node("Conv", ["x", "embed"], ["a"], name="embed"),
        helper.make_node("Reshape", ["a", "tokens"], ["b"]),
        helper.make_node("Transpose", ["b"], ["c"], perm=[0, 2, 1]),
        helper.make_node("LayerNormalization", ["c", "gain", "shift"], ["n"], name="norm", axis=-1),
        *([helper.make_node("Pad", ["n", "pads"], ["p"])] if padded else []),
        helper.make_node("MatMul", ["p" if padded else "n", "qkv"], ["d"], name="qkv"),
        helper.make_node("Add", ["d", "qkv_bias"], ["e"], name="qkv_bias"),
        helper.make_node("Reshape", ["e", "heads"], ["f"]),
        helper.make_node("Transpose", ["f"], ["g"], perm=[2, 0, 3, 1, 4]),
        *[helper.make_node("Gather", ["g", f"{at}"], [f"{name}0"], axis=0)
          for at, name in (("first", "q"), ("second", "k"), ("third", "v"))],
        *[helper.make_node("Squeeze", [f"{name}0", "first"], [name]) for name in "qkv"],
        helper.make_node("Transpose", ["k"], ["kt"], perm=[0, 1, 3, 2]),
        helper.make_node("MatMul", ["q", "kt"], ["logits"], name="logits"),
        *([helper.make_node("Add", ["logits", "wall"], ["masked"], name="mask")] if masked else []),
        helper.make_node("Softmax", ["masked" if masked else "logits"], ["s"], name="softmax", axis=-1),
        helper.make_node("MatMul", ["s", "v"], ["o"], name="values"),
        helper.make_node("Transpose", ["o"], ["t"], perm=[0, 2, 1, 3]),
        helper.make_node("Reshape", ["t", "joined"], ["j"]),
        *([helper.make_node("Slice", ["j", "start", "stop", "axis"], ["j2"])] if padded else []),
        *([helper.make_node("Add", ["j2" if padded else "j", "n"], ["j3"])] if added else []),
        helper.make_node("MatMul", ["j3" if added else "j2" if padded else "j", "last"], ["y"], name="last"),
    ]  # fmt: skip
    outputs = {"y": (1, TOKENS, 5)} | ({"j": (1, TOKENS + 3 * padded, WIDTH)} if shown else {})
    made = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, X.shape)],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in outputs.items()],
        [helper.make_tensor(n, TensorProto.FLOAT, v.shape, v.astype(np.float32).ravel()) for n, v in weights.items()]
        + [helper.make_tensor(n, TensorProto.INT64, [len(v)], v) for n, v in whole.items()],
    )
    return ir.from_proto(helper.make_model(made, opset_imports=[helper.make_opsetid("", 18)], ir_version=10))
