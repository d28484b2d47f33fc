// Charts of the filtered runs. Each returns what it drew as lines of text, for "Copy data".

const chartData = {};

function layout(changes = {}) {
  const [ink, quiet, line] = ["ink", "quiet", "line"].map(colour);
  const axis = { gridcolor: line, zeroline: false, linecolor: line, tickfont: { color: quiet }, automargin: true, fixedrange: false };
  const { xaxis, yaxis, ...rest } = changes;
  return {
    paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)", autosize: true, height: 430, dragmode: false,
    font: { family: "ui-sans-serif, system-ui, sans-serif", size: 12.5, color: ink },
    margin: { l: 56, r: 16, t: 30, b: 48 },
    legend: { orientation: "h", x: 0, y: 1.01, yanchor: "bottom", font: { color: ink } },
    hoverlabel: { bgcolor: colour("card"), bordercolor: line, font: { color: ink }, align: "left" },
    hovermode: "closest", ...rest, xaxis: { ...axis, ...xaxis }, yaxis: { ...axis, ...yaxis },
  };
}

function draw(place, traces, changes) {
  const modebar = { displaylogo: false, responsive: true, displayModeBar: false };
  return Plotly.react(place, traces, layout(changes), modebar);
}

function nothing(place, sentence) {
  if (place.classList.contains("js-plotly-plot")) Plotly.purge(place);
  place.classList.remove("js-plotly-plot");
  place.replaceChildren(h("p", { class: "none" }, sentence));
  delete chartData[place.id];
}

function clear(place) {
  if (!place.classList.contains("js-plotly-plot")) place.replaceChildren();
}

const MOST_ERROR_BARS = 40;

/** Suspect to defended, one arrow a group: mean over seeds, with its intervals. */
function drawArrows(runs) {
  const place = $("#arrows");
  const groups = filteredGroups(runs).filter((group) => group.success_after && group.defense !== "none");
  if (!groups.length) return nothing(place, "No finished defense against an attack among these runs.");
  clear(place);
  const traces = unique(groups.map((group) => group.defense)).map((defense) => {
    const mine = groups.filter((group) => group.defense === defense);
    const both = (before, after) => mine.flatMap((group) => [100 * group[before][0], 100 * group[after][0], null]);
    const error = (name, end, sign) => mine.flatMap((group) => [0, sign * 100 * (group[name][end] - group[name][0]), 0]);
    const bars = (name) => ({ type: "data", symmetric: false, array: error(name, 2, 1), arrayminus: error(name, 1, -1),
      thickness: 0.8, width: 0, visible: groups.length <= MOST_ERROR_BARS });
    return {
      type: "scatter", mode: "lines+markers+text", name: plain(defense), textposition: "bottom center", textfont: { size: 11, color: colour("quiet") },
      texttemplate: mine.flatMap((group) => ["", groups.length <= 16 && group.success_before[0] - group.success_after[0] > 0.1 ? plain(group.attack_label) : "", ""]),
      x: both("success_before", "success_after"), y: both("clean_before", "clean_after"),
      error_x: bars("success_after"), error_y: bars("clean_after"), line: { color: defenseColour(defense), width: 1.6 },
      opacity: 0.9, marker: { color: defenseColour(defense), angleref: "previous", standoff: 0,
        symbol: mine.flatMap((group) => ["circle", ranked(group) ? "arrow" : "arrow-open", "circle"]), size: mine.flatMap(() => [6, 14, 0]) },
      text: mine.flatMap((group) => ["suspect", "defended", ""].map((when) =>
        `<b>${plain(group.defense_label)}</b> against ${plain(group.attack_label)}<br>${plain(group.dataset)}, ${group.seeds} seeds, ${when}` +
        (group.oracle ? "<br>oracle: not ranked" : "") + (group.dead ? "<br>dead attack" : ""))),
      hovertemplate: "%{text}<br>attack success %{x:.1f} %<br>clean accuracy %{y:.1f} %<extra></extra>",
    };
  });
  chartData.arrows = [["dataset", "attack", "defense", "seeds", "success_before", "success_after", "clean_before", "clean_after"],
    ...groups.map((g) => [g.dataset, g.attack_label, g.defense_label, g.seeds, g.success_before[0], g.success_after[0], g.clean_before[0], g.clean_after[0]])];
  draw(place, traces, {
    xaxis: { title: { text: "attack success, %" }, range: [Math.min(-2, ...groups.map((g) => 100 * g.success_after[0] - 2)), 103] },
    yaxis: { title: { text: "clean accuracy, %" } }, showlegend: true,
  });
}

