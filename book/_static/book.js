// Formulas that are wider than the page scroll sideways. Where one does, the keyboard reaches it; where none does, the
// tab key is not kept waiting. (The theme does the same for code and tables.)
"use strict";
{
  const formulas = document.querySelectorAll(".katex-display");
  const update = (formula) => {
    if (formula.scrollWidth > formula.clientWidth) formula.tabIndex = 0;
    else formula.removeAttribute("tabindex");
  };
  const observer = new ResizeObserver((entries) => entries.forEach(({ target }) => update(target)));
  formulas.forEach((formula) => observer.observe(formula));
  document.fonts.ready.then(() => formulas.forEach(update)); // a font that arrives widens what is inside, not the box
}
