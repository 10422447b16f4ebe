"""What repositories, revisions and files may be called."""

from __future__ import annotations

import pytest

from gemma_export.checkpoint.hub.names import (
    check_file_name,
    check_revision,
    is_plain_name,
    is_repository_id,
    nearest_repository,
)
from gemma_export.errors import CheckpointError, UsageError


@pytest.mark.parametrize("text", ["google/gemma-2b", "a/b", "Org_1/model.v1-x", "o/" + "n" * 96])
def test_repository_ids(text: str) -> None:
    assert is_repository_id(text)


@pytest.mark.parametrize(
    "text",
    [
        "gemma-2b",
        "",
        "/",
        "a/",
        "/b",
        "a/b/c",
        "./a/b",
        "./b",
        "../b",
        "a/..",
        "a/.b",
        "-a/b",
        "a/b-",
        "a--b/c",
        "a/b..c",
        "a/b.git",
        "a\\b",
        "a/b c",
        "a/é",
        "a/b\n",
        "https://huggingface.co/a/b",
        "o/" + "n" * 97,
    ],
)
def test_what_is_no_repository_id(text: str) -> None:
    assert not is_repository_id(text)


@pytest.mark.parametrize("revision", ["main", "v1.0", "refs/pr/3", "0123abc", "feature/größe", "a" * 40])
def test_revisions(revision: str) -> None:
    check_revision(revision)


@pytest.mark.parametrize(
    "revision",
    ["", "..", "../x", "a/../b", "/main", "main/", "a//b", "a b", "a\\b", "a:b", "-x", "a\n", ".x", "x.lock", "a?b=c"],
)
def test_what_can_be_no_revision(revision: str) -> None:
    with pytest.raises(UsageError, match="can be no branch, tag or commit"):
        check_revision(revision)


@pytest.mark.parametrize("name", ["config.json", "runs/a:b/events.1", "a/b c/ü.txt", ".gitattributes", "..hidden"])
def test_file_names(name: str) -> None:
    assert check_file_name("o/r", name) == name


@pytest.mark.parametrize(
    "name",
    ["", "/etc/passwd", "../x", "a/../../x", "a/..", "./a", "a//b", "a/", "..\\x", "C:/x", "a\nb", "a\0b", None, 3],
)
def test_file_names_that_lead_out(name: object) -> None:
    with pytest.raises(CheckpointError, match="leads out of the repository") as caught:
        check_file_name("o/r", name)
    assert caught.value.exit_code == 3
    assert "\n" not in caught.value.message


def test_what_is_fetched_has_a_plain_name() -> None:
    assert all(map(is_plain_name, ["config.json", "model-00001-of-00002.safetensors", "sub/adapter_model.safetensors"]))
    assert not any(map(is_plain_name, ["a:b", "ü", "a/", ".x", "a/../b", "a?b"]))


def test_nearest_repository() -> None:
    assert nearest_repository("google/gema-7b") == "google/gemma-7b"
    assert nearest_repository("Google/Gemma-7B") is None
    assert nearest_repository("someone/else-entirely") is None
