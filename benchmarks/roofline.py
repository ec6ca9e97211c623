"""Where training and decoding stand between the processor's and the memory's limit: measures both limits, draws the picture.

    python -m benchmarks.roofline docs/results/performance.json docs/roofline.svg

The JSON holds the measured work (`points`: name, operations and bytes of a step, seconds); the limits are measured here: the largest
rate of float32 products by either library torch carries, and of copying a large tensor.
"""

import json
import math
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch

from manners.ops import products


def best(work: Callable[[], object], times: int = 12) -> float:
    """Seconds of the fastest of several runs, after two to warm up."""
    seconds = []
    for _ in range(times + 2):
        began = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - began)
    return min(seconds[2:])


def limits() -> dict[str, float]:
    """GFLOP/s of square float32 products by torch's own library and by oneDNN, and GB/s of a copy (read and written)."""
    size = 2048
    x, y = torch.randn(size, size), torch.randn(size, size)
    found = {"torch": 2 * size**3 / best(lambda: x @ y.t()) / 1e9}
    if products.engine() == "onednn":
        found["onednn"] = 2 * size**3 / best(lambda: products.product(x, y)) / 1e9
    long = torch.randn(2**26)
    target = torch.empty_like(long)
    found["copy"] = 2 * 4 * 2**26 / best(lambda: target.copy_(long)) / 1e9
    return {name: round(value, 1) for name, value in found.items()}


def draw(measured: dict, path: Path) -> None:
    import altair as alt
    import vl_convert

    roof = max(v for k, v in measured["limits"].items() if k != "copy")
    slope = measured["limits"]["copy"]
    lines = [
        {"x": x, "y": min(top, slope * x), "limit": name}
        for name, top in {"oneDNN and memory": roof, "torch's own products (MKL)": measured["limits"]["torch"]}.items()
        for x in [2 ** (e / 4) for e in range(0, 45)]
        if name.startswith("oneDNN") or slope * x >= top
    ]
    points = [{"x": p["operations"] / p["bytes"], "y": p["operations"] / p["seconds"] / 1e9, "name": p["name"]} for p in measured["points"]]
    x = alt.X("x:Q", scale=alt.Scale(type="log", base=2, domain=[1, 2048]), title="operations a byte of memory traffic")
    y = alt.Y("y:Q", scale=alt.Scale(type="log", base=2, domain=[16, 2 ** math.ceil(math.log2(roof))]), title="GFLOP/s")
    colour = alt.Color("limit:N", scale=alt.Scale(range=["#0072B2", "#999999"]), legend=alt.Legend(title=None, orient="top"))
    roofs = alt.Chart(alt.Data(values=lines)).mark_line(strokeWidth=2).encode(x, y, colour)
    dots = alt.Chart(alt.Data(values=points)).mark_point(filled=True, size=80, color="#D55E00").encode(x, y)
    names = alt.Chart(alt.Data(values=points)).mark_text(dy=14, color="#333333").encode(x, y, text="name:N")
    chart = (roofs + dots + names).properties(width=560, height=300, background="white")
    path.write_text(vl_convert.vegalite_to_svg(chart.to_dict()), encoding="utf-8")


def main() -> None:
    source, target = Path(sys.argv[1]), Path(sys.argv[2])
    measured = json.loads(source.read_text(encoding="utf-8"))
    measured["limits"] = limits()
    source.write_text(json.dumps(measured, indent=1) + "\n", encoding="utf-8")
    draw(measured, target)
    print(json.dumps(measured["limits"]))


if __name__ == "__main__":
    main()
