"""Profiles as values, and on disk."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvlite.catalog.files import local_files
from kvlite.catalog.names import STARTER, ModelRef, aliases, resolve_model
from kvlite.errors import UsageError
from kvlite.memory.shape import ModelShape
from kvlite.profiles.picture import picture
from kvlite.profiles.profile import HeadProfile, Point, read_profile
from kvlite.profiles.store import Profiles, neutral_texts

LOW, HIGH = ((0.1, 0.02), (), (0.3, 0.1)), ((0.5, 0.1), (), (1.0, 0.4))


def made(fingerprint: str = "f" * 24, *names: str) -> HeadProfile:
    points = (Point(share=0.1, heads=LOW), Point(share=0.5, heads=HIGH))
    return HeadProfile(fingerprint=fingerprint, models=names, tokens=100, points=points)


@given(st.floats(0.001, 1.0))
def test_the_curve_is_monotone_between_its_points_and_flat_beyond_them(share: float) -> None:
    found = made().at(share)
    for low, mid, high in zip(LOW, found, HIGH, strict=True):
        assert all(a <= b <= c for a, b, c in zip(low, mid, high, strict=True))
    assert made().at(0.05) == LOW and made().at(0.9) == HIGH


def test_a_point_halfway_is_the_mean_of_its_neighbours() -> None:
    assert made().at(0.3)[2] == pytest.approx((0.65, 0.25))


def test_a_file_holds_the_whole_profile(tmp_path: Path) -> None:
    path = tmp_path / "profile.json"
    path.write_text(made().to_json())
    assert read_profile(path) == made()


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "is no profile (Invalid JSON"),
        ("{}", "is no profile (fingerprint: Field required"),
        ('{"schema":"kvlite.profile/2","fingerprint":"a","points":[]}', "is no profile (schema:"),
        (made().to_json().replace("0.02", "-1"), "not above 0"),
        (made().to_json().replace("[0.1,0.02]", "[0.1]"), "different numbers of heads"),
    ],
)
def test_a_file_that_holds_none_is_refused_in_one_line(tmp_path: Path, text: str, why: str) -> None:
    path = tmp_path / "profile.json"
    path.write_text(text)
    with pytest.raises(UsageError) as refusal:
        read_profile(path)
    assert why in str(refusal.value) and "\n" not in str(refusal.value)


def test_a_name_stands_for_the_weights_that_were_last_loaded_under_it(tmp_path: Path) -> None:
    store = Profiles(tmp_path / "profiles")
    store.save(made("a" * 24, "folder", "other"))
    store.save(made("b" * 24, "folder"))
    found = {fingerprint: store.of_weights(fingerprint) for fingerprint in ("a" * 24, "b" * 24)}
    assert [one and one.models for one in found.values()] == [("other",), ("folder",)]


def test_a_damaged_file_is_passed_over(tmp_path: Path) -> None:
    (tmp_path / ("a" * 24 + ".json")).write_text("{")
    assert Profiles(tmp_path).of_weights("a" * 24) is None


def test_the_texts_of_the_package_are_there() -> None:
    assert neutral_texts().keys() >= {"dialogue", "prose", "facts", "languages", "code"}


def test_the_picture_has_a_row_per_head_a_column_per_layer_and_fits() -> None:
    lines = [*picture(HIGH)]
    assert lines[1:] == ["head 0  ▅·█", "head 1  ▁·▄"]
    many = HIGH * 20
    assert max(map(len, picture(many, 40))) <= 40
    assert sum(line.count("·") for line in picture(many, 40)) == 40


def test_the_built_in_model_and_the_starter_come_with_theirs(tmp_path: Path) -> None:
    files, store = local_files(resolve_model("demo")), Profiles(tmp_path)
    found = store.of_files(files)
    assert found is not None and found.fits(ModelShape.from_config(files.config))
    starter = replace(files, repo=aliases()[STARTER].repo, ref=ModelRef(), folder=tmp_path)
    other = store.of_files(starter)
    assert other is not None and other != found
