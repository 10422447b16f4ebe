"""The example workflow says what its README says, and keeps the rules of a workflow that can be trusted."""

from __future__ import annotations

import re
import tomllib

import yaml
from workflows import ROOT, WORKFLOW, steps


def test_it_installs_extras_that_exist() -> None:
    (install,) = [step["run"] for step in steps() if step.get("name") == "Install"]
    found = re.fullmatch(r'pip install "gemma-export\[([\w,]+)\]"', install)
    assert found
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert project["name"] == "gemma-export"
    assert set(found[1].split(",")) <= set(project["optional-dependencies"])
    assert {"export", "validate"} <= set(found[1].split(","))


def test_reports_are_kept_whatever_the_verdict() -> None:
    last = steps()[-1]
    assert last["uses"].startswith("actions/upload-artifact@")
    assert last["if"] == "${{ !cancelled() }}"
    folders = [re.findall(r"--report-dir (\S+)", step.get("run", "")) for step in steps()]
    directories = [name for found in folders for name in found]
    assert len(directories) == len(set(directories)) == 2
    assert all(name.startswith(last["with"]["path"]) for name in directories)


def test_every_export_is_validated_and_no_failure_is_swallowed() -> None:
    commands = [step["run"] for step in steps() if "run" in step]
    exported = {found[1] for command in commands if (found := re.search(r"gemma-export .*--output (\S+)", command))}
    validated = {found[1] for command in commands if (found := re.match(r"gemma-validate (\S+)", command))}
    assert exported == validated
    assert len(exported) == 2
    text = WORKFLOW.read_text(encoding="utf-8")
    assert "continue-on-error" not in text
    assert "||" not in text


def test_it_asks_for_no_rights_but_reading() -> None:
    content = yaml.safe_load(WORKFLOW.read_text(encoding="utf-8"))
    assert content["permissions"] == {"contents": "read"}
    # text of a pull request must not reach a shell
    assert "${{" not in "".join(step.get("run", "") for step in steps())


def test_the_readme_names_what_is_there() -> None:
    readme = (WORKFLOW.parent / "README.md").read_text(encoding="utf-8")
    assert steps()[-1]["with"]["name"] in readme
    assert (ROOT / "validation/gemma_validation/schemas/report.schema.json").is_file()
    for block in re.findall(r"```yaml\n(.*?)```", readme, re.DOTALL):
        assert yaml.safe_load(block)[0]["run"].startswith("gemma-validate ")
