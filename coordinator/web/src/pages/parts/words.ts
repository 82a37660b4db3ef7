/** Codes of the protocol in words for people. Unknown ones are shown as they are, with blanks for underscores. */

const REASONS: Record<string, string> = {
  user_paused: "its owner paused it",
  schedule: "outside its hours",
  battery: "runs on battery",
  gpu_busy: "another program uses the GPU",
  exclusive_app: "a program runs that it makes way for",
  too_hot: "too hot",
  vram: "too little GPU memory is free",
  disk: "too little disk space",
  data_cap: "its traffic cap is reached",
  no_work: "no work for it now",
  waiting_for_peers: "waits for other workers",
  run_paused: "the run is paused",
  coordinator_unreachable: "cannot reach the coordinator",
  update_required: "needs a newer version",
  error: "an error; its owner must look",
  harm: "its updates were worse on others' text",
  faults: "too many faulty updates",
  forgery: "forged a message",
  revoked: "revoked by the operator",
  erased: "erased by the operator",
  quarantined: "quarantined after refused updates",
};

/** Why a worker does not work, with the further words that it gave. */
export function reasonWords(reason: string, detail = ""): string {
  const words = reason ? (REASONS[reason] ?? reason.replaceAll("_", " ")) : "";
  if (!detail || detail === words) return words;
  return words ? `${words}: ${detail}` : detail;
}
