"""The settings tables of docs/clusters.md and docs/diversity.md have every key with its default."""

import pytest

from manners.evaluate.gap import GapSettings
from manners.evaluate.held_out import HeldOutSettings
from manners.evaluate.references import MEASURES, ReferencesSettings
from manners.evaluate.varied import DIRECTIONS, VariedSettings
from manners.recipe.clusters import ClustersSettings
from tests.markdown import DOCS, table
from tests.test_docs import is_default


@pytest.mark.parametrize(
    "page, name, kind",
    [
        ("clusters", "references", ReferencesSettings),
        ("clusters", "clusters", ClustersSettings),
        ("clusters", "held-out", HeldOutSettings),
        ("diversity", "diversity", VariedSettings),
        ("diversity", "gap", GapSettings),
    ],
)
def test_the_settings_tables(page, name, kind):
    rows = table((DOCS / f"{page}.md").read_text(encoding="utf-8"), f"Setting of {name}")
    assert rows.keys() == kind.model_fields.keys() - {"changes"}
    for key, (default, meaning) in rows.items():
        field = kind.model_fields[key]
        known = ",".join(map(str, field.default)) if isinstance(field.default, list) else field.default
        assert default == "needed" if field.is_required() else is_default(default.strip("`"), known), key
        assert len(meaning) > 10, key


def test_the_tables_of_measures():
    page = lambda name: (DOCS / f"{name}.md").read_text(encoding="utf-8")
    assert [cell.strip("`") for cell in table(page("clusters"), "Measure")] == list(MEASURES)
    rows = table(page("diversity"), "D")
    assert {name.strip("`"): row[-1] for name, row in rows.items()} == DIRECTIONS
