"""Budget files: those of the package, and what is refused in a user's."""

from __future__ import annotations

from importlib import resources
from pathlib import Path

import pytest

from gemma_validation.budgets import METRICS, default_budget, read_budget
from gemma_validation.errors import BudgetFileError

_NAMES = sorted(
    entry.name.removesuffix(".toml")
    for entry in resources.files("gemma_validation.budgets").iterdir()
    if entry.name.endswith(".toml")
)
# budgets of single models
_OWN = [name for name in _NAMES if name.startswith("tiny-")]
# no format may do without these
_NEEDED = {"kl_mean", "kl_p99", "top1_disagreement", "decisive_flips", "perplexity_ratio", "normalised_mse"}


def _exportable() -> list[str]:
    """Every name that a manifest can have, and with an int8 cache where the command allows one."""
    from gemma_export.errors import GemmaExportError
    from gemma_export.pipeline import ExportRequest
    from gemma_export.planning import plan_export
    from gemma_export.precision import CACHE_FORMATS, PRECISIONS, SCHEMES, WeightOptions

    names = []
    for precision in PRECISIONS:
        for scheme in (None, *SCHEMES):
            for cache in (None, *CACHE_FORMATS):
                request = ExportRequest(
                    variant="tiny", precision=precision, weights=WeightOptions(scheme=scheme), kv_cache=cache
                )
                try:
                    plan = plan_export(request)
                except GemmaExportError:
                    continue
                names.append(plan.precision.name + ("" if cache is None else f"-kv-{cache}"))
    return names


def test_every_format_of_the_exporter_has_a_budget() -> None:
    assert sorted({*_NAMES} - {*_OWN}) == sorted(_exportable())


@pytest.mark.parametrize("name", _NAMES)
def test_budgets_of_the_package(name: str) -> None:
    precision, _, cache = name.removeprefix("tiny-").partition("-kv-")
    variant = "tiny" if name in _OWN else None
    budget = default_budget(precision, kv_cache=cache or None, variant=variant)
    assert budget.name == f"{name}.toml"
    assert {bound.metric for bound in budget.bounds if bound.slice == "all"} >= _NEEDED
    assert all(any(character.isdigit() for character in bound.reason) for bound in budget.bounds), "no figure"


def test_formats_are_ordered_as_their_errors_are() -> None:
    bounds = [
        {bound.metric: bound.bound for bound in default_budget(name).bounds if bound.slice == "all"}
        for name in ("fp32", "fp16", "bf16", "int8", "int8-dynamic", "int4")
    ]
    for metric in ("kl_mean", "kl_p99", "normalised_mse"):
        values = [bound[metric] for bound in bounds]
        assert values == sorted(values)


def test_a_model_may_have_a_stricter_one() -> None:
    general, own = default_budget("fp32"), default_budget("fp32", variant="tiny")
    assert [bound.metric for bound in general.bounds] != []
    bounds = {bound.metric: bound.bound for bound in own.bounds}
    assert all(bounds[bound.metric] <= bound.bound for bound in general.bounds)
    assert own != general == default_budget("fp32", variant="2b")


def test_there_is_none() -> None:
    with pytest.raises(BudgetFileError, match="no budget for precision 'fp8', found bf16, fp16") as failure:
        default_budget("fp8")
    assert failure.value.exit_code == 2
    with pytest.raises(BudgetFileError, match=r"no budget for precision '\.\./x'"):
        default_budget("../x")
    with pytest.raises(BudgetFileError, match="'bf16-kv-int8'"):
        default_budget("bf16", kv_cache="int8")


def test_a_users_file(tmp_path: Path) -> None:
    file = tmp_path / "mine.toml"
    file.write_text(
        "min_positions = 50\n"
        '[all]\nkl_mean = { bound = 1, reason = "because" }\nperplexity_ratio = { bound = 1.5, reason = "r" }\n'
        '[scripts]\nkl_max = { bound = 0, reason = "none" }\n'
    )
    budget = read_budget(file)
    assert (budget.name, budget.min_positions) == (str(file), 50)
    assert [(bound.slice, bound.metric, bound.bound, bound.reason) for bound in budget.bounds] == [
        ("all", "kl_mean", 1.0, "because"),
        ("all", "perplexity_ratio", 1.5, "r"),
        ("scripts", "kl_max", 0.0, "none"),
    ]


