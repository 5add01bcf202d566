"""The recipes for clusters do what they say, with stubs in place of the cluster's commands."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import yaml

from kvlite.errors import BatchFailed, KvliteError, ModelError, UsageError
from tests.program import ROOT, environment

PAGE = (ROOT / "docs" / "scale.md").read_text("utf-8")
LIMIT_S = 300.0  # for what takes a moment where nothing else runs


def blocks(language: str) -> list[str]:
    """The code blocks of the page in a language."""
    return re.findall(rf"^```{language}\n(.*?)^```", PAGE, flags=re.S | re.M)


def stub(folder: Path, name: str, script: str) -> None:
    """A command of the cluster, which notes what it is asked in the file `asked`."""
    (folder / name).write_text(f'#!/bin/bash\necho "{name} $*" >> {folder}/asked\n{script}\n')
    (folder / name).chmod(0o755)


def started(script: str, folder: Path, **variables: str) -> subprocess.Popen[str]:
    """A script of the page in bash, which finds stubs first."""
    variables = environment() | variables | {"PATH": f"{folder}:{os.environ['PATH']}", "SCRATCH": str(folder)}
    return subprocess.Popen(["bash", "-c", script], env=variables, cwd=folder, text=True)


def asked(folder: Path) -> list[str]:
    """Read all that the stubs were asked so far."""
    return (folder / "asked").read_text().splitlines() if (folder / "asked").exists() else []


def handles_sigterm(process: int) -> bool:
    """True once the script has come to its trap."""
    caught = re.search(r"^SigCgt:\t(\w+)", Path(f"/proc/{process}/status").read_text(), flags=re.M)
    return caught is not None and bool(int(caught[1], 16) & 1 << signal.SIGTERM - 1)


@pytest.mark.parametrize("ends", [0, 5])
def test_a_job_with_ray_ends_as_its_batch_does_and_hands_sigterm_on(tmp_path: Path, ends: int) -> None:
    script = next(block for block in blocks("sh") if "scontrol" in block)
    for name in ("srun", "sleep"):
        stub(tmp_path, name, "")
    stub(tmp_path, "scontrol", 'printf "%s\\n" n1 n2 n3 n4')
    stub(
        tmp_path,
        "kvlite",
        f"trap 'echo kvlite ended >> asked; exit {ends}' TERM\ntouch ready\nwhile true; do /bin/sleep 0.05; done",
    )
    job = started(script, tmp_path, SLURM_JOB_NODELIST="n[1-4]")
    until = time.monotonic() + LIMIT_S
    while not ((tmp_path / "ready").exists() and handles_sigterm(job.pid)) and time.monotonic() < until:
        time.sleep(0.02)
    job.send_signal(signal.SIGTERM)
    assert job.wait(LIMIT_S) == ends
    said = asked(tmp_path)
    assert said[-1] == "kvlite ended"
    assert "srun --nodes=1 --ntasks=1 -w n1 ray start --head --port=6379 --block" in said
    assert "srun --nodes=3 --ntasks=3 --exclude=n1 ray start --address=n1:6379 --block" in said


@pytest.mark.matrix
def test_the_tasks_of_an_array_answer_each_line_once(tmp_path: Path) -> None:
    script = next(block for block in blocks("sh") if "SLURM_ARRAY_TASK_ID" in block)
    script = script.replace("/32", "/2").replace("org/model@commit", "demo").replace("60GB", "20MB")
    stub(tmp_path, "kvlite", f'exec {sys.executable} -m kvlite "$@" --report none')
    lines = [{"id": f"r{number}", "prompt": f"Say {number}", "max_tokens": 2} for number in range(12)]
    (tmp_path / "prompts.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    for task in ("1", "2", "1"):  # the first is given again, and finds all done
        assert started(script, tmp_path, SLURM_ARRAY_TASK_ID=task).wait(LIMIT_S) == 0
    joined = "".join(file.read_text() for file in sorted(tmp_path.glob("answers.*.jsonl")))
    assert sorted(json.loads(line)["id"] for line in joined.splitlines()) == sorted(line["id"] for line in lines)


def test_the_job_of_kubernetes_gives_each_pod_its_shard_and_ends_where_a_repeat_would_not_help(tmp_path: Path) -> None:
    (written,) = blocks("yaml")
    job: dict[str, Any] = yaml.safe_load(written)["spec"]
    (container,) = job["template"]["spec"]["containers"]
    stub(tmp_path, "kvlite", "")
    command = [*container["command"], *container["args"]]
    variables = {"JOB_COMPLETION_INDEX": str(job["completions"] - 1), "PATH": f"{tmp_path}:{os.environ['PATH']}"}
    subprocess.run(command, env=os.environ | variables, check=True)
    (said,) = asked(tmp_path)
    assert said.endswith(f"--shard {job['completions']}/{job['completions']} -o /data/answers.31.jsonl")
    (rule,) = job["podFailurePolicy"]["rules"]
    assert rule["onExitCodes"]["containerName"] == container["name"]
    assert {UsageError.exit_code, ModelError.exit_code, BatchFailed.exit_code} <= {*rule["onExitCodes"]["values"]}
    assert KvliteError.exit_code not in rule["onExitCodes"]["values"]
