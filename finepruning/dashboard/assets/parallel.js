// Parallel coordinates: what was varied, and what came of it.

const MOST_AXES = 9;

/** What differs among runs, of those that have it; keys that always change together are one axis. */
function varying(runs) {
  const of = (run, key) => (key in run ? run[key] : run.config[key]);
  const keys = [
    "dataset",
    "model",
    "attack",
    "defense",
    "seed",
    ...unique(runs.flatMap((run) => Object.keys(run.config)))
      .filter((key) => !/(^|\.)(_target_|name|group|seed|\w+_seed|\w+_dir)$/.test(key))
      .filter((key) => !/^(logger|trainer\.threads$)/.test(key))
      .sort((a, b) => b.startsWith("defense.") - a.startsWith("defense.")),
  ];
  const seen = new Set();
  return keys
    .map((key) => ({ key, title: key.split(".").at(-1), values: runs.map((run) => of(run, key)) }))
    .filter((axis) => {
      const distinct = unique(axis.values.map(shown));
      if (unique(axis.values.filter((each) => each != null).map(shown)).length < 2) return false; // only there or not there
      const shape = axis.values.map((each) => distinct.indexOf(shown(each))).join();
      return !seen.has(shape) && seen.add(shape);
    })
    .slice(0, MOST_AXES);
}

/** Put an axis' values on 0 to 1, with at most a handful of ticks. */
function scale({ key, values, range }) {
  const present = values.filter((each) => each != null);
  if (present.length && present.every((each) => typeof each === "number")) {
    const [low, high] = range || [Math.min(...present), Math.max(...present)];
    const few = unique(present).sort((a, b) => a - b);
    const at = (each) => (each == null ? null : (each - low) / (high - low || 1));
    const ticks = !range && few.length <= 6 ? few : [low, (low + high) / 2, high];
    return {
      at,
      ticks: ticks.map((tick) => [at(tick), range ? percent(tick) : String(+tick.toPrecision(3))]),
    };
  }
  const names = unique(values.map((each) => (each == null ? "–" : shown(each)))).sort(inOrder(key));
  const at = (each) => (names.indexOf(each == null ? "–" : shown(each)) + 0.5) / names.length;
  const every = Math.ceil(names.length / 12);
  return {
    at,
    ticks: names.filter((_, k) => k % every === 0).map((name) => [at(name === "–" ? null : name), name]),
  };
}

/** Parallel coordinates: a line a run, in five shades of attack success. */
function drawParallel(runs) {
  const place = $("#parallel");
  const found = runs.filter((run) => run.status === "finished" && run.success[1] != null);
  const varied = varying(found);
  if (found.length < 2 || !varied.length) return nothing(place, "No hyperparameter varies among these runs.");
  clear(place);
  const axes = [
    ...varied,
    { key: "clean", title: "clean accuracy, %", values: found.map((run) => run.clean[1]) },
    {
      key: "success",
      title: "attack success, %",
      values: found.map((run) => run.success[1]),
      range: [Math.min(0, ...found.map((run) => run.success[1])), 1],
    },
  ];
  axes.at(-2).range = [Math.min(...axes.at(-2).values), Math.max(...axes.at(-2).values)];
  const scales = axes.map(scale);
  const jitter = (k) => (((k * 2654435761) % 1000) / 1000 - 0.5) * 0.035; // lines that share all values stay apart
  const room = Math.max(8, Math.floor(place.clientWidth / axes.length / 7)); // characters between two axes
  const shades = 5;
  const traces = [...Array(shades).keys()]
    .map((shade) => {
      const mine = found
        .map((run, k) => [run, k])
        .filter(([run]) => Math.min(shades - 1, Math.max(0, Math.floor(run.success[1] * shades))) === shade);
      const lift = (k, a) => (a >= varied.length ? 0 : jitter(k));
      return {
        type: "scatter",
        mode: "lines+markers",
        name: `${(100 * shade) / shades} to ${(100 * (shade + 1)) / shades} %`,
        x: mine.flatMap(() => [...axes.keys(), null]),
        y: mine.flatMap(([, k]) => [
          ...axes.map((axis, a) => {
            const y = scales[a].at(axis.values[k]);
            return y == null ? null : y + lift(k, a);
          }),
          null,
        ]),
        customdata: mine.flatMap(([run]) => [...axes.map(() => run.id), null]),
        text: mine.flatMap(([run, k]) => [
          ...axes.map(
            (axis) => `${plain(run.name)}<br>${plain(axis.title)}: ${plain(shown(axis.values[k]) || "–")}`,
          ),
          null,
        ]),
        hovertemplate: "%{text}<extra></extra>",
        opacity: found.length > 300 ? 0.35 : 0.75,
        line: { width: 1.3, color: SHADES[shade], shape: "spline", smoothing: 0.5 },
        marker: { size: 4, color: SHADES[shade] },
      };
    })
    .filter((trace) => trace.x.length);
  chartData.parallel = [
    ["run", ...axes.map((axis) => axis.key)],
    ...found.map((run, k) => [run.name, ...axes.map((axis) => shown(axis.values[k]))]),
  ];
  draw(place, traces, {
    xaxis: {
      tickvals: [...axes.keys()],
      ticktext: axes.map((axis) => plain(axis.title).replace(" ", "<br>")), // neighbours stay apart
      side: "top",
      showgrid: true,
      gridcolor: colour("quiet"),
      range: [-0.25, axes.length - 0.6],
      tickangle: 0,
    },
    yaxis: { visible: false, range: [-0.06, 1.06] },
    margin: { l: 24, r: 60, t: 60, b: 20 },
    showlegend: true,
    legend: { orientation: "h", x: 0, y: -0.04, yanchor: "top", title: { text: "attack success " } },
    annotations: axes.flatMap((_, a) =>
      scales[a].ticks.map(([y, tick]) => ({
        x: a,
        y,
        text: plain(tick.length > room ? `${tick.slice(0, room - 1)}…` : tick),
        showarrow: false,
        xanchor: "left",
        xshift: 5,
        font: { size: 11, color: colour("ink") },
        bgcolor: colour("veil"),
      })),
    ),
  }).then(() => {
    if (place.dataset.ready) return;
    place.dataset.ready = "yes";
    place.on("plotly_click", (event) => openRun(event.points[0].customdata));
  });
}
const SHADES = ["#0072B2", "#56B4E9", "#A0A0A0", "#E69F00", "#D55E00"]; // removed to alive
