"""The page in a real browser: what it shows of every kind of result, its settings, its errors, and who can use it."""

from __future__ import annotations

import base64
import json
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import deploykit
from deploykit.runtime.arrays import Array
from deploykit.runtime.backends.fake import FakeSession
from deploykit.runtime.images.video_writer import Mp4Writer
from deploykit.runtime.options import PredictOptions
from deploykit.runtime.postprocess.masks import run_lengths
from deploykit.runtime.predict.predictor import Predictor
from deploykit.spec import NmsOutputs
from tests.browser import MISSING, Browser, browser
from tests.cell_model import RED, cell_spec
from tests.dense_networks import brightener, classifier, segmenter
from tests.serving import ASSETS, MARKERS, CellNetwork, served

pytestmark = [pytest.mark.slow, pytest.mark.skipif(bool(MISSING), reason=MISSING)]

IMAGE = ASSETS / "markers.jpg"
TAB, DOWN, ENTER = "\ue004", "\ue015", "\ue007"


def found_objects(kind: str) -> Predictor[Any]:
    """Two objects of two classes on any image of 64 x 64: with masks, or oriented."""
    masks = np.zeros((1, 4, 28, 28), np.float32)
    masks[0, 0, :, :14] = masks[0, 1, 14:] = 1
    values = {
        "num_dets": np.array([[2]], np.int32),
        "num_candidates": np.array([[2]], np.int32),
        "boxes": np.array([[[4, 4, 32, 32], [34, 34, 62, 62], [0] * 4, [0] * 4]], np.float32),
        "scores": np.array([[0.9, 0.6, 0, 0]], np.float32),
        "labels": np.array([[0, 1, 0, 0]], np.int32),
    }
    if kind == "instances":
        values["masks"], output = masks, NmsOutputs(masks="masks")
    else:
        values["boxes"] = np.array([[[32, 32, 40, 10], [20, 50, 12, 6], [0] * 4, [0] * 4]], np.float32)
        values["angles"], output = np.array([[np.pi / 4, 0, 0, 0]], np.float32), NmsOutputs(angles="angles")
    cells = cell_spec()
    spec = replace(
        cells, task=kind, keypoints=None, output=output, thresholds=replace(cells.thresholds, max_det=4)
    )  # fmt: skip
    return Predictor(FakeSession(lambda _: dict(values), spec=spec), options=PredictOptions(workers=1), name=kind)


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    folder = tmp_path_factory.mktemp("models")
    dense = {make.__name__: str(make(folder / f"{make.__name__}.onnx")) for make in (segmenter, brightener, classifier)}

    def load(path: str) -> Predictor[Any]:
        if path in ("instances", "oriented"):
            return found_objects(path)
        return CellNetwork().load(path) if path == "cells" else deploykit.load(path, threads=1)

    names = [f"markers={MARKERS}", *dense.values(), "cells", "instances", "oriented"]
    with served(names, load) as (found, _):
        yield found


@pytest.fixture(scope="module")
def window() -> Iterator[Browser]:
    with browser() as opened:
        yield opened


@pytest.fixture
def page(window: Browser, address: str) -> Browser:
    """The page, newly opened on a wide light screen."""
    window.look()
    window.log()
    window.open(f"{address}/")
    window.wait("document.querySelector('#model').options.length > 1")
    return window


def choose(page: Browser, model: str) -> None:
    page.run(
        "const field = document.querySelector('#model');"
        "field.selectedIndex = [...field.options].findIndex(({text}) => text.startsWith(arguments[0]));"
        "field.dispatchEvent(new Event('change'));",
        model,
    )


def slide(page: Browser, field: str, value: float) -> None:
    page.run(
        "const field = document.querySelector(arguments[0]); field.value = arguments[1];"
        "field.dispatchEvent(new Event('input'));",
        field,
        value,
    )


def show(page: Browser, file: Path, *, actual: bool = False) -> str:
    """Choose a file, and return the sentence of its result."""
    page.type("#file", str(file))
    page.wait("!document.querySelector('.busy') && !document.querySelector('#view').hidden")
    if actual:
        page.click("#full")
    return page.text("#sentence")


