/** What lies along the x-axis of charts: the run's clock, the tokens trained until then, or rounds of the routers. */
import type { Line } from "./chart";
import type { Series } from "./documents";
import { clock, clockTick, compact } from "./format";

export const AXES = ["time", "tokens", "round"] as const;
export type Axis = (typeof AXES)[number];

export const AXIS_NAMES: Readonly<Record<Axis, string>> = { time: "time", tokens: "tokens", round: "round" };

/** At the axis itself, where the steps are round. */
export const tickOn: Readonly<Record<Axis, (x: number) => string>> = {
  time: clockTick,
  tokens: (x) => compact(x).replace(/\.0+(?=\D|$)/, ""),
  round: (x) => String(Math.round(x * 10) / 10),
};

export const writeOn: Readonly<Record<Axis, (x: number) => string>> = {
  time: clock,
  tokens: compact,
  round: (x) => String(Math.round(x * 10) / 10),
};

/** A way from times to places on the axis: straight between what is known, even before the first and after the last. */
export function between(times: readonly number[], values: readonly number[]): (t: number) => number {
  return (t) => {
    if (!times.length) return 0;
    let [low, high] = [0, times.length - 1];
    if (t <= times[low]!) return values[low]!;
    if (t >= times[high]!) return values[high]!;
    while (high - low > 1) {
      const middle = (low + high) >> 1;
      if (times[middle]! <= t) low = middle;
      else high = middle;
    }
    const share = (t - times[low]!) / (times[high]! - times[low]!);
    return values[low]! + share * (values[high]! - values[low]!);
  };
}

/** Tokens trained until a time: what was trained per second, added up, so that it ends at `total`. */
export function tokensUntil(rate: Series, total: number): (t: number) => number {
  const half = rate.bucket_s / 2;
  const times: number[] = [];
  const sums: number[] = [];
  let sum = 0;
  rate.t.forEach((t, i) => {
    if (!times.length || t - half > times.at(-1)! + half * 1e-6) {
      times.push(t - half);
      sums.push(sum);
    }
    sum += rate.mean[i]! * rate.bucket_s;
    times.push(t + half);
    sums.push(sum);
  });
  return between(times, sums.map((known) => known + total - sum));
}

/** A line along another axis. Points that fall together there become one, the later one. */
export function along(line: Line, place: (t: number) => number): Line {
  const kept = new Map<number, number>();
  line.t.forEach((t, i) => kept.set(place(t), i));
  const order = [...kept.entries()].sort((a, b) => a[0] - b[0]);
  const pick = (values: readonly number[]): number[] => order.map(([, i]) => values[i]!);
  return {
    ...line,
    t: order.map(([x]) => x),
    mean: pick(line.mean),
    ...(line.low ? { low: pick(line.low) } : {}),
    ...(line.high ? { high: pick(line.high) } : {}),
  };
}
