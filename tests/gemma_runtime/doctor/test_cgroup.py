"""Control groups of both generations, as real files."""

from __future__ import annotations

from pathlib import Path

import pytest

from gemma_runtime.doctor.cgroup import cpu_limit, memory_limit, memory_used


def write(root: Path, files: dict[str, str]) -> tuple[Path, Path]:
    """(mount, /proc/self/cgroup)."""
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root / "mount", root / "groups"


def test_no_control_groups(tmp_path: Path) -> None:
    where = (tmp_path / "nowhere", tmp_path / "none")
    assert (cpu_limit(*where), memory_limit(*where), memory_used(*where)) == (None, None, None)


def test_second_generation_the_least_of_all_levels(tmp_path: Path) -> None:
    where = write(
        tmp_path,
        {
            "groups": "0::/outer/inner\n",
            "mount/outer/inner/cpu.max": "max 100000\n",
            "mount/outer/cpu.max": "150000 100000\n",
            "mount/outer/inner/memory.max": "3000\n",
            "mount/outer/inner/memory.current": "1000\n",
            "mount/outer/inner/memory.stat": "anon 700\ninactive_file 300\n",
            "mount/outer/memory.max": "2000\n",
            "mount/outer/memory.current": "1500\n",
            "mount/outer/memory.stat": "inactive_file 100\n",
        },
    )
    assert cpu_limit(*where) == 1.5
    assert memory_limit(*where) == 2000
    assert memory_used(*where) == 1400


def test_a_container_sees_its_own_group_at_the_root(tmp_path: Path) -> None:
    """The path is the host's and does not exist inside."""
    where = write(
        tmp_path, {"groups": "0::/docker/0123\n", "mount/memory.max": "4096\n", "mount/cpu.max": "50000 100000"}
    )
    assert (memory_limit(*where), cpu_limit(*where)) == (4096, 0.5)


def test_first_generation(tmp_path: Path) -> None:
    where = write(
        tmp_path,
        {
            "groups": "4:memory:/job\n1:cpu,cpuacct:/job\n0::/\n",
            "mount/cpu,cpuacct/job/cpu.cfs_quota_us": "200000\n",
            "mount/cpu,cpuacct/job/cpu.cfs_period_us": "100000\n",
            "mount/memory/job/memory.limit_in_bytes": "5000\n",
            "mount/memory/job/memory.usage_in_bytes": "900\n",
            "mount/memory/job/memory.stat": "total_inactive_file 400\n",
            "mount/memory/memory.limit_in_bytes": "9223372036854771712\n",
            "mount/memory/memory.usage_in_bytes": "9999\n",
        },
    )
    assert (cpu_limit(*where), memory_limit(*where), memory_used(*where)) == (2.0, 5000, 500)


@pytest.mark.parametrize("text", ["", "max", "-1", "9223372036854771712", "garbage", "0x10", "12 34 56", "\xff"])
def test_what_is_no_limit(text: str, tmp_path: Path) -> None:
    files = {"groups": "0::/\nnonsense\n", "mount/memory.max": text, "mount/cpu.max": text}
    assert (memory_limit(*write(tmp_path, files)), cpu_limit(*write(tmp_path, files))) == (None, None)
