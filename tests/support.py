"""What is tested for which family and which kind of output: every cell names its test.

The site shows it as the support matrix (docs/site/support.py); tests/test_support_table.py checks that the tests exist.
An empty cell means that no test is about this pair alone, not that it does not work.
"""

from __future__ import annotations

import ast
import re
from dataclasses import dataclass
from pathlib import Path

__all__ = ["FAMILIES", "KINDS", "TABLES", "Table", "needs_of"]

MARKERS = {"slow", "data", "gpu", "tensorrt", "skip"}


@dataclass(frozen=True)
class Table:
    """Rows of cells; a cell is the id of a test, by the column that it is in."""

    title: str
    columns: tuple[str, ...]
    rows: dict[str, dict[str, str]]


def _exports(name: str, **more: str) -> dict[str, str]:
    """The cells of a detector's variant in tests/export/test_exports.py, and more."""
    page = "tests/export/test_exports.py"
    return {"ONNX": f"{page}::test_every_family_exports_and_agrees[{name}]", **_columns(more)}


def _columns(cells: dict[str, str]) -> dict[str, str]:
    names = {
        "read": "read checkpoint", "onnx": "ONNX", "legacy": "older exporter", "batch": "dynamic batch",
        "shape": "dynamic shape", "nms": "NMS inside", "half": "fp16", "engine": "TensorRT-RTX engine",
        "original": "against the original",
    }  # fmt: skip
    return {names[column]: f"tests/{node}" for column, node in cells.items()}


OLDER = "export/test_exports.py::test_the_older_exporter_gives_a_variant_a_family_that_agrees"
HALF = "export/precision/test_convert.py::test_every_family_is_half"
BATCH = "export/test_exports.py::test_every_family_exports_and_agrees"
MODELS = "models/families"
PACKAGE = f"{MODELS}/ultralytics"
FREE = "export/test_free_exports.py::test_every_list_of_layers_exports_and_agrees"
FREE_ENGINE = "export/test_free_exports.py::test_an_engine_is_built"
FREE_NMS = "export/nms/test_free_candidates.py::test_an_export_is_verified_and_decodes_only_what_it_chooses"
OLDER_FREE = "export/test_free_exports.py::test_the_older_exporter_agrees_too"
CREATED = "models/create/test_original_format.py::test_the_other_projects_are_written_as_they_do"

