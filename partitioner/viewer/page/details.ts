// The panel that says what a rectangle is.

import type { Block, Link, Scene, Wafer } from "./data";
import { expertRect, linkCost, meshOf } from "./data";
import { button, element } from "./dom";
import { bytes, count, kindLabel, macs, parameters, percent, ranges, tokens } from "./format";
import type { Selection } from "./state";

export interface Actions {
  select(selection: Selection): void;
  zoom(selection: Selection): void;
  clear(): void;
}

type Row = [label: string, value: string | Node];

function list(rows: Row[]): HTMLElement {
  const made = element("dl", { class: "rows" });
  for (const [label, value] of rows) made.append(element("dt", {}, label), element("dd", {}, value));
  return made;
}

function title(text: string, kind: string | null, sub: string): HTMLElement {
  const heading = element("h3", {}, text);
  const line = element("p", { class: "sub" });
  if (kind) line.append(element("i", { class: `swatch kind-${kind.replace(/_/g, "-")}`, "aria-hidden": "true" }));
  line.append(sub);
  return element("div", { class: "details-title" }, heading, line);
}

/** A bar of parts of a whole, each with its own class. */
function bar(parts: [name: string, size: number][], whole: number, label: string): HTMLElement {
  const made = element("div", { class: "bar", role: "img", "aria-label": label });
  for (const [name, size] of parts) {
    const part = element("i", { class: name, title: `${name}: ${bytes(size)}` });
    part.style.width = `${((100 * size) / Math.max(1, whole)).toFixed(2)}%`;
    made.append(part);
  }
  return made;
}

function actions(scene: Scene, selection: Selection, wafer: Wafer | undefined, act: Actions, pinned: boolean): HTMLElement {
  const made = element("div", { class: "buttons" }, button("Zoom to it", () => act.zoom(selection), { class: "primary" }));
  if (wafer && selection.type !== "wafer") {
    const target: Selection = { type: "wafer", id: wafer.order };
    made.append(button(`Wafer ${wafer.number}`, () => (act.select(target), act.zoom(target))));
  }
  if (selection.type === "expert") {
    const group: Selection = { type: "block", id: scene.experts.block[selection.id]! };
    made.append(button("Its group", () => (act.select(group), act.zoom(group))));
  }
  if (pinned) made.append(button("Clear", () => act.clear()));
  return made;
}

const place = (rect: { column: number; row: number; columns: number; rows: number }): string =>
  `${rect.columns} \u00d7 ${rect.rows} at ${rect.column}, ${rect.row}`;

function tilesOf(scene: Scene, wafer: number): number {
  const { columns, rows } = meshOf(scene.machine, wafer);
  return Math.max(1, columns * rows);
}

const area = (rect: { columns: number; rows: number }): number => rect.columns * rect.rows;

function memory(weights: number, cache: number, activations: number): HTMLElement[] {
  const whole = weights + cache + activations;
  return [
    element("h4", {}, `Memory \u00b7 ${bytes(whole)}`),
    bar([["weights", weights], ["cache", cache], ["activations", activations]], whole, "Weights, KV cache and activations"),
    list([
      ["Weights", keyed("weights", bytes(weights))],
      ["KV cache", keyed("cache", bytes(cache))],
      ["Activations", keyed("activations", bytes(activations))],
    ]),
  ];
}

const keyed = (name: string, text: string): HTMLElement =>
  element("span", { class: "keyed" }, text, element("i", { class: `key ${name}`, "aria-hidden": "true" }));

function fullestTile(scene: Scene, block: Block): HTMLElement[] {
  const { tile_sram_bytes: sram, reserve_bytes: reserve } = scene.machine;
  const part = block.tileBytes / Math.max(1, scene.tileCapacity);
  return [
    element("h4", {}, `Fullest tile \u00b7 ${percent(part)}`),
    bar([["used", block.tileBytes], ["free", scene.tileCapacity - block.tileBytes], ["reserve", reserve]], sram, "Memory of the fullest tile"),
    element("p", { class: "small" }, `${count(block.tileBytes)} of ${count(scene.tileCapacity)} B, ${count(scene.tileCapacity - block.tileBytes)} B free; ${count(reserve)} B reserved`),
  ];
}

function names(block: Block): HTMLElement[] {
  if (block.parameterCount === 0) return [];
  const items = block.parameters.map((name) => element("li", {}, name));
  return [element("h4", {}, `Parameters \u00b7 ${count(block.parameterCount)}`), element("ul", { class: "names" }, ...items)];
}

