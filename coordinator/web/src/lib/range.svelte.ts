/** Which stretch of the run's clock charts show: `?range=1h`, or one that was dragged, `?from=…&to=…`. */
import { router } from "./router.svelte";

export const RANGES = ["all", "15m", "1h", "6h", "24h"] as const;
export type Range = (typeof RANGES)[number];
const SECONDS: Readonly<Record<Range, number>> = { all: Infinity, "15m": 900, "1h": 3600, "6h": 21_600, "24h": 86_400 };

const whole = (text: string): number | null => (/^\d{1,12}$/.test(text) ? Number(text) : null);

class RangeOfTime {
  readonly from: number | null = $derived(whole(router.get("from")));
  readonly to: number | null = $derived(whole(router.get("to")));
  /** Chosen by dragging. */
  readonly isOwn: boolean = $derived(this.from !== null && this.to !== null && this.from < this.to);
  readonly range: Range = $derived(router.choice("range", RANGES));

  /** What to ask for. Reads the clock without following it: who asks again gets the present. */
  query(clock_s: number): { start_s?: number; end_s?: number } {
    if (this.isOwn) return { start_s: this.from!, end_s: this.to! };
    const length = SECONDS[this.range];
    const end = Math.ceil(clock_s);
    return { start_s: Number.isFinite(length) ? Math.max(0, end - length) : 0, end_s: end };
  }

  /** Milliseconds after which new numbers are worth asking for: a bucket's length, within bounds. */
  gap_ms(clock_s: number, points: number): number {
    const length = this.isOwn ? this.to! - this.from! : Math.min(SECONDS[this.range], clock_s);
    return 1000 * Math.min(30, Math.max(4, length / points));
  }

  choose = (range: Range): void => router.set({ range: range === "all" ? null : range, from: null, to: null });
  own = (start: number, end: number): void => {
    if (end - start >= 2) {
      router.set({ from: String(Math.max(0, Math.floor(start))), to: String(Math.ceil(end)) }, { push: true });
    }
  };
}

export const range = new RangeOfTime();
