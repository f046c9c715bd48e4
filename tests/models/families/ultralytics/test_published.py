"""Every published network of the ultralytics package has the published numbers of parameters, tensors and norms."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from deploykit.models.families.ultralytics.as_saved import folded_as_saved
from deploykit.models.families.ultralytics.blocks.cib import RepVGGDW
from deploykit.models.families.ultralytics.blocks.elan import RepConv
from deploykit.models.families.ultralytics.build import build_graph
from deploykit.models.families.ultralytics.description import Description
from deploykit.models.families.ultralytics.heads.detect import FreeDetect
from deploykit.models.families.ultralytics.heads.pose import Pose26
from deploykit.models.families.ultralytics.heads.segment import Segment26
from deploykit.models.families.ultralytics.variants import description_of, variants
from deploykit.models.fuse import fuse_model
from deploykit.models.layers.conv import Conv
from deploykit.models.yolo_graph.layer_graph import LayerGraph

# name: (classes, parameters, parameters when folded with one branch, keys of the state dict, batch norms), counted on
# the package's own models of release 8.4.190 (facts; two branches, and what only training uses, are in all but the
# third number).
PUBLISHED: dict[str, tuple[int, int, int, int, int]] = {
    "yolov8n": (80, 3_157_200, 3_151_904, 355, 57),
    "yolov8s": (80, 11_166_560, 11_156_544, 355, 57),
    "yolov8m": (80, 25_902_640, 25_886_080, 475, 77),
    "yolov8l": (80, 43_691_520, 43_668_288, 595, 97),
    "yolov8x": (80, 68_229_648, 68_200_608, 595, 97),
    "yolov8n-seg": (80, 3_409_968, 3_404_320, 417, 66),
    "yolov8s-seg": (80, 11_821_056, 11_810_560, 417, 66),
    "yolov8m-seg": (80, 27_285_968, 27_268_704, 537, 86),
    "yolov8l-seg": (80, 45_997_728, 45_973_568, 657, 106),
    "yolov8x-seg": (80, 71_827_888, 71_797_696, 657, 106),
    "yolov8n-pose": (1, 3_295_470, 3_289_964, 397, 63),
    "yolov8s-pose": (1, 11_626_046, 11_615_724, 397, 63),
    "yolov8m-pose": (1, 26_464_462, 26_447_596, 517, 83),
    "yolov8l-pose": (1, 44_489_196, 44_465_580, 637, 103),
    "yolov8x-pose": (1, 69_491_724, 69_462_204, 637, 103),
    "yolov8n-obb": (15, 3_085_440, 3_080_144, 397, 63),
    "yolov8s-obb": (15, 11_427_584, 11_417_376, 397, 63),
    "yolov8m-obb": (15, 26_425_600, 26_408_752, 517, 83),
    "yolov8l-obb": (15, 44_490_240, 44_466_624, 637, 103),
    "yolov8x-obb": (15, 69_493_056, 69_463_536, 637, 103),
    "yolov8n-cls": (1000, 2_719_288, 2_715_880, 158, 26),
    "yolov8s-cls": (1000, 6_361_736, 6_356_200, 158, 26),
    "yolov8m-cls": (1000, 17_053_336, 17_043_656, 230, 38),
    "yolov8l-cls": (1000, 37_480_744, 37_465_576, 302, 50),
    "yolov8x-cls": (1000, 57_422_840, 57_404_200, 302, 50),
    "yolov8n-p2": (80, 3_354_144, 3_348_240, 437, 70),
    "yolov8s-p2": (80, 10_884_336, 10_873_680, 437, 70),
    "yolov8m-p2": (80, 25_082_496, 25_064_944, 581, 94),
    "yolov8l-p2": (80, 42_888_080, 42_863_184, 725, 118),
    "yolov8x-p2": (80, 66_637_536, 66_606_544, 725, 118),
    "yolov8n-p6": (80, 4_984_352, 4_976_656, 467, 75),
    "yolov8s-p6": (80, 17_911_792, 17_897_168, 467, 75),
    "yolov8m-p6": (80, 44_887_488, 44_862_352, 623, 101),
    "yolov8l-p6": (80, 62_384_016, 62_351_440, 779, 127),
    "yolov8x-p6": (80, 97_423_072, 97_382_352, 779, 127),
    "yolov8n-seg-p6": (80, 5_302_816, 5_294_704, 543, 86),
    "yolov8s-seg-p6": (80, 18_687_280, 18_672_112, 543, 86),
    "yolov8m-seg-p6": (80, 46_542_144, 46_516_208, 699, 112),
    "yolov8l-seg-p6": (80, 65_024_336, 64_990_704, 855, 138),
    "yolov8x-seg-p6": (80, 101_542_624, 101_500_592, 855, 138),
    "yolov8n-pose-p6": (1, 5_182_152, 5_174_176, 523, 83),
    "yolov8s-pose-p6": (1, 18_563_608, 18_548_576, 523, 83),
    "yolov8m-pose-p6": (1, 45_724_712, 45_699_168, 679, 109),
    "yolov8l-pose-p6": (1, 63_496_736, 63_463_648, 835, 135),
    "yolov8x-pose-p6": (1, 99_182_640, 99_141_280, 835, 135),
    "yolo11n": (80, 2_624_080, 2_616_248, 499, 81),
    "yolo11s": (80, 9_458_752, 9_443_760, 499, 81),
    "yolo11m": (80, 20_114_688, 20_091_712, 649, 106),
    "yolo11l": (80, 25_372_160, 25_340_992, 1015, 167),
    "yolo11x": (80, 56_966_176, 56_919_424, 1015, 167),
    "yolo11n-seg": (80, 2_876_848, 2_868_664, 561, 90),
    "yolo11s-seg": (80, 10_113_248, 10_097_776, 561, 90),
    "yolo11m-seg": (80, 22_420_896, 22_396_992, 711, 115),
    "yolo11l-seg": (80, 27_678_368, 27_646_272, 1077, 176),
    "yolo11x-seg": (80, 62_142_656, 62_094_528, 1077, 176),
    "yolo11n-pose": (1, 2_874_462, 2_866_468, 541, 87),
    "yolo11s-pose": (1, 9_918_238, 9_902_940, 541, 87),
    "yolo11m-pose": (1, 20_912_364, 20_889_004, 691, 112),
    "yolo11l-pose": (1, 26_169_836, 26_138_284, 1057, 173),
    "yolo11x-pose": (1, 58_798_636, 58_751_308, 1057, 173),
    "yolo11n-obb": (15, 2_664_432, 2_656_648, 541, 87),
    "yolo11s-obb": (15, 9_719_776, 9_704_592, 541, 87),
    "yolo11m-obb": (15, 20_913_408, 20_890_048, 691, 112),
    "yolo11l-obb": (15, 26_170_880, 26_139_328, 1057, 173),
    "yolo11x-obb": (15, 58_800_256, 58_752_928, 1057, 173),
    "yolo11n-cls": (1000, 2_812_104, 2_807_024, 236, 39),
    "yolo11s-cls": (1000, 6_724_008, 6_715_128, 236, 39),
    "yolo11m-cls": (1000, 11_634_216, 11_622_632, 296, 49),
    "yolo11l-cls": (1000, 14_115_624, 14_099_432, 494, 82),
    "yolo11x-cls": (1000, 29_637_064, 29_613_416, 494, 82),
    "yolo26n": (80, 2_572_280, 2_408_932, 708, 114),
    "yolo26s": (80, 10_009_784, 9_496_140, 708, 114),
    "yolo26m": (80, 21_896_248, 20_411_132, 768, 124),
    "yolo26l": (80, 26_299_704, 24_807_420, 1092, 178),
    "yolo26x": (80, 58_993_368, 55_725_948, 1092, 178),
    "yolo26n-seg": (80, 3_126_280, 2_722_980, 844, 134),
    "yolo26s-seg": (80, 11_505_800, 10_396_300, 844, 134),
    "yolo26m-seg": (80, 27_112_072, 23_569_148, 904, 144),
    "yolo26l-seg": (80, 31_515_528, 27_965_436, 1228, 198),
    "yolo26x-seg": (80, 70_693_800, 62_819_132, 1228, 198),
    "yolo26n-pose": (1, 3_679_464, 2_926_494, 879, 126),
    "yolo26s-pose": (1, 11_809_352, 10_359_750, 879, 126),
    "yolo26m-pose": (1, 24_222_664, 21_538_166, 939, 136),
    "yolo26l-pose": (1, 28_626_120, 25_934_454, 1263, 190),
    "yolo26x-pose": (1, 62_731_860, 57_557_832, 1263, 190),
    "yolo26n-obb": (15, 2_652_984, 2_449_332, 792, 126),
    "yolo26s-obb": (15, 10_531_832, 9_756_972, 792, 126),
    "yolo26m-obb": (15, 23_493_688, 21_209_468, 852, 136),
    "yolo26l-obb": (15, 27_897_144, 25_605_756, 1176, 190),
    "yolo26x-obb": (15, 62_661_528, 57_559_452, 1176, 190),
    "yolo26n-cls": (1000, 2_812_104, 2_807_024, 236, 39),
    "yolo26s-cls": (1000, 6_724_008, 6_715_128, 236, 39),
    "yolo26m-cls": (1000, 11_634_216, 11_622_632, 296, 49),
    "yolo26l-cls": (1000, 14_115_624, 14_099_432, 494, 82),
    "yolo26x-cls": (1000, 29_637_064, 29_613_416, 494, 82),
    "yolo26n-p2": (80, 2_662_400, 2_474_296, 902, 145),
    "yolo26s-p2": (80, 9_765_856, 9_456_800, 902, 145),
    "yolo26m-p2": (80, 21_144_288, 20_365_648, 962, 155),
    "yolo26l-p2": (80, 25_815_520, 25_028_944, 1370, 223),
    "yolo26x-p2": (80, 57_935_232, 56_239_440, 1370, 223),
    "yolo26n-p6": (80, 4_063_872, 3_835_736, 962, 155),
    "yolo26s-p6": (80, 15_876_448, 15_154_528, 962, 155),
    "yolo26m-p6": (80, 32_400_096, 30_347_472, 1022, 165),
    "yolo26l-p6": (80, 39_365_600, 37_302_736, 1472, 240),
    "yolo26x-p6": (80, 88_330_368, 83_810_832, 1472, 240),
    "yolo12n": (80, 2_602_288, 2_590_824, 691, 113),
    "yolo12s": (80, 9_284_096, 9_261_840, 691, 113),
    "yolo12m": (80, 20_199_168, 20_166_592, 751, 123),
    "yolo12l": (80, 26_450_784, 26_400_752, 1245, 205),
    "yolo12x": (80, 59_210_784, 59_135_744, 1245, 205),
    "yolo12n-seg": (80, 2_855_056, 2_843_240, 753, 122),
    "yolo12s-seg": (80, 9_938_592, 9_915_856, 753, 122),
    "yolo12m-seg": (80, 22_505_376, 22_471_872, 813, 132),
    "yolo12l-seg": (80, 28_756_992, 28_706_032, 1307, 214),
    "yolo12x-seg": (80, 64_387_264, 64_310_848, 1307, 214),
    "yolo12n-pose": (80, 2_886_715, 2_874_945, 733, 119),
    "yolo12s-pose": (80, 9_774_155, 9_751_593, 733, 119),
    "yolo12m-pose": (80, 21_057_753, 21_024_793, 793, 129),
    "yolo12l-pose": (80, 27_309_369, 27_258_953, 1287, 211),
    "yolo12x-pose": (80, 61_134_489, 61_058_873, 1287, 211),
    "yolo12n-obb": (80, 2_673_955, 2_662_395, 733, 119),
    "yolo12s-obb": (80, 9_570_275, 9_547_827, 733, 119),
    "yolo12m-obb": (80, 21_048_003, 21_015_043, 793, 129),
    "yolo12l-obb": (80, 27_299_619, 27_249_203, 1287, 211),
    "yolo12x-obb": (80, 61_119_939, 61_044_323, 1287, 211),
    "yolo12n-cls": (1000, 2_999_496, 2_990_640, 350, 58),
    "yolo12s-cls": (1000, 7_385_512, 7_369_080, 350, 58),
    "yolo12m-cls": (1000, 13_261_608, 13_239_016, 410, 68),
    "yolo12l-cls": (1000, 16_737_160, 16_700_696, 736, 122),
    "yolo12x-cls": (1000, 35_351_112, 35_297_064, 736, 122),
    "yolov5nu": (80, 2_654_816, 2_649_200, 427, 69),
    "yolov5su": (80, 9_153_152, 9_142_496, 427, 69),
    "yolov5mu": (80, 25_111_456, 25_091_536, 559, 91),
    "yolov5lu": (80, 53_225_024, 53_193_088, 691, 113),
    "yolov5xu": (80, 97_276_448, 97_229_648, 823, 135),
    "yolov5n6u": (80, 4_334_896, 4_326_688, 563, 91),
    "yolov5s6u": (80, 15_309_328, 15_293_680, 563, 91),
    "yolov5m6u": (80, 41_222_064, 41_192_992, 731, 119),
    "yolov5l6u": (80, 86_099_920, 86_053_520, 899, 147),
    "yolov5x6u": (80, 155_544_432, 155_476_672, 1067, 175),
    "yolov10n": (80, 2_775_520, 2_299_264, 595, 95),
    "yolov10s": (80, 8_128_272, 7_248_960, 619, 99),
    "yolov10m": (80, 16_576_768, 15_359_488, 799, 129),
    "yolov10b": (80, 20_574_384, 19_065_792, 835, 135),
    "yolov10l": (80, 25_888_688, 24_371_008, 1027, 167),
    "yolov10x": (80, 31_808_960, 29_473_568, 1135, 185),
    "yolov9t": (80, 2_128_720, 2_094_000, 1339, 221),
    "yolov9s": (80, 7_318_368, 7_198_048, 1339, 221),
    "yolov9m": (80, 20_216_160, 20_070_832, 907, 149),
    "yolov9c": (80, 25_590_912, 25_380_928, 937, 154),
    "yolov9e": (80, 58_206_592, 57_438_080, 1811, 298),
    "yolov9c-seg": (80, 27_897_120, 27_686_208, 999, 163),
    "yolov9e-seg": (80, 60_512_800, 59_743_360, 1873, 307),
    "yolov3u": (80, 103_754_144, 103_725_920, 517, 84),
    "yolov3-sppu": (80, 104_803_744, 104_775_008, 523, 85),
    "yolov3-tinyu": (80, 12_173_248, 12_168_784, 123, 19),
}  # fmt: skip


def described(name: str) -> Description:
    return description_of(name.replace("-", "_"), PUBLISHED[name][0])


def parameters(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def training_only(head: nn.Module) -> tuple[int, int, int]:
    """Parameters, keys and norms of the head's modules that only the package's training uses, which ours lacks.

    ``Segment26``: two 3x3 convolutions with norms in the width of the prototypes, and a 1x1 to the classes.
    ``Pose26``: a 1x1 to two deviations per keypoint, for each level and branch; six pairs of three linear layers
    (2, 64, 64, 2) with three buffers beside them.
    """
    if isinstance(head, Segment26):
        width = head.proto.cv1.conv.in_channels
        return 2 * (9 * width**2 + 2 * width) + (width + 1) * head.num_classes, 2 * 6 + 2, 2
    if isinstance(head, Pose26):
        width, values = head.get_submodule("cv4_kpts.0").in_channels, 2 * head.kpt_shape[0]
        assert isinstance(width, int)
        deviations, flow = (width + 1) * values * 2 * head.num_levels, 12 * (2 * 64 + 64 + 64 * 64 + 64 + 64 * 2 + 2)
        return deviations + flow, 2 * 2 * head.num_levels + 12 * 6 + 3, 0
    return 0, 0, 0


def fold_on_meta(graph: LayerGraph) -> None:
    """Leave what the package's own folding leaves, one branch, without computing anything."""
    head = graph.model[-1]
    if isinstance(head, FreeDetect):
        graph.model[-1] = head.with_branch("one2many").alone()
    convolutions = [path for path, m in graph.named_modules() if isinstance(m, (Conv, RepConv, RepVGGDW))]
    folded_as_saved(graph, {f"{path}.conv.bias": torch.empty(0) for path in convolutions})


