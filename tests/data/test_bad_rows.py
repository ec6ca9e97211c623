"""Bad input to every command that makes or sifts rows: named by file and row, counted, and the rest goes on."""

import json
from pathlib import Path

import pytest

from manners.core.files import read_jsonl

GOOD = [{"prompt": f"Name river {i}.", "completion": f"The Loire and {i} others.", "text": f"good {i}", "label": i % 2} for i in range(6)]
BAD = {
    2: (b'{"prompt": "caf\xe9", "completion": "x"}', "not UTF-8"),
    3: (b'{"prompt": "a", "completion": ', "not JSON"),
    5: (b'["a", "b"]', "not an object"),
    6: (b'{"prompt": "' + b"x" * 3000 + b'"}', "longer than 2,000 bytes"),
    7: (b"[" * 1500, "nested too deeply"),
}
"""Line in the file -> what stands there, and what is said of it."""


@pytest.fixture
def bad_file(tmp_path: Path) -> Path:
    good = iter(GOOD)
    lines = [BAD[n][0] if n in BAD else json.dumps(next(good)).encode() for n in range(1, len(GOOD) + len(BAD) + 1)]
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b"\n".join(lines) + b"\n")
    return path


COMMANDS = {
    "convert": ("{rows}", "to=messages"),
    "clean": ("{rows}",),
    "card": ("{rows}", "languages=0"),
    "mix": ("a={rows}",),
    "render": ("data={rows}", "templates=starter:sentiment"),
    "select": ("{rows}", "by=length", "rows=2"),
}


@pytest.mark.parametrize("name", COMMANDS)
def test_bad_lines_are_named_and_counted_and_the_rest_goes_on(name, manners, bad_file, tmp_path):
    words = [word.format(rows=bad_file) for word in COMMANDS[name]]
    out = tmp_path / ("card.md" if name == "card" else "out.jsonl")
    mapped = [] if name in ("mix", "render") else ["map=prompt=prompt,completion=completion"]
    done = manners("data", name, *words, f"out={out}", "max_line=2000", *mapped)
    assert done.code == 0, done.stderr
    said = "\n".join([*done.stdout, *(path.read_text() for path in tmp_path.iterdir() if path != bad_file)])
    for line, (_, why) in BAD.items():
        assert why in said or (name == "render" and why in " ".join(done.stdout)), (line, why)
    if name in ("convert", "mix", "render", "clean"):
        assert len(read_jsonl(out)) >= 4


def test_a_malformed_template_file_is_named_and_others_go_on(manners, tmp_path):
    folder = tmp_path / "templates"
    folder.mkdir()
    (folder / "broken.yaml").write_text("templates: [1, {")
    (folder / "half.yaml").write_text(
        "task: t\ntemplates:\n  - {name: bad, jinja: '{{ text ||| x'}\n  - {name: fine, jinja: '{{ text }} ||| {{ label }}'}\n"
        "  - {name: lacking, jinja: '{{ nowhere }} ||| {{ label }}'}\n"
    )
    data = tmp_path / "rows.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in GOOD))
    done = manners("data", "render", f"templates={folder}", f"data={data}", f"out={tmp_path / 'out.jsonl'}", "per_row=0")
    said = " ".join(done.stdout)
    assert done.code == 0 and "broken.yaml" in said and "half.yaml, 'bad'" in said and "nowhere" in said, (said, done.stderr)
    assert {row["template"] for row in read_jsonl(tmp_path / "out.jsonl")} == {"fine"}
