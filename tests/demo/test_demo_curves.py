"""The picture of the training is drawn from its log."""

from xml.etree import ElementTree

from tools.demo import curves


def test_the_picture_of_the_training_is_drawn_from_the_log():
    picture = curves.picture()
    assert curves.LOG.with_suffix(".svg").read_text("utf-8") == picture, "run: python -m tools.demo.curves"
    assert ElementTree.fromstring(picture).tag.endswith("svg")
