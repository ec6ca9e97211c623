"""Settings from a YAML file and from words, and the sentence for each way to get them wrong."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Literal

import pytest
from pydantic import Field, ValidationError

from manners.core.config import Settings, load_settings, make_settings
from manners.core.errors import InputError, nearest


class Some(Settings):
    data: str
    learning_rate: Annotated[float, Field(ge=0)] | None = None
    epochs: Annotated[int, Field(ge=1)] = 1
    schedule: Literal["cosine", "on"] = "cosine"
    map: str | None = None
    shuffle: bool = False


def refused(*words: str, config: Path | None = None) -> str:
    with pytest.raises(InputError) as caught:
        load_settings(Some, config, words)
    message = str(caught.value)
    assert "\n" not in message and message.endswith((".", "?")) and caught.value.exit_code == 2
    return message


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "recipe.yaml"
    path.write_text("data: rows.jsonl\nlearning_rate: 1e-5\nepochs: 2\n")
    return path


def test_words_override_the_file_and_defaults_fill_the_rest(config: Path):
    settings = load_settings(Some, config, ["epochs=4", "shuffle=yes"])
    assert settings == Some(data="rows.jsonl", learning_rate=1e-5, epochs=4, shuffle=True)
    assert settings.schedule == "cosine"


@pytest.mark.parametrize("number", ["1e-5", "1.0e-5", "1E-5", "0.00001", "+1e-5", ".1e-4"])
def test_a_number_in_any_notation_is_a_number_in_the_file_and_as_a_word(config: Path, number: str):
    config.write_text(f"data: x\nlearning_rate: {number}\n")
    assert load_settings(Some, config).learning_rate == 1e-5
    assert load_settings(Some, None, ["data=x", f"learning_rate={number}"]).learning_rate == 1e-5


def test_a_whole_number_may_be_written_with_an_exponent(config: Path):
    config.write_text("data: x\nepochs: 1e2\n")
    assert load_settings(Some, config).epochs == load_settings(Some, None, ["data=x", "epochs=1e2"]).epochs == 100


@pytest.mark.parametrize("text", ["2024", "1e5", "yes", "Name: a thing", "[x", "2024-13-45", "a=b", "{}", "#1"])
def test_text_is_taken_as_it_stands(text: str):
    """A folder may be called 2024 and a prompt hold ': ', though YAML reads these as something else."""
    settings = load_settings(Some, None, [f"data={text}", f"map={text}"])
    assert settings.data == settings.map == text


def test_choices_are_text(config: Path):
    assert load_settings(Some, None, ["data=x", "schedule=on"]).schedule == "on", "YAML reads `on` as true"
    config.write_text("data: 1e5\n")
    assert load_settings(Some, config).data == "1e5"


@pytest.mark.parametrize("nothing", ["", "null", "~"])
def test_nothing_is_none_where_there_may_be_nothing(config: Path, nothing: str):
    settings = load_settings(Some, config, [f"learning_rate={nothing}", f"map={nothing}"])
    assert settings.learning_rate is None and settings.map is None
    assert refused("data=") == "the setting 'data' on the command line is wrong: it must be a valid string (given: nothing)."


def test_an_unknown_key_names_the_nearest(config: Path):
    assert refused("data=x", "learning_rat=1") == "unknown setting 'learning_rat' on the command line; did you mean 'learning_rate'?"
    config.write_text("data: x\nepoch: 3\n")
    assert refused(config=config) == f"unknown setting 'epoch' in {config}; did you mean 'epochs'?"
    assert refused("zzzzz=1").endswith("known are: data, epochs, learning_rate, map, schedule, shuffle.")


def test_a_needed_key_that_is_missing():
    assert refused() == "the setting 'data' is needed and was not given; add data=... or put it into the config file."


@pytest.mark.parametrize(
    ("word", "says", "given"),
    [
        ("epochs=many", "a valid integer, unable to parse", "'many'"),
        ("epochs=0", "greater than or equal to 1 (", "0"),
        ("epochs=1.5", "a valid integer", "1.5"),
        ("epochs=2024-13-45", "a valid integer", "'2024-13-45'"),
        ("epochs=[1", "a valid integer", "'[1'"),
        ("epochs={a: 1}", "a valid integer", "{'a': 1}"),
        ("learning_rate=-1", "greater than or equal to 0 (", "-1"),
        ("schedule=cosin", "'cosine' or 'on' (", "'cosin'"),
    ],
)
def test_a_wrong_value_is_quoted(word: str, says: str, given: str):
    message = refused("data=x", word)
    assert message.startswith(f"the setting '{word.split('=')[0]}' on the command line is wrong: it must be {says}")
    assert message.endswith(f" (given: {given}).")


def test_a_wrong_value_in_the_file_is_said_to_be_there(config: Path):
    config.write_text("data: 7\n")
    assert refused(config=config) == f"the setting 'data' in {config} is wrong: it must be a valid string (given: 7)."


@pytest.mark.parametrize("word", ["epochs", "=3", "data.jsonl"])
def test_a_word_without_equals(word: str):
    assert refused(word) == f"'{word}' is not a setting; write key=value, for example epochs=3."


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"data: x\nepochs: [1,\n", "line 3 is not valid YAML"),
        (b"data: x\n\tepochs: 1\n", "line 2 is not valid YAML"),
        (b"data: x: y\n", "line 1 is not valid YAML"),
        (b"data: x\x00\n", "is not valid YAML"),
        (b"data: \xff\n", "is not UTF-8 text"),
        (b"epochs: 2024-13-45\n", "holds a value that cannot be read: month must be in 1..12"),
        (b"- data\n- x\n", "must hold 'key: value' lines, not a list"),
        (b"just text\n", "must hold 'key: value' lines, not a str"),
    ],
)
def test_a_file_that_is_no_recipe(config: Path, content: bytes, says: str):
    config.write_bytes(content)
    message = refused(config=config)
    assert str(config) in message and says in message


def test_a_file_that_is_not_there(tmp_path: Path, config: Path, monkeypatch: pytest.MonkeyPatch):
    assert refused(config=tmp_path / "no.yaml") == f"the config file {tmp_path / 'no.yaml'} does not exist."
    assert refused(config=tmp_path) == f"{tmp_path} is a folder; --config takes a YAML file."

    def denied(*_, **__):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "read_text", denied)
    assert refused(config=config) == f"the config file {config} cannot be read (Permission denied)."


def test_an_empty_file_is_no_settings(config: Path):
    config.write_text("# nothing yet\n")
    assert load_settings(Some, config, ["data=x"]) == Some(data="x")


def test_settings_cannot_be_changed_and_dictionaries_have_the_same_errors():
    settings = make_settings(Some, {"data": "x", "learning_rate": "2e-4"})
    assert settings.learning_rate == 2e-4
    with pytest.raises(ValidationError, match="frozen"):
        settings.epochs = 3
    with pytest.raises(InputError, match=r"^unknown setting 'epoch'; did you mean 'epochs'\?$"):
        make_settings(Some, {"epoch": 1})


@pytest.mark.parametrize(
    ("name", "known", "says"),
    [("sft2", ["dpo", "sft"], "did you mean 'sft'?"), ("x", {"b": 1, "a": 2}, "known are: a, b."), ("", ["a"], "known are: a.")],
)
def test_nearest(name: str, known: list[str] | Mapping[str, int], says: str):
    assert nearest(name, known) == says
