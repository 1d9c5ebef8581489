"""Every command of docs/adapters.md runs as it stands, in its order, against a real scheduler and frontend."""

import os
import re
import subprocess
import sys
from pathlib import Path

from loraplex_frontend.settings import FrontendSettings
from tests.client.adapter_service import adapter_service
from tests.client.conftest import ROOT
from tests.frontend.adapter_folder import write_adapter

PAGE = (ROOT / "docs" / "adapters.md").read_text()
BLOCKS = re.findall(r"^```bash\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)
SETTINGS = re.findall(r"^```toml\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)


def test_the_commands_of_the_page_run_in_their_order(tmp_path):
    write_adapter(tmp_path / "my-adapter", seed=1)
    write_adapter(tmp_path / "my-adapter-v2", seed=2)
    assert len(BLOCKS) >= 7
    with adapter_service(tmp_path) as (address, _):
        # One shell, as a reader has one: variables of a block live on in the next.
        done = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", "\n".join(BLOCKS)],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
            env={
                **os.environ,
                "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
                "LORAPLEX_TARGET": address,
            },
        )
    assert done.returncode == 0, done.stdout + done.stderr
    for text in ("valid; nothing was stored", "registered", "updated", "ETAG_MISMATCH", "removed sql-uploaded"):
        assert text in done.stdout + done.stderr


def test_the_settings_of_the_page_are_understood(tmp_path, monkeypatch):
    (config,) = SETTINGS
    path = tmp_path / "loraplex.toml"
    path.write_text(config)
    monkeypatch.setenv("LORAPLEX_CONFIG", str(path))
    settings = FrontendSettings.load(["--model", str(tmp_path), "--store", str(tmp_path)])
    assert settings.adapter_sources[0] == "hf://my-org"
    assert settings.fetch_min_bytes_per_s == 16_384


def test_every_link_of_the_page_leads_to_a_file():
    links = re.findall(r"\]\(([^)#:]+)\)", PAGE)
    assert links
    assert [link for link in links if not (ROOT / "docs" / link).exists()] == []
