/** A worker's states over time, as one band: what is drawn, and how it adds up. */

import type { StateSpan } from "../../lib/documents";
import type { Window } from "./window";

export interface Piece {
  span: StateSpan;
  /** Shares of the band's width. */
  left: number;
  width: number;
  seconds: number;
}

/** From the first state that is known to now; at least a second long. */
export function bandWindow(spans: readonly StateSpan[], nowS: number): Window {
  const start = Math.min(nowS - 1, ...spans.map((span) => span.start_s));
  return { start, end: Math.max(nowS, ...spans.map((span) => span.end_s ?? nowS)) };
}

/** The pieces of the band, oldest first. */
export function pieces(spans: readonly StateSpan[], window: Window, nowS: number): Piece[] {
  const whole = window.end - window.start;
  return spans.map((span) => {
    const seconds = Math.max(0, (span.end_s ?? nowS) - span.start_s);
    return { span, left: (span.start_s - window.start) / whole, width: seconds / whole, seconds };
  });
}

/** How long the worker was in each state, the longest first; in seconds. */
export function sums(all: readonly Piece[]): [state: StateSpan["state"], seconds: number][] {
  const known = new Map<StateSpan["state"], number>();
  for (const { span, seconds } of all) known.set(span.state, (known.get(span.state) ?? 0) + seconds);
  return [...known].sort((a, b) => b[1] - a[1]);
}
