/** What somebody types who lends a machine, by operating system. The words are those of docs/how-to/join.md. */

export interface System {
  id: "linux" | "macos" | "windows";
  label: string;
  /** What is different here. */
  note: string;
  /** How it goes on after a restart of the machine. */
  service: string;
}

export const SYSTEMS: readonly System[] = [
  {
    id: "linux",
    label: "Linux",
    note: "NVIDIA GPUs are found by themselves; without one the CPU does the work, tens of times slower.",
    service: "tinylora-worker service install writes a systemd service of your own user; no root is needed.",
  },
  {
    id: "macos",
    label: "macOS",
    note: "The GPU of Apple's own chips is used; an Intel Mac works on its CPU.",
    service: "tinylora-worker service install writes a launchd agent; no administrator is needed.",
  },
  {
    id: "windows",
    label: "Windows (WSL)",
    note: "Open a shell of WSL 2 (in PowerShell, once: wsl --install), and do there as on Linux. Windows itself is not tested.",
    service: "In WSL with systemd, tinylora-worker service install works as on Linux; it lasts while WSL runs.",
  },
];

/** Once, before joining. */
export const INSTALL = "uv tool install --torch-backend auto tinylora";

/** What the line to join looks like, where nobody is there to be joined. */
export const EXAMPLE = "tinylora-worker join https://tree.example.org:8443 --data TEXTS";

/** How to keep one's machine one's own. */
export const STOPPING: readonly { command: string; does: string }[] = [
  { command: "tinylora-worker pause --for 2h", does: "frees the device within two seconds; at most the step in progress is lost" },
  { command: "tinylora-worker resume", does: "ends a pause" },
  { command: "tinylora-worker finish", does: "leaves after the unit under way" },
  { command: "tinylora-worker stop", does: "saves, gives the unit back and leaves; Ctrl-C does the same" },
  { command: "tinylora-worker status", does: "says what it does, and why it does not" },
  { command: "tinylora-worker limits", does: "what it may use: hours, GPU memory, traffic, battery, temperature" },
];

/** The system of the query string, else the one that the reader seems to use. */
export function systemOf(said: string | null, agent: string): System["id"] {
  const known = SYSTEMS.find((system) => system.id === said);
  if (known) return known.id;
  if (/Windows/i.test(agent)) return "windows";
  return /Mac OS X|Macintosh/i.test(agent) ? "macos" : "linux";
}