function blockDetails(scene: Scene, block: Block): (Node | string)[] {
  const kind = scene.kinds[block.kind]!;
  const tiles = area(block.rect);
  const rows: Row[] = [
    ["Wafer", `${block.wafer}`],
    ["Layer", block.layer === null ? "none" : `${block.layer}`],
    ["Region", place(block.rect)],
    ["Tiles", `${count(tiles)} (${percent(tiles / tilesOf(scene, block.wafer))} of the wafer)`],
    ["Work per token", macs(block.macsPerToken)],
  ];
  if (block.experts) {
    rows.splice(4, 0, ["Experts", `${count(block.experts)}, ${count(block.activeExperts)} active for a token`]);
    rows.splice(5, 0, ["Tiles of experts", block.sliced ? "all, for each of them" : count(expertTiles(scene, block))]);
  }
  return [
    title(block.name, kind, block.layer === null ? kindLabel(kind) : `${kindLabel(kind)} of layer ${block.layer}`),
    list(rows),
    ...memory(block.weightBytes, block.cacheBytes, block.activationBytes),
    ...fullestTile(scene, block),
    ...names(block),
  ];
}

function expertTiles(scene: Scene, block: Block): number {
  let tiles = 0;
  for (let id = block.firstExpert; id < block.firstExpert + block.experts; id++) tiles += area(expertRect(scene.experts, id));
  return tiles;
}

function expertDetails(scene: Scene, id: number): (Node | string)[] {
  const block = scene.blocks[scene.experts.block[id]!]!;
  const rect = expertRect(scene.experts, id);
  return [
    title(`Expert ${scene.experts.index[id]!}`, scene.kinds[block.kind]!, block.layer === null ? block.name : `Routed expert of layer ${block.layer}`),
    list([
      ["Group", block.name],
      ["Wafer", `${scene.experts.wafer[id]!}`],
      ["Region", place(rect)],
      ["Tiles", count(area(rect))],
      ["In the group", `${count(block.experts)}, ${count(block.activeExperts)} active for a token`],
      ["Group's weights", bytes(block.weightBytes)],
      ["Group's work per token", macs(block.macsPerToken)],
    ]),
    ...fullestTile(scene, block),
    ...names(block),
  ];
}

function waferDetails(scene: Scene, wafer: Wafer, act: Actions): (Node | string)[] {
  const items = wafer.blocks.map((block) => {
    const open = button(block.name, () => act.select({ type: "block", id: block.id }));
    const kind = scene.kinds[block.kind]!.replace(/_/g, "-");
    const size = bytes(block.weightBytes + block.cacheBytes + block.activationBytes);
    return element("li", {}, element("i", { class: `swatch kind-${kind}`, "aria-hidden": "true" }), open, element("span", {}, size));
  });
  return [
    title(`Wafer ${wafer.number}`, null, wafer.layers.length ? `Layers ${ranges(wafer.layers)}` : "No repeated layer"),
    list([
      ["Memory used", `${percent(wafer.fill)} of ${bytes(wafer.capacityBytes)}`],
      ["Free", bytes(wafer.freeBytes)],
      ["Tiles used", `${count(wafer.tilesUsed)} of ${count(wafer.columns * wafer.rows)} (${percent(wafer.tilesUsed / Math.max(1, wafer.columns * wafer.rows))})`],
      ["Mesh", `${wafer.columns} \u00d7 ${wafer.rows} tiles`],
      ...(wafer.slowness === 1000 ? [] : [["Takes", `${wafer.slowness / 1000} times the ordinary time`] as Row]),
      ["Traffic in", `${bytes(wafer.trafficIn)} per token`],
      ["Traffic out", `${bytes(wafer.trafficOut)} per token`],
    ]),
    ...memory(wafer.weightBytes, wafer.cacheBytes, wafer.activationBytes),
    element("h4", {}, `Blocks \u00b7 ${wafer.blocks.length}`),
    element("ul", { class: "blocks" }, ...items),
  ];
}

