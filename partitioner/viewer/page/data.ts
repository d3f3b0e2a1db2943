// The plan as the page uses it, decoded from the columns that report.py wrote.

export interface Rect {
  column: number;
  row: number;
  columns: number;
  rows: number;
}

interface RectColumns {
  column: number[];
  row: number[];
  columns: number[];
  rows: number[];
}

export interface Machine {
  name: string;
  description: string;
  columns: number;
  rows: number;
  tile_sram_bytes: number;
  reserve_bytes: number;
  systems: number;
  odd_wafers: { wafer: number; columns: number; rows: number; slowness_permille: number }[];
  odd_links: { one: number; other: number; cost: number }[];
}

export interface Score {
  objective: string;
  unit: string;
  value: number;
  bound: number;
  gap: number;
  proof: string;
}

export interface Solver {
  status: string;
  scores: Score[];
  interrupted: boolean;
  seed: number;
  deterministic_time_limit: number | null;
}

export interface Payload {
  schema_version: number;
  producer: string;
  model: string;
  machine: Machine;
  workload: { users: number; context: number; chunk: number };
  solver: Solver;
  kinds: string[];
  /** Wafers in use, in the order in which values flow. */
  pipeline: number[];
  blocks: RectColumns & {
    name: string[];
    kind: number[];
    layer: (number | null)[];
    wafer: number[];
    parameters: string[][];
    parameter_count: number[];
    weight_bytes: number[];
    cache_bytes: number[];
    activation_bytes: number[];
    tile_bytes: number[];
    macs_per_token: number[];
    experts: number[];
    active_experts: number[];
  };
  experts: RectColumns & { index: number[]; wafer: number[] };
  transfers: {
    value: string[];
    source: string[];
    source_wafer: number[];
    target_wafer: number[];
    bytes_per_token: number[];
  };
  totals: { weight_bytes: number; parameters: number | null; unplaced: string[]; unplaced_count: number };
}

export interface Block {
  id: number;
  name: string;
  kind: number;
  layer: number | null;
  wafer: number;
  rect: Rect;
  parameters: string[];
  parameterCount: number;
  weightBytes: number;
  cacheBytes: number;
  activationBytes: number;
  tileBytes: number;
  macsPerToken: number;
  firstExpert: number;
  experts: number;
  activeExperts: number;
  /** Whether each expert lies on all tiles of the block, rather than on some of its own. */
  sliced: boolean;
}

/** All experts, one array for each field; a block's experts follow each other. */
export interface Experts {
  count: number;
  index: Int32Array;
  wafer: Int32Array;
  column: Int32Array;
  row: Int32Array;
  columns: Int32Array;
  rows: Int32Array;
  block: Int32Array;
}

/** All transfers from one wafer to another. */
export interface Link {
  id: number;
  source: number;
  target: number;
  bytesPerToken: number;
  values: { value: string; source: string; bytes: number }[];
}

export interface Wafer {
  /** Place in `Scene.wafers`. */
  order: number;
  number: number;
  columns: number;
  rows: number;
  /** Thousandths of the time that an ordinary wafer takes. */
  slowness: number;
  blocks: Block[];
  /** Experts that lie here although their block lies on another wafer. */
  guests: number[];
  layers: number[];
  weightBytes: number;
  cacheBytes: number;
  activationBytes: number;
  freeBytes: number;
  capacityBytes: number;
  tilesUsed: number;
  /** Part of the wafer's bytes that is taken. */
  fill: number;
  trafficOut: number;
  trafficIn: number;
}

export interface Scene {
  payload: Payload;
  machine: Machine;
  kinds: string[];
  blocks: Block[];
  experts: Experts;
  wafers: Wafer[];
  links: Link[];
  waferByNumber: Map<number, Wafer>;
  blockByName: Map<string, Block>;
  tileCapacity: number;
  /** The largest mesh of all wafers in use. */
  mesh: { columns: number; rows: number };
}

/** The mesh of a wafer, and how slow it is. */
export function meshOf(machine: Machine, wafer: number): { columns: number; rows: number; slowness: number } {
  const odd = machine.odd_wafers.find((one) => one.wafer === wafer);
  return odd
    ? { columns: odd.columns, rows: odd.rows, slowness: odd.slowness_permille }
    : { columns: machine.columns, rows: machine.rows, slowness: 1000 };
}

/** What a link costs, relative to an ordinary one. */
export function linkCost(machine: Machine, a: number, b: number): number {
  return machine.odd_links.find(({ one, other }) => (one === a && other === b) || (one === b && other === a))?.cost ?? 1;
}

/** Undoes `packed` of report.py: runs of equal steps. */
export function unpacked(runs: number[]): Int32Array {
  let total = 0;
  for (let i = 1; i < runs.length; i += 2) total += runs[i]!;
  const values = new Int32Array(total);
  let last = 0;
  let at = 0;
  for (let i = 0; i < runs.length; i += 2) {
    for (let n = runs[i + 1]!; n > 0; n--) {
      last += runs[i]!;
      values[at++] = last;
    }
  }
  return values;
}

export function expertRect(experts: Experts, id: number): Rect {
  return { column: experts.column[id]!, row: experts.row[id]!, columns: experts.columns[id]!, rows: experts.rows[id]! };
}

