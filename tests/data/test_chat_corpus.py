"""The chat templates that packages of this environment carry, through ChatFormat: each comes out exactly or is refused by name.

There may be none (an environment with TRL has seventy); then the hand-written families stand alone.
"""

import sysconfig
from pathlib import Path

import pytest

from benchmarks.template_corpus import Verdict, judge, main
from manners.data.chat import ChatFormat
from tests.data.test_chat_templates import FAMILIES

FEWEST = 3


def installed(packages: Path) -> dict[str, str]:
    """Chat templates in the packages, by path; other Jinja files (torch has some) do not loop over messages."""
    texts = {str(path.relative_to(packages)): path.read_text(encoding="utf-8") for path in sorted(packages.rglob("*.jinja"))}
    return {name: text for name, text in texts.items() if "in messages" in text and "role" in text}


def corpus(packages: Path) -> dict[str, str]:
    """The hand-written families, with the installed templates if there are a few."""
    found = installed(packages)
    return {name: family.template for name, family in FAMILIES.items()} | (found if len(found) >= FEWEST else {})


def check(verdicts: dict[str, Verdict]) -> None:
    assert {name: verdict for name, verdict in verdicts.items() if verdict.outcome == "wrong"} == {}
    assert all(verdict.why for verdict in verdicts.values() if verdict.outcome == "refused"), "a refusal says why"
    assert sum(verdict.outcome == "exact" for verdict in verdicts.values()) >= 0.8 * len(verdicts)


def test_every_template_is_exact_or_refused_by_name():
    verdicts = {name: judge(template) for name, template in corpus(Path(sysconfig.get_path("purelib"))).items()}
    check(verdicts)
    assert all(verdicts[name] == Verdict("exact", stop=family.stop) for name, family in FAMILIES.items())


def test_templates_are_found_where_packages_keep_them(tmp_path: Path):
    place = tmp_path / "some" / "chat_templates"
    place.mkdir(parents=True)
    (tmp_path / "kernel.py.jinja").write_text("{% for x in xs %}{{ x }}{% endfor %}")
    for number, name in enumerate(["chatml", "phi3", "gemma"], 1):
        (place / f"{name}.jinja").write_text(FAMILIES[name].template)
        assert len(installed(tmp_path)) == number
        assert len(corpus(tmp_path)) == len(FAMILIES) + (number if number >= FEWEST else 0)


PARTS = "{% for m in messages %}{{ m['role'] }}{% for p in m['content'] %}{{ p['text'] }}{% endfor %}</s>{% endfor %}"
TWICE = "{{ bos_token }}<s>" + FAMILIES["chatml"].template


def test_what_is_not_exact_is_told_with_its_reason(monkeypatch: pytest.MonkeyPatch):
    assert judge(PARTS) == Verdict("refused", "it does not write an answer that is given as text")
    assert judge(TWICE).outcome == "wrong" and "two begin tokens" in judge(TWICE).why
    encode = ChatFormat.encode

    def all_trained(self, group, **options):
        tokens = encode(self, group, **options)
        for response in tokens.responses:
            response.trained[:] = [True] * len(response.trained)
        return tokens

    def shifted(self, group, **options):
        tokens = encode(self, group, **options)
        tokens.prompt_ids.reverse()
        return tokens

    for fault, why in ((all_trained, "the trained tokens are"), (shifted, "the tokens are not the rendering")):
        monkeypatch.setattr(ChatFormat, "encode", fault)
        verdict = judge(FAMILIES["chatml"].template)
        assert verdict.outcome == "wrong" and why in verdict.why
        with pytest.raises(AssertionError):
            check({"chatml": verdict})


def test_the_script_prints_a_line_a_template_and_the_counts(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    (tmp_path / "inner").mkdir()
    (tmp_path / "inner" / "a.jinja").write_text(FAMILIES["chatml"].template)
    (tmp_path / "b.jinja").write_text(PARTS)
    monkeypatch.setenv("COLUMNS", "200")
    main(str(tmp_path))
    lines = capsys.readouterr().out.splitlines()
    assert lines[1].split()[:2] == ["b.jinja", "refused"] and lines[2].split()[:2] == ["inner/a.jinja", "exact"]
    assert lines[-1] == "2 templates: 1 exact, 1 refused, 0 wrong"
