// The table: runs, or groups of runs over their seeds; filtered, sorted, as CSV.

const value = (estimate) => (estimate ? estimate[0] : null);
const pair = (estimate) => estimate && [estimate[0], estimate[1], estimate[2]];
const single = (run, name, place) =>
  run[name][place] == null ? null : [run[name][place], ...(run.intervals[name][place] || [])];

// A column: key, title, what stands there, whether it is a score (unranked rows go last when sorted by it).
const SCORE_COLUMNS = [
  ["clean_before", "clean accuracy", "suspect", (g) => pair(g.clean_before), (r) => single(r, "clean", 0)],
  ["clean_after", "clean accuracy", "defended", (g) => pair(g.clean_after), (r) => single(r, "clean", 1)],
  [
    "price",
    "price",
    "points",
    (g) => g.price && (g.seeds > 1 ? pair(g.price) : [g.price[0]]),
    (r) => (r.clean[0] == null || r.clean[1] == null ? null : [r.clean[0] - r.clean[1]]),
  ],
  [
    "success_before",
    "attack success",
    "suspect",
    (g) => pair(g.success_before),
    (r) => single(r, "success", 0),
  ],
  [
    "success_after",
    "attack success",
    "defended",
    (g) => pair(g.success_after),
    (r) => single(r, "success", 1),
  ],
  ["robust_after", "robust accuracy", "defended", (g) => pair(g.robust_after), (r) => single(r, "robust", 1)],
].map(([key, title, sub, ofGroup, ofRun]) => ({
  key,
  title,
  sub,
  score: true,
  groups: ofGroup,
  runs: ofRun,
}));

const text = (key, title, groups, runs) => ({ key, title, groups, runs });
const prunedShare = (runs) => {
  const found = runs.filter((run) => run.pruned);
  return found.length ? found.map((run) => run.pruned.join("/")) : [];
};
const members = Map.groupBy(data.runs, (run) => run.group);

const COLUMNS = {
  groups: [
    text("dataset", "dataset", (g) => g.dataset),
    text("attack", "attack", (g) => g.attack_label),
    text("defense", "defense", (g) => g.defense_label),
    ...(unique(data.groups.map((g) => g.model)).length > 1 ? [text("model", "model", (g) => g.model)] : []),
    text("seeds", "seeds", (g) => g.seeds),
    ...SCORE_COLUMNS,
    text("pruned", "pruned", (g) =>
      unique(prunedShare(members.get(g.id)))
        .slice(0, 3)
        .join(" "),
    ),
  ],
  runs: [
    text("dataset", "dataset", null, (r) => r.dataset),
    text("attack", "attack", null, (r) => r.labels[0]),
    text("defense", "defense", null, (r) => r.labels[1]),
    text("seed", "seed", null, (r) => r.seed),
    ...SCORE_COLUMNS,
    text("pruned", "pruned", null, (r) => prunedShare([r]).join("")),
    text("seconds", "seconds", null, (r) => (r.seconds.run == null ? null : Math.round(r.seconds.run))),
    text("name", "name", null, (r) => r.name),
  ],
};

const haystacks = data.runs.map((run) =>
  [
    run.name,
    run.folder,
    run.dataset,
    run.model,
    ...run.labels,
    run.status,
    run.commit,
    run.error || "",
    run.oracle ? "oracle" : "",
    run.dead ? "dead" : "",
    `seed ${run.seed}`,
  ]
    .join(" ")
    .toLowerCase(),
);

function filteredRuns() {
  const words = (state.query || "").toLowerCase().split(/\s+/).filter(Boolean);
  return data.runs.filter(
    (run) =>
      ["dataset", "attack", "defense", "status"].every((key) => !state[key] || run[key] === state[key]) &&
      (state.group == null || run.group === state.group) &&
      words.every((word) => haystacks[run.id].includes(word)),
  );
}

const filteredGroups = (runs) => {
  const kept = new Set(runs.map((run) => run.group));
  return data.groups.filter((group) => kept.has(group.id));
};

const ranked = (item) =>
  !item.dead && !item.oracle && (item.status ?? "finished") === "finished" && item.seeds !== 0;

