"""gemma-export on a Hub as a user types it: whole exports, refusals, exit codes, interruptions."""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
import time
from pathlib import Path
from typing import Any

import checkpoints
import numpy as np
import pytest
from hub_server import COMMIT, TOKEN, Fault, HubServer, Repository
from programs import assert_error, gemma_export, start
from quantised_checkpoints import Layout
from quantised_checkpoints import write as write_quantised
from safetensors.numpy import load_file, save_file

from gemma_export.checkpoint import BUILTIN_DIRECTORY
from gemma_runtime import read_manifest

pytestmark = pytest.mark.usefixtures("hub")
INDEX = "model.safetensors.index.json"


def run(hub: HubServer, directory: Path, *arguments: object, **environment: str) -> Any:
    return gemma_export(*arguments, cwd=directory, **{**hub.environment(directory), **environment})


def refused(hub: HubServer, directory: Path, *arguments: object, code: int, phrases: list[str], **more: str) -> str:
    result = run(hub, directory, *arguments, **more)
    # what was downloaded and what was exported are told before the error
    lines = [
        line for line in result.stderr.splitlines() if not line.startswith(("downloading ", "exporting ", "waiting "))
    ]
    result.stderr = "\n".join(lines)
    assert_error(result, code, *phrases)
    assert [path.name for path in directory.iterdir() if path.name not in ("hf", "model")] == []
    return str(result.stderr)


def small(directory: Path, **changes: Any) -> Repository:
    """A repository of a small checkpoint, with what repositories have beside one."""
    repository = Repository.of_folder(checkpoints.write(directory / "model", **changes))
    more = ("gemma.gguf", "pytorch_model.bin", "consolidated/model.safetensors", "README.md", "modeling_gemma.py")
    repository.files |= dict.fromkeys(more, b"never fetched")
    return repository


def sharded(directory: Path) -> Repository:
    """The same in two shards, with a whole copy beside them that nobody needs."""
    repository = small(directory)
    tensors = load_file(directory / "model/model.safetensors")
    names = sorted(tensors)
    weight_map = {}
    for number, part in ((1, names[:5]), (2, names[5:])):
        shard = f"model-0000{number}-of-00002.safetensors"
        save_file({name: tensors[name] for name in part}, directory / shard)
        repository.files[shard] = (directory / shard).read_bytes()
        (directory / shard).unlink()
        weight_map |= dict.fromkeys(part, shard)
    repository.files[INDEX] = json.dumps({"weight_map": weight_map}).encode()
    return repository


def fetched(hub: HubServer) -> set[str]:
    return {request.path.split(f"{COMMIT}/")[1] for request in hub.asked("/resolve/")}


