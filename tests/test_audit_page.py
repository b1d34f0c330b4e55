"""The audit's page: what is in the file, and what a real browser makes of it, on a screen and on paper."""

import io
import json
import re
from dataclasses import replace
from datetime import datetime, timedelta, timezone
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from browser import CHROMIUM, Browser
from rich.console import Console

import reweigh
from reweigh import report
from reweigh.__main__ import main
from reweigh.audit import audit
from reweigh.doctor import CAUSES, doctor
from reweigh.doctor.causes import ABOUT
from reweigh.doctor.diagnosis import CannotTell, Diagnosis, Evidence, Finding, InputNote
from reweigh.records import RecordWriter, RunInfo
from reweigh.report.causes import in_short, section

EVIL = "</script><script>alert(1)</script><img src=x onerror=alert(2)> & <b>"
EXAMPLES = Path(__file__).parents[1] / "examples" / "records"
EXAMPLE = EXAMPLES / "vllm_bfloat16.parquet"
MAX_BYTES = 10_000_000
MIDDLE = "(() => { const r = %s.getBoundingClientRect(); return [r.left + r.width / 2, r.top + r.height / 2] })()"


def make_rows(n=160, sd=0.05, evil=EVIL):
    g = np.random.default_rng(0)
    rows = []
    for i in range(n):
        length = int(g.integers(4, 300))
        log_mu = -0.5 * g.standard_exponential(length) ** 2 - 1e-4
        log_pi = np.minimum(log_mu + sd * g.standard_t(3, length) - sd * sd, 0)
        rows.append(
            {
                "sequence_id": f"{evil}{i}",
                "prompt_id": f"p{i // 4}",
                "step": i // 8,
                "env": ["math", "code", evil][i % 3],
                "log_mu": log_mu.astype(np.float32),
                "log_pi": log_pi.astype(np.float32),
                "mask": (g.random(length) < 0.9) | (np.arange(length) == 0),
                "advantage": float(g.normal()),
                "versions": np.full(length, 7 - i % 3, np.int32),
                "trainer_version": 7,
                "turns": (np.arange(length) // 40).astype(np.int32),
                "token_ids": np.arange(length, dtype=np.int32),
                "text": f"say {evil}",
            }
        )
    return rows


DIAGNOSIS = Diagnosis(
    "raw_logprobs",
    (
        Finding(
            "raw_logprobs",
            0.94,
            0.81,
            (
                Evidence("mean_ratio", 1.052, f"mean token ratio, which must be 1 {EVIL}", 1.041, 1.063, 26_000),
                Evidence("nothing", float("nan"), "could not be had"),
            ),
            "sampling at temperature 1",
            {"general": "log after temperature", "vllm": f"--logprobs-mode processed_logprobs {EVIL}"},
        ),
        Finding("stale_weights", 0.3, None, ()),
    ),
    (CannotTell("both_raw", "there is no entropy", ("entropy_pi", "entropy_mu"), "log the entropy of one batch"),),
    "records",
    160,
    26_000,
    (InputNote("mask: all tokens count", 3, "rows", "a.parquet, row 17", "look at the mask"),),
    {"env": {EVIL: Diagnosis("stale_weights", ())}},
)


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    path = tmp_path_factory.mktemp("records") / "a.parquet"
    with RecordWriter(path, RunInfo(engine="vllm", trainer=EVIL, temperature=0.8)) as writer:
        writer.write(make_rows())
    return replace(audit(path, by=["env"]), diagnosis=DIAGNOSIS)


@pytest.fixture(scope="module")
def healthy(tmp_path_factory):
    return audit(noisy(tmp_path_factory.mktemp("records") / "healthy.parquet", 0.02))


def noisy(path, sd):
    """Records of an honest pair with a gap of this size."""
    g, rows = np.random.default_rng(0), []
    for i in range(90):
        log_mu = -1 - g.exponential(size=50)
        noise = sd * g.normal(size=50) - sd * sd / 2
        rows.append({"sequence_id": str(i), "log_mu": log_mu, "log_pi": np.minimum(log_mu + noise, 0)})
    with RecordWriter(path, RunInfo()) as writer:
        writer.write(rows)
    return path


@pytest.fixture(scope="module")
def html(found):
    return report.page(found)


@pytest.fixture(scope="module")
def page(html, tmp_path_factory):
    path = tmp_path_factory.mktemp("page") / "report.html"
    path.write_text(html, encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def browser():
    if CHROMIUM is None:
        pytest.skip("no Chromium or Chrome in PATH: install one to see the page as its readers do")
    one = Browser()
    yield one
    one.close()


# what is in the file


class _Parser(HTMLParser):
    """Tags, and whether each is closed."""

    def __init__(self):
        super().__init__()
        self.tags, self.open, self.scripts = [], [], []

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in ("meta", "br"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] == "script":
            self.scripts.append(data)


@pytest.fixture(scope="module")
def parsed(html):
    parser = _Parser()
    parser.feed(html)
    assert parser.open == []
    return parser


def test_the_file_is_whole_and_names_nothing_to_load(html, parsed):
    assert len(html.encode()) < MAX_BYTES
    assert not [attrs for _, attrs in parsed.tags if "src" in attrs]
    assert all(attrs["href"].startswith("#") for _, attrs in parsed.tags if "href" in attrs)
    policy = next(a["content"] for tag, a in parsed.tags if tag == "meta" and "http-equiv" in a)
    assert policy.startswith("default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; img-src data:")
    ids = [attrs["id"] for _, attrs in parsed.tags if "id" in attrs]
    assert len(ids) == len(set(ids))
    style = html[html.index("<style>") : html.index("</style>")]
    assert not re.search(r"https?:|@import|url\(", style)
    assert "prefers-color-scheme: dark" in style
    assert "@media print" in style
    assert html.count("plotly.js v") == 1


def test_what_records_say_is_no_markup(html, parsed):
    assert "<script>alert" not in html
    assert "<img src=x" not in html
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in html
    assert not [
        attrs for _, attrs in parsed.tags if any(name.startswith("on") for name in attrs) and "onsubmit" not in attrs
    ]
    data = next(text for text in parsed.scripts if text.startswith("{"))
    assert json.loads(data)["worst"][0]["places"][0].startswith("token ")
    assert "alert" not in data  # what records say stands in the tables alone
    assert not set("<>&") & set(data)


def test_the_verdict_comes_first_then_why_the_cause_the_size_and_what_to_do(found, html):
    top = found.headline
    parts = ("<h1>", ">why<", ">cause<", "KL(mu||pi) by k3", "What to do", 'id="causes"', 'id="gap"', 'id="where"')
    order = [html.index(text) for text in parts]
    assert order == sorted(order)
    assert "likely cause: the engine logs before temperature" in top.sentence
    assert top.todo == (
        "Fix that first, no estimator mends it: have the engine log what it samples from, or sample at temperature 1 "
        "without penalties",
    )
    assert any(line.startswith("mean_ratio 1.05 [1.04, 1.06]: mean token ratio") for line in top.why)


def test_the_headline_follows_what_was_found(found, healthy, tmp_path):
    unsure = replace(DIAGNOSIS.causes[0], confidence=0.3)
    maybe = replace(healthy, diagnosis=replace(DIAGNOSIS, verdict="not_decided", causes=(unsure,))).headline
    assert "cause not decided: the engine logs before temperature" in maybe.sentence
    assert maybe.use == healthy.headline.use  # a suspicion changes nothing
    fine = replace(healthy, diagnosis=Diagnosis("none", (Finding("none", 0.9, None, ()),))).headline
    assert "; no gap; " in f"{fine.sentence}; "
    alone = healthy.headline
    assert alone.sentence.startswith("small: KL(mu||pi) is 0.000")
    assert alone.sentence.endswith(f"% of the responses effective; a guard is enough: {alone.use}")
    assert len(alone.todo) == 1
    assert alone.todo[0].startswith(f"A guard is enough: {alone.use} (mean weight ")
    rows = [{"sequence_id": str(i), "log_mu": [-2.0] * 9, "log_pi": [-1.5] * 9} for i in range(90)]
    with RecordWriter(tmp_path / "a.parquet", RunInfo()) as writer:
        writer.write(rows)
    broken = audit(tmp_path / "a.parquet").headline
    assert broken.sentence.startswith("the mean token ratio is 1.6")
    assert broken.sentence.endswith("; fix that first, no estimator mends it")
    assert broken.use == ""


@pytest.mark.parametrize(
    ("cause", "said"),
    [
        ("quantised_rollout", "likely cause: the engine computes in fewer bits; use "),
        ("stale_weights", "likely cause: the sampler is some updates behind; use "),
        ("template_prefix", "likely cause: the two sides see another prompt; KL(mu||pi) is 0.01"),
        ("raw_logprobs", "likely cause: the engine logs before temperature; fix that first, no estimator mends it"),
        ("numerics", "likely cause: rounding; use "),
    ],
)
def test_the_headline_says_what_recommend_says(tmp_path, cause, said):
    """A gap that matters: what is benign or another policy's is corrected, the others are fixed first."""
    rough = audit(noisy(tmp_path / "rough.parquet", 0.16))
    assert rough.verdict.action == "correct"
    one = replace(rough, diagnosis=Diagnosis(cause, (Finding(cause, 0.9, None, ()),)))
    top, use = one.headline, one.recommendation.use
    assert said in top.sentence
    assert top.use == (use or "") == one.verdict.use
    assert use is None or use in top.sentence
    assert len(top.todo) == 1
    assert top.todo[0].startswith("Fix that first") == (use is None)


def test_the_advice_does_not_depend_on_what_was_tried(healthy):
    none = replace(healthy, trials=())
    assert none.headline == healthy.headline


def test_what_is_not_decided_has_candidates_and_what_would_decide():
    found = Diagnosis("not_decided", (Finding("dropout", 0.3, 0.9, ()), Finding("shift", 0.1, None, ())))
    one, *rest = _causes(found)
    assert one == ""
    assert rest[:2] == [
        "Cause: not decided",
        "1. dropout is on in the trainer (dropout): confidence 0.30, 90% of the squared log ratios",
    ]
    assert rest[2].startswith("   what would decide: Let the trainer compute log_pi of one batch twice")
    assert rest[3] == "2. the two log-probs are off by one position (shift): confidence 0.10"


def test_every_cause_points_to_a_picture(found, html, parsed):
    ids = {attrs["id"] for _, attrs in parsed.tags if "id" in attrs}
    for cause in CAUSES:
        part = section(Diagnosis(cause, (Finding(cause, 0.9, None, ()),)), found.strata)
        anchors = [anchor for anchor, _ in part.cards[0].seen_in]
        assert anchors
        assert set(anchors) <= ids
    assert '<a href="#fig-identity">mean ratio</a>, <a href="#fig-density">' in html
    bare = section(Diagnosis("stale_weights", (Finding("stale_weights", 0.9, None, ()),)))
    assert bare.cards[0].seen_in == ()  # no record tells the lag, so there is no such picture


def test_causes_are_all_there(found, html):
    for text in (
        "What would rule it out:",
        "processed_logprobs",
        "entropy_pi, entropy_mu",
        "log the entropy of one batch",
    ):
        assert text in html
    assert html.index("raw_logprobs</code>") < html.index("stale_weights</code>")
    assert 'style="width: 81%"' in html
    assert "Suspected, not sure" in html
    assert re.search(r"<li>the sampler is some updates behind <code>stale_weights</code>: confidence 0\.\d+", html)
    lag = section(Diagnosis("stale_weights", (Finding("stale_weights", 0.9, None, ()),)))
    assert [number.text for _, number, _ in lag.cards[0].bars] == ["0.90", "not in the log ratio"]
    assert lag.suspected == ()
    assert "mask: all tokens count: 3 rows, first at a.parquet, row 17. look at the mask" in html
    bare = report.page(replace(found, diagnosis=None))
    assert 'id="causes"' not in bare
    assert "likely cause" not in bare


def test_what_is_recommended_stands_out_with_its_reason(healthy, found):
    html = report.page(healthy)
    [row] = re.findall(r'<tr class="use">.*?</tr>', html, re.DOTALL)
    assert f">{healthy.verdict.use}<" in row
    assert row.endswith('<td class="text">use</td></tr>')
    assert f"advice: {healthy.verdict.hint}" in html
    assert '<td class="text">next best</td>' in html
    fixed = report.page(found)  # where no estimator helps, none is marked
    assert found.verdict.action == "fix"
    assert '<tr class="use">' not in fixed
    assert ">advice</th>" not in fixed


def test_it_says_when_by_what_and_of_which_version_it_was_made(healthy, tmp_path, capsys):
    html = report.page(healthy, "reweigh audit 'a b.parquet' --html x.html")
    made = re.search(r"reweigh (\S+), (\d{4}-\d\d-\d\d \d\d:\d\d) UTC: <code>(.*?)</code>", html)
    assert made[1] == reweigh.__version__
    assert abs(datetime.strptime(f"{made[2]}+0000", "%Y-%m-%d %H:%M%z") - datetime.now(timezone.utc)) < timedelta(
        hours=1
    )
    assert made[3] == "reweigh audit &#39;a b.parquet&#39; --html x.html"
    args = ["audit", str(EXAMPLE), "--html", str(tmp_path / "x.html"), "-q"]
    assert main(args) == 0
    assert f"<code>reweigh {' '.join(args)}</code>" in (tmp_path / "x.html").read_text(encoding="utf-8")


def test_nothing_is_shown_of_what_there_is_nothing_of(healthy):
    """Without advantages, no card of their sign."""
    assert not any(one.by_sign["positive"].units for one in healthy.trials)
    assert 'id="fig-by-sign"' not in report.page(healthy)


def test_worst_sequences_have_a_scale_and_words_of_their_own(found):
    html = report.page(found, decode=lambda i: f"<{i}>")
    drawn = json.loads(re.search(r'id="data">(.*?)</script>', html)[1])["worst"]
    for one, told in zip(found.worst, drawn, strict=True):
        assert max(map(abs, told["shades"])) == 1  # its own farthest token, however near that is
        assert told["words"] == [f"<{i}>" for i in one.token_ids.tolist()]
    assert "Each word is a token" in html
    boxes = report.page(found)
    assert "Each box is a token" in boxes
    assert all(not told["words"] for told in json.loads(re.search(r'id="data">(.*?)</script>', boxes)[1])["worst"])


def test_every_cause_has_words():
    for cause in CAUSES:
        top = Diagnosis(cause, (Finding(cause, 0.4, None, ()),))
        assert ABOUT[cause].title in " ".join(_causes(top))


def _causes(diagnosis):
    return [one.text for one in in_short(diagnosis)]


def test_json_and_terminal_say_the_same(found):
    document = json.loads(json.dumps(report.document(found), allow_nan=False))
    assert document["summary"]["sentence"] == found.headline.sentence
    assert document["diagnosis"] == DIAGNOSIS.to_dict() | {"advice": document["verdict"]}
    assert report.document(replace(found, diagnosis=None))["diagnosis"] is None
    assert set(document["where"]) == {"position", "probability", "length", "turn", "lag", "env", "step"}
    assert sum(map(sum, document["density"]["counts"])) == document["levels"]["token"]["n"]
    assert sum(document["histograms"]["token"]["counts"]) == document["levels"]["token"]["n"]
    assert document["worst"][0]["text"] == f"say {EVIL}"
    console = Console(width=100, record=True, file=io.StringIO())
    report.terminal(found, console, full=True)
    text = re.sub(r"\s+", " ", console.export_text())
    assert f"In short: {found.headline.sentence}." in text
    for said in (
        "1. the engine logs before temperature (raw_logprobs): confidence 0.94, 81% of the squared log ratios",
        "mean_ratio 1.05 [1.04, 1.06]: mean token ratio",
        "fix: log after temperature vllm: --logprobs-mode processed_logprobs",
        "suspected, not sure: stale_weights 0.30",
        "cannot tell: both_raw; `reweigh doctor FILE` says more",
        "Effective share, raw beside applied",
        "By sign of the advantage",
        "Log ratio by training step, nats a token",
        "The worst sequences",
    ):
        assert said in text, said


@pytest.mark.slow
def test_the_page_stays_small_whatever_is_audited(tmp_path):
    rows = [
        {
            "sequence_id": f"{i}" * 50,
            "env": f"{i} " + "e" * 20_000,
            "step": i * 1000,
            "log_mu": [-1.0] * 3,
            "log_pi": [-1.0 - i / 1000] * 3,
            "text": "t" * 50_000,
        }
        for i in range(400)
    ]
    for i in range(60):
        with RecordWriter(tmp_path / f"{i}.parquet", RunInfo(note="x" * 9000, trainer=f"t{i} " + "y" * 3000)) as writer:
            writer.write(rows[i::60])
    found = audit(tmp_path, estimators=None)
    notes = tuple(f"note {i} " + "n" * 3000 for i in range(100))
    many = replace(found, trials=found.trials * 40, diagnosis=DIAGNOSIS, notes=(*found.notes, *notes))
    html = report.page(many)
    assert len(html.encode()) < MAX_BYTES
    assert "more, which --json has" in html  # of the notes


# what a browser makes of it


def test_it_draws_without_an_error_and_asks_nobody(browser, page):
    browser.open(page)
    assert browser.errors == []
    assert [url for url in browser.requests if not url.startswith(("data:", "blob:"))] == [page.as_uri()]
    svgs = "p => p.querySelectorAll('.main-svg').length"
    drawn = browser.js(f"[...document.querySelectorAll('.plot')].filter(p => !p.hidden).map({svgs})")
    assert len(drawn) == 4 + 7 + 3
    assert all(drawn)
    assert browser.js("document.querySelectorAll('.strip b').length") > 500
    assert browser.js("document.querySelector('#worst h3').textContent").startswith(EVIL)
    assert EVIL in browser.js("document.querySelector('#worst pre').textContent")
    browser.js("fetch('http://127.0.0.1:9/').catch(() => 0)")  # what a policy of 'none' is worth
    assert any("Content Security Policy" in text for text in browser.errors)


def test_the_mean_ratio_s_axis_holds_its_intervals(browser, page, healthy, tmp_path):
    other = tmp_path / "healthy.html"
    other.write_text(report.page(healthy), encoding="utf-8")
    for path in (page, other):
        browser.open(path)
        plot = "document.getElementById('plot-identity')"
        low, high = browser.js(f"{plot}.layout.xaxis.range")
        numbers = browser.js("JSON.parse(document.getElementById('data').textContent).identity")
        near = [x for x in numbers if x["value"] is not None and abs(x["value"] - 1) <= 1]
        assert near
        assert all(low <= x["low"] <= x["value"] <= x["high"] <= high for x in near)
        said = browser.js(f"{plot}.textContent")
        assert all(x["refused"] in said for x in numbers)


def test_a_phone_s_first_screen_has_verdict_cause_and_what_to_do(browser, tmp_path):
    path, other = EXAMPLES / "vllm_fp8_kv.parquet", tmp_path / "fp8.html"
    one = replace(audit(path), diagnosis=doctor(path))
    other.write_text(report.page(one), encoding="utf-8")
    for width, height in ((390, 844), (800, 1000), (1280, 900)):
        browser.open(other, width=width, height=height)
        parts = "[...document.querySelectorAll('.word, h1, .said dd, .todo, .verdict .scroll')]"
        bottoms = browser.js(f"{parts}.map(x => [x.className, x.getBoundingClientRect().bottom])")
        assert len(bottoms) >= 7
        assert all(y <= height for name, y in bottoms if name != "scroll")
        todo, sizes = (next(y for name, y in bottoms if name == x) for x in ("todo", "scroll"))
        assert (sizes < todo) == (width > 640)  # as on a terminal, where there is room
    assert one.verdict.use in browser.js("document.querySelector('.todo').textContent")
    bold = (
        "[...document.querySelectorAll('#plot-ess .ytick text')].filter(x => x.innerHTML.includes('font-weight:bold'))"
    )
    assert browser.js(f"{bold}.map(x => x.textContent)") == [one.verdict.use]


def test_nothing_of_a_picture_is_cut_off_in_print(browser, page):
    browser.open(page, width=720, height=1000)
    browser.js("dispatchEvent(new Event('beforeprint'))")
    browser.call("Emulation.setEmulatedMedia", media="print")
    edges = "(() => { const b = p.getBoundingClientRect(), t = x.getBoundingClientRect(); return %s })()"
    outside = edges % "t.width && (t.left < b.left - 1 || t.right > b.right + 1)"
    texts = "[...p.querySelectorAll('.infolayer text, .xtick text, .ytick text')]"
    found = (
        f"[...document.querySelectorAll('.plot')].flatMap(p => {texts}.filter(x => {outside}).map(x => x.textContent))"
    )
    cut = browser.js(found)
    browser.call("Emulation.setEmulatedMedia", media="")
    browser.js("dispatchEvent(new Event('afterprint'))")
    assert cut == []


def test_no_card_is_empty_and_wide_tables_show_that_they_go_on(browser, page):
    browser.open(page, width=390)
    empty = "c => !c.hidden && !c.querySelector('.main-svg') && c.textContent.trim().length < 40"
    assert browser.js(f"[...document.querySelectorAll('.card')].filter({empty}).map(c => c.id)") == []
    wide = "[...document.querySelectorAll('.scroll')].filter(s => s.scrollWidth > s.clientWidth)"
    assert browser.js(f"{wide}.length") > 2
    assert browser.js(f"{wide}.every(s => getComputedStyle(s).backgroundImage.includes('gradient'))")


def test_filters_change_what_is_drawn(browser, page):
    browser.open(page)

    def choose(which, value):
        change = f"f.value = {json.dumps(value)}; f.dispatchEvent(new Event('change'))"
        browser.js(f"(() => {{ const f = document.getElementById('f-{which}'); {change}; }})()")

    def shown():
        return browser.js("[...document.querySelectorAll('#where figure')].filter(f => !f.hidden).map(f => f.id)")

    def drawn(plot, what):
        return browser.js(f"JSON.parse(JSON.stringify(document.getElementById('plot-{plot}').{what}))")

    assert len(shown()) == 7
    by_sequence = drawn("where-env", "data[0].y")
    choose("level", "token")
    assert drawn("where-env", "data[0].y") != by_sequence
    assert "tokens" in drawn("histogram", "layout.yaxis.title.text")
    choose("quantity", "mean_ratio")
    assert drawn("where-step", "data[0].y")[0] == pytest.approx(1, abs=0.05)
    assert "need not be 1" in browser.js("document.getElementById('note-where-probability').textContent")
    choose("cut", "lag")
    assert shown() == ["fig-where-lag"]
    choose("cut", "all")
    assert len(shown()) == 7
    assert drawn("by-length", "data[0].type") == "heatmap"
    choose("estimator", "seq_tis(2)")
    assert drawn("by-length", "data[0].type") == "bar"
    assert max(drawn("by-length", "data[0].error_y.array")) > 0
    assert len(drawn("ess", "data[0].y")) == 1
    assert browser.errors == []


def test_a_number_says_more_when_pointed_at_or_moved_to(browser, page):
    browser.open(page)
    cell = "document.querySelector('#gap > .scroll table .n')"
    browser.scroll_to(cell)
    x, y = browser.js(MIDDLE % cell)
    assert browser.js("document.getElementById('tip').hidden")
    browser.point(x, y)
    browser.until("!document.getElementById('tip').hidden")
    said = browser.js("document.getElementById('tip').textContent")
    assert re.search(r"95% interval \[.*\]\nn = [\d,]+ tokens\nMean of pi/mu", said)
    browser.point(1, 1)
    browser.until("document.getElementById('tip').hidden")
    # the keyboard: a table is one stop of the tab key, and arrows move inside
    assert browser.js("document.querySelectorAll('#gap table')[0].querySelectorAll('[tabindex=\"0\"]').length") <= 1
    browser.js("document.querySelector('#gap > .scroll table .n[tabindex=\"0\"]').focus()")
    first = browser.js("document.activeElement.dataset.tip")
    browser.key("ArrowDown")
    browser.until(f"document.activeElement.dataset.tip !== {json.dumps(first)}")
    assert browser.js("document.getElementById('tip').textContent") == browser.js("document.activeElement.dataset.tip")
    browser.key("Escape")
    assert browser.js("document.getElementById('tip').hidden")
    tips = browser.js("[...document.querySelectorAll('.n')].map(x => x.dataset.tip)")
    assert len(tips) > 500
    assert [x for x in tips if not re.search("interval|bound|refused", x) or not re.search("n = |no interval", x)] == []


def test_pictures_say_more_when_pointed_at(browser, page):
    browser.open(page)
    browser.scroll_to("document.getElementById('plot-where-lag')")
    point = "document.querySelector('#plot-where-lag .scatterlayer .point')"
    x, y = browser.js(MIDDLE % point)
    browser.point(x, y)
    browser.until("!!document.querySelector('#plot-where-lag .hoverlayer .hovertext')")
    said = browser.js("document.querySelector('#plot-where-lag .hoverlayer').textContent")
    for part in ("95% interval [", "n = ", "Mean log ratio"):
        assert part in said, said
    traces = "[...document.querySelectorAll('.plot')].filter(p => p.data).flatMap(p => p.data)"
    tips = browser.js(f"{traces}.filter(t => t.hoverinfo !== 'skip').map(t => (t.customdata || []).length > 0)")
    assert all(tips)
    assert browser.errors == []


@pytest.mark.parametrize("width", [390, 800, 1280])
@pytest.mark.parametrize("dark", [False, True])
def test_it_fits_and_is_legible(browser, page, width, dark):
    browser.open(page, width=width, dark=dark)
    assert browser.js("document.documentElement.scrollWidth") <= width
    wide = "s => s.getBoundingClientRect().right > innerWidth + 1"
    assert browser.js(f"[...document.querySelectorAll('.plot .main-svg')].filter({wide}).length") == 0
    assert _contrast(browser) >= 4.5
    browser.js("document.getElementById('theme').click()")
    assert browser.js("document.documentElement.dataset.theme") == ("light" if dark else "dark")
    assert _contrast(browser) >= 4.5
    assert browser.errors == []


def _contrast(browser):
    """The least contrast (WCAG 2) of the text colours on the page's background."""
    names = ["--page", "--ink", "--soft", "--bar", "--ok", "--warn", "--fail"]
    style = "getComputedStyle(document.documentElement)"
    colours = browser.js(f"{json.dumps(names)}.map(n => {style}.getPropertyValue(n).trim())")

    def luminance(colour):
        parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        red, green, blue = (p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts)
        return 0.2126 * red + 0.7152 * green + 0.0722 * blue

    back, *inks = map(luminance, colours)
    return min((max(back, ink) + 0.05) / (min(back, ink) + 0.05) for ink in inks)


def test_it_prints_in_light_and_comes_back(browser, page):
    browser.open(page, dark=True)
    pdf = browser.pdf()
    assert pdf.startswith(b"%PDF")
    assert len(pdf) > 50_000
    assert 4 <= len(re.findall(rb"/Type\s*/Page\b", pdf)) <= 30
    assert browser.js("document.documentElement.dataset.theme") is None  # as before
    assert browser.js("document.querySelector('#plot-tail .main-svg').clientWidth") > 400
    assert browser.errors == []


def test_an_audit_of_nearly_nothing_draws(browser, tmp_path):
    with RecordWriter(tmp_path / "a.parquet", RunInfo()) as writer:
        writer.write([{"sequence_id": "a", "log_mu": [-1.0], "log_pi": [-1.0]}])
    path = tmp_path / "a.html"
    path.write_text(report.page(audit(tmp_path / "a.parquet")), encoding="utf-8")
    browser.open(path)
    assert browser.errors == []


def test_huge_ratios_draw(browser, tmp_path):
    rows = [{"sequence_id": str(i), "log_mu": [-600.0, -1.0], "log_pi": [-601.0, -900.0]} for i in range(30)]
    rows.append({"sequence_id": "up", "log_mu": [-1000.0, -1.0], "log_pi": [-1.0, -1.0]})
    with RecordWriter(tmp_path / "a.parquet", RunInfo()) as writer:
        writer.write(rows)
    path = tmp_path / "a.html"
    path.write_text(report.page(audit(tmp_path / "a.parquet")), encoding="utf-8")
    browser.open(path)
    assert browser.errors == []
