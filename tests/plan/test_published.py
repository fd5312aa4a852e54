"""Published figures are met to the digits that are printed."""

import pytest

from fathom.plan.published import published_figures
from fathom.presets import preset

V3 = {
    "parameters": "671,026,419,200",
    "parameters with MTP": "684,489,845,504",
    "active parameters": "36,625,618,432",
    "Llama 3.1 405B over active": "11.08",
    "FP8 elements on disk": "680,571,043,840",
    "BF16 elements on disk": "3,918,786,560",
    "F32 elements on disk": "41,555,600",
    "training GFLOP per token": "250.46",
    "cache per token, KB": "70.272",
    "MFU, causal": "39.0%",
    "MFU, non-causal": "43.8%",
    "GPU-hours of the final run": "2,788K",
    "dollars of the final run": "$5.576M",
    "dollars of R1 on top": "$294K",
    "dollars of a day of service": "$87,072",
    "nodes that its tokens need": "226.9",
    "its revenue at R1's prices": "$562,100",
    "its margin": "545.6%",
}
V2 = {
    "parameters": "235,741,434,880",
    "active parameters": "21,375,800,320",
    "training GFLOP per token": "155.31",
    "cache saved, 6 bits against 16": "93.34%",
    "cache saved, both at 16 bits": "82.24%",
}


@pytest.mark.parametrize(("name", "figures"), [("v3", V3), ("v2", V2), ("laptop", {})])
def test_figures(name: str, figures: dict[str, str]) -> None:
    found = published_figures(preset(name).model)
    assert {figure.name: figure.computed for figure in found} == figures
    assert all(figure.source for figure in found)
