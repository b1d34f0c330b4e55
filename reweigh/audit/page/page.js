"use strict";
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const $ = (id) => document.getElementById(id);
  const state = { cut: "all", level: $("f-level").value, quantity: "mean", estimator: -1, print: false };
  const MIN_TOKENS = 10; // of a point; fewer say nothing and stretch the axis
  const CAPS = [2, 10];
  const TOP_WEIGHT = 1.5; // of the axis; what is higher is cut, and its tip says how high it is

  // ---- words -------------------------------------------------------------------------------------------------------
  const whole = (n) => Math.round(n).toLocaleString("en-US");
  function sig(x, count = 2) {
    if (x === null || x === undefined) return "-";
    if (Math.abs(x) < 1e-12) return "0";
    const exponent = Math.floor(Math.log10(Math.abs(Number(x.toPrecision(count)))));
    if (exponent < -4 || exponent >= 6) return x.toExponential(count - 1);
    const decimals = Math.max(0, count - 1 - exponent);
    return Number(x.toPrecision(count)).toLocaleString("en-US", { minimumFractionDigits: decimals, maximumFractionDigits: decimals });
  }
  function share(x) {
    if (x === null || x === undefined) return "-";
    if (x < 1e-12 || 1 - x < 1e-12) return Math.round(100 * x) + "%";
    const percent = 100 * x, missing = Math.min(percent, 100 - percent);
    const decimals = Math.max(0, (percent < 50 ? 1 : 0) - Math.floor(Math.log10(missing)));
    return percent.toFixed(Math.min(decimals, 6)) + "%";
  }
  // Plotly reads tags in labels: what the records say is shown as it is.
  const plain = (text) => String(text).replace(/&/g, "&amp;").replace(/</g, "&lt;").replace(/>/g, "&gt;");
  const broken = (name) => plain(name).replace(/ \* /g, " *<br>");
  function said(number, show) {
    if (number.value === null) return "refused: " + number.refused + (number.sample === null ? "" : "; " + show(number.sample) + " in this sample");
    return show(number.value);
  }
  function interval(number, show) {
    if (number.value === null) return "";
    if (number.low === null && number.high === null) return "no interval" + (number.refused ? ": " + number.refused : "");
    if (number.low === null || number.high === null) return "a bound at 95%";
    return "95% interval [" + show(number.low) + ", " + show(number.high) + "]";
  }
  function tipOf(title, number, n, unit, meaning, show = sig) {
    const value = said(number, show) + (number.unit && number.value !== null ? " " + number.unit : "");
    const lines = [title, value, interval(number, show), n === null ? "" : "n = " + whole(n) + " " + unit + (n === 1 ? "" : "s"), meaning];
    return lines.filter(Boolean);
  }
  function wrapped(lines) {
    const out = [];
    for (const line of lines) {
      let row = "";
      for (const word of String(line).split(" ")) {
        if (row && row.length + word.length > 52) { out.push(row); row = ""; }
        row = row ? row + " " + word : word;
      }
      out.push(row);
    }
    return out.map(plain).join("<br>");
  }

  // ---- tips on hover and on focus ----------------------------------------------------------------------------------
  const tip = $("tip");
  function showTip(element) {
    tip.textContent = element.dataset.tip;
    tip.hidden = false;
    element.setAttribute("aria-describedby", "tip");
    const at = element.getBoundingClientRect(), box = tip.getBoundingClientRect();
    const below = at.bottom + 8 + box.height < innerHeight;
    tip.style.top = (below ? at.bottom + 6 : Math.max(4, at.top - box.height - 6)) + "px";
    tip.style.left = Math.max(4, Math.min(at.left, innerWidth - box.width - 8)) + "px";
  }
  function hideTip(event) {
    tip.hidden = true;
    if (event && event.target.removeAttribute) event.target.removeAttribute("aria-describedby");
  }
  const tipped = (event) => event.target.closest ? event.target.closest("[data-tip]") : null;
  document.addEventListener("mouseover", (e) => { const t = tipped(e); if (t) showTip(t); });
  document.addEventListener("mouseout", (e) => { if (tipped(e)) hideTip(e); });
  document.addEventListener("focusin", (e) => { const t = tipped(e); if (t) showTip(t); });
  document.addEventListener("focusout", hideTip);
  document.addEventListener("scroll", () => { if (!tip.hidden && !document.activeElement.dataset.tip) hideTip(); }, true);
  // One stop of the tab key a table or strip; arrows move inside.
  function arrows(group) {
    const items = [...group.querySelectorAll("[data-tip]")];
    items.forEach((item, i) => { item.tabIndex = i ? -1 : 0; item.removeAttribute("title"); });
  }
  document.addEventListener("keydown", (event) => {
    if (event.key === "Escape") return hideTip();
    const step = { ArrowRight: 1, ArrowLeft: -1, ArrowDown: "down", ArrowUp: "up" }[event.key];
    const from = document.activeElement, group = from && from.closest && from.dataset.tip !== undefined && from.closest("table, .strip, .bars, p");
    if (!step || !group) return;
    const items = [...group.querySelectorAll("[data-tip]")];
    let to = items[items.indexOf(from) + step];
    if (typeof step === "string") {
      const at = from.getBoundingClientRect(), sign = step === "down" ? 1 : -1;
      const far = (x) => { const box = x.getBoundingClientRect(); return (box.top - at.top) * sign > 4 ? (box.top - at.top) * sign * 10 + Math.abs(box.left - at.left) : Infinity; };
      to = items.reduce((best, x) => far(x) < far(best) ? x : best, from);
    }
    if (!to || to === from) return;
    event.preventDefault();
    from.tabIndex = -1; to.tabIndex = 0; to.focus();
  });

  // ---- pictures ----------------------------------------------------------------------------------------------------
  const css = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
  const narrow = () => state.print || innerWidth < 640;
  function layout(more) {
    const ink = css("--ink"), grid = css("--grid");
    const axis = { gridcolor: grid, zerolinecolor: grid, linecolor: grid, automargin: true, fixedrange: narrow() };
    const base = {
      paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)",
      font: { family: "system-ui, -apple-system, 'Segoe UI', sans-serif", size: narrow() ? 11 : 12.5, color: ink },
      margin: { l: 56, r: 12, t: 12, b: 44 }, showlegend: false, dragmode: narrow() ? false : "zoom",
      hoverlabel: { bgcolor: css("--panel"), bordercolor: css("--rule"), font: { color: ink, size: 12.5 }, align: "left" },
      legend: { orientation: "h", y: 1.02, yanchor: "bottom", x: 0 },
    };
    const out = Object.assign(base, more);
    for (const key of Object.keys(out)) if (/^[xy]axis/.test(key)) out[key] = Object.assign({}, axis, out[key]);
    return out;
  }
  function bars(numbers) {
    const end = (number, side) => {
      if (number.value === null || number[side] === null) return 0;
      return Math.abs(number[side] - number.value);
    };
    return { type: "data", symmetric: false, array: numbers.map((x) => end(x, "high")), arrayminus: numbers.map((x) => end(x, "low")), thickness: 1.3, width: 3, color: css("--bar") };
  }
  function line(value, label, axis, color) {
    const at = axis === "x" ? { x0: value, x1: value, y0: 0, y1: 1, yref: "paper" } : { y0: value, y1: value, x0: 0, x1: 1, xref: "paper" };
    return Object.assign({ type: "line", line: { color: color || css("--mark"), width: 1.4, dash: "dash" } }, at);
  }
  const HOVER = "%{customdata}<extra></extra>";
  const empty = (note) => ({ traces: [], layout: layout({ xaxis: { visible: false }, yaxis: { visible: false } }), note, rows: [] });

  const QUANTITIES = { mean: "mean log ratio, nats", mean_abs: "mean |log ratio|, nats", mean_ratio: "mean ratio" };
  function where(cut) {
    const found = data.where[cut];
    const sequences = state.level === "sequence" && found.rows.some((row) => row.sequence);
    const level = sequences ? "sequence" : "token";
    const notes = [];
    if (state.level !== level) notes.push(state.level === "token" ? "" : "Here there are only token statistics: tokens are shown.");
    let quantity = state.quantity;
    if (quantity === "mean_ratio" && !(level === "token" && found.ratio_must_be_1)) {
      quantity = "mean";
      notes.push(level === "sequence" ? "The mean ratio is shown by token only: mean log ratio in its place."
        : "What is cut by here is known only after the token is drawn, and the mean ratio need not be 1: mean log ratio in its place.");
    }
    const count = (row) => level === "token" ? row.tokens : row.sequences;
    const all = found.rows.filter((row) => row[level] && row[level][quantity]);
    const enough = (row) => level === "sequence" || count(row) >= MIN_TOKENS;
    let rows = all.filter(enough);
    if (cut === "probability") rows = rows.slice().reverse();
    if (rows.length < all.length) notes.push("Fewer than " + MIN_TOKENS + " tokens are not drawn.");
    const few = rows.length <= 1;
    if (!rows.length) return empty("Nothing to draw here.");
    const linear = cut === "step" && rows.every((row) => row.start !== null);
    const x = rows.map((row, i) => linear ? row.start : i);
    const short = (label) => cut === "probability" ? label.split(" to ").pop() : cut === "position" || cut === "length" ? label.split("-")[0] : label.length > 16 ? label.slice(0, 14) + "..." : label;
    const step = Math.ceil(rows.length / (narrow() ? 6 : 10));
    const marked = x.filter((_, i) => i % step === 0);
    const ticks = linear ? { nticks: 10 } : { tickvals: marked, ticktext: marked.map((i) => plain(short(rows[i].label))), range: [-0.6, rows.length - 0.4] };
    const numbers = rows.map((row) => row[level][quantity]), spread = rows.map((row) => row[level].sd);
    const meaning = found.meanings[quantity];
    const unit = level;
    const mode = few || cut === "env" ? "markers" : "lines+markers";
    const series = (values, name, what, yaxis, color) => {
      const drawn = values.map((v) => v.value);
      const top = Math.max(...drawn.map((v) => Math.abs(v === null ? 0 : v)));
      const error = bars(values);
      error.color = color;
      return {
        type: "scatter", mode, x, y: drawn, yaxis, name, error_y: error, line: { color, width: 1.8 }, marker: { color, size: 6 },
        customdata: rows.map((row, i) => wrapped(tipOf(cutWord(cut) + " " + row.label + ": " + what, values[i], count(row), unit, ""))
          + "<br><i>" + wrapped([name === "sd" ? found.meanings.sd : meaning]) + "</i>"),
        hovertemplate: HOVER, reach: top,
      };
    };
    const upper = series(numbers, quantity, QUANTITIES[quantity], "y", css("--bar"));
    const lower = series(spread, "sd", "standard deviation", "y2", css("--second"));
    const range = (values, around, floor) => { // an interval of few tokens may dwarf all else: it is drawn as far as the frame goes
      const points = values.map((v) => v.value).filter((v) => v !== null);
      const most = Math.max(...points.map((v) => Math.abs(v - around)), 1e-9);
      const ends = values.flatMap((v) => [v.low, v.high]).filter((v) => v !== null);
      const low = Math.max(Math.min(...points, ...ends, around), around - 3 * most), high = Math.min(Math.max(...points, ...ends, around), around + 3 * most);
      const pad = 0.06 * (high - low) || 1e-9;
      return [floor && low >= around ? around : low - pad, high + pad];
    };
    const around = quantity === "mean_ratio" ? 1 : 0;
    const shapes = [line(around, "", "y")];
    shapes[0].yref = "y";
    return {
      traces: [upper, lower],
      layout: layout({
        xaxis: Object.assign({ title: { text: plain(cutWord(cut)) + (cut === "probability" ? " (upper end)" : cut === "position" || cut === "length" ? " (from)" : "") }, anchor: "y2", zeroline: false }, ticks),
        yaxis: { title: { text: quantity === "mean_ratio" ? "mean ratio" : quantity === "mean" ? "mean, nats" : "mean | |, nats" }, domain: [0.4, 1], range: range(numbers, around, quantity === "mean_abs"), zeroline: false },
        yaxis2: { title: { text: "sd, nats" }, domain: [0, 0.3], range: [0, range(spread, 0, true)[1]], zeroline: false },
        shapes,
      }),
      note: notes.filter(Boolean).join(" "),
      head: [cutWord(cut), level + "s", QUANTITIES[quantity], "standard deviation"],
      rows: found.rows.filter((row) => row[level]).map((row) => [
        { text: row.label }, { text: whole(count(row)) },
        { text: sig(row[level][quantity].value), tip: tipOf(row.label, row[level][quantity], count(row), unit, meaning).join("\n") },
        { text: sig(row[level].sd.value), tip: tipOf(row.label, row[level].sd, count(row), unit, found.meanings.sd).join("\n") },
      ]),
    };
  }
  const cutWord = (cut) => data.cut_words[cut];

  function identity() {
    const names = Object.keys(data.levels).reverse();
    const numbers = names.map((name) => data.levels[name].numbers.mean_ratio);
    const near = numbers.filter((x) => x.value !== null && Math.abs(x.value - 1) <= 1);
    const far = Math.max(...near.map((x) => Math.abs(x.value - 1)), 0.002);
    const ends = near.flatMap((x) => [x.low, x.high]).filter((x) => x !== null).map((x) => Math.abs(x - 1));
    const reach = 1.25 * Math.min(Math.max(far, ...ends), 4 * far + 0.05);
    // One that is far beyond the others would leave them no room: it stands at the edge, and its label says where it is.
    const beyond = numbers.map((x) => x.value === null ? NaN : x.value > 1 + reach ? 1 : x.value < 1 - reach ? -1 : 0);
    const inside = numbers.map((x, i) => beyond[i] ? Object.assign({}, x, { low: null, high: null }) : x);
    const error = bars(inside);
    return {
      traces: [{
        type: "scatter", mode: "markers+text", y: names, x: numbers.map((x, i) => beyond[i] ? 1 + 0.97 * reach * beyond[i] : x.value), error_x: error,
        marker: { size: 10, color: beyond.map((side) => css(side ? "--fail" : "--bar")), symbol: beyond.map((side) => side > 0 ? "triangle-right" : side < 0 ? "triangle-left" : "circle") },
        text: numbers.map((x) => x.value === null ? "" : sig(x.value, Math.abs(x.value) < 10 ? 4 : 2)), textposition: beyond.map((side) => side > 0 ? "top left" : side < 0 ? "top right" : "top center"), cliponaxis: false,
        customdata: names.map((name, i) => wrapped(tipOf("mean " + name + " ratio", numbers[i], data.levels[name].n, name, numbers[i].meaning))), hovertemplate: HOVER,
      }],
      layout: layout({ xaxis: { title: { text: "mean of pi/mu" }, range: [1 - reach, 1 + reach], nticks: 7 }, yaxis: { type: "category", range: [-0.5, names.length - 0.3] }, shapes: [line(1, "", "x")] }),
      note: beyond.some((side) => side) ? "Triangles: beyond the picture." : "",
      head: ["level", "n", "mean ratio"],
      rows: names.map((name, i) => [{ text: name }, { text: whole(data.levels[name].n) }, { text: sig(numbers[i].value, 4), tip: tipOf(name, numbers[i], data.levels[name].n, name, numbers[i].meaning, (x) => sig(x, 4)).join("\n") }]),
    };
  }

  function histogram() {
    const name = data.histograms[state.level] ? state.level : "sequence";
    const h = data.histograms[name], n = h.n, log = name === "token";
    const x = h.counts.map((_, i) => h.first + i * h.width);
    const label = (i) => sig(x[i] - h.width / 2, 3) + " to " + sig(x[i] + h.width / 2, 3) + " nats";
    const low = x[0] - h.width, high = x[x.length - 1] + h.width, right = Math.max(high, -0.15 * low);
    const marks = [[1, "ratio 1"], ...CAPS.map((cap) => [cap, "cap " + cap])].map(([r, text]) => [Math.log(r), text]).filter(([at]) => at > low && at < right);
    return {
      traces: [{
        type: "bar", x, y: h.counts, width: h.width * 0.94, marker: { color: css("--bar") },
        customdata: h.counts.map((c, i) => wrapped([label(i), whole(c) + " of " + whole(n) + " " + name + "s, " + share(c / n), "Counts have no interval: facts about this sample."])), hovertemplate: HOVER,
      }],
      layout: layout({
        xaxis: { title: { text: "log ratio of the " + name + ", nats" }, range: [low, right], zeroline: false },
        yaxis: { title: { text: name + "s" + (log ? " (log scale)" : "") }, type: log ? "log" : "linear", ...(log ? { dtick: 1 } : {}) },
        margin: { l: 56, r: 12, t: 14 + 15 * marks.length, b: 44 },
        shapes: marks.map(([at]) => line(at, "", "x")),
        annotations: marks.map(([at, text], i) => ({ x: at, y: 1, yref: "paper", yanchor: "bottom", xanchor: at > (low + right) / 2 ? "right" : "left", yshift: 15 * (marks.length - 1 - i), text, showarrow: false, font: { color: css("--mark") } })),
      }),
      note: (h.outside ? "Beyond the picture: " + whole(h.outside) + ". " : "") + (name === state.level ? "" : "Turns have no histogram: sequences are shown."),
      head: ["log ratio", name + "s", "share"],
      rows: h.counts.map((c, i) => [{ text: label(i) }, { text: whole(c) }, { text: share(c / n) }]).filter((_, i) => h.counts[i]),
    };
  }

  function tail() {
    const name = data.tails[state.level] ? state.level : "sequence";
    const t = data.tails[name], khat = data.levels[name].numbers.khat;
    if (!t.log_ratios.length) return empty("There are no ratios.");
    const part = (i) => (i + 0.5) / t.n;
    const over = t.khat !== null && t.khat > t.limit;
    const words = t.khat === null ? "no tail index: " + (khat.refused || "too few units, or all alike") : "khat " + sig(t.khat) + (over ? ", over the limit of " : ", within the limit of ") + sig(t.limit);
    const traces = [{
      type: "scatter", mode: "markers", x: t.log_ratios, y: t.log_ratios.map((_, i) => part(i)), marker: { color: css("--bar"), size: 5 }, name: "observed",
      customdata: t.log_ratios.map((v, i) => wrapped(["rank " + (i + 1) + " of " + whole(t.n) + " " + name + "s", "log ratio " + sig(v, 3) + " nats" + (v < 700 ? ", ratio " + sig(Math.exp(v)) : ""), words, "One unit: no interval. " + khat.meaning])), hovertemplate: HOVER,
    }];
    if (t.fitted.length) traces.push({ type: "scatter", mode: "lines", x: t.fitted, y: t.fitted.map((_, i) => part(i)), line: { color: css("--second"), width: 2 }, name: "Pareto fit", hoverinfo: "skip" });
    return {
      traces,
      layout: layout({
        xaxis: { title: { text: "log ratio of the " + name + ", nats" }, zeroline: false }, yaxis: { type: "log", dtick: 1, title: { text: "share at least this large" }, exponentformat: "power" },
        annotations: [{ x: 1, y: 1, xref: "paper", yref: "paper", xanchor: "right", yanchor: "top", text: words, showarrow: false, font: { color: over ? css("--fail") : css("--ink"), size: 14 } }],
      }),
      note: "The " + whole(t.log_ratios.length) + " largest of " + whole(t.n) + " " + name + "s. Under an index of 0.5 the ratio has a variance; moments are refused beyond " + sig(t.limit) + ".",
      head: ["what", "value"],
      rows: [[{ text: "khat" }, { text: sig(t.khat), tip: tipOf("khat, " + name, khat, t.n, name, khat.meaning).join("\n") }], [{ text: "limit" }, { text: sig(t.limit) }], [{ text: "largest log ratio" }, { text: sig(t.log_ratios[0], 3), tip: tipOf("largest log ratio", { value: t.log_ratios[0], low: null, high: null, sample: null, unit: "nats", refused: "" }, t.n, name, "A fact about these units.").join("\n") }]],
    };
  }

  function density() {
    const d = data.density, columns = d.counts.length, rows = d.counts[0].length;
    const totals = d.counts.map((column) => column.reduce((a, b) => a + b, 0)), n = totals.reduce((a, b) => a + b, 0);
    const used = [...Array(columns).keys()].filter((i) => totals[i]).reverse(); // rare tokens on the left
    if (!used.length) return empty("There are no tokens.");
    const first = used[used.length - 1], last = used[0];
    const high = [...Array(rows).keys()].filter((j) => d.counts.some((column) => column[j]));
    const below = high[0], above = high[high.length - 1];
    const place = (edges, v) => { // where a value is on the grid, in cells
      let i = 0;
      while (i + 2 < edges.length && edges[i + 1] <= v) i += 1;
      return i + (v - edges[i]) / (edges[i + 1] - edges[i]) - 0.5;
    };
    const middle = (i) => last - i; // cells from the left
    const across = [];
    for (let i = last; i >= first; i -= 1) across.push(i);
    const probability = (s) => { const p = Math.exp(-s); return p > 0.9 ? "1 - " + sig(1 - p, 1) : sig(p); };
    const columnLabel = (i) => (i === columns - 1 ? "below " + probability(d.minus_log_mu[i]) : probability(d.minus_log_mu[i + 1]) + " to " + (i === 0 ? "1" : probability(d.minus_log_mu[i])));
    const rowLabel = (j) => (j === 0 ? "below " + sig(d.log_ratio[1]) : j === rows - 1 ? "over " + sig(d.log_ratio[j]) : sig(d.log_ratio[j]) + " to " + sig(d.log_ratio[j + 1]));
    const z = [], tips = [];
    for (let j = below; j <= above; j += 1) {
      z.push(across.map((i) => d.counts[i][j] ? Math.log10(d.counts[i][j]) : null));
      tips.push(across.map((i) => d.counts[i][j] ? wrapped(["probability under mu " + columnLabel(i), "log ratio " + rowLabel(j) + " nats", whole(d.counts[i][j]) + " of " + whole(n) + " tokens", share(d.counts[i][j] / totals[i]) + " of the tokens of this probability", "Counts have no interval: facts about this sample."]) : ""));
    }
    const quantile = (q) => across.map((i) => {
      if (totals[i] < MIN_TOKENS) return null;
      let sum = 0;
      for (let j = 0; j < rows; j += 1) { sum += d.counts[i][j]; if (sum >= q * totals[i]) return j + 0.5 - (sum - q * totals[i]) / d.counts[i][j]; }
      return null;
    });
    const xs = across.map((_, k) => k);
    const trend = (q, dash, width) => ({ type: "scatter", mode: "lines", x: xs, y: quantile(q), line: { color: css("--second"), width, dash }, hoverinfo: "skip", connectgaps: false });
    const xTicks = [1e-6, 1e-4, 1e-2, 0.1, 0.5, 0.9, 0.99, 0.999, 0.9999, 0.99999].map((p) => [middle(place(d.minus_log_mu, -Math.log(p))), p > 0.9 && p < 1 ? String(p) : p < 1e-2 ? p.toExponential(0) : String(p)]).filter(([at]) => at >= -0.5 && at <= last - first + 0.5)
      .filter(([at], i, all) => i === all.length - 1 || all[i + 1][0] - at > (last - first) / (narrow() ? 7 : 11));
    const yTicks = [-10, -1, -0.1, -0.01, -0.001, 0, 0.001, 0.01, 0.1, 1, 10].map((v) => [place(d.log_ratio, v), String(v)]).filter(([at]) => at >= below - 0.5 && at <= above + 0.5);
    const most = Math.max(...z.flat().filter((v) => v !== null));
    const powers = [...Array(Math.floor(most) + 1).keys()];
    return {
      traces: [
        { type: "heatmap", x: xs, y: [...Array(above - below + 1).keys()].map((j) => j + below), z, customdata: tips, hovertemplate: HOVER, hoverongaps: false, zmin: 0, zmax: Math.max(most, 0.5),
          colorscale: [[0, css("--low")], [1, css("--high")]], showscale: !narrow(), colorbar: { title: { text: "tokens" }, tickvals: powers, ticktext: powers.map((k) => whole(10 ** k)), thickness: 10, outlinewidth: 0 } },
        trend(0.5, "solid", 2), trend(0.05, "dot", 1.3), trend(0.95, "dot", 1.3),
      ],
      layout: layout({
        xaxis: { title: { text: "probability of the token under mu" }, tickvals: xTicks.map((t) => t[0]), ticktext: xTicks.map((t) => t[1]), showgrid: false, zeroline: false, tickangle: narrow() ? -45 : 0 },
        yaxis: { title: { text: "log ratio, nats" }, tickvals: yTicks.map((t) => t[0]), ticktext: yTicks.map((t) => t[1]), zeroline: false, showgrid: false },
        shapes: below <= (rows - 1) / 2 && above >= (rows - 1) / 2 ? [Object.assign(line((rows - 1) / 2, "", "y"), { yref: "y" })] : [],
      }),
      head: ["probability under mu", "tokens", "share"],
      rows: across.map((i) => [{ text: columnLabel(i) }, { text: whole(totals[i]) }, { text: share(totals[i] / n) }]).filter((_, k) => totals[across[k]]),
    };
  }

  const chosen = () => state.estimator < 0 ? data.estimators : [data.estimators[state.estimator]];
  function ess() {
    const trials = chosen().slice().reverse(), names = trials.map((t) => broken(t.name));
    const applied = trials.map((t) => t.all.numbers.effective_share), raw = trials.map((t) => t.raw_effective_share);
    const bar = (values, name, color, tips, pattern) => ({ type: "bar", orientation: "h", y: names, x: values, name, marker: { color, pattern: { shape: pattern, size: 5 } }, customdata: tips, hovertemplate: HOVER });
    return {
      traces: [
        bar(applied.map((x) => x.sample), "applied", css("--bar"), trials.map((t, i) => wrapped(tipOf(t.name + ", as applied", applied[i], t.all.units, t.unit, data.estimator_meanings.effective_share, share)))),
        bar(raw.map((x) => x.sample), "raw (striped: refused, figure of this sample)", css("--second"), trials.map((t, i) => wrapped(tipOf("raw " + t.unit + " ratios", raw[i], t.all.units, t.unit, raw[i].meaning, share))), raw.map((x) => x.value === null ? "/" : "")),
      ],
      layout: layout({ barmode: "group", bargap: 0.25, showlegend: true, legend: { orientation: "h", y: 1.02, yanchor: "bottom", x: 0, traceorder: "reversed" }, xaxis: { range: [0, 1], tickformat: ".0%", title: { text: "effective share of units" } }, yaxis: { type: "category" }, margin: { l: 56, r: 12, t: 30, b: 44 } }),
      height: 120 + 34 * trials.length,
      head: ["estimator", "units", "raw", "applied"],
      rows: trials.slice().reverse().map((t) => [{ text: t.name }, { text: whole(t.all.units) + " " + t.unit + "s" },
        { text: share(t.raw_effective_share.sample), tip: tipOf("raw", t.raw_effective_share, t.all.units, t.unit, t.raw_effective_share.meaning, share).join("\n") },
        { text: share(t.all.numbers.effective_share.value), tip: tipOf("applied", t.all.numbers.effective_share, t.all.units, t.unit, data.estimator_meanings.effective_share, share).join("\n") }]),
    };
  }
  // Rows of estimators, columns of lengths or of signs: as a table of colours, or as bars with intervals for one of them.
  function parts(which, name, show) {
    const trials = chosen(), weight = name === "mean_weight";
    const label = (part) => which === "by_length" ? part.label : part.sign === "none" ? "none or 0" : part.sign;
    const labels = [...new Set(data.estimators.flatMap((t) => t[which].map(label)))];
    if (which === "by_length") labels.sort((a, b) => parseFloat(a.replace(/,/g, "")) - parseFloat(b.replace(/,/g, "")));
    if (which === "by_advantage" && labels.length === 1 && labels[0] === "none or 0") return empty("No advantage is recorded, or all are 0.");
    const find = (t, at) => t[which].find((part) => label(part) === at);
    const title = which === "by_length" ? "response length, tokens" : "sign of the advantage";
    const value = (part) => { const x = part.numbers[name]; return x.value === null ? (weight ? part.log_mean_weight : null) : x.value; };
    const small = (x) => weight && x >= 1000 ? x.toExponential(0).replace("+", "") : show(x);
    const text = (part) => part.numbers[name].value === null ? (weight && part.log_mean_weight !== null ? "e^" + whole(part.log_mean_weight) : "-") : small(part.numbers[name].value);
    const tipFor = (t, at) => { const part = find(t, at); return part ? tipOf(t.name + ", " + title + " " + at, part.numbers[name], part.units, t.unit, data.estimator_meanings[name], show) : []; };
    const head = ["estimator", ...labels];
    const rows = trials.map((t) => [{ text: t.name }, ...labels.map((at) => { const part = find(t, at); return part ? { text: text(part), tip: tipFor(t, at).join("\n") } : { text: "" }; })]);
    const top = weight ? TOP_WEIGHT : 1;
    if (trials.length === 1) {
      const t = trials[0], here = labels.filter((at) => find(t, at)), numbers = here.map((at) => find(t, at).numbers[name]);
      const error = bars(numbers);
      error.color = css("--ink");
      return {
        traces: [{ type: "bar", x: here, y: numbers.map((x) => x.value === null ? top : Math.min(x.value, top)), error_y: error, marker: { color: css("--bar") }, text: here.map((at) => text(find(t, at))), textposition: "inside", insidetextanchor: "start", customdata: here.map((at) => wrapped(tipFor(t, at))), hovertemplate: HOVER }],
        layout: layout({ xaxis: { type: "category", title: { text: title } }, yaxis: { range: [0, top], tickformat: weight ? "" : ".0%" }, shapes: weight ? [line(1, "", "y")] : [] }),
        note: "Of " + t.name + ".", head, rows,
      };
    }
    const order = trials.slice().reverse();
    const z = order.map((t) => labels.map((at) => { const part = find(t, at); return part ? (part.numbers[name].value === null ? top : Math.min(value(part), top)) : null; }));
    const scale = weight ? [[0, css("--loss")], [1 / top, css("--page")], [1, css("--fill")]] : [[0, css("--page")], [1, css("--fill")]];
    return {
      traces: [{
        type: "heatmap", x: labels, y: order.map((t) => broken(t.name)), z, zmin: 0, zmax: top, xgap: 2, ygap: 2, colorscale: scale, showscale: false, hoverongaps: false,
        text: order.map((t) => labels.map((at) => { const part = find(t, at); return part ? text(part) : ""; })), texttemplate: "%{text}", textfont: { color: css("--ink"), size: narrow() ? 9 : 11.5 },
        customdata: order.map((t) => labels.map((at) => wrapped(tipFor(t, at)))), hovertemplate: HOVER,
      }],
      layout: layout({ xaxis: { type: "category", title: { text: title }, showgrid: false, tickangle: narrow() ? -60 : "auto" }, yaxis: { type: "category", showgrid: false } }),
      height: 110 + 26 * trials.length, head, rows,
    };
  }

  const PICTURES = {
    identity, histogram, tail, density, ess,
    "by-length": () => parts("by_length", "mean_weight", sig), "kept-length": () => parts("by_length", "kept_tokens_share", share),
    "by-sign": () => parts("by_advantage", "mean_weight", sig), "kept-sign": () => parts("by_advantage", "kept_tokens_share", share),
  };
  for (const cut of Object.keys(data.where)) PICTURES["where-" + cut] = () => where(cut);

  function table(id, head, rows) {
    const box = $("table-" + id);
    box.replaceChildren();
    if (!rows.length) return;
    const out = document.createElement("table");
    const cellOf = (cell, tag) => {
      const td = document.createElement(tag);
      if (cell.tip) {
        const span = document.createElement("span");
        span.className = "n"; span.dataset.tip = cell.tip; span.textContent = cell.text;
        td.append(span);
      } else td.textContent = cell.text;
      return td;
    };
    const top = out.createTHead().insertRow();
    for (const text of head) top.append(cellOf({ text }, "th"));
    const body = out.createTBody();
    for (const row of rows) { const tr = body.insertRow(); row.forEach((cell, i) => tr.append(cellOf(cell, i ? "td" : "th"))); }
    box.append(out);
    arrows(out);
  }
  function draw(id) {
    const box = $("plot-" + id), cut = id.startsWith("where-") ? id.slice(6) : null;
    const hidden = cut !== null && state.cut !== "all" && state.cut !== cut;
    $("fig-" + id).hidden = hidden;
    if (hidden) return;
    const found = PICTURES[id]();
    $("note-" + id).textContent = found.note || "";
    box.hidden = !found.traces.length;
    box.style.height = (found.height || (cut ? 320 : 340)) + "px";
    table(id, found.head || [], found.rows);
    if (!found.traces.length) return;
    const size = state.print ? { width: 335, height: Math.min(found.height || 270, 480), autosize: false } : { autosize: true };
    Plotly.react(box, found.traces, Object.assign(found.layout, size), { responsive: !state.print, displaylogo: false, displayModeBar: false });
  }
  const drawAll = () => Object.keys(PICTURES).forEach(draw);

  function strips() {
    for (const box of document.querySelectorAll(".strip")) {
      const w = data.worst[Number(box.dataset.worst)];
      w.log_ratios.forEach((l, i) => {
        const token = document.createElement("b"), id = w.token_ids ? w.token_ids[i] : null;
        const lines = ["token " + whole(w.first + i) + " of the response" + (id === null ? "" : ", id " + id)];
        if (w.mask[i]) {
          token.style.background = "rgba(var(" + (l < 0 ? "--less" : "--more") + ")," + Math.min(1, Math.abs(l)).toFixed(3) + ")";
          lines.push("log ratio " + sig(l, 3) + " nats, probability under mu " + sig(Math.exp(w.log_mu[i])), "One token (n = 1): no interval.");
        } else {
          token.className = "off";
          lines.push("not in the mask: it does not count");
        }
        token.dataset.tip = lines.join("\n");
        box.append(token);
      });
      arrows(box);
    }
  }

  // ---- what the reader does ----------------------------------------------------------------------------------------
  const listen = (id, set) => $(id).addEventListener("change", (event) => { set(event.target); drawAll(); });
  listen("f-cut", (x) => { state.cut = x.value; });
  listen("f-level", (x) => { state.level = x.value; });
  listen("f-quantity", (x) => { state.quantity = x.value; });
  listen("f-estimator", (x) => { state.estimator = x.selectedIndex - 1; });
  const system = matchMedia("(prefers-color-scheme: dark)");
  $("theme").addEventListener("click", () => {
    const root = document.documentElement, dark = root.dataset.theme ? root.dataset.theme === "dark" : system.matches;
    root.dataset.theme = dark ? "light" : "dark";
    drawAll();
  });
  system.addEventListener("change", drawAll);
  matchMedia("(max-width: 639px)").addEventListener("change", drawAll);
  let before = null;
  addEventListener("beforeprint", () => {
    before = { cut: state.cut, theme: document.documentElement.dataset.theme };
    Object.assign(state, { cut: "all", print: true });
    document.documentElement.dataset.theme = "light";
    drawAll();
  });
  addEventListener("afterprint", () => {
    Object.assign(state, { cut: before.cut, print: false });
    if (before.theme) document.documentElement.dataset.theme = before.theme; else delete document.documentElement.dataset.theme;
    drawAll();
  });

  if (data.levels.sequence) { $("f-level").value = "sequence"; state.level = "sequence"; }
  document.querySelectorAll("table, .bars, .worst p").forEach(arrows);
  strips();
  drawAll();
  document.documentElement.dataset.ready = "1";
})();
