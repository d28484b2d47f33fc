// The data, and small things that everything else uses. Text from records goes into text nodes only.
const data = JSON.parse(document.getElementById("data").textContent);
const $ = (selector, root = document) => root.querySelector(selector);
const $$ = (selector, root = document) => [...root.querySelectorAll(selector)];

/** Make an element: h("td", {class: "number"}, "3", otherElement). Strings become text, never markup. */
function h(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [key, value] of Object.entries(attributes)) {
    if (key.startsWith("on")) element.addEventListener(key.slice(2), value);
    else if (value === true) element.setAttribute(key, "");
    else if (value !== false && value != null) element.setAttribute(key, value);
  }
  element.append(...children.flat().filter((child) => child != null && child !== false));
  return element;
}

const percent = (value) => (value == null ? "–" : (100 * value).toFixed(1).replace(/^-(0\.0)$/, "$1"));
const interval = (low, high, as = percent) => `[${as(low)}, ${as(high)}]`;
const points = (value) => percent(value).replace("-", "−");
const unique = (values) => [...new Set(values)];
const shown = (value) =>
  value === undefined ? "" : typeof value === "string" ? value : JSON.stringify(value);
const compare = (a, b) =>
  typeof a === "number" && typeof b === "number"
    ? a - b
    : String(a).localeCompare(String(b), "en", { numeric: true });
const places = Object.fromEntries(
  Object.entries(data.order).map(([kind, names]) => [kind, new Map(names.map((name, place) => [name, place]))]),
);

/** What sorts the values of a kind: attacks and defenses as the page orders them, others by themselves. */
const inOrder = (kind) => (a, b) =>
  compare(places[kind]?.get(a) ?? Infinity, places[kind]?.get(b) ?? Infinity) || compare(a, b);

/** Plotly reads a little HTML in its texts; names are text. */
const plain = (text) => String(text).replaceAll("&", "&amp;").replaceAll("<", "&lt;").replaceAll(">", "&gt;");

// Okabe and Ito's colours, safe for colour-blind people.
const COLOURS = ["#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#999999"];
const DASHES = ["solid", "dot", "dashdot", "longdash"]; // of the seven next, where the colours are used up
const DEFENSES = unique(data.groups.map((group) => group.defense)).filter((name) => name !== "none");
const defenseColour = (name) =>
  name === "none" ? "#888888" : COLOURS[DEFENSES.indexOf(name) % COLOURS.length];
const defenseDash = (name) =>
  DASHES[Math.max(0, Math.floor(DEFENSES.indexOf(name) / COLOURS.length)) % DASHES.length];

/** Resolve a custom property of the style sheet, in the light or dark scheme that holds now. */
function colour(name) {
  const probe = h("span", { style: `color: var(--${name})` });
  document.body.append(probe);
  const found = getComputedStyle(probe).color;
  probe.remove();
  return found;
}

function say(text) {
  const place = $("#said");
  place.textContent = text;
  clearTimeout(say.timer);
  say.timer = setTimeout(() => (place.textContent = ""), 2500);
}

async function copy(text, what) {
  try {
    await navigator.clipboard.writeText(text);
  } catch {
    const area = h("textarea", { style: "position: fixed; opacity: 0" });
    area.value = text;
    (($("#dialog").open && $("#dialog")) || document.body).append(area);
    area.select();
    document.execCommand("copy");
    area.remove();
  }
  say(`${what} copied`);
}

/** One CSV field; a leading =, +, - or @ of a text is not left for a spreadsheet to run. */
function csvField(value) {
  if (value == null) return "";
  if (typeof value === "number") return String(value);
  const text = /^[=+\-@\t\r]/.test(value) ? `'${value}` : String(value);
  return /[",\n]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text;
}
const csv = (lines, separator = ",") =>
  lines.map((line) => line.map(csvField).join(separator)).join("\n") + "\n";

function download(text, name) {
  const link = h("a", { href: URL.createObjectURL(new Blob([text], { type: "text/csv" })), download: name });
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 1000);
}

const badge = (kind, text, title) => h("span", { class: `badge ${kind}`, title }, text);
function badges(item) {
  return [
    item.status && item.status !== "finished" && badge(item.status, item.status, item.error || ""),
    item.oracle && badge("oracle", "oracle", "used what no defender can see: not ranked"),
    item.dead &&
      badge("dead", "dead attack", "succeeds on fewer than half of the images undefended: not ranked"),
    item.untargeted && badge("untargeted", "untargeted", "attack success is the share of accuracy lost"),
    !item.dead &&
      item.dead_seeds > 0 &&
      badge("dead", `${item.dead_seeds} dead`, "dead seeds are not averaged"),
    item.audit &&
      badge(
        item.audit.evidence ? "oracle" : "",
        item.audit.evidence ? "evidence remains" : "no evidence",
        `audit: ${item.audit.verdict}`,
      ),
    item.stress && badge("stress", "stress", "tested with triggered images after the repair, by the referee"),
    item.missing > 0 && badge("failed", `${item.missing} missing`, "failed or unfinished runs"),
  ].filter(Boolean);
}

/** A table in a box that scrolls: titles, then lines whose first cell heads them. A cell is text, elements, or a whole td. */
function grid(titles, lines, about = { class: "scores" }) {
  const cell = (each) => (each instanceof HTMLTableCellElement ? each : h("td", {}, each));
  const title = (each) => (each ? h("th", { scope: "col" }, each) : h("td"));
  const line = ([first, ...cells]) => h("tr", {}, h("th", { scope: "row" }, first), cells.map(cell));
  return h(
    "div",
    { class: "scroll" },
    h("table", about, h("thead", {}, h("tr", {}, titles.map(title))), h("tbody", {}, lines.map(line))),
  );
}

// What is looked at: kept in the address, so that a reload or a link shows the same.
const FILTERS = ["query", "dataset", "attack", "defense", "status"];
const state = {
  view: "groups",
  sort: "",
  down: false,
  group: null,
  picked: new Set(),
  inside: null,
  rows: 200,
};

function saveState() {
  const kept = new URLSearchParams();
  for (const name of [...FILTERS, "view", "sort"]) if (state[name]) kept.set(name, state[name]);
  if (state.down) kept.set("down", "1");
  if (state.picked.size) kept.set("picked", [...state.picked].map((id) => data.runs[id].folder).join("|"));
  history.replaceState(null, "", kept.size ? `#${kept}` : location.pathname + location.search);
}

function loadState() {
  const kept = new URLSearchParams(location.hash.slice(1));
  for (const name of [...FILTERS, "view", "sort"]) if (kept.has(name)) state[name] = kept.get(name);
  state.down = kept.has("down");
  const folders = new Set((kept.get("picked") || "").split("|"));
  state.picked = new Set(data.runs.filter((run) => folders.has(run.folder)).map((run) => run.id));
}
