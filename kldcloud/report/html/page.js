// What report.html does in a browser: draws charts, sorts tables, lists positions, goes dark.
"use strict";
(() => {
  const root = document.documentElement;
  const read = (id) => {
    const block = document.getElementById(id);
    return block ? JSON.parse(block.textContent) : null;
  };
  const every = (selector, within = document) => [...within.querySelectorAll(selector)];
  root.dataset.script = "";

  // Dark and light

  const darkSystem = window.matchMedia("(prefers-color-scheme: dark)");
  const button = document.getElementById("theme");
  const isDark = () => (root.dataset.theme ?? (darkSystem.matches ? "dark" : "light")) === "dark";
  const nameTheme = () => {
    button.textContent = isDark() ? "Light" : "Dark";
    button.setAttribute("aria-label", `Switch to ${isDark() ? "light" : "dark"} colours`);
  };
  button.addEventListener("click", () => {
    root.dataset.theme = isDark() ? "light" : "dark";
    nameTheme();
  });
  darkSystem.addEventListener("change", nameTheme);
  nameTheme();

  // Tables

  // In a column of GiB, what is next to nothing has a unit of its own.
  const inGib = { MiB: 1024, KiB: 1024 ** 2, B: 1024 ** 3 };
  const figure = (cell) => {
    const text = cell.textContent.replaceAll(",", "");
    const number = Number.parseFloat(text) / (inGib[text.split(" ")[1]] ?? 1);
    return Number.isNaN(number) ? null : number;
  };
  const compareNames = new Intl.Collator("en", { numeric: true }).compare;

  function sort(heading) {
    const table = heading.closest("table");
    const at = [...heading.parentNode.children].indexOf(heading);
    const down = heading.getAttribute("aria-sort") === "ascending";
    for (const each of heading.parentNode.children) each.setAttribute("aria-sort", "none");
    heading.setAttribute("aria-sort", down ? "descending" : "ascending");
    const sign = down ? -1 : 1;
    const byName = heading.dataset.kind === "text";
    const keyed = [...table.tBodies[0].rows].map((row) => {
      const cell = row.cells[at];
      return [byName ? cell.querySelector("bdi").textContent : figure(cell), row];
    });
    keyed.sort(([one], [other]) => {
      // What has no figure stands last, whichever way the others go.
      if (one === null || other === null) return (one === null) - (other === null);
      return sign * (byName ? compareNames(one, other) : one - other);
    });
    table.tBodies[0].append(...keyed.map(([, row]) => row));
  }
  for (const heading of every("th[aria-sort]")) {
    heading.querySelector("button").addEventListener("click", () => sort(heading));
  }

  for (const field of every("input[data-filters]")) {
    const rows = [...document.getElementById(field.dataset.filters).tBodies[0].rows];
    const count = document.querySelector(`[data-counts="${field.dataset.filters}"]`);
    field.addEventListener("input", () => {
      const wanted = field.value.toLowerCase();
      for (const row of rows) {
        const name = row.querySelector("th bdi").textContent.toLowerCase();
        row.hidden = !name.includes(wanted);
      }
      const shown = rows.filter((row) => !row.hidden).length;
      count.textContent = wanted ? `${shown} of ${rows.length}` : "";
    });
  }

  // Worst positions

  const worst = read("worst");
  const AT_ONCE = 10;
  const made = (tag, className, ...content) => {
    const element = document.createElement(tag);
    if (className) element.className = className;
    element.append(...content);
    return element;
  };
  // What is invisible or turns text around is written out; a line's end is a sign, not a break.
  const visible = (text) =>
    text.replace(/\n/g, "\u23ce").replace(/\t/g, "\u21e5").replace(/[\p{Cc}\p{Cf}\p{Co}\p{Zl}\p{Zp}]/gu,
      (char) => `\\u${char.codePointAt(0).toString(16).padStart(4, "0")}`);
  const percent = (share) => {
    const shown = 100 * share;
    return `${shown >= 0.1 || shown === 0 ? shown.toFixed(1) : shown.toPrecision(2)}\u00a0%`;
  };
  const heat = (kld) => worst.heat.filter((low) => kld >= low).length;
  function token([text, kld]) {
    const level = kld === null ? 0 : heat(kld);
    const shown = made("span", level ? `heat-${level}` : "", visible(text));
    if (kld !== null) shown.title = `${kld} nats`;
    return shown;
  }
  function guesses(name, list, right) {
    const rows = list.map(([text, share]) => {
      const row = made("tr", text === right ? "right" : "");
      row.append(made("td", "", made("bdi", "token", visible(text))), made("td", "", percent(share)));
      return row;
    });
    return made("table", "guesses", made("caption", "", name), made("tbody", "", ...rows));
  }
  function position(each) {
    const next = made("mark", "", visible(each.token));
    const text = made("bdi", "text", ...each.before.map(token), next, ...each.after.map(token));
    const facts = `chunk ${each.chunk}, position ${each.position}: KLD ${each.kld.toFixed(3)} nats, `
      + `entropy of the base ${each.entropy_base.toFixed(2)}; the marked token: `
      + `base ${percent(each.probability_base)}, candidate ${percent(each.probability)}`;
    const item = made("li", "", text, made("p", "facts", facts));
    if (each.top.length) {
      item.append(made("div", "both", guesses("base", each.top_base, each.token),
        guesses("candidate", each.top, each.token)));
    }
    return item;
  }
  for (const choice of every("select[data-worst]")) {
    const list = document.getElementById(`worst-${choice.dataset.worst}`);
    const more = document.querySelector(`button[data-more="${choice.dataset.worst}"]`);
    const extend = () => {
      const { positions } = worst.worst[choice.value];
      const shown = list.children.length;
      list.append(...positions.slice(shown, shown + AT_ONCE).map(position));
      more.hidden = list.children.length >= positions.length;
    };
    const show = () => {
      list.replaceChildren();
      extend();
    };
    choice.selectedIndex = 0; // browsers remember a choice over a reload
    choice.addEventListener("change", show);
    more.addEventListener("click", extend);
    show();
  }

  // Charts

  const { charts, curves, colours, shapes } = read("charts");
  const profiles = read("profiles")?.profiles ?? [];
  const WIDE_FROM = 560; // pixels: below, the wide layout's letters would be too small to read
  const LARGER = 1.2; // a chart grows no further than this
  const OPTIONS = {
    mode: "vega-lite",
    renderer: "svg",
    actions: false,
    defaultStyle: false,
    tooltip: { disableDefaultStyle: true },
    // Expressions are interpreted: compiling them is what the page's policy forbids.
    ast: true,
  };
  const drawn = new Map(); // chart id: the mode and layout that it has or is about to have
  const views = new Map(); // chart id: what is there to be seen

  // A curve keeps its colour and shape while others come and go.
  const boxes = (place) => every(`input[data-shows="${place}"]`);
  function seat(place) {
    const checked = boxes(place).filter((box) => box.checked);
    for (const box of boxes(place)) if (!box.checked) delete box.dataset.seat;
    const taken = new Set(checked.map((box) => box.dataset.seat));
    const free = colours.map((_, at) => String(at)).filter((at) => !taken.has(at));
    for (const box of checked) box.dataset.seat ??= free.shift();
    // No more curves than colours, and no chart of nobody.
    const full = checked.length >= colours.length;
    const last = checked.length === 1;
    for (const box of boxes(place)) box.disabled = box.checked ? last : full;
  }

  function spec(id, mode, layout) {
    const chart = charts[id];
    const whole = chart.modes[mode][layout];
    if (chart.corpus === undefined) return whole;
    const chosen = boxes(chart.place).filter((box) => box.checked);
    const names = new Map(chosen.map(({ value }) => [curves[value].candidate, curves[value].shown]));
    const own = profiles
      .filter((each) => each.corpus === chart.corpus && names.has(each.candidate))
      .map((each) => ({ ...each, shown: names.get(each.candidate) }));
    const domain = [...names.values()];
    const scale = (looks) => ({ domain, range: chosen.map((box) => looks[box.dataset.seat]) });
    const layer = whole.layer.map((each) => {
      const { color, shape, ...rest } = each.encoding;
      const encoding = { ...rest, color: { ...color, scale: scale(colours) } };
      if (shape) encoding.shape = { ...shape, scale: scale(shapes) };
      return { ...each, encoding };
    });
    const description = `${chart.words}: ${domain.join(", ")}`;
    return { ...whole, description, datasets: { profiles: own }, layer };
  }

  const layoutFor = (target) => (target.clientWidth >= WIDE_FROM ? "wide" : "narrow");

  async function draw(id, mode) {
    const target = document.getElementById(id);
    const layout = layoutFor(target);
    const now = { mode, layout };
    drawn.set(id, now);
    const holder = document.createElement("div");
    try {
      const made = await window.vegaEmbed(holder, spec(id, mode, layout), OPTIONS);
      if (drawn.get(id) !== now) return made.finalize(); // somebody has clicked on meanwhile
      const svg = holder.querySelector("svg");
      target.style.setProperty("--widest", `${Math.round(svg.width.baseVal.value * LARGER)}px`);
      target.replaceChildren(holder);
      views.get(id)?.finalize();
      views.set(id, made);
    } catch (problem) {
      target.textContent = "This chart could not be drawn; its numbers are in the table.";
      console.error(problem);
    }
  }

  async function drawAll() {
    const resized = new ResizeObserver((entries) => {
      for (const { target } of entries) {
        const shown = drawn.get(target.id);
        if (shown && shown.layout !== layoutFor(target)) draw(target.id, shown.mode);
      }
    });
    for (const [id, { modes }] of Object.entries(charts)) {
      await draw(id, Object.keys(modes)[0]);
      resized.observe(document.getElementById(id));
    }
    root.dataset.drawn = "";
  }

  for (const choice of every("input[data-mode-of]")) {
    choice.addEventListener("change", () => draw(choice.dataset.modeOf, choice.value));
    if (choice.defaultChecked) choice.checked = true; // browsers remember a choice over a reload
  }
  for (const box of every("input[data-shows]")) {
    const { shows } = box.dataset;
    box.checked = box.defaultChecked;
    box.addEventListener("change", () => {
      seat(shows);
      for (const [id, chart] of Object.entries(charts)) {
        if (String(chart.place) === shows) draw(id, drawn.get(id).mode);
      }
    });
  }
  for (const place of new Set(every("input[data-shows]").map((box) => box.dataset.shows))) seat(place);

  // Files to keep

  function save(url, name) {
    const link = document.createElement("a");
    link.href = url;
    link.download = name;
    link.click();
  }
  for (const keep of every("button[data-draws]")) {
    keep.addEventListener("click", async () => {
      // A picture leaves its page, so it takes along a title.
      const id = keep.dataset.draws;
      const { mode } = drawn.get(id);
      const whole = { ...spec(id, mode, "wide"), title: charts[id].titles[mode] };
      const made = await window.vegaEmbed(document.createElement("div"), whole, OPTIONS);
      save(await made.view.toImageURL(keep.value, 2), `${id}.${keep.value}`);
      made.finalize();
    });
  }
  for (const keep of every("button[data-saves]")) {
    keep.addEventListener("click", () => {
      const text = document.getElementById(keep.dataset.saves).textContent;
      save(URL.createObjectURL(new Blob([text], { type: "application/json" })), "summary.json");
    });
  }

  drawAll();
})();
