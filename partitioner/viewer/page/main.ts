// The report page: reads the plan out of the page, and ties the drawing, the panel, the table and the keys together.

import type { Camera, Hit, Level, Sheet, Size } from "./camera";
import { arrange, between, fitted, MAX_SCALE, onSheet, origin, pick, toSheet, zoomed } from "./camera";
import type { Payload, Scene } from "./data";
import { decode, expertRect } from "./data";
import { details } from "./details";
import { setUpDialogs } from "./dialogs";
import type { Target } from "./dialogs";
import { byId, element } from "./dom";
import type { Frame } from "./draw";
import { Painter, paintMinimap } from "./draw";
import { bytes, count } from "./format";
import { fillFacts, fillLegend, fillRamp, markLegend } from "./header";
import { setUpSearch } from "./searchbox";
import type { SavedView, Selection, State, Tile } from "./state";
import { readFragment, restoreView, saveView, selectionName, writeFragment } from "./state";
import { fillTable, markRow } from "./table";
import type { Palette } from "./theme";
import { readPalette } from "./theme";

declare global {
  interface Window {
    waferc?: { level(): string; selected(): string; camera(): Camera; wafers: number; blocks: number; experts: number };
  }
}

/** `all` wafers, or what is `selected`, or nothing. */
type Follow = { what: "all" | "selected"; camera: () => Camera } | null;

const MARGIN = 26;
const systemIsDark = matchMedia("(prefers-color-scheme: dark)");

class Page {
  private readonly canvas = byId<HTMLCanvasElement>("plan");
  private readonly painter = new Painter(this.canvas);
  private readonly minimap = byId<HTMLCanvasElement>("minimap");
  private size: Size = { width: 1, height: 1 };
  private sheet: Sheet;
  private camera: Camera = { x: 0, y: 0, scale: 1 };
  private palette: Palette;
  private state: State = { selected: null, tile: null, kind: null, colourBy: "kind" };
  private theme: "light" | "dark" | null = null;
  private hovered: Selection | null = null;
  private legendHover: number | null = null;
  private level: Level = "overview";
  /** What the view keeps to when the window changes, until someone moves it by hand. */
  private follow: Follow = { what: "all", camera: () => this.whole() };
  private dirty = false;
  private flight = 0;
  private saving = 0;
  private written = "";
  private shownDetails = "";
  private readonly dialogs: { openGoto(): void; openHelp(): void };
  private readonly searchBox: { open(): void };

  constructor(private readonly scene: Scene) {
    this.sheet = arrange(scene, 1, 1);
    this.palette = readPalette(scene.kinds);
    fillFacts(scene);
    fillTable(scene, (wafer) => this.goTo({ type: "wafer", id: wafer.order }));
    fillLegend(scene, {
      hover: (kind) => this.update(() => (this.legendHover = kind)),
      toggle: (kind) => this.update(() => (this.state.kind = this.state.kind === kind ? null : kind)),
      colourBy: (by) => this.update(() => (this.state.colourBy = by)),
    });
    this.dialogs = setUpDialogs(scene, (target) => this.goToTarget(target));
    this.searchBox = setUpSearch(scene, (selection) => {
      this.goTo(selection);
      this.canvas.focus({ preventScroll: true });
    });
    this.canvas.setAttribute("aria-label", `Floor plan of ${scene.wafers.length} wafers`);
    this.listen();
    this.resize();
    this.load(true);
  }

  // ---- what is shown -------------------------------------------------------------------------------------------

  private update(change: () => void): void {
    change();
    this.syncPanels();
    this.invalidate();
    this.saveSoon();
  }

  private select(selected: Selection | null, reveal = true): void {
    this.update(() => {
      this.state.selected = selected;
      this.hovered = null;
      if (this.follow?.what === "selected") this.follow = null;
    });
    byId("live").textContent = selected ? `Selected: ${selectionName(this.scene, selected)}` : "Selection cleared";
    markRow(this.waferOf(selected), reveal);
  }

