"use strict";
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const $ = (id) => document.getElementById(id);
  const state = { cut: "all", level: $("f-level").value, quantity: "mean", estimator: -1, print: false };
  const MIN_TOKENS = 10; // of a point; fewer say nothing and stretch the axis
  const CAPS = [2, 10];
  const TOP_WEIGHT = 1.5; // of the axis; what is higher is cut, and its tip says how high it is

  // ---- words: numbers are put into words by Python, in the tables; the script rounds nothing --------------------------
  const whole = (n) => n.toLocaleString("en-US"); // a count
  // The rows of the table under a picture, each cell with its text and its tip; of one level if it has one a level.
  function cellsOf(id, level) {
    const body = document.querySelector("#table-" + id + (level ? ` [data-level="${level}"]` : "") + " tbody");
    return body ? [...body.rows].map((row) => [...row.cells].map((cell) => {
      const tipped = cell.querySelector("[data-tip]");
      return { text: cell.textContent, tip: tipped ? tipped.dataset.tip : "" };
    })) : [];
  }
  // Plotly reads tags in labels: what the records say is shown as it is.
  const plain = (text) => String(text).replace(/&/g, "&amp;").replace(/</g, "&lt;").replace(/>/g, "&gt;");
  const broken = (name) => plain(name).replace(/ \* /g, " *<br>");
  function wrapped(lines) {
    const out = [];
    for (const line of lines.flatMap((text) => String(text).split("\n"))) {
      let row = "";
      for (const word of line.split(" ")) {
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
    for (const item of group.querySelectorAll(".n[title]")) { item.dataset.tip = item.title; item.removeAttribute("title"); }
    [...group.querySelectorAll("[data-tip]")].forEach((item, i) => { item.tabIndex = i ? -1 : 0; });
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
    for (const key of Object.keys(out)) {
      if (!/^[xy]axis/.test(key)) continue;
      out[key] = Object.assign({}, axis, out[key]);
      if (out[key].title) out[key].title = Object.assign({ font: { size: narrow() ? 11 : 13 } }, out[key].title);
    }
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
  const empty = (note, level) => ({ traces: [], layout: layout({ xaxis: { visible: false }, yaxis: { visible: false } }), note, level });

  const QUANTITIES = { mean: "mean log ratio, nats", mean_abs: "mean |log ratio|, nats", mean_ratio: "mean ratio" };
  function where(cut) {
    const found = data.where[cut];
    const level = state.level === "sequence" && found.rows.some((row) => row.sequence) ? "sequence" : "token";
    const notes = [];
    if (state.level !== level) notes.push("Here there are only token statistics: tokens are shown.");
    let quantity = state.quantity;
    if (quantity === "mean_ratio" && !(level === "token" && found.known)) {
      quantity = "mean";
      notes.push(level === "sequence" ? "The mean ratio is shown by token only: mean log ratio in its place."
        : "What is cut by here is known only after the token is drawn, and the mean ratio need not be 1: mean log ratio in its place.");
    }
    // The columns of the table: label, n, mean, interval, sd, mean ratio and interval if it must be 1, mean |log ratio|.
    const known = level === "token" && found.known, at = { mean: 2, sd: 4, mean_ratio: 5, mean_abs: known ? 7 : 5 };
    const words = cellsOf("where-" + cut, level);
    const all = found.rows.filter((row) => row[level]).map((row, i) => ({ start: row.start, tokens: row.tokens, numbers: row[level], cells: words[i], label: words[i][0].text }));
    let rows = all.filter((row) => level === "sequence" || row.tokens >= MIN_TOKENS);
    if (cut === "probability") rows = rows.slice().reverse();
    if (rows.length < all.length) notes.push("Fewer than " + MIN_TOKENS + " tokens are not drawn.");
    const few = rows.length <= 1;
    if (!rows.length) return empty("Nothing to draw here.", level);
    const linear = cut === "step" && rows.every((row) => row.start !== null);
    const x = rows.map((row, i) => linear ? row.start : i);
    const short = (label) => cut === "probability" ? label.split(" to ").pop() : cut === "position" || cut === "length" ? label.split("-")[0] : label.length > 16 ? label.slice(0, 14) + "..." : label;
    const step = Math.ceil(rows.length / (narrow() ? 6 : 10));
    const marked = x.filter((_, i) => i % step === 0);
    const ticks = linear ? { nticks: 10 } : { tickvals: marked, ticktext: marked.map((i) => plain(short(rows[i].label))), range: [-0.6, rows.length - 0.4] };
    const mode = few || cut === "env" ? "markers" : "lines+markers";
    const series = (name, what, yaxis, color) => {
      const values = rows.map((row) => row.numbers[name]), error = bars(values);
      error.color = color;
      return {
        type: "scatter", mode, x, y: values.map((v) => v.value), yaxis, name, error_y: error, line: { color, width: 1.8 }, marker: { color, size: 6 },
        customdata: rows.map((row) => wrapped([found.words + " " + row.label + ": " + what, row.cells[at[name]].tip])), hovertemplate: HOVER,
      };
    };
    const range = (name, around, floor) => { // an interval of few tokens may dwarf all else: it is drawn as far as the frame goes
      const values = rows.map((row) => row.numbers[name]), points = values.map((v) => v.value).filter((v) => v !== null);
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
      traces: [series(quantity, QUANTITIES[quantity], "y", css("--bar")), series("sd", "standard deviation", "y2", css("--second"))],
      layout: layout({
        xaxis: Object.assign({ title: { text: plain(found.words) + (cut === "probability" ? " (upper end)" : cut === "position" || cut === "length" ? " (from)" : "") }, anchor: "y2", zeroline: false }, ticks),
        yaxis: { title: { text: quantity === "mean_ratio" ? "mean ratio" : quantity === "mean" ? "mean, nats" : "mean | |, nats" }, domain: [0.4, 1], range: range(quantity, around, quantity === "mean_abs"), zeroline: false },
        yaxis2: { title: { text: "sd, nats" }, domain: [0, 0.3], range: [0, range("sd", 0, true)[1]], zeroline: false },
        shapes,
      }),
      note: notes.join(" "), level,
    };
  }

  function identity() {
    const cells = cellsOf("identity").reverse(), numbers = data.identity.slice().reverse(), names = cells.map((row) => row[0].text);
    const near = numbers.filter((x) => x.value !== null && Math.abs(x.value - 1) <= 1);
    const far = Math.max(...near.map((x) => Math.abs(x.value - 1)), 0.002);
    const ends = near.flatMap((x) => [x.low, x.high]).filter((x) => x !== null).map((x) => Math.abs(x - 1));
    const reach = 1.15 * Math.max(far, ...ends); // every interval is inside, whole
    // One that is far beyond the others would leave them no room: it stands at the edge, and its label says where it is.
    const beyond = numbers.map((x) => x.value === null ? NaN : x.value > 1 + reach ? 1 : x.value < 1 - reach ? -1 : 0);
    const error = bars(numbers.map((x, i) => beyond[i] ? Object.assign({}, x, { low: null, high: null }) : x));
    return {
      traces: [{
        type: "scatter", mode: "markers+text", y: names, x: numbers.map((x, i) => beyond[i] ? 1 + 0.97 * reach * beyond[i] : x.value), error_x: error,
        marker: { size: 10, color: beyond.map((side) => css(side ? "--fail" : "--bar")), symbol: beyond.map((side) => side > 0 ? "triangle-right" : side < 0 ? "triangle-left" : "circle") },
        text: numbers.map((x, i) => x.value === null ? "" : cells[i][2].text + " " + cells[i][3].text), textposition: numbers.map((x, i) => { const at = beyond[i] || (x.value - 1) / reach; return at > 0.4 ? "top left" : at < -0.4 ? "top right" : "top center"; }), cliponaxis: false,
        customdata: cells.map((row) => wrapped(["mean " + row[0].text + " ratio", row[2].tip])), hovertemplate: HOVER,
      }],
      layout: layout({ xaxis: { title: { text: "mean of pi/mu" }, range: [1 - reach, 1 + reach], nticks: 7 }, yaxis: { type: "category", range: [-0.5, names.length - 0.3] }, shapes: [line(1, "", "x")],
        annotations: numbers.map((x, i) => ({ x: 0.5, xref: "paper", y: names[i], text: x.refused, showarrow: false, bgcolor: css("--page"), font: { color: css("--soft") } })).filter((one) => one.text) }),
      note: beyond.some((side) => side) ? "Triangles: beyond the picture." : "",
    };
  }

  function histogram() {
    const name = data.histograms[state.level] ? state.level : "sequence";
    const h = data.histograms[name], log = name === "token", words = cellsOf("histogram", name);
    let k = 0; // the table has no empty bars
    const said = h.counts.map((c) => c ? words[k++] : null);
    const x = h.counts.map((_, i) => h.first + i * h.width);
    const low = x[0] - h.width, high = x[x.length - 1] + h.width, right = Math.max(high, -0.15 * low);
    const marks = [[1, "ratio 1"], ...CAPS.map((cap) => [cap, "cap " + cap])].map(([r, text]) => [Math.log(r), text]).filter(([at]) => at > low && at < right);
    return {
      traces: [{
        type: "bar", x, y: h.counts, width: h.width * 0.94, marker: { color: css("--bar") },
        customdata: said.map((row) => row ? wrapped([row[0].text, row[1].text + " of " + h.of + ", " + row[2].text, h.facts]) : ""), hovertemplate: HOVER,
      }],
      layout: layout({
        xaxis: { title: { text: "log ratio of the " + name + ", nats" }, range: [low, right], zeroline: false },
        yaxis: { title: { text: name + "s" + (log ? " (log scale)" : "") }, type: log ? "log" : "linear", ...(log ? { dtick: 1 } : {}) },
        margin: { l: 56, r: 12, t: 14 + 15 * marks.length, b: 44 },
        shapes: marks.map(([at]) => line(at, "", "x")),
        annotations: marks.map(([at, text], i) => ({ x: at, y: 1, yref: "paper", yanchor: "bottom", xanchor: at > (low + right) / 2 ? "right" : "left", yshift: 15 * (marks.length - 1 - i), text, showarrow: false, font: { color: css("--mark") } })),
      }),
      note: (h.outside ? "Beyond the picture: " + whole(h.outside) + ". " : "") + (name === state.level ? "" : "Turns have no histogram: sequences are shown."), level: name,
    };
  }

  function tail() {
    const name = data.tails[state.level] ? state.level : "sequence";
    const t = data.tails[name];
    if (!t.log_ratios.length) return empty("There are no ratios.", name);
    const part = (i) => (i + 0.5) / t.n;
    const traces = [{
      type: "scatter", mode: "markers", x: t.log_ratios, y: t.log_ratios.map((_, i) => part(i)), marker: { color: css("--bar"), size: 5 }, name: "observed",
      customdata: t.said.map((said, i) => wrapped(["rank " + whole(i + 1) + " of " + t.of, said, t.words, t.facts])), hovertemplate: HOVER,
    }];
    if (t.fitted.length) traces.push({ type: "scatter", mode: "lines", x: t.fitted, y: t.fitted.map((_, i) => part(i)), line: { color: css("--second"), width: 2 }, name: "Pareto fit", hoverinfo: "skip" });
    return {
      traces,
      layout: layout({
        xaxis: { title: { text: "log ratio of the " + name + ", nats" }, zeroline: false }, yaxis: { type: "log", dtick: 1, title: { text: "share at least this large" }, exponentformat: "power" },
        annotations: [{ x: 1, y: 1, xref: "paper", yref: "paper", xanchor: "right", yanchor: "bottom", text: t.words, showarrow: false, font: { color: t.over ? css("--fail") : css("--ink"), size: narrow() ? 12 : 13.5 } }],
        margin: { l: 56, r: 12, t: 30, b: 44 },
      }),
      note: t.note, level: name,
    };
  }

  function density() {
    const d = data.density, columns = d.counts.length, rows = d.counts[0].length;
    const totals = d.counts.map((column) => column.reduce((a, b) => a + b, 0)), words = cellsOf("density");
    const used = [...Array(columns).keys()].filter((i) => totals[i]).reverse(); // rare tokens on the left
    if (!used.length) return empty("There are no tokens.");
    const first = used[used.length - 1], last = used[0];
    const high = [...Array(rows).keys()].filter((j) => d.counts.some((column) => column[j]));
    const below = high[0], above = high[high.length - 1];
    // The height of a log ratio: linear up to the usual size, and half a unit an octave beyond.
    const height = (v) => { const size = Math.abs(v) / d.linear; return Math.sign(v) * (size <= 1 ? size : 1 + Math.log2(size) / 2); };
    const place = (edges, v) => { // where a value is on the grid, in cells
      let i = 0;
      while (i + 2 < edges.length && edges[i + 1] <= v) i += 1;
      return i + (v - edges[i]) / (edges[i + 1] - edges[i]) - 0.5;
    };
    const middle = (i) => last - i; // cells from the left
    const across = [];
    for (let i = last; i >= first; i -= 1) across.push(i);
    const labels = {}; // of the columns that the table has: those with tokens
    used.forEach((i, k) => { labels[i] = words[k][0].text; });
    const z = [], tips = [];
    for (let j = below; j <= above; j += 1) {
      z.push(across.map((i) => d.counts[i][j] ? Math.log10(d.counts[i][j]) : null));
      tips.push(across.map((i) => d.counts[i][j] ? wrapped(["probability under mu " + labels[i], "log ratio " + d.labels[j] + " nats", d.said[i][j], d.facts]) : ""));
    }
    const quantile = (q) => across.map((i) => {
      if (totals[i] < MIN_TOKENS) return null;
      let sum = 0;
      for (let j = 0; j < rows; j += 1) { sum += d.counts[i][j]; if (sum >= q * totals[i]) { const part = (sum - q * totals[i]) / d.counts[i][j]; return part * height(d.log_ratio[j]) + (1 - part) * height(d.log_ratio[j + 1]); } }
      return null;
    });
    const xs = across.map((_, k) => k), edges = d.log_ratio.slice(below, above + 2).map(height);
    const trend = (q, dash, width) => ({ type: "scatter", mode: "lines", x: xs, y: quantile(q), line: { color: css("--second"), width, dash }, hoverinfo: "skip", connectgaps: false });
    const xTicks = ["1e-6", "1e-4", "0.01", "0.1", "0.5", "0.9", "0.99", "0.999", "0.9999", "0.99999"].map((p) => [middle(place(d.minus_log_mu, -Math.log(Number(p)))), p]).filter(([at]) => at >= -0.5 && at <= last - first + 0.5)
      .filter(([at], i, all) => i === all.length - 1 || all[i + 1][0] - at > (last - first) / (narrow() ? 7 : 11));
    const yTicks = ["0", ...["100", "30", "10", "3", "1", "0.3", "0.1", "0.03", "0.01", "0.003", "0.001", "0.0003", "0.0001"].flatMap((v) => [v, "-" + v])].map((v) => [height(Number(v)), v]).filter(([at, v]) => at >= edges[0] && at <= edges[edges.length - 1] && (v === "0" || Math.abs(at) >= 0.24));
    const most = Math.max(...z.flat().filter((v) => v !== null));
    const powers = [...Array(Math.floor(most) + 1).keys()];
    return {
      traces: [
        { type: "heatmap", x: xs, y: edges, z, customdata: tips, hovertemplate: HOVER, hoverongaps: false, zmin: 0, zmax: Math.max(most, 0.5),
          colorscale: [[0, css("--low")], [1, css("--high")]], showscale: !narrow(), colorbar: { title: { text: "tokens" }, tickvals: powers, ticktext: powers.map((k) => d.powers[k]), thickness: 10, outlinewidth: 0 } },
        trend(0.5, "solid", 2), trend(0.05, "dot", 1.3), trend(0.95, "dot", 1.3),
      ],
      layout: layout({
        xaxis: { title: { text: "probability of the token under mu" }, tickvals: xTicks.map((t) => t[0]), ticktext: xTicks.map((t) => t[1]), showgrid: false, zeroline: false, tickangle: narrow() ? -45 : 0 },
        yaxis: { title: { text: "log ratio, nats" }, tickvals: yTicks.map((t) => t[0]), ticktext: yTicks.map((t) => t[1]), zeroline: false, showgrid: false },
        shapes: edges[0] <= 0 && edges[edges.length - 1] >= 0 ? [Object.assign(line(0, "", "y"), { yref: "y" })] : [],
      }),
    };
  }

  // Of the estimators that are chosen, the cells of a table and what is drawn of them.
  const chosen = (id, drawn) => cellsOf(id).map((cells, i) => ({ cells, drawn: drawn[i], name: cells[0].text })).filter((_, i) => state.estimator < 0 || state.estimator === i);
  // The estimator to use stands out as it does in the table.
  const heading = (t) => t.name === data.use ? "<b>" + broken(t.name) + "</b>" : broken(t.name);
  const marked = (trials) => trials.some((t) => t.name === data.use) ? "Bold: the one to use." : "";
  function ess() {
    const trials = chosen("ess", data.ess).reverse(), names = trials.map(heading);
    const bar = (key, column, name, color, patterned) => ({
      type: "bar", orientation: "h", y: names, x: trials.map((t) => t.drawn[key].sample), name,
      marker: { color, pattern: { shape: patterned ? trials.map((t) => t.drawn[key].value === null ? "/" : "") : undefined, size: 5 } },
      customdata: trials.map((t) => wrapped([key === "raw" ? "raw " + t.cells[1].text + " ratios" : t.name + ", as applied", t.cells[column].tip])), hovertemplate: HOVER,
    });
    return {
      traces: [bar("applied", 3, "applied", css("--bar"), false), bar("raw", 2, "raw (striped: refused, figure of this sample)", css("--second"), true)],
      layout: layout({ barmode: "group", bargap: 0.25, showlegend: true, legend: { orientation: "h", y: 1.02, yanchor: "bottom", x: 0, traceorder: "reversed" }, xaxis: { range: [0, 1], tickformat: ".0%", title: { text: "effective share of units" } }, yaxis: { type: "category" }, margin: { l: 56, r: 12, t: 30, b: 44 } }),
      height: 120 + 34 * trials.length,
      note: marked(trials),
    };
  }
  // Rows of estimators, columns of lengths or of signs: as a table of colours, or as bars with intervals for one of them.
  function parts(id, title) {
    const trials = chosen(id, data.parts[id]);
    const labels = [...document.querySelector("#table-" + id + " thead").querySelectorAll("th")].slice(1).map((th) => th.textContent);
    const top = TOP_WEIGHT, high = (x) => x.value === null ? top : Math.min(x.value, top);
    const tipFor = (t, k) => t.drawn[k] ? wrapped([t.name + ", " + title + " " + labels[k], t.cells[k + 1].tip]) : "";
    if (trials.length === 1) {
      const t = trials[0], here = [...labels.keys()].filter((k) => t.drawn[k]), numbers = here.map((k) => t.drawn[k]);
      const error = bars(numbers);
      error.color = css("--ink");
      return {
        traces: [{ type: "bar", x: here.map((k) => labels[k]), y: numbers.map(high), error_y: error, marker: { color: css("--bar") }, text: here.map((k) => t.cells[k + 1].text), textposition: "inside", insidetextanchor: "start", customdata: here.map((k) => tipFor(t, k)), hovertemplate: HOVER }],
        layout: layout({ xaxis: { type: "category", title: { text: title } }, yaxis: { range: [0, top] }, shapes: [line(1, "", "y")] }),
        note: "Of " + t.name + ".",
      };
    }
    const order = trials.slice().reverse(), each = (f) => order.map((t) => labels.map((_, k) => f(t, k)));
    const scale = [[0, css("--loss")], [1 / top, css("--page")], [1, css("--fill")]];
    return {
      traces: [{
        type: "heatmap", x: labels, y: order.map(heading), z: each((t, k) => t.drawn[k] ? high(t.drawn[k]) : null), zmin: 0, zmax: top, xgap: 2, ygap: 2, colorscale: scale, showscale: false, hoverongaps: false,
        text: each((t, k) => t.cells[k + 1].text.replace(/e\+0*/, "e")), texttemplate: "%{text}", textfont: { color: css("--ink"), size: narrow() ? 9 : 11.5 }, customdata: each(tipFor), hovertemplate: HOVER,
      }],
      layout: layout({ xaxis: { type: "category", title: { text: title }, showgrid: false, tickangle: narrow() ? -60 : "auto" }, yaxis: { type: "category", showgrid: false } }),
      height: 110 + 26 * trials.length,
      note: marked(trials),
    };
  }

  const PICTURES = {
    identity, histogram, tail, density, ess,
    "by-length": () => parts("by-length", "response length, tokens"), "by-sign": () => parts("by-sign", "sign of the advantage"),
  };
  for (const cut of Object.keys(data.where)) PICTURES["where-" + cut] = () => where(cut);

  function draw(id) {
    const box = $("plot-" + id), cut = id.startsWith("where-") ? id.slice(6) : null;
    const hidden = cut !== null && state.cut !== "all" && state.cut !== cut;
    $("fig-" + id).hidden = hidden;
    if (hidden) return;
    const found = PICTURES[id]();
    $("note-" + id).textContent = found.note || "";
    box.hidden = !found.traces.length;
    box.style.height = (found.height || (cut ? 320 : 340)) + "px";
    for (const table of document.querySelectorAll("#table-" + id + " [data-level]")) table.hidden = table.dataset.level !== found.level;
    if (!found.traces.length) return;
    const size = state.print ? { width: 335, height: Math.min(found.height || 270, 480), autosize: false } : { autosize: true };
    Plotly.react(box, found.traces, Object.assign(found.layout, size), { responsive: !state.print, displaylogo: false, displayModeBar: false });
  }
  const drawAll = () => Object.keys(PICTURES).filter((id) => $("fig-" + id)).forEach(draw);

  function strips() {
    for (const box of document.querySelectorAll(".strip")) {
      const w = data.worst[Number(box.dataset.worst)];
      box.classList.toggle("words", w.words.length > 0);
      w.places.forEach((place, i) => {
        const token = document.createElement("b"), l = w.shades[i], lines = [place];
        if (w.said[i]) {
          token.style.background = "rgba(var(" + (l < 0 ? "--less" : "--more") + ")," + Math.abs(l) * (w.words.length ? 0.6 : 1) + ")"; // under a word, pale enough to be read
          lines.push(w.said[i], "One token (n = 1): no interval.");
        } else {
          token.className = "off";
          lines.push("not in the mask: it does not count");
        }
        if (w.words.length) token.textContent = w.words[i];
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

  if ([...$("f-level").options].some((x) => x.value === "sequence")) { $("f-level").value = "sequence"; state.level = "sequence"; }
  document.querySelectorAll("table, .bars, .worst p").forEach(arrows);
  strips();
  drawAll();
  document.documentElement.dataset.ready = "1";
})();