function decodeBlocks(payload: Payload): Block[] {
  const columns = payload.blocks;
  const wide = unpacked(payload.experts.columns);
  const high = unpacked(payload.experts.rows);
  let first = 0;
  return columns.name.map((name, id) => {
    const firstExpert = first;
    first += columns.experts[id]!;
    let sliced = first > firstExpert;
    for (let at = firstExpert; at < first; at++) {
      sliced &&= wide[at] === columns.columns[id] && high[at] === columns.rows[id];
    }
    return {
      id,
      name,
      kind: columns.kind[id]!,
      layer: columns.layer[id]!,
      wafer: columns.wafer[id]!,
      rect: { column: columns.column[id]!, row: columns.row[id]!, columns: columns.columns[id]!, rows: columns.rows[id]! },
      parameters: columns.parameters[id]!,
      parameterCount: columns.parameter_count[id]!,
      weightBytes: columns.weight_bytes[id]!,
      cacheBytes: columns.cache_bytes[id]!,
      activationBytes: columns.activation_bytes[id]!,
      tileBytes: columns.tile_bytes[id]!,
      macsPerToken: columns.macs_per_token[id]!,
      firstExpert,
      experts: columns.experts[id]!,
      activeExperts: columns.active_experts[id]!,
      sliced,
    };
  });
}

function decodeExperts(payload: Payload, blocks: Block[]): Experts {
  const columns = payload.experts;
  const index = unpacked(columns.index);
  const block = new Int32Array(index.length);
  for (const owner of blocks) block.fill(owner.id, owner.firstExpert, owner.firstExpert + owner.experts);
  return {
    count: index.length,
    index,
    block,
    wafer: unpacked(columns.wafer),
    column: unpacked(columns.column),
    row: unpacked(columns.row),
    columns: unpacked(columns.columns),
    rows: unpacked(columns.rows),
  };
}

function decodeLinks(payload: Payload): Link[] {
  const links = new Map<string, Link>();
  const t = payload.transfers;
  t.value.forEach((value, i) => {
    const source = t.source_wafer[i]!;
    const target = t.target_wafer[i]!;
    const key = `${source}>${target}`;
    let link = links.get(key);
    if (!link) links.set(key, (link = { id: links.size, source, target, bytesPerToken: 0, values: [] }));
    link.bytesPerToken += t.bytes_per_token[i]!;
    link.values.push({ value, source: t.source[i]!, bytes: t.bytes_per_token[i]! });
  });
  return [...links.values()];
}

const sum = <T>(items: T[], of: (item: T) => number): number => items.reduce((total, item) => total + of(item), 0);

function decodeWafers(scene: Omit<Scene, "wafers" | "waferByNumber" | "blockByName" | "mesh">): Wafer[] {
  const { blocks, experts, links } = scene;
  const guests = new Map<number, number[]>();
  for (let id = 0; id < experts.count; id++) {
    const at = experts.wafer[id]!;
    if (at === blocks[experts.block[id]!]!.wafer) continue;
    guests.set(at, [...(guests.get(at) ?? []), id]);
  }
  const others = [...new Set([...blocks.map((block) => block.wafer), ...guests.keys()])].sort((a, b) => a - b);
  const numbers = [...new Set([...scene.payload.pipeline, ...others])];
  return numbers.map((number, order) => {
    const own = blocks.filter((block) => block.wafer === number);
    const visitors = guests.get(number) ?? [];
    const layers = [...new Set(own.flatMap((block) => (block.layer === null ? [] : [block.layer])))].sort((a, b) => a - b);
    const weightBytes = sum(own, (block) => block.weightBytes);
    const cacheBytes = sum(own, (block) => block.cacheBytes);
    const activationBytes = sum(own, (block) => block.activationBytes);
    const mesh = meshOf(scene.machine, number);
    const capacityBytes = mesh.columns * mesh.rows * scene.tileCapacity;
    const taken = weightBytes + cacheBytes + activationBytes;
    return {
      order,
      number,
      ...mesh,
      blocks: own,
      guests: visitors,
      layers,
      weightBytes,
      cacheBytes,
      activationBytes,
      capacityBytes,
      freeBytes: capacityBytes - taken,
      fill: capacityBytes > 0 ? taken / capacityBytes : 0,
      tilesUsed:
        sum(own, (block) => block.rect.columns * block.rect.rows) +
        sum(visitors, (id) => experts.columns[id]! * experts.rows[id]!),
      trafficOut: sum(links.filter((link) => link.source === number), (link) => link.bytesPerToken),
      trafficIn: sum(links.filter((link) => link.target === number), (link) => link.bytesPerToken),
    };
  });
}

export function decode(payload: Payload): Scene {
  const machine = payload.machine;
  const blocks = decodeBlocks(payload);
  const base = {
    payload,
    machine,
    kinds: payload.kinds,
    blocks,
    experts: decodeExperts(payload, blocks),
    links: decodeLinks(payload),
    tileCapacity: machine.tile_sram_bytes - machine.reserve_bytes,
  };
  const wafers = decodeWafers(base);
  const most = (side: (wafer: Wafer) => number): number => Math.max(1, ...wafers.map(side));
  return {
    ...base,
    wafers,
    mesh: { columns: most((wafer) => wafer.columns), rows: most((wafer) => wafer.rows) },
    waferByNumber: new Map(wafers.map((wafer) => [wafer.number, wafer])),
    blockByName: new Map(blocks.map((block) => [block.name, block])),
  };
}
