/** What an operator typed for a new join token, and how tokens' states are called. */

import type { NewToken, TokenRequest, TokenRow } from "../../lib/documents";

export interface Typed {
  uses: string;
  expires: string;
  tags: string;
  needsApproval: boolean;
}

/** Each state as a mark of `StateMark` and a word. */
export const TOKEN_STATES: Record<TokenRow["state"], readonly [mark: string, words: string]> = {
  open: ["working", "open"],
  used_up: ["done", "used up"],
  expired: ["expired", "expired"],
  revoked: ["out", "revoked"],
};

/** The whole line to hand out, token and all; as an environment variable it stays out of the list of processes. */
export function wholeCommand({ token, command }: Pick<NewToken, "token" | "command">): string {
  return command.includes(token) ? command : `TINYLORA_TOKEN=${token} ${command}`;
}

const MOST_USES = 10_000;
const MOST_TAGS = 8;
const LONGEST_TAG = 40;

/** The request, or one sentence that says what to type instead. */
export function readRequest(typed: Typed): { request: TokenRequest; wrong: "" } | { request: null; wrong: string } {
  const wrong = (sentence: string): { request: null; wrong: string } => ({ request: null, wrong: sentence });
  const uses = /^\d{1,6}$/.test(typed.uses.trim()) ? Number(typed.uses) : 0;
  if (uses < 1 || uses > MOST_USES) return wrong("Workers it lets in: type a whole number from 1 to 10,000.");
  const expires = typed.expires.trim().replaceAll(" ", "");
  if (!/^[1-9]\d{0,4}[smhd]$/.test(expires)) return wrong("Lets in for: type a number and s, m, h or d, such as 30m, 12h or 7d.");
  const tags = typed.tags.split(/[,\s]+/).filter(Boolean);
  if (tags.length > MOST_TAGS) return wrong("Tags: at most eight.");
  if (tags.some((tag) => tag.length > LONGEST_TAG)) return wrong("Tags: at most 40 characters each.");
  return { request: { uses, expires, tags, needs_approval: typed.needsApproval }, wrong: "" };
}
