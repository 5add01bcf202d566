import random
import sys
from pathlib import Path

import pytest

import kvlite.demo

sys.path.append(
    str(Path(__file__).parents[2])
)  # `tools` is not installed; last, so that an installed kvlite stays first


@pytest.fixture
def rng():
    return random.Random(0)


@pytest.fixture(scope="session")
def folder():
    """The built-in model's files, where the package keeps them."""
    return Path(kvlite.demo.__file__).parent


@pytest.fixture(scope="session")
def tokenizer(folder):
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(folder)


@pytest.fixture(scope="session")
def model(folder):
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(folder)
