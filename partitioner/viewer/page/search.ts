// Search over wafers, blocks, layers, experts and parameter names.

import type { Block, Scene } from "./data";
import { bytes, kindLabel } from "./format";
import type { Selection } from "./state";
import { findExpert } from "./state";

export interface Result {
  selection: Selection;
  title: string;
  note: string;
  kind: number | null;
}

const LIMIT = 60;

interface Query {
  wafer: number | null;
  layer: number | null;
  expert: number | null;
  words: string[];
}

/** "expert 200 layer 17", "L17 e200", "wafer 3 attention". */
export function parseQuery(text: string): Query {
  let rest = ` ${text.toLowerCase()} `;
  const take = (pattern: RegExp): number | null => {
    const found = pattern.exec(rest);
    if (!found) return null;
    rest = rest.replace(found[0], "  ");
    return Number(found[1]);
  };
  return {
    wafer: take(/\s(?:wafer|w)\s*(\d+)(?=\s)/),
    layer: take(/\s(?:layers?|l)\s*(\d+)(?=\s)/),
    expert: take(/\s(?:experts?|e)\s*(\d+)(?=\s)/),
    words: rest.split(/[\s,]+/).filter(Boolean),
  };
}

function matches(scene: Scene, block: Block, words: string[]): boolean {
  const text = `${block.name} ${scene.kinds[block.kind]!} ${kindLabel(scene.kinds[block.kind]!)}`.toLowerCase();
  return words.every((word) => text.includes(word) || block.parameters.some((name) => name.toLowerCase().includes(word)));
}

function blockResult(block: Block): Result {
  const layer = block.layer === null ? "" : `layer ${block.layer} \u00b7 `;
  const size = bytes(block.weightBytes + block.cacheBytes + block.activationBytes);
  return {
    selection: { type: "block", id: block.id },
    title: block.name,
    note: `${layer}wafer ${block.wafer} \u00b7 ${size}`,
    kind: block.kind,
  };
}

function expertResults(scene: Scene, blocks: Block[], index: number): Result[] {
  return blocks.flatMap((block) => {
    const id = block.experts ? findExpert(scene, block.id, index) : null;
    if (id === null) return [];
    const layer = block.layer === null ? "" : `layer ${block.layer} \u00b7 `;
    return [
      {
        selection: { type: "expert" as const, id },
        title: `Expert ${index} of ${block.name}`,
        note: `${layer}wafer ${scene.experts.wafer[id]!}`,
        kind: block.kind,
      },
    ];
  });
}

export function search(scene: Scene, text: string): { results: Result[]; total: number } {
  const query = parseQuery(text);
  if (!text.trim()) return { results: [], total: 0 };
  const bare = query.words.length === 1 && /^\d+$/.test(query.words[0]!) ? Number(query.words[0]) : null;
  const blocks = scene.blocks.filter(
    (block) =>
      (query.wafer === null || block.wafer === query.wafer || query.expert !== null) &&
      (query.layer === null || block.layer === query.layer) &&
      (bare !== null ? block.layer === bare : matches(scene, block, query.words)),
  );
  const results: Result[] = [];
  const wafer = scene.waferByNumber.get(query.wafer ?? bare ?? -1);
  const onlyWafer = query.layer === null && query.expert === null;
  if (wafer && onlyWafer && (bare !== null || query.words.length === 0)) {
    const note = wafer.layers.length ? `layers ${wafer.layers[0]!}\u2013${wafer.layers.at(-1)!}` : "no repeated layer";
    results.push({ selection: { type: "wafer", id: wafer.order }, title: `Wafer ${wafer.number}`, note, kind: null });
  }
  if (query.expert !== null) {
    const experts = expertResults(scene, blocks, query.expert);
    results.push(
      ...experts.filter(({ selection }) => query.wafer === null || scene.experts.wafer[selection.id] === query.wafer),
    );
  } else {
    results.push(...blocks.map(blockResult));
  }
  return { results: results.slice(0, LIMIT), total: results.length };
}
