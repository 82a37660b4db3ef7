/** Which of nine steps of a scale a number falls into, so that themes alone decide what a step looks like. */

export const N_STEPS = 9;

/** 1, 2 or 5 times a power of ten, and at least as much. */
export function roundUp(value: number): number {
  if (!(value > 0)) return 1;
  const power = 10 ** Math.floor(Math.log10(value));
  const head = value / power;
  return (head <= 1 ? 1 : head <= 2 ? 2 : head <= 5 ? 5 : 10) * power;
}

/** Step of a scale that is even on both sides of zero, from -`most` to `most`. */
export const divergingStep = (value: number, most: number): number =>
  Math.min(N_STEPS - 1, Math.max(0, Math.round(((value / most + 1) / 2) * (N_STEPS - 1))));

/** Step of a scale from `least` to `most`. */
export const sequentialStep = (value: number, least: number, most: number): number =>
  most <= least ? 0 : Math.min(N_STEPS - 1, Math.max(0, Math.floor(((value - least) / (most - least)) * N_STEPS)));
