// What the page shows at the moment, and its written form in the URL's fragment.

import type { Camera, Sheet } from "./camera";
import { origin } from "./camera";
import type { Scene } from "./data";

export type Selection =
  | { type: "wafer"; id: number }
  | { type: "block"; id: number }
  | { type: "expert"; id: number }
  | { type: "link"; id: number };

/** A tile of a wafer, given by the wafer's number. */
export interface Tile {
  wafer: number;
  column: number;
  row: number;
}

export interface State {
  selected: Selection | null;
  tile: Tile | null;
  kind: number | null;
  colourBy: "kind" | "memory";
}

/** A view that does not depend on the size of the window: the tile in the middle, and pixels for each tile. */
export interface SavedView extends Tile {
  scale: number;
}

export interface Fragment {
  state: State;
  /** `all` where something is selected and the view still shows all wafers. */
  view: SavedView | "all" | null;
  theme: "light" | "dark" | null;
}

export function saveView(scene: Scene, sheet: Sheet, camera: Camera): SavedView | null {
  let best: SavedView | null = null;
  let nearest = Infinity;
  for (const wafer of scene.wafers) {
    const corner = origin(sheet, wafer.order);
    const column = camera.x - corner.x;
    const row = camera.y - corner.y;
    const distance = Math.hypot(column - wafer.columns / 2, row - wafer.rows / 2);
    if (distance < nearest) {
      nearest = distance;
      best = { wafer: wafer.number, column, row, scale: camera.scale };
    }
  }
  return best;
}

export function restoreView(scene: Scene, sheet: Sheet, view: SavedView): Camera | null {
  const wafer = scene.waferByNumber.get(view.wafer);
  if (!wafer) return null;
  const corner = origin(sheet, wafer.order);
  return { x: corner.x + view.column, y: corner.y + view.row, scale: view.scale };
}

export function writeFragment(scene: Scene, fragment: Fragment): string {
  const parts = new URLSearchParams();
  const { selected, tile, kind, colourBy } = fragment.state;
  if (selected?.type === "wafer") parts.set("wafer", `${scene.wafers[selected.id]!.number}`);
  if (selected?.type === "block") parts.set("block", scene.blocks[selected.id]!.name);
  if (selected?.type === "expert") {
    parts.set("block", scene.blocks[scene.experts.block[selected.id]!]!.name);
    parts.set("expert", `${scene.experts.index[selected.id]!}`);
  }
  if (selected?.type === "link") {
    const link = scene.links[selected.id]!;
    parts.set("transfer", `${link.source},${link.target}`);
  }
  if (tile) parts.set("tile", `${tile.wafer},${tile.column},${tile.row}`);
  if (kind !== null) parts.set("kind", scene.kinds[kind]!);
  if (colourBy === "memory") parts.set("colour", "memory");
  if (fragment.theme) parts.set("theme", fragment.theme);
  const view = fragment.view;
  if (view === "all") parts.set("view", "all");
  else if (view) parts.set("view", [view.wafer, view.column.toFixed(1), view.row.toFixed(1), view.scale.toPrecision(4)].join(","));
  // Commas and dots stay readable; URLSearchParams would write them as %2C.
  return parts.toString().replace(/%2C/g, ",");
}

const numbers = (text: string | null, length: number): number[] | null => {
  const values = (text ?? "").split(",").map(Number);
  return text && values.length === length && values.every(Number.isFinite) ? values : null;
};

function readSelection(scene: Scene, parts: URLSearchParams): Selection | null {
  const block = scene.blockByName.get(parts.get("block") ?? "");
  const expert = parts.get("expert");
  if (block && expert !== null) {
    const id = findExpert(scene, block.id, Number(expert));
    if (id !== null) return { type: "expert", id };
  }
  if (block) return { type: "block", id: block.id };
  const link = numbers(parts.get("transfer"), 2);
  if (link) {
    const found = scene.links.find((one) => one.source === link[0] && one.target === link[1]);
    if (found) return { type: "link", id: found.id };
  }
  const wafer = parts.has("wafer") ? scene.waferByNumber.get(Number(parts.get("wafer"))) : undefined;
  return wafer ? { type: "wafer", id: wafer.order } : null;
}

export function readFragment(scene: Scene, text: string): Fragment {
  const parts = new URLSearchParams(text.replace(/^#/, "").replace(/\+/g, "%2B"));
  const tile = numbers(parts.get("tile"), 3);
  const view = numbers(parts.get("view"), 4);
  const kind = scene.kinds.indexOf(parts.get("kind") ?? "");
  const theme = parts.get("theme");
  return {
    state: {
      selected: readSelection(scene, parts),
      tile: tile ? { wafer: tile[0]!, column: tile[1]!, row: tile[2]! } : null,
      kind: kind < 0 ? null : kind,
      colourBy: parts.get("colour") === "memory" ? "memory" : "kind",
    },
    view: parts.get("view") === "all" ? "all" : view && view[3]! > 0 ? { wafer: view[0]!, column: view[1]!, row: view[2]!, scale: view[3]! } : null,
    theme: theme === "light" || theme === "dark" ? theme : null,
  };
}

export function findExpert(scene: Scene, block: number, index: number): number | null {
  const { firstExpert, experts } = scene.blocks[block]!;
  for (let id = firstExpert; id < firstExpert + experts; id++) if (scene.experts.index[id] === index) return id;
  return null;
}

/** The name of what is selected, as tests and screen readers get it. */
export function selectionName(scene: Scene, selected: Selection | null): string {
  if (!selected) return "";
  if (selected.type === "wafer") return `wafer ${scene.wafers[selected.id]!.number}`;
  if (selected.type === "block") return scene.blocks[selected.id]!.name;
  if (selected.type === "link") {
    const link = scene.links[selected.id]!;
    return `wafer ${link.source} to wafer ${link.target}`;
  }
  const block = scene.blocks[scene.experts.block[selected.id]!]!;
  return `${block.name} expert ${scene.experts.index[selected.id]!}`;
}
