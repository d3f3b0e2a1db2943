// The line of figures at the top, and the legend.

import type { Scene } from "./data";
import { byId, element } from "./dom";
import { bytes, count, kindLabel, percent, tokens } from "./format";
import { rampColour } from "./theme";

function fact(label: string, value: string, note: string): HTMLElement {
  return element("div", { title: `${label}: ${value}, ${note}` }, element("dt", {}, label), element("dd", {}, value), element("dd", { class: "note" }, note));
}

export function fillFacts(scene: Scene): void {
  const { model, machine, workload, solver, totals } = scene.payload;
  const cache = scene.blocks.reduce((sum, block) => sum + block.cacheBytes, 0);
  const capacity = scene.wafers.reduce((sum, wafer) => sum + wafer.capacityBytes, 0);
  byId("model").textContent = model;
  byId("machine").textContent = `on ${machine.name}, ${scene.wafers.length} of ${machine.systems} ${machine.systems === 1 ? "system" : "systems"}`;
  const status = byId("status");
  status.textContent = solver.status;
  status.dataset["status"] = solver.status;
  const facts = [
    fact("Weights", bytes(totals.weight_bytes), `of ${bytes(capacity)} on ${scene.wafers.length} wafers`),
    fact("KV cache", bytes(cache), "resident at once"),
    fact("Users \u00d7 context", `${count(workload.users)} \u00d7 ${tokens(workload.context)}`, "tokens"),
    fact("Reserve per tile", `${count(machine.reserve_bytes)} B`, `of ${count(machine.tile_sram_bytes)} B`),
    ...solver.scores.slice(0, 1).flatMap(({ objective, unit, value, bound, gap, proof }) => [
      fact("Objective", count(value), `${objective}, ${unit}`),
      fact("Bound", count(bound), `gap ${percent(gap, gap > 0 ? 2 : 0)}, ${proof ? `proof: ${proof}` : "no second proof"}`),
    ]),
  ];
  byId("facts").replaceChildren(...facts);
}

export interface LegendActions {
  hover(kind: number | null): void;
  toggle(kind: number): void;
  colourBy(by: "kind" | "memory"): void;
}

export function fillLegend(scene: Scene, act: LegendActions): void {
  const items = scene.kinds.flatMap((kind, index) => {
    const blocks = scene.blocks.filter((block) => block.kind === index);
    if (!blocks.length) return [];
    const size = blocks.reduce((sum, block) => sum + block.weightBytes + block.cacheBytes + block.activationBytes, 0);
    const made = element(
      "button",
      { type: "button", "aria-pressed": "false", "data-kind": `${index}` },
      element("i", { class: `swatch kind-${kind.replace(/_/g, "-")}`, "aria-hidden": "true" }),
      element("span", { class: "name" }, kindLabel(kind)),
      element("span", { class: "count" }, count(blocks.length)),
      element("span", { class: "size" }, bytes(size)),
    );
    made.addEventListener("click", () => act.toggle(index));
    made.addEventListener("pointerenter", () => act.hover(index));
    made.addEventListener("pointerleave", () => act.hover(null));
    return [element("li", {}, made)];
  });
  byId("legend").replaceChildren(...items);
  byId("ramp").replaceChildren(
    element("p", {}, "How full the fullest tile of each block is"),
    element("div", { class: "steps", id: "ramp-steps" }),
    element("div", { class: "ends" }, element("span", {}, "0 %"), element("span", {}, `100 % = ${count(scene.tileCapacity)} B`)),
  );
  byId("colour-kind").addEventListener("click", () => act.colourBy("kind"));
  byId("colour-fill").addEventListener("click", () => act.colourBy("memory"));
}

/** Draws the scale of the memory colours, which differ between light and dark. */
export function fillRamp(dark: boolean): void {
  const steps = Array.from({ length: 24 }, (_, at) => {
    const step = element("i");
    step.style.background = rampColour(at / 23, dark);
    return step;
  });
  byId("ramp-steps").replaceChildren(...steps);
}

export function markLegend(kind: number | null, colourBy: "kind" | "memory"): void {
  for (const made of document.querySelectorAll<HTMLElement>("#legend button")) {
    made.setAttribute("aria-pressed", `${made.dataset["kind"] === `${kind}`}`);
  }
  byId("colour-kind").setAttribute("aria-pressed", `${colourBy === "kind"}`);
  byId("colour-fill").setAttribute("aria-pressed", `${colourBy === "memory"}`);
  byId("ramp").hidden = colourBy !== "memory";
  document.body.dataset["colour"] = colourBy;
}
