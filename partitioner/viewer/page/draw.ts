// Draws the sheet of wafers. Everything is in device pixels and snapped to them, so that edges stay crisp.

import type { Camera, Level, Sheet, Size } from "./camera";
import { levelOf, onSheet, origin } from "./camera";
import type { Block, Link, Scene, Wafer } from "./data";
import { expertRect } from "./data";
import { bytes, count, kindLabel, percent, ranges } from "./format";
import type { Selection, Tile } from "./state";
import type { Palette } from "./theme";
import { inkOn, rampColour } from "./theme";

export const FONT =
  '-apple-system, "Segoe UI Variable Text", "Segoe UI", Roboto, Ubuntu, Cantarell, "Noto Sans", "Liberation Sans", Arial, sans-serif';

export interface Frame {
  scene: Scene;
  sheet: Sheet;
  camera: Camera;
  size: Size;
  dpr: number;
  palette: Palette;
  selected: Selection | null;
  hovered: Selection | null;
  tile: Tile | null;
  kind: number | null;
  colourBy: "kind" | "memory";
}

interface Box {
  x: number;
  y: number;
  w: number;
  h: number;
}

const DIMMED = 0.14;

export class Painter {
  private readonly context: CanvasRenderingContext2D;
  private readonly widths = new Map<string, number>();
  private hatch: { pattern: CanvasPattern; key: string } | null = null;
  private frame!: Frame;
  private level: Level = "overview";
  /** Names of expert groups, drawn last so that neither experts nor outlines cover them. */
  private readonly chips: [Block, Box, number][] = [];

  constructor(private readonly canvas: HTMLCanvasElement) {
    const context = canvas.getContext("2d", { alpha: false });
    if (!context) throw new Error("this browser cannot draw on a canvas");
    this.context = context;
  }

  paint(frame: Frame): Level {
    this.frame = frame;
    const { size, dpr, palette, scene, camera } = frame;
    const width = Math.round(size.width * dpr);
    const height = Math.round(size.height * dpr);
    if (this.canvas.width !== width || this.canvas.height !== height) [this.canvas.width, this.canvas.height] = [width, height];
    this.level = levelOf(scene, camera.scale);
    const c = this.context;
    c.setTransform(1, 0, 0, 1, 0, 0);
    c.globalAlpha = 1;
    c.fillStyle = palette.sheet;
    c.fillRect(0, 0, width, height);
    for (const link of scene.links) this.link(link);
    this.chips.length = 0;
    for (const wafer of scene.wafers) this.wafer(wafer);
    this.marks();
    for (const [block, box, alpha] of this.chips) {
      c.globalAlpha = alpha;
      this.chip(block, box, palette);
    }
    return this.level;
  }

  /** A rectangle of the sheet on the canvas, its edges on whole device pixels. */
  private box(x: number, y: number, width: number, height: number): Box {
    const { camera, dpr } = this.frame;
    const k = camera.scale * dpr;
    const left = Math.round((x - camera.x) * k + this.canvas.width / 2);
    const top = Math.round((y - camera.y) * k + this.canvas.height / 2);
    const right = Math.round((x + width - camera.x) * k + this.canvas.width / 2);
    const bottom = Math.round((y + height - camera.y) * k + this.canvas.height / 2);
    return { x: left, y: top, w: Math.max(1, right - left), h: Math.max(1, bottom - top) };
  }

  private visible(box: Box, margin = 0): boolean {
    return (
      box.x + box.w >= -margin &&
      box.y + box.h >= -margin &&
      box.x <= this.canvas.width + margin &&
      box.y <= this.canvas.height + margin
    );
  }

