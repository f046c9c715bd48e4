"""Training: the loss means what the head decodes, and a few steps make it smaller."""

from __future__ import annotations

from pathlib import Path
from typing import cast

import numpy as np
import pytest
import torch

from deploykit.models.layers.anchor_head import IKeypoint
from deploykit.models.registry import load_model
from deploykit.models.yolo_graph.layer_graph import build_graph
from scripts.markers.dataset import Pool, scenes
from scripts.markers.loss import Targets, ciou, loss_of, matches
from scripts.markers.network import config
from scripts.markers.train import KEYPOINT_FACTS, WARM_UP, batch_of, checkpoint_of, rate, raw_outputs, train


@pytest.fixture(scope="module")
def pool() -> Pool:
    made = list(scenes(0, 6))
    return Pool(np.stack([s.image for s in made]), [s.labels for s in made], [s.corners for s in made])


def test_a_box_is_learned_by_the_cell_of_its_centre_and_its_two_nearest_neighbours() -> None:
    anchors = torch.tensor([[10.0, 10.0], [40.0, 40.0]])
    which, anchor, y, x = matches(torch.tensor([[21.0, 26.0, 12.0, 9.0]]), anchors, 8, 10, 10)
    assert which.tolist() == [0, 0, 0]
    assert anchor.tolist() == [0, 0, 0]  # 12 x 9 is more than the ratio smaller than 40 x 40
    # the centre is at cell 2.6, 3.25: right of the middle of its column, and above that of its row
    assert sorted(zip(x.tolist(), y.tolist(), strict=True)) == [(2, 2), (2, 3), (3, 3)]


def test_rows_that_are_right_cost_nothing_but_objectness() -> None:
    """Raw values that decode to the truth, by the head's own decoding, have no loss of box, class and corners."""
    head = cast(IKeypoint, build_graph(config()).head)
    box = torch.tensor([[36.0, 44.0, 20.0, 24.0]])
    corners = torch.tensor([[[26.0, 32.0, 2.0], [46.0, 32.0, 2.0], [46.0, 56.0, 2.0], [26.0, 56.0, 2.0]]])
    targets = Targets(torch.tensor([0]), torch.tensor([1]), box, corners, torch.zeros(0, 5))
    raw = [torch.zeros(1, head.num_anchors * head.columns, 16, 16)]
    cells = raw[0].view(1, head.num_anchors, head.columns, 16, 16)
    which, anchor, y, x = matches(box, head.anchor_grid[0].view(-1, 2), 8, 16, 16)
    assert len(which) == 3
    for a, row, column in zip(anchor.tolist(), y.tolist(), x.tolist(), strict=True):
        grid = torch.tensor([column, row])
        share = (box[0, :2] / 8 - grid + 0.5) / 2
        size = (box[0, 2:] / head.anchor_grid[0].view(-1, 2)[a]).sqrt() / 2
        points = torch.cat(((corners[0, :, :2] / 8 - grid + 0.5) / 2, torch.full((4, 1), 20.0)), 1)
        cells[0, a, :, row, column] = torch.cat(
            (share.logit(), size.logit(), torch.tensor([20.0, -20.0, 20.0]), points.flatten())
        )
    decoded = head.decode(raw[0], 0).view(head.num_anchors, 16, 16, head.columns)[anchor, y, x]
    assert torch.allclose(decoded[:, :4], box, atol=1e-3)
    assert torch.allclose(decoded[:, 7:].view(-1, 4, 3)[..., :2], corners[..., :2], atol=1e-3)
    parts = loss_of(head, raw, targets)
    assert {name: round(float(part), 4) for name, part in parts.items() if name != "object"} == {
        "box": 0.0, "class": 0.0, "corner": 0.0, "seen": 0.0,
    }  # fmt: skip
    raw[0].neg_()
    assert all(float(part) > 0.01 for part in loss_of(head, raw, targets).values())


def test_ciou_of_a_box_with_itself_is_one_and_falls_with_the_distance() -> None:
    box = torch.tensor([[20.0, 20.0, 10.0, 10.0]])
    near, far = (box + torch.tensor([[d, 0, 0, 0]]) for d in (30.0, 60.0))
    assert float(ciou(box, box)) == pytest.approx(1, abs=1e-5)
    assert -1 < float(ciou(far, box)) < float(ciou(near, box)) < 0


