/** Numbers, times and names as the page writes them: always with a unit, always the same width where that is possible. */

const NBSP = "\u00a0";
const MINUS = "\u2212";
/** What stands where nothing is known. */
export const NONE = "–";

const grouped = new Intl.NumberFormat("en-GB", { maximumFractionDigits: 0 });

type Maybe = number | null | undefined;
const isNumber = (value: Maybe): value is number => typeof value === "number" && Number.isFinite(value);
const fixed = (value: number, digits: number): string => value.toFixed(digits).replace("-", MINUS);

/** 12,288 */
export const count = (value: Maybe): string =>
  isNumber(value) ? grouped.format(Math.round(value)).replace("-", MINUS) : NONE;

/** "1 worker", "12 workers" */
export const plural = (n: number, one: string, many = `${one}s`): string => `${count(n)}${NBSP}${n === 1 ? one : many}`;

/** Three significant digits and a unit of a thousand: 18.4k, 2.05M. */
export function compact(value: Maybe): string {
  if (!isNumber(value)) return NONE;
  const units = ["", "k", "M", "G", "T", "P"];
  let [size, unit] = [Math.abs(value), 0];
  while (size >= 999.5 && unit < units.length - 1) [size, unit] = [size / 1000, unit + 1];
  const digits = unit === 0 && Number.isInteger(size) ? 0 : size >= 99.95 ? 0 : size >= 9.995 ? 1 : 2;
  return `${value < 0 ? MINUS : ""}${size.toFixed(digits)}${units[unit]}`;
}

/** 34.0 MiB */
export function bytes(value: Maybe): string {
  if (!isNumber(value)) return NONE;
  const units = ["B", "KiB", "MiB", "GiB", "TiB", "PiB"];
  let [size, unit] = [Math.abs(value), 0];
  while (size >= 1023.5 && unit < units.length - 1) [size, unit] = [size / 1024, unit + 1];
  const digits = unit === 0 || size >= 99.95 ? 0 : 1;
  return `${value < 0 ? MINUS : ""}${size.toFixed(digits)}${NBSP}${units[unit]}`;
}

/** 4.0 MiB/s */
export const byteRate = (value: Maybe): string => (isNumber(value) ? `${bytes(value)}/s` : NONE);

/** 18.4k tok/s */
export const tokenRate = (value: Maybe): string => (isNumber(value) ? `${compact(value)}${NBSP}tok/s` : NONE);

/** A loss in nats per token: 1.843 */
export const loss = (value: Maybe): string => (isNumber(value) ? fixed(value, 3) : NONE);

/** A loss at an axis: 1.84 */
export const fixedLoss = (value: number): string => fixed(value, 2);

/** A difference with its sign: −0.062, +0.010, 0.000 */
export function change(value: Maybe, digits = 3): string {
  if (!isNumber(value)) return NONE;
  const text = Math.abs(value).toFixed(digits);
  return Number(text) === 0 ? text : `${value < 0 ? MINUS : "+"}${text}`;
}

/** A share as percent: 7.8 %, 0.04 %, 100 % */
export function percent(share: Maybe, digits?: number): string {
  if (!isNumber(share)) return NONE;
  const value = share * 100;
  const places = digits ?? (value === 0 || value >= 99.95 ? 0 : value < 0.1 ? 2 : 1);
  return `${fixed(value, places)}${NBSP}%`;
}

/** A length of time by its two largest units: 12 s, 38 min, 1 h 50 min, 3 d 4 h. */
export function duration(seconds: Maybe): string {
  if (!isNumber(seconds)) return NONE;
  const whole = Math.max(0, Math.round(seconds));
  if (whole < 60) return `${whole}${NBSP}s`;
  const minutes = Math.round(whole / 60);
  if (whole < 600 && whole % 60) return `${Math.floor(whole / 60)}${NBSP}min ${whole % 60}${NBSP}s`;
  if (minutes < 60) return `${minutes}${NBSP}min`;
  if (minutes < 24 * 60) return joined(Math.floor(minutes / 60), "h", minutes % 60, "min");
  const hours = Math.round(minutes / 60);
  return joined(Math.floor(hours / 24), "d", hours % 24, "h");
}

const joined = (large: number, largeUnit: string, small: number, smallUnit: string): string =>
  `${large}${NBSP}${largeUnit}${small ? ` ${small}${NBSP}${smallUnit}` : ""}`;