  private wafer(wafer: Wafer): void {
    const { scene, sheet, palette } = this.frame;
    const corner = origin(sheet, wafer.order);
    const box = this.box(corner.x, corner.y, wafer.columns, wafer.rows);
    const band = sheet.band * this.frame.camera.scale * this.frame.dpr;
    if (!this.visible({ ...box, y: box.y - band, h: box.h + band }, 8)) return;
    const c = this.context;
    c.fillStyle = palette.wafer;
    c.fillRect(box.x, box.y, box.w, box.h);
    c.fillStyle = this.freeTiles(box);
    c.fillRect(box.x, box.y, box.w, box.h);
    for (const block of wafer.blocks) this.block(wafer, block);
    for (const id of wafer.guests) this.expert(wafer, id, this.colour(scene.blocks[scene.experts.block[id]!]!));
    this.tileGrid(wafer, box);
    c.globalAlpha = 1;
    const edge = Math.max(1, Math.round(this.frame.dpr));
    c.strokeStyle = palette.waferEdge;
    c.lineWidth = edge;
    c.strokeRect(box.x - edge / 2, box.y - edge / 2, box.w + edge, box.h + edge);
    this.waferLabel(wafer, box, band);
  }

  /** Diagonal hatching, fixed to the wafer's corner so that it does not swim when the sheet moves. */
  private freeTiles(box: Box): CanvasPattern {
    const { dpr, palette } = this.frame;
    const key = `${dpr} ${palette.hatch}`;
    if (this.hatch?.key !== key) {
      const side = Math.round(7 * dpr);
      const swatch = document.createElement("canvas");
      swatch.width = swatch.height = side;
      const c = swatch.getContext("2d")!;
      c.strokeStyle = palette.hatch;
      c.lineWidth = dpr;
      c.beginPath();
      for (const shift of [-side, 0, side]) {
        c.moveTo(shift - 1, side + 1);
        c.lineTo(shift + side + 1, -1);
      }
      c.stroke();
      this.hatch = { pattern: this.context.createPattern(swatch, "repeat")!, key };
    }
    this.hatch.pattern.setTransform(new DOMMatrix().translate(box.x, box.y));
    return this.hatch.pattern;
  }

  /** Lines between tiles, once a tile is large enough to see. */
  private tileGrid(wafer: Wafer, box: Box): void {
    const { camera, dpr, palette } = this.frame;
    if (camera.scale < 6) return;
    const c = this.context;
    const k = camera.scale * dpr;
    const line = (from: number, at: number): number => Math.round(from + at * k);
    c.globalAlpha = 0.1 * Math.min(1, (camera.scale - 5) / 8);
    c.fillStyle = palette.text;
    const [left, right] = [Math.max(0, box.x), Math.min(this.canvas.width, box.x + box.w)];
    const [top, bottom] = [Math.max(0, box.y), Math.min(this.canvas.height, box.y + box.h)];
    const firstColumn = Math.max(0, Math.floor((left - box.x) / k));
    for (let at = firstColumn; at <= wafer.columns && line(box.x, at) <= right; at++) {
      c.fillRect(line(box.x, at), top, 1, bottom - top);
    }
    const firstRow = Math.max(0, Math.floor((top - box.y) / k));
    for (let at = firstRow; at <= wafer.rows && line(box.y, at) <= bottom; at++) {
      c.fillRect(left, line(box.y, at), right - left, 1);
    }
    c.globalAlpha = 1;
  }

  private colour(block: Block): string {
    const { palette, scene, colourBy } = this.frame;
    return colourBy === "memory" ? rampColour(block.tileBytes / Math.max(1, scene.tileCapacity), palette.dark) : palette.kinds[block.kind]!;
  }

  private ink(block: Block): string {
    return this.frame.colourBy === "memory" ? inkOn(this.colour(block)) : this.frame.palette.inks[block.kind]!;
  }

