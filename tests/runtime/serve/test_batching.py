"""Batches across requests: who shares one, who waits, who is not computed, and who suffers for whom."""

from __future__ import annotations

import asyncio
import gc
import threading
import time
import weakref
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from deploykit.runtime.serve.core.batching import Batcher, Computed


class Network:
    """Doubles numbers; ``go`` holds it up, and 13 makes it fail."""

    def __init__(self) -> None:
        self.batches: list[list[int]] = []
        self.go = threading.Event()
        self.go.set()

    def __call__(self, items: list[int]) -> list[int]:
        self.batches.append(list(items))
        assert self.go.wait(10)
        if 13 in items:
            raise ValueError("13")
        return [2 * item for item in items]


def in_loop(
    test: Callable[[Batcher, Network], Awaitable[Any]], *, workers: int = 1, most: int = 4, window: float = 0.0
) -> Any:
    network = Network()

    async def run() -> Any:
        with ThreadPoolExecutor(workers) as pool:
            return await test(Batcher(pool, workers, most, window), network)

    return asyncio.run(run())


async def ask(batcher: Batcher, network: Network, item: int, kind: str = "", weight: int = 1) -> Computed:
    with batcher.expected() as ticket:
        return await batcher.compute(network, item, kind, weight=weight, ticket=ticket)


def test_what_waits_behind_a_run_shares_the_next_one_in_order() -> None:
    async def test(batcher: Batcher, network: Network) -> None:
        network.go.clear()
        tasks = [asyncio.create_task(ask(batcher, network, item)) for item in range(7)]
        await asyncio.sleep(0.05)
        network.go.set()
        found = [await task for task in tasks]
        assert [each.value for each in found] == [0, 2, 4, 6, 8, 10, 12]
        assert network.batches == [[0], [1, 2, 3, 4], [5, 6]]
        assert [each.batch for each in found] == [1, 4, 4, 4, 4, 2, 2]

    in_loop(test)


def test_kinds_do_not_mix_and_weights_count() -> None:
    async def test(batcher: Batcher, network: Network) -> None:
        network.go.clear()
        items = [(0, "a", 1), (1, "a", 3), (2, "b", 1), (3, "a", 2), (4, "b", 9)]
        tasks = [asyncio.create_task(ask(batcher, network, *each)) for each in items]
        await asyncio.sleep(0.05)
        network.go.set()
        await asyncio.gather(*tasks)
        assert network.batches == [[0], [1], [2], [3], [4]]

    in_loop(test)


def test_a_request_alone_does_not_wait_and_one_with_others_on_their_way_does() -> None:
    async def alone(batcher: Batcher, network: Network) -> None:
        found = await asyncio.wait_for(ask(batcher, network, 1), 5)
        assert found.queue_ms < 1000

    in_loop(alone, window=60)

    async def together(batcher: Batcher, network: Network) -> None:
        with batcher.expected() as late:
            first = asyncio.create_task(ask(batcher, network, 1))
            await asyncio.sleep(0.05)
            assert not network.batches
            second = asyncio.create_task(batcher.compute(network, 2, "", ticket=late))
            await asyncio.wait_for(asyncio.gather(first, second), 5)
        assert network.batches == [[1, 2]]

    in_loop(together, window=60)


def test_who_is_expected_and_never_comes_holds_nobody_up_for_longer_than_the_window() -> None:
    async def test(batcher: Batcher, network: Network) -> None:
        with batcher.expected():
            await asyncio.wait_for(ask(batcher, network, 1), 5)

    in_loop(test, window=0.02)

    async def gone(batcher: Batcher, network: Network) -> None:
        with batcher.expected():
            first = asyncio.create_task(ask(batcher, network, 1))
            await asyncio.sleep(0.01)
        await asyncio.wait_for(first, 5)

    in_loop(gone, window=60)


def test_what_is_given_up_before_its_run_is_not_computed() -> None:
    async def test(batcher: Batcher, network: Network) -> None:
        network.go.clear()
        tasks = [asyncio.create_task(ask(batcher, network, item)) for item in range(3)]
        await asyncio.sleep(0.05)
        tasks[1].cancel()
        await asyncio.sleep(0)
        network.go.set()
        assert [(await tasks[0]).value, (await tasks[2]).value] == [0, 4]
        assert network.batches == [[0], [2]]

    in_loop(test)


def test_an_item_that_fails_fails_alone() -> None:
    async def test(batcher: Batcher, network: Network) -> None:
        network.go.clear()
        tasks = [asyncio.create_task(ask(batcher, network, item)) for item in (1, 2, 13, 4)]
        await asyncio.sleep(0.05)
        network.go.set()
        found = await asyncio.gather(*tasks, return_exceptions=True)
        assert [each.value for each in found if isinstance(each, Computed)] == [2, 4, 8]
        assert isinstance(found[2], ValueError)
        assert batcher.waiting == batcher.coming == 0

    in_loop(test)


@settings(max_examples=30)
@given(
    items=st.lists(st.tuples(st.integers(0, 30), st.sampled_from("ab"), st.integers(1, 5), st.booleans()), max_size=25),
    workers=st.integers(1, 3),
    most=st.integers(1, 6),
)
def test_each_request_is_answered_once_with_its_own_value(
    items: list[tuple[int, str, int, bool]], workers: int, most: int
) -> None:
    async def test(batcher: Batcher, network: Network) -> None:
        tasks = [asyncio.create_task(ask(batcher, network, *each[:3])) for each in items]
        await asyncio.sleep(0)
        for task, each in zip(tasks, items, strict=True):
            if each[3]:
                task.cancel()
        found = await asyncio.gather(*tasks, return_exceptions=True)
        for (item, _, _, cancelled), value in zip(items, found, strict=True):
            if cancelled:
                assert isinstance(value, asyncio.CancelledError)
            else:
                assert isinstance(value, ValueError) if item == 13 else value.value == 2 * item
        for batch in network.batches:
            assert len(batch) <= most
        assert batcher.waiting == batcher.coming == 0

    in_loop(test, workers=workers, most=most, window=0.001)


def test_workers_share_what_waits() -> None:
    async def test(batcher: Batcher, network: Network) -> None:
        network.go.clear()
        tasks = [asyncio.create_task(ask(batcher, network, item)) for item in range(6)]
        await asyncio.sleep(0.05)
        network.go.set()
        await asyncio.gather(*tasks)
        assert list(map(len, network.batches)) == [1, 1, 2, 1, 1]

    in_loop(test, workers=2, most=8)


def test_what_was_computed_is_free_as_soon_as_it_is_answered() -> None:
    class Image:
        """Something that is large."""

    def slowly(items: list[Image]) -> list[Image]:
        time.sleep(0.05)
        return items

    async def test(batcher: Batcher, network: Network) -> None:
        image = Image()
        heard, told = weakref.ref(image), asyncio.Event()
        with batcher.expected() as ticket:
            await batcher.compute(slowly, image, "", ticket=ticket)
        del image, ticket
        while heard() is not None and not told.is_set():  # the thread lets go of it a moment later
            asyncio.get_running_loop().call_later(0.05, told.set)
            await asyncio.sleep(0.01)
        assert heard() is None

    gc.disable()
    try:
        in_loop(test)
    finally:
        gc.enable()


def test_a_pool_that_is_shut_down_is_an_error_of_each_request() -> None:
    async def test(batcher: Batcher, network: Network) -> None:
        batcher._pool.shutdown()
        for item in (1, 2):
            found = await asyncio.gather(ask(batcher, network, item), return_exceptions=True)
            assert isinstance(found[0], RuntimeError)

    in_loop(test)
