"""A function of the user's own: found, hashed, or refused in a sentence."""

import pytest

from manners.core.errors import InputError
from manners.core.plugins import load_function, source_hash


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my_losses_one.py").write_text("def double(logp_N):\n    return -2 * logp_N\n\nNUMBER = 3\n")


def test_a_module_in_the_current_folder_is_found():
    assert load_function("my_losses_one:double", "loss")(-1.5) == 3.0


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("double", "module:function"),
        ("my_losses_one:", "module:function"),
        ("no_such_module:f", "cannot be imported"),
        ("my_losses_one:doubel", "did you mean 'double'"),
        ("my_losses_one:NUMBER", "no function 'NUMBER'"),
    ],
)
def test_what_cannot_be_used_is_refused(name, said):
    with pytest.raises(InputError, match=said):
        load_function(name, "loss")


def test_another_source_is_another_hash(tmp_path):
    (tmp_path / "my_losses_two.py").write_text("def double(logp_N):\n    return -3 * logp_N\n")
    first, second = source_hash("my_losses_one:double", "loss"), source_hash("my_losses_two:double", "loss")
    assert first != second and first == source_hash("my_losses_one:double", "loss")
