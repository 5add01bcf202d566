"""Profiles on disk: one JSON file per model in the user's state folder, and those that come with the package."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from importlib.resources import files
from pathlib import Path

from platformdirs import user_state_path

from kvlite.catalog.model_files import ModelFiles
from kvlite.errors import OutputError, UsageError
from kvlite.profiles.profile import HeadProfile, read_profile
from kvlite.record.store import write_whole


def neutral_texts() -> dict[str, str]:
    """The texts that a profile is measured on, by name: dialogue, prose, facts, code and four other languages."""
    found = sorted((files("kvlite.profiles") / "texts").iterdir(), key=lambda file: file.name)
    return {Path(file.name).stem: file.read_text(encoding="utf-8") for file in found if file.name.endswith(".txt")}


@dataclass(frozen=True, slots=True)
class Profiles:
    """The folder of profiles that were measured here, before those of the package."""

    folder: Path = field(default_factory=lambda: user_state_path("kvlite", appauthor=False) / "profiles")

    def of_weights(self, fingerprint: str) -> HeadProfile | None:
        """The profile of weights with this fingerprint."""
        return next((found for found in self._all() if found.fingerprint == fingerprint), None)

    def of_files(self, found: ModelFiles) -> HeadProfile | None:
        """The profile of the weights last loaded from these files, or that comes for their repository."""
        profiles = [*self._all()]
        named = (
            one for name in (found.identity(), found.repo, found.ref.alias) for one in profiles if name in one.models
        )
        return next(named, None)

    def save(self, profile: HeadProfile) -> Path:
        """Keep a profile, in place of another one of the same weights. Raises OutputError."""
        path = self.folder / f"{profile.fingerprint}.json"
        try:
            self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            for other in self._measured():  # a name stands for the weights that were last loaded under it
                names = tuple(name for name in other.models if name not in profile.models)
                if other.fingerprint != profile.fingerprint and names != other.models:
                    changed = other.model_copy(update={"models": names})
                    write_whole(changed.to_json(), self.folder / f"{other.fingerprint}.json")
            write_whole(profile.to_json(), path)
        except OSError as error:
            raise OutputError(f"cannot keep the profile in {self.folder}: {error.strerror}") from error
        return path

    def _all(self) -> Iterator[HeadProfile]:
        yield from self._measured()
        for file in (files("kvlite.profiles") / "shipped").iterdir():
            if file.name.endswith(".json"):
                yield HeadProfile.model_validate_json(file.read_bytes())

    def _measured(self) -> Iterator[HeadProfile]:
        try:
            paths = sorted(self.folder.glob("*.json"), key=lambda path: path.stat().st_mtime_ns, reverse=True)
        except OSError:  # another run is tidying
            return
        for path in paths:
            try:
                yield read_profile(path)
            except UsageError:  # of another version, or cut short: it is measured anew
                continue