def contents(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_the_folder_is_that_of_the_local_checkpoint_but_for_its_source(hub: HubServer, tmp_path: Path) -> None:
    """The whole tiny model: online, then again from the cache without a network, then from a local copy."""
    hub.repositories["org/tiny"] = Repository.of_folder(BUILTIN_DIRECTORY)
    shutil.copytree(BUILTIN_DIRECTORY, tmp_path / "local")
    first = run(hub, tmp_path, "--checkpoint", "org/tiny", "--revision", "v1.0")
    assert first.returncode == 0, first.stderr
    assert f"exporting org/tiny at commit {COMMIT} to tiny-fp32" in first.stderr
    assert "downloading org/tiny: 7.35 MB" in first.stderr
    assert "\r" not in first.stderr
    assert first.stdout.splitlines()[-1] == 'next: gemma-run tiny-fp32 "Your prompt"'
    again = run(
        hub, tmp_path, "--checkpoint", "org/tiny", "--revision", "v1.0", "--output", "offline", HF_HUB_OFFLINE="1"
    )
    assert again.returncode == 0, again.stderr
    assert f"offline mode (HF_HUB_OFFLINE) is on: using the cached copy of org/tiny at commit {COMMIT}" in again.stderr
    assert contents(tmp_path / "tiny-fp32") == contents(tmp_path / "offline")

    assert gemma_export("--checkpoint", "local", cwd=tmp_path).returncode == 0
    ours, theirs = contents(tmp_path / "tiny-fp32"), contents(tmp_path / "local-fp32")
    assert ours.keys() == theirs.keys()
    assert {name for name in ours if ours[name] != theirs[name]} == {"gemma_export.json", "README.md"}
    manifests = [read_manifest(tmp_path / name) for name in ("tiny-fp32", "local-fp32")]
    source, local = (manifest.source for manifest in manifests)
    assert (source.kind, source.repository, source.revision, source.name) == ("hub", "org/tiny", COMMIT, None)
    assert source.files == local.files
    assert manifests[0].graphs == manifests[1].graphs
    assert b"base_model: org/tiny\n" in ours["README.md"]
    assert f"An ONNX export of org/tiny at commit {COMMIT}".encode() in ours["README.md"]
    assert b"ai.google.dev/gemma/terms" in ours["NOTICE"]
    assert gemma_export("verify", "tiny-fp32", cwd=tmp_path).returncode == 0


def test_a_quantised_repository_is_taken_as_it_is(hub: HubServer, tmp_path: Path) -> None:
    """Planned from headers alone, then downloaded and exported as its local copy is."""
    folder = write_quantised(tmp_path / "model", Layout(desc_act=True)).directory
    hub.repositories["org/gptq"] = Repository.of_folder(folder)
    planned = run(hub, tmp_path, "--checkpoint", "org/gptq", "--dry-run", "--json")
    plan = json.loads(planned.stdout)
    assert plan["checkpoint_quantisation"] == "GPTQ, 4 bits, groups of 32, symmetric, by activation order"
    result = run(hub, tmp_path, "--checkpoint", "org/gptq", "--output", "hub")
    assert result.returncode == 0, result.stderr
    data = tmp_path / "hub/onnx/model_q4.onnx_data"
    assert data.stat().st_size == next(f["size"] for f in plan["files"] if f["path"] == "onnx/model_q4.onnx_data")
    assert gemma_export("--checkpoint", folder, "--output", tmp_path / "local").returncode == 0
    assert data.read_bytes() == (tmp_path / "local/onnx/model_q4.onnx_data").read_bytes()


def test_a_dry_run_downloads_no_weights_and_says_how_many_there_are(hub: HubServer, tmp_path: Path) -> None:
    hub.repositories["org/model"] = sharded(tmp_path)
    weights = sum(len(data) for name, data in hub.repositories["org/model"].files.items() if name.startswith("model-"))
    result = run(hub, tmp_path, "--checkpoint", "org/model", "--dry-run", "--json")
    assert result.returncode == 0, result.stderr
    plan = json.loads(result.stdout)
    assert plan["download_bytes"] == weights
    assert plan["source"] == f"org/model at commit {COMMIT}"
    assert result.stderr == ""
    shards = {f"model-0000{number}-of-00002.safetensors" for number in (1, 2)}
    tokenizer = set(checkpoints.TOKENIZER_FILES)
    assert fetched(hub) == {"config.json", INDEX, *shards, *tokenizer}
    # of the shards one part each, from the start
    assert all(request.headers["range"].startswith("bytes=0-") for request in hub.asked("-of-00002"))
    assert "bytes=0-65535" in {request.headers["range"] for request in hub.asked("-of-00002")}
    assert f"download: {weights:,}".split()[0] in run(hub, tmp_path, "--checkpoint", "org/model", "--dry-run").stdout

    hub.requests.clear()
    assert run(hub, tmp_path, "--checkpoint", "org/model").returncode == 0
    assert fetched(hub) == shards
    # the shard's header once more, then all of it; nothing else, and not the whole copy
    assert sum(request.headers.get("range") is None for request in hub.asked("/resolve/")) == 2
    after = run(hub, tmp_path, "--checkpoint", "org/model", "--dry-run")
    assert "download: nothing" in after.stdout


def test_what_contradicts_the_configuration_is_refused_before_the_weights_move(hub: HubServer, tmp_path: Path) -> None:
    hub.repositories["org/model"] = small(tmp_path, hidden_size=40)
    refused(hub, tmp_path, "--checkpoint", "org/model", code=3, phrases=["expected shape", "config.json"])
    hub.repositories["google/gemma-2b"] = Repository(hub.repositories["org/model"].files)
    refused(hub, tmp_path, "--variant", "2b", code=3, phrases=["not variant 2b", "expected 2048"])
    refused(hub, tmp_path, "--variant", "7b", "--checkpoint", "org/model", code=3, phrases=["not variant 7b"])
    wrong = dict(hub.repositories["org/model"].files)
    for content in (b"\xff" * 8 + b"x" * 100, (90).to_bytes(8, "little") + b"{" * 92, b"short"):
        hub.repositories["org/model"] = Repository(wrong | {"model.safetensors": content})
        phrases = ["model.safetensors is truncated or corrupt"]
        refused(hub, tmp_path, "--checkpoint", "org/model", code=3, phrases=phrases)
    assert not list((tmp_path / "hf").rglob("*.safetensors"))


def test_a_header_longer_than_the_first_look(hub: HubServer, tmp_path: Path) -> None:
    repository = small(tmp_path)
    save_file(
        load_file(tmp_path / "model/model.safetensors"),
        tmp_path / "long.safetensors",
        metadata={"note": "x" * 200_000},
    )
    repository.files["model.safetensors"] = (tmp_path / "long.safetensors").read_bytes()
    (tmp_path / "long.safetensors").unlink()
    hub.repositories["org/model"] = repository
    assert run(hub, tmp_path, "--checkpoint", "org/model", "--dry-run").returncode == 0
    assert len(hub.asked("/resolve/.*/model.safetensors")) == 2


def test_a_variant_comes_from_its_repository(hub: HubServer, tmp_path: Path) -> None:
    """At the tiny model's size no released variant agrees, so this one shows where it looked."""
    hub.repositories["google/codegemma-2b"] = Repository({"README.md": b""}, gated="hf_granted")
    refused(hub, tmp_path, "--variant", "codegemma-2b", code=3, phrases=["google/codegemma-2b", "no config.json"])
    hub.repositories["google/codegemma-2b"].files["config.json"] = b"{}"
    hub.repositories["google/codegemma-2b"].files["model.safetensors"] = b"{}"
    phrases = ["google/codegemma-2b", "gated", f"{hub.endpoint}/google/codegemma-2b", "hf auth login", "HF_TOKEN"]
    refused(hub, tmp_path, "--variant", "codegemma-2b", code=4, phrases=phrases)
    text = run(hub, tmp_path, "--variant", "codegemma-2b", "--debug", HF_TOKEN=TOKEN).stderr
    assert "not granted" in text
    assert "Traceback" in text
    assert TOKEN not in text
    refused(hub, tmp_path, "--variant", "codegemma-2b", "--revision", "v9", code=4, phrases=["'v9'", "codegemma-2b"])


@pytest.mark.parametrize(
    ("arguments", "code", "phrases"),
    [
        ("--checkpoint org/modell", 4, ["org/modell", "neither a local folder nor a repository", "spelling"]),
        ("--checkpoint google/gema-2b", 4, ["did you mean google/gemma-2b?"]),
        ("--checkpoint nothing-here", 4, ["does not exist as a local folder", "ORG/NAME"]),
        ("--checkpoint ./org/model", 4, ["does not exist as a local folder"]),
        ("--checkpoint a/b/c", 4, ["does not exist as a local folder"]),
        ("--checkpoint org/model --revision gone", 4, ["org/model", "'gone'"]),
        ("--checkpoint org/model --revision ../x", 2, ["../x"]),
        ("--checkpoint model --revision main", 2, ["--revision main", "local path"]),
        ("--checkpoint model/config.json --revision main", 2, ["--revision main", "local path"]),
        ("--variant tiny --revision main", 2, ["--revision main", "built-in"]),
        ("--variant 2b --synthetic-weights --revision main", 2, ["--revision main", "no repository"]),
        ("--revision main", 2, ["--variant", "--checkpoint"]),
    ],
)
def test_refusals(arguments: str, code: int, phrases: list[str], hub: HubServer, tmp_path: Path) -> None:
    hub.repositories["org/model"] = small(tmp_path)
    refused(hub, tmp_path, *arguments.split(), code=code, phrases=phrases)


@pytest.mark.parametrize(
    ("files", "phrases"),
    [
        (["pytorch_model.bin"], ["pickle", "can run any code", "save_pretrained", "refs/pr/N"]),
        (["pytorch_model-00001-of-00002.bin", "pytorch_model.bin.index.json"], ["pickle"]),
        (["gemma.gguf"], ["llama.cpp"]),
        (["adapter_config.json", "adapter_model.safetensors"], ["adapter"]),
        (["consolidated/model.safetensors"], ["no weights"]),
        ([], ["no weights"]),
    ],
)
def test_repositories_without_safetensors(files: list[str], phrases: list[str], hub: HubServer, tmp_path: Path) -> None:
    config = json.dumps(checkpoints.CONFIG).encode()
    hub.repositories["org/model"] = Repository({"config.json": config} | dict.fromkeys(files, b"\x80\x04."))
    refused(hub, tmp_path, "--checkpoint", "org/model", code=3, phrases=["org/model", *phrases])
    assert not any(name in fetched(hub) for name in files)


@pytest.mark.parametrize("shard", ["../model.safetensors", "/etc/passwd", "sub/x.safetensors", "absent.safetensors", 7])
def test_an_index_that_names_what_is_not_there(shard: object, hub: HubServer, tmp_path: Path) -> None:
    hub.repositories["org/model"] = sharded(tmp_path)
    hub.repositories["org/model"].files[INDEX] = json.dumps({"weight_map": {"a": shard}}).encode()
    refused(hub, tmp_path, "--checkpoint", "org/model", code=3, phrases=[INDEX, str(shard)])


def test_hostile_repositories(hub: HubServer, tmp_path: Path) -> None:
    good = small(tmp_path).files
    hub.repositories["org/model"] = Repository(good | {"../../../outside": b"x"})
    refused(hub, tmp_path, "--checkpoint", "org/model", code=3, phrases=["leads out of the repository"])
    hub.repositories["org/model"] = Repository(good, lies={"config.json": {"size": 1 << 33}})
    refused(hub, tmp_path, "--checkpoint", "org/model", code=3, phrases=["config.json", "8589934592"])


def test_a_local_folder_wins(hub: HubServer, tmp_path: Path) -> None:
    hub.repositories["org/model"] = small(tmp_path)
    checkpoints.write(tmp_path / "org/model")
    result = run(hub, tmp_path, "--checkpoint", "org/model", "--dry-run")
    assert result.returncode == 0
    assert "the local checkpoint model" in result.stdout
    assert hub.requests == []


def test_synthetic_weights_need_no_weights_of_the_repository(hub: HubServer, tmp_path: Path) -> None:
    repository = small(tmp_path)
    del repository.files["model.safetensors"]
    hub.repositories["org/model"] = repository
    result = run(hub, tmp_path, "--checkpoint", "org/model", "--synthetic-weights", "3")
    assert result.returncode == 0, result.stderr
    assert fetched(hub) == {"config.json", *checkpoints.TOKENIZER_FILES}
    source = read_manifest(tmp_path / "model-fp32").source
    assert (source.kind, source.repository, source.revision, source.seed) == ("synthetic", "org/model", COMMIT, 3)
    assert "base_model" not in (tmp_path / "model-fp32/README.md").read_text()


def test_no_tokenizer(hub: HubServer, tmp_path: Path) -> None:
    repository = small(tmp_path)
    for name in checkpoints.TOKENIZER_FILES:
        del repository.files[name]
    hub.repositories["org/model"] = repository
    refused(hub, tmp_path, "--checkpoint", "org/model", code=4, phrases=["no tokenizer", "org/model"])


def test_offline_with_nothing_and_with_half(hub: HubServer, tmp_path: Path) -> None:
    hub.repositories["org/model"] = sharded(tmp_path)
    command = "hf download org/model --revision main --local-dir model"
    for environment in ({"HF_HUB_OFFLINE": "1"}, {"HF_ENDPOINT": "http://127.0.0.1:9"}):
        phrases = ["org/model at main", "nothing of this revision is cached", command]
        refused(hub, tmp_path, "--checkpoint", "org/model", code=4, phrases=phrases, **environment)
    phrases = ["google/gemma-7b at main", "hf download google/gemma-7b"]
    refused(hub, tmp_path, "--variant", "7b", code=4, phrases=phrases, HF_HUB_OFFLINE="1")
    assert hub.requests == []
    assert run(hub, tmp_path, "--checkpoint", "org/model", "--dry-run").returncode == 0
    for environment in ({"HF_HUB_OFFLINE": "1"}, {"HF_ENDPOINT": "http://127.0.0.1:9"}):
        phrases = ["no complete copy", "model-00001-of-00002.safetensors", command]
        refused(hub, tmp_path, "--checkpoint", "org/model", code=4, phrases=phrases, **environment)


def test_a_partial_copy_of_another_program_is_told(hub: HubServer, tmp_path: Path) -> None:
    """What another program fetched in part exports otherwise; our downloads leave a listing that tells."""
    hub.repositories["org/tiny"] = Repository.of_folder(BUILTIN_DIRECTORY)
    arguments = ("--checkpoint", "org/tiny", "--output", "out")
    assert run(hub, tmp_path, *arguments).returncode == 0
    whole = run(hub, tmp_path, *arguments, "--dry-run", "--force", HF_HUB_OFFLINE="1")
    assert (whole.returncode, "It has no" in whole.stderr) == (0, False), whole.stderr
    (snapshot,) = (tmp_path / "hf").rglob(f"snapshots/{COMMIT}")
    (snapshot / "generation_config.json").unlink()
    phrases = ["no complete copy", "no generation_config.json", "hf download org/tiny"]
    shutil.rmtree(tmp_path / "out")
    refused(hub, tmp_path, "--checkpoint", "org/tiny", code=4, phrases=phrases, HF_HUB_OFFLINE="1")

    (snapshot.parents[1] / f"trees/{COMMIT}.names.json").unlink()
    (snapshot / "tokenizer_config.json").unlink()
    (snapshot / "tokenizer.model").unlink()
    for environment in ({"HF_HUB_OFFLINE": "1"}, {"HF_ENDPOINT": "http://127.0.0.1:9"}):
        result = run(hub, tmp_path, *arguments, "--dry-run", **environment)
        assert result.returncode == 0, result.stderr
        absent = "generation_config.json, tokenizer.model, tokenizer_config.json, special_tokens_map.json"
        assert f"It has no {absent}: where the repository has them this export differs" in result.stderr
    plan = json.loads(run(hub, tmp_path, *arguments, "--dry-run", "--json", HF_HUB_OFFLINE="1").stdout)
    assert any("tokenizer_config.json" in warning for warning in plan["warnings"])
    (snapshot / "tokenizer_config.json").write_text("{}")
    result = run(hub, tmp_path, *arguments, "--dry-run", HF_HUB_OFFLINE="1")
    assert "special_tokens_map.json, chat_template.jinja: where" in result.stderr


@pytest.mark.parametrize(
    ("text", "hint"),
    [
        ("org/tiny@v1.0", "--checkpoint org/tiny --revision v1.0."),
        ("https://huggingface.co/google/gemma-2b", "--checkpoint google/gemma-2b."),
        ("https://huggingface.co/google/gemma-2b/tree/v2?x=1", "--checkpoint google/gemma-2b --revision v2."),
        ("https://hf-mirror.com/google/gemma-2b/", "--checkpoint google/gemma-2b."),
        ("http://127.0.0.1", "like google/gemma-2b"),
        ("a@b", "like google/gemma-2b"),
        ("org/tiny@", "like google/gemma-2b"),
    ],
)
def test_addresses_and_names_with_a_revision(text: str, hint: str, hub: HubServer, tmp_path: Path) -> None:
    refused(hub, tmp_path, "--checkpoint", text, code=4, phrases=[f"checkpoint {text} does not exist", hint])
    assert hub.requests == []


def test_only_who_may_have_meant_a_folder_is_told_of_one(hub: HubServer, tmp_path: Path) -> None:
    """Not where the Hub has answered, or somebody in its place."""
    hub.repositories["org/model"] = small(tmp_path)
    folder = "nor is there a local folder"
    phrases = [f"{folder} org/model", "HTTPS_PROXY, SSL_CERT_FILE", "hf download org/model"]
    unreachable = {"HF_ENDPOINT": "http://127.0.0.1:9"}
    refused(hub, tmp_path, "--checkpoint", "org/model", code=4, phrases=phrases, **unreachable)
    page = {"status": 200, "headers": {"Content-Type": "text/html"}, "body": b"<html>Please log in</html>"}
    loop = {"times": 100, "status": 302, "headers": {"Location": "/again"}}
    for fault in (Fault("/api/|/again", **loop), Fault("/resolve/.*/model.safetensors|/again", **loop)):
        hub.faults[:] = [fault]
        text = refused(hub, tmp_path, "--checkpoint", "org/model", code=4, phrases=["more than 10 redirects"])
        assert folder not in text
    hub.faults[:] = [Fault("signature", times=9, server="cdn", **page)]
    assert folder not in refused(
        hub, tmp_path, "--checkpoint", "org/model", code=4, phrases=["an HTML page instead of"]
    )


def test_a_proxy_that_answers_in_html(hub: HubServer, tmp_path: Path) -> None:
    hub.repositories["org/model"] = small(tmp_path)
    page = {"status": 200, "headers": {"Content-Type": "text/html"}, "body": b"<html>Please log in</html>"}
    for path, what in (("/api/", "an HTML page instead of JSON"), ("/resolve/", "an HTML page instead of")):
        hub.faults.append(Fault(path, **page))
        phrases = [what, "something between this machine and the Hub"]
        refused(hub, tmp_path, "--checkpoint", "org/model", code=4, phrases=phrases)


def test_a_wrong_hash(hub: HubServer, tmp_path: Path) -> None:
    hub.repositories["org/model"] = small(tmp_path)
    fault = Fault("\\?signature", times=0, server="cdn", alter=lambda content: content[:-1] + b"\0")
    hub.faults.append(fault)
    assert run(hub, tmp_path, "--checkpoint", "org/model", "--dry-run").returncode == 0
    # the dry run has the small files; only whole weights are altered now
    fault.path, fault.times = "\\?signature", 2
    phrases = ["model.safetensors", "SHA-256", "Run the same command again"]
    refused(hub, tmp_path, "--checkpoint", "org/model", code=3, phrases=phrases)
    assert run(hub, tmp_path, "--checkpoint", "org/model").returncode == 0


def test_a_cache_that_went_bad_on_the_disk(hub: HubServer, tmp_path: Path) -> None:
    """The hash that the manifest needs anyway finds it; the next run fetches the file again."""
    hub.repositories["org/model"] = small(tmp_path)
    assert run(hub, tmp_path, "--checkpoint", "org/model").returncode == 0
    shutil.rmtree(tmp_path / "model-fp32")
    (pointer,) = (tmp_path / "hf").rglob("snapshots/*/model.safetensors")
    content = bytearray(pointer.read_bytes())
    content[-1] ^= 1
    pointer.resolve().write_bytes(content)
    result = run(hub, tmp_path, "--checkpoint", "org/model")
    assert result.returncode == 3, result.stderr
    assert "model.safetensors in the Hub cache is damaged" in result.stderr
    assert not (tmp_path / "model-fp32").exists()
    assert run(hub, tmp_path, "--checkpoint", "org/model").returncode == 0


def test_an_unwritable_cache(hub: HubServer, tmp_path: Path) -> None:
    hub.repositories["org/model"] = small(tmp_path)
    (tmp_path / "hf").mkdir()
    (tmp_path / "hf/hub").write_bytes(b"")
    phrases = [str(tmp_path / "hf/hub"), "cannot be written", "HF_HOME"]
    refused(hub, tmp_path, "--checkpoint", "org/model", code=7, phrases=phrases)


def test_an_output_that_exists_is_told_before_the_download(hub: HubServer, tmp_path: Path) -> None:
    hub.repositories["org/model"] = small(tmp_path)
    (tmp_path / "model-fp32").mkdir()
    (tmp_path / "model-fp32/mine.txt").write_text("")
    result = run(hub, tmp_path, "--checkpoint", "org/model")
    assert result.returncode == 7
    assert all("range" in request.headers for request in hub.asked("/resolve/.*/model.safetensors"))


def test_a_head_beside_its_embedding_is_compared_once_it_is_here(hub: HubServer, tmp_path: Path) -> None:
    """A dry run cannot compare values without fetching them."""
    repository = small(tmp_path)
    tensors = load_file(tmp_path / "model/model.safetensors")
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"] + np.ones(1, tensors["model.norm.weight"].dtype)
    save_file(tensors, tmp_path / "model/model.safetensors")
    repository.files["model.safetensors"] = (tmp_path / "model/model.safetensors").read_bytes()
    hub.repositories["org/model"] = repository
    assert run(hub, tmp_path, "--checkpoint", "org/model", "--dry-run").returncode == 0
    refused(hub, tmp_path, "--checkpoint", "org/model", code=3, phrases=["lm_head.weight", "differs"])


@pytest.mark.skipif(sys.platform == "win32", reason="POSIX signals")
@pytest.mark.parametrize(("number", "code"), [("SIGINT", 130), ("SIGTERM", 130), ("SIGKILL", -9)])
def test_an_interrupted_download_is_resumed(number: str, code: int, hub: HubServer, tmp_path: Path) -> None:
    hub.repositories["org/tiny"] = Repository.of_folder(BUILTIN_DIRECTORY)
    assert run(hub, tmp_path, "--checkpoint", "org/tiny", "--dry-run").returncode == 0
    # the header's part goes through; the whole file stops half way and never goes on
    hub.requests.clear()
    hub.faults += [Fault("signature", times=1, server="cdn", cut=65536), Fault("signature", cut=5_000_000, stall=True)]
    process = start("gemma_export", "--checkpoint", "org/tiny", cwd=tmp_path, **hub.environment(tmp_path))
    deadline = time.monotonic() + 60
    while not any(path.stat().st_size > 4_900_000 for path in (tmp_path / "hf").rglob("*.incomplete")):
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.send_signal(getattr(signal, number))
    stdout, stderr = process.communicate(timeout=60)
    assert process.returncode == code, stderr
    assert (code < 0) or ("interrupted" in stderr and "goes on where it stopped" in stderr)
    assert "Traceback" not in stderr
    assert stdout == ""
    assert [name for name in os.listdir(tmp_path) if not name.startswith(".")] == ["hf"]
    (partial,) = (tmp_path / "hf").rglob("*.incomplete")
    left = partial.stat().st_size
    hub.requests.clear()
    result = run(hub, tmp_path, "--checkpoint", "org/tiny")
    assert result.returncode == 0, result.stderr
    assert [request.headers.get("range") for request in hub.asked("signature")] == ["bytes=0-65535", f"bytes={left}-"]
    assert not list((tmp_path / "hf").rglob("*.incomplete"))


def test_the_table_of_variants_asks_nobody(hub: HubServer, tmp_path: Path) -> None:
    assert run(hub, tmp_path, "variants").returncode == 0
    assert run(hub, tmp_path, "--variant", "7b", "--synthetic-weights", "--dry-run").returncode == 0
    assert hub.requests == []
