"""How far apart the colours of classes are, for every kind of colour vision; and what is written on them."""

from __future__ import annotations

import numpy as np
import pytest

from deploykit.runtime.drawing.palette import COUNT, class_colour, halo, ink, palette, shade
from tests.colour_difference import VISION, ciede2000, contrast, lab

PUBLISHED = """
50.0000 2.6772 -79.7751 50.0000 0.0000 -82.7485 2.0425
50.0000 3.1571 -77.2803 50.0000 0.0000 -82.7485 2.8615
50.0000 2.8361 -74.0200 50.0000 0.0000 -82.7485 3.4412
50.0000 -1.3802 -84.2814 50.0000 0.0000 -82.7485 1.0000
50.0000 -1.1848 -84.8006 50.0000 0.0000 -82.7485 1.0000
50.0000 -0.9009 -85.5211 50.0000 0.0000 -82.7485 1.0000
50.0000 0.0000 0.0000 50.0000 -1.0000 2.0000 2.3669
50.0000 -1.0000 2.0000 50.0000 0.0000 0.0000 2.3669
50.0000 2.4900 -0.0010 50.0000 -2.4900 0.0009 7.1792
50.0000 2.4900 -0.0010 50.0000 -2.4900 0.0010 7.1792
50.0000 2.4900 -0.0010 50.0000 -2.4900 0.0011 7.2195
50.0000 2.4900 -0.0010 50.0000 -2.4900 0.0012 7.2195
50.0000 -0.0010 2.4900 50.0000 0.0009 -2.4900 4.8045
50.0000 -0.0010 2.4900 50.0000 0.0010 -2.4900 4.8045
50.0000 -0.0010 2.4900 50.0000 0.0011 -2.4900 4.7461
50.0000 2.5000 0.0000 50.0000 0.0000 -2.5000 4.3065
50.0000 2.5000 0.0000 73.0000 25.0000 -18.0000 27.1492
50.0000 2.5000 0.0000 61.0000 -5.0000 29.0000 22.8977
50.0000 2.5000 0.0000 56.0000 -27.0000 -3.0000 31.9030
50.0000 2.5000 0.0000 58.0000 24.0000 15.0000 19.4535
50.0000 2.5000 0.0000 50.0000 3.1736 0.5854 1.0000
50.0000 2.5000 0.0000 50.0000 3.2972 0.0000 1.0000
50.0000 2.5000 0.0000 50.0000 1.8634 0.5757 1.0000
50.0000 2.5000 0.0000 50.0000 3.2592 0.3350 1.0000
60.2574 -34.0099 36.2677 60.4626 -34.1751 39.4387 1.2644
63.0109 -31.0961 -5.8663 62.8187 -29.7946 -4.0864 1.2630
61.2901 3.7196 -5.3901 61.4292 2.2480 -4.9620 1.8731
35.0831 -44.1164 3.7933 35.0232 -40.0716 1.5901 1.8645
22.7233 20.0904 -46.6940 23.0331 14.9730 -42.5619 2.0373
36.4612 47.8580 18.3852 36.2715 50.5065 21.2231 1.4146
90.8027 -2.0831 1.4410 91.1528 -1.6435 0.0447 1.4441
90.9257 -0.5406 -0.9208 88.6381 -0.8985 -0.7239 1.5381
6.7747 -0.2908 -2.4247 5.8714 -0.0985 -2.2286 0.6377
2.0776 0.0795 -1.1350 0.9033 -0.0636 -0.5514 0.9082
"""
"""Two CIELAB colours and their CIEDE2000 difference: the test data of Sharma, Wu and Dalal (2005)."""


def test_the_difference_is_the_published_one() -> None:
    table = np.array([[float(value) for value in line.split()] for line in PUBLISHED.split("\n") if line])
    assert table.shape == (34, 7)
    np.testing.assert_allclose(ciede2000(table[:, :3], table[:, 3:6]), table[:, 6], atol=5e-5)
    np.testing.assert_allclose(ciede2000(table[:, 3:6], table[:, :3]), table[:, 6], atol=5e-5)


def test_cielab_is_that_of_srgb() -> None:
    np.testing.assert_allclose(lab(np.array([255, 0, 0])), [53.24, 80.09, 67.20], atol=0.01)
    np.testing.assert_allclose(lab(np.array([255, 255, 255])), [100, 0, 0], atol=0.01)
    for vision in VISION:  # white and grey look the same to everybody
        np.testing.assert_allclose(lab(np.array([128, 128, 128]), vision), lab(np.array([128] * 3)), atol=0.01)


def differences(vision: str) -> np.ndarray:
    seen = lab(palette(COUNT)[:, ::-1], vision)
    between = ciede2000(seen[:, None], seen[None])
    np.fill_diagonal(between, np.inf)
    return between


@pytest.mark.parametrize(
    ("vision", "first_10", "first_20", "within_10", "all_96"),
    [
        ("normal", 23.7, 14.7, 9.9, 7.0),
        ("protanopia", 10.8, 6.6, 6.8, 2.8),
        ("deuteranopia", 11.2, 7.4, 6.5, 2.7),
        ("tritanopia", 13.0, 6.9, 6.0, 2.7),
    ],
)
def test_colours_are_apart(vision: str, first_10: float, first_20: float, within_10: float, all_96: float) -> None:
    """Of the first classes, of classes whose numbers are at most 10 apart, and of all; 1 is about what can be noticed
    side by side."""
    between = differences(vision)
    near = np.abs(np.subtract.outer(np.arange(COUNT), np.arange(COUNT))) <= 10
    assert between[:10, :10].min() >= first_10
    assert between[:20, :20].min() >= first_20
    assert between[near].min() >= within_10
    assert between.min() >= all_96


def test_classes_of_traffic_are_far_apart() -> None:
    """Person, bicycle, car, motorcycle, bus, train and truck of COCO, under every kind of vision."""
    traffic = [0, 1, 2, 3, 5, 6, 7]
    for vision in VISION:
        least = 25.0 if vision == "normal" else 12.4
        assert differences(vision)[np.ix_(traffic, traffic)].min() >= least


def test_more_classes_have_other_colours() -> None:
    assert len({class_colour(label) for label in range(256)}) == 256
    assert class_colour(3 * COUNT) == class_colour(0)
    assert palette(0).shape == (0, 3)


def test_text_is_readable_on_every_colour() -> None:
    for label in range(3 * COUNT):
        colour = np.array(class_colour(label)[::-1])
        assert contrast(colour, np.array(ink(class_colour(label)))) >= 4.5
    rng = np.random.default_rng(0)
    for blue, green, red in rng.integers(0, 256, (500, 3)).tolist():
        assert contrast(np.array([red, green, blue]), np.array(ink((blue, green, red)))) >= 4.5


def test_a_halo_differs_from_its_line_in_brightness() -> None:
    for label in range(COUNT):
        colour = class_colour(label)
        assert contrast(np.array(colour[::-1]), np.array(halo(colour)[::-1])) >= 3


def test_shades_of_a_class_differ() -> None:
    assert shade(class_colour(7), 0) == class_colour(7)
    for label in range(COUNT):
        seen = lab(np.array([shade(class_colour(label), i)[::-1] for i in range(6)]))
        between = ciede2000(seen[:, None], seen[None])
        np.fill_diagonal(between, np.inf)
        assert between.min() >= 6.8
