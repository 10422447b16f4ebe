"""Limits that a container or a job scheduler puts on a process, as Linux control groups state them.

Both generations of control groups are read, and every group from the process's own up to the root counts: the least of
their limits holds (https://docs.kernel.org/admin-guide/cgroup-v2.html, .../cgroup-v1/index.html).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path, PurePosixPath

__all__ = ["cpu_limit", "memory_limit", "memory_used"]

_MOUNT = Path("/sys/fs/cgroup")
_GROUPS = Path("/proc/self/cgroup")
# version 1 states "no limit" as the largest page-aligned 63-bit number
_UNLIMITED = 1 << 60


def cpu_limit(mount: Path = _MOUNT, groups: Path = _GROUPS) -> float | None:
    """Processors' worth of time the process may use, None without a limit."""
    return _least(_cpu_max, _cpu_quota, "cpu", mount, groups)


def memory_limit(mount: Path = _MOUNT, groups: Path = _GROUPS) -> int | None:
    """Bytes the process's groups may use, None without a limit."""

    def read(name: str) -> Callable[[Path], float | None]:
        return lambda group: _number(_text(group / name))

    limit = _least(read("memory.max"), read("memory.limit_in_bytes"), "memory", mount, groups)
    return None if limit is None else int(limit)


def memory_used(mount: Path = _MOUNT, groups: Path = _GROUPS) -> int | None:
    """Bytes in use by the group that has the least limit, without file pages that can be dropped; None if unlimited."""
    found: list[tuple[float, int]] = []
    for group, version in _ancestors("memory", mount, groups):
        limit_name, used_name, inactive = (
            ("memory.max", "memory.current", "inactive_file")
            if version == 2
            else ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
        )
        limit, used = _number(_text(group / limit_name)), _number(_text(group / used_name))
        if limit is None or used is None:
            continue
        statistics = dict(line.split(maxsplit=1) for line in _text(group / "memory.stat").splitlines() if " " in line)
        droppable = _number(statistics.get(inactive, "0")) or 0
        found.append((limit, max(0, int(used - droppable))))
    return min(found)[1] if found else None


def _least(
    read_v2: Callable[[Path], float | None],
    read_v1: Callable[[Path], float | None],
    controller: str,
    mount: Path,
    groups: Path,
) -> float | None:
    limits = [(read_v2 if version == 2 else read_v1)(group) for group, version in _ancestors(controller, mount, groups)]
    return min((limit for limit in limits if limit is not None), default=None)


def _ancestors(controller: str, mount: Path, groups: Path) -> Iterator[tuple[Path, int]]:
    """(directory, generation) of the process's group and all above it."""
    for line in _text(groups).splitlines():
        _, names, path = line.split(":", 2) if line.count(":") >= 2 else ("", "none", "/")
        if names == "":
            # a hybrid system mounts the second generation beside the first
            roots, version = [mount, mount / "unified"], 2
        elif controller in names.split(","):
            roots, version = [mount / names, mount / controller], 1
        else:
            continue
        inner = PurePosixPath(path.lstrip("/"))
        for root in dict.fromkeys(roots):
            # in a container the path may be the host's: what lies at the mount's root is then the group's own
            for part in (inner, *inner.parents):
                yield root / part, version


def _cpu_max(group: Path) -> float | None:
    quota, _, period = _text(group / "cpu.max").partition(" ")
    return _quotient(quota, period)


def _cpu_quota(group: Path) -> float | None:
    return _quotient(_text(group / "cpu.cfs_quota_us"), _text(group / "cpu.cfs_period_us"))


def _quotient(quota: str, period: str) -> float | None:
    above, below = _number(quota), _number(period)
    return above / below if above and below else None


def _number(text: str) -> float | None:
    """A limit, or None for "max", -1 and whatever else means that there is none."""
    text = text.strip()
    return int(text) if text.isascii() and text.isdigit() and int(text) < _UNLIMITED else None


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="ascii", errors="replace").strip()
    except OSError:
        # absent, or not ours to read: no limit that this process could know
        return ""
