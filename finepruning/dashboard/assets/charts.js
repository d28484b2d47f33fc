// Charts of the filtered runs. Each returns what it drew as lines of text, for "Copy data".

const chartData = {};

function layout(changes = {}) {
  const [ink, quiet, line] = ["ink", "quiet", "line"].map(colour);
  const axis = {
    gridcolor: line,
    zeroline: false,
    linecolor: line,
    tickfont: { color: quiet },
    automargin: true,
    fixedrange: false,
  };
  const { xaxis, yaxis, ...rest } = changes;
  return {
    paper_bgcolor: "rgba(0,0,0,0)",
    plot_bgcolor: "rgba(0,0,0,0)",
    autosize: true,
    height: 430,
    dragmode: false,
    font: { family: "ui-sans-serif, system-ui, sans-serif", size: 12.5, color: ink },
    margin: { l: 56, r: 16, t: 30, b: 48 },
    legend: { orientation: "h", x: 0, y: 1.01, yanchor: "bottom", font: { color: ink } },
    hoverlabel: { bgcolor: colour("card"), bordercolor: line, font: { color: ink }, align: "left" },
    hovermode: "closest",
    ...rest,
    xaxis: { ...axis, ...xaxis },
    yaxis: { ...axis, ...yaxis },
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
    const both = (before, after) =>
      mine.flatMap((group) => [100 * group[before][0], 100 * group[after][0], null]);
    const error = (name, end, sign) =>
      mine.flatMap((group) => [0, sign * 100 * (group[name][end] - group[name][0]), 0]);
    const bars = (name) => ({
      type: "data",
      symmetric: false,
      array: error(name, 2, 1),
      arrayminus: error(name, 1, -1),
      thickness: 0.8,
      width: 0,
      visible: groups.length <= MOST_ERROR_BARS,
    });
    return {
      type: "scatter",
      mode: "lines+markers+text",
      name: plain(defense),
      textposition: "bottom center",
      textfont: { size: 11, color: colour("quiet") },
      texttemplate: mine.flatMap((group) => [
        "",
        groups.length <= 16 && group.success_before[0] - group.success_after[0] > 0.1
          ? plain(group.attack_label)
          : "",
        "",
      ]),
      x: both("success_before", "success_after"),
      y: both("clean_before", "clean_after"),
      error_x: bars("success_after"),
      error_y: bars("clean_after"),
      line: { color: defenseColour(defense), dash: defenseDash(defense), width: 1.6 },
      opacity: 0.9,
      marker: {
        color: defenseColour(defense),
        line: { width: 0 },
        angleref: "previous",
        standoff: 0,
        symbol: mine.flatMap((group) => ["circle", ranked(group) ? "arrow" : "x", "circle"]),
        size: mine.flatMap(() => [6, 14, 0]),
      },
      text: mine.flatMap((group) =>
        ["suspect", "defended", ""].map(
          (when) =>
            `<b>${plain(group.defense_label)}</b> against ${plain(group.attack_label)}<br>${plain(group.dataset)}, ${group.seeds} seeds, ${when}` +
            (group.oracle ? "<br>oracle: not ranked" : "") +
            (group.dead ? "<br>dead attack" : ""),
        ),
      ),
      hovertemplate: "%{text}<br>attack success %{x:.1f} %<br>clean accuracy %{y:.1f} %<extra></extra>",
    };
  });
  chartData.arrows = [
    [
      "dataset",
      "attack",
      "defense",
      "seeds",
      "success_before",
      "success_after",
      "clean_before",
      "clean_after",
    ],
    ...groups.map((g) => [
      g.dataset,
      g.attack_label,
      g.defense_label,
      g.seeds,
      g.success_before[0],
      g.success_after[0],
      g.clean_before[0],
      g.clean_after[0],
    ]),
  ];
  draw(place, traces, {
    xaxis: {
      title: { text: "attack success, %" },
      range: [Math.min(-2, ...groups.map((g) => 100 * g.success_after[0] - 2)), 103],
    },
    yaxis: { title: { text: "clean accuracy, %" } },
    showlegend: true,
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
  const lines = [
    ["run", "channels_pruned", "validation_accuracy", "clean_accuracy", "attack_success", "robust_accuracy"],
  ];
  const traces = chosen.flatMap((run, number) => {
    const curve = data.curves[run.curve];
    const [stop, total] = run.pruned;
    const x = curve.step.map((step) => (100 * step) / total);
    const at = curve.step.indexOf(stop);
    const tint = COLOURS[number % COLOURS.length];
    const label = `${run.dataset}, ${run.labels[0]}, ${run.labels[1]}, seed ${shown(run.seed)}`;
    curve.step.forEach((step, k) =>
      lines.push([run.name, step, curve.validation[k], curve.clean[k], curve.success[k], curve.robust[k]]),
    );
    const one = (name, title, dash, legend) =>
      curve[name].every((each) => each == null)
        ? null
        : {
            type: "scatter",
            mode: "lines+markers",
            name: plain(label),
            legendgroup: String(run.id),
            showlegend: legend,
            x,
            y: curve[name].map((each) => (each == null ? null : 100 * each)),
            line: { color: tint, width: 1.8, dash },
            marker: {
              color: colour("card"),
              line: { color: tint, width: 2 },
              size: x.map((_, k) => (k === at ? 11 : 0)),
              opacity: x.map((_, k) => (k === at ? 1 : 0)),
            },
            customdata: curve.step,
            hovertemplate: `${plain(label)}<br>%{customdata} of ${total} channels<br>${title} %{y:.1f} %<extra></extra>`,
          };
    return [
      one("clean", "clean accuracy", "solid", true),
      one("success", "attack success", "dash", false),
    ].filter(Boolean);
  });
  chartData.curves = lines;
  draw(place, traces, {
    xaxis: { title: { text: "channels pruned, %" }, range: [-1, 101] },
    yaxis: { title: { text: "test images, %" }, range: [-3, 103] },
    showlegend: true,
  });
}
