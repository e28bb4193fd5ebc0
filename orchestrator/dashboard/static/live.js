// Replaces the parts of the page that the server says have changed, and keeps the choice of light or dark.
"use strict";
const root = document.documentElement;
const stored = localStorage.getItem("headtail-theme");
if (stored) root.dataset.theme = stored;
document.addEventListener("DOMContentLoaded", () => {
  const main = document.querySelector("main");
  const state = document.getElementById("state");
  document.getElementById("theme").addEventListener("click", () => {
    const dark = root.dataset.theme ? root.dataset.theme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
    root.dataset.theme = dark ? "light" : "dark";
    localStorage.setItem("headtail-theme", root.dataset.theme);
  });
  if (!main.dataset.kind) return;
  const source = new EventSource(`/events/${main.dataset.kind}?name=${encodeURIComponent(main.dataset.name)}`);
  source.addEventListener("part", (event) => {
    const { part, html } = JSON.parse(event.data);
    const target = document.getElementById(`part-${part}`);
    if (target) target.innerHTML = html;
  });
  source.onopen = () => { state.textContent = "live"; state.className = "live"; };
  source.onerror = () => { state.textContent = "connecting …"; state.className = "lost"; };
});