  private goTo(selected: Selection): void {
    this.state.tile = null;
    this.select(selected);
    this.fly(() => this.viewOf(selected));
  }

  private goToTarget(target: Target): void {
    if ("selection" in target) return this.goTo(target.selection);
    this.state.tile = target.tile;
    this.select(this.atTile(target.tile));
    this.fly(() => this.tileView(target.tile));
  }

  private tileView(tile: Tile): Camera {
    const corner = origin(this.sheet, this.scene.waferByNumber.get(tile.wafer)!.order);
    return { x: corner.x + tile.column + 0.5, y: corner.y + tile.row + 0.5, scale: 9 };
  }

  private atTile(tile: Tile): Selection | null {
    return this.named(pick(this.scene, this.sheet, this.tileView(tile)), true);
  }

  private waferOf(selected: Selection | null): number | null {
    if (!selected || selected.type === "link") return null;
    if (selected.type === "wafer") return this.scene.wafers[selected.id]!.number;
    return selected.type === "block" ? this.scene.blocks[selected.id]!.wafer : this.scene.experts.wafer[selected.id]!;
  }

  private viewOf(selected: Selection): Camera {
    const { scene, sheet, size } = this;
    if (selected.type === "link") {
      const { source, target } = scene.links[selected.id]!;
      const ends = [source, target].map((number) => origin(sheet, scene.waferByNumber.get(number)?.order ?? 0));
      const [xs, ys] = [ends.map((end) => end.x), ends.map((end) => end.y)];
      const [x, y] = [Math.min(...xs), Math.min(...ys) - sheet.band];
      const width = Math.max(...xs) - x + scene.mesh.columns;
      return fitted({ x, y, width, height: Math.max(...ys) - y + scene.mesh.rows }, size, MARGIN);
    }
    if (selected.type === "wafer") {
      const { x, y } = origin(sheet, selected.id);
      const { columns, rows } = scene.wafers[selected.id]!;
      return fitted({ x, y: y - sheet.band * 0.4, width: columns, height: rows + sheet.band * 0.4 }, size, MARGIN);
    }
    const wafer = scene.waferByNumber.get(this.waferOf(selected)!)!;
    const rect = selected.type === "block" ? scene.blocks[selected.id]!.rect : expertRect(scene.experts, selected.id);
    const margin = selected.type === "block" ? Math.min(size.width, size.height) * 0.1 : Math.min(size.width, size.height) * 0.36;
    return fitted(onSheet(sheet, wafer, rect), size, margin, 12);
  }

  private whole(): Camera {
    return fitted({ x: 0, y: 0, width: this.sheet.width, height: this.sheet.height }, this.size, MARGIN);
  }

  private minScale(): number {
    return this.whole().scale * 0.6;
  }

  // ---- camera --------------------------------------------------------------------------------------------------

  private look(camera: Camera, byHand = true): void {
    const { width, height } = this.sheet;
    this.camera = {
      x: Math.min(width, Math.max(0, camera.x)),
      y: Math.min(height, Math.max(0, camera.y)),
      scale: Math.min(MAX_SCALE, Math.max(this.minScale(), camera.scale)),
    };
    if (byHand) this.follow = null;
    this.invalidate();
    this.saveSoon();
  }

  private fly(where: () => Camera, what: "all" | "selected" = "selected"): void {
    cancelAnimationFrame(this.flight);
    byId("tip").hidden = true;
    const from = this.camera;
    const to = where();
    this.follow = { what, camera: where };
    this.saveSoon();
    if (matchMedia("(prefers-reduced-motion: reduce)").matches) return this.look(to, false);
    const begin = performance.now();
    const step = (now: number): void => {
      const part = Math.min(1, Math.max(0, (now - begin) / 320));
      if (part >= 1) return this.look(to, false);
      this.look(between(from, to, 1 - Math.pow(1 - part, 3)), false);
      this.flight = requestAnimationFrame(step);
    };
    this.flight = requestAnimationFrame(step);
  }

