// Colours: those of the style sheet for the canvas, and the ink that reads on each.

export interface Palette {
  dark: boolean;
  sheet: string;
  wafer: string;
  waferEdge: string;
  hatch: string;
  text: string;
  muted: string;
  accent: string;
  link: string;
  halo: string;
  kinds: string[];
  inks: string[];
}

type Rgb = [number, number, number];

function rgb(colour: string): Rgb {
  const hex = colour.replace("#", "");
  return [0, 2, 4].map((at) => parseInt(hex.slice(at, at + 2), 16)) as Rgb;
}

function luminance(colour: string): number {
  const [r, g, b] = rgb(colour).map((part) => {
    const level = part / 255;
    return level <= 0.04045 ? level / 12.92 : Math.pow((level + 0.055) / 1.055, 2.4);
  }) as Rgb;
  return 0.2126 * r + 0.7152 * g + 0.0722 * b;
}

const DARK_INK = "#0d1620";
const LIGHT_INK = "#ffffff";

/** Black or white, whichever contrasts more (WCAG 2). */
export function inkOn(colour: string): string {
  const level = luminance(colour);
  const white = 1.05 / (level + 0.05);
  const black = (level + 0.05) / (luminance(DARK_INK) + 0.05);
  return white > black ? LIGHT_INK : DARK_INK;
}

/** One hue from empty to full, away from the background, so that it reads alike with and without colour vision. */
const RAMPS = {
  light: ["#eaf1f8", "#bdd6ec", "#7fb0d9", "#3a82bf", "#12549a", "#062f63"],
  dark: ["#17222e", "#1c3a57", "#285f90", "#468bc4", "#82bae8", "#d3eaff"],
};

export function rampColour(part: number, dark: boolean): string {
  const ramp = dark ? RAMPS.dark : RAMPS.light;
  const at = Math.min(1, Math.max(0, part)) * (ramp.length - 1);
  const low = Math.min(ramp.length - 2, Math.floor(at));
  const [from, to] = [rgb(ramp[low]!), rgb(ramp[low + 1]!)];
  const mixed = from.map((value, i) => Math.round(value + (to[i]! - value) * (at - low)));
  return `#${mixed.map((value) => value.toString(16).padStart(2, "0")).join("")}`;
}

export function readPalette(kinds: string[]): Palette {
  const style = getComputedStyle(document.documentElement);
  const value = (name: string): string => style.getPropertyValue(name).trim();
  const colours = kinds.map((kind) => value(`--kind-${kind.replace(/_/g, "-")}`) || value("--kind-other"));
  return {
    dark: value("--mode") === "dark",
    sheet: value("--sheet"),
    wafer: value("--wafer"),
    waferEdge: value("--wafer-edge"),
    hatch: value("--hatch"),
    text: value("--text"),
    muted: value("--muted"),
    accent: value("--accent"),
    link: value("--link"),
    halo: value("--halo"),
    kinds: colours,
    inks: colours.map(inkOn),
  };
}
