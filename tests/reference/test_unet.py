"""The torch U-Nets against their numpy twins, in the trained form and folded."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch

from deploykit.models.create.random_weights import randomise
from deploykit.models.families.unet.network import Level, UNet2015, UNetConfig, build_unet
from deploykit.models.fuse import fuse_model
from tests.reference.layers import Array, Weights
from tests.reference.unet import unet, unet_2015, unet_pooled

SMALL = UNetConfig.published(width=4, depth=3)
POOLED = UNetConfig(4, 2, (Level(4, 5, 0, 7), Level(6, 8)), (Level(7, 6, 5), Level(4, 3, 2)), "pooled", False)
VALID = replace(UNetConfig.published(width=4, depth=2, channels=1), kind="valid")


def random_network(config: UNetConfig) -> tuple[torch.nn.Module, Weights]:
    torch.manual_seed(1)
    network = build_unet(config)
    randomise(network)
    return network, {key: t.double().numpy() for key, t in network.state_dict().items()}


@pytest.mark.parametrize(
    ("config", "twin", "size"),
    [
        (SMALL, unet, (32, 40)),
        (SMALL, unet, (29, 43)),
        (UNetConfig.published(width=4, depth=3, bilinear=True, num_classes=1), unet, (32, 40)),
        (UNetConfig.published(width=4, depth=3, bilinear=True, channels=5), unet, (31, 37)),
        (POOLED, unet_pooled, (32, 40)),
    ],
)
def test_the_network_is_its_publication_written_down_again(
    config: UNetConfig, twin: Callable[[Array, Weights], Array], size: tuple[int, int]
) -> None:
    network, weights = random_network(config)
    images = torch.rand(2, config.channels, *size, generator=torch.Generator().manual_seed(2))
    expected = twin(images.double().numpy(), weights)
    span = np.ptp(expected)
    assert np.abs(expected[0] - expected[1]).max() > 0.05 * span, "the logits depend on the image"
    with torch.no_grad():
        for form in (network, fuse_model(network)):
            assert np.abs(form(images).numpy() - expected).max() <= 1e-5 * span


def test_the_unet_of_2015_sees_a_mirrored_image() -> None:
    network, weights = random_network(VALID)
    assert isinstance(network, UNet2015)
    assert network.margin == 20
    images = torch.rand(1, 1, 36, 48, generator=torch.Generator().manual_seed(2))
    tile = np.pad(images.double().numpy(), ((0, 0), (0, 0), (20, 20), (20, 20)), mode="reflect")
    expected = unet_2015(tile, weights)
    assert expected.shape == (1, 2, 36, 48)
    with torch.no_grad():
        assert np.abs(network(images).numpy() - expected).max() <= 1e-5 * np.ptp(expected)


def test_a_whole_image_gives_what_the_papers_tiles_give() -> None:
    """Tiles overlap by the margin on each side, and lie where the halvings fall alike: multiples of 4 apart here."""
    network, weights = random_network(VALID)
    images = torch.rand(1, 1, 60, 53, generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        whole = network(images).numpy()
    mirrored = np.pad(images.double().numpy(), ((0, 0), (0, 0), (20, 60), (20, 60)), mode="reflect")
    for top, left in ((0, 0), (20, 0), (40, 32)):
        tile = unet_2015(mirrored[:, :, top : top + 20 + 40, left : left + 24 + 40 + 4], weights)
        rows, columns = min(tile.shape[2], 60 - top), min(tile.shape[3], 53 - left)
        found = whole[:, :, top : top + rows, left : left + columns]
        assert np.abs(found - tile[:, :, :rows, :columns]).max() <= 1e-5 * np.ptp(whole)
