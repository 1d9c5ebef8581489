"""Every command block of the README runs as it stands."""

import re
from pathlib import Path

import pytest

from tests.e2e.conftest import ROOT, run

README = (ROOT / "README.md").read_text()
BLOCKS = re.findall(r"^```(bash|python)\n(.*?)^```", README, re.MULTILINE | re.DOTALL)
RUN_ELSEWHERE = {
    "make demo\n": "test_demo.py runs the same command without the installation",
    "make test\n": "this is it",
}
TOGETHER = [(language, text) for language, text in BLOCKS if text not in RUN_ELSEWHERE]


def test_the_readme_has_the_blocks_that_these_tests_expect():
    assert {text for _, text in BLOCKS} >= set(RUN_ELSEWHERE)
    assert len(TOGETHER) >= 3


@pytest.mark.parametrize(("language", "text"), TOGETHER, ids=range(len(TOGETHER)))
def test_a_block_runs_against_the_served_demo(language, text, real_service, tmp_path):
    """The service of `make serve`, on another port."""
    script = text.replace("localhost:50051", real_service.address)
    if language == "bash":
        done = run("bash", "-euo", "pipefail", "-c", script, LORAPLEX_TARGET=real_service.address)
    else:
        path = tmp_path / "block.py"
        path.write_text(script)
        done = run("python", str(path))
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.strip()


@pytest.mark.parametrize("name", ["README.md", "docs/architecture.md", "CONTRIBUTING.md"])
def test_every_link_leads_to_a_file(name):
    page = ROOT / name
    links = re.findall(r"\]\(([^)#:]+)\)", page.read_text())
    missing = [link for link in links if not (page.parent / Path(link)).exists()]
    assert missing == []