  private block(wafer: Wafer, block: Block): void {
    const { sheet, palette, kind } = this.frame;
    const area = onSheet(sheet, wafer, block.rect);
    const box = this.box(area.x, area.y, area.width, area.height);
    if (!this.visible(box)) return;
    const c = this.context;
    const colour = this.colour(block);
    const alpha = kind === null || kind === block.kind ? 1 : DIMMED;
    const single = block.experts > 0 && !block.sliced && this.expertsVisible(block);
    c.globalAlpha = 1;
    c.fillStyle = palette.wafer;
    c.fillRect(box.x, box.y, box.w, box.h);
    // What of an expert group no expert covers stays a paler ground.
    c.globalAlpha = single ? alpha * 0.32 : alpha;
    const gap = box.w > 6 && box.h > 6 ? Math.max(1, Math.round(this.frame.dpr)) : 0;
    c.fillStyle = colour;
    c.fillRect(box.x, box.y, box.w - gap, box.h - gap);
    c.globalAlpha = alpha;
    if (single) for (let id = block.firstExpert; id < block.firstExpert + block.experts; id++) this.expert(wafer, id, colour);
    c.globalAlpha = alpha < 1 ? 0.35 : 1;
    if (!single) this.blockLabel(block, box, this.ink(block));
    else this.chips.push([block, box, c.globalAlpha]);
    c.globalAlpha = 1;
  }

  private expertsVisible(block: Block): boolean {
    const first = block.firstExpert;
    const { columns, rows } = this.frame.scene.experts;
    return Math.min(columns[first]!, rows[first]!) * this.frame.camera.scale >= 4.5;
  }

  private expert(wafer: Wafer, id: number, colour: string): void {
    const { scene, sheet, camera, palette } = this.frame;
    if (scene.experts.wafer[id] !== wafer.number) return;
    const area = onSheet(sheet, wafer, expertRect(scene.experts, id));
    const box = this.box(area.x, area.y, area.width, area.height);
    if (!this.visible(box)) return;
    const c = this.context;
    c.fillStyle = colour;
    const gap = Math.max(1, Math.round(this.frame.dpr * (camera.scale > 3 ? 2 : 1)));
    c.fillRect(box.x, box.y, Math.max(1, box.w - gap), Math.max(1, box.h - gap));
    const dpr = this.frame.dpr;
    if (box.w < 17 * dpr || box.h < 12 * dpr) return;
    const size = Math.min(16 * dpr, Math.max(9 * dpr, box.h * 0.3, box.w * 0.16), box.h * 0.8, box.w * 0.5);
    const block = scene.blocks[scene.experts.block[id]!]!;
    c.fillStyle = this.frame.colourBy === "memory" ? inkOn(colour) : palette.inks[block.kind]!;
    this.text(`${scene.experts.index[id]!}`, box.x + (box.w - gap) / 2, box.y + (box.h - gap) / 2, size, "center", 600);
    if (box.h < 70 * dpr || box.w < 110 * dpr) return;
    const before = c.globalAlpha;
    c.globalAlpha = before * 0.75;
    const note = `${area.width} \u00d7 ${area.height} at ${scene.experts.column[id]!}, ${scene.experts.row[id]!}`;
    this.text(note, box.x + (box.w - gap) / 2, box.y + (box.h - gap) / 2 + size * 1.2, 10.5 * dpr, "center");
    c.globalAlpha = before;
  }

  private measure(text: string, weight: number): number {
    const key = `${weight} ${text}`;
    let width = this.widths.get(key);
    if (width === undefined) {
      this.context.font = `${weight} 100px ${FONT}`;
      width = this.context.measureText(text).width / 100;
      if (this.widths.size > 60_000) this.widths.clear();
      this.widths.set(key, width);
    }
    return width;
  }

  private text(text: string, x: number, y: number, size: number, align: CanvasTextAlign, weight = 400): void {
    const c = this.context;
    c.font = `${weight} ${size.toFixed(1)}px ${FONT}`;
    c.textAlign = align;
    c.textBaseline = "middle";
    c.fillText(text, x, y + size * 0.04);
  }

