"""Find the files of an adapter: a folder, or a repository of the Hub, downloaded where it is not here."""

from pathlib import Path

from kvlite.catalog import hub
from kvlite.catalog.hub_errors import offline_error
from kvlite.catalog.names import resolve_model
from kvlite.catalog.snapshots import cached_snapshot
from kvlite.errors import BrokenModel, UsageError

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"


def adapter_folder(name: str, *, offline: bool = False) -> Path:
    """Find the folder that holds the adapter called `name`.

    Raises BrokenModel where it holds none, and what the Hub raises.
    """
    ref = resolve_model(name)
    folder = ref.path
    if folder is None:
        assert ref.repo is not None
        folder = cached_snapshot(ref.repo, ref.revision)
        if folder is None or not all((folder / part).is_file() for part in (CONFIG, WEIGHTS)):
            if hub.is_offline(offline):
                raise offline_error(ref, [CONFIG, WEIGHTS])
            folder = hub.fetch_adapter(ref, CONFIG, WEIGHTS)
    if folder.is_file() or ref.is_demo:
        raise UsageError(f"--adapter {name}: that is a model; give a folder with an {CONFIG}")
    for part in (CONFIG, WEIGHTS):
        if not (folder / part).is_file():
            raise BrokenModel(f"--adapter {name}: {folder} has no {part}, so there is no adapter to apply")
    return folder
