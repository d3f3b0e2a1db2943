// The two dialogs: go to a tile or a block, and the keys.

import type { Scene } from "./data";
import { byId, element } from "./dom";
import type { Selection, Tile } from "./state";

export type Target = { tile: Tile } | { selection: Selection };

const KEYS: [string, string][] = [
  ["Wheel", "zoom about the pointer"],
  ["Drag, arrows", "move the sheet (with Shift: farther)"],
  ["+  \u2212", "zoom in and out"],
  ["Double click, Enter", "zoom to what is under the pointer, or selected"],
  ["f", "show all wafers"],
  ["[  ]", "wafer before, wafer after"],
  ["/", "search"],
  ["g", "go to a tile or a block"],
  ["c", "colour by kind or by memory"],
  ["t", "fold or unfold the table"],
  ["m", "light or dark"],
  ["Esc", "close, then clear the selection"],
  ["?", "this list"],
];

/** Reads "3, 375, 580" or the name of a block; returns what is wrong as a sentence. */
export function parseTarget(scene: Scene, text: string): Target | string {
  const wanted = text.trim();
  const block = scene.blockByName.get(wanted);
  if (block) return { selection: { type: "block", id: block.id } };
  const parts = wanted.split(/[\s,;:]+/).filter(Boolean);
  const numbers = parts.map(Number);
  if (parts.length && numbers.every((value) => Number.isInteger(value) && value >= 0)) return tileTarget(scene, numbers);
  const near = wanted && scene.blocks.find((one) => one.name.toLowerCase().includes(wanted.toLowerCase()));
  return near ? { selection: { type: "block", id: near.id } } : "No block has this name.";
}

function tileTarget(scene: Scene, numbers: number[]): Target | string {
  const [number, column, row] = numbers;
  const wafer = scene.waferByNumber.get(number!);
  if (!wafer) return `No wafer ${number!} in this plan.`;
  if (numbers.length === 1) return { selection: { type: "wafer", id: wafer.order } };
  if (numbers.length !== 3) return "Three numbers: wafer, column, row.";
  const { columns, rows } = scene.machine;
  if (column! >= columns || row! >= rows) return `A wafer has columns 0 to ${columns - 1} and rows 0 to ${rows - 1}.`;
  return { tile: { wafer: number!, column: column!, row: row! } };
}

export function setUpDialogs(scene: Scene, go: (target: Target) => void): { openGoto(): void; openHelp(): void } {
  const gotoDialog = byId<HTMLDialogElement>("goto");
  const help = byId<HTMLDialogElement>("help");
  const input = byId<HTMLInputElement>("goto-text");
  const error = byId("goto-error");
  byId("block-names").replaceChildren(...scene.blocks.map((block) => element("option", { value: block.name })));
  byId("keys").replaceChildren(
    ...KEYS.flatMap(([key, what]) => [
      element("dt", {}, ...key.split(/(?:  |, )/).map((one) => element("kbd", {}, one))),
      element("dd", {}, what),
    ]),
  );
  byId("producer").textContent = `Written by ${scene.payload.producer}.`;
  byId("goto-cancel").addEventListener("click", () => gotoDialog.close());
  gotoDialog.querySelector("form")!.addEventListener("submit", (event) => {
    event.preventDefault();
    const target = parseTarget(scene, input.value);
    if (typeof target === "string") {
      error.textContent = target;
      return;
    }
    gotoDialog.close();
    go(target);
  });
  return {
    openGoto: () => {
      error.textContent = "";
      gotoDialog.showModal();
      input.select();
    },
    openHelp: () => help.showModal(),
  };
}
