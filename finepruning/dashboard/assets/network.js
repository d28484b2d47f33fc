// Inside one network: channel activations, first filters, example images, confusion.

const hasInside = (run) =>
  run.activations.length || run.examples != null || run.filters != null || Object.keys(run.confusion).length;

function drawInsideChoice(runs) {
  const choice = $("#inside");
  const found = runs.filter(hasInside);
  const wanted = [...state.picked].map((id) => data.runs[id]).find(hasInside) || data.runs[state.inside];
  const current = found.includes(wanted)
    ? wanted
    : found.find((run) => run.activations.length && run.pruned) || found[0];
  choice.replaceChildren(
    ...found.slice(0, 500).map((run) => h("option", { value: run.id, selected: run === current }, run.name)),
  );
  choice.closest("label").hidden = !found.length;
  drawNetwork(current);
}

function drawNetwork(run) {
  const place = $("#network");
  $$(".chart", place).forEach((chart) => Plotly.purge(chart));
  if (!run) {
    place.replaceChildren(
      h("p", { class: "none" }, "These records hold no activations, filters or example images."),
    );
    return;
  }
  const figure = (title, note, inner, lines) =>
    h(
      "figure",
      {},
      h("figcaption", {}, h("b", {}, title), " ", note, " ", lines && copyButton(lines)),
      inner,
    );
  const image = (number, title, note) =>
    number != null && figure(title, note, h("img", { src: data.pictures[number], alt: `${title}: ${note}` }));
  const bars = run.activations.map((layer) => ({ layer, chart: h("div", { class: "chart" }) }));
  const maps = Object.entries(run.confusion).map(([network, counts]) => ({
    network,
    counts,
    chart: h("div", { class: "chart" }),
  }));
  place.replaceChildren(
    ...bars.map(({ layer, chart }) =>
      figure(
        `Activations of ${layer.layer}`,
        "mean of each channel on clean and on triggered test images, dormant first; crosses are pruned.",
        chart,
        () => channelLines(layer),
      ),
    ),
    h(
      "div",
      { class: "pair" },
      ...[
        image(run.examples, "Test images", "clean, triggered, difference."),
        image(run.filters, "First layer", "its filters."),
      ].filter(Boolean),
    ),
    h(
      "div",
      { class: "pair" },
      ...maps.map(({ network, counts, chart }) =>
        figure(`Confusion, ${network}`, "true class down, answer across.", chart, () => counts),
      ),
    ),
  );
  bars.forEach(({ layer, chart }) => drawChannels(chart, layer));
  maps.forEach(({ counts, chart }) => drawConfusion(chart, counts));
}

const copyButton = (lines) =>
  h(
    "button",
    { type: "button", class: "link", onclick: () => copy(csv(lines(), "\t"), "Data") },
    "Copy data",
  );

function channelLines({ means, pruned, layer }) {
  const { clean, triggered, number } = data.channels[means];
  const lines = number.map((name, k) => [layer, name, clean[k], triggered[k], pruned.includes(k) ? 1 : 0]);
  return [["layer", "channel", "clean", "triggered", "pruned"], ...lines];
}

function drawChannels(place, { means, pruned, layer }) {
  const { clean, triggered, number } = data.channels[means];
  const gone = new Set(pruned);
  const order = [...clean.keys()].sort((a, b) => clean[a] - clean[b]);
  const x = order.map((_, k) => k);
  const label = order.map((channel) => `channel ${number[channel]}${gone.has(channel) ? ", pruned" : ""}`);
  const hover = "%{text}<br>%{y:.4g}";
  const dropped = x.filter((k) => gone.has(order[k]));
  draw(
    place,
    [
      {
        type: "bar",
        name: "clean",
        x,
        y: order.map((c) => clean[c]),
        text: label,
        textposition: "none",
        hovertemplate: `${hover}<extra>clean</extra>`,
        marker: { color: order.map((c) => (gone.has(c) ? "#0072B266" : "#0072B2")) },
      },
      {
        type: "scatter",
        mode: "markers",
        name: "triggered",
        x,
        y: order.map((c) => triggered[c]),
        text: label,
        hovertemplate: `${hover}<extra>triggered</extra>`,
        marker: { color: "#D55E00", size: 7, symbol: "diamond" },
      },
      {
        type: "scatter",
        mode: "markers",
        name: "pruned",
        x: dropped,
        y: dropped.map(() => 0),
        hoverinfo: "skip",
        marker: { color: colour("ink"), size: 6, symbol: "x-thin-open", line: { width: 1.4 } },
        cliponaxis: false,
      },
    ],
    {
      height: 320,
      bargap: 0.25,
      xaxis: { title: { text: `channels of ${plain(layer)}, dormant first` }, showgrid: false },
      yaxis: { title: { text: "mean activation" } },
    },
  );
}

function drawConfusion(place, counts) {
  const totals = counts.map((line) => line.reduce((sum, each) => sum + each, 0) || 1);
  draw(
    place,
    [
      {
        type: "heatmap",
        z: counts.map((line, k) => line.map((each) => each / totals[k])),
        customdata: counts,
        colorscale: [
          [0, colour("card")],
          [1, "#0072B2"],
        ],
        showscale: false,
        xgap: 1,
        ygap: 1,
        hovertemplate: "true %{y}, answered %{x}: %{customdata}<extra></extra>",
      },
    ],
    {
      height: 340,
      xaxis: { title: { text: "answer" }, showgrid: false, dtick: counts.length > 12 ? undefined : 1 },
      yaxis: {
        title: { text: "true class" },
        autorange: "reversed",
        showgrid: false,
        dtick: counts.length > 12 ? undefined : 1,
      },
    },
  );
}