FAMILIES = Table(
    "Families",
    (
        "read checkpoint", "against the original", "ONNX", "older exporter", "dynamic batch", "dynamic shape",
        "NMS inside", "fp16", "TensorRT-RTX engine",
    ),
    {
        "YOLOv3": _exports(
            "yolov3_tiny", legacy=f"{OLDER}[yolov3_tiny]", batch=f"{BATCH}[yolov3]",
            read=f"{MODELS}/test_yolov3.py::test_a_file_of_its_own_description_is_called_by_its_name",
        ),
        "YOLOv5": _exports(
            "yolov5n", legacy=f"{OLDER}[yolov5s]", batch=f"{BATCH}[yolov5s6]", half=f"{HALF}[yolov5n]",
            read=CREATED, original="models/yolo_graph/test_cases.py::test_a_file_computes_what_the_original_does",
        ),
        "YOLOv5 -seg": _exports(
            "yolov5n_seg",
            read=f"{MODELS}/test_yolov5_tasks.py::test_a_created_file_is_in_the_originals_format_and_read_back",
            original=f"{MODELS}/test_yolov5_tasks.py::test_rows_and_prototypes_of_the_original_are_reproduced",
        ),
        "YOLOv5 -cls": _columns(dict(
            read=f"{MODELS}/test_yolov5_tasks.py::test_a_created_file_is_in_the_originals_format_and_read_back",
            original=f"{MODELS}/test_yolov5_tasks.py::test_logits_of_the_original_are_reproduced",
            onnx=f"{MODELS}/test_yolov5_tasks.py::test_an_exported_classifier_gives_the_originals_probabilities",
            batch=f"{MODELS}/test_yolov5_tasks.py::test_an_exported_classifier_gives_the_originals_probabilities",
        )),
        "YOLO-Pose": _exports("yolov5s6_pose", legacy=f"{OLDER}[yolov5s6_pose]", read=CREATED),
        "YOLOv6": _exports(
            "yolov6n", legacy=f"{OLDER}[yolov6n_v2]", batch=f"{BATCH}[yolov6n6]", half=f"{HALF}[yolov6n]",
            read="models/create/test_yolov6_format.py::test_it_is_read_like_a_released_file",
            shape="export/test_yolov6_exports.py::test_a_dynamic_shape_takes_any_batch_and_any_good_size",
            nms="export/test_yolov6_exports.py::test_nms_in_the_graph_finds_what_nms_behind_it_finds",
            engine="export/test_yolov6_exports.py::test_an_engine_is_built",
        ),
        "YOLOv7": _exports(
            "yolov7", legacy=f"{OLDER}[yolov7_tiny]", batch=f"{BATCH}[yolov7_w6]", half=f"{HALF}[yolov7_tiny]",
            read="models/create/test_original_format.py::test_our_reader_reads_it_like_a_released_file",
            original="models/yolo_graph/test_cases.py::test_a_file_computes_what_the_original_does",
        ),
        "YOLOv7-w6-pose": _exports(
            "yolov7_w6_pose", half="export/precision/test_convert.py::test_w6_pose_has_few_casts",
            read="models/create/test_original_format.py::test_our_reader_reads_it_like_a_released_file",
            engine="export/engine/test_build.py::test_the_golden_pose_model_becomes_an_engine",
        ),
        "YOLOX": _exports(
            "yolox_nano", legacy=f"{OLDER}[yolox_nano]", batch=f"{BATCH}[yolox_m]", half=f"{HALF}[yolox_s]",
            read=f"{MODELS}/test_yolox.py::test_a_created_checkpoint_is_recognised",
            shape="export/test_yolox_exports.py::test_a_dynamic_shape_takes_any_batch_and_any_good_size",
            nms="export/test_yolox_exports.py::test_nms_inside_finds_what_the_runtime_finds",
            engine="export/test_yolox_exports.py::test_tensorrt_for_rtx_builds_an_engine",
        ),
        "YOLOX-Pose": _exports("yolox_s_pose", legacy=f"{OLDER}[yolox_s_pose_ti_lite]"),
        "KaPao": _exports(
            "kapao_s", legacy=f"{OLDER}[kapao_s]", half=f"{HALF}[kapao_s]", batch=f"{BATCH}[kapao_l]",
            read=f"{MODELS}/test_kapao.py::test_a_file_is_recognised",
            shape="export/test_exports.py::test_pose_objects_export_and_agree_in_every_shape",
            engine="export/test_pose_objects.py::test_an_engine_is_built_with_the_rows_that_it_must_give",
        ),
        "YOLOv8 and later (ultralytics): boxes": _columns(dict(
            read=f"{PACKAGE}/test_golden.py::test_a_file_says_what_it_is",
            original=f"{PACKAGE}/test_golden.py::test_the_packages_own_output_is_reproduced",
            onnx=f"{FREE}[yolov10s]", legacy=f"{OLDER_FREE}[yolov8n]", batch=f"{FREE}[yolov8n]",
            shape="export/test_end_to_end.py::test_there_are_as_many_rows_as_the_image_has_cells",
            half="export/test_end_to_end.py::test_half_precision_is_verified[detect26]",
            engine=f"{FREE_ENGINE}[yolo26n]",
        )),
        "YOLOv8 and later: keypoints": _columns(dict(
            original=f"{PACKAGE}/test_golden.py::test_the_packages_own_output_is_reproduced",
            onnx=f"{FREE}[yolo11m-pose]", batch=f"{FREE}[yolov8n-pose]", nms=f"{FREE_NMS}[face]",
        )),
        "YOLOv8 and later: masks": _columns(dict(
            original=f"{PACKAGE}/test_golden.py::test_the_packages_own_output_is_reproduced",
            onnx=f"{FREE}[yolo26n-seg]", batch=f"{FREE}[yolo12l-seg]", nms=f"{FREE_NMS}[segment26]",
            half="export/test_end_to_end.py::test_half_precision_is_verified[segment26]",
            engine=f"{FREE_ENGINE}[yolov8n-seg]",
        )),
        "YOLOv8 and later: oriented boxes": _columns(dict(
            original=f"{PACKAGE}/test_golden.py::test_the_packages_own_output_is_reproduced",
            onnx=f"{FREE}[yolov8s-obb]", legacy=f"{OLDER_FREE}[yolov8s-obb]", batch=f"{FREE}[yolo11n-obb]",
            nms=f"{FREE_NMS}[oriented]", engine=f"{FREE_ENGINE}[yolov8s-obb]",
        )),
        "YOLOv8 and later: classes": _columns(dict(
            read=f"{PACKAGE}/test_golden.py::test_a_file_says_what_it_is",
            original=f"{PACKAGE}/test_golden.py::test_softmax_of_the_logits_is_the_packages_output",
            onnx=f"{FREE}[yolov8n-cls]",
        )),
        "ViT Mask R-CNN (ViTDet)": _columns(dict(
            read=f"{MODELS}/test_vit_mask_rcnn.py::test_its_files_are_read",
            original=f"{MODELS}/test_vitdet.py::test_it_gives_what_the_originals_code_gave",
            onnx="export/test_instances.py::test_it_is_verified_with_its_masks",
            batch="export/test_instances.py::test_images_of_a_batch_do_not_mix",
            nms="export/test_instances.py::test_it_is_verified_with_its_masks",
            engine="export/test_instances.py::test_an_engine_of_the_first_part_is_built",
        )),
        "U-Net": _columns(dict(
            read=f"{MODELS}/test_unet.py::test_a_created_checkpoint_is_recognised",
            original=f"{MODELS}/test_unet.py::test_the_originals_own_output_is_reproduced",
            onnx="export/test_unet_exports.py::test_a_fixed_shape_pads_only_where_it_must",
            batch="export/test_unet_exports.py::test_a_pooled_one_takes_batches",
            shape="export/test_unet_exports.py::test_a_free_shape_is_any_shape",
            half="export/test_unet_exports.py::test_half_precision_keeps_the_classes",
            engine="export/test_unet_exports.py::test_tensorrt_for_rtx_builds_an_engine",
        )),
        "FCN": _columns(dict(
            read=f"{MODELS}/test_fcn.py::test_any_layout_is_read_from_its_tensors",
            onnx=f"{MODELS}/test_fcn.py::test_it_is_exported_and_built",
            shape=f"{MODELS}/test_fcn.py::test_a_file_of_free_shape_takes_any_size",
            half=f"{MODELS}/test_fcn.py::test_pixels_without_any_length_stay_finite_in_a_file",
            engine=f"{MODELS}/test_fcn.py::test_it_is_exported_and_built",
        )),
        "NAFNet": _columns(dict(
            read=f"{MODELS}/test_nafnet.py::test_any_layout_is_read_from_its_tensors",
            original=f"{MODELS}/test_nafnet.py::test_it_gives_what_the_originals_code_gave",
            onnx=f"{MODELS}/test_nafnet.py::test_its_export_gives_what_the_originals_code_gave",
            shape=f"{MODELS}/test_nafnet.py::test_a_file_of_free_shape_takes_any_size",
            half=f"{MODELS}/test_nafnet.py::test_layer_norms_with_large_sums_stay_fp32",
            engine=f"{MODELS}/test_nafnet.py::test_tlc_is_exported",
        )),
        "ResNet": _columns(dict(
            read=f"{MODELS}/test_resnet.py::test_everything_is_read_from_the_tensors",
            onnx=f"{MODELS}/test_resnet.py::test_its_export_has_no_batch_norm_left",
            batch=f"{MODELS}/test_resnet.py::test_its_export_has_no_batch_norm_left",
            half=f"{MODELS}/test_resnet.py::test_fp16_is_verified_and_an_engine_built",
            engine=f"{MODELS}/test_resnet.py::test_fp16_is_verified_and_an_engine_built",
        )),
        "ViT, MAE": _columns(dict(
            read=f"{MODELS}/test_vit.py::test_a_checkpoint_of_each_layout_is_read",
            onnx=f"{MODELS}/test_vit.py::test_its_export_is_verified",
            shape=f"{MODELS}/test_vit.py::test_the_exported_file_of_any_size_gives_what_the_network_gives",
            half=f"{MODELS}/test_vit.py::test_half_precision_is_verified",
            engine=f"{MODELS}/test_vit.py::test_an_engine_is_built",
        )),
        "CMT (also FlyEgle's)": _columns(dict(
            read=f"{MODELS}/test_cmt.py::test_a_checkpoint_is_read_with_its_size",
            original=f"{MODELS}/test_cmt.py::test_it_gives_what_the_originals_code_gave",
            onnx=f"{MODELS}/test_cmt.py::test_its_export_is_verified",
            shape=f"{MODELS}/test_cmt.py::test_the_exported_file_of_any_size_gives_what_the_network_gives",
            half=f"{MODELS}/test_cmt.py::test_fp16_is_verified_and_an_engine_built",
            engine=f"{MODELS}/test_cmt.py::test_fp16_is_verified_and_an_engine_built",
        )),
        "CrossFormer": _columns(dict(
            read=f"{MODELS}/test_crossformer.py::test_a_checkpoint_is_read_without_the_buffers_of_older_files",
            original=f"{MODELS}/test_crossformer.py::test_it_gives_what_the_originals_code_gave",
            onnx=f"{MODELS}/test_crossformer.py::test_its_export_is_verified",
            half=f"{MODELS}/test_crossformer.py::test_fp16_is_verified_and_an_engine_built",
            engine=f"{MODELS}/test_crossformer.py::test_fp16_is_verified_and_an_engine_built",
        )),
        "DynOPool": _columns(dict(
            read=f"{MODELS}/test_dynopool.py::test_any_layout_is_read_from_its_tensors",
            onnx=f"{MODELS}/test_dynopool.py::test_it_is_exported_and_built",
            shape=f"{MODELS}/test_dynopool.py::test_a_free_shape_has_the_rule_in_its_graph",
            engine=f"{MODELS}/test_dynopool.py::test_it_is_exported_and_built",
        )),
        "classifiers of timm": _columns(dict(
            read="models/test_timm_models.py::test_a_file_tells_its_classes_and_channels",
            onnx="models/test_timm_models.py::test_a_name_exports",
        )),
    },
)  # fmt: skip