  /** The longest name that fits, rather level than upright; then what else fits below it. */
  private blockLabel(block: Block, box: Box, ink: string): void {
    const { dpr } = this.frame;
    if (Math.min(box.w, box.h) < 9 * dpr || Math.max(box.w, box.h) < 14 * dpr) return;
    const kind = kindLabel(this.frame.scene.kinds[block.kind]!);
    const layer = block.layer === null ? "" : `L${block.layer}`;
    // In the overview every block of a layer is called alike, whatever would fit.
    const full = this.level === "overview" && layer ? "" : block.name;
    const long = [full, layer ? `${layer} ${kind.toLowerCase()}` : kind];
    const label =
      this.fitted(long, box.w, box.h, true) ??
      this.fitted(long, box.h, box.w, false) ??
      this.fitted([layer], box.w, box.h, true) ??
      this.fitted([layer], box.h, box.w, false);
    if (!label) return;
    const { name, size, level } = label;
    const [length, height] = level ? [box.w, box.h] : [box.h, box.w];
    const noteSize = Math.max(9 * dpr, Math.min(12 * dpr, size * 0.85));
    const line = noteSize * 1.35;
    const room = length - 8 * dpr;
    const notes = this.level === "overview" ? [] : this.blockNotes(block, name === layer).filter((text) => this.measure(text, 400) * noteSize <= room);
    const fits = Math.max(0, Math.min(notes.length, Math.floor((height - size * 1.5 - 4 * dpr) / line)));
    const c = this.context;
    c.save();
    c.translate(box.x + box.w / 2, box.y + box.h / 2);
    if (!level) c.rotate(-Math.PI / 2);
    c.fillStyle = ink;
    const top = (-fits * line) / 2;
    this.text(name, 0, top, size, "center", 600);
    c.globalAlpha *= 0.85;
    for (let i = 0; i < fits; i++) this.text(notes[i]!, 0, top + size * 0.6 + noteSize * 0.75 + line * i, noteSize, "center");
    c.restore();
  }

  private fitted(names: string[], length: number, height: number, level: boolean): { name: string; size: number; level: boolean } | null {
    const { dpr } = this.frame;
    const most = Math.min(15 * dpr, Math.max(10 * dpr, height * 0.22), height * 0.82);
    const least = Math.min(most, (this.level === "overview" ? 9 : 10.5) * dpr);
    for (const name of names) {
      if (!name) continue;
      const size = Math.min(most, (length - 8 * dpr) / this.measure(name, 600));
      if (size >= least) return { name, size, level };
    }
    return null;
  }

  private blockNotes(block: Block, nameless: boolean): string[] {
    const kind = kindLabel(this.frame.scene.kinds[block.kind]!);
    const size = bytes(block.weightBytes + block.cacheBytes + block.activationBytes);
    const experts = block.experts ? [`${count(block.experts)} experts${block.sliced ? ", each on all tiles" : ""}`] : [];
    return [
      ...(nameless ? [kind.toLowerCase()] : experts),
      `${size}`,
      `${block.rect.columns} \u00d7 ${block.rect.rows} tiles`,
      block.layer === null ? kind : `layer ${block.layer} \u00b7 ${kind.toLowerCase()}`,
    ];
  }

