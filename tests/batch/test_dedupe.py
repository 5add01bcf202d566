"""Of equal items one runs; the others get its outcome, or their own try when it failed."""

from __future__ import annotations

from typing import Any

from kvlite.batch.dedupe import Deduplicator
from kvlite.batch.item import Code, Failure
from kvlite.batch.outcome import Outcome


def test_the_first_runs_and_the_others_get_its_outcome(new_item: Any) -> None:
    deduplicator, (first, waits, late) = Deduplicator(), (new_item("same", index) for index in range(3))
    assert deduplicator.join(b"t", first) is None
    assert deduplicator.join(b"t", waits) == []
    copies, others = deduplicator.finish(b"t", Outcome(first, prompt_tokens=4))
    assert [(copy.entry, copy.prompt_tokens, copy.deduped_from) for copy in copies] == [(waits, 4, first.key)]
    assert others == []
    assert [copy.entry for copy in deduplicator.join(b"t", late) or []] == [late]


def test_a_failure_is_not_copied(new_item: Any) -> None:
    deduplicator, (first, waits) = Deduplicator(), (new_item("same", index) for index in range(2))
    assert (deduplicator.join(b"t", first), deduplicator.join(b"t", waits)) == (None, [])
    assert deduplicator.finish(b"t", Outcome(first, failure=Failure(Code.TIMEOUT, "late"))) == ([], [waits])
    assert deduplicator.join(b"t", waits) is None
