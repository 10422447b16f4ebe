"""Repositories on a real server: revisions, refusals, hostile listings, tokens and redirects."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
from hub_server import COMMIT, TOKEN, Fault, HubServer, Repository, hub_server
from huggingface_hub import constants

from gemma_export.checkpoint.hub import client as hub_client
from gemma_export.checkpoint.hub import fetch, open_repository
from gemma_export.errors import CheckpointError, GemmaExportError, MissingResourceError, UsageError

OLDER = "fedcba9876543210fedcba9876543210fedcba98"
FILES = {"config.json": b'{"a": 1}', "sub/notes.txt": b"notes", "model.safetensors": b"weights" * 1000}


def fails(name: str, revision: str | None = None, *, code: int, phrases: list[str]) -> GemmaExportError:
    with pytest.raises(GemmaExportError) as caught:
        fetch(name, revision, lambda opened: sorted(opened.names))
    error = caught.value
    assert error.exit_code == code, error.message
    assert "\n" not in error.message + error.hint
    for phrase in phrases:
        assert phrase in f"{error.message} | {error.hint}"
    return error


@pytest.mark.parametrize("revision", [None, "main", "v1.0", "refs/pr/1", COMMIT, COMMIT[:7], COMMIT[:12]])
def test_every_kind_of_revision_becomes_a_commit(revision: str | None, hub: HubServer) -> None:
    hub.repositories["org/model"] = Repository(FILES)
    hub.repositories["org/model"].revisions["refs/pr/1"] = COMMIT
    fetched = fetch("org/model", revision, lambda opened: ["config.json", "model.safetensors"])
    assert fetched.commit == COMMIT
    assert (fetched.directory / "config.json").read_bytes() == FILES["config.json"]
    assert (fetched.directory / "model.safetensors").read_bytes() == FILES["model.safetensors"]
    assert not (fetched.directory / "sub").exists()
    # everything but the question itself is about exactly that commit
    assert all(f"/resolve/{COMMIT}/" in request.path for request in hub.asked("/resolve/"))


def test_a_branch_that_moves_gives_the_other_files(hub: HubServer) -> None:
    repository = Repository(FILES, older={OLDER: {"config.json": b'{"a": 0}'}})
    hub.repositories["org/model"] = repository
    repository.revisions["main"] = OLDER
    first = fetch("org/model", None, lambda opened: ["config.json"])
    repository.revisions["main"] = COMMIT
    second = fetch("org/model", "main", lambda opened: ["config.json"])
    assert [first.commit, second.commit] == [OLDER, COMMIT]
    assert [(each.directory / "config.json").read_bytes() for each in (first, second)] == [b'{"a": 0}', b'{"a": 1}']


def test_the_cache_is_one_that_huggingface_hub_reads(hub: HubServer, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import hf_hub_download, scan_cache_dir, snapshot_download

    hub.repositories["org/model"] = Repository(FILES)
    fetched = fetch("org/model", None, lambda opened: sorted(opened.names))
    before = len(hub.requests)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    for name, content in FILES.items():
        assert Path(hf_hub_download("org/model", name)).read_bytes() == content
    assert Path(snapshot_download("org/model", local_files_only=True)) == fetched.directory
    assert len(hub.requests) == before
    (repository,) = scan_cache_dir(constants.HF_HUB_CACHE).repos
    assert (repository.repo_id, repository.nb_files) == ("org/model", 3)
    assert {revision.commit_hash for revision in repository.revisions} == {COMMIT}


def test_what_huggingface_hub_has_cached_is_not_fetched_again(hub: HubServer, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import hf_hub_download, hf_hub_url
    from huggingface_hub.file_download import get_hf_file_metadata

    hub.repositories["org/model"] = Repository(FILES)
    # the library made its address when it was imported
    monkeypatch.setattr(
        constants, "HUGGINGFACE_CO_URL_TEMPLATE", hub.endpoint + "/{repo_id}/resolve/{revision}/{filename}"
    )
    metadata = get_hf_file_metadata(hf_hub_url("org/model", "model.safetensors"))
    assert (metadata.commit_hash, metadata.size) == (COMMIT, len(FILES["model.safetensors"]))
    hf_hub_download("org/model", "model.safetensors")
    hub.requests.clear()
    fetch("org/model", None, lambda opened: ["model.safetensors"])
    assert [request.path for request in hub.requests] == ["/api/models/org/model/revision/main?blobs=true"]


def test_refusals_of_the_hub(hub: HubServer, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.repositories["google/gemma-7b"] = Repository(FILES, gated="hf_granted")
    hub.repositories["org/secret"] = Repository(FILES, private=True)
    hub.repositories["org/model"] = Repository(FILES)
    page = f"{hub.endpoint}/google/gemma-7b"
    fails("google/gemma-7b", code=4, phrases=["gated", page, "hf auth login", "HF_TOKEN", "no token"])
    fails("google/gema-7b", code=4, phrases=["did you mean google/gemma-7b?", "spelling", "hf auth login"])
    fails("org/secret", code=4, phrases=["org/secret", "private"])
    fails("org/model", "v2", code=4, phrases=["org/model", "'v2'", "revision"])
    fails("org/model", "0" * 40, code=4, phrases=["org/model", "0" * 40])
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    error = fails("google/gemma-7b", code=4, phrases=["not granted", page, "not in the authorized list"])
    assert "no token" not in error.message
    fails("org/nothing", code=4, phrases=["org/nothing"])
    assert fetch("org/secret", None, lambda opened: ["config.json"]).commit == COMMIT
    monkeypatch.setenv("HF_TOKEN", "hf_granted")
    assert fetch("google/gemma-7b", None, lambda opened: ["config.json"]).commit == COMMIT


def test_tokens_that_are_wrong(hub: HubServer, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.repositories["org/model"] = Repository(FILES)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    said = {"X-Error-Message": "Invalid credentials in Authorization header", "Content-Type": "application/json"}
    hub.faults.append(Fault("/api/", status=401, headers=said, body=b"{}"))
    error = fails("org/model", code=4, phrases=["does not accept your token", "hf auth login"])
    assert TOKEN not in error.message + error.hint
    hub.faults.append(Fault("/api/", status=403, headers={"X-Error-Message": "Access to this resource is disabled."}))
    fails("org/model", code=4, phrases=["403", "disabled"])
    for token in ("hf_é", "hf_a b"):
        monkeypatch.setenv("HF_TOKEN", token)
        error = fails("org/model", code=4, phrases=["can be no token"])
        assert token not in error.message + error.hint


def test_the_token_goes_to_the_endpoint_alone(hub: HubServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also when the redirect leads to another port of the same machine, and from a login file."""
    hub.repositories["org/new"] = Repository(FILES, gated=TOKEN)
    hub.renamed["org/old"] = "org/new"
    token_file = Path(constants.HF_TOKEN_PATH)
    token_file.parent.mkdir(parents=True)
    token_file.write_text(TOKEN + "\n")
    fetch("org/new", None, lambda opened: sorted(opened.names))
    open_repository("org/old")
    assert len(hub.asked("", server="cdn")) == 1
    assert all("authorization" not in request.headers for request in hub.asked("", server="cdn"))
    assert all(request.headers["authorization"] == f"Bearer {TOKEN}" for request in hub.asked("", server="hub"))
    # the renamed repository was found through a redirect on the Hub itself, which keeps the token
    assert [request.path for request in hub.asked("/api/models/org/(old|new)/")][-1].startswith("/api/models/org/new/")
    # nothing that says which programs are installed here, or who runs this one
    agents = {request.headers["user-agent"] for request in hub.requests}
    assert all(agent.startswith("gemma-export/") and ";" not in agent for agent in agents)
    assert not hub.asked("telemetry|agent-harnesses")