  private zoomBy(factor: number, x = this.size.width / 2, y = this.size.height / 2): void {
    cancelAnimationFrame(this.flight);
    this.look(zoomed(this.camera, this.size, x, y, factor, this.minScale()));
  }

  private pan(dx: number, dy: number): void {
    cancelAnimationFrame(this.flight);
    this.look({ ...this.camera, x: this.camera.x + dx / this.camera.scale, y: this.camera.y + dy / this.camera.scale });
  }

  private fit(): void {
    this.fly(() => this.whole(), "all");
  }

  private resize(): void {
    const view = saveView(this.scene, this.sheet, this.camera);
    const box = byId("stage").getBoundingClientRect();
    this.size = { width: Math.max(50, box.width), height: Math.max(50, box.height) };
    this.sheet = arrange(this.scene, this.size.width - 2 * MARGIN, this.size.height - 2 * MARGIN);
    cancelAnimationFrame(this.flight);
    this.camera = this.follow?.camera() ?? (view && restoreView(this.scene, this.sheet, view)) ?? this.whole();
  }

  // ---- drawing -------------------------------------------------------------------------------------------------

  private invalidate(): void {
    if (this.dirty) return;
    this.dirty = true;
    requestAnimationFrame(() => {
      this.dirty = false;
      this.draw();
    });
  }

  private draw(): void {
    const frame: Frame = {
      scene: this.scene,
      sheet: this.sheet,
      camera: this.camera,
      size: this.size,
      dpr: window.devicePixelRatio || 1,
      palette: this.palette,
      selected: this.state.selected,
      hovered: this.hovered,
      tile: this.state.tile,
      kind: this.legendHover ?? this.state.kind,
      colourBy: this.state.colourBy,
    };
    this.level = this.painter.paint(frame);
    document.body.dataset["level"] = this.level;
    const small = this.camera.scale < this.whole().scale * 1.35;
    this.minimap.hidden = small;
    byId("here").textContent = this.level === "experts" && !small ? this.whereabouts() : "";
    if (!small) paintMinimap(this.minimap, frame, Math.min(190, this.size.width * 0.22));
  }

  /** The wafer and the block in the middle of the canvas, which may be larger than it. */
  private whereabouts(): string {
    const hit = this.hitAt(this.size.width / 2, this.size.height / 2);
    if (!hit.wafer) return "";
    const block = hit.block === null ? [] : [this.scene.blocks[hit.block]!.name];
    return [`Wafer ${hit.wafer.number}`, ...block].join("  \u203a  ");
  }

  private syncPanels(): void {
    const { scene, state } = this;
    const shown = state.selected ?? this.hovered;
    const key = JSON.stringify([shown, state.selected !== null]);
    if (key !== this.shownDetails) {
      this.shownDetails = key;
      const panel = byId("details");
      panel.replaceChildren(
        ...details(scene, shown, {
          select: (selection) => this.select(selection),
          zoom: (selection) => this.fly(() => this.viewOf(selection)),
          clear: () => this.clear(),
        }, state.selected !== null),
      );
      if (state.selected) panel.scrollTop = 0;
    }
    markLegend(state.kind, state.colourBy);
    document.body.dataset["selected"] = selectionName(scene, state.selected);
  }

  // ---- fragment ------------------------------------------------------------------------------------------------

