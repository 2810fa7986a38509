"""Fields that hold one of several kinds, and a name `module:name` of the user's own."""

from typing import Annotated

import numpy as np
import pytest

from gr.errors import GrError
from gr.fields import OneOf, Share, check_value, load_own

CHOICES = ("exact_match", "rank_aware")
NO_FUNCTION = 3.0


class OwnError(GrError):
    pass


def own():
    return 1


@pytest.fixture
def module(tmp_path, monkeypatch):
    """A folder on the path of modules: writes one, and returns its name."""
    monkeypatch.syspath_prepend(tmp_path)

    def write(name, text):
        (tmp_path / f"{name}.py").write_text(text)
        return name

    return write


def test_an_own_function_is_imported():
    assert load_own(f"{__name__}:own", "reward", CHOICES) is own


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (
            "exact_mach",
            "reward 'exact_mach' is unknown; did you mean exact_match? Use one of exact_match, rank_aware, or "
            "module:name",
        ),
        ("zzz", "reward 'zzz' is unknown; use one of exact_match, rank_aware, or module:name"),
        (":own", "reward ':own' is unknown; use one of"),
        ("module:", "reward 'module:' is unknown; use one of"),
        (
            "no_such_module:f",
            "reward 'no_such_module:f': there is no module 'no_such_module'. Start ",
        ),
        ("gr.nothing:f", "reward 'gr.nothing:f': there is no module 'gr.nothing'"),
        ("exact:match", "no module 'exact'; did you mean exact_match? Start Python in the folder"),
        (f"{__name__}:owm", f"module '{__name__}' has no 'owm'; did you mean own?"),
        (f"{__name__}:NO_FUNCTION", "is no function but a float"),
    ],
)
def test_what_cannot_be_found_is_said_in_one_line(text, told):
    with pytest.raises(OwnError) as error:
        load_own(text, "reward", CHOICES, OwnError)
    assert told in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("x = 1\nx.y\n", "line 2: AttributeError: 'int' object has no attribute 'y'"),
        (
            "import no_such_package\n",
            "line 1: ModuleNotFoundError: No module named 'no_such_package",
        ),
        ("def f(:\n", "fails on import: SyntaxError: invalid syntax"),
        ("import sys\nsys.exit('stop\\nhere')\n", "line 2: SystemExit: stop"),
    ],
)
def test_a_module_that_fails_is_told_with_its_line(module, text, told):
    name = module(f"own_{abs(hash(told))}", text)
    with pytest.raises(OwnError) as error:
        load_own(f"{name}:f", "reward", CHOICES, OwnError)
    assert f"module '{name}' fails on import" in str(error.value)
    assert told in str(error.value) and "\n" not in str(error.value)


def test_where_the_library_has_no_names():
    with pytest.raises(GrError, match="baseline 'x' is unknown; use module:name"):
        load_own("x", "baseline", ())


WEIGHT = Share | Annotated[str, OneOf(("tuned", "gate"))] | None


@pytest.mark.parametrize("value", [0, 0.0, 0.7, 1, np.float32(0.5), "tuned", "gate", None])
def test_a_field_may_hold_one_of_several_kinds(value):
    check_value("weight", value, WEIGHT)


@pytest.mark.parametrize(
    ("value", "told"),
    [
        (1.5, "weight=1.5: use a number from 0 to 1"),
        (-1, "weight=-1: use a number from 0 to 1"),
        (float("nan"), "weight=nan: use a number from 0 to 1, and finite"),
        ("tund", "weight='tund' is unknown; did you mean tuned? Use one of tuned, gate"),
        ("0.7", "weight='0.7' is unknown; use one of tuned, gate"),
        ("", "weight='' is unknown; use one of tuned, gate"),
        (True, "weight=True is of type bool; give a number or a text"),
        ((0.5,), "weight=(0.5,) is of type tuple; give a number or a text"),
    ],
)
def test_a_value_is_checked_as_the_kind_that_it_is(value, told):
    with pytest.raises(OwnError) as error:
        check_value("weight", value, WEIGHT, OwnError)
    assert str(error.value) == told


def test_without_none_among_the_kinds_none_is_refused():
    with pytest.raises(GrError, match="weight=None is of type NoneType; give a number or a text"):
        check_value("weight", None, Share | str)
