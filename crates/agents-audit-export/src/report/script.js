"use strict";
(() => {
  const form = document.getElementById("filter");
  const words = document.getElementById("words");
  const least = document.getElementById("least");
  const count = document.getElementById("count");
  const none = document.getElementById("none");
  const rows = [...document.querySelectorAll("#rows tr[id]")].map((row) => ({
    row,
    level: Number(row.dataset.level),
    text: row.textContent.toLowerCase(),
  }));
  const apply = () => {
    const wanted = words.value.toLowerCase().split(/\s+/).filter(Boolean);
    const level = Number(least.value);
    let shown = 0;
    for (const { row, level: has, text } of rows) {
      row.hidden = has < level || !wanted.every((word) => text.includes(word));
      shown += row.hidden ? 0 : 1;
    }
    count.textContent = shown === rows.length ? `${shown}` : `${shown} of ${rows.length}`;
    none.hidden = shown > 0;
  };
  // A filter can be given in the address, as #find=artifact&least=2, or an event, as #e12.
  const read = () => {
    const given = new URLSearchParams(location.hash.slice(1));
    if (given.has("find") || given.has("least")) {
      words.value = given.get("find") ?? "";
      least.value = /^[0-4]$/.test(given.get("least") ?? "") ? given.get("least") : "0";
    }
    const row = /^#e\d+$/.test(location.hash) && document.getElementById(location.hash.slice(1));
    if (row && row.hidden) {
      words.value = "";
      least.value = "0";
    }
    apply();
    if (row) row.scrollIntoView({ block: "center" });
  };
  form.hidden = false;
  form.addEventListener("submit", (event) => event.preventDefault());
  words.addEventListener("input", apply);
  least.addEventListener("change", apply);
  addEventListener("hashchange", read);
  addEventListener("keydown", (event) => {
    if (event.key === "/" && !["INPUT", "SELECT"].includes(document.activeElement.tagName)) {
      event.preventDefault();
      words.focus();
    } else if (event.key === "Escape" && document.activeElement === words) {
      words.value = "";
      apply();
    }
  });
  // On paper, everything is shown that can be opened on a screen.
  addEventListener("beforeprint", () => {
    for (const closed of document.querySelectorAll("details:not(.record)")) closed.open = true;
  });
  read();
})();
