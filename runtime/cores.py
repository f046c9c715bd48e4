"""The CPU cores that this process may use: those of the machine, its affinity, and the quota of its container."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from pathlib import Path

__all__ = ["allowed_cores", "core_limit", "limited_threads", "usable_cores"]

CGROUP = Path("/sys/fs/cgroup")  # holds a container's limits on Linux
OWN_GROUPS = Path("/proc/self/cgroup")
TOPOLOGY = Path("/sys/devices/system/cpu")


def allowed_cores() -> set[int]:
    """Return the numbers of the (logical) cores that this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return set(os.sched_getaffinity(0))
    return set(range(os.cpu_count() or 1))


def core_limit() -> float | None:
    """Return the CPU quota of this process in cores, as its control groups (versions 1 and 2) set it; None: none."""
    return min((quota for folder in _groups() if (quota := _quota(folder)) is not None), default=None)


def limited_threads() -> tuple[int | None, str]:
    """Return how many threads can compute at the same time where that is fewer than the machine has cores, and why.

    A thread more than the quota pays for stands still for part of every period, and all others wait for it. Two
    threads on the two halves of one physical core are no faster than one, so those count once.

    Returns:
        The number, and a phrase for a report. (None, ""): nothing limits this process, and a backend's own choice fits.
    """
    cores, machine, quota = allowed_cores(), os.cpu_count() or 1, core_limit()
    if quota is not None and quota < len(cores):
        return max(1, min(math.ceil(quota), _physical(cores))), f"a CPU quota of {quota:g} cores"
    if len(cores) < machine:
        return _physical(cores), f"{len(cores)} of {machine} cores are allowed to this process"
    return None, ""


def usable_cores() -> tuple[int, str]:
    """Return on how many cores this process can compute at the same time, and a phrase for a report that says why."""
    count, reason = limited_threads()
    if count is not None:
        return count, reason
    count = _physical(allowed_cores())
    return count, f"{count} core{'s' * (count != 1)}"


def _physical(cores: set[int]) -> int:
    """Return on how many physical cores these are; all of them where the system does not say."""
    places = {_text(TOPOLOGY / f"cpu{core}" / "topology" / "thread_siblings_list").strip() for core in cores}
    return len(cores) if "" in places else len(places)


def _groups() -> Iterator[Path]:
    """Yield the folders of this process's control groups: in a container the root, elsewhere its own and those above.

    A limit that the container has is in the root of what the process sees, whatever name its group has outside.
    """
    yield CGROUP
    yield CGROUP / "cpu"
    for line in _text(OWN_GROUPS).splitlines():
        _, _, rest = line.partition(":")
        controllers, _, place = rest.partition(":")
        parts = [part for part in place.split("/") if part]
        if (controllers and "cpu" not in controllers.split(",")) or ".." in parts:
            continue
        folder = CGROUP / "cpu" if controllers else CGROUP
        for part in parts:
            folder /= part
            yield folder


def _quota(group: Path) -> float | None:
    """Return the quota of one control group in cores."""
    words = _text(group / "cpu.max").split()
    if len(words) != 2:  # version 1 has two files
        words = [_text(group / f"cpu.cfs_{name}_us").strip() for name in ("quota", "period")]
    quota, period = words
    return int(quota) / int(period) if quota.isdecimal() and period.isdecimal() and int(period) > 0 else None


def _text(path: Path) -> str:
    try:
        return path.read_text()
    except (OSError, ValueError):
        return ""
