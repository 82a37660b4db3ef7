/** The time of day as the page's clock moves it on: whoever reads this is drawn anew once a second. */

import { live } from "../../lib/live.svelte";

/** Seconds since 1970. */
export function unixNow(): number {
  void live.now_ms;
  return Date.now() / 1000;
}
