// Defenses against attacks.

/** Attack success that each defense leaves, against each attack: a table for each data set. */
function drawMatrix(runs) {
  const groups = filteredGroups(runs);
  const tables = unique(groups.map((group) => group.dataset)).map((dataset) => {
    const found = groups.filter((group) => group.dataset === dataset);
    const attacks = unique(found.map((group) => group.attack_label)).sort(inOrder("attack"));
    const defenses = unique(found.map((group) => group.defense_label)).sort(inOrder("defense"));
    const cell = (defense, attack) => {
      const group = found.find((each) => each.defense_label === defense && each.attack_label === attack);
      if (!group) return h("td", { class: "none" }, "");
      const left = value(group.success_after);
      return h(
        "td",
        {
          class: left == null || !ranked(group) ? "off" : "heat",
          style: `--v: ${Math.max(0, Math.min(1, left ?? 0))}`,
        },
        h("b", {}, percent(left)),
        h("small", {}, points(value(group.price))),
        badges(group),
      );
    };
    return h(
      "div",
      { class: "scroll", tabindex: "0", role: "region", "aria-label": `Defense by attack on ${dataset}` },
      h(
        "table",
        { class: "matrix" },
        h("caption", {}, dataset),
        h(
          "thead",
          {},
          h(
            "tr",
            {},
            h("td"),
            attacks.map((name) => h("th", { scope: "col" }, name)),
          ),
        ),
        h(
          "tbody",
          {},
          defenses.map((defense) =>
            h(
              "tr",
              {},
              h("th", { scope: "row" }, defense),
              attacks.map((attack) => cell(defense, attack)),
            ),
          ),
        ),
      ),
    );
  });
  $("#matrix").replaceChildren(...tables);
}
