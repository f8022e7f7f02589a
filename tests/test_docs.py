"""Commands of README and docs run as printed, those that need more than this machine are well-formed, links lead on."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import pytest
import yaml

from sra_core.config.load import load_config, parse_overrides
from tests.conftest import SmokeRun

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
PAGES += sorted((ROOT / "deploy").rglob("*.md"))
NEEDS = {"gpu", "hub", "machines", "docker", "kubernetes", "root"}
"""What a block may say that its commands need, so that no test runs them."""
SERVICES = "services"
"""Blocks that tests/integration/test_docs_services.py runs with real servers."""
PATHS = {".venv/bin/sra": [sys.executable, "-m", "sra_core.cli"], ".venv/bin/python": [sys.executable]}


@dataclass(frozen=True)
class Command:
    page: str
    needs: str
    text: str


def read_commands() -> list[Command]:
    """Every command line of every page; what a block needs stands behind the word bash."""
    found = []
    for page in PAGES:
        for needs, block in re.findall(r"^```bash *(\S*)\n(.*?)^```", page.read_text(), re.DOTALL | re.MULTILINE):
            lines = [line.partition("  #")[0].strip() for line in block.splitlines() if line.strip()]
            found += [Command(page.relative_to(ROOT).as_posix(), needs, line) for line in lines]
    return found


COMMANDS = read_commands()
PLAIN = [command for command in COMMANDS if not command.needs]
SRA = list(dict.fromkeys(c.text for c in PLAIN if c.text.startswith(".venv/bin/sra ")))
README = {command.text for command in PLAIN if command.page == "README.md"}
MAKE = list(dict.fromkeys(c.text for c in PLAIN if c.text.startswith("make ")))
FLOWS = list(dict.fromkeys(c.text for c in PLAIN if c.text.startswith(".venv/bin/python -m flows.")))
ELSEWHERE = [command for command in COMMANDS if command.needs in NEEDS]


@pytest.fixture(scope="module")
def store(smoke_run: SmokeRun, tmp_path_factory: pytest.TempPathFactory) -> Path:
    copy = tmp_path_factory.mktemp("docs") / "store"
    shutil.copytree(smoke_run.store, copy)
    return copy


def run(command: str, store: Path) -> subprocess.CompletedProcess[str]:
    words = shlex.split(command)
    environment = {**os.environ, "SRA_STORE": str(store), "SRA_TRACKING__ENABLED": "false"}
    words = [*PATHS[words[0]], *words[1:]]
    return subprocess.run(words, capture_output=True, text=True, cwd=ROOT, env=environment, timeout=250)


def test_every_command_is_run_by_a_test_or_says_what_it_needs() -> None:
    assert len(SRA) >= 8
    assert {c.needs for c in COMMANDS} <= {"", SERVICES, *NEEDS}
    assert {c.text for c in PLAIN} == {*SRA, *MAKE, *FLOWS}
    assert all(" smoke" in command or re.search(r"sra (recipes|fields)", command) for command in SRA)


def test_blocks_that_look_like_commands_are_fenced() -> None:
    for page in PAGES:
        prose = re.sub(r"^```.*?^```", "", page.read_text(), flags=re.DOTALL | re.MULTILINE)
        assert re.findall(r"^ {4}\S.*$", prose, re.MULTILINE) == [], page


@pytest.mark.parametrize(
    "command", [command if command in README else pytest.param(command, marks=pytest.mark.slow) for command in SRA]
)
def test_command(command: str, store: Path) -> None:
    done = run(command, store)
    assert done.returncode == 0, done.stdout + done.stderr
    assert len(done.stdout) > 100


def test_the_python_of_the_readme_runs(store: Path) -> None:
    (block,) = re.findall(r"^```python\n(.*?)^```", (ROOT / "README.md").read_text(), re.DOTALL | re.MULTILINE)
    environment = {**os.environ, "SRA_STORE": str(store), "SRA_TRACKING__ENABLED": "false"}
    code = f"{block}\nprint(student.num_parameters(), 'parameters')"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, env=environment)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("text ")
    assert "tokens in common" in done.stdout
    assert done.stdout.splitlines()[-1].endswith("parameters")


def test_the_readme_is_read_in_three_minutes() -> None:
    text = (ROOT / "README.md").read_text()
    prose = re.sub(r"^```.*?^```|^\|.*?$|<!--.*?-->|\]\(.*?\)", "", text, flags=re.DOTALL | re.MULTILINE)
    assert len(prose.split()) <= 700


def test_the_recipe_of_ones_own_is_shown_in_one_place() -> None:
    shown = [page.name for page in PAGES if re.search(r"^# mine\.yaml$", page.read_text(), re.MULTILINE)]
    assert shown == ["README.md"]


@pytest.mark.integration
@pytest.mark.parametrize("command", FLOWS)
def test_flow_command(command: str, store: Path) -> None:
    done = run(command, store)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Completed" in done.stdout + done.stderr
    assert "bits per byte" in done.stdout
    assert "/student" in done.stdout


@pytest.mark.parametrize("command", MAKE)
def test_make_knows_the_target(command: str) -> None:
    assert subprocess.run([*command.split(), "--dry-run"], cwd=ROOT, capture_output=True, check=False).returncode == 0


@pytest.mark.parametrize("command", ELSEWHERE, ids=lambda command: command.text[:60])
def test_commands_for_other_machines_set_fields_that_exist(
    command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They can't be run here, but their recipe and settings can be read."""
    monkeypatch.chdir(tmp_path)
    Path("mine.yaml").write_text("name: mine\n")
    words = shlex.split(command.text)
    words = shlex.split(words[words.index("--wrap") + 1]) if "--wrap" in words else words
    if not any(word.endswith(("bin/sra", "sra_core.cli")) for word in words):
        return
    start = next(i for i, word in enumerate(words) if word.endswith(("bin/sra", "sra_core.cli")))
    _, recipe, *rest = words[start + 1 :]
    assignments = [value for flag, value in pairwise(rest) if flag == "--set"]
    load_config(recipe, parse_overrides(assignments))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_recipes_that_are_shown_load(page: Path, tmp_path: Path) -> None:
    for number, block in enumerate(re.findall(r"^```yaml\n(.*?)^```", page.read_text(), re.DOTALL | re.MULTILINE)):
        if isinstance(yaml.safe_load(block), dict):
            path = tmp_path / f"{number}.yaml"
            path.write_text(block)
            load_config(str(path))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_links_lead_somewhere(page: Path) -> None:
    links = re.findall(r"\]\((?!https?://|#)([^)#]+)", page.read_text())
    assert [link for link in links if not (page.parent / link).exists()] == []


