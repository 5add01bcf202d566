"""Of equal items one runs; the others get its outcome, or their own try when it failed."""

from __future__ import annotations

from typing import Any

from kvlite.batch.item import Code, Failure
from kvlite.batch.outcome import Outcome
from kvlite.batch.twins import Twins


def test_the_first_runs_and_the_others_get_its_outcome(new_item: Any) -> None:
    twins, (first, waits, late) = Twins(), (new_item("same", index) for index in range(3))
    assert twins.join(b"t", first) is None
    assert twins.join(b"t", waits) == []
    copies, others = twins.settle(b"t", Outcome(first, prompt_tokens=4))
    assert [(copy.entry, copy.prompt_tokens, copy.deduped_from) for copy in copies] == [(waits, 4, first.key)]
    assert others == []
    assert [copy.entry for copy in twins.join(b"t", late) or []] == [late]


def test_a_failure_is_not_copied(new_item: Any) -> None:
    twins, (first, waits) = Twins(), (new_item("same", index) for index in range(2))
    assert (twins.join(b"t", first), twins.join(b"t", waits)) == (None, [])
    assert twins.settle(b"t", Outcome(first, failure=Failure(Code.TIMEOUT, "late"))) == ([], [waits])
    assert twins.join(b"t", waits) is None
