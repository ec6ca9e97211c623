"""What every page is made of beside its content: the style sheet, the script, the chart library, and the policy that lets these run.

The chart library is Vega with Vega-Lite and Vega-Embed, put into one script by vl-convert, which also draws the charts: one version of it
in the page. Making it takes seconds, so it is kept in the cache folder. Expressions of charts are interpreted, not compiled (Vega's
`ast`), so that the policy need not allow `eval`.
"""

import contextlib
import hashlib
from base64 import b64encode
from collections.abc import Sequence
from functools import cache
from importlib import resources

import vl_convert

from manners.core import files
from manners.core.errors import MannersError
from manners.model.fetch import cache_dir

VEGALITE = vl_convert.get_vegalite_versions()[-1]
"""Version in which charts are drawn and run, as in 6.4."""
NOTICE = (
    "/* Vega, Vega-Lite and Vega-Embed: Copyright (c) 2013-2026 University of Washington Interactive Data Lab and contributors. "
    "BSD-3-Clause; redistribution with or without modification is permitted provided that this notice is kept, names of the holders are "
    "not used to promote what is derived from it, and it comes AS IS without any warranty or liability. github.com/vega */\n"
)


def _text(name: str) -> str:
    return resources.files("manners.report").joinpath(name).read_text(encoding="utf-8")


def style_sheet() -> str:
    """style.css."""
    return _text("style.css")


def script() -> str:
    """page.js."""
    return _text("page.js")


@cache
def library() -> str:
    """The chart library as a script: it sets `window.vegaEmbed`. Kept in the cache folder once it was made."""
    kept = cache_dir() / f"vega-{vl_convert.get_vega_version()}-{VEGALITE}-{vl_convert.get_vega_embed_version()}.js"
    try:
        text = kept.read_text(encoding="utf-8")
    except OSError:
        text = vl_convert.javascript_bundle("window.vegaEmbed = vegaEmbed;", vl_version=VEGALITE)
        # either of these would end the script that it stands in, or hide what follows
        text = NOTICE + text.replace("</script", "<\\/script").replace("<!--", "<\\!--")
        with contextlib.suppress(OSError, MannersError):  # a cache that cannot be written is only slow
            files.write_text(kept, text)
    return text


def policy(scripts: Sequence[str], live: bool = False) -> str:
    """A content security policy under which these scripts run and no other, and nothing is fetched; of a live page, from its server."""
    allowed = " ".join(f"'sha256-{b64encode(hashlib.sha256(text.encode()).digest()).decode()}'" for text in scripts)
    rules = ["default-src 'none'", "style-src 'unsafe-inline'", "img-src data:"]
    if scripts:
        rules += [f"script-src {allowed}", "base-uri 'none'", "form-action 'none'"]
    if live:
        rules.append("connect-src 'self'")
    return "; ".join(rules)


def hashed(text: str) -> str:
    """Sixteen hex digits of a text."""
    return hashlib.sha256(text.encode("utf-8", "replace")).hexdigest()[:16]
