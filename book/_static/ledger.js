// The cards of the ledger, by verdict, theme and source. Without this script all of them are there.
"use strict";
{
  const cards = [...document.querySelectorAll(".claim")].map((element) => {
    const text = (name) => element.querySelector(name).textContent.trim();
    return {
      element,
      verdict: [...element.classList].find((name) => name.startsWith("verdict-")).slice(8).replaceAll("-", " "),
      theme: text(".claim-theme"),
      source: text(".claim-said-by").split("; "),
    };
  });
  const bar = document.createElement("form");
  bar.className = "ledger-filter";
  const choices = {};
  for (const [name, label] of [["verdict", "Verdict"], ["theme", "Theme"], ["source", "Said by"]]) {
    const values = [...new Set(cards.flatMap((card) => card[name]))].sort((a, b) => a.localeCompare(b));
    const select = document.createElement("select");
    select.append(new Option("all", ""), ...values.map((value) => new Option(value, value)));
    const field = document.createElement("label");
    field.append(label, select);
    bar.append(field);
    choices[name] = select;
  }
  const shown = document.createElement("p");
  shown.setAttribute("role", "status");
  bar.append(shown);
  const update = () => {
    let count = 0;
    for (const card of cards) {
      const fits = Object.entries(choices).every(([name, { value }]) => !value || [card[name]].flat().includes(value));
      card.element.hidden = !fits;
      count += fits;
    }
    for (const section of document.querySelectorAll("section section")) {
      const own = [...section.querySelectorAll(".claim")];
      if (own.length) section.hidden = own.every((element) => element.hidden);
    }
    shown.textContent = `${count} of ${cards.length} claims`;
  };
  // A link to a card shows it, whatever was chosen before.
  const reveal = () => {
    const target = cards.find(({ element }) => element.id === location.hash.slice(1));
    if (!target || !target.element.hidden) return;
    bar.reset();
    update();
    target.element.scrollIntoView();
  };
  bar.addEventListener("input", update);
  addEventListener("hashchange", reveal);
  document.querySelector(".ledger-counts").after(bar);
  update();
}
