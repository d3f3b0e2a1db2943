"""The report page: one safe, self-contained file that accounts for every rectangle and opens in a browser."""

from __future__ import annotations

import base64
import dataclasses
import hashlib
import json
import re
import shutil
import subprocess
from html.parser import HTMLParser
from importlib import resources

import pytest

from ir.machine import Machine
from ir.model import BlockKind
from ir.objective import Objective
from ir.plan import PlacedBlock, PlacedExpert, Plan, Rectangle, Score, SolverRecord, Transfer
from ir.workload import Workload
from partitioner.viewer.report import fold_names, packed, render_report, unpacked

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
HOSTILE = "</script><script>document.title='taken'</script><img src=x onerror=alert(1)><!--&amp;\u2028"
LAYERS_PER_WAFER = 2
EXPERTS = 12


def layer_blocks(layer, wafer, row):
    experts = tuple(
        PlacedExpert(index, wafer, Rectangle(20 + 10 * (index % 4), row + 10 * (index // 4), 10, 10))
        for index in range(EXPERTS)
    )
    prefix = f"model.layers.{layer}"
    names = tuple(f"{prefix}.experts.{index}.{part}.weight" for index in range(EXPERTS) for part in ("up", "down"))
    common = {"layer": layer, "wafer": wafer}
    return (
        PlacedBlock(
            name=f"layers.{layer}.attention",
            kind=BlockKind.ATTENTION,
            region=Rectangle(0, row, 20, 40),
            parameters=(f"{prefix}.q_proj.weight", f"{prefix}.o_proj.weight"),
            weight_bytes=4_000_000,
            cache_bytes=1_000_000,
            activation_bytes=20_000,
            tile_bytes=6_300,
            macs_per_token=2_000_000,
            **common,
        ),
        PlacedBlock(
            name=f"layers.{layer}.experts",
            kind=BlockKind.EXPERTS,
            region=Rectangle(20, row, 44, 36),
            parameters=names,
            weight_bytes=9_000_000,
            cache_bytes=0,
            activation_bytes=50_000,
            tile_bytes=7_600,
            macs_per_token=1_500_000,
            experts=experts,
            active_experts=2,
            **common,
        ),
    )


def make_plan(wafers=3):
    blocks = tuple(
        block
        for wafer in range(wafers)
        for step in range(LAYERS_PER_WAFER)
        for block in layer_blocks(wafer * LAYERS_PER_WAFER + step, wafer, 45 * step)
    )
    transfers = tuple(
        Transfer("hidden", f"layers.{2 * wafer + 1}.experts", wafer, wafer + 1, 512) for wafer in range(wafers - 1)
    )
    return Plan(
        model_name="tiny-moe",
        machine=Machine("toy", "a small mesh", 64, 100, 8192, 512, 4),
        workload=Workload(users=2, context=4096, chunk=1),
        blocks=blocks,
        transfers=transfers,
        solver=SolverRecord("optimal", (Score(Objective.TRAFFIC, 1024, 1024, "min cut"),), 7, 30.0),
    )


def hostile_plan(model_name=HOSTILE):
    plan = make_plan()
    attacked = dataclasses.replace(plan.blocks[0], name=HOSTILE, parameters=(HOSTILE, HOSTILE + ".0"))
    return dataclasses.replace(
        plan,
        model_name=model_name,
        machine=dataclasses.replace(plan.machine, name=HOSTILE, description=HOSTILE),
        blocks=(attacked, *plan.blocks[1:]),
        transfers=(Transfer(HOSTILE, HOSTILE, 0, 2, 64), *plan.transfers),
        solver=dataclasses.replace(plan.solver, scores=(Score(Objective.TRAFFIC, 1, 1, HOSTILE),), status=HOSTILE),
    )


class Page(HTMLParser):
    """Elements, attributes and the text of each script and style of a page."""

    def __init__(self, html):
        super().__init__()
        self.tags = []
        self.texts = []
        self.open = None
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag in ("script", "style"):
            self.open = (tag, dict(attrs))
            self.texts.append("")

    def handle_endtag(self, tag):
        if tag in ("script", "style"):
            self.open = None

    def handle_data(self, data):
        if self.open:
            self.texts[-1] += data

    def count(self, tag):
        return sum(name == tag for name, _ in self.tags)


def payload_of(html):
    return json.loads(re.search(r'<script type="application/json" id="payload">(.*?)</script>', html, re.DOTALL)[1])


def dump_dom(tmp_path, html, fragment=""):
    page = tmp_path / "report.html"
    page.write_text(html, encoding="utf-8")
    command = [
        CHROMIUM,
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--disable-quic",
        "--no-first-run",
        "--disable-background-networking",
        "--disable-component-update",
        "--disable-sync",
        f"--user-data-dir={tmp_path / 'profile'}",
        "--virtual-time-budget=2000",
        "--window-size=1400,900",
        "--dump-dom",
        f"{page.as_uri()}#{fragment}",
    ]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=True).stdout


def body_data(dom):
    body = next(attributes for tag, attributes in Page(dom).tags if tag == "body")
    return {name.removeprefix("data-"): value for name, value in body.items() if name.startswith("data-")}


needs_chromium = pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed")


def test_same_plan_gives_same_bytes():
    assert render_report(make_plan()) == render_report(make_plan())


def test_page_loads_nothing():
    html = render_report(make_plan())
    assert "http://" not in html
    assert "https://" not in html
    page = Page(html)
    assert not {"link", "img", "iframe", "object", "embed", "base"} & {tag for tag, _ in page.tags}
    assert not [attributes for _, attributes in page.tags if "src" in attributes or "href" in attributes]
    assert "url(" not in html
    assert "@import" not in html


def test_policy_allows_exactly_the_script_and_style_of_the_page():
    page = Page(render_report(make_plan()))
    policy = next(a["content"] for _, a in page.tags if a.get("http-equiv") == "Content-Security-Policy")
    allowed = set(re.findall(r"'sha256-([^']+)'", policy))
    style, _, script = page.texts
    assert allowed == {base64.b64encode(hashlib.sha256(t.encode()).digest()).decode() for t in (style, script)}
    assert policy.startswith("default-src 'none'")
    assert "unsafe" not in policy


def test_page_was_built_from_the_sources_beside_it():
    folder = resources.files("partitioner.viewer") / "page"
    digest = hashlib.sha256()
    for source in sorted(folder.iterdir(), key=lambda path: path.name):
        if source.name.endswith((".ts", ".css", ".html")):
            digest.update(f"{source.name}\n".encode() + source.read_bytes())
    built = next(a["content"] for _, a in Page(render_report(make_plan())).tags if a.get("name") == "source")
    assert built == digest.hexdigest(), "build the page again, see partitioner/viewer/page/README.md"


def test_payload_accounts_for_every_rectangle():
    plan = make_plan()
    payload = payload_of(render_report(plan))
    blocks = payload["blocks"]
    rectangles = zip(blocks["column"], blocks["row"], blocks["columns"], blocks["rows"], strict=True)
    assert [Rectangle(*values) for values in rectangles] == [block.region for block in plan.blocks]
    assert blocks["name"] == [block.name for block in plan.blocks]
    assert [payload["kinds"][kind] for kind in blocks["kind"]] == [block.kind for block in plan.blocks]
    assert blocks["experts"] == [len(block.experts) for block in plan.blocks]
    columns = {name: unpacked(runs) for name, runs in payload["experts"].items()}
    fields = ("index", "wafer", "column", "row", "columns", "rows")
    placed = zip(*(columns[name] for name in fields), strict=True)
    assert [PlacedExpert(index, wafer, Rectangle(*rest)) for index, wafer, *rest in placed] == [
        expert for block in plan.blocks for expert in block.experts
    ]
    assert payload["transfers"]["bytes_per_token"] == [512, 512]
    assert payload["totals"]["weight_bytes"] == sum(block.weight_bytes for block in plan.blocks)


def test_extras_reach_the_page():
    html = render_report(
        make_plan(), model_weight_bytes=17, model_parameters=34, unplaced_parameters=["vision.0.w", "vision.1.w"]
    )
    expected = {"weight_bytes": 17, "parameters": 34, "unplaced": ["vision.{0..1}.w"], "unplaced_count": 2}
    assert payload_of(html)["totals"] == expected


def test_hostile_names_stay_text():
    # Half of a surrogate pair, which UTF-8 cannot write; --dump-dom cannot either, so only here.
    broken = HOSTILE + "\ud800"
    html = render_report(hostile_plan(broken))
    clean = Page(render_report(make_plan()))
    assert [tag for tag, _ in Page(html).tags] == [tag for tag, _ in clean.tags]
    payload = payload_of(html)
    assert payload["model"] == broken
    assert payload["blocks"]["name"][0] == HOSTILE
    html.encode("utf-8")


def test_time_limit_without_end_stays_json():
    plan = make_plan()
    endless = dataclasses.replace(plan, solver=dataclasses.replace(plan.solver, deterministic_time_limit=float("inf")))
    assert payload_of(render_report(endless))["solver"]["deterministic_time_limit"] is None


def test_page_of_a_large_plan_stays_small():
    experts = tuple(
        PlacedExpert(index, 0, Rectangle(30 * (index % 24), 50 * (index // 24), 29, 41)) for index in range(384)
    )
    plan = make_plan()
    block = dataclasses.replace(plan.blocks[1], experts=experts)
    many = dataclasses.replace(plan, blocks=tuple(dataclasses.replace(block, name=f"b.{i}") for i in range(60)))
    assert len(render_report(many)) < 400_000


@pytest.mark.parametrize("values", [[], [5], [0, 1, 2, 3, 7, 7, 7, -4], list(range(100)), [3, 1, 4, 1, 5, 9, 2, 6]])
def test_packed_columns_come_back(values):
    assert unpacked(packed(values)) == values


@pytest.mark.parametrize(
    ("names", "folded"),
    [
        (["a.0.w", "a.1.w", "a.2.w"], ["a.{0..2}.w"]),
        (["l.17.experts.0.up", "l.17.experts.2.up", "l.17.norm"], ["l.17.experts.{0,2}.up", "l.17.norm"]),
        (["embed.weight", "007.w", "", "w.3"], ["embed.weight", "007.w", "", "w.3"]),
        (["7", "8"], ["{7..8}"]),
    ],
)
def test_folded_names(names, folded):
    assert fold_names(names) == folded


@needs_chromium
def test_fragment_selects_a_block_and_the_table_lists_every_wafer(tmp_path):
    dom = dump_dom(tmp_path, render_report(make_plan(), producer="waferc 1"), "block=layers.3.experts&theme=dark")
    assert re.findall(r'<tr data-wafer="(\d+)"', dom) == ["0", "1", "2"]
    state = body_data(dom)
    assert state["ready"] == "true"
    assert state["selected"] == "layers.3.experts"
    assert '<html lang="en" data-theme="dark">' in dom
    assert "24" in re.search(r"Parameters · (\d+)", dom)[1]
    assert "model.layers.3.experts.{0..11}.up.weight" in dom


@needs_chromium
def test_experts_that_share_a_region_are_shown_as_one(tmp_path):
    plan = make_plan()
    shared = tuple(
        dataclasses.replace(b, experts=tuple(dataclasses.replace(e, region=b.region) for e in b.experts))
        for b in plan.blocks
    )
    pages = [render_report(p) for p in (plan, dataclasses.replace(plan, blocks=shared))]
    apart, sliced = (dump_dom(tmp_path, page, "block=layers.3.experts") for page in pages)
    assert ">all, for each of them<" not in apart
    assert ">all, for each of them<" in sliced
    assert body_data(sliced)["ready"] == "true"


@needs_chromium
def test_hostile_names_run_nothing_in_a_browser(tmp_path):
    dom = dump_dom(tmp_path, render_report(hostile_plan()), "transfer=0,2")
    state = body_data(dom)
    assert state["ready"] == "true"
    assert state["selected"] == "wafer 0 to wafer 2"
    page = Page(dom)
    assert page.count("img") == 0
    assert page.count("script") == 2
    assert "<title>taken</title>" not in dom