_ALL = "min_positions = 1\n[all]\n"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[all", "not TOML"),
        ("a = " + "[" * 5000, "not TOML"),
        ("", "min_positions: expected a positive integer, found nothing"),
        ("min_positions = 0", "min_positions: expected a positive integer, found 0"),
        ("min_positions = true", "min_positions: expected a positive integer, found True"),
        ("min_positions = 1", "bounds nothing"),
        (_ALL, "bounds nothing"),
        ("min_positions = 1\ntau = 1", "tau: unknown, expected min_positions or one of all, code"),
        ("min_positions = 1\n[everything]", "everything: unknown"),
        ("min_positions = 1\nall = 5", "all: expected a table, found 5"),
        (_ALL + 'kl = { bound = 1, reason = "r" }', "all.kl: unknown metric, expected one of kl_mean"),
        (_ALL + "kl_mean = 1.0", "all.kl_mean: expected {"),
        (_ALL + 'kl_mean = { bound = 1, reason = "r", note = "n" }', "all.kl_mean.note: unknown"),
        (_ALL + 'kl_mean = { reason = "r" }', "all.kl_mean.bound: expected a finite number, found nothing"),
        (_ALL + 'kl_mean = { bound = "1", reason = "r" }', "all.kl_mean.bound: expected a finite number"),
        (_ALL + 'kl_mean = { bound = true, reason = "r" }', "all.kl_mean.bound: expected a finite number"),
        (_ALL + 'kl_mean = { bound = nan, reason = "r" }', "all.kl_mean.bound: expected a finite number, found nan"),
        (_ALL + 'kl_mean = { bound = inf, reason = "r" }', "all.kl_mean.bound: expected a finite number, found inf"),
        (_ALL + f'kl_mean = {{ bound = 1{"0" * 400}, reason = "r" }}', "all.kl_mean.bound: expected a finite number"),
        (_ALL + 'kl_mean = { bound = -1, reason = "r" }', "all.kl_mean.bound: expected at least 0, found -1"),
        (_ALL + 'top1_disagreement = { bound = 2, reason = "r" }', "bound: expected 0 to 1, found 2"),
        (_ALL + 'perplexity_ratio = { bound = 0.9, reason = "r" }', "bound: expected at least 1, found 0.9"),
        (_ALL + "kl_mean = { bound = 1 }", "all.kl_mean.reason: expected why the bound is what it is, found nothing"),
        (_ALL + 'kl_mean = { bound = 1, reason = " " }', "all.kl_mean.reason: expected why"),
    ],
)
def test_refusals(tmp_path: Path, text: str, words: str) -> None:
    file = tmp_path / "bad.toml"
    file.write_text(text)
    with pytest.raises(BudgetFileError) as failure:
        read_budget(file)
    assert str(file) in failure.value.message
    assert words in failure.value.message


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(BudgetFileError, match=r"missing.toml: No such file"):
        read_budget(tmp_path / "missing.toml")
    with pytest.raises(BudgetFileError, match="Is a directory"):
        read_budget(tmp_path)
    (tmp_path / "latin.toml").write_bytes(b'a = "\xff"')
    with pytest.raises(BudgetFileError, match="not TOML"):
        read_budget(tmp_path / "latin.toml")
    (tmp_path / "large.toml").write_bytes(b"#" * ((1 << 20) + 1))
    with pytest.raises(BudgetFileError, match="larger than 1048576 bytes"):
        read_budget(tmp_path / "large.toml")


def test_every_metric_has_a_figure() -> None:
    """Of a drift whose every number is another, so that no two metrics can be mixed up."""
    from drift_figures import drift

    values = {name: metric.measured(drift()) for name, metric in METRICS.items()}
    assert values == pytest.approx(
        {
            "kl_mean": 0.1,
            "kl_median": 0.05,
            "kl_p95": 0.2,
            "kl_p99": 0.3,
            "kl_p999": 0.4,
            "kl_max": 0.5,
            "top1_disagreement": 0.06,
            "decisive_flips": 20 / 20_000,
            "decisive_flip_count": 20,
            "top10_misses": 0.07,
            "perplexity_ratio": 1.01,
            "probability_shift_rms": 0.012,
            "normalised_mse": 0.013,
            "max_difference": 0.7,
        }
    )
    uppers = {name: metric.upper(drift()) for name, metric in METRICS.items() if metric.upper is not None}
    assert uppers == {
        "kl_mean": 0.11,
        "kl_median": 0.055,
        "kl_p95": 0.22,
        "kl_p99": 0.33,
        "kl_p999": 0.44,
        "top1_disagreement": 0.065,
        "decisive_flips": 0.0015,
        "top10_misses": 0.075,
        "perplexity_ratio": 1.015,
        "probability_shift_rms": 0.0125,
        "normalised_mse": 0.0135,
    }
    # of a largest value no draw shows a larger one, and what must not happen once has no interval
    assert METRICS.keys() - uppers.keys() == {"kl_max", "max_difference", "decisive_flip_count"}