const MOST_CURVES = 12;

/** The runs whose curves are drawn: the picked ones, else some of those shown, equal curves once. */
function curveRuns(runs) {
  const picked = [...state.picked].map((id) => data.runs[id]).filter((run) => run.curve != null);
  if (picked.length) return picked.slice(0, MOST_CURVES);
  const first = new Map();
  for (const run of runs) if (run.curve != null && !first.has(run.curve)) first.set(run.curve, run);
  return [...first.values()].slice(0, 3);
}

function drawCurves(runs) {
  const place = $("#curves");
  const chosen = curveRuns(runs);
  if (!chosen.length) return nothing(place, "None of these runs has a pruning curve.");
  clear(place);
  const lines = [["run", "channels_pruned", "validation_accuracy", "clean_accuracy", "attack_success", "robust_accuracy"]];
  const traces = chosen.flatMap((run, number) => {
    const curve = data.curves[run.curve];
    const [stop, total] = run.pruned;
    const x = curve.step.map((step) => (100 * step) / total);
    const at = curve.step.indexOf(stop);
    const tint = COLOURS[number % COLOURS.length];
    const label = `${run.dataset}, ${run.labels[0]}, ${run.labels[1]}, seed ${shown(run.seed)}`;
    curve.step.forEach((step, k) => lines.push([run.name, step, curve.validation[k], curve.clean[k], curve.success[k], curve.robust[k]]));
    const one = (name, title, dash, legend) => curve[name].every((each) => each == null) ? null : {
      type: "scatter", mode: "lines+markers", name: plain(label), legendgroup: String(run.id), showlegend: legend, x,
      y: curve[name].map((each) => (each == null ? null : 100 * each)),
      line: { color: tint, width: 1.8, dash },
      marker: { color: colour("card"), line: { color: tint, width: 2 }, size: x.map((_, k) => (k === at ? 11 : 0)), opacity: x.map((_, k) => (k === at ? 1 : 0)) },
      customdata: curve.step, hovertemplate: `${plain(label)}<br>%{customdata} of ${total} channels<br>${title} %{y:.1f} %<extra></extra>`,
    };
    return [one("clean", "clean accuracy", "solid", true), one("success", "attack success", "dash", false)].filter(Boolean);
  });
  chartData.curves = lines;
  draw(place, traces, {
    xaxis: { title: { text: "channels pruned, %" }, range: [-1, 101] }, yaxis: { title: { text: "test images, %" }, range: [-3, 103] },
    showlegend: true,
  });
}

const MOST_AXES = 9;

/** What differs among runs, of those that have it; keys that always change together are one axis. */
function varying(runs) {
  const of = (run, key) => (key in run ? run[key] : run.config[key]);
  const keys = ["dataset", "model", "attack", "defense", "seed", ...unique(runs.flatMap((run) => Object.keys(run.config)))
    .filter((key) => !/(^|\.)(_target_|name|group|seed|\w+_seed|\w+_dir)$/.test(key) && !key.startsWith("logger"))];
  const seen = new Set();
  return keys.map((key) => ({ key, title: key.split(".").at(-1), values: runs.map((run) => of(run, key)) })).filter((axis) => {
    const distinct = unique(axis.values.map(shown));
    if (unique(axis.values.filter((each) => each != null).map(shown)).length < 2) return false; // only there or not there
    const shape = axis.values.map((each) => distinct.indexOf(shown(each))).join();
    return !seen.has(shape) && seen.add(shape);
  }).slice(0, MOST_AXES);
}

