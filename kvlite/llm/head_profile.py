"""The profile of a loaded model's heads: named, found, or measured and kept. Loads no torch until it measures."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext, suppress
from typing import TYPE_CHECKING, Protocol

from kvlite.errors import OutputError, UsageError
from kvlite.profiles.store import Profiles, neutral_texts

if TYPE_CHECKING:
    from collections.abc import Callable

    from kvlite.llm.text_model import TextModel
    from kvlite.profiles.profile import HeadProfile

MOST_ON_CPU, MOST_ON_GPU = 400_000_000, 20_000_000_000
"""Parameters up to which one is measured unasked: half a minute of a core (SmolLM2-135M: 13 s), or of a GPU."""


class ShowsProgress(Protocol):
    """A console, as far as this needs one."""

    def progress(self) -> AbstractContextManager[Callable[[str], None]]:
        """A function that shows how far it is."""


def profile_for(model: TextModel) -> HeadProfile | None:
    """The profile for a cache that evicts, as `--profile` says; None where all heads get as many slots.

    What is quickly measured is measured, else it is said how. Raises UsageError where a file holds no profile of such
    a model.
    """
    spec, loaded, listener = model.spec, model.loaded, model.listener
    if spec.options.profile != "auto":
        return spec.profile(model.files, loaded.shape)
    if not any(layer.kind == "full" for layer in loaded.shape.layers):
        return None  # windows give every head what it needs
    store = Profiles()
    found = store.of_weights(loaded.fingerprint)
    if found is None:
        if model.parameters > (MOST_ON_GPU if loaded.device.type == "cuda" else MOST_ON_CPU):
            listener.note(
                f"all heads keep as many tokens; `kvlite profile {model.files.ref}` measures once what each needs"
            )
            return None
        listener.note("measuring once for this model what each head needs")
        try:
            found = measure(model)
        except UsageError as error:
            listener.note(f"all heads keep as many tokens: {error}")
            return None
    with suppress(OutputError):  # it is measured again next time
        keep(found, model, store)
    return found


def measure(model: TextModel, out: ShowsProgress | None = None) -> HeadProfile:
    """The profile of the model's weights, measured now. Raises UsageError where its window is too short."""
    from kvlite.models.head_needs import measure_needs

    with out.progress() if out else nullcontext(lambda text: None) as progress:

        def tell(done: int, of: int) -> None:
            progress(f"measuring what each head needs, once for a model  {bar(done, of)} text {done + 1} of {of}")

        return measure_needs(model.loaded, [*neutral_texts().values()], tell)


def keep(found: HeadProfile, model: TextModel, store: Profiles) -> HeadProfile:
    """The profile with the name of the model's files, which `store` then knows. Raises OutputError."""
    named = found.known_as(model.files.identity())
    if named is not found:
        store.save(named)
    return named


def bar(done: int, of: int, width: int = 20) -> str:
    """A bar of `width` characters, of which `done` of `of` parts are filled."""
    filled = width * done // of
    return "█" * filled + "░" * (width - filled)
