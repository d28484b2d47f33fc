// What an inspection found, the rungs of a repair, its audit, and the referee's stress tests of one run.

const norm = (value) => (value == null ? "not found" : value.toFixed(2));
const bullets = (texts) =>
  texts.length > 0 &&
  h(
    "ul",
    {},
    texts.map((text) => h("li", {}, text)),
  );

function inspectionPart({ verdict, reasons, remarks, families }) {
  const images = (row, family) =>
    row.pictures.map((number, place) =>
      h("img", {
        class: "trigger",
        src: data.pictures[number],
        alt: `${place ? "opacity of the " : ""}${family} trigger to ${row.name}`,
      }),
    );
  return h(
    "details",
    { class: "inspection", open: true },
    h("summary", {}, `Inspection of the suspect: ${verdict}`),
    bullets([...reasons, ...remarks]),
    families.map(({ family, head, ratio, median }) => [
      h(
        "p",
        { class: "quiet" },
        `Smallest triggers, ${family}: runner-up over smallest ${norm(ratio)}, median norm ${norm(median)}.`,
      ),
      grid(
        ["class", "norm", "success, %", "trigger"],
        head.map((row) => [row.name, norm(row.norm), percent(row.success), images(row, family)]),
      ),
    ]).flat(),
  );
}

function ladderPart({ rows, max_drop, reason, scored }) {
  const head = ["rung", "loss, points", "", "audit"];
  return h(
    "details",
    { class: "ladder", open: true },
    h("summary", {}, `Rungs: at most ${percent(max_drop)} points of validation accuracy`),
    grid(
      scored ? [...head, "clean accuracy*", "attack success*"] : head,
      rows.map(({ options, loss, note, audit, clean, success }) => [
        options,
        `${percent(loss[0])} ${interval(loss[1], loss[2])}`,
        note,
        audit || "–",
        ...(scored ? [percent(clean), percent(success)] : []),
      ]),
    ),
    scored && h("p", { class: "quiet" }, "* the referee's, on test images, when the defense had ended."),
    reason && h("p", {}, reason),
  );
}

function auditPart({ verdict, reasons, norms }) {
  return h(
    "details",
    { class: "audit", open: true },
    h("summary", {}, `Audit: ${verdict}`),
    bullets(reasons),
    grid(
      ["class", "family", "norm in the suspect", "in the repaired network"],
      norms.map(({ name, family, suspect, repaired }) => [name, family, norm(suspect), norm(repaired)]),
    ),
  );
}

function stressPart(rows) {
  const names = { before: "as it is", retuned: "retuned", reactivated: "with a perturbation" };
  return h(
    "details",
    { class: "stress", open: true },
    h("summary", {}, "Stress: does the backdoor come back?"),
    h("p", { class: "quiet" }, "The referee's analysis, with triggered images: no defense sees it."),
    grid(
      ["network", "", "clean accuracy", "attack success"],
      rows.map(({ network, test, clean, success, ends }) => [
        network,
        names[test] || test,
        percent(clean),
        percent(success) + (ends.length ? ` ${interval(ends[0], ends[1])}` : ""),
      ]),
    ),
  );
}

const repairParts = (run) => [
  run.inspection && inspectionPart(run.inspection),
  run.ladder && ladderPart(run.ladder),
  run.audit && auditPart(run.audit),
  run.stress && run.stress.length > 0 && stressPart(run.stress),
];
