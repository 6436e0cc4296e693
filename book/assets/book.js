// What a page can do beyond being read: all code at once, the same section for another model, tables
// as CSV. Without it links lead to the top of the other page, and cells open one by one.
(() => {
  "use strict";

  const button = (text, name) => {
    const made = document.createElement("button");
    made.type = "button";
    made.className = name;
    made.textContent = text;
    return made;
  };

  // The section at the top of the window; none above the first. Numbered names differ between pages.
  const section = () => {
    const read = [...document.querySelectorAll("article section section[id]")].filter(
      (one) => !/^id\d+$/.test(one.id) && one.getBoundingClientRect().top < innerHeight / 3
    );
    return read.length ? `#${read[read.length - 1].id}` : "";
  };

  const bar = document.querySelector(".cu-top");
  const cells = document.querySelectorAll(".bd-article details.hide.above-input");
  if (bar) {
    for (const link of bar.querySelectorAll("a")) {
      link.addEventListener("click", () => { link.hash = section(); });
    }
    const line = bar.querySelector(".cu-models"), here = bar.querySelector("[aria-current]");
    if (here) line.scrollLeft = here.offsetLeft - line.offsetLeft; // a phone shows two names
  }
  if (bar && cells.length) {
    const all = button("Show all code", "cu-code-button");
    all.setAttribute("aria-pressed", "false");
    all.addEventListener("click", () => {
      const open = document.documentElement.classList.toggle("cu-all-code");
      cells.forEach((cell) => { cell.open = open; });
      all.textContent = open ? "Hide all code" : "Show all code";
      all.setAttribute("aria-pressed", String(open));
    });
    bar.append(all);
  }

  const csv = (table) => [...table.rows].map((row) => [...row.cells].map((cell) => {
    const text = cell.innerText.trim();
    return /[",\n]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text;
  }).join(",")).join("\r\n");

  for (const fold of document.querySelectorAll("details.table-fold")) {
    const title = fold.querySelector("summary").textContent;
    const name = title.replace(/\(\d+ rows?\)$/, "").trim().replace(/[^\w]+/g, "-").toLowerCase();
    const save = button("CSV", "cu-csv");
    save.setAttribute("aria-label", `Download as CSV: ${title}`);
    save.addEventListener("click", () => {
      // A mark at the start tells spreadsheets that it is UTF-8.
      const file = new Blob(["\ufeff", csv(fold.querySelector("table"))], {type: "text/csv"});
      const link = Object.assign(document.createElement("a"), {
        href: URL.createObjectURL(file), download: `${name}.csv`,
      });
      link.click();
      setTimeout(() => URL.revokeObjectURL(link.href), 1000);
    });
    fold.querySelector("summary").after(save);
  }
})();