  /** The name of an expert group: in its corner, or on its upper edge where the experts' numbers need the room. */
  private chip(block: Block, box: Box, palette: Palette): void {
    const { dpr } = this.frame;
    const numbered = this.level === "experts";
    const size = (numbered ? 10.5 : 11.5) * dpr;
    const pad = 7 * dpr;
    const text = `${block.name}  \u00b7  ${count(block.experts)} experts`;
    const short = block.layer === null ? block.name : `L${block.layer} experts`;
    const label = [text, block.name, short].find((one) => this.measure(one, 600) * size + 2 * pad + 12 * dpr < box.w);
    if (!label || box.h < 60 * dpr) return;
    const width = this.measure(label, 600) * size + 2 * pad;
    const height = size + (numbered ? 6 : 10) * dpr;
    const x = Math.min(Math.max(box.x, 0) + 6 * dpr, box.x + box.w - width - 6 * dpr);
    const y = numbered ? box.y - height / 2 : Math.min(Math.max(box.y, 0) + 6 * dpr, box.y + box.h - height - 6 * dpr);
    const c = this.context;
    c.fillStyle = palette.wafer;
    c.strokeStyle = palette.waferEdge;
    c.lineWidth = dpr;
    c.beginPath();
    c.roundRect(x, y, width, height, 5 * dpr);
    c.fill();
    if (numbered) c.stroke();
    c.fillStyle = palette.text;
    this.text(label, x + pad, y + height / 2, size, "left", 600);
  }

  private waferLabel(wafer: Wafer, box: Box, band: number): void {
    const { dpr, palette } = this.frame;
    const width = box.w;
    if (width < 26 * dpr) return;
    const c = this.context;
    const size = Math.min(16 * dpr, Math.max(9 * dpr, Math.min(width * 0.1, band * 0.46)));
    if (band < size * 1.3) return;
    const bar = Math.max(2, Math.round(3 * dpr));
    const y = box.y - 4 * dpr - bar - size * 0.75;
    const number = width > 230 * dpr ? `Wafer ${wafer.number}` : `${wafer.number}`;
    const fill = percent(wafer.fill);
    c.fillStyle = palette.text;
    this.text(number, box.x, y, size, "left", 700);
    const used = this.measure(number, 700) * size;
    const small = size * 0.9;
    c.fillStyle = palette.muted;
    const right = this.measure(fill, 400) * small;
    if (used + right + 8 * dpr < width) this.text(fill, box.x + width, y, small, "right");
    const layers = wafer.layers.length ? ranges(wafer.layers) : "";
    const long = layers && `${wafer.layers.length === 1 ? "layer" : "layers"} ${layers}`;
    const room = width - used - right - 18 * dpr;
    const shown = [width > 230 * dpr ? long : "", layers && `L${layers}`].find((text) => text && this.measure(text, 400) * small < room);
    if (shown) this.text(shown, box.x + used + 8 * dpr, y, small, "left");
    c.fillStyle = palette.waferEdge;
    c.fillRect(box.x, box.y - 4 * dpr - bar, width, bar);
    c.fillStyle = palette.muted;
    c.fillRect(box.x, box.y - 4 * dpr - bar, Math.round(width * Math.min(1, wafer.fill)), bar);
  }

  /** An arrow from wafer to wafer; straight between neighbours, an arc over others. */
  private link(link: Link): void {
    const path = this.linkPath(link);
    if (!path) return;
    const { palette, dpr, selected, hovered, camera } = this.frame;
    const strong = [selected, hovered].some((one) => one?.type === "link" && one.id === link.id);
    const c = this.context;
    const unit = Math.max(0.6, Math.min(2.2, camera.scale * 8)) * dpr;
    c.strokeStyle = c.fillStyle = strong ? palette.accent : palette.link;
    c.globalAlpha = strong ? 1 : path.near ? 0.9 : 0.35;
    c.lineWidth = (strong ? 2 : 1.2) * unit;
    const { from, to, over } = path;
    c.beginPath();
    c.moveTo(from.x, from.y);
    if (over) c.quadraticCurveTo(over.x, over.y, to.x, to.y);
    else c.lineTo(to.x, to.y);
    c.stroke();
    const angle = Math.atan2(to.y - (over ?? from).y, to.x - (over ?? from).x);
    const head = 5 * unit;
    c.beginPath();
    c.moveTo(to.x, to.y);
    for (const side of [-0.45, 0.45]) c.lineTo(to.x - head * Math.cos(angle + side), to.y - head * Math.sin(angle + side));
    c.fill();
    if (path.near && Math.abs(to.x - from.x) > 90 * dpr) {
      c.fillStyle = palette.muted;
      c.globalAlpha = 1;
      const [x, y] = [(from.x + to.x) / 2, from.y];
      this.text(bytes(link.bytesPerToken), x, y - 12 * dpr, 11.5 * dpr, "center", 600);
      this.text("per token", x, y + 13 * dpr, 10.5 * dpr, "center");
    }
    c.globalAlpha = 1;
  }