RUNTIME = ("predict", "eval", "bench", "compare", "bf16", "int8")


def _runs(**cells: str) -> dict[str, str]:
    return {column: f"tests/{node}" for column, node in cells.items()}


PREDICT = "runtime/predict"
MASKS = "export/test_instances.py"
PROTOTYPES = "export/test_masked_exports.py"
FOREIGN = "runtime/foreign/test_draft.py"

KINDS = Table(
    "Kinds of output",
    RUNTIME,
    {
        "rows (detect, keypoints)": _runs(
            predict=f"{PREDICT}/test_detector.py::test_a_planted_block_is_found_where_it_is_and_by_its_colour",
            eval="runtime/evaluate/test_detection.py::test_a_network_that_finds_everything_scores_one",
            bench="cli/test_bench.py::test_two_tables_that_say_what_they_include",
            compare="export/nms/test_plan.py::test_compare_takes_rows_and_detections_in_any_mixture",
            bf16="export/precision/test_convert.py::test_half_is_half_as_large_verified_and_says_what_it_is",
            int8="export/precision/test_convert.py::test_int8_is_calibrated_by_the_best_method_and_keeps_what_hurts",
        ),
        "rows (oriented)": _runs(
            predict=f"{FOREIGN}::test_oriented_boxes_are_found_with_their_angles",
            eval="cli/test_foreign.py::test_the_ap_of_oriented_boxes_and_that_of_the_upright_ones_around_them",
            bench="cli/test_foreign.py::test_oriented_boxes_in_predict_bench_and_inspect",
            compare="cli/test_foreign.py::test_compare_of_oriented_boxes_looks_at_the_angles",
        ),
        "rows (instances, of other projects)": _runs(
            predict=f"{FOREIGN}::test_masks_are_assembled_from_prototypes_and_cropped_to_the_box",
            eval="cli/test_foreign.py::test_eval_scores_masks_of_prototypes",
            compare="cli/test_foreign.py::test_compare_looks_at_the_masks_of_prototypes",
        ),
        "rows (instances)": _runs(
            predict=f"{PROTOTYPES}::test_slots_of_a_batch_have_their_own_prototypes",
            eval="runtime/evaluate/test_prototype_instances.py::test_the_ap_is_that_of_masks",
            compare=f"{PROTOTYPES}::test_half_precision_is_held_to_its_tolerance",
            int8=f"{PROTOTYPES}::test_int8_measures_its_error_on_masks_too",
        ),
        "nms (instances, of prototypes)": _runs(
            predict="export/nms/test_masked_plan.py::test_every_way_gives_the_same_objects_and_masks",
            compare="export/nms/test_masked_plan.py::test_compare_takes_rows_and_detections_in_any_mixture",
        ),
        "anchor-heads": _runs(
            predict=f"{FOREIGN}::test_maps_without_anchors_are_refused_and_run_once_they_are_filled_in",
        ),
        "end-to-end": _runs(
            predict=f"{FOREIGN}::test_the_one_person_is_found",
            compare="cli/test_foreign.py::"
            "test_compare_finds_the_detections_of_an_end_to_end_file_in_the_rows_of_another",
        ),
        "nms": _runs(
            predict="export/nms/test_plan.py::test_every_way_finds_the_same_objects",
            compare="export/nms/test_plan.py::test_compare_takes_rows_and_detections_in_any_mixture",
            int8="export/precision/test_convert.py::test_nms_inside_has_the_same_layers_and_scales",
        ),
        "nms (instances)": _runs(
            predict=f"{MASKS}::test_masks_are_predicted_in_the_images_pixels",
            eval=f"{MASKS}::test_masks_are_evaluated",
            compare=f"{MASKS}::test_both_projects_files_are_read_and_compared",
        ),
        "pose-objects": _runs(
            compare="export/test_exports.py::test_pose_objects_export_and_agree_in_every_shape",
        ),
        "tensor (classify)": _runs(
            predict=f"{PREDICT}/test_dense.py::test_an_image_is_classified",
            eval="runtime/evaluate/test_dense.py::test_top_one_is_the_share_of_right_classes",
            bench=f"{PREDICT}/test_dense.py::test_it_is_measured_as_others_are",
            bf16="export/test_dense.py::test_lower_precisions[bf16]",
        ),
        "tensor (segment)": _runs(
            predict=f"{PREDICT}/test_dense.py::test_every_pixel_gets_a_class",
            eval="runtime/evaluate/test_dense.py::test_label_maps_are_compared_pixel_by_pixel",
            bench=f"{PREDICT}/test_dense.py::test_it_is_measured_as_others_are",
            bf16="export/test_dense.py::test_lower_precisions[bf16]",
        ),
        "tensor (restore)": _runs(
            predict=f"{PREDICT}/test_dense.py::test_an_image_of_any_size_is_restored",
            eval="runtime/evaluate/test_dense.py::test_a_network_that_gives_its_input_back_is_as_good_as_its_input",
            bench=f"{PREDICT}/test_dense.py::test_it_is_measured_as_others_are",
            bf16="export/test_dense.py::test_lower_precisions[bf16]",
        ),
        "tensor (features)": _runs(predict=f"{MODELS}/test_vit.py::test_features_are_predicted_and_compared"),
        "TensorRT engine": _runs(
            predict="gpu/test_engines.py::test_a_predictor_finds_what_the_onnx_file_finds",
            bench="cli/test_bench.py::test_an_engine_that_runs_is_measured",
            compare="gpu/test_engines.py::test_it_agrees_with_the_onnx_file",
        ),
    },
)

TABLES = (FAMILIES, KINDS)


def needs_of(root: Path, node: str) -> set[str] | None:
    """The markers of a test by its id, without running anything; None: there is no such test, or no such parameter."""
    path, _, rest = node.partition("::")
    found = re.fullmatch(r"(\w+)(?:\[(.+)\])?", rest)
    if not (root / path).is_file() or found is None:
        return None
    text = (root / path).read_text(encoding="utf-8")
    tree = ast.parse(text)
    tests = [each for each in tree.body if isinstance(each, ast.FunctionDef) and each.name == found[1]]
    if not tests or (found[2] and not re.search(rf"\b{re.escape(found[2])}\b", text)):
        return None
    whole = [each for each in tree.body if isinstance(each, ast.Assign) and ast.unparse(each).startswith("pytestmark")]
    said = "\n".join(
        ast.unparse(each) for each in (*whole, *tests[0].decorator_list) if "parametrize" not in ast.unparse(each)
    )
    return {marker for marker in MARKERS if re.search(rf"\bmark\.{marker}\b", said)}
