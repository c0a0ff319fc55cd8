"use strict";
(() => {
  const root = document.documentElement;
  const store = (kind, key, value) => {
    try {  // a browser may refuse to keep anything of a file
      if (value === undefined) return window[kind].getItem(key);
      window[kind].setItem(key, value);
    } catch (error) { /* then it is forgotten */ }
    return null;
  };

  document.getElementById("theme").addEventListener("click", () => {
    const now = root.dataset.theme || (matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light");
    root.dataset.theme = now === "dark" ? "light" : "dark";
    store("localStorage", "sdfast-theme", root.dataset.theme);
  });

  // Tables: a click on a heading sorts, the numbers downwards first.
  for (const table of document.querySelectorAll("table.sortable")) {
    const heads = [...table.tHead.rows[0].cells];
    heads.forEach((head, column) => head.querySelector("button")?.addEventListener("click", () => {
      const body = table.tBodies[0], rows = [...body.rows];
      const numbers = head.classList.contains("n");
      const was = head.getAttribute("aria-sort");
      const down = was ? was === "ascending" : numbers;
      const key = (row) => {
        const cell = row.cells[column];
        return numbers ? parseFloat(cell.dataset.sort ?? "-Infinity") : cell.textContent;
      };
      rows.sort((a, b) => numbers ? key(a) - key(b) : key(a).localeCompare(key(b), undefined, { numeric: true }));
      if (down) rows.reverse();
      body.append(...rows);
      heads.forEach((each) => each.removeAttribute("aria-sort"));
      head.setAttribute("aria-sort", down ? "descending" : "ascending");
    }));
  }

  // Curves: the values below the pointer stand in the legend.
  const shown = (value) => {
    const size = Math.abs(value);
    return size !== 0 && (size < 1e-3 || size >= 1e6) ? value.toExponential(2)
      : value.toLocaleString("en", { maximumSignificantDigits: 4 });
  };
  for (const chart of document.querySelectorAll("figure.chart[data-frame]")) {
    const frame = JSON.parse(chart.dataset.frame), svg = chart.querySelector("svg"), cross = svg.querySelector(".cross");
    const lines = [...svg.querySelectorAll(".curve")].map((line) =>
      (line.getAttribute("points") || "").trim().split(/\s+/).map((pair) => pair.split(",").map(Number)));
    const values = [...chart.querySelectorAll(".legend b")];
    const first = values.map((each) => each.textContent);
    const scale = (at, [low, high, from, to, log]) => {
      const share = (at - from) / (to - from);
      return log ? Math.exp(Math.log(low) + share * (Math.log(high) - Math.log(low))) : low + share * (high - low);
    };
    svg.addEventListener("pointermove", (event) => {
      const box = svg.getBoundingClientRect();
      const x = (event.clientX - box.left) / box.width * svg.viewBox.baseVal.width;
      let at = null;
      lines.forEach((points, place) => {
        if (!points.length || !values[place]) return;
        const near = points.reduce((best, point) => Math.abs(point[0] - x) < Math.abs(best[0] - x) ? point : best);
        values[place].textContent = shown(scale(near[1], frame.y));
        at = near[0];
      });
      if (at === null) return;
      cross.setAttribute("x1", at); cross.setAttribute("x2", at); cross.removeAttribute("hidden");
      cross.style.display = "";
      chart.querySelector(".at").textContent = frame.name + " " + shown(Math.round(scale(at, frame.x)));
    });
    svg.addEventListener("pointerleave", () => {
      values.forEach((each, place) => { each.textContent = first[place]; });
      cross.style.display = "none";
      chart.querySelector(".at").textContent = "";
    });
  }

  // What a reader has opened stays open as the page reloads itself.
  const place = "sdfast-report:" + location.pathname;
  const opened = new Set(JSON.parse(store("sessionStorage", place + ":open") || "[]"));
  document.querySelectorAll("details").forEach((each, number) => {
    if (opened.has(number)) each.open = true;
    each.addEventListener("toggle", () => {
      if (each.open) opened.add(number); else opened.delete(number);
      store("sessionStorage", place + ":open", JSON.stringify([...opened]));
    });
  });

  if (!("running" in root.dataset)) return;
  const [at, every, patience] = ["at", "every", "patience"].map((name) => 1000 * parseFloat(root.dataset[name]));
  const kept = parseFloat(store("sessionStorage", place + ":scroll") || "");
  if (kept > 0) scrollTo({ top: kept, behavior: "instant" });
  addEventListener("scroll", () => store("sessionStorage", place + ":scroll", String(scrollY)), { passive: true });
  const look = () => {
    const silent = Date.now() - at;
    if (silent > patience) {
      const news = document.getElementById("news");
      const minutes = Math.round(silent / 60000);
      news.textContent = "No news since " + new Date(at).toLocaleString() + " (" + minutes + " min): the run may have "
        + "been stopped, or is in a part that tells nothing. Reload the page to look again.";
      news.hidden = false;
      root.classList.add("stale");
      const state = document.querySelector(".state.live");
      if (state && !state.textContent.startsWith("no news")) state.textContent = "no news: " + state.textContent;
      return;
    }
    if (!document.hidden && silent > every && performance.now() > every) { location.reload(); return; }
    setTimeout(look, every / 5);
  };
  look();
})();