  private linkPath(link: Link) {
    const { scene, sheet, dpr } = this.frame;
    const source = scene.waferByNumber.get(link.source);
    const target = scene.waferByNumber.get(link.target);
    if (!source || !target) return null;
    const a = origin(sheet, source.order);
    const b = origin(sheet, target.order);
    const [p, q] = [this.box(a.x, a.y, source.columns, source.rows), this.box(b.x, b.y, target.columns, target.rows)];
    const middle = (box: Box) => ({ x: box.x + box.w / 2, y: box.y + box.h / 2 });
    const [m, n] = [middle(p), middle(q)];
    const pad = 3 * dpr;
    const sameLine = Math.abs(a.y - b.y) < 1;
    const near = Math.abs(source.order - target.order) === 1;
    if (near && sameLine) {
      const right = b.x > a.x;
      // Level, at half the height of the lower wafer.
      const y = p.h < q.h ? m.y : n.y;
      return { near, over: null, from: { x: right ? p.x + p.w + pad : p.x - pad, y }, to: { x: right ? q.x - pad : q.x + q.w + pad, y } };
    }
    if (near) {
      const down = b.y > a.y;
      // Beside the label of the wafer below, which is on its left.
      const x = p.x + Math.min(p.w, q.w) * 0.5;
      const label = sheet.band * this.frame.camera.scale * dpr;
      const top = Math.min(label * 0.95, 24 * dpr);
      const [above, below] = down ? [p, q] : [q, p];
      const low = below.y - top;
      const high = Math.min(above.y + above.h + pad, low - 6 * dpr);
      const [start, end] = down ? [high, low] : [low, high];
      return { near, over: null, from: { x, y: start }, to: { x, y: end } };
    }
    const lift = Math.min(p.h * 0.5, Math.hypot(n.x - m.x, n.y - m.y) * 0.25);
    const over = { x: (m.x + n.x) / 2 + (sameLine ? 0 : lift), y: sameLine ? p.y - lift : (m.y + n.y) / 2 };
    const from = sameLine ? { x: m.x, y: p.y } : m;
    const to = sameLine ? { x: n.x, y: q.y } : n;
    return { near, over, from, to };
  }

  /** The transfer drawn within a few pixels of a point of the canvas, in the frame last painted. */
  linkAt(x: number, y: number): Selection | null {
    const { scene, dpr } = this.frame;
    for (const link of scene.links) {
      const path = this.linkPath(link);
      if (!path) continue;
      for (let step = 0; step <= 24; step++) {
        const t = step / 24;
        const over = path.over ?? { x: (path.from.x + path.to.x) / 2, y: (path.from.y + path.to.y) / 2 };
        const at = (a: number, b: number, c: number): number => (1 - t) * (1 - t) * a + 2 * t * (1 - t) * b + t * t * c;
        const [px, py] = [at(path.from.x, over.x, path.to.x), at(path.from.y, over.y, path.to.y)];
        if (Math.hypot(px - x * dpr, py - y * dpr) < 9 * dpr) return { type: "link", id: link.id };
      }
    }
    return null;
  }

  private marks(): void {
    const { hovered, selected, tile } = this.frame;
    if (hovered) this.outline(hovered, false);
    if (selected) this.outline(selected, true);
    if (tile) this.crosshair(tile);
  }