def test_an_implicit_token_can_be_switched_off(hub: HubServer, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.repositories["org/model"] = Repository(FILES)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_IMPLICIT_TOKEN", True)
    fetch("org/model", None, lambda opened: ["config.json"])
    assert all("authorization" not in request.headers for request in hub.requests)


@pytest.mark.parametrize("name", ["../../outside", "/etc/passwd", "a/../../b", "C:/x", "a\\..\\b", ""])
def test_hostile_names(name: str, hub: HubServer, tmp_path: Path) -> None:
    hub.repositories["org/model"] = Repository(FILES | {name: b"x"})
    fails("org/model", code=3, phrases=["leads out of the repository", "do not trust"])
    assert not (tmp_path / "hf").exists()


def test_hostile_choices(hub: HubServer) -> None:
    """Listed names that no checkpoint has cannot be asked for either."""
    hub.repositories["org/model"] = Repository(FILES | {"log:b": b"x"})
    with pytest.raises(CheckpointError, match="no name for a file"):
        fetch("org/model", None, lambda opened: ["log:b"])
    with pytest.raises(CheckpointError, match=r"has no \.\./x"):
        fetch("org/model", None, lambda opened: ["../x"])


@pytest.mark.parametrize(
    ("lie", "phrase"),
    [
        ({"size": 1 << 40, "lfs": None}, "far more than such a file has"),
        ({"size": 4, "lfs": None}, "config.json"),
        ({"size": 9, "lfs": None}, "config.json"),
        ({"blobId": "0" * 40, "lfs": None}, "does not match git's SHA-1"),
    ],
)
def test_listings_that_lie(lie: dict[str, object], phrase: str, hub: HubServer, tmp_path: Path) -> None:
    hub.repositories["org/model"] = Repository(FILES, lies={"config.json": lie})
    fails("org/model", code=3, phrases=[phrase])
    assert not list((tmp_path / "hf").rglob("snapshots/*/config.json"))


@pytest.mark.parametrize(
    ("body", "phrases"),
    [
        (b"<!doctype html><title>Log in</title>", ["an HTML page instead of JSON", "something between"]),
        (b"[]", ["describes no repository"]),
        (b"{}", ["describes no repository"]),
        (b'{"sha": "../../x", "siblings": []}', ["describes no repository"]),
        (b'{"sha": "%s", "siblings": [3]}' % COMMIT.encode(), ["describes no repository"]),
        (b'{"sha": 1', ["no JSON"]),
        (b'{"a":' * 100_000, ["no JSON"]),
        (b'{"sha": "a", "sha": "b"}', ["no JSON"]),
        (b"\xff\xfe", ["no JSON"]),
    ],
)
def test_answers_that_are_not_the_hubs(body: bytes, phrases: list[str], hub: HubServer) -> None:
    hub.faults.append(Fault("/api/", status=200, body=body))
    fails("org/model", code=4, phrases=[*phrases, hub.endpoint])


def test_an_endless_listing_is_not_read_to_its_end(hub: HubServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub_client, "_LARGEST_ANSWER", 1 << 20)
    hub.faults.append(Fault("/api/", status=200, body=b" " * (40 << 20)))
    fails("org/model", code=3, phrases=["larger than 1048576 bytes"])
    assert hub.requests[0].sent < 40 << 20


def test_another_commit_than_asked_for(hub: HubServer) -> None:
    body = json.dumps({"sha": OLDER, "siblings": []}).encode()
    hub.faults.append(Fault("/api/", status=200, body=body))
    fails("org/model", COMMIT, code=4, phrases=[OLDER, COMMIT])


@pytest.mark.parametrize(
    "location", ["file:///etc/passwd", "http://[", "http://127.0.0.1:x/", "ftp://a/b", "http://a..b/"]
)
def test_redirects_that_lead_nowhere(location: str, hub: HubServer) -> None:
    hub.faults.append(Fault("/api/", status=302, headers={"Location": location}))
    fails("org/model", code=4, phrases=["a redirect to"])


def test_redirects_without_end(hub: HubServer) -> None:
    hub.faults.append(Fault("/api/", times=100, status=302, headers={"Location": "/api/again"}))
    fails("org/model", code=4, phrases=["redirects"])
    assert len(hub.requests) <= 20


def test_a_captive_portal_redirects_to_its_login_page(hub: HubServer) -> None:
    hub.faults.append(Fault("/api/", status=302, headers={"Location": f"{hub.cdn}/login"}))
    hub.faults.append(Fault("/login", status=200, headers={"Content-Type": "text/html"}, body=b"<html>"))
    fails("org/model", code=4, phrases=["an HTML page instead of JSON", f"{hub.cdn}/login"])


def test_proxies_that_refuse_in_html(hub: HubServer) -> None:
    for status in (403, 404, 407):
        hub.faults.append(Fault("/api/", status=status, headers={"Content-Type": "text/html"}, body=b"<html>"))
        fails("org/model", code=4, phrases=[str(status), "something between"])


def test_a_mirror_that_lists_names_alone(hub: HubServer) -> None:
    """Size and hash then come from each file's headers; the token does not follow them to the CDN."""
    hub.repositories["org/model"] = Repository(FILES, names_only=True)
    fetched = fetch("org/model", None, lambda opened: ["config.json", "model.safetensors"])
    assert (fetched.directory / "model.safetensors").read_bytes() == FILES["model.safetensors"]
    assert not hub.asked("", server="cdn", method="HEAD")
    hub.faults.append(Fault("notes", status=200, headers={"ETag": '"not-a-hash"'}))
    with pytest.raises(MissingResourceError, match=r"headers of sub/notes\.txt"):
        fetch("org/model", None, lambda opened: ["sub/notes.txt"])


def test_offline(hub: HubServer, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.repositories["org/model"] = Repository(FILES)
    fetch("org/model", "v1.0", lambda opened: ["config.json", "model.safetensors"])
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    # a login is not asked for where nothing is asked
    monkeypatch.setenv("HF_TOKEN", "hf_é")
    before = len(hub.requests)
    for revision in ("v1.0", COMMIT, COMMIT[:7]):
        fetched = fetch("org/model", revision, lambda opened: ["config.json", "model.safetensors"])
        assert fetched.commit == COMMIT
        assert "offline" in str(fetched.note)
        assert COMMIT in str(fetched.note)
    for revision in ("main", "0" * 40, COMMIT[:6], OLDER[:7]):
        with pytest.raises(MissingResourceError, match="nothing of this revision is cached") as caught:
            fetch("org/model", revision, lambda opened: ["config.json"])
        assert f"hf download org/model --revision {revision}" in caught.value.hint
    with pytest.raises(MissingResourceError, match=r"no complete copy: no sub/notes\.txt"):
        fetch("org/model", "v1.0", lambda opened: ["config.json", "sub/notes.txt"])
    assert len(hub.requests) == before


def test_a_listing_that_other_programs_left_says_what_is_missing(
    hub: HubServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.repositories["org/model"] = Repository(FILES)
    fetched = fetch("org/model", None, lambda opened: ["config.json"])
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    # every download leaves the names of its commit
    opened = open_repository("org/model")
    assert (opened.names, opened.names_known) == (set(FILES), True)
    trees = fetched.directory.parents[1] / "trees"
    (trees / f"{COMMIT}.names.json").unlink()
    opened = open_repository("org/model")
    assert (opened.names, opened.names_known) == ({"config.json"}, False)
    listing = {"format_version": 1, "files": {name: {"size": len(data), "blob_id": ""} for name, data in FILES.items()}}
    (trees / f"{COMMIT}.json").write_text(json.dumps(listing))
    assert open_repository("org/model").names == set(FILES)
    with pytest.raises(MissingResourceError, match=r"no model\.safetensors"):
        fetch("org/model", None, lambda opened: sorted(opened.names))
    (trees / f"{COMMIT}.json").write_text("[")
    assert open_repository("org/model").names == {"config.json"}
    # another program of the Hub does not take ours for its own
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    fetch("org/model", None, lambda opened: ["config.json"])
    assert sorted(path.name for path in trees.iterdir()) == [f"{COMMIT}.json", f"{COMMIT}.names.json"]


@pytest.mark.parametrize("how", ["refused", "503", "html", "cut"])
def test_no_network_falls_back_to_the_cache_and_says_so(
    how: str, hub: HubServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.repositories["org/model"] = Repository(FILES)
    choose = lambda opened: ["config.json"]  # noqa: E731
    fetch("org/model", None, choose)
    faults = {
        "503": Fault("/api/", times=100, status=503),
        "html": Fault("/api/", times=100, status=200, body=b"<html>"),
        "cut": Fault("/api/", times=100, cut=10),
    }
    hub.faults += [faults[how]] if how in faults else []
    if how == "refused":
        monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    fetched = fetch("org/model", None, choose)
    assert fetched.commit == COMMIT
    assert "was not reached" in str(fetched.note)
    fails("org/other", code=4, phrases=["org/other"] if how != "html" else ["something between"])


@pytest.mark.parametrize(
    ("variable", "value", "shown", "hint"),
    [
        ("ALL_PROXY", "socks5h://me:secret@127.0.0.1:9", "ALL_PROXY='socks5h://127.0.0.1:9'", "pip install socksio"),
        ("http_proxy", "socks5://127.0.0.1:9", "http_proxy='socks5://127.0.0.1:9'", "pip install socksio"),
        ("HTTP_PROXY", "ftp://127.0.0.1:9", "HTTP_PROXY='ftp://127.0.0.1:9'", "an address like http://"),
        ("HTTPS_PROXY", "http://[::1", "HTTPS_PROXY='http://[::1'", "an address like http://"),
        ("SSL_CERT_FILE", "/nonexistent", "SSL_CERT_FILE='/nonexistent'", "a file of PEM certificates"),
        ("SSL_CERT_FILE", __file__, f"SSL_CERT_FILE={__file__!r}"[:70], "a file of PEM certificates"),
        ("SSL_CERT_FILE", str(Path(__file__).parent), "Is a directory", "a file of PEM certificates"),
    ],
)
def test_environments_that_no_client_can_be_made_of(
    variable: str, value: str, shown: str, hint: str, hub: HubServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    if "socks" in value and importlib.util.find_spec("socksio"):
        pytest.skip("this machine has SOCKS")
    hub.repositories["org/model"] = Repository(FILES)
    fetch("org/model", None, lambda opened: ["config.json"])
    huggingface_hub.close_session()
    monkeypatch.setenv(variable, value)
    error = fails("org/other", code=4, phrases=[shown, hint, "hf download org/other"])
    assert "secret" not in error.message + error.hint
    assert shown in str(fetch("org/model", None, lambda opened: ["config.json"]).note)
    assert len(hub.asked("/api/")) == 1


def test_a_remedy_outlives_the_look_into_the_cache(hub: HubServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    fails("org/model", code=4, phrases=["Connection refused", "HTTPS_PROXY, SSL_CERT_FILE", "hf download org/model"])
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    monkeypatch.setattr(constants, "ENDPOINT", "http://hub.example")
    huggingface_hub.close_session()
    fails("org/model", code=4, phrases=["hub.example could not be reached", "HTTPS_PROXY, SSL_CERT_FILE"])
    # a question that was answered before leaves the listing; what is not cached is missed with the same remedy
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(MissingResourceError) as caught:
        fetch("org/model", None, lambda opened: ["config.json"], option="--adapter")
    assert "Run the same command once with a connection (it resumes)." in caught.value.hint
    assert caught.value.hint.endswith("copy that folder here and give it to --adapter.")


@pytest.mark.parametrize("offline", [True, False])
@pytest.mark.parametrize("refusing", ["refs", "snapshots"])
def test_a_cache_that_may_not_be_read(
    refusing: str, offline: bool, hub: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.repositories["org/model"] = Repository(FILES)
    fetch("org/model", None, lambda opened: ["config.json"])
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", offline)
    hub.faults.append(Fault("/api/", times=100, status=503))

    def refuse(original: Callable[..., Any]) -> Callable[..., Any]:
        def call(path: Any = ".", *arguments: Any, **options: Any) -> Any:
            if f"models--org--model{os.sep}{refusing}" in str(path):
                raise PermissionError(13, "Permission denied", str(path))
            return original(path, *arguments, **options)

        return call

    monkeypatch.setattr(Path, "read_text", refuse(Path.read_text))
    monkeypatch.setattr(os, "scandir", refuse(os.scandir))
    fails("org/model", code=7, phrases=[str(tmp_path / "hf/hub"), "cannot be read: Permission denied", "HF_HOME"])


@pytest.mark.skipif(sys.platform == "win32" or os.geteuid() == 0, reason="root may read anything")
@pytest.mark.parametrize("place", ["", "refs", "snapshots", f"snapshots/{COMMIT}"])
def test_a_folder_of_the_cache_without_rights(
    place: str, hub: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.repositories["org/model"] = Repository(FILES)
    fetch("org/model", None, lambda opened: ["config.json"])
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    folder = tmp_path / "hf/hub/models--org--model" / place
    folder.chmod(0)
    try:
        fails("org/model", code=7, phrases=["cannot be read: Permission denied", "HF_HOME"])
    finally:
        folder.chmod(0o700)


def test_refusals_are_not_healed_by_the_cache(hub: HubServer) -> None:
    hub.repositories["org/model"] = Repository(FILES)
    fetch("org/model", None, lambda opened: ["config.json"])
    del hub.repositories["org/model"]
    fails("org/model", code=4, phrases=["org/model is neither"])


def test_endpoint_that_is_none(hub: HubServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "ENDPOINT", "hub.example")
    with pytest.raises(UsageError, match="HF_ENDPOINT"):
        open_repository("org/model")
    # the password of a mirror is not for the screen
    with hub_server() as other:
        monkeypatch.setattr(constants, "ENDPOINT", other.endpoint.replace("//", "//user:pass@"))
        other.repositories["org/model"] = Repository(FILES, gated=TOKEN)
        error = fails("org/model", code=4, phrases=["gated"])
        assert "pass" not in error.message + error.hint


def test_read_only_cache_that_is_complete(hub: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.repositories["org/model"] = Repository(FILES)
    fetched = fetch("org/model", None, lambda opened: ["config.json"])
    hub.repositories["org/model"].revisions["next"] = COMMIT

    def refuse(*arguments: object, **options: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(os, "replace", refuse)
    monkeypatch.setattr(Path, "mkdir", refuse)
    again = fetch("org/model", "next", lambda opened: ["config.json"])
    assert again.directory == fetched.directory


def test_nothing_of_the_hub_is_imported_before_it_is_asked_for() -> None:
    code = (
        "import sys; sys.argv = ['gemma-export', '--variant', 'tiny', '--dry-run', '--json']\n"
        "from gemma_export.cli import cli; cli.main(standalone_mode=False)\n"
        "sys.exit(bool({'huggingface_hub', 'httpx2', 'httpx', 'hf_xet', 'filelock'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False, stdout=subprocess.DEVNULL).returncode == 0