/** 12 s ago; "now" within two seconds. */
export const ago = (seconds: Maybe): string =>
  !isNumber(seconds) ? NONE : seconds < 2 ? "now" : `${coarse(seconds)} ago`;

/** A length of time by its largest unit alone: 38 min, 2 h, 3 d. */
export function coarse(seconds: number): string {
  const whole = Math.max(0, Math.floor(seconds));
  if (whole < 60) return `${whole}${NBSP}s`;
  if (whole < 3600) return `${Math.floor(whole / 60)}${NBSP}min`;
  if (whole < 172_800) return `${Math.floor(whole / 3600)}${NBSP}h`;
  return `${Math.floor(whole / 86_400)}${NBSP}d`;
}

/** The run's clock: 0:45, 12:05, 2:12:05, 3d 02:12. */
export function clock(seconds: Maybe): string {
  if (!isNumber(seconds)) return NONE;
  const whole = Math.max(0, Math.floor(seconds));
  const two = (n: number): string => String(n).padStart(2, "0");
  const [days, hours, minutes] = [Math.floor(whole / 86_400), Math.floor(whole / 3600), Math.floor(whole / 60) % 60];
  if (days) return `${days}d ${two(hours % 24)}:${two(minutes)}`;
  return hours ? `${hours}:${two(minutes)}:${two(whole % 60)}` : `${minutes}:${two(whole % 60)}`;
}

/** The run's clock at an axis: 30 s, 12 min, 2 h, 2:30 h, 3 d. */
export function clockTick(seconds: number): string {
  if (seconds < 60) return `${Math.round(seconds)}${NBSP}s`;
  const minutes = Math.floor(seconds / 60);
  const two = (n: number): string => String(n).padStart(2, "0");
  if (seconds < 3600) return seconds % 60 ? `${minutes}:${two(Math.round(seconds % 60))}` : `${minutes}${NBSP}min`;
  if (seconds >= 86_400 && seconds % 86_400 === 0) return `${seconds / 86_400}${NBSP}d`;
  const hours = Math.floor(minutes / 60);
  if (hours >= 48) return `${Math.floor(hours / 24)}d ${two(hours % 24)}h`;
  return minutes % 60 ? `${hours}:${two(minutes % 60)}${NBSP}h` : `${hours}${NBSP}h`;
}

/** Time of day, or day and time where that is not today: 21:40, Sun 21:40, 3 Dec 21:40. */
export function timeOfDay(at: Date, now: Date): string {
  const time = at.toLocaleTimeString("en-GB", { hour: "2-digit", minute: "2-digit" });
  if (at.toDateString() === now.toDateString()) return time;
  const isThisWeek = Math.abs(at.getTime() - now.getTime()) < 6 * 86_400_000;
  const day = isThisWeek
    ? at.toLocaleDateString("en-GB", { weekday: "short" })
    : at.toLocaleDateString("en-GB", { day: "numeric", month: "short" });
  return `${day} ${time}`;
}

/** When the run ends, and how sure that is: "21:40 ± 35 min". */
export function eta(eta_s: Maybe, low_s: Maybe, high_s: Maybe, now: Date): string {
  if (!isNumber(eta_s)) return NONE;
  const end = timeOfDay(new Date(now.getTime() + eta_s * 1000), now);
  if (!isNumber(low_s) || !isNumber(high_s)) return end;
  const spread = Math.max(eta_s - low_s, high_s - eta_s);
  return spread < 30 ? end : `${end} ±${NBSP}${coarse(Math.max(60, spread))}`;
}

/** A node's path as people read it. */
export const nodeName = (path: string): string => path || "root";
export const nodeHref = (path: string): string => `/node/${path || "root"}`;
export const workerHref = (worker: string): string => `/worker/${encodeURIComponent(worker)}`;

/** The name its owner chose; otherwise the beginning of its id. */
export function workerName(worker: { readonly worker: string; readonly name: string } | null | undefined): string {
  if (!worker) return NONE;
  return worker.name || shortId(worker.worker);
}

/** The first characters of an id, enough to tell it from others. */
export const shortId = (id: string, length = 12): string => (id.length > length ? `${id.slice(0, length)}…` : id);

/** A word of the API as people read it: `waiting_for_peers` is "waiting for peers". */
export const words = (name: string): string => name.replaceAll("_", " ");
