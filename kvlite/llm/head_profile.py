"""The profile of a loaded model's heads: found, or measured and kept. Loads no torch until it measures."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Protocol

from kvlite.profiles.store import Profiles, neutral_texts

if TYPE_CHECKING:
    from collections.abc import Callable

    from kvlite.llm.text_model import TextModel
    from kvlite.profiles.profile import HeadProfile


class ShowsProgress(Protocol):
    """A console, as far as this needs one."""

    def progress(self) -> AbstractContextManager[Callable[[str], None]]:
        """A function that shows how far it is."""


def measured_profile(model: TextModel, store: Profiles, out: ShowsProgress, *, again: bool = False) -> HeadProfile:
    """The profile of the model's weights, measured unless `store` has it (or `again`), and kept under its name."""
    found = None if again else store.of_weights(model.loaded.fingerprint)
    if found is None:
        from kvlite.models.head_needs import measure_needs

        texts = neutral_texts()
        with out.progress() as progress:

            def tell(done: int, of: int) -> None:
                progress(f"measuring what each head needs, once for a model  {bar(done, of)} text {done + 1} of {of}")

            found = measure_needs(model.loaded, [*texts.values()], tell)
    if model.files.identity() not in found.models:
        found = found.known_as(model.files.identity())
        store.save(found)
    return found


def bar(done: int, of: int, width: int = 20) -> str:
    """A bar of `width` characters, of which `done` of `of` parts are filled."""
    filled = width * done // of
    return "█" * filled + "░" * (width - filled)
