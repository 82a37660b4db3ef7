import { expect, it } from "vitest";

import { systemOf } from "./systems";

it.each([
  [null, "Mozilla/5.0 (X11; Linux x86_64)", "linux"],
  [null, "Mozilla/5.0 (Macintosh; Intel Mac OS X 10_15_7)", "macos"],
  [null, "Mozilla/5.0 (Windows NT 10.0; Win64; x64)", "windows"],
  ["macos", "Mozilla/5.0 (X11; Linux x86_64)", "macos"],
  ["beos", "", "linux"],
] as const)("takes %j on %j for %s", (said, agent, expected) => expect(systemOf(said, agent)).toBe(expected));