def written(folder: Path, image: Array) -> Path:
    file = folder / "image.png"
    cv2.imwrite(str(file), image)
    return file


def canvas(page: Browser) -> Array:
    """The canvas, RGB."""
    text = page.run("return document.querySelector('#canvas').toDataURL().split(',')[1]")
    return cv2.imdecode(np.frombuffer(base64.b64decode(text), np.uint8), cv2.IMREAD_COLOR)[..., ::-1]


def colour(page: Browser, label: int) -> list[int]:
    text = page.run("return (await (await fetch('v1/models')).json()).colours[arguments[0]]", label)
    return [int(text[i : i + 2], 16) for i in (1, 3, 5)]


def rows(page: Browser) -> list[list[str]]:
    """The cells of the table of results."""
    found: list[list[str]] = page.run(
        "return [...document.querySelectorAll('#table tbody tr')]"
        ".map((row) => [...row.cells].map((cell) => cell.textContent))"
    )
    return found


def requests_of(page: Browser) -> int:
    count: int = page.run(
        "return performance.getEntriesByType('resource').filter(({name}) => name.includes('v1/predict')).length"
    )
    return count


def shown_json(page: Browser) -> dict[str, Any]:
    if not page.run("return document.querySelector('#json-open').open"):
        page.click("#json-open summary")
    page.wait("document.querySelector('#json').textContent")
    found: dict[str, Any] = json.loads(page.run("return document.querySelector('#json').textContent"))
    return found


