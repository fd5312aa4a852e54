"use strict";
// The page follows the system unless its reader says otherwise; a file opened from disk may have no storage.
(() => {
  const root = document.documentElement;
  const themes = ["system", "light", "dark"];
  const recall = () => { try { return localStorage.getItem("fathom-theme"); } catch { return null; } };
  const keep = (theme) => { try { localStorage.setItem("fathom-theme", theme); } catch { /* not kept */ } };
  let theme = themes.includes(recall()) ? recall() : "system";
  const apply = () => { root.dataset.theme = theme; };
  apply();
  document.addEventListener("DOMContentLoaded", () => {
    const button = document.getElementById("theme");
    const label = () => { button.textContent = `Theme: ${theme}`; };
    button.hidden = false;
    label();
    button.addEventListener("click", () => {
      theme = themes[(themes.indexOf(theme) + 1) % themes.length];
      keep(theme);
      apply();
      label();
    });
  });
})();