def test_objectness_is_not_learned_in_ignored_boxes() -> None:
    head = cast(IKeypoint, build_graph(config()).head)
    raw = [torch.full((1, head.num_anchors * head.columns, 4, 4), 5.0)]
    none = {"image": torch.zeros(0).long(), "label": torch.zeros(0).long(), "box": torch.zeros(0, 4)}
    every = torch.tensor([[0.0, 0.0, 0.0, 32.0, 32.0]])
    lost = [
        float(loss_of(head, raw, Targets(**none, corners=torch.zeros(0, 4, 3), ignored=ignored))["object"])
        for ignored in (every[:0], every)
    ]
    assert lost[0] > 1
    assert lost[1] == 0


def test_what_is_moved_with_the_image_stays_on_it(pool: Pool) -> None:
    """Corners painted into the scenes are found where the example says that they are."""
    checked = 0
    for number, corners in enumerate(pool.corners):
        image = np.zeros_like(pool.images[number])
        for x, y, _ in corners.reshape(-1, 3):
            if 4 < x < 444 and 4 < y < 444:
                image[round(y - 0.5) - 2 : round(y - 0.5) + 3, round(x - 0.5) - 2 : round(x - 0.5) + 3] = 255
        painted = Pool(image[None], [pool.labels[number]], [corners])
        pixels, targets = batch_of(painted, [0], 320, np.random.default_rng(number))
        for x, y, v in targets.corners.reshape(-1, 3).tolist():
            if v and 4 < x < 316 and 4 < y < 316:
                around = pixels[0, :, int(y) - 1 : int(y) + 2, int(x) - 1 : int(x) + 2]
                checked += 1
                assert float(around.max()) > float(pixels[0].median()) + 0.2
    assert checked >= 8


def test_a_few_steps_make_the_loss_smaller_and_the_checkpoint_is_a_model(
    pool: Pool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    images, targets = batch_of(pool, [0, 1, 2, 3, 4, 5], 96, np.random.default_rng(0))
    torch.manual_seed(0)
    graph = build_graph(config()).train().requires_grad_(True)
    head = cast(IKeypoint, graph.head)
    head.random_weights(1.0)
    optimiser = torch.optim.AdamW(graph.parameters(), lr=3e-3)
    sums = []
    for _ in range(25):
        total = torch.stack(list(loss_of(head, raw_outputs(graph, images), targets).values())).sum()
        optimiser.zero_grad()
        total.backward()
        optimiser.step()
        sums.append(float(total.detach()))
    assert sums[-1] < 0.6 * sums[0]
    train(pool, 1, 1, tmp_path / "markers.pt")
    model = load_model(tmp_path / "markers.pt")
    assert model.spec.classes == ("qr code", "aruco marker")
    assert model.spec.keypoints is not None
    assert list(model.spec.keypoints.names) == KEYPOINT_FACTS["names"]


def test_a_seed_is_a_checkpoint(pool: Pool, tmp_path: Path) -> None:
    for name in ("one.pt", "same.pt"):
        train(pool, 2, 2, tmp_path / name)
    assert (tmp_path / "one.pt").read_bytes() == (tmp_path / "same.pt").read_bytes()


def test_the_clock_ends_a_training_whose_steps_would_take_longer(pool: Pool, tmp_path: Path) -> None:
    train(pool, 10**9, 10**9, tmp_path / "markers.pt", minutes=1e-6)
    assert (tmp_path / "markers.pt").is_file()


def test_the_learning_rate_rises_to_its_peak_and_ends_at_a_hundredth() -> None:
    assert rate(0) < 0.02
    assert rate(WARM_UP) == pytest.approx(1, abs=0.01)
    assert rate(0.5) == pytest.approx(0.505)
    assert rate(1) == pytest.approx(0.01)


def test_what_is_shipped_is_the_network_with_its_batch_norms_fused(tmp_path: Path) -> None:
    torch.manual_seed(0)
    graph = build_graph(config())
    for module in graph.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.1)  # type: ignore[union-attr]
            module.running_var.uniform_(0.5, 2)  # type: ignore[union-attr]
    (tmp_path / "markers.pt").write_bytes(checkpoint_of(graph.requires_grad_(False), 1))
    loaded, images = load_model(tmp_path / "markers.pt").module, torch.rand(1, 3, 64, 64)
    assert not any(isinstance(module, torch.nn.BatchNorm2d) for module in loaded.modules())
    expected, found = graph.eval()(images), loaded(images)
    assert float((expected - found).abs().max()) < 2e-4 * float(expected.abs().max())  # half precision
