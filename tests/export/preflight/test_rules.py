"""What the rules say of small graphs: the node that stops a runtime, which one, and why."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from deploykit.errors import ArtefactError
from deploykit.export.preflight.graph import read_graph
from deploykit.export.preflight.operators import ADVICE, LATER, NEVER, RTX_NEVER, TRIED_TYPES, TYPES
from deploykit.export.preflight.report import Finding
from deploykit.export.preflight.rules import findings_of
from tests.export.preflight.graphs import node, write_graph

QDQ = [node("QuantizeLinear", "x s z", "q"), node("DequantizeLinear", "q s z")]
ALL = ("tensorrt-10", "tensorrt-11", "tensorrt-rtx")
PROPER = ALL[:2]


def found(file: Path) -> list[Finding]:
    return list(findings_of(read_graph(file)))


def of_node(file: Path, op: str) -> list[Finding]:
    return [finding for finding in found(file) if finding.op == op]


@pytest.mark.parametrize("zero", [np.int8(3), np.uint8(128)])
def test_asymmetric_quantization_is_refused(zero: np.generic, tmp_path: Path) -> None:
    file = write_graph(tmp_path / "m.onnx", QDQ, stored={"s": np.float32(0.1), "z": zero})
    (first,) = of_node(file, "QuantizeLinear")
    assert (first.level, first.targets, first.node) == ("refused", ALL, "the_QuantizeLinear")
    assert f"its zero point is {zero}" in first.why
    assert "--precision int8" in first.do


def test_symmetric_quantization_is_taken_and_uint8_is_in_doubt(tmp_path: Path) -> None:
    symmetric = write_graph(tmp_path / "s.onnx", QDQ, stored={"s": np.float32(0.1), "z": np.int8(0)})
    assert found(symmetric) == []
    unsigned = write_graph(tmp_path / "u.onnx", QDQ, stored={"s": np.float32(0.1), "z": np.uint8(0)})
    assert {f.level for f in found(unsigned)} == {"doubt"}


@pytest.mark.parametrize(
    ("nodes", "stored", "why"),
    [
        (
            [node("TopK", "x k", "y i")],
            {"k": np.array([4000])},
            "its K is 4000, and TensorRT's TopK gives at most 3840",
        ),
        ([node("TopK", "x k", "y i", sorted=0)], {"k": np.array([1])}, "its result is not sorted"),
        ([node("MaxPool", "x", "y i", kernel_shape=[2, 2])], {}, "its output of indices is used"),
        ([node("MaxPool", "x", kernel_shape=[2, 2], dilations=[2, 2])], {}, "it has dilations"),
        (
            [node("ScatterND", "x i u", reduction="add")],
            {"i": [[0]], "u": np.zeros((1, 3, 8, 8), np.float32)},
            "reduction",
        ),
        ([node("Resize", "x - s", antialias=1, mode="linear")], {"s": np.ones(4, np.float32)}, "antialiasing"),
        (
            [node("Resize", "x - s", mode="linear", coordinate_transformation_mode="half_pixel_symmetric")],
            {"s": np.ones(4, np.float32)},
            "its coordinates are half_pixel_symmetric",
        ),
        ([node("LayerNormalization", "x w", "y m")], {"w": np.ones(8, np.float32)}, "more than its first output"),
        ([node("DynamicQuantizeLinear", "x", "q s z"), node("Identity", "s")], {}, "no such operator"),
        ([node("Det", "x")], {}, "no such operator (list of TensorRT 10.15)"),
    ],
)
def test_what_the_list_excludes_is_refused_at_its_node(
    nodes: list[onnx.NodeProto], stored: dict[str, np.ndarray], why: str, tmp_path: Path
) -> None:
    file = write_graph(tmp_path / "m.onnx", nodes, stored=stored)
    (finding,) = [f for f in of_node(file, nodes[0].op_type) if f.level == "refused"]
    assert finding.targets == ALL
    assert why in finding.why


def test_pooling_and_topk_within_the_limits_are_taken(tmp_path: Path) -> None:
    nodes = [node("MaxPool", "x", "p", kernel_shape=[2, 2]), node("TopK", "p k", "y i")]
    assert found(write_graph(tmp_path / "m.onnx", nodes, stored={"k": np.array([3])})) == []


def test_nms_is_taken_by_tensorrt_and_refused_by_the_flavour_for_rtx(tmp_path: Path) -> None:
    inputs = [("b", TensorProto.FLOAT, [1, 9, 4]), ("s", TensorProto.FLOAT, [1, 2, 9])]
    output = ("y", TensorProto.INT64, None)
    file = write_graph(tmp_path / "m.onnx", [node("NonMaxSuppression", "b s")], inputs=inputs, output=output)
    refused, known = of_node(file, "NonMaxSuppression")
    assert (refused.level, refused.targets) == ("refused", ("tensorrt-rtx",))
    assert "--nms basic" in refused.do
    assert (known.level, known.targets) == ("note", PROPER)
    assert "depends on the data" in known.why
    assert known.do == "its size may reach the output 'y', which then needs an output allocator"


def test_nms_whose_result_is_padded_needs_no_output_allocator(tmp_path: Path) -> None:
    for batch, outside, needs in ((1, [1, 300, 4], False), (1, [None, 4], True), (None, [None, 300, 4], False)):
        inputs = [("b", TensorProto.FLOAT, [batch, 9, 4]), ("s", TensorProto.FLOAT, [batch, 2, 9])]
        nodes = [node("NonMaxSuppression", "b s", "rows"), node("Reshape", "rows shape")]
        stored = {"shape": np.array([-1] * len(outside))}
        file = write_graph(
            tmp_path / "m.onnx", nodes, inputs=inputs, output=("y", TensorProto.INT64, outside), stored=stored
        )
        assert ("allocator" in of_node(file, "NonMaxSuppression")[-1].do) == needs, outside


@pytest.mark.parametrize(
    ("op", "domain", "proper", "why"),
    [
        ("NmsKpt", "deploykit", "note", "deploykit's plugin"),
        ("EfficientNMS_TRT", "", "note", "plugin of TensorRT's own library"),
        ("EfficientNMS_TRT", "TRT", "note", "plugin of TensorRT's own library"),
        ("FusedConv", "com.microsoft", "unknown", "of the domain 'com.microsoft'"),
        ("Swoosh", "", "unknown", "does not name it"),
    ],
)
def test_plugins_and_operators_of_others(op: str, domain: str, proper: str, why: str, tmp_path: Path) -> None:
    file = write_graph(tmp_path / "m.onnx", [node(op, "x", domain=domain)], domains=[domain] if domain else [])
    about = {target: finding for finding in of_node(file, op) for target in finding.targets}
    assert about["tensorrt-10"].level == about["tensorrt-11"].level == proper
    assert why in about["tensorrt-10"].why
    assert about["tensorrt-rtx"].level == ("unknown" if op == "Swoosh" else "refused")


def test_a_local_function_is_looked_into(tmp_path: Path) -> None:
    file = write_graph(tmp_path / "m.onnx", [node("Mine", "x", domain="local")], domains=["local"])
    model = onnx.load(str(file))
    body = [helper.make_node("Det", ["a"], ["b"], name="inside")]
    imports = [helper.make_opsetid("", 18)]
    model.functions.append(helper.make_function("local", "Mine", ["a"], ["b"], body, imports))
    onnx.save(model, str(file))
    assert [(f.op, f.node) for f in found(file) if f.level == "refused"] == [("Det", "inside")]


def test_what_lies_in_a_branch_is_found(tmp_path: Path) -> None:
    def branch(name: str, op: str, rank: int) -> onnx.GraphProto:
        out = helper.make_tensor_value_info(name, TensorProto.FLOAT, [1] * rank)
        return helper.make_graph([helper.make_node(op, ["x"], [name], name=f"in_{name}")], name, [], [out])

    flag = ("c", TensorProto.BOOL, [])
    chosen = node("If", "c", then_branch=branch("a", "Det", 4), else_branch=branch("b", "Relu", 4))
    file = write_graph(tmp_path / "m.onnx", [chosen], inputs=[("x", TensorProto.FLOAT, [1, 3, 8, 8]), flag])
    assert [f.node for f in found(file) if f.level == "refused"] == ["in_a"]
    assert [f.level for f in of_node(file, "If")] == ["note"]
    other = node("If", "c", then_branch=branch("a", "Relu", 4), else_branch=branch("b", "Relu", 2))
    file = write_graph(tmp_path / "n.onnx", [other], inputs=[("x", TensorProto.FLOAT, [1, 3, 8, 8]), flag])
    assert [f.level for f in of_node(file, "If")] == ["refused"]


@pytest.mark.parametrize(
    ("opset", "level", "targets"),
    [(8, "refused", ALL), (20, None, ()), (21, "note", ("tensorrt-10",)), (25, "doubt", ALL)],
)
def test_the_opset(opset: int, level: str | None, targets: tuple[str, ...], tmp_path: Path) -> None:
    about = [f for f in found(write_graph(tmp_path / "m.onnx", [node("Relu", "x")], opset=opset)) if not f.op]
    assert [(f.level, f.targets) for f in about] == ([(level, targets)] if level else [])


def test_an_operator_that_came_later_names_its_version(tmp_path: Path) -> None:
    file = write_graph(
        tmp_path / "m.onnx", [node("RMSNormalization", "x w")], stored={"w": np.ones(8, np.float32)}, opset=23
    )
    (finding,) = of_node(file, "RMSNormalization")
    assert (finding.level, finding.targets) == ("note", ("tensorrt-10",))
    assert "TensorRT 10.15 or newer" in finding.why


@pytest.mark.parametrize(("kind", "said"), [(TensorProto.INT64, "int64, not int32"), (TensorProto.DOUBLE, "float32")])
def test_inputs_of_int64_and_double_are_told(kind: int, said: str, tmp_path: Path) -> None:
    inputs, output = [("x", kind, [1, 3])], ("y", kind, [1, 3])
    about = found(write_graph(tmp_path / "m.onnx", [node("Abs", "x")], inputs=inputs, output=output))
    assert {f.level for f in about} == {"note"}
    assert all(said in f.why for f in about)
    assert len(about) == 2


def test_a_type_that_tensorrt_does_not_have_is_refused(tmp_path: Path) -> None:
    inputs, output = [("x", TensorProto.UINT16, [1, 3])], ("y", TensorProto.UINT16, [1, 3])
    file = write_graph(tmp_path / "m.onnx", [node("Identity", "x")], inputs=inputs, output=output)
    assert any(f.level == "refused" and "uint16" in f.why for f in found(file))


def test_bf16_before_its_opset_is_in_doubt_for_every_runtime(tmp_path: Path) -> None:
    nodes = [
        node("Cast", "x", "b", to=TensorProto.BFLOAT16),
        node("GlobalAveragePool", "b", "c"),
        node("Cast", "c", to=1),
    ]
    about = of_node(write_graph(tmp_path / "m.onnx", nodes, opset=18), "GlobalAveragePool")
    assert [(f.level, f.targets) for f in about] == [("doubt", ("onnxruntime", *ALL))]
    assert "from opset 22 on, and the file has opset 18" in about[0].why
    assert about[0].do == "export it with --opset 22"
    assert of_node(write_graph(tmp_path / "n.onnx", nodes, opset=22), "GlobalAveragePool") == []


def test_bf16_where_the_list_has_half_precision_only(tmp_path: Path) -> None:
    nodes = [node("Cast", "x", "b", to=TensorProto.BFLOAT16), node("Mish", "b", "c"), node("Cast", "c", to=1)]
    about = [f for f in of_node(write_graph(tmp_path / "m.onnx", nodes, opset=22), "Mish") if f.level == "doubt"]
    assert [f.do for f in about] == ["export it with --precision fp16"]


def test_a_dynamic_shape_needs_a_profile(tmp_path: Path) -> None:
    inputs = [("x", TensorProto.FLOAT, ["n", 3, 8, 8])]
    (finding,) = found(write_graph(tmp_path / "m.onnx", [node("Relu", "x")], inputs=inputs))
    assert (finding.level, finding.targets) == ("note", ALL)
    assert "--profile" in finding.do


def with_weights(file: Path, location: str) -> Path:
    write_graph(file, [node("Add", "x w")], stored={"w": np.ones((3, 8, 8), np.float32)})
    onnx.save(onnx.load(str(file)), str(file), save_as_external_data=True, location="w.data", size_threshold=0)
    model = onnx.load(str(file), load_external_data=False)
    next(e for e in model.graph.initializer[0].external_data if e.key == "location").value = location
    onnx.save(model, str(file))
    return file


def test_external_weights_are_looked_for(tmp_path: Path) -> None:
    file = with_weights(tmp_path / "m.onnx", "w.data")
    assert found(file) == []
    data = (tmp_path / "w.data").read_bytes()
    (tmp_path / "w.data").write_bytes(data[:100])
    assert [f.why for f in found(file)] == ["its weights lie in w.data, which has 100 bytes of 768"]
    (tmp_path / "w.data").unlink()
    (finding,) = found(file)
    assert (finding.level, finding.targets) == ("refused", ("onnxruntime", *ALL))
    assert finding.why == "its weights lie in w.data, which is missing"


@pytest.mark.parametrize("location", ["../w.data", "/etc/hostname"])
def test_external_weights_elsewhere_are_refused(location: str, tmp_path: Path) -> None:
    (finding,) = found(with_weights(tmp_path / "m.onnx", location))
    assert finding.level == "refused"
    assert "not in the folder of the file" in finding.why


def test_what_is_no_onnx_file_is_an_error(tmp_path: Path) -> None:
    for content in (b"", b"no model"):
        (tmp_path / "m.onnx").write_bytes(content)
        with pytest.raises(ArtefactError, match="is not a whole ONNX file"):
            read_graph(tmp_path / "m.onnx")


def test_the_tables_do_not_contradict_each_other() -> None:
    assert not NEVER & set(TYPES)
    assert set(LATER) | set(RTX_NEVER) | set(TRIED_TYPES) <= set(TYPES)
    known = {schema.name for schema in onnx.defs.get_all_schemas_with_history()}
    assert NEVER | set(ADVICE) <= known
    older = {"ImageScaler", "ParametricSoftplus", "ScaledTanh"}  # experimental operators that ONNX took out again
    assert set(TYPES) - known <= older
    assert all(not TRIED_TYPES[op] & TYPES[op] for op in TRIED_TYPES)


def test_a_type_that_onnx_does_not_define_and_names_that_are_no_text_are_refused(tmp_path: Path) -> None:
    file = write_graph(tmp_path / "m.onnx", [node("Relu", "x")])
    model = onnx.load(file)
    model.graph.input[0].type.tensor_type.elem_type = 65_536
    onnx.save(model, file)
    with pytest.raises(ArtefactError, match="the tensor 'x' is of type 65536, which ONNX does not define"):
        read_graph(file)
    file.write_bytes(write_graph(file, [node("Relu", "x")]).read_bytes().replace(b"the_Relu", b"the_\xffelu"))
    with pytest.raises(ArtefactError, match="a name in it is not UTF-8"):
        read_graph(file)


@pytest.mark.parametrize(
    ("location", "length", "said"),
    [("n" * 300, "4", "is missing"), ("here.data", "9" * 5000, None), ("here.data", "5", "has 4 bytes of 5")],
)
def test_external_weights_with_a_name_or_a_length_beyond_all_files(
    location: str, length: str, said: str | None, tmp_path: Path
) -> None:
    file = write_graph(tmp_path / "m.onnx", [node("Add", "x w")], stored={"w": np.float32(1)})
    model = onnx.load(file)
    (tensor,) = model.graph.initializer
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in (("location", location), ("length", length)):
        tensor.external_data.add(key=key, value=value)
    file.write_bytes(model.SerializeToString())
    (tmp_path / "here.data").write_bytes(bytes(4))
    texts = [finding.why for finding in found(file) if "its weights lie in" in finding.why]
    assert len(texts) == (said is not None)
    assert said is None or said in texts[0]
