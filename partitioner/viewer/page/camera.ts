// Where the wafers lie on the sheet, and which part of the sheet the canvas shows. Sheet units are tiles.

import type { Rect, Scene, Wafer } from "./data";

/** Wafers in a snake: rows of `across`, every second row from right to left, so that neighbours stay neighbours. */
export interface Sheet {
  across: number;
  down: number;
  pitchX: number;
  pitchY: number;
  /** Height above each wafer that its label takes. */
  band: number;
  width: number;
  height: number;
}

const GAP = 0.18;
const BAND = 0.18;

function sheetOf(machine: Scene["mesh"], wafers: number, across: number): Sheet {
  const down = Math.max(1, Math.ceil(wafers / across));
  const gap = GAP * machine.columns;
  const band = Math.max(BAND * machine.columns, 0.11 * machine.rows);
  const pitchX = machine.columns + gap;
  const pitchY = machine.rows + band + gap * 0.5;
  return { across, down, pitchX, pitchY, band, width: across * pitchX - gap, height: down * pitchY - gap * 0.5 };
}

/** The number of wafers to a row that shows them largest on a canvas of this size. */
export function arrange(scene: Scene, width: number, height: number): Sheet {
  let best = sheetOf(scene.mesh, scene.wafers.length, 1);
  let bestScale = 0;
  for (let across = 1; across <= Math.max(1, scene.wafers.length); across++) {
    const sheet = sheetOf(scene.mesh, scene.wafers.length, across);
    const scale = Math.min(width / sheet.width, height / sheet.height);
    if (scale > bestScale * 1.0001) [best, bestScale] = [sheet, scale];
  }
  return best;
}

export interface Point {
  x: number;
  y: number;
}

/** The corner of a wafer's tile (0, 0) on the sheet. */
export function origin(sheet: Sheet, order: number): Point {
  const line = Math.floor(order / sheet.across);
  const step = order % sheet.across;
  const place = line % 2 === 0 ? step : sheet.across - 1 - step;
  return { x: place * sheet.pitchX, y: line * sheet.pitchY + sheet.band };
}

export function onSheet(sheet: Sheet, wafer: Wafer, rect: Rect): { x: number; y: number; width: number; height: number } {
  const corner = origin(sheet, wafer.order);
  return { x: corner.x + rect.column, y: corner.y + rect.row, width: rect.columns, height: rect.rows };
}

export interface Camera {
  /** Middle of the canvas, on the sheet. */
  x: number;
  y: number;
  /** CSS pixels for each tile. */
  scale: number;
}

export const MAX_SCALE = 48;

export interface Size {
  width: number;
  height: number;
}

export function fitted(
  area: { x: number; y: number; width: number; height: number },
  size: Size,
  margin: number,
  maxScale = MAX_SCALE,
): Camera {
  const scale = Math.min((size.width - 2 * margin) / area.width, (size.height - 2 * margin) / area.height, maxScale);
  return { x: area.x + area.width / 2, y: area.y + area.height / 2, scale: Math.max(scale, 1e-4) };
}

export const toSheet = (camera: Camera, size: Size, x: number, y: number): Point => ({
  x: camera.x + (x - size.width / 2) / camera.scale,
  y: camera.y + (y - size.height / 2) / camera.scale,
});

export const toCanvas = (camera: Camera, size: Size, x: number, y: number): Point => ({
  x: (x - camera.x) * camera.scale + size.width / 2,
  y: (y - camera.y) * camera.scale + size.height / 2,
});

/** Zooms so that the sheet point under (x, y) stays there. */
export function zoomed(camera: Camera, size: Size, x: number, y: number, factor: number, minScale: number): Camera {
  const scale = Math.min(MAX_SCALE, Math.max(minScale, camera.scale * factor));
  const fixed = toSheet(camera, size, x, y);
  return {
    x: fixed.x - (x - size.width / 2) / scale,
    y: fixed.y - (y - size.height / 2) / scale,
    scale,
  };
}

/** The camera `part` of the way from one view to another; zooms at an even rate towards a fixed point. */
export function between(from: Camera, to: Camera, part: number): Camera {
  const scale = from.scale * Math.pow(to.scale / from.scale, part);
  const near = Math.abs(Math.log(to.scale / from.scale)) < 0.01;
  const move = near ? part : (1 / scale - 1 / from.scale) / (1 / to.scale - 1 / from.scale);
  return { x: from.x + (to.x - from.x) * move, y: from.y + (to.y - from.y) * move, scale };
}

export type Level = "overview" | "blocks" | "experts";

/** What is worth drawing at this scale: wafers, blocks with their names, or single experts with their numbers. */
export function levelOf(scene: Scene, scale: number): Level {
  if (scale * expertSide(scene) >= 18) return "experts";
  return scale * Math.min(scene.mesh.columns, scene.mesh.rows) >= 300 ? "blocks" : "overview";
}

const sides = new WeakMap<Scene, number>();

/** The shorter side of a usual expert in tiles; of a tenth of a wafer where none has tiles of its own. */
function expertSide(scene: Scene): number {
  let side = sides.get(scene);
  if (side === undefined) {
    const { count, columns, rows, block } = scene.experts;
    const apart = Array.from({ length: count }, (_, id) => id).filter((id) => !scene.blocks[block[id]!]!.sliced);
    const all = apart.map((id) => Math.min(columns[id]!, rows[id]!)).sort((a, b) => a - b);
    side = all[all.length >> 1] ?? scene.mesh.columns / 10;
    sides.set(scene, side);
  }
  return side;
}

export interface Hit {
  wafer: Wafer | null;
  column: number;
  row: number;
  block: number | null;
  expert: number | null;
  link: number | null;
}

const inside = (rect: Rect, column: number, row: number): boolean =>
  column >= rect.column && row >= rect.row && column < rect.column + rect.columns && row < rect.row + rect.rows;

/** What lies at a point of the sheet. */
export function pick(scene: Scene, sheet: Sheet, at: Point): Hit {
  const none: Hit = { wafer: null, column: 0, row: 0, block: null, expert: null, link: null };
  const place = Math.floor(at.x / sheet.pitchX);
  const line = Math.floor(at.y / sheet.pitchY);
  if (place < 0 || place >= sheet.across || line < 0 || line >= sheet.down) return none;
  const wafer = scene.wafers[line * sheet.across + (line % 2 === 0 ? place : sheet.across - 1 - place)];
  if (!wafer) return none;
  const corner = origin(sheet, wafer.order);
  const column = Math.floor(at.x - corner.x);
  const row = Math.floor(at.y - corner.y);
  if (column < 0 || row < 0 || column >= wafer.columns || row >= wafer.rows) return none;
  const hit: Hit = { ...none, wafer, column, row };
  const holds = (id: number): boolean => {
    const e = scene.experts;
    return (
      e.wafer[id] === wafer.number &&
      inside({ column: e.column[id]!, row: e.row[id]!, columns: e.columns[id]!, rows: e.rows[id]! }, column, row)
    );
  };
  for (const block of wafer.blocks) {
    if (!inside(block.rect, column, row)) continue;
    hit.block = block.id;
    if (block.sliced) continue;
    for (let id = block.firstExpert; id < block.firstExpert + block.experts; id++) {
      if (holds(id)) return { ...hit, expert: id };
    }
  }
  for (const id of wafer.guests) if (holds(id)) return { ...hit, block: scene.experts.block[id]!, expert: id };
  return hit;
}