def test_links_of_the_notebook_lead_somewhere() -> None:
    cells = json.loads((ROOT / "docs" / "tour.ipynb").read_text())["cells"]
    text = "\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "markdown")
    links = re.findall(r"\]\((?!https?://|#)([^)#]+)", text)
    assert links
    assert [link for link in links if not (ROOT / "docs" / link).exists()] == []


def test_the_site_shows_every_page() -> None:
    listed = set(re.findall(r": (\S+\.md)$", (ROOT / "mkdocs.yml").read_text(), re.MULTILINE))
    pages = {page.relative_to(ROOT).as_posix() for page in PAGES}
    assert listed == {*pages, "CHANGELOG.md", "benchmarks/RESULTS.md", "docs/tour.md"}  # the last from the notebook


def test_every_page_is_in_the_index() -> None:
    index = (ROOT / "docs" / "README.md").read_text()
    pages = {path.name for path in (ROOT / "docs").iterdir() if path.suffix in (".md", ".ipynb")} - {"README.md"}
    assert {name for name in pages if f"]({name})" not in index} == set()
    assert "](docs/README.md)" in (ROOT / "README.md").read_text()


def test_fields_that_the_docs_name_exist() -> None:
    from sra_core.config.reference import fields

    known = {row.name for row in fields()}
    known |= {name.rpartition(".")[0] for name in known}
    sections = "|".join({name.partition(".")[0] for name in known if "." in name})
    for page in PAGES:
        named = re.findall(rf"`((?:{sections})\.[a-z0-9_.]+)", page.read_text())
        fields_named = [name.rstrip(".") for name in named if not name.endswith((".py", ".json"))]
        assert [name for name in fields_named if name not in known] == [], page