def test_a_file_is_shown_with_its_objects_in_image_words_and_table(page: Browser) -> None:
    sentence = show(page, IMAGE)
    assert sentence == "8 objects in markers.jpg: aruco marker 4, qr code 4."
    page.wait("document.querySelector('#live').textContent === arguments[0]", sentence)
    assert page.role("#canvas") == ("image", sentence)
    assert page.role("#live")[0] == "status"
    assert [cells[1] for cells in rows(page)].count("aruco marker") == 4
    assert len(rows(page)) == 8
    stages = page.text("#times")
    assert all(words in stages for words in ("the network", "way there and back", "drawing here"))
    with deploykit.load(MARKERS, threads=1) as model:
        expected = model(str(IMAGE)).to_dict()
    assert shown_json(page)["detections"] == expected["detections"]
    page.click("#labels")
    slide(page, "#view-points", 1)
    drawn = canvas(page)
    scale = drawn.shape[1] / expected["size"][1]
    for found in expected["detections"]:
        x1, y1, _, y2 = (round(each * scale) for each in found["box"])
        side = drawn[(y1 + y2) // 2, max(x1 - 2, 0) : x1 + 3].astype(int)
        assert np.abs(side - colour(page, found["label"])).max(1).min() < 60, found
    assert page.log() == []


def test_files_come_by_drop_and_by_paste_too(page: Browser) -> None:
    data = base64.b64encode(IMAGE.read_bytes()).decode()
    for kind in ("drop", "paste"):
        page.run(
            "const [data, kind] = arguments;"
            "const bytes = Uint8Array.from(atob(data), (c) => c.charCodeAt(0));"
            "const files = new DataTransfer();"
            "files.items.add(new File([bytes], `${kind}.jpg`, {type: 'image/jpeg'}));"
            "const about = {bubbles: true, cancelable: true};"
            "document.body.dispatchEvent(kind === 'drop' ? new DragEvent(kind, {...about, dataTransfer: files})"
            " : new ClipboardEvent(kind, {...about, clipboardData: files}));",
            data,
            kind,
        )
        page.wait("document.querySelector('#sentence').textContent.includes(arguments[0])", f"{kind}.jpg")
    assert page.text("#sentence").startswith("8 objects in paste.jpg")


def test_a_higher_confidence_is_a_filter_and_a_lower_one_a_request(page: Browser) -> None:
    show(page, IMAGE)
    before = requests_of(page)
    for conf in (0.88, 0.9, 0.5):
        slide(page, "#option-conf", conf)
        with deploykit.load(MARKERS, threads=1, conf=conf) as model:
            assert shown_json(page)["detections"] == model(str(IMAGE)).to_dict()["detections"]
    time.sleep(0.5)
    assert requests_of(page) == before
    slide(page, "#option-conf", 0.05)
    page.wait("document.querySelector('#sentence').textContent.startsWith('11 objects')")
    assert requests_of(page) == before + 1
    slide(page, "#option-iou", 0.2)
    page.wait("document.querySelector('#sentence').textContent.startsWith('9 objects')")
    assert requests_of(page) == before + 2
    page.click("#options > div:last-child button")
    page.wait("document.querySelector('#sentence').textContent.startsWith('8 objects')")


def test_keypoints_are_drawn_from_the_visibility_that_is_chosen(page: Browser, tmp_path: Path) -> None:
    image = np.zeros((64, 64, 3), np.uint8)
    image[8:16, 16:24] = RED
    choose(page, "cells")
    assert show(page, written(tmp_path, image)).startswith("1 object in image.png: red 1")
    assert "1 of 1" in page.text("#table")
    page.click("#labels")
    with_point = canvas(page)
    scale = with_point.shape[0] / 64
    y, x = round(12 * scale), round(20 * scale)
    assert tuple(with_point[y, x]) == (110, 225, 110)
    slide(page, "#view-points", 1)
    assert tuple(canvas(page)[y, x]) == (110, 225, 110)  # a visibility of exactly 1


def test_masks_and_oriented_boxes_lie_where_the_objects_are(page: Browser, tmp_path: Path) -> None:
    file = written(tmp_path, np.full((64, 64, 3), 40, np.uint8))
    choose(page, "instances")
    assert show(page, file, actual=True) == "2 objects in image.png: red 1, blue 1."
    page.click("#labels")
    slide(page, "#view-opacity", 1)
    drawn = canvas(page)
    assert drawn.shape == (64, 64, 3)
    assert drawn[18, 12].tolist() == colour(page, 0)
    assert drawn[18, 26].tolist() == [40, 40, 40]
    assert drawn[56, 48].tolist() == colour(page, 1)
    assert drawn[40, 48].tolist() == [40, 40, 40]
    areas = [int(cells[-1]) for cells in rows(page)]
    assert areas == [int(mask.sum()) for mask in found_objects("instances")(cv2.imread(str(file))).masks]
    choose(page, "oriented")
    page.wait("document.querySelector('#table').innerText.includes('45°')")
    drawn = canvas(page).astype(int)
    corner = np.abs(drawn[41:45, 48:51].reshape(-1, 3) - colour(page, 0)).max(1).min()
    assert corner < 60  # 20 along and 5 across the diagonal from the middle
    assert drawn[18, 44].tolist() == [40, 40, 40]


def test_a_label_map_has_the_colours_of_its_classes(page: Browser, tmp_path: Path) -> None:
    image = np.zeros((32, 48, 3), np.uint8)
    image[:, :24, 2] = image[:, 24:, 0] = 255
    choose(page, "segmenter")
    assert show(page, written(tmp_path, image), actual=True) == "image.png: red 50.0 %, blue 50.0 %."
    slide(page, "#view-opacity", 1)
    drawn = canvas(page)
    assert (drawn[:, :23] == colour(page, 0)).all()
    assert (drawn[:, 25:] == colour(page, 2)).all()
    page.click("#table [data-key='2']")
    drawn = canvas(page)
    assert (drawn[:, :23] == [255, 0, 0]).all()
    assert (drawn[:, 25:] == colour(page, 2)).all()


def test_a_restored_image_is_shown_exactly_beside_the_original(page: Browser, tmp_path: Path) -> None:
    image = np.random.default_rng(0).integers(0, 256, (32, 48, 3), np.uint8)
    choose(page, "brightener")
    assert show(page, written(tmp_path, image), actual=True).startswith("image.png was restored; it has 48 x 32 pixels")
    expected = np.clip(np.rint(image[..., ::-1].astype(np.float32) * 1.2345), 0, 255)
    drawn = canvas(page)
    assert np.abs(drawn.astype(int) - expected).max() <= 1
    assert (drawn == 255).any()
    slide(page, "#view-split", 0.5)
    half = canvas(page)
    assert (half[:, :22] == image[:, :22, ::-1]).all()
    assert (half[:, 26:] == drawn[:, 26:]).all()


def test_classes_are_listed_with_their_probabilities(page: Browser, tmp_path: Path) -> None:
    choose(page, "classifier")
    file = written(tmp_path, np.full((40, 60, 3), (20, 200, 100), np.uint8))
    assert show(page, file).startswith("image.png is most likely green, with a probability of 98.")
    assert [cells[1] for cells in rows(page)] == ["green", "red", "blue"]
    page.run(
        "const field = document.querySelector('#option-top'); field.value = 1; field.dispatchEvent(new Event('change'))"
    )
    page.wait("document.querySelectorAll('#table tbody tr').length === 1")


@given(st.integers(1, 40), st.integers(1, 40), st.floats(0, 1), st.integers(0, 1000))
@settings(max_examples=25)
def test_run_lengths_become_the_mask_again(
    window: Browser, address: str, height: int, width: int, share: float, seed: int
) -> None:
    if not window.run("return location.href.startsWith(arguments[0])", address):
        window.open(f"{address}/")
    mask = np.random.default_rng(seed).random((height, width)) < share
    found = window.run(
        "const mask = (await import('/layers.js')).maskOf(arguments[0]);"
        "return mask && {...mask, bits: [...mask.bits]};",
        run_lengths(mask),
    )
    again = np.zeros_like(mask)
    if found is not None:
        x, y, w, h = (found[name] for name in ("x", "y", "width", "height"))
        again[y : y + h, x : x + w] = np.reshape(found["bits"], (h, w))
    np.testing.assert_array_equal(again, mask)


def test_one_object_can_stand_out_by_mouse_and_by_keyboard(page: Browser) -> None:
    show(page, IMAGE)
    plain = canvas(page)
    page.run("document.querySelector('#table [data-key=\"2\"]').focus()")
    page.press(ENTER)
    page.wait("document.querySelector('#table tr.marked')")
    assert page.run("return document.activeElement.dataset.key") == "2"
    assert page.run("return document.activeElement.getAttribute('aria-pressed')") == "true"
    marked = canvas(page)
    assert (marked != plain).any()
    page.press(ENTER)
    page.wait("!document.querySelector('#table tr.marked')")
    assert (canvas(page) == plain).all()
    height, width = plain.shape[:2]
    page.click("#canvas", x=width * (625 / 1180 - 0.5), y=height * (511 / 786 - 0.5))
    page.wait("document.querySelector('#table tr.marked')")


def test_the_json_is_copied_and_downloaded_as_it_is_shown(page: Browser, tmp_path: Path) -> None:
    page.command("Browser.grantPermissions", permissions=["clipboardReadWrite", "clipboardSanitizedWrite"])
    page.command("Browser.setDownloadBehavior", behavior="allow", downloadPath=str(tmp_path))
    show(page, IMAGE)
    slide(page, "#option-conf", 0.9)
    page.click("#copy")
    page.wait("document.querySelector('#copy').textContent === 'Copied'")
    copied = json.loads(page.run("return navigator.clipboard.readText()"))
    assert len(copied["detections"]) == 2
    page.click("#download")
    page.click("#save")
    until = time.monotonic() + 30
    files = tmp_path / "markers.json", tmp_path / "markers-drawn.png"
    while not all(file.exists() for file in files):
        assert time.monotonic() < until
        time.sleep(0.05)
    assert json.loads(files[0].read_text()) == copied
    assert cv2.imread(str(files[1])).shape == cv2.imread(str(IMAGE)).shape
    command = page.run("return document.querySelector('#curl').textContent")
    assert command.startswith("curl -F 'file=@markers.jpg' 'http://127.0.0.1:")
    assert command.endswith("/v1/predict?model=markers&version=1&conf=0.9'")


def test_failures_are_said_plainly(page: Browser, tmp_path: Path) -> None:
    damaged = tmp_path / "damaged.jpg"
    damaged.write_bytes(IMAGE.read_bytes()[:9000])
    page.type("#file", str(damaged))
    page.wait("document.querySelector('#error').textContent")
    assert page.text("#error").startswith("The server says: damaged.jpg is not a complete image")
    assert page.role("#error")[0] == "alert"
    show(page, IMAGE)
    assert page.text("#error") == ""
    video = tmp_path / "video.mp4"
    video.write_bytes(b"of no use")
    page.type("#file", str(video))
    assert "deploykit predict" in page.wait("document.querySelector('#error').textContent")


def test_a_server_that_is_gone_and_one_that_wants_a_token(window: Browser, tmp_path: Path) -> None:
    tokens = tmp_path / "tokens"
    tokens.write_text("a-token-of-many-letters\n")
    with served(["cells"], CellNetwork().load, token_file=str(tokens)) as (address, _):
        window.open(f"{address}/")
        window.wait("!document.querySelector('#entry').hidden")
        assert window.run("return document.activeElement.id") == "token"
        window.type("#token", "not-the-right-one")
        window.press(ENTER)
        assert "does not know" in window.wait("document.querySelector('#error').textContent")
        window.run("document.querySelector('#token').value = ''")
        window.type("#token", "a-token-of-many-letters")
        window.press(ENTER)
        window.wait("document.querySelector('#model').options.length")
        assert window.text("#error") == ""
        file = written(tmp_path, np.zeros((64, 64, 3), np.uint8))
        assert show(window, file) == "Nothing found in image.png."
    window.type("#file", str(file))
    assert "does not answer" in window.wait("document.querySelector('#error').textContent")


def test_what_a_browser_cannot_show_is_drawn_by_the_server(page: Browser, tmp_path: Path) -> None:
    file = tmp_path / "image.tif"
    cv2.imwrite(str(file), cv2.imread(str(IMAGE)))
    assert show(page, file, actual=True).endswith("qr code 4. The server has drawn it.")
    with deploykit.load(MARKERS, threads=1) as model:
        np.testing.assert_array_equal(canvas(page), model(str(file)).draw()[..., ::-1])


def test_a_camera_is_shown_live_and_stops(page: Browser) -> None:
    page.click("#camera")
    page.wait("document.querySelector('#sentence').textContent.includes('camera')")
    first = requests_of(page)
    page.wait("performance.getEntriesByType('resource').filter(({name}) => name.includes('predict')).length > 3")
    assert requests_of(page) > first
    assert page.run("return document.querySelector('#camera').getAttribute('aria-pressed')") == "true"
    page.click("#camera")
    page.wait("!document.querySelector('.busy')")
    settled = requests_of(page)
    time.sleep(0.7)
    assert requests_of(page) == settled


def test_a_stream_of_the_server_is_shown_until_it_ends_or_another_image_comes(window: Browser, tmp_path: Path) -> None:
    film = tmp_path / "film.mp4"
    with Mp4Writer(film, 25) as writer:
        for i in range(300):
            writer.write(np.full((64, 64, 3), (0, 0, 255) if i >= 290 else (200, 0, 0), np.uint8))
    streams = {"film": str(film), "none": str(tmp_path / "none.mp4")}
    choice = "const field = document.querySelector('#stream'); field.value = arguments[0];"
    choice += "field.dispatchEvent(new Event('change'))"
    with served(["cells"], CellNetwork().load, streams=streams) as (address, _):
        window.look()
        window.open(f"{address}/")
        window.wait("document.querySelector('#stream').options.length === 3")
        window.run(choice, "film")
        window.wait("document.querySelector('#sentence').textContent === 'The stream film, as the server draws it.'")
        window.wait("document.querySelector('#sentence').textContent === 'The stream film has ended.'")
        assert canvas(window)[-20:, -20:, 0].mean() > 150  # the last image is red
        window.run(choice, "film")
        window.wait("document.querySelector('#sentence').textContent === 'The stream film, as the server draws it.'")
        assert show(window, written(tmp_path, np.zeros((64, 64, 3), np.uint8))) == "Nothing found in image.png."
        assert window.run("return document.querySelector('#stream').value") == ""
        window.run(choice, "none")
        window.wait("document.querySelector('#sentence').textContent.includes('ended')")


CONTRASTS = """
const linear = (c) => (c <= 10 ? c / 255 / 12.92 : ((c / 255 + .055) / 1.055) ** 2.4);
const luminance = ([r, g, b]) => .2126 * linear(r) + .7152 * linear(g) + .0722 * linear(b);
const channels = (text) => text.match(/[\\d.]+/g).map(Number);
const behind = (element) => {
  for (let each = element; each; each = each.parentElement) {
    const found = channels(getComputedStyle(each).backgroundColor);
    if (found.length < 4 || found[3] === 1) return found;
  }
  throw new Error('there is no background');
};
const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
const found = [];
while (walker.nextNode()) {
  const [text, element] = [walker.currentNode.data.trim(), walker.currentNode.parentElement];
  if (!text || !element.checkVisibility() || element.closest('noscript, script')) continue;
  const both = [channels(getComputedStyle(element).color), behind(element)].map(luminance);
  found.push([(Math.max(...both) + .05) / (Math.min(...both) + .05), text]);
}
return found;
"""
"""The ratio of contrast of every visible text, by WCAG."""


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_text_has_the_contrast_of_wcag_aa(page: Browser, tmp_path: Path, dark: bool) -> None:
    page.look(dark=dark)
    show(page, IMAGE)
    page.run("document.querySelectorAll('details').forEach((each) => (each.open = true))")
    found = page.run(CONTRASTS)
    page.type("#file", str(written(tmp_path, np.zeros((8, 8, 3), np.uint8)).rename(tmp_path / "image.mp4")))
    page.wait("document.querySelector('#error').textContent")
    found += page.run(CONTRASTS)
    assert len(found) > 60
    assert any("deploykit predict" in text for _, text in found)
    assert [each for each in found if each[0] < 4.5] == []


def test_every_control_has_a_name_and_can_be_reached_by_keyboard(page: Browser) -> None:
    show(page, IMAGE)
    ids = page.run(
        "return [...document.querySelectorAll('input, select, button, pre, summary, a')]"
        ".filter((each) => each.checkVisibility()).map((each, i) => (each.id ||= `control${i}`))"
    )
    names = {each: page.role(f"#{each}")[1] for each in ids}
    assert len(names) > 15
    assert [each for each, name in names.items() if not name.strip()] == []
    page.run("document.body.focus(); scrollTo(0, 0)")
    reached = []
    for _ in range(14):
        page.press(TAB)
        reached.append(page.run("return document.activeElement.id || document.activeElement.className"))
    assert reached[0] in ("skip", "control0")
    assert {"model", "file", "camera", "full", "labels", "save", "option-conf"} <= set(reached)
    page.run("document.querySelector('#option-conf').focus()")
    page.press("\ue014")  # right
    assert page.run("return document.querySelector('#option-conf').value") == "0.51"


def test_the_page_fits_a_narrow_screen_and_does_not_move_where_that_is_not_wanted(page: Browser) -> None:
    page.look(width=320, height=640, calm=True)
    show(page, IMAGE)
    assert page.run("return document.documentElement.scrollWidth") <= 320
    assert page.run("return document.querySelector('#canvas').clientWidth") > 250
    page.run("document.querySelector('#stage').classList.add('busy')")
    assert page.run("return getComputedStyle(document.querySelector('#canvas')).transitionDuration") == "0s"