def test_every_network_has_its_row() -> None:
    assert {name.replace("-", "_") for name in PUBLISHED} == {*variants()}


def small(name: str) -> bool:
    """Whether it is of the smallest size, or of the only one: the others are built where there is time."""
    return variants()[name.replace("-", "_")].description.size in ("", "n")


@pytest.mark.parametrize(
    "name", [name if small(name) else pytest.param(name, marks=pytest.mark.slow) for name in PUBLISHED]
)
def test_parameters_keys_and_norms_are_the_published_ones(name: str) -> None:
    _, published, folded, keys, norms = PUBLISHED[name]
    with torch.device("meta"):
        graph = build_graph(described(name))
    more = training_only(graph.model[-1])
    found = [m for m in graph.modules() if isinstance(m, nn.BatchNorm2d)]
    assert (parameters(graph) + more[0], len(graph.state_dict()) + more[1]) == (published, keys)
    assert len(found) + more[2] == norms
    assert {m.eps for m in found} == ({1e-5} if name.endswith("-cls") else {1e-3})
    fold_on_meta(graph)
    assert parameters(graph) == folded


@pytest.mark.parametrize("name", ["yolov8n-seg", "yolo26n-pose", "yolov10n", "yolov9t"])
def test_folding_for_real_leaves_the_published_number_of_parameters(name: str) -> None:
    fused = fuse_model(build_graph(described(name)))
    assert parameters(fused) == PUBLISHED[name][2]
    assert not any(isinstance(m, nn.BatchNorm2d) for m in fused.modules())
