"""The prompt of `run`: the model among the arguments, and one text made of the others, of files and of stdin."""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence
from difflib import get_close_matches
from pathlib import Path

from kvlite.catalog.names import DEMO, STORES, aliases, resolve_model
from kvlite.catalog.own_aliases import own_aliases
from kvlite.cli.invocation import NEXT_MODEL
from kvlite.console import Console
from kvlite.errors import ModelNotFound, UsageError
from kvlite.memory.families import FAMILIES, NOT_HELD

STDIN = "-"
# qwen2.5-7b, phi:3b
_SIZED_NAME = re.compile(r"[A-Za-z][\w.]*[-:](?:[\w.-]*[-:])?\d+(?:\.\d+)?[bm]\b.*", re.IGNORECASE)
_NEAR = 0.8
_MAKERS_NAMES = (
    "aya", "baichuan", "chatglm", "codellama", "codestral", "devstral", "dolphin", "gpt", "hermes", "internlm", "kimi",
    "llava", "magistral", "mathstral", "openhermes", "pixtral", "qwq", "tulu", "vicuna", "wizardlm", "yi", "zephyr",
)  # fmt: skip
_ENGLISH = frozenset(
    ("bloom", "cohere", "dolphin", "dots", "ernie", "falcon", "flex", "granite", "helium", "hermes", "hy", "mamba",
     "minimax", "opt", "phi", "seed", "solar", "yi", "zephyr")
)  # fmt: skip


def split_words(words: Sequence[str], model: str | None, default: str, console: Console) -> tuple[str, list[str]]:
    """The model, and the words of the prompt. The first word is the model unless `model` was given.

    With words but no model among them, `default` answers, and stderr says so. Raises ModelNotFound when a word looks
    like a model's name.
    """
    if model is not None:
        return model, list(words)
    if not words:
        return default, []
    try:
        resolve_model(words[0])
    except ModelNotFound:
        if looks_like_model(words[0]) or names_family(words[0]):
            raise
        meant = next(filter(looks_like_model, words), None)
        if meant is not None:
            raise ModelNotFound(
                f"{words[0]!r:.60} is no model and {meant!r} looks like one; put the model first, or give -m MODEL"
            ) from None
        if words[0] != STDIN:
            demo = f", {NEXT_MODEL}" if default == DEMO else ""
            console.note(f"{words[0]!r:.60} is no model and all words are the prompt: {default} answers{demo}")
        return default, list(words)
    return words[0], list(words[1:])


def looks_like_model(word: str) -> bool:
    """True where a word is meant as a model: a path or GGUF file, a repository, `qwen-7b`, or nearly an alias."""
    if not word or any(character.isspace() for character in word):
        return False
    if "/" in word or word.lower().endswith(".gguf") or word.lower().startswith(STORES) or _SIZED_NAME.fullmatch(word):
        return True
    return bool(get_close_matches(word.lower(), [DEMO, *own_aliases(), *aliases()], n=1, cutoff=_NEAR))


def names_family(word: str) -> bool:
    """True of `gpt-oss`, `llama4`, `deepseek`: a family's name, alone or before a sign or number.

    A name that is also a word of English must have a number behind it.
    """
    found = re.fullmatch(r"([a-z]+)([-:_.\d][\w.:-]*)?", word.lower())
    if found is None or found[1] not in _family_names():
        return False
    return found[1] not in _ENGLISH or bool(re.match(r"[-:_.]?\d", found[2] or ""))


def _family_names() -> set[str]:
    spellings = (spelling for alias in aliases().values() for spelling in (alias.name, *alias.also))
    names = (*_MAKERS_NAMES, *FAMILIES, *NOT_HELD, *spellings)
    return {found[0] for name in names if (found := re.match("[a-z]+", name))}


def build_prompt(words: Sequence[str], files: Sequence[Path]) -> str:
    """One prompt of what was given: stdin, then the files, then the words, a blank line between them.

    Raises UsageError when it is empty, or when stdin or a file is not UTF-8.
    """
    is_asked_for = [*words] == [STDIN]
    given = [read_stdin(is_asked_for), *map(read_file, files), "" if is_asked_for else " ".join(words)]
    prompt = "\n\n".join(text for text in given if text.strip())
    if not prompt:
        raise UsageError("the prompt is empty; give it as an argument, with -f FILE or through a pipe")
    return prompt


def read_stdin(is_asked_for: bool = False) -> str:
    """All of stdin without its last newlines; nothing when it is closed, or a terminal nobody asked to read."""
    if sys.stdin is None or sys.stdin.closed or (sys.stdin.isatty() and not is_asked_for):
        return ""
    try:
        return decoded(sys.stdin.buffer.read(), "stdin")
    except OSError as error:
        raise UsageError(f"cannot read stdin: {error.strerror}") from error


def read_file(file: Path) -> str:
    """All of a text file without its last newlines."""
    try:
        return decoded(file.read_bytes(), str(file))
    except OSError as error:
        raise UsageError(f"cannot read {str(file)!r}: {error.strerror}") from error


def decoded(data: bytes, source: str) -> str:
    """`data` as text. Raises UsageError with the offset of the first byte that is not UTF-8."""
    try:
        return data.decode("utf-8-sig").rstrip("\r\n")
    except UnicodeDecodeError as error:
        offset = error.start + (len(data) - len(error.object))  # the decoder was given what follows a byte order mark
        raise UsageError(
            f"{source} is not UTF-8: byte 0x{data[offset]:02x} at offset {offset}; convert it first, as with iconv"
        ) from None
