// What happens when: filters, sorting, picking, themes, and the order in which things are drawn.

function fillFilters() {
  for (const name of FILTERS.slice(1)) {
    const values = unique(data.runs.map((run) => run[name])).sort(inOrder(name));
    $(`#filters [name=${name}]`).replaceChildren(
      h("option", { value: "" }, "all"),
      ...values.map((each) => h("option", { value: each }, each)),
    );
  }
  for (const name of FILTERS) if (state[name]) $(`#filters [name=${name}]`).value = state[name];
}

let charts = false; // whether plotly has run

function drawShown() {
  const runs = filteredRuns();
  const group = state.group == null ? null : data.groups.find((each) => each.id === state.group);
  $("#count").replaceChildren(
    `${runs.length} of ${data.runs.length} runs`,
    group
      ? h(
          "button",
          { type: "button", class: "plain", onclick: () => change({ group: null, view: "groups" }) },
          `only ${group.defense_label} against ${group.attack_label} ✕`,
        )
      : "",
  );
  $$("[data-view]").forEach((button) =>
    button.setAttribute("aria-pressed", String(button.dataset.view === state.view)),
  );
  drawTable(runs);
  drawMatrix(runs);
  drawTray();
  if (charts) [drawArrows, drawCurves, drawParallel, drawInsideChoice].forEach((drawing) => drawing(runs));
}

function change(changes) {
  Object.assign(state, changes);
  saveState();
  drawShown();
}

function drawTray() {
  const runs = [...state.picked].map((id) => data.runs[id]);
  const tray = $("#tray");
  tray.hidden = !runs.length;
  document.body.classList.toggle("picking", runs.length > 0);
  tray.replaceChildren(
    h("span", {}, `${runs.length} picked`),
    h(
      "button",
      {
        type: "button",
        id: "compare",
        disabled: runs.length !== 2,
        title: "Pick two runs",
        onclick: () => openDifference(...runs),
      },
      "Difference of two",
    ),
    h(
      "button",
      { type: "button", onclick: () => $("#curves-section").scrollIntoView({ behavior: "smooth" }) },
      "Curves",
    ),
    h("button", { type: "button", class: "plain", onclick: () => change({ picked: new Set() }) }, "Clear"),
  );
}

function pick(id, on) {
  state.picked[on ? "add" : "delete"](id);
  saveState();
  drawTray();
  const runs = filteredRuns();
  if (charts) {
    drawCurves(runs);
    drawInsideChoice(runs);
  }
}

function sortBy(key) {
  const again = state.sort === key;
  change({ sort: again && state.down ? "" : key, down: again && !state.down });
  $(`[data-sort="${key}"]`)?.focus();
}

function listen() {
  const filters = $("#filters");
  let wait;
  filters.addEventListener("input", () => {
    clearTimeout(wait);
    wait = setTimeout(() => change(Object.fromEntries(new FormData(filters))), 120);
  });
  filters.addEventListener("submit", (event) => event.preventDefault());
  filters.addEventListener("reset", () =>
    change({ ...Object.fromEntries(FILTERS.map((name) => [name, ""])), group: null, sort: "", down: false }),
  );
  $("#table").addEventListener("click", ({ target }) => {
    const { sort, group, open } = target.closest("button")?.dataset ?? {};
    if (sort) sortBy(sort);
    if (group) change({ group: Number(group), view: "runs" });
    if (open) openRun(Number(open));
  });
  $("#table").addEventListener("change", ({ target }) => pick(Number(target.dataset.pick), target.checked));
  $$("[data-view]").forEach((button) =>
    button.addEventListener("click", () => change({ view: button.dataset.view, group: null })),
  );
  $("#more").addEventListener("click", () => change({ rows: Infinity }));
  $("#csv").addEventListener("click", () => download(tableCsv(filteredRuns()), "runs.csv"));
  $$("[data-copy]").forEach((button) =>
    button.addEventListener("click", () => {
      const lines = chartData[button.dataset.copy];
      if (lines) copy(csv(lines, "\t"), "Data");
      else say("Nothing is drawn here");
    }),
  );
  $("#inside").addEventListener("change", ({ target }) => {
    state.inside = Number(target.value);
    drawNetwork(data.runs[state.inside]);
  });
  $("#theme").addEventListener("click", () => setTheme(isDark() ? "light" : "dark"));
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", drawShown);
  $("#dialog").addEventListener("click", ({ target }) => target.id === "dialog" && target.close());
}

const isDark = () =>
  document.documentElement.dataset.theme
    ? document.documentElement.dataset.theme === "dark"
    : matchMedia("(prefers-color-scheme: dark)").matches;

function setTheme(name) {
  document.documentElement.dataset.theme = name;
  try {
    localStorage.setItem("finepruning-theme", name);
  } catch {
    /* some browsers keep nothing for a file */
  }
  drawShown();
}

/** Run plotly after the first paint: it is large, and the verdicts and the table need none of it. */
function startCharts() {
  const script = h("script", { nonce: $("script[nonce]").nonce }, $("#plotly").textContent);
  document.head.append(script);
  charts = true;
  drawShown();
  document.body.dataset.ready = "yes";
}

function keepReloading(seconds) {
  setTimeout(
    () =>
      $("#dialog").open || document.activeElement?.matches("input[type=search]")
        ? keepReloading(seconds)
        : location.reload(),
    1000 * seconds,
  );
}

try {
  if (localStorage.getItem("finepruning-theme"))
    document.documentElement.dataset.theme = localStorage.getItem("finepruning-theme");
} catch {
  /* as above */
}
loadState();
fillFilters();
listen();
drawShown();
addEventListener("DOMContentLoaded", () => requestAnimationFrame(() => setTimeout(startCharts)));
if (data.watch) keepReloading(data.watch);