  private outline(mark: Selection, strong: boolean): void {
    const { scene, sheet, palette, dpr } = this.frame;
    let box: Box | null = null;
    if (mark.type === "wafer") {
      const wafer = scene.wafers[mark.id]!;
      const corner = origin(sheet, wafer.order);
      box = this.box(corner.x, corner.y, wafer.columns, wafer.rows);
    } else if (mark.type !== "link") {
      const expert = mark.type === "expert";
      const block = scene.blocks[expert ? scene.experts.block[mark.id]! : mark.id]!;
      const number = expert ? scene.experts.wafer[mark.id]! : block.wafer;
      const wafer = scene.waferByNumber.get(number);
      if (!wafer) return;
      const area = onSheet(sheet, wafer, expert ? expertRect(scene.experts, mark.id) : block.rect);
      box = this.box(area.x, area.y, area.width, area.height);
    }
    if (!box || !this.visible(box, 8)) return;
    const c = this.context;
    const line = Math.max(1, Math.round((strong ? 2 : 1.25) * dpr));
    for (const [colour, width, grow] of [
      [palette.halo, line + 2 * Math.round(dpr), line / 2],
      [strong ? palette.accent : palette.text, line, line / 2],
    ] as const) {
      c.strokeStyle = colour;
      c.lineWidth = width;
      c.strokeRect(box.x - grow, box.y - grow, box.w + 2 * grow, box.h + 2 * grow);
    }
  }

  private crosshair(tile: Tile): void {
    const { scene, sheet, palette, dpr } = this.frame;
    const wafer = scene.waferByNumber.get(tile.wafer);
    if (!wafer) return;
    const corner = origin(sheet, wafer.order);
    const box = this.box(corner.x + tile.column, corner.y + tile.row, 1, 1);
    const [x, y] = [box.x + box.w / 2, box.y + box.h / 2];
    const c = this.context;
    const reach = 16 * dpr;
    const hole = Math.max(box.w / 2, 4 * dpr);
    for (const [colour, width] of [
      [palette.halo, 5 * dpr],
      [palette.accent, 2 * dpr],
    ] as const) {
      c.strokeStyle = colour;
      c.lineWidth = width;
      c.beginPath();
      for (const [dx, dy] of [[1, 0], [-1, 0], [0, 1], [0, -1]] as const) {
        c.moveTo(x + dx * hole, y + dy * hole);
        c.lineTo(x + dx * (hole + reach), y + dy * (hole + reach));
      }
      c.rect(x - hole, y - hole, 2 * hole, 2 * hole);
      c.stroke();
    }
  }
}

/** The whole sheet in small, with the part that the canvas shows. */
export function paintMinimap(canvas: HTMLCanvasElement, frame: Frame, width: number): void {
  const { scene, sheet, palette, camera, size, dpr } = frame;
  const k = (width * dpr) / sheet.width;
  canvas.width = Math.round(width * dpr);
  canvas.height = Math.round(sheet.height * k);
  canvas.style.width = `${width}px`;
  canvas.style.height = `${canvas.height / dpr}px`;
  const c = canvas.getContext("2d")!;
  for (const wafer of scene.wafers) {
    const corner = origin(sheet, wafer.order);
    c.fillStyle = palette.waferEdge;
    c.fillRect(corner.x * k, corner.y * k, wafer.columns * k, wafer.rows * k);
    for (const block of wafer.blocks) {
      c.fillStyle = palette.kinds[block.kind]!;
      const area = onSheet(sheet, wafer, block.rect);
      c.fillRect(area.x * k, area.y * k, Math.max(0.5, area.width * k), Math.max(0.5, area.height * k));
    }
  }
  c.strokeStyle = palette.accent;
  c.lineWidth = 1.5 * dpr;
  const [w, h] = [(size.width / camera.scale) * k, (size.height / camera.scale) * k];
  c.strokeRect(camera.x * k - w / 2, camera.y * k - h / 2, Math.max(3 * dpr, w), Math.max(3 * dpr, h));
}
