/** A window on the run's clock: what zooming, panning and the query string make of it. Seconds throughout. */

export interface Window {
  start: number;
  end: number;
}

/** The narrowest window. */
export const LEAST_S = 10;

const HOUR_S = 3600;

/** Keep a window's width as far as there is room, and move it into `0 … now`. */
export function kept(window: Window, now: number): Window {
  const whole = Math.max(now, LEAST_S);
  const width = Math.min(Math.max(window.end - window.start, LEAST_S), whole);
  const start = Math.min(Math.max(window.start, 0), whole - width);
  return { start, end: start + width };
}

/** Make a window narrower (`factor` below 1) or wider, while the moment at share `at` of its width stays where it is. */
export function zoomed(window: Window, factor: number, at: number, now: number): Window {
  const width = window.end - window.start;
  const wanted = Math.min(Math.max(width * factor, LEAST_S), Math.max(now, LEAST_S));
  const fixed = window.start + at * width;
  return kept({ start: fixed - at * wanted, end: fixed + (1 - at) * wanted }, now);
}

/** Move a window by a share of its width; below zero is earlier. */
export function panned(window: Window, share: number, now: number): Window {
  const by = share * (window.end - window.start);
  return kept({ start: window.start + by, end: window.end + by }, now);
}

/** What the query string says; `isLive` where it names no end, so that the window moves with the clock. */
export function readWindow(word: (name: string) => string, now: number): Window & { isLive: boolean } {
  const from = seconds(word("from"));
  const to = seconds(word("to"));
  const last = seconds(word("last"));
  if (from !== null && to !== null && to > from) return { ...kept({ start: from, end: to }, now), isLive: false };
  return { ...kept({ start: now - (last ?? Math.min(now, HOUR_S)), end: now }, now), isLive: true };
}

function seconds(text: string): number | null {
  const value = text.trim() === "" ? Number.NaN : Number(text);
  return Number.isFinite(value) && value >= 0 ? value : null;
}

/** The query that `readWindow` makes the same window of, to the tenth of a second. */
export function writeWindow(window: Window, isLive: boolean): Record<string, string | null> {
  const short = (value: number): string => String(Math.round(value * 10) / 10);
  if (!isLive) return { from: short(window.start), to: short(window.end), last: null };
  return { from: null, to: null, last: short(window.end - window.start) };
}

/** Whether a window touches the present. */
export const touches = (window: Window, now: number): boolean => window.end >= now - 0.01 * (window.end - window.start) - 0.5;

const STEPS_S = [
  1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200, 14_400, 21_600, 43_200, 86_400, 172_800, 604_800, 1_209_600,
  2_592_000,
];

/** Round moments in a window, at most `most` of them. */
export function ticks(window: Window, most: number): number[] {
  const width = window.end - window.start;
  const step = STEPS_S.find((s) => width / s <= most) ?? STEPS_S.at(-1)! * Math.ceil(width / STEPS_S.at(-1)! / most);
  const first = Math.ceil(window.start / step) * step;
  const all: number[] = [];
  for (let at = first; at <= window.end; at += step) all.push(at);
  return all;
}