function sorted(items) {
  const column = COLUMNS[state.view].find((each) => each.key === state.sort);
  if (!column) return items;
  const of = (item) => (column.score ? value(column[state.view](item)) : column[state.view](item));
  const sign = state.down ? -1 : 1;
  return [...items].sort((a, b) => {
    if (column.score && ranked(a) !== ranked(b)) return ranked(a) ? -1 : 1;
    const [x, y] = [of(a), of(b)];
    if (x == null || y == null) return (x == null) - (y == null);
    return sign * inOrder(column.key)(x, y);
  });
}

function tableItems(runs) {
  return sorted(state.view === "groups" ? filteredGroups(runs) : runs);
}

function headCell(column) {
  const mine = state.sort === column.key;
  const button = h(
    "button",
    { type: "button", "data-sort": column.key },
    column.title,
    column.sub ? h("small", {}, column.sub) : null,
    h("span", { class: "order", "aria-hidden": "true" }, mine ? (state.down ? "↓" : "↑") : ""),
  );
  return h(
    "th",
    {
      scope: "col",
      class: column.score ? "number" : null,
      "aria-sort": mine ? (state.down ? "descending" : "ascending") : "none",
    },
    button,
  );
}

function scoreCell(column, item) {
  const found = column[state.view](item);
  if (!found) return h("td", { class: "number none" }, "–");
  const as = column.key === "price" ? points : percent;
  const level = column.key === "success_after" && ranked(item);
  return h(
    "td",
    {
      class: level ? "number level" : "number",
      style: level ? `--v: ${Math.max(0, Math.min(1, found[0]))}` : null,
    },
    h("b", {}, as(found[0])),
    found[1] == null ? null : h("small", {}, " ", interval(found[1], found[2], as)),
  );
}

function textCell(column, item) {
  const found = column[state.view](item);
  if (column.key === "defense") {
    return h(
      "th",
      { scope: "row" },
      h("i", { class: "key", style: `background: ${defenseColour(item.defense)}` }),
      found,
      " ",
      badges(item),
    );
  }
  if (column.key === "seeds" && members.get(item.id).length) {
    return h(
      "td",
      { class: "number" },
      h(
        "button",
        {
          type: "button",
          class: "link",
          "data-group": item.id,
          "aria-label": `Show the runs of ${item.defense_label} against ${item.attack_label}`,
        },
        String(found),
      ),
    );
  }
  if (column.key === "name")
    return h("td", {}, h("button", { type: "button", class: "link", "data-open": item.id }, found));
  const numeric = typeof found === "number";
  return h("td", { class: numeric ? "number" : column.key }, found == null ? "–" : String(found));
}

function drawTable(runs) {
  const columns = COLUMNS[state.view];
  const items = tableItems(runs);
  const rows = items.slice(0, state.rows).map((item) => {
    const pick =
      state.view === "runs" &&
      h(
        "td",
        { class: "pick" },
        h("input", {
          type: "checkbox",
          "data-pick": item.id,
          checked: state.picked.has(item.id),
          "aria-label": `Pick ${item.name}`,
        }),
      );
    return h(
      "tr",
      { class: ranked(item) ? null : "unranked" },
      pick,
      columns.map((column) => (column.score ? scoreCell(column, item) : textCell(column, item))),
    );
  });
  const pickHead =
    state.view === "runs" && h("th", { class: "pick" }, h("span", { class: "hidden" }, "pick"));
  $("#table").replaceChildren(
    h("caption", { class: "hidden" }, "Percent of test images, 95 % intervals"),
    h("thead", {}, h("tr", {}, pickHead, columns.map(headCell))),
    h(
      "tbody",
      {},
      rows.length
        ? rows
        : h("tr", {}, h("td", { colspan: columns.length + 1, class: "none" }, "No run fits these filters.")),
    ),
  );
  const more = $("#more");
  more.hidden = items.length <= state.rows;
  more.textContent = `Show all ${items.length} rows`;
}

/** The rows that the table shows, all of them, full precision: one column for each end of an interval. */
function tableCsv(runs) {
  const columns = COLUMNS[state.view];
  const names = columns.flatMap(({ key, score }) =>
    score ? [key, `${key}_low`, `${key}_high`] : [key],
  );
  const lines = tableItems(runs).map((item) => [
    ...columns.flatMap((column) => {
      const found = column[state.view](item);
      if (!column.score) return [found];
      return [0, 1, 2].map((place) => (found ? found[place] : null));
    }),
    state.view === "groups" ? "" : item.status,
    item.dead ? 1 : 0,
    item.oracle ? 1 : 0,
  ]);
  return csv([[...names, "status", "dead", "oracle"], ...lines]);
}
