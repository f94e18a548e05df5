// Formulas that are wider than the page scroll sideways. Where one does, the keyboard reaches it; where none does, the
// tab key is not kept waiting. (The theme does the same for code and tables.)
"use strict";
{
  const observer = new ResizeObserver((entries) => {
    for (const { target } of entries) {
      if (target.scrollWidth > target.clientWidth) target.tabIndex = 0;
      else target.removeAttribute("tabindex");
    }
  });
  for (const formula of document.querySelectorAll(".katex-display")) observer.observe(formula);
}
