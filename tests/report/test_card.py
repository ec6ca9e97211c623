"""The page of a data card: what it shows, and that nothing of the file gets out of its text."""

import json
import re

from manners.core.files import read_json
from tests.conftest import write_rows


def test_the_page(manners, tmp_path):
    odd = "<script>alert(1)</script>"
    rows = [
        {"prompt": "Name a river. " * (1 + i), "completion": "The Loire.", "cluster": odd if i else "facts", "source": f"s{i}"}
        for i in range(30)
    ]
    data = write_rows(tmp_path / "rows.jsonl", [*rows, rows[0]])
    with data.open("a") as file:
        file.write("{\n")
    done = manners("data", "card", data, f"out={tmp_path / 'card.html'}", "languages=5")
    assert done.code == 0, done.stderr
    page = (tmp_path / "card.html").read_text(encoding="utf-8")
    assert "<script" not in page and "&lt;script&gt;alert(1)&lt;/script&gt;" in page and "default-src 'none'" in page
    assert not re.search(r"(?:src|href)=\"(?!data:)", page)
    assert "31 rows" in page and "Exact duplicates: 1 (3.23 %)" in page and "and 10 more" in page and "not JSON: 1" in page
    card = read_json(tmp_path / "card.json")
    histogram = card["histograms"]["words"]["prompt"]
    assert [(bin["from"], bin["to"]) for bin in histogram] == [(0, 16), (17, 32), (33, 64), (65, 128)]
    counts = [sum(bin["from"] <= 3 * n <= bin["to"] for n in [*range(1, 31), 1]) for bin in histogram]
    assert [bin["rows"] for bin in histogram] == counts and sum(counts) == 31


def test_another_ending_is_markdown(manners, tmp_path):
    data = write_rows(tmp_path / "rows.jsonl", [{"prompt": "a", "completion": "b"}])
    done = manners("data", "card", data, f"out={tmp_path / 'card.md'}", "languages=0", "--json")
    assert done.code == 0 and json.loads(done.stdout[-1])["rows"] == 1
    assert (tmp_path / "card.md").read_text().startswith("# rows.jsonl")
