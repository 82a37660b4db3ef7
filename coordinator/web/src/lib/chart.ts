/** What a chart needs beside uPlot: aligned columns, a sentence in place of the picture, steps of its axes. */
import type { Series } from "./documents";

export interface Line {
  readonly label: string;
  /** A custom property of `app.css`, such as `--line-1`. */
  readonly colour: string;
  readonly t: readonly number[];
  readonly mean: readonly number[];
  /** Drawn as a band behind the line, where given. */
  readonly low?: readonly number[];
  readonly high?: readonly number[];
  /** Dashes, to tell lines apart without colour. */
  readonly isDashed?: boolean;
}

/** A series of the API as a line. */
export const lineOf = (series: Series, label: string, colour: string, isDashed = false): Line => ({
  label, colour, isDashed, t: series.t, mean: series.mean, low: series.low, high: series.high,
});

export type Columns = [number[], ...(number | null)[][]];

/** All lines over the union of their times: per line mean, low and high; null where it has nothing. */
export function columnsOf(lines: readonly Line[]): Columns {
  const times = [...new Set(lines.flatMap((line) => line.t))].sort((a, b) => a - b);
  const place = new Map(times.map((t, i) => [t, i]));
  const spread = (t: readonly number[], values: readonly number[]): (number | null)[] => {
    const column = new Array<number | null>(times.length).fill(null);
    t.forEach((at, i) => (column[place.get(at)!] = values[i] ?? null));
    return column;
  };
  return [
    times,
    ...lines.flatMap((line) => [
      spread(line.t, line.mean), spread(line.t, line.low ?? line.mean), spread(line.t, line.high ?? line.mean),
    ]),
  ];
}

/** The picture in a sentence: where each line begins and ends, its least and most. */
export function summary(
  title: string,
  lines: readonly Line[],
  value: (value: number) => string,
  time: (t: number) => string,
): string {
  const told = lines.filter((line) => line.t.length).map((line) => {
    const [first, last] = [line.mean[0]!, line.mean.at(-1)!];
    const [least, most] = [Math.min(...line.mean), Math.max(...line.mean)];
    return `${line.label}: from ${value(first)} to ${value(last)}, between ${value(least)} and ${value(most)}`;
  });
  if (!told.length) return `${title}: nothing yet.`;
  const t = lines.flatMap((line) => [line.t[0], line.t.at(-1)]).filter((at) => at !== undefined);
  return `${title}, ${time(Math.min(...t))} to ${time(Math.max(...t))}. ${told.join(". ")}.`;
}

const round = (unit: number): number[] => [1, 2, 5, 10, 20, 50, 100, 200, 500].map((step) => step * unit);

/** Steps of an axis of bytes. */
export const BYTE_STEPS: readonly number[] = [0, 1, 2, 3, 4].flatMap((power) => round(1024 ** power));
/** Steps of an axis of things that are counted. */
export const COUNT_STEPS: readonly number[] = [0, 1, 2, 3].flatMap((power) => round(1000 ** power));

/** Steps of an axis of times in seconds, that read well. */
export const TIME_STEPS: readonly number[] = [
  1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200, 10_800, 21_600, 43_200, 86_400, 172_800, 604_800,
];
