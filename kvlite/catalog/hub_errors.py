"""Errors of the Hub and its transport as kvlite's own: one line each, with the next step for the user."""

import os
from collections.abc import Iterator
from contextlib import contextmanager

from kvlite.catalog.config import CONFIG
from kvlite.catalog.names import UNGATED, ModelRef, aliases
from kvlite.catalog.snapshots import cache_root, newest_snapshot
from kvlite.errors import BrokenModel, GatedModel, HubUnreachable, KvliteError, ModelNotFound, OutputError


def endpoint() -> str:
    """The address of the Hub, as the environment has it now."""
    from huggingface_hub import constants

    return os.environ.get("HF_ENDPOINT") or constants.ENDPOINT


def describe(ref: ModelRef) -> str:
    """Name the model as its user and the Hub do: `llama-7b (meta-llama/Llama-2-7b-chat-hf)`."""
    return f"{ref.alias} ({ref.repo})" if ref.alias else str(ref.repo)


def offline_error(ref: ModelRef, missing: list[str]) -> HubUnreachable:
    """Make the error for a model that is not all in the cache while the network must not be used."""
    at = f"@{ref.revision}" if ref.revision else ""
    held = newest_snapshot(ref.repo or "") if CONFIG in missing else None
    if held is not None and held.name != ref.revision:
        return HubUnreachable(
            f"{describe(ref)}{at} is not in the cache and kvlite is offline; another commit is here: "
            f"{ref.repo}@{held.name}"
        )
    return HubUnreachable(
        f"{describe(ref)}{at} is not in the cache (missing: {', '.join(missing)}) and kvlite is offline; "
        f"connect and `kvlite pull {ref}`, or use a cached model (`kvlite ls`)"
    )


@contextmanager
def kvlite_errors(ref: ModelRef, wanted: str, *, licence: str | None = None, resumable: bool = False) -> Iterator[None]:
    """Translate errors of the requests inside, which ask the Hub for `wanted` of the model `ref`."""
    from huggingface_hub import errors as hub

    name = describe(ref)
    # huggingface_hub 2 uses httpx2, version 1 httpx; this is the base of the transport errors of either
    transport_error: type[Exception] = hub.HfHubHTTPError.__bases__[0]
    try:
        yield
    except hub.GatedRepoError as error:
        raise GatedModel(_gated(ref, licence)) from error
    except hub.RevisionNotFoundError as error:
        raise ModelNotFound(f"{name} has no revision {ref.revision!r} on the Hub; leave it out") from error
    except hub.RepositoryNotFoundError as error:
        raise ModelNotFound(
            f"the Hub has no model {name}, or it is private and {_no_access()}; check the name, or `hf auth login`"
        ) from error
    except hub.SafetensorsParsingError as error:
        raise BrokenModel(f"{name} has damaged weights on the Hub: {_first_line(error)}") from error
    except ImportError as error:  # of the transport, as for a proxy of a kind of its own
        needed = "socksio" if "socksio" in str(error) else error.name or "it"
        raise HubUnreachable(
            f"cannot get {wanted} of {name}: {_first_line(error)}; `pip install {needed}`, or use another proxy"
        ) from error
    except (transport_error, hub.XetDownloadError, OSError, ValueError, RuntimeError) as error:
        # ValueError: an answer that is not JSON, so no Hub; RuntimeError: from Xet transfers, written in Rust
        raise _unreachable(ref, wanted, error, resumable) from error


def _unreachable(ref: ModelRef, wanted: str, error: Exception, resumable: bool) -> KvliteError:
    if isinstance(error, OSError) and error.errno:  # of the file system: what the network raises has no errno
        return OutputError(f"cannot keep {describe(ref)} in the cache {cache_root()}: {error.strerror}")
    reason = _first_line(error.__cause__ or error)
    status = getattr(getattr(error, "response", None), "status_code", None)
    if status == 401 and _token_source():
        return HubUnreachable(f"the Hub refused the token of {_token_source()}; `hf auth login` with a valid one")
    name = describe(ref)
    if resumable:
        return HubUnreachable(
            f"the download of {name} stopped ({reason}); `kvlite pull {ref}` continues where it stopped"
        )
    return HubUnreachable(
        f"cannot get {wanted} of {name} from {endpoint()} ({reason}); cached models still work (`kvlite ls`)"
    )


def _gated(ref: ModelRef, licence: str | None) -> str:
    alias = aliases().get(ref.alias or "")
    licence = licence or (alias.licence if alias else None)
    return (
        f"{describe(ref)} is gated{f' (licence {licence})' if licence else ''} and {_no_access()}; accept it at "
        f"https://huggingface.co/{ref.repo}, then `hf auth login`, or use {alias.instead if alias else UNGATED}"
    )


def _no_access() -> str:
    source = _token_source()
    return "no token was found" if source is None else f"the token of {source} has no access"


def _token_source() -> str | None:
    """Name the place where huggingface_hub found a token; None without one."""
    from huggingface_hub import constants, get_token

    if not get_token():
        return None
    named = next((name for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN") if os.environ.get(name)), None)
    return named or constants.HF_TOKEN_PATH


def _first_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0].rstrip(".") if lines else type(error).__name__
