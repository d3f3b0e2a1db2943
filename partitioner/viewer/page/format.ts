// Numbers as people read them. English digits and separators whatever the browser's language, so that reports compare.

export const count = (value: number): string => value.toLocaleString("en-US");

function scaled(value: number, units: string[], step = 1000): string {
  let unit = 0;
  let size = value;
  while (Math.abs(size) >= step && unit < units.length - 1) {
    size /= step;
    unit++;
  }
  const digits = unit === 0 || Math.abs(size) >= 99.95 ? (unit === 0 ? 0 : 1) : 2;
  return `${size.toLocaleString("en-US", { minimumFractionDigits: digits, maximumFractionDigits: digits })} ${units[unit]!}`;
}

/** Decimal units: 1 GB is 10^9 bytes. */
export const bytes = (value: number): string => scaled(value, ["B", "kB", "MB", "GB", "TB", "PB"]);

export const macs = (value: number): string => scaled(value, ["MAC", "kMAC", "MMAC", "GMAC", "TMAC"]);

export const parameters = (value: number): string => scaled(value, ["", "thousand", "million", "billion", "trillion"]).trim();

/** The decimal unit in which a wafer's memory is a number of one to three digits, for columns that share a unit. */
export function unitFor(capacity: number): { name: string; show(value: number): string } {
  const [name, size] = capacity >= 1e9 ? ["GB", 1e9] : capacity >= 1e6 ? ["MB", 1e6] : ["kB", 1e3];
  const digits = { minimumFractionDigits: 2, maximumFractionDigits: 2 };
  return { name: name as string, show: (value) => (value / (size as number)).toLocaleString("en-US", digits) };
}

export const percent = (part: number, digits = 1): string => `${(part * 100).toFixed(digits)} %`;

/** 131072 as 128 Ki, where it is a multiple; contexts are powers of two. */
export const tokens = (value: number): string =>
  value >= 1024 && value % 1024 === 0 ? `${count(value / 1024)} Ki` : count(value);

/** 3, 4, 5, 9 as "3-5, 9" with a dash. */
export function ranges(numbers: number[]): string {
  const parts: string[] = [];
  for (let i = 0; i < numbers.length; ) {
    let end = i;
    while (end + 1 < numbers.length && numbers[end + 1] === numbers[end]! + 1) end++;
    parts.push(end === i ? `${numbers[i]}` : `${numbers[i]}\u2013${numbers[end]}`);
    i = end + 1;
  }
  return parts.join(", ");
}

const KIND_LABELS: Record<string, string> = {
  embedding: "Embedding",
  attention: "Attention",
  dense_mlp: "Dense MLP",
  router: "Router",
  shared_expert: "Shared expert",
  experts: "Experts",
  head: "Head",
  other: "Other",
};

export const kindLabel = (kind: string): string => KIND_LABELS[kind] ?? kind;
