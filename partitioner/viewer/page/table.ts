// The table of wafers: the same figures as the drawing, for readers, screen readers and tests.

import type { Scene, Wafer } from "./data";
import { button, byId, element } from "./dom";
import { bytes, percent, ranges, unitFor } from "./format";

const heads = (unit: string): string[] => [
  "Wafer",
  "Layers",
  "Blocks",
  `Weights ${unit}`,
  `KV cache ${unit}`,
  `Activations ${unit}`,
  `Free ${unit}`,
  "Memory used",
  "Tiles used",
  "Traffic out / token",
];

const unitOf = (scene: Scene) => unitFor(Math.max(...scene.wafers.map((wafer) => wafer.capacityBytes)));

export function fillTable(scene: Scene, onWafer: (wafer: Wafer) => void): void {
  const table = byId<HTMLTableElement>("table");
  const head = element("thead", {}, element("tr", {}, ...heads(unitOf(scene).name).map((text) => element("th", { scope: "col" }, text))));
  const body = element("tbody", {}, ...scene.wafers.map((wafer) => row(scene, wafer, onWafer)));
  table.replaceChildren(head, body, element("tfoot", {}, totals(scene)));
}

function meter(part: number): HTMLElement {
  const bar = element("span", { class: "meter", "aria-hidden": "true" }, element("i"));
  (bar.firstChild as HTMLElement).style.width = `${Math.min(100, part * 100).toFixed(1)}%`;
  return element("td", {}, element("span", { class: "metered" }, bar, percent(part)));
}

function row(scene: Scene, wafer: Wafer, onWafer: (wafer: Wafer) => void): HTMLTableRowElement {
  const unit = unitOf(scene);
  const open = button(`${wafer.number}`, () => undefined, { "aria-label": `Show wafer ${wafer.number}` });
  const made = element(
    "tr",
    { "data-wafer": `${wafer.number}` },
    element("th", { scope: "row" }, open),
    element("td", {}, ranges(wafer.layers) || "\u2013"),
    element("td", {}, `${wafer.blocks.length}`),
    element("td", {}, unit.show(wafer.weightBytes)),
    element("td", {}, unit.show(wafer.cacheBytes)),
    element("td", {}, unit.show(wafer.activationBytes)),
    element("td", {}, unit.show(wafer.freeBytes)),
    meter(wafer.fill),
    meter(wafer.tilesUsed / Math.max(1, wafer.columns * wafer.rows)),
    element("td", {}, wafer.trafficOut ? bytes(wafer.trafficOut) : "\u2013"),
  );
  made.addEventListener("click", () => onWafer(wafer));
  return made;
}

function totals(scene: Scene): HTMLTableRowElement {
  const total = (of: (wafer: Wafer) => number): number => scene.wafers.reduce((so_far, wafer) => so_far + of(wafer), 0);
  const unit = unitOf(scene);
  const layers = new Set(scene.wafers.flatMap((wafer) => wafer.layers)).size;
  const capacity = Math.max(1, total((wafer) => wafer.capacityBytes));
  const traffic = total((wafer) => wafer.trafficOut);
  return element(
    "tr",
    {},
    element("th", { scope: "row" }, "All"),
    element("td", {}, `${layers} ${layers === 1 ? "layer" : "layers"}`),
    element("td", {}, `${scene.blocks.length}`),
    element("td", {}, unit.show(total((wafer) => wafer.weightBytes))),
    element("td", {}, unit.show(total((wafer) => wafer.cacheBytes))),
    element("td", {}, unit.show(total((wafer) => wafer.activationBytes))),
    element("td", {}, unit.show(total((wafer) => wafer.freeBytes))),
    meter(1 - total((wafer) => wafer.freeBytes) / capacity),
    meter(total((wafer) => wafer.tilesUsed) / Math.max(1, total((wafer) => wafer.columns * wafer.rows))),
    element("td", {}, traffic ? bytes(traffic) : "\u2013"),
  );
}

export function markRow(wafer: number | null, reveal: boolean): void {
  for (const made of document.querySelectorAll<HTMLTableRowElement>("#table tbody tr")) {
    const here = wafer !== null && made.dataset["wafer"] === `${wafer}`;
    made.classList.toggle("selected", here);
    if (here) made.setAttribute("aria-current", "true");
    else made.removeAttribute("aria-current");
    if (here && reveal) made.scrollIntoView({ block: "nearest" });
  }
}
