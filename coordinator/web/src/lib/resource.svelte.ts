/** What one page asks for beside the live state: asked anew when its question changes, or when a patch concerns it. */
import { ApiError, type Patch } from "./api";
import { live } from "./live.svelte";

/** At most one refresh in so many milliseconds. */
const GAP_MS = 2_000;

export class Resource<T> {
  data: T | null = $state.raw(null);
  error: ApiError | null = $state.raw(null);
  /** Whether the answer to the present question is still to come; `data` is then of the former one, or null. */
  isLoading = $state.raw(true);
  refresh: () => void = () => {};
}

/**
 * Ask, and keep the answer current while the component lives. To be called while it is set up.
 *
 * @param load Asks. What it reads before its first await is its question: when that changes, it is asked anew.
 * @param concerns Whether a patch calls for a refresh; null is a state loaded anew. None by default.
 * @param gap_ms Least time between two refreshes that patches call for.
 */
export function resource<T>(
  load: (signal: AbortSignal) => Promise<T>,
  concerns: (patch: Patch) => boolean = () => false,
  gap_ms: () => number = () => GAP_MS,
): Resource<T> {
  const answer = new Resource<T>();
  let nAsked = $state(0);
  let last_ms = -Infinity;
  let timer: number | undefined;

  answer.refresh = () => {
    if (timer !== undefined) return;
    const wait_ms = Math.max(0, last_ms + gap_ms() - performance.now());
    timer = window.setTimeout(() => {
      timer = undefined;
      nAsked += 1;
    }, wait_ms);
  };

  $effect(() => {
    void nAsked;
    const asking = new AbortController();
    answer.isLoading = true;
    last_ms = performance.now();
    load(asking.signal).then(
      (data) => {
        if (asking.signal.aborted) return;
        answer.data = data;
        answer.error = null;
        answer.isLoading = false;
      },
      (error: unknown) => {
        if (asking.signal.aborted) return;
        answer.error = error instanceof ApiError ? error : new ApiError(0, "unreadable", String(error));
        answer.isLoading = false;
      },
    );
    return () => asking.abort();
  });

  $effect(() => {
    const end = live.listen((patch) => {
      if (patch === null) {
        // The state has just come, perhaps for the first time: what was asked before knew no clock.
        clearTimeout(timer);
        timer = undefined;
        last_ms = -Infinity;
      }
      if (patch === null || concerns(patch)) answer.refresh();
    });
    return () => {
      end();
      if (timer !== undefined) clearTimeout(timer);
      timer = undefined;
    };
  });
  return answer;
}
