// One run in full, and the difference of two.

const SCORE_NAMES = { clean: "clean accuracy", success: "attack success", robust: "robust accuracy" };
const whole = (run) => ({ ...data.common, ...run.config });
const environment = (run) =>
  run.environment == null ? { versions: {}, hardware: {} } : data.environments[run.environment];

function openDialog(title, ...content) {
  const dialog = $("#dialog");
  dialog.replaceChildren(
    h(
      "div",
      { class: "head" },
      h("h2", { id: "dialog-title" }, title),
      h(
        "button",
        { type: "button", class: "plain", onclick: () => dialog.close(), "aria-label": "Close" },
        "✕",
      ),
    ),
    ...content.filter(Boolean),
  );
  if (!dialog.open) dialog.showModal();
  dialog.scrollTop = 0;
}

const factTable = (entries) =>
  h(
    "table",
    { class: "facts" },
    h(
      "tbody",
      {},
      entries.map(([key, each]) => h("tr", {}, h("th", { scope: "row" }, key), h("td", {}, shown(each)))),
    ),
  );

const folded = (title, inner, open = false) => h("details", { open }, h("summary", {}, title), inner);

function scoreTable(run) {
  const cell = (name, place) => {
    const counts = run.counts[name][place];
    const ends = run.intervals[name][place];
    return [
      h("b", {}, percent(run[name][place])),
      ends && h("small", {}, " ", interval(...ends)),
      counts && h("small", {}, ` ${counts[0]} of ${counts[1]}`),
    ];
  };
  const others = Object.entries(run.others);
  return grid(
    ["", "suspect", "defended", ...others.map(([name]) => name)],
    Object.entries(SCORE_NAMES).map(([name, title]) => [
      title,
      cell(name, 0),
      cell(name, 1),
      ...others.map(([, scores]) => h("b", {}, percent(scores[name]))),
    ]),
  );
}

function layersPart(layers, limit) {
  return h(
    "details",
    { class: "layers", open: true },
    h("summary", {}, `Each layer pruned alone, by at most ${percent(limit)} % of validation accuracy`),
    h("p", { class: "quiet" }, "The referee's analysis, with triggered images: no defense sees it."),
    grid(
      ["layer", "channels prunable", "validation accuracy", "clean accuracy", "attack success"],
      layers.map(({ layer, prunable, channels, validation, clean, success }) => [
        layer,
        `${prunable} of ${channels}`,
        ...[validation, clean, success].map(percent),
      ]),
    ),
  );
}

function openRun(id) {
  const run = data.runs[id];
  const { versions, hardware } = environment(run);
  const times = Object.entries(run.seconds).filter(([, each]) => each != null);
  openDialog(
    run.name,
    h(
      "p",
      { class: "lead" },
      `${run.dataset}, ${run.model}, ${run.labels[0]}, ${run.labels[1]}, seed ${shown(run.seed)} `,
      badges(run),
    ),
    run.error && h("p", { class: "error" }, run.error),
    run.status === "finished" && scoreTable(run),
    run.pruned && h("p", {}, `${run.pruned.join(" of ")} channels pruned.`),
    run.layers && layersPart(run.layers, whole(run)["analysis.max_drop"]),
    ...repairParts(run),
    run.command &&
      h(
        "div",
        { class: "command" },
        h("code", {}, run.command),
        h("button", { type: "button", class: "plain", onclick: () => copy(run.command, "Command") }, "Copy"),
      ),
    h(
      "p",
      { class: "quiet" },
      run.commit ? `Commit ${run.commit}. ` : "",
      times.map(([name, each]) => `${name} ${each.toFixed(1)} s`).join(", "),
      run.memory_mb ? `; peak memory ${Math.round(run.memory_mb)} MiB` : "",
      `. Folder ${run.folder}.`,
    ),
    folded("Configuration", factTable(Object.entries(whole(run)).sort(([a], [b]) => compare(a, b)))),
    folded("Versions and hardware", factTable([...Object.entries(versions), ...Object.entries(hardware)])),
    run.log && folded("End of the log", h("pre", { tabindex: "0" }, run.log), run.status !== "finished"),
  );
}

/** What differs between two runs: configuration, versions, results. Equal lines are left out. */
function differences(a, b) {
  const facts = (run) => ({
    ...whole(run),
    ...environment(run).versions,
    ...environment(run).hardware,
    commit: run.commit,
    ...Object.fromEntries(
      ["dataset", "model", "attack", "defense", "status", "dead"].map((name) => [name, run[name]]),
    ),
    ...Object.fromEntries(
      ["suspect", "defended"].flatMap((network, place) =>
        Object.entries(SCORE_NAMES).map(([name, title]) => [
          `result: ${title} of the ${network} network, %`,
          percent(run[name][place]),
        ]),
      ),
    ),
    "result: channels pruned": run.pruned ? run.pruned.join(" of ") : "–",
  });
  const [left, right] = [facts(a), facts(b)];
  return unique([...Object.keys(left), ...Object.keys(right)])
    .filter((key) => key !== "name" && shown(left[key]) !== shown(right[key]))
    .map((key) => [key, left[key], right[key]]);
}

function openDifference(a, b) {
  const lines = differences(a, b);
  const missing = (each) => (each === undefined ? "not set" : shown(each));
  openDialog(
    "Two runs compared",
    grid(
      ["", a.name, b.name],
      lines.map(([key, left, right]) => [
        key,
        ...[left, right].map((each) => h("td", { class: each === undefined ? "none" : null }, missing(each))),
      ]),
      { class: "facts", id: "difference" },
    ),
    h("p", { class: "quiet" }, `${lines.length} lines differ; all others are equal.`),
  );
}