  private saveSoon(): void {
    clearTimeout(this.saving);
    this.saving = window.setTimeout(() => {
      const bare = !this.state.selected && !this.state.tile;
      const view: SavedView | "all" | null = this.follow
        ? this.follow.what === "selected" || bare ? null : "all"
        : saveView(this.scene, this.sheet, this.camera);
      this.written = writeFragment(this.scene, { state: this.state, view, theme: this.theme });
      // Without a fragment the address keeps a lone "#": a relative address of "" would keep the old one.
      if (location.hash.replace(/^#/, "") !== this.written) history.replaceState(null, "", `#${this.written}`);
    }, 250);
  }

  private load(first = false): void {
    const text = location.hash.replace(/^#/, "");
    if (!first && text === this.written) return;
    const fragment = readFragment(this.scene, text);
    this.unhover();
    this.state = fragment.state;
    if (fragment.theme) this.theme = fragment.theme;
    this.recolour();
    if (this.state.tile && !this.scene.waferByNumber.has(this.state.tile.wafer)) this.state.tile = null;
    const { tile } = this.state;
    const selected = this.state.selected ?? (tile && this.atTile(tile));
    this.state.selected = selected;
    const all = fragment.view === "all" || (!selected && !tile);
    const saved = fragment.view === null || fragment.view === "all" ? null : restoreView(this.scene, this.sheet, fragment.view);
    const camera = (): Camera => (all ? this.whole() : tile ? this.tileView(tile) : this.viewOf(selected!));
    this.follow = saved ? null : { what: all ? "all" : "selected", camera };
    this.look(saved ?? camera(), false);
    markRow(this.waferOf(selected), true);
    this.update(() => undefined);
  }

  private setTheme(theme: "light" | "dark"): void {
    this.theme = theme;
    this.recolour();
  }

  /** Takes the colours of the chosen theme, or of the system's where none was chosen. */
  private recolour(): void {
    document.documentElement.dataset["theme"] = this.theme ?? (systemIsDark.matches ? "dark" : "light");
    this.palette = readPalette(this.scene.kinds);
    fillRamp(this.palette.dark);
    this.invalidate();
  }

  private toggleTheme(): void {
    this.setTheme(this.palette.dark ? "light" : "dark");
    this.saveSoon();
  }

  // ---- pointer -------------------------------------------------------------------------------------------------

  /** What a hit is called at this zoom: in the overview a group, not its single experts. */
  private named(hit: Hit, deep = this.camera.scale * 20 > 90): Selection | null {
    if (hit.expert !== null && deep) return { type: "expert", id: hit.expert };
    if (hit.block !== null) return { type: "block", id: hit.block };
    return hit.wafer ? { type: "wafer", id: hit.wafer.order } : null;
  }

  private hitAt(x: number, y: number): Hit {
    return pick(this.scene, this.sheet, toSheet(this.camera, this.size, x, y));
  }

  private selectionAt(x: number, y: number): Selection | null {
    return this.named(this.hitAt(x, y)) ?? this.painter.linkAt(x, y);
  }

  private hover(x: number, y: number): void {
    const hit = this.hitAt(x, y);
    const found = this.named(hit) ?? this.painter.linkAt(x, y);
    byId("readout").textContent = hit.wafer
      ? `wafer ${hit.wafer.number}   column ${hit.column}   row ${hit.row}   \u00b7   ${this.camera.scale.toPrecision(2)} px per tile`
      : "";
    this.tip(found, x, y);
    if (JSON.stringify(found) === JSON.stringify(this.hovered)) return;
    this.hovered = found;
    this.syncPanels();
    this.invalidate();
  }

  private tip(found: Selection | null, x: number, y: number): void {
    const tip = byId("tip");
    tip.hidden = !found;
    if (!found) return;
    const lines = tipLines(this.scene, found);
    tip.replaceChildren(element("b", {}, lines[0]!), ...lines.slice(1).map((line) => element("span", {}, line)));
    const [w, h] = [tip.offsetWidth, tip.offsetHeight];
    const left = x + 16 + w > this.size.width ? x - w - 12 : x + 16;
    const top = y + 18 + h > this.size.height ? y - h - 12 : y + 18;
    tip.style.transform = `translate(${Math.max(4, left)}px, ${Math.max(4, top)}px)`;
  }

  private unhover(): void {
    byId("tip").hidden = true;
    byId("readout").textContent = "";
    if (!this.hovered) return;
    this.hovered = null;
    this.syncPanels();
    this.invalidate();
  }

  private clear(): void {
    this.state.tile = null;
    this.state.kind = null;
    this.select(null);
  }

  private listenPointer(): void {
    const canvas = this.canvas;
    const pointers = new Map<number, { x: number; y: number }>();
    let moved = 0;
    const at = (event: MouseEvent) => {
      const box = canvas.getBoundingClientRect();
      return { x: event.clientX - box.left, y: event.clientY - box.top };
    };
    canvas.addEventListener("wheel", (event) => {
      event.preventDefault();
      const lines = event.deltaMode === WheelEvent.DOM_DELTA_LINE ? 16 : 1;
      const { x, y } = at(event);
      this.zoomBy(Math.exp(-Math.max(-240, Math.min(240, event.deltaY * lines)) * (event.ctrlKey ? 0.01 : 0.0022)), x, y);
      this.hover(x, y);
    }, { passive: false });
    canvas.addEventListener("pointerdown", (event) => {
      if (event.button !== 0) return;
      canvas.setPointerCapture(event.pointerId);
      pointers.set(event.pointerId, at(event));
      if (pointers.size === 1) moved = 0;
    });
    canvas.addEventListener("pointermove", (event) => {
      const here = at(event);
      const before = pointers.get(event.pointerId);
      if (!before) return this.hover(here.x, here.y);
      const other = [...pointers].find(([id]) => id !== event.pointerId)?.[1];
      if (other) {
        const spread = (point: { x: number; y: number }): number => Math.hypot(point.x - other.x, point.y - other.y);
        this.zoomBy(spread(here) / Math.max(1, spread(before)), (here.x + other.x) / 2, (here.y + other.y) / 2);
        moved = 99;
      } else {
        moved += Math.hypot(here.x - before.x, here.y - before.y);
        if (moved > 4) {
          canvas.classList.add("dragging");
          byId("tip").hidden = true;
          this.pan(before.x - here.x, before.y - here.y);
        }
      }
      if (moved > 4 || other) pointers.set(event.pointerId, here);
    });
    const lift = (event: PointerEvent): void => {
      const known = pointers.delete(event.pointerId);
      canvas.classList.remove("dragging");
      if (!known || event.type === "pointercancel" || moved > 4) return;
      const { x, y } = at(event);
      this.state.tile = null;
      this.select(this.selectionAt(x, y));
    };
    canvas.addEventListener("pointerup", lift);
    canvas.addEventListener("pointercancel", lift);
    canvas.addEventListener("pointerleave", () => this.unhover());
    canvas.addEventListener("dblclick", (event) => {
      const { x, y } = at(event);
      const found = this.selectionAt(x, y);
      if (found) this.goTo(found);
      else this.fit();
    });
    const jump = (event: PointerEvent): void => {
      const box = this.minimap.getBoundingClientRect();
      const x = ((event.clientX - box.left) / box.width) * this.sheet.width;
      const y = ((event.clientY - box.top) / box.height) * this.sheet.height;
      this.look({ ...this.camera, x, y });
    };
    this.minimap.addEventListener("pointerdown", (event) => {
      this.minimap.setPointerCapture(event.pointerId);
      jump(event);
    });
    this.minimap.addEventListener("pointermove", (event) => {
      if (event.buttons & 1) jump(event);
    });
  }

  // ---- keys ----------------------------------------------------------------------------------------------------

  private step(by: number): void {
    const now = this.waferOf(this.state.selected);
    const order = now === null ? (by > 0 ? -1 : this.scene.wafers.length) : this.scene.waferByNumber.get(now)!.order;
    const next = this.scene.wafers[order + by];
    if (next) this.goTo({ type: "wafer", id: next.order });
  }

  private toggleTable(): void {
    const folded = document.body.classList.toggle("folded");
    const toggle = byId("toggle-table");
    toggle.setAttribute("aria-expanded", `${!folded}`);
    toggle.textContent = folded ? "Unfold" : "Fold";
  }

  private readonly keys: Record<string, (event: KeyboardEvent) => void> = {
    "/": () => this.searchBox.open(),
    "?": () => this.dialogs.openHelp(),
    g: () => this.dialogs.openGoto(),
    f: () => this.fit(),
    c: () => this.update(() => (this.state.colourBy = this.state.colourBy === "kind" ? "memory" : "kind")),
    t: () => this.toggleTable(),
    m: () => this.toggleTheme(),
    "[": () => this.step(-1),
    "]": () => this.step(1),
    "+": () => this.zoomBy(1.4),
    "=": () => this.zoomBy(1.4),
    "-": () => this.zoomBy(1 / 1.4),
    ArrowLeft: (event) => this.pan(event.shiftKey ? -400 : -80, 0),
    ArrowRight: (event) => this.pan(event.shiftKey ? 400 : 80, 0),
    ArrowUp: (event) => this.pan(0, event.shiftKey ? -400 : -80),
    ArrowDown: (event) => this.pan(0, event.shiftKey ? 400 : 80),
    Enter: () => {
      const selected = this.state.selected;
      if (selected) this.fly(() => this.viewOf(selected));
    },
    Escape: () => this.clear(),
  };

  private onKey(event: KeyboardEvent): void {
    if (event.ctrlKey || event.metaKey || event.altKey || document.querySelector("dialog[open]")) return;
    const target = event.target as HTMLElement;
    if (target.matches("input, textarea, select")) return;
    // A focused button keeps Enter, and the table's own scroll area keeps the arrows.
    if (event.key === "Enter" && target.matches("button")) return;
    if (event.key.startsWith("Arrow") && target !== document.body && target !== this.canvas) return;
    const run = this.keys[event.key];
    if (!run) return;
    event.preventDefault();
    run(event);
  }

  private listen(): void {
    this.listenPointer();
    document.addEventListener("keydown", (event) => this.onKey(event));
    window.addEventListener("hashchange", () => this.load());
    new ResizeObserver(() => {
      this.resize();
      // At once: a frame later the old picture would have been seen stretched.
      this.draw();
    }).observe(byId("stage"));
    systemIsDark.addEventListener("change", () => this.recolour());
    const click = (id: string, run: () => void): void => byId(id).addEventListener("click", run);
    click("zoom-in", () => this.zoomBy(1.4));
    click("zoom-out", () => this.zoomBy(1 / 1.4));
    click("fit", () => this.fit());
    click("theme", () => this.toggleTheme());
    click("open-goto", () => this.dialogs.openGoto());
    click("open-help", () => this.dialogs.openHelp());
    click("toggle-table", () => this.toggleTable());
  }

  /** What tests may ask. */
  probe(): NonNullable<Window["waferc"]> {
    return {
      level: () => this.level,
      selected: () => selectionName(this.scene, this.state.selected),
      camera: () => ({ ...this.camera }),
      wafers: this.scene.wafers.length,
      blocks: this.scene.blocks.length,
      experts: this.scene.experts.count,
    };
  }
}

function tipLines(scene: Scene, found: Selection): string[] {
  if (found.type === "wafer") return [`Wafer ${scene.wafers[found.id]!.number}`, "free tiles"];
  if (found.type === "link") return [selectionName(scene, found), `${bytes(scene.links[found.id]!.bytesPerToken)} per token`];
  const block = scene.blocks[found.type === "block" ? found.id : scene.experts.block[found.id]!]!;
  const rect = found.type === "block" ? block.rect : expertRect(scene.experts, found.id);
  const size = `${rect.columns} \u00d7 ${rect.rows} = ${count(rect.columns * rect.rows)} tiles`;
  if (found.type === "expert") return [`Expert ${scene.experts.index[found.id]!}`, block.name, size];
  return [block.name, `${bytes(block.weightBytes + block.cacheBytes + block.activationBytes)} \u00b7 ${size}`];
}

const payload = JSON.parse(byId("payload").textContent ?? "null") as Payload;
const scene = decode(payload);
document.title = `${payload.model} \u2013 plan`;
const page = new Page(scene);
window.waferc = page.probe();
document.body.dataset["ready"] = "true";
