"""The agreement of the annotator with people, as docs/results/annotator.json has it, whatever it is."""

import json
import os
from pathlib import Path

import pytest

from manners.evaluate.agreement import SETS, measure
from tests.markdown import DOCS

pytestmark = pytest.mark.shared
SHARED = Path(os.environ.get("MANNERS_SHARED") or Path(__file__).parents[3] / "shared")


def test_the_figures_can_be_made_again():
    record = json.loads((DOCS / "results" / "annotator.json").read_text(encoding="utf-8"))
    found = measure(SHARED / "data" / "preferences")
    assert found.keys() == record["sets"].keys() == SETS.keys()
    for name, figures in found.items():
        kept = record["sets"][name]
        for key in ("n", "prompts", "dropped", "ties", "among_people"):
            assert figures[key] == kept[key], (name, key)
        for key in ("agreement", "longer_wins"):
            assert figures[key] == pytest.approx(kept[key], abs=1e-9), (name, key)