function linkDetails(scene: Scene, link: Link): (Node | string)[] {
  const cost = linkCost(scene.machine, link.source, link.target);
  const items = link.values.map(({ value, source, bytes: size }) =>
    element("li", {}, element("b", {}, value), ` from ${source}, ${bytes(size)} per token`),
  );
  return [
    title(`Wafer ${link.source} \u2192 wafer ${link.target}`, null, `${bytes(link.bytesPerToken)} per token${cost === 1 ? "" : `, at ${cost} times the cost of other links`}`),
    element("h4", {}, `Values \u00b7 ${link.values.length}`),
    element("ul", { class: "names" }, ...items),
  ];
}

export function planDetails(scene: Scene): (Node | string)[] {
  const { solver, workload, totals, machine } = scene.payload;
  const rows: Row[] = [
    ["Status", solver.interrupted ? `${solver.status}, interrupted` : solver.status],
    ...solver.scores.flatMap(({ objective, unit, value, bound, gap, proof }): Row[] => [
      ["Objective", objective],
      ["Value", `${count(value)} ${unit}`],
      ["Bound", `${count(bound)}, gap ${percent(gap, 2)}`],
      ["Proof", proof || "none"],
    ]),
    ["Seed", count(solver.seed)],
  ];
  if (solver.deterministic_time_limit !== null) rows.push(["Time limit", `${solver.deterministic_time_limit} (deterministic)`]);
  const tile = scene.machine.tile_sram_bytes;
  const made: (Node | string)[] = [
    title("The plan", null, "Point at a rectangle, or click it to keep it here."),
    element("h4", {}, "Solver"),
    list(rows),
    element("h4", {}, "Machine"),
    list([
      ["Name", machine.name],
      ["Wafers", `${scene.wafers.length} used of ${machine.systems}`],
      ["Mesh", `${machine.columns} \u00d7 ${machine.rows} tiles`],
      ["Tile memory", `${count(tile)} B`],
      ["Reserve per tile", `${count(machine.reserve_bytes)} B`],
      ["A wafer holds", bytes(scene.tileCapacity * machine.columns * machine.rows)],
      ...machine.odd_wafers.map(({ wafer, columns, rows, slowness_permille: slowness }): Row => [
        `Wafer ${wafer}`,
        columns * rows === 0
          ? "out of service"
          : `${columns} \u00d7 ${rows} tiles${slowness === 1000 ? "" : `, ${slowness / 1000} times the time`}`,
      ]),
      ...machine.odd_links.map(({ one, other, cost }): Row => [`Link ${one}\u2013${other}`, `costs ${cost} times the others`]),
    ]),
    ...(machine.description ? [element("p", { class: "small" }, machine.description)] : []),
    element("h4", {}, "Workload"),
    list([
      ["Users at once", count(workload.users)],
      ["Context each", `${tokens(workload.context)} tokens`],
      ["Chunk", `${count(workload.chunk)} ${workload.chunk === 1 ? "token" : "tokens"}`],
    ]),
    element("h4", {}, "Model"),
    list([
      ["Weights", bytes(totals.weight_bytes)],
      ...(totals.parameters === null ? [] : [["Parameters", parameters(totals.parameters)] as Row]),
      ["Blocks", count(scene.blocks.length)],
      ["Routed experts", count(scene.experts.count)],
    ]),
  ];
  if (totals.unplaced_count) {
    made.push(
      element("h4", {}, `Parameters left out \u00b7 ${count(totals.unplaced_count)}`),
      element("ul", { class: "names" }, ...totals.unplaced.map((name) => element("li", {}, name))),
    );
  }
  return made;
}

export function details(scene: Scene, selection: Selection | null, act: Actions, pinned: boolean): (Node | string)[] {
  if (!selection) return planDetails(scene);
  if (selection.type === "wafer") {
    const wafer = scene.wafers[selection.id]!;
    return [...withActions(waferDetails(scene, wafer, act), actions(scene, selection, wafer, act, pinned))];
  }
  if (selection.type === "link") return withActions(linkDetails(scene, scene.links[selection.id]!), actions(scene, selection, undefined, act, pinned));
  const expert = selection.type === "expert";
  const number = expert ? scene.experts.wafer[selection.id]! : scene.blocks[selection.id]!.wafer;
  const made = expert ? expertDetails(scene, selection.id) : blockDetails(scene, scene.blocks[selection.id]!);
  return withActions(made, actions(scene, selection, scene.waferByNumber.get(number), act, pinned));
}

/** The buttons come right after the title. */
function withActions(made: (Node | string)[], buttons: HTMLElement): (Node | string)[] {
  return [made[0]!, buttons, ...made.slice(1)];
}
