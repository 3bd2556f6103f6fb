// Sorts and filters the tables, switches curves on and off, enlarges figures, adds curves to them, browses samples, and
// switches the theme.
// The page is whole without it: everything that it adds is a `.tool` or an attribute, and texts are only moved.
{
  const all = (selector, where = document) => [...where.querySelectorAll(selector)];

  function make(tag, attributes = {}, ...children) {
    const element = document.createElement(tag);
    for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
    element.append(...children);
    return element;
  }

  function button(label, onClick) {
    const made = make("button", { type: "button", class: "tool" }, label);
    made.addEventListener("click", onClick);
    return made;
  }

  // Storage is refused to pages of files in some browsers; the page then starts anew each time.
  function remembered(storage, key) {
    try { return window[storage].getItem(key); } catch { return null; }
  }
  function remember(storage, key, value) {
    try { window[storage].setItem(key, value); } catch { /* not remembered */ }
  }

  // Theme: the system's, or the reader's choice.
  const root = document.documentElement, systemDark = matchMedia("(prefers-color-scheme: dark)");
  const isDark = () => (root.dataset.theme ? root.dataset.theme === "dark" : systemDark.matches);
  const themeButton = button("", () => {
    root.dataset.theme = isDark() ? "light" : "dark";
    remember("localStorage", "vfm-theme", root.dataset.theme);
    nameTheme();
  });
  const nameTheme = () => { themeButton.textContent = isDark() ? "Light" : "Dark"; };
  const chosen = remembered("localStorage", "vfm-theme");
  if (["light", "dark"].includes(chosen)) root.dataset.theme = chosen;
  systemDark.addEventListener("change", nameTheme);
  nameTheme();

  // Folding: all at once, for printing, and where a link leads into a folded section.
  const sections = all("details.stage");
  const foldButton = button("Open all", () => {
    const open = sections.some((section) => !section.open);
    for (const section of sections) section.open = open;
  });
  const nameFold = () => {
    foldButton.textContent = sections.every((section) => section.open) ? "Fold all" : "Open all";
  };
  for (const section of sections) section.addEventListener("toggle", nameFold); // by whatever opens it
  function unfold() {
    const target = location.hash && document.getElementById(decodeURIComponent(location.hash.slice(1)));
    for (let at = target; at; at = at.parentElement) if (at.tagName === "DETAILS") at.open = true;
    if (target) target.scrollIntoView();
  }
  addEventListener("hashchange", unfold);
  let folded = []; // before printing
  addEventListener("beforeprint", () => {
    folded = all("details:not([open])");
    for (const section of folded) section.open = true;
  });
  addEventListener("afterprint", () => { for (const section of folded) section.open = false; });
  document.querySelector("nav").prepend(make("div", { class: "tools" }, themeButton, ...(sections.length ? [foldButton] : [])));

  // Filters: a search box, and a count of what it leaves.
  function filter(items, words, placed, outcomes = []) {
    const box = make("input", { type: "search", class: "tool", placeholder: words, "aria-label": words });
    const count = make("span", { class: "muted", role: "status" });
    let outcome = "";
    const apply = () => {
      const wanted = box.value.toLowerCase().split(/\s+/).filter(Boolean);
      let left = 0;
      for (const item of items) {
        const text = item.textContent.toLowerCase();
        const fits = wanted.every((word) => text.includes(word)) && (!outcome || item.dataset.outcome === outcome);
        item.hidden = !fits;
        left += fits;
      }
      count.textContent = left < items.length ? `${left} of ${items.length}` : "";
    };
    box.addEventListener("input", apply);
    const choices = ["all", ...outcomes].map((name) => {
      const choice = button(name, () => {
        outcome = name === "all" ? "" : name;
        for (const other of choices) other.setAttribute("aria-pressed", other === choice);
        apply();
      });
      choice.setAttribute("aria-pressed", name === "all");
      return choice;
    });
    placed.before(make("div", { class: "tools" }, box, ...(outcomes.length ? choices : []), count));
  }

  // Tables: rows, or the bodies of a table that has several, are sorted by a column and filtered.
  const FEW = 8; // a filter for fewer rows is only in the way
  function cellOf(row, column, width) {
    return row.cells[column - (width - row.cells.length)]; // a heading over several rows is in the first one only
  }
  function keyOf(unit, column, width) {
    const rows = unit.tagName === "TR" ? [unit] : [...unit.rows];
    const cells = rows.map((row) => cellOf(row, column, width)).filter((cell) => cell && cell.textContent.trim());
    if (!cells.length) return null;
    const text = (cells[0].dataset.sort ?? cells[0].textContent).trim();
    const number = text.replace(/[\u2212]/g, "-").replace(/,(?=\d{3})/g, "").match(/^[^\p{L}\d.-]*([+-]?\d*\.?\d+(e[+-]?\d+)?)/u);
    return text === "\u2013" ? null : number ? Number(number[1]) : text.toLowerCase();
  }
  function compare(a, b) {
    if (typeof a === typeof b) return typeof a === "number" ? a - b : a.localeCompare(b, undefined, { numeric: true });
    return typeof a === "number" ? -1 : 1;
  }
  function sortable(table) {
    const bodies = [...table.tBodies], grouped = bodies.length > 1;
    const units = grouped ? bodies : [...(bodies[0]?.rows ?? [])];
    const heads = [...(table.tHead?.rows[0]?.cells ?? [])];
    if (units.length < 2) return;
    heads.forEach((head, column) => {
      if (!head.textContent.trim()) return;
      const sort = () => {
        const down = head.getAttribute("aria-sort") === "ascending";
        for (const other of heads) if (other.hasAttribute("aria-sort")) other.setAttribute("aria-sort", "none");
        head.setAttribute("aria-sort", down ? "descending" : "ascending");
        const keys = new Map(units.map((unit) => [unit, keyOf(unit, column, heads.length)]));
        const known = units.filter((unit) => keys.get(unit) !== null); // what has no value stays last
        known.sort((a, b) => (down ? -1 : 1) * compare(keys.get(a), keys.get(b)));
        (grouped ? table : bodies[0]).append(...known, ...units.filter((unit) => keys.get(unit) === null));
      };
      head.setAttribute("aria-sort", "none");
      head.append(make("button", { type: "button" }, ...head.childNodes)); // for the keyboard; its click bubbles
      head.addEventListener("click", sort);
    });
    if (units.length >= FEW) filter(units, "Filter rows", table.closest(".scroll"));
  }
  all(".scroll > table").forEach(sortable);

  // Samples: search in captions, right or wrong.
  for (const sheet of all(".sheet")) {
    const figures = all("figure", sheet), known = new Set(figures.map((figure) => figure.dataset.outcome));
    const outcomes = ["right", "wrong"].filter((outcome) => known.has(outcome));
    if (figures.length >= FEW || outcomes.length > 1) filter(figures, "Search captions", sheet, outcomes);
  }

  // Curves: each name of a legend switches its curve; also in an enlarged copy.
  for (const item of all(".legend li")) {
    item.append(make("button", { type: "button", "aria-pressed": "true" }, ...item.childNodes));
  }
  document.addEventListener("click", (event) => {
    const name = event.target.closest(".legend button");
    if (!name) return;
    const shown = name.getAttribute("aria-pressed") !== "true", panel = name.closest(".legend").parentElement;
    name.setAttribute("aria-pressed", shown);
    const { curve } = name.parentElement.dataset;
    for (const drawn of all(`.chart [data-curve="${curve}"]`, panel)) drawn.style.display = shown ? "" : "none";
  });

  // Enlarged figures: a click opens one, Escape or a click beside it closes it, arrows lead to the next sample.
  const enlarged = make("div");
  const dialog = make("dialog", { "aria-label": "Enlarged figure" }, button("Close", () => dialog.close()), enlarged);
  let current = null;
  function enlarge(figure) {
    current = figure;
    const panel = figure.closest("section"), title = panel?.querySelector("h4");
    const parts = figure.matches(".chart") ? [...all(".legend, .label", panel), figure] : [figure];
    enlarged.replaceChildren(...[...(title ? [title] : []), ...parts].map((part) => part.cloneNode(true)));
    for (const opener of all(".enlarges", enlarged)) { // the copy opens nothing
      opener.classList.remove("enlarges");
      for (const name of ["role", "tabindex"]) opener.removeAttribute(name);
    }
    if (figure.matches(".chart")) enlarged.append(...adder(figure));
    if (!dialog.open) dialog.showModal();
  }
  // A choice of the curves of other charts with the same x axis, which it adds to the enlarged chart.
  function adder(chart) {
    const shown = curvesOf(chart), choices = [];
    const choice = make("select", { class: "tool", "aria-label": "Add a curve" }, new Option("Add a curve …", ""));
    for (const other of all("main .chart").filter((one) => one !== chart && sameUnit(axesOf(one).x, shown[0].x))) {
      const curves = curvesOf(other), options = curves.map((curve) => new Option(curve.name, choices.push(curve) - 1));
      choice.append(make("optgroup", { label: curves[0].label }, ...options));
    }
    choice.addEventListener("change", () => {
      const off = all('.legend [aria-pressed="false"]', enlarged).map((name) => name.parentElement.dataset.curve);
      shown.push(choices[choice.value]);
      choice.selectedOptions[0].disabled = true;
      choice.value = "";
      const [legend, drawn] = overlay(shown);
      enlarged.querySelector(".legend")?.remove();
      enlarged.querySelector(".label").before(legend);
      enlarged.querySelector(".chart").replaceWith(drawn);
      for (const index of off) legend.querySelector(`[data-curve="${index}"] button`).click();
    });
    return choices.length ? [choice] : [];
  }
  for (const figure of all(".chart, .sheet figure")) {
    const opener = figure.querySelector("svg, img");
    if (!opener) continue;
    opener.classList.add("enlarges");
    opener.setAttribute("tabindex", "0");
    opener.setAttribute("role", "button");
    if (opener.tagName === "svg") opener.setAttribute("aria-label", "Enlarge the chart"); // a picture has its caption
    opener.addEventListener("click", () => enlarge(figure));
    opener.addEventListener("keydown", (event) => {
      if (event.key !== "Enter" && event.key !== " ") return;
      event.preventDefault(); // the space key would scroll
      enlarge(figure);
    });
  }
  dialog.addEventListener("click", (event) => { if (event.target === dialog) dialog.close(); });
  addEventListener("keydown", (event) => {
    const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
    if (!step || !dialog.open || !current.matches("figure")) return;
    const figures = all("figure:not([hidden])", current.parentElement);
    enlarge(figures[(figures.indexOf(current) + step + figures.length) % figures.length]);
  });
  document.body.append(dialog);

  // The page of a run that goes on reloads itself; what was unfolded stays unfolded, on the last page too.
  const seconds = Number(root.dataset.reload), key = `vfm-open ${location.pathname}`;
  const unfolded = (remembered("sessionStorage", key) ?? "").split(" ");
  for (const section of sections) section.open ||= unfolded.includes(section.lastElementChild.id);
  if (seconds) {
    setInterval(() => {
      if (dialog.open || all("input").some((box) => box.value)) return; // the reader looks at a figure or some rows
      const open = sections.filter((section) => section.open).map((section) => section.lastElementChild.id);
      remember("sessionStorage", key, open.join(" "));
      location.reload();
    }, 1000 * seconds);
  } else {
    unfold();
  }
}