/** Put an axis' values on 0 to 1, with at most a handful of ticks. */
function scale({ values, range }) {
  const present = values.filter((each) => each != null);
  if (present.length && present.every((each) => typeof each === "number")) {
    const [low, high] = range || [Math.min(...present), Math.max(...present)];
    const few = unique(present).sort((a, b) => a - b);
    const at = (each) => (each == null ? null : (each - low) / (high - low || 1));
    const ticks = !range && few.length <= 6 ? few : [low, (low + high) / 2, high];
    return { at, ticks: ticks.map((tick) => [at(tick), range ? percent(tick) : String(+tick.toPrecision(3))]) };
  }
  const names = unique(values.map((each) => (each == null ? "–" : shown(each)))).sort(compare);
  const at = (each) => (names.indexOf(each == null ? "–" : shown(each)) + 0.5) / names.length;
  const every = Math.ceil(names.length / 12);
  return { at, ticks: names.filter((_, k) => k % every === 0).map((name) => [at(name === "–" ? null : name), name]) };
}

/** Parallel coordinates: a line a run, in five shades of attack success. */
function drawParallel(runs) {
  const place = $("#parallel");
  const found = runs.filter((run) => run.status === "finished" && run.success[1] != null);
  const varied = varying(found);
  if (found.length < 2 || !varied.length) return nothing(place, "No hyperparameter varies among these runs.");
  clear(place);
  const axes = [...varied,
    { key: "clean", title: "clean accuracy, %", values: found.map((run) => run.clean[1]) },
    { key: "success", title: "attack success, %", values: found.map((run) => run.success[1]), range: [Math.min(0, ...found.map((run) => run.success[1])), 1] },
  ];
  axes.at(-2).range = [Math.min(...axes.at(-2).values), Math.max(...axes.at(-2).values)];
  const scales = axes.map(scale);
  const jitter = (k) => (((k * 2654435761) % 1000) / 1000 - 0.5) * 0.035; // lines that share all values stay apart
  const shades = 5;
  const traces = [...Array(shades).keys()].map((shade) => {
    const mine = found.map((run, k) => [run, k]).filter(([run]) => Math.min(shades - 1, Math.max(0, Math.floor(run.success[1] * shades))) === shade);
    const lift = (k, a) => (a >= varied.length ? 0 : jitter(k));
    return {
      type: "scatter", mode: "lines+markers", name: `${(100 * shade) / shades} to ${(100 * (shade + 1)) / shades} %`,
      x: mine.flatMap(() => [...axes.keys(), null]),
      y: mine.flatMap(([, k]) => [...axes.map((axis, a) => { const y = scales[a].at(axis.values[k]); return y == null ? null : y + lift(k, a); }), null]),
      customdata: mine.flatMap(([run]) => [...axes.map(() => run.id), null]),
      text: mine.flatMap(([run, k]) => [...axes.map((axis) => `${plain(run.name)}<br>${plain(axis.title)}: ${plain(shown(axis.values[k]) || "–")}`), null]),
      hovertemplate: "%{text}<extra></extra>", opacity: found.length > 300 ? 0.35 : 0.75,
      line: { width: 1.3, color: SHADES[shade], shape: "spline", smoothing: 0.5 }, marker: { size: 4, color: SHADES[shade] },
    };
  }).filter((trace) => trace.x.length);
  chartData.parallel = [["run", ...axes.map((axis) => axis.key)], ...found.map((run, k) => [run.name, ...axes.map((axis) => shown(axis.values[k]))])];
  draw(place, traces, {
    xaxis: { tickvals: [...axes.keys()], ticktext: axes.map((axis) => plain(axis.title)), side: "top", showgrid: true, gridcolor: colour("quiet"),
      range: [-0.25, axes.length - 0.6], tickangle: 0 },
    yaxis: { visible: false, range: [-0.06, 1.06] }, margin: { l: 24, r: 60, t: 60, b: 20 }, showlegend: true,
    legend: { orientation: "h", x: 0, y: -0.04, yanchor: "top", title: { text: "attack success " } },
    annotations: axes.flatMap((_, a) => scales[a].ticks.map(([y, tick]) => ({ x: a, y, text: plain(tick.length > 22 ? `${tick.slice(0, 20)}…` : tick), showarrow: false,
      xanchor: "left", xshift: 5, font: { size: 11, color: colour("ink") }, bgcolor: colour("veil") }))),
  }).then(() => {
    if (place.dataset.ready) return;
    place.dataset.ready = "yes";
    place.on("plotly_click", (event) => openRun(event.points[0].customdata));
  });
}
const SHADES = ["#0072B2", "#56B4E9", "#A0A0A0", "#E69F00", "#D55E00"]; // removed to alive
