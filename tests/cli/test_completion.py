"""Completion in real shells on a pseudo-terminal: a line is typed, Tab is pressed, and the shell says what it has."""

import fcntl
import os
import pty
import select
import shutil
import signal
import struct
import sys
import termios
import time
from contextlib import contextmanager
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SAY = "\x18l"  # Ctrl-X l
ANSWERS = {"\x1b[c": "\x1b[?62c", "\x1b[0c": "\x1b[?62c", "\x1b[6n": "\x1b[1;1R"}  # fish asks the terminal
LINES = {
    "kvlite al": "kvlite alias",
    "kvlite run --kv-b": "kvlite run --kv-budget",
    "kvlite chat qwen2.5:0": "kvlite chat qwen2.5:0.5b",
    "kvlite run acme/Tiny-GGUF:tiny-Q8": "kvlite run acme/Tiny-GGUF:tiny-Q8_0",
    "kvlite chat demo --session tr": "kvlite chat demo --session trip-to-rome",
}
MORE_LINES = {
    "kvlite chat fa": "kvlite chat fast",
    "kvlite run ollama:ll": "kvlite run ollama:llama3.2:3b",
    "kvlite run ollama:llama3.2:3": "kvlite run ollama:llama3.2:3b",
    "kvlite run acme/": "kvlite run acme/Tiny-GGUF",
    "kvlite run --model=qwen2.5:0": "kvlite run --model=qwen2.5:0.5b",
    "kvlite run --kv-dtype=int8": "kvlite run --kv-dtype=int8",
    "kvlite run --kv-policy w": "kvlite run --kv-policy window",
    "kvlite run --role pi": "kvlite run --role pirate",
    "kvlite sessions show t": "kvlite sessions show trip-to-rome",
    "kvlite alias rm f": "kvlite alias rm fast",
    "kvlite alias set new qwen2.5:0": "kvlite alias set new qwen2.5:0.5b",
    "kvlite batch a-f": "kvlite batch a-file.jsonl",
    "kvlite run zzz-": "kvlite run zzz-",
}


@pytest.fixture
def home(tmp_path):
    """A home with an own alias, a role, a saved chat, a GGUF repository, a model of ollama's, and a file."""
    files = {
        ".config/kvlite/aliases.toml": 'fast = "demo"\n',
        ".config/kvlite/roles/pirate.toml": 'system = "Arr."\n',
        ".local/share/kvlite/sessions/trip-to-rome.jsonl": "{}\n",
        f".cache/huggingface/hub/models--acme--Tiny-GGUF/snapshots/{'0' * 40}/tiny-Q4_K_M.gguf": "GGUF",
        f".cache/huggingface/hub/models--acme--Tiny-GGUF/snapshots/{'0' * 40}/tiny-Q8_0.gguf": "GGUF",
        ".ollama/models/blobs/sha256-1": "GGUF",
        ".ollama/models/manifests/registry.ollama.ai/library/llama3.2/3b": (
            '{"layers": [{"mediaType": "application/vnd.ollama.image.model", "digest": "sha256:1"}]}'
        ),
        "bin/kvlite": f'#!/bin/sh\nPYTHONPATH={ROOT}:{ROOT}/kernels exec {sys.executable} -m kvlite "$@"\n',
        "a-file.jsonl": "",
        ".zfunc/_kvlite": (ROOT / "completions/_kvlite").read_text(),
        ".config/fish/completions/kvlite.fish": (ROOT / "completions/kvlite.fish").read_text(),
        ".bashrc": f"PS1='$ '; . {ROOT}/completions/kvlite.bash\n"
        '_say() { printf %s "$READLINE_LINE" > "$HOME/said"; }\nbind -x \'"\\C-xl": _say\'\n',
        ".zshrc": "PS1='$ '; fpath+=~/.zfunc; autoload -U compinit; compinit -u -D\n"
        "_say() { print -rn -- $BUFFER > $HOME/said }; zle -N _say; bindkey '^Xl' _say\n",
        ".config/fish/config.fish": "set -g fish_greeting; function fish_prompt; echo -n '$ '; end\n"
        "bind \\cxl 'commandline > $HOME/said'\n",
    }
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    (tmp_path / "bin/kvlite").chmod(0o755)
    return tmp_path


class Shell:
    """A shell at the other end of a pseudo-terminal."""

    def __init__(self, terminal: int, said: Path) -> None:
        self._terminal, self._said, self._seen = terminal, said, ""

    def wait(self, is_there) -> None:
        """Read what the shell writes, and answer what it asks, until `is_there` of that."""
        end = time.monotonic() + 30
        while not is_there(self._seen):
            assert time.monotonic() < end, self._seen
            if select.select([self._terminal], [], [], 0.02)[0]:
                self._seen += os.read(self._terminal, 65536).decode(errors="replace")
            for asked, answer in ANSWERS.items():
                if asked in self._seen:
                    self._seen = self._seen.replace(asked, "")
                    os.write(self._terminal, answer.encode())

    def complete(self, line: str) -> str:
        """Type a line, complete it, take it away again, and give back what it had become."""
        self._said.unlink(missing_ok=True)
        os.write(self._terminal, f"{line}\t{SAY}".encode())
        self.wait(lambda _: self._said.exists() and self._said.read_text())
        os.write(self._terminal, b"\x15")  # Ctrl-U
        return self._said.read_text().strip()


@contextmanager
def started(name: str, home: Path):
    """A shell with kvlite's completion, at its prompt."""
    program = shutil.which(name)
    if program is None:
        pytest.skip(f"{name} is not installed")
    pid, terminal = pty.fork()
    if not pid:
        os.chdir(home)
        rc = ["--rcfile", f"{home}/.bashrc"] if name == "bash" else []
        path = f"{home}/bin:/usr/bin:/bin"
        os.execve(program, [name, *rc, "-i"], {"TERM": "xterm", "LANG": "C.UTF-8", "HOME": str(home), "PATH": path})
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", 40, 100, 0, 0))
    try:
        shell = Shell(terminal, home / "said")
        shell.wait(lambda seen: "$ " in seen)
        yield shell
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        os.close(terminal)


@pytest.mark.parametrize("name", ["bash", "zsh", "fish"])
def test_a_shell_completes_commands_options_models_and_sessions(home, name):
    with started(name, home) as shell:
        assert {line: shell.complete(line) for line in LINES} == LINES


@pytest.mark.matrix
@pytest.mark.parametrize("name", ["bash", "zsh", "fish"])
def test_a_shell_completes_everything_that_has_a_name(home, name):
    with started(name, home) as shell:
        assert {line: shell.complete(line) for line in MORE_LINES} == MORE_LINES
