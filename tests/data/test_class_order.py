import pytest

import sidebranch as sb
from sidebranch.evaluation.of_run import _check_classes


class Data:
    class config:
        root = "photos"

    def __init__(self, *classes):
        self.classes = classes


def state(*classes):
    return {"num_classes": len(classes), "inputs": {"classes": list(classes)}}


def test_other_classes_or_another_order_than_the_run_s_are_refused():
    _check_classes(state("cat", "dog"), Data("cat", "dog"))
    _check_classes({"num_classes": 2, "inputs": {}}, Data("cat", "dog"))  # of an earlier version
    with pytest.raises(sb.UserError, match="in another order than the run's: cat, dog"):
        _check_classes(state("cat", "dog"), Data("dog", "cat"))
    with pytest.raises(sb.UserError, match="has 2 classes, 'photos' has 3"):
        _check_classes(state("cat", "dog"), Data("cat", "dog", "eel"))
    with pytest.raises(sb.UserError, match="not trained on the class 'dogs' of 'photos'; did you mean 'dog'"):
        _check_classes(state("cat", "dog"), Data("cat", "dogs"))
